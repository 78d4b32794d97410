"""What a memory provider must do (struct memory_provider_ops), and the part that all share."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from netmem.base.arena import PAGE_SIZE, Bytes, Region, Words
from netmem.base.errors import NetmemError
from netmem.memory.area import Area
from netmem.memory.dma import DmaDevice, DmaDirection

if TYPE_CHECKING:
    from netmem.memory.page_pool import PagePool

RX_PAGE_MAX = 2 << 20


class MemoryProvider(Protocol):
    """Owns an area and hands its netmem to page pools.

    ``bound_io`` is the I/O address of the area once a binding mapped it for its device, or None for
    memory that the pool maps as it maps pages. ``unreadable`` tells whether the CPU side may look.
    """

    name: str
    area: Area
    fd: int
    size: int
    unreadable: bool
    binding_id: int
    bound_io: int | None
    pools: int

    def attach(self, dma: DmaDevice, direction: DmaDirection = DmaDirection.FROM_DEVICE) -> int:
        """Make the area reachable for a device when it is bound; its I/O address."""

    def detach(self, dma: DmaDevice) -> None:
        """Undo ``attach``, when the last pool is gone."""

    def init(self, pool: PagePool) -> None:
        """mp_ops.init: accept or refuse a pool (E2BIG when its order is not the area's)."""

    def destroy(self, pool: PagePool) -> None:
        """mp_ops.destroy: the pool is gone."""

    def alloc_netmems(self, pool: PagePool, n: int) -> Words:
        """mp_ops.alloc_netmems: up to ``n`` references; an empty array when there are none."""

    def release_netmem(self, pool: PagePool, netmems: Words) -> None:
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


class AreaProvider:
    """The life that providers over one file descriptor share; subclasses bring the memory."""

    name = "area"
    unreadable = True

    def __init__(self, fd: int, size: int, rx_page_size: int, *, net_iov: bool, address: int) -> None:
        self.fd, self.size, self.rx_page_size = fd, size, rx_page_size
        self.area = Area(
            self.name, size // rx_page_size, rx_page_size.bit_length() - 1, net_iov=net_iov, address=address
        )
        self.binding_id = 0
        self.bound_io: int | None = None
        self.pools = 0
        self._closed = False

    def attach(self, dma: DmaDevice, direction: DmaDirection = DmaDirection.FROM_DEVICE) -> int:
        """dma_buf_map_attachment(): map the descriptor for the device."""
        return dma.dma_map(self.fd, 0, self.size, direction, peer=True)

    def detach(self, dma: DmaDevice) -> None:
        """dma_buf_unmap_attachment()."""
        if self.bound_io is not None:
            io, self.bound_io = self.bound_io, None
            dma.dma_unmap(io)
        self._let_go()

    def init(self, pool: PagePool) -> None:
        """net_devmem_dmabuf_init(): E2BIG when pool order and rx page size differ."""
        if pool.params.order != self.area.shift - (PAGE_SIZE.bit_length() - 1):
            raise NetmemError(
                errno.E2BIG,
                f"page pool order {pool.params.order} does not match the rx page size {self.rx_page_size}",
            )
        self.pools += 1

    def destroy(self, pool: PagePool) -> None:
        self.pools -= 1
        self._let_go()

    def alloc_netmems(self, pool: PagePool, n: int) -> Words:
        return self.area.take(n)

    def release_netmem(self, pool: PagePool, netmems: Words) -> None:
        self.area.give(netmems)

    def describe(self) -> dict[str, Any]:
        return {
            "memory": self.name,
            "size": self.size,
            "rx_page_size": self.rx_page_size,
            "unreadable": self.unreadable,
            "binding": self.binding_id,
        }

    def uninstall(self, queue: int) -> None:
        """Nothing to undo: the binding unmaps the area itself."""

    def map(self, *, writable: bool = False) -> Bytes:
        """A mapping of the memory for the application, as uint8: its own, the driver has none."""
        return Region(self.fd, self.size, writable=writable).bytes

    def cpu_access(self, *, write: bool = False) -> contextlib.AbstractContextManager[None]:
        """Brackets the application's own access to the memory; nothing to do for host memory."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Give the memory up; what is mapped or held stays valid until it is let go."""
        if self._closed:
            return
        self._closed = True
        self._release()
        self._let_go()

    def _let_go(self) -> None:
        """When closed, and no pool and no device uses the memory any more: forget it."""
        if self._closed and self.pools == 0 and self.bound_io is None:
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
