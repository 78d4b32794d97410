"""The bus of a NIC that QEMU emulates (``hw.bus.PciBus``)."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.hw.bus import PciSpace
from netmem.hw.pci import PCI_CAP_ID_MSIX, PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE, PciFunction
from netmem.hw.qemu import doorbell
from netmem.hw.qemu.find import Qemu
from netmem.hw.qemu.machine import DOORBELL_BAR0, NIC_BAR0, NIC_BAR3, Machine


class QemuBus(PciSpace):
    """Registers by qtest, DMA by hot-plugged memory, interrupts by eventfd.

    Arguments as for ``Machine``. A mapping can be reached by the NIC alone, from ``dma_map`` until
    ``dma_unmap``; what nobody mapped, it reads as ones and writes to nowhere.
    """

    def __init__(
        self, qemu: Qemu, device: str, netdev: str, fds: Sequence[int] = (), *, bounce: bool = False
    ) -> None:
        super().__init__(bounce=bounce)
        try:
            self.machine = Machine(qemu, device, netdev, fds, self.irq_fd)
        except BaseException:
            self._close()
            raise
        self._qtest = self.machine.qtest
        self.config: PciFunction = self.machine.nic
        self.device_id = self.config.device_id

    def read32(self, offset: int) -> int:
        return self._qtest.readl(NIC_BAR0 + offset)

    def write32(self, offset: int, value: int) -> None:
        self._qtest.writel(NIC_BAR0 + offset, value)

    def post32(self, offset: int, value: int) -> None:
        """A doorbell of a device that is gone rings nowhere: ``is_alive`` tells."""
        with contextlib.suppress(DeviceGoneError):
            self._qtest.post(f"writel {NIC_BAR0 + offset:#x} {value:#x}")

    def _attach(self, fd: int, offset: int, length: int, direction: int, exporter: str) -> int:
        """EOPNOTSUPP for a descriptor that has no name to open, as a DMA-buf's: QEMU opens it by name."""
        if exporter:
            raise NetmemError(
                errno.EOPNOTSUPP, f"QEMU's devices do not reach memory of {exporter}: nic softnic does"
            )
        if not os.readlink(f"/proc/self/fd/{fd}").startswith("/") or "/dmabuf:" in os.readlink(
            f"/proc/self/fd/{fd}"
        ):
            raise NetmemError(
                errno.EOPNOTSUPP, "QEMU opens memory by name, and a DMA-buf has none: exporter memfd does it"
            )
        return self.machine.plug(fd, offset, length)

    def _detach(self, io: int) -> None:
        self.machine.unplug(io)

    def _attach_resource(self, address: int, length: int) -> int:
        """A BAR behind the same root complex: bus addresses are I/O addresses."""
        if not self.is_alive():
            raise self.machine.gone()
        return address

    def add_memory_device(self, fd: int, size: int) -> int:
        """Plug in another PCI device whose BAR 2 is ``fd``; the BAR's bus address.

        EINVAL for a size that no BAR can have.
        """
        if size & (size - 1):
            raise NetmemError(errno.EINVAL, f"a BAR of {size} bytes: its size must be a power of two")
        return self.machine.plug(fd, 0, size)

    def remove_memory_device(self, address: int) -> None:
        """Unplug a device that ``add_memory_device`` plugged in."""
        with contextlib.suppress(DeviceGoneError):
            self.machine.unplug(address)

    def replug(self) -> None:
        """Pull the cable and plug it in again: QEMU's PHY looks at a forced link only then."""
        for up in (False, True):
            self.machine.qmp("set_link", name="n0", up=up)

    def setup_interrupt(self) -> None:
        """Vector 0 rings the doorbell that signals ``irq_fd`` (PCI 3.0, 6.8.2)."""
        for i, word in enumerate((DOORBELL_BAR0 + doorbell.REGISTER, 0, doorbell.MESSAGE, 0)):
            self._qtest.writel(NIC_BAR3 + 4 * i, word)
        at = self.config.capability(PCI_CAP_ID_MSIX) + PCI_MSIX_FLAGS
        self.config.write(at, self.config.read(at, 2) | PCI_MSIX_FLAGS_ENABLE, 2)

    def gone(self) -> DeviceGoneError:
        """How QEMU ended."""
        return self.machine.gone()

    def unplug(self) -> None:
        """Surprise removal: QEMU is killed."""
        self.machine.process.kill()

    def is_alive(self) -> bool:
        return self.machine.is_alive()

    def filenos(self) -> list[int]:
        return [self.machine.pidfd]

    def settle(self) -> None:
        """Wait until QEMU did all that it was asked before this call."""
        self.config.device_id  # noqa: B018  any register will do: QEMU answers in order

    def close(self) -> None:
        """End QEMU."""
        self.machine.close()
        self._close()
