"""A PCI function of this machine as a bus (``hw.bus.PciBus``), behind an IOMMU."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import re
import select
from collections.abc import Mapping, Sequence
from pathlib import Path

from netmem.base.dma import DmaDirection
from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.base.kernel_log import KernelLog
from netmem.hw.bus import PciSpace
from netmem.hw.pci import PCI_COMMAND, PCI_COMMAND_MASTER, PciFunction
from netmem.hw.vfio.uapi import DMA_READ, DMA_WRITE, ERR_IRQ, MSIX_IRQ, REQ_IRQ, Container, VfioDevice

SYS = Path("/sys/bus/pci/devices")
NAME = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
FIRST_IOVA, LAST_IOVA = 1 << 32, (1 << 39) - 1  # above what 32 bits reach, below what every IOMMU has
HUGE = 2 << 20
FAULT = re.compile(r"DMAR: .*fault|AMD-Vi: .*PAGE_FAULT|arm-smmu.*(fault|event)", re.IGNORECASE)
FLAGS = {
    DmaDirection.TO_DEVICE: DMA_READ, DmaDirection.FROM_DEVICE: DMA_WRITE,
    DmaDirection.BIDIRECTIONAL: DMA_READ | DMA_WRITE,
}  # fmt: skip


class VfioBus(PciSpace):
    """Function ``name`` (0000:03:00.0), which the driver vfio-pci has.

    What is mapped for DMA is reached by the function alone, and nothing else is: the IOMMU stops it, and
    ``dma_faults`` tells. Nothing stays mapped in this process. Errors: EINVAL for a name that is none; ENODEV
    for a function that is not there, or that another driver has; those of ``Container``.
    """

    pins = True

    def __init__(self, name: str, *, bounce: bool = False) -> None:
        self.name = name.lower()
        group = group_of(self.name)
        super().__init__(bounce=bounce)
        self._iovas: dict[int, int] = {}  # sizes, by where they begin
        self._log = KernelLog()
        self._faults: list[str] = []
        self._gone = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._container: Container | None = None
        self._closing = False
        try:
            self._container = Container(group)
            self.device = VfioDevice(self._container.device(self.name))
            self._ranges = self._container.iova_ranges() or [(FIRST_IOVA, LAST_IOVA)]
            self.config = PciFunction(self.device, *_bdf(self.name))
            self.device_id = self.config.device_id
            self.device.reset()
            for index in (ERR_IRQ, REQ_IRQ):
                with contextlib.suppress(OSError):  # not every function has both
                    self.device.set_irq(index, [self._gone])
            self.config.enable(master=True)
        except BaseException:
            self.close()
            raise

    # -- registers --------------------------------------------------------------------------------

    def read32(self, offset: int) -> int:
        """DeviceGoneError once it is closed."""
        if self._closing:
            raise self.gone()
        return int(self.device.words[offset >> 2])

    def write32(self, offset: int, value: int) -> None:
        """Posted, as on every PCI bus; what must be there is read, which comes behind it. To nowhere once it
        is closed.
        """
        if not self._closing:
            self.device.words[offset >> 2] = value

    post32 = write32

    def replug(self) -> None:
        """The cable is not ours to pull."""

    # -- DMA --------------------------------------------------------------------------------------

    def _attach(self, fd: int, offset: int, length: int, direction: int, exporter: str) -> int:
        """Map a range of ``fd`` for the function, and for nobody else.

        EOPNOTSUPP for memory of a GPU; EFAULT for a dma-buf that VFIO cannot pin; ENOSPC.
        """
        if exporter:
            raise NetmemError(errno.EOPNOTSUPP, f"VFIO does not reach memory of {exporter}: nic softnic does")
        if self._container is None or not self.is_alive():
            raise self.gone()
        size = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
        iova = free_iova(self._iovas, self._ranges, size)
        with contextlib.closing(mmap.mmap(fd, size, flags=mmap.MAP_SHARED, offset=offset)) as view:
            first = ctypes.c_char.from_buffer(view)
            try:
                self._container.map_dma(ctypes.addressof(first), iova, size, FLAGS[DmaDirection(direction)])
            finally:
                del first
        self._iovas[iova] = size
        return iova

    def _detach(self, io: int) -> None:
        size = self._iovas.pop(io)
        if self._container is not None:
            self._container.unmap_dma(io, size)

    def dma_faults(self) -> list[str]:
        """Accesses of the function's that the IOMMU has stopped, in the kernel's words: what its log says."""
        short = self.name.partition(":")[2]
        self._faults += [line for line in self._log.lines(FAULT) if short in line]
        return self._faults

    # -- interrupts, life -------------------------------------------------------------------------

    def setup_interrupt(self) -> None:
        """Vector 0 writes ``irq_fd``."""
        self.device.set_irq(MSIX_IRQ, [self.irq_fd])

    def is_alive(self) -> bool:
        """False once the function was pulled, had an error, or somebody asked for it to be given back."""
        if self._closed:
            return False
        gone = select.poll()
        gone.register(self._gone, select.POLLIN)
        return not gone.poll(0)

    def gone(self) -> DeviceGoneError:
        """Why nothing can be done with it any more."""
        return DeviceGoneError(f"PCI function {self.name} was taken away, or had an error")

    def filenos(self) -> list[int]:
        return [self._gone]

    def close(self) -> None:
        """No bus master, no interrupts, nothing mapped; vfio-pci keeps the function."""
        if self._closed:
            return
        self._closing = True
        if hasattr(self, "config"):
            with contextlib.suppress(OSError):
                self.config.write(PCI_COMMAND, self.config.read(PCI_COMMAND, 2) & ~PCI_COMMAND_MASTER, 2)
                for index in (MSIX_IRQ, ERR_IRQ, REQ_IRQ):
                    self.device.set_irq(index, [])
            self.device.reset()
            self.device.close()
        for io in list(self._iovas):
            with contextlib.suppress(OSError):
                self._detach(io)
        self.dma_faults()  # what came last is told afterwards, too
        if self._container is not None:
            self._container.close()
        self._log.close()
        os.close(self._gone)
        self._close()


def free_iova(taken: Mapping[int, int], ranges: Sequence[tuple[int, int]], size: int) -> int:
    """The first I/O address where ``size`` bytes are free, aligned so that large pages can be used. ENOSPC.

    ``taken``: sizes, by where they begin; ``ranges``: (first, last) of what may be used.
    """
    align = HUGE if size >= HUGE else mmap.PAGESIZE
    used = sorted(taken.items())
    for first, last in ranges:
        at = -(-max(first, FIRST_IOVA) // align) * align
        for start, length in used:
            if start + length <= at:
                continue
            if start >= at + size:
                break
            at = -(-(start + length) // align) * align
        if at + size - 1 <= last:
            return at
    raise NetmemError(errno.ENOSPC, f"no {size} bytes of I/O addresses are free")


def _bdf(name: str) -> tuple[int, int, int]:
    bus, device, function = re.split("[:.]", name)[1:]
    return int(bus, 16), int(device, 16), int(function)


def group_of(name: str) -> int:
    """The IOMMU group of a function that vfio-pci has. EINVAL, ENODEV: what it has not, and the cure."""
    if not NAME.fullmatch(name):
        raise NetmemError(errno.EINVAL, f"{name!r} is no PCI function, such as 0000:03:00.0")
    folder = SYS / name
    if not folder.exists():
        raise NetmemError(errno.ENODEV, f"there is no PCI function {name}: {SYS} has those that there are")
    if not (folder / "iommu_group").exists():
        text = f"{name} is in no IOMMU group: turn the IOMMU on (intel_iommu=on, and in the firmware)"
        raise NetmemError(errno.ENODEV, text)
    driver = os.path.basename(os.path.realpath(folder / "driver")) if (folder / "driver").exists() else ""
    if driver != "vfio-pci":
        has = f"driver {driver} has {name}" if driver else f"no driver has {name}"
        unbind = f"echo {name} > {folder}/driver/unbind; " if driver else ""
        cure = f"echo vfio-pci > {folder}/driver_override; {unbind}echo {name} > /sys/bus/pci/drivers_probe"
        raise NetmemError(errno.ENODEV, f"{has}; give it to VFIO: modprobe vfio-pci; {cure}")
    return int(os.path.basename(os.path.realpath(folder / "iommu_group")))
