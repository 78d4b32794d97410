"""hw: buses, device models, wires, and the helper that starts a device's process.

Answers to: the hardware side of a driver; QEMU and VFIO come in here. It knows no netmem: a NIC
sees I/O addresses and refuses those that nobody mapped.
May import: base.
Frames enter from a wire and leave by DMA into mapped memory; sent frames go the other way.
"""

from netmem.base.extras import need

need("lab", __name__)
