"""What a bus offers a driver: registers, DMA mappings, interrupts, and its device's identity."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from netmem.base.arena import PAGE_SIZE, Region
from netmem.base.dma import DmaDevice, DmaDirection
from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.base.memfd import memfd
from netmem.hw.softnic.regs import Bar


class Bus(DmaDevice, Protocol):
    """A driver does not know which bus it has.

    ``irq_fd``: eventfd of the interrupt. ``device_id``: (vendor, device) as in PCI configuration
    space. The DMA calls are those of the kernel's DMA API; ``watchers`` see unmaps and syncs first.
    """

    device_id: tuple[int, int]
    irq_fd: int

    def irq_arm(self) -> None:
        """Ask for an interrupt; look for work once more before sleeping."""

    def irq_ack(self) -> None:
        """The interrupt was seen."""

    def wait(self, ready: Callable[[], bool], what: str, timeout_ns: int) -> None:
        """Until ``ready()``; TimeoutError naming ``what``, DeviceGoneError when the device died."""

    def is_alive(self) -> bool:
        """False once the device is gone."""

    def filenos(self) -> list[int]:
        """Descriptors to sleep on beside ``irq_fd``: they become readable when the device goes."""

    def close(self) -> None: ...


class WordBus(Bus, Protocol):
    """A bus whose registers are 64-bit words in shared memory: the software NIC's."""

    regs: Bar

    def doorbell(self) -> None:
        """Tell the device that rings or registers changed, if it sleeps."""


class PciBus(Bus, Protocol):
    """A bus whose registers are 32-bit words of BAR 0 of a PCI function."""

    def read32(self, offset: int) -> int: ...

    def write32(self, offset: int, value: int) -> None:
        """Write, and wait until the device has it."""

    def post32(self, offset: int, value: int) -> None:
        """Write without waiting: for doorbells."""

    def replug(self) -> None:
        """Pull the NIC's cable and plug it in again, where the bus is what plays the cable."""

    def setup_interrupt(self) -> None:
        """Have the function's MSI-X vector 0 write ``irq_fd``."""


@dataclass
class _Mapping:
    length: int
    direction: int
    bounce: Region | None = None
    memory: Region | None = None
    fd: int = -1
    resource: bool = False


class DmaSpace:
    """Mappings and bouncing, which all buses have in common; a bus brings ``_attach`` and ``_detach``.

    ``bounce``: page mappings go to bounce buffers, so what the device writes appears in memory only
    when somebody syncs (as swiotlb does). Mappings of ``peer`` memory are never bounced.
    """

    pins = False

    def __init__(self, *, bounce: bool = False) -> None:
        self.bounce = bounce
        self.irq_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        self._mappings: dict[int, _Mapping] = {}
        self.watchers: list[Callable[[str, int, int], None]] = []

    def dma_map(
        self, fd: int, offset: int, length: int, direction: int, *, peer: bool = False, exporter: str = ""
    ) -> int:
        """dma_map_page(), for a range of a descriptor. EINVAL for an empty or unaligned range."""
        if length <= 0 or offset < 0 or offset % PAGE_SIZE:
            raise NetmemError(errno.EINVAL, f"cannot map {length} bytes at offset {offset}")
        mapping = _Mapping(length, int(direction))
        target, at = fd, offset
        if self.bounce and not peer:
            mapping.fd = memfd("bounce", length)
            mapping.bounce = Region(mapping.fd, length)
            mapping.memory = Region(fd, length, offset)
            target, at = mapping.fd, 0
            if int(direction) != DmaDirection.FROM_DEVICE:
                ctypes.memmove(mapping.bounce.address, mapping.memory.address, length)
        try:
            io = self._attach(target, at, length, int(direction), exporter)
        except BaseException:
            if mapping.fd >= 0:
                os.close(mapping.fd)
            raise
        self._mappings[io] = mapping
        return io

    def dma_map_resource(self, address: int, length: int) -> int:
        """dma_map_resource(): let the device reach another device's BAR at bus ``address``.

        EOPNOTSUPP on a bus that has no other devices.
        """
        io = self._attach_resource(address, length)
        self._mappings[io] = _Mapping(length, DmaDirection.FROM_DEVICE, resource=True)
        return io

    def dma_unmap(self, io_address: int) -> None:
        """dma_unmap_page(). EINVAL when ``io_address`` does not start a mapping."""
        if io_address in self._mappings:
            self._tell("unmap", io_address, self._mappings[io_address].length)
        mapping = self._mappings.pop(io_address, None)
        if mapping is None and self._closed:
            return  # the device took its mappings with it
        if mapping is None:
            raise NetmemError(errno.EINVAL, f"I/O address {io_address:#x} starts no mapping")
        if not mapping.resource:
            with contextlib.suppress(DeviceGoneError):  # with the device its mappings are gone too
                self._detach(io_address)
        if mapping.fd >= 0:
            os.close(mapping.fd)

    def dma_bounce(self, io_address: int) -> int:
        """Host address of the bounce buffer behind a mapping, 0 when it has none."""
        mapping = self._mappings.get(io_address)
        return mapping.bounce.address if mapping and mapping.bounce else 0

    def _tell(self, call: str, io: int, length: int) -> None:
        for watcher in self.watchers:
            watcher(call, io, length)

    def _find(self, io: int, length: int) -> tuple[_Mapping, int]:
        for start, mapping in self._mappings.items():
            if start <= io and io + length <= start + mapping.length:
                return mapping, io - start
        raise NetmemError(errno.EINVAL, f"sync of {length} bytes at {io:#x}, which nobody mapped")

    def sync_for_cpu(self, io_address: int, length: int) -> None:
        """dma_sync_single_for_cpu(): what the device wrote becomes visible in memory."""
        mapping, at = self._find(io_address, length)
        self._tell("sync_for_cpu", io_address, length)
        if mapping.bounce and mapping.memory and mapping.direction != DmaDirection.TO_DEVICE:
            ctypes.memmove(mapping.memory.address + at, mapping.bounce.address + at, length)

    def sync_for_device(self, io_address: int, length: int) -> None:
        """dma_sync_single_for_device(): what the CPU wrote becomes visible to the device."""
        mapping, at = self._find(io_address, length)
        self._tell("sync_for_device", io_address, length)
        if mapping.bounce and mapping.memory and mapping.direction != DmaDirection.FROM_DEVICE:
            ctypes.memmove(mapping.bounce.address + at, mapping.memory.address + at, length)

    def mappings(self) -> int:
        """How many mappings there are."""
        return len(self._mappings)

    def _attach(self, fd: int, offset: int, length: int, direction: int, exporter: str) -> int:
        """Let the device reach a range of ``fd``; the I/O address."""
        raise NotImplementedError

    def _attach_resource(self, address: int, length: int) -> int:
        raise NetmemError(errno.EOPNOTSUPP, "this bus has no other devices whose memory could be reached")

    def _detach(self, io: int) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        for mapping in self._mappings.values():
            if mapping.fd >= 0:
                os.close(mapping.fd)
        self._mappings.clear()
        self._closed = True
        os.close(self.irq_fd)


class PciSpace(DmaSpace):
    """What buses have in common whose NIC is a PCI function: it moderates its interrupts by itself."""

    def irq_arm(self) -> None:
        """Nothing to do: the NIC's own moderation keeps interrupts rare."""

    def irq_ack(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.irq_fd)

    def wait(self, ready: Callable[[], bool], what: str, timeout_ns: int) -> None:
        deadline = time.monotonic_ns() + timeout_ns
        while not ready():
            if not self.is_alive():
                raise self.gone()
            if time.monotonic_ns() > deadline:
                text = f"the NIC did not get to {what} in {timeout_ns / 1e9:g} s"
                raise TimeoutError(errno.ETIMEDOUT, text)
            time.sleep(0.0005)  # set-up only: link, reset, a queue that starts or stops

    def is_alive(self) -> bool:
        """False once the device is gone."""
        raise NotImplementedError

    def gone(self) -> DeviceGoneError:
        """Why nothing can be done with it any more."""
        raise NotImplementedError
