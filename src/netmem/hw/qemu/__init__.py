"""QEMU as a device model: found, started without a guest, and driven over the qtest protocol.

Answers to: the PCI core and an IOMMU's map and unmap calls, for a device that QEMU emulates.
May import: base, hw.
Read machine.py first: registers and configuration go through qtest.py, DMA mappings are hot-plugged
PCI functions (qmp.py), interrupts come over an ivshmem-doorbell (doorbell.py). No socket is a file.
"""
