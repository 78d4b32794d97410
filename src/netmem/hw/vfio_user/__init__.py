"""PCI devices of ours in another program's virtual machine, attached by vfio-user.

Answers to QEMU's docs/interop/vfio-user.rst (protocol 0.0). Imports base and hw. Messages and descriptors
come in by ``Server``; guest memory is reached through ``DmaTable``, interrupts leave by eventfd.
"""

from netmem.hw.vfio_user.dma import DmaFault, DmaTable
from netmem.hw.vfio_user.function import DeviceModel, Function
from netmem.hw.vfio_user.server import Server

__all__ = ["DeviceModel", "DmaFault", "DmaTable", "Function", "Server"]
