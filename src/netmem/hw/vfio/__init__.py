"""vfio: PCI functions of this machine, driven from here (Documentation/driver-api/vfio.rst).

``uapi`` has the kernel's calls, ``bus`` a function as a bus for our drivers: registers mapped, DMA by an
IOMMU, interrupts by eventfd.
"""
