"""What a memory provider must do (struct memory_provider_ops), and the part that all share."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from netmem.base.arena import PAGE_SIZE, Bytes, Region, Words
from netmem.base.dma import DmaDevice, DmaDirection
from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.memory.area import Area
from netmem.memory.calls import gather

RX_PAGE_MAX = 2 << 20
CLOSED = "the memory was given up: its provider is closed"


class MemoryProvider(Protocol):
    """Owns an area and hands its netmem to page pools.

    ``unreadable`` tells whether the CPU side may look; then a binding maps the area for its device
    (``attach``), otherwise each pool does, as it maps pages. ``pools``: how many use it.
    """

    name: str
    area: Area
    fd: int
    size: int
    unreadable: bool
    pools: int

    def attach(self, dma: DmaDevice, direction: DmaDirection = DmaDirection.FROM_DEVICE) -> int:
        """Make the area reachable for a device when it is bound; its I/O address. May be done again."""

    def detach(self, dma: DmaDevice, direction: DmaDirection = DmaDirection.FROM_DEVICE) -> None:
        """Undo one ``attach``; the last one ends the mapping."""

    def io_address(self, dma: DmaDevice | None) -> int | None:
        """Where a device that the area is attached to writes it; None when it is not attached."""

    def init(self, order: int) -> None:
        """mp_ops.init: accept or refuse a pool of this order (E2BIG when it is not the area's)."""

    def destroy(self) -> None:
        """mp_ops.destroy: the pool is gone."""

    def alloc_netmems(self, n: int) -> Words:
        """mp_ops.alloc_netmems: up to ``n`` references; an empty array when there are none.

        Not asked while the area says that it has no free ones (``AreaRecord.free``).
        """

    def release_netmem(self, netmems: Words) -> None:
        """mp_ops.release_netmem: take references back."""

    def describe(self) -> dict[str, Any]:
        """mp_ops.nl_fill: what tools show of the memory."""

    def uninstall(self, queue: int) -> None:
        """mp_ops.uninstall: a queue stopped using this provider because its device goes away."""


def check_size(size: int, rx_page_size: int) -> None:
    """Refuse sizes that no area can have: EINVAL for a bad multiple, ERANGE for a bad page size."""
    if rx_page_size < PAGE_SIZE or rx_page_size > RX_PAGE_MAX:
        raise NetmemError(
            errno.ERANGE, f"rx page size {rx_page_size} is outside {PAGE_SIZE} to {RX_PAGE_MAX}"
        )
    if rx_page_size & (rx_page_size - 1):
        raise NetmemError(errno.EINVAL, f"rx page size {rx_page_size} is not a power of two")
    if size <= 0 or size % rx_page_size:
        raise NetmemError(
            errno.EINVAL, f"memory size {size} is not a positive multiple of {rx_page_size} bytes"
        )


@dataclass
class _Mapped:
    """A mapping for a device, and how many bindings use it."""

    io: int
    dma: DmaDevice  # kept, so that no other gets its id
    users: int = 0


class AreaProvider:
    """The life that providers over one file descriptor share; subclasses bring the memory."""

    name = "area"
    unreadable = True
    mappable = True  # by the application, into a CPU's addresses
    device = ""  # what reads it best: this host, or a GPU ("cuda:0")
    exporter = ""  # for ``DmaDevice.dma_map``: who made it, where its descriptor says too little

    def __init__(self, fd: int, size: int, rx_page_size: int, *, net_iov: bool, address: int) -> None:
        self.fd, self.size, self.rx_page_size = fd, size, rx_page_size
        self.area = Area(
            self.name, size // rx_page_size, rx_page_size.bit_length() - 1, net_iov=net_iov, address=address
        )
        self.pools = 0
        self._mapped: dict[tuple[int, int], _Mapped] = {}
        self._closed = False
        self._views: dict[bool, Bytes] = {}  # the application's, kept; by whether they can be written

    def attach(self, dma: DmaDevice, direction: DmaDirection = DmaDirection.FROM_DEVICE) -> int:
        """dma_buf_map_attachment(): map the memory for the device, once for all its bindings.

        EBADF after ``close``.
        """
        self._check_open()
        key = self._key(dma, direction)
        if key not in self._mapped:
            self._mapped[key] = _Mapped(self._map_for(dma, direction), dma)
        self._mapped[key].users += 1
        return self._mapped[key].io

    def detach(self, dma: DmaDevice, direction: DmaDirection = DmaDirection.FROM_DEVICE) -> None:
        """dma_buf_unmap_attachment(), when the last binding goes."""
        key = self._key(dma, direction)
        mapped = self._mapped[key]
        mapped.users -= 1
        if not mapped.users:
            del self._mapped[key]
            with contextlib.suppress(DeviceGoneError):  # the device took its mappings with it
                dma.dma_unmap(mapped.io)
            self._let_go()

    def io_address(self, dma: DmaDevice | None) -> int | None:
        """Where a device that the memory is attached to writes it."""
        mapped = self._mapped.get(self._key(dma, DmaDirection.FROM_DEVICE))
        return mapped.io if mapped is not None else None

    def _key(self, dma: DmaDevice | None, direction: DmaDirection) -> tuple[int, int]:
        return id(dma), int(direction)

    def _map_for(self, dma: DmaDevice, direction: DmaDirection) -> int:
        return dma.dma_map(self.fd, 0, self.size, direction, peer=True, exporter=self.exporter)

    def init(self, order: int) -> None:
        """net_devmem_dmabuf_init(): E2BIG when pool order and rx page size differ; EBADF after ``close``."""
        self._check_open()
        if order != self.area.shift - (PAGE_SIZE.bit_length() - 1):
            raise NetmemError(
                errno.E2BIG,
                f"page pool order {order} does not match the rx page size {self.rx_page_size}",
            )
        self.pools += 1

    def destroy(self) -> None:
        self.pools -= 1
        self._let_go()

    def alloc_netmems(self, n: int) -> Words:
        return self.area.take(n)

    def release_netmem(self, netmems: Words) -> None:
        self.area.give(netmems)

    def describe(self) -> dict[str, Any]:
        return {
            "memory": self.name,
            "size": self.size,
            "rx_page_size": self.rx_page_size,
            "unreadable": self.unreadable,
        }

    def uninstall(self, queue: int) -> None:
        """Nothing to undo: the binding unmaps the area itself."""

    def map(self, *, writable: bool = False) -> Bytes:
        """A mapping of the memory for the application, as uint8: its own, the driver has none."""
        return Region(self.fd, self.size, writable=writable).bytes

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the memory, for the application. EINVAL outside of it, EBADF after ``close``."""
        self._check_range(offset, size)
        with self.cpu_access():
            return self._own()[offset : offset + size].tobytes()

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Put the application's bytes there: to be sent. EINVAL outside of it, EBADF after ``close``."""
        self._check_range(offset, len(data))
        with self.cpu_access(write=True):
            self._own(True)[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    def gather(self, rows: Words, to: int) -> int:
        """Copy frags end to end to host address ``to``, for the application; how many bytes.

        ``rows`` is the int64 view of received frags, shape (n, 3): offset, size | token << 32, ids.
        """
        with self.cpu_access():
            return gather(self._own().ctypes.data, rows, len(rows), to)

    def _own(self, writable: bool = False) -> Bytes:
        if writable not in self._views:
            self._views[writable] = self.map(writable=writable)
        return self._views[writable]

    def _check_open(self) -> None:
        if self._closed:
            raise NetmemError(errno.EBADF, CLOSED)

    def _check_range(self, offset: int, size: int) -> None:
        self._check_open()
        if offset < 0 or size < 0 or offset + size > self.size:
            raise NetmemError(errno.EINVAL, f"{size} bytes at {offset} are not within {self.size}")

    def cpu_access(self, *, write: bool = False) -> contextlib.AbstractContextManager[None]:
        """Brackets the application's own access to the memory; nothing to do for host memory."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Give the memory up; what is mapped or held stays valid until it is let go."""
        if self._closed:
            return
        self._closed = True
        self._views.clear()
        self._release()
        self._let_go()

    def _let_go(self) -> None:
        """When closed, and no pool and no device uses the memory any more: forget it."""
        if self._closed and self.pools == 0 and not self._mapped:
            self.area.close()
            self._unused()

    def _release(self) -> None:
        """Close what the owner has of the memory; a device may go on using it."""
        raise NotImplementedError

    def _unused(self) -> None:
        """The memory itself may go."""

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _finalizing() and not getattr(self, "_closed", True):
            self.close()

    def __enter__(self) -> AreaProvider:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
