"""The page pool (net/core/page_pool.c): the allocator between memory provider and driver.

Two levels recycle: a cache of 128 that only the polling side touches, then a ring; behind them the
provider. State lives in one arena that kernels share; this class decides, kernels move.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import logging
from typing import Any, overload

import numpy as np

from netmem.base.arena import PAGE_SIZE, Arena, Words
from netmem.base.clock import SEC
from netmem.base.errors import NetmemError
from netmem.base.record import items
from netmem.memory import calls, sanitizer
from netmem.memory.accounts import accounts
from netmem.memory.area import Area
from netmem.memory.layout import (
    PP_ALLOC_CACHE_REFILL,
    PP_ALLOC_CACHE_SIZE,
    PP_FLAG_ALLOW_UNREADABLE_NETMEM,
    PP_FLAG_DMA_MAP,
    PP_FLAG_DMA_SYNC_DEV,
    NetmemRecord,
    PoolRecord,
)
from netmem.memory.mapping import PoolMapping
from netmem.memory.netmem import NetmemRef, Page
from netmem.memory.pages import PageMemory
from netmem.memory.params import PagePoolParams, gave_up
from netmem.memory.provider import MemoryProvider
from netmem.memory.ref import index_of, indexes_of, offset_of, tag_of
from netmem.memory.shadow import Event

log = logging.getLogger("netmem.page_pool")

DEFAULT_RING, MAX_RING, MAX_PAGE_ORDER = 1024, 16384, 10
DEFER_WARN = 60 * SEC
_ids = itertools.count(1)  # pool ids, cyclic from 1, as page_pool_list() gives them


class PagePool:
    """page_pool_create(&params).

    Raises, in this order: EINVAL for an unknown flag, a direction other than FROM_DEVICE or
    BIDIRECTIONAL with DMA_MAP, DMA_SYNC_DEV without DMA_MAP or with max_len 0; EOPNOTSUPP when the
    queue has a provider and DMA_MAP or DMA_SYNC_DEV is missing; what the provider's init raises;
    EINVAL for an order above the page allocator's.

    ``record`` is its PoolRecord, ``at`` the address of that, for kernels.
    """

    record: PoolRecord
    at: int

    def __new__(cls, params: PagePoolParams) -> PagePool:
        return super().__new__(SanitizedPagePool if sanitizer.ON and cls is PagePool else cls)

    def __init__(self, params: PagePoolParams) -> None:
        self.params = params
        flags = params.flags
        params.check_flags()
        size = min(params.pool_size or DEFAULT_RING, MAX_RING)  # netmems; the ring's memory is a power of two
        ring = 1 << (size - 1).bit_length()
        self.provider: MemoryProvider | None = None
        self.binding_id = 0  # what received frags name (dmabuf_id)
        if flags & PP_FLAG_ALLOW_UNREADABLE_NETMEM and params.netdev is not None:
            self.provider = params.netdev.rxq_memory_provider(params.queue_idx)
            self.binding_id = params.netdev.rxq_binding_id(params.queue_idx)
        if self.provider is not None:
            if not (flags & PP_FLAG_DMA_MAP and flags & PP_FLAG_DMA_SYNC_DEV):
                raise gave_up(
                    errno.EOPNOTSUPP, "a memory provider needs PP_FLAG_DMA_MAP and PP_FLAG_DMA_SYNC_DEV"
                )
            self.provider.init(params.order)
        elif params.order > MAX_PAGE_ORDER:
            raise gave_up(errno.EINVAL, f"order {params.order} is above {MAX_PAGE_ORDER}")
        if params.order < 0:
            raise gave_up(errno.EINVAL, f"order {params.order}")
        self.id = next(_ids)
        self._pages: PageMemory | None = None
        try:
            if self.provider is None:
                shift = PAGE_SIZE.bit_length() - 1 + params.order
                memory = params.pages or max(ring * 4, 4096) << shift
                self._pages = PageMemory(f"pages:{self.id}", memory, shift, params.nid)
            self._open(ring, size)
        except BaseException:
            if self.provider is not None:
                self.provider.destroy()
            elif self._pages is not None:
                self._pages.close()
            raise
        self.destroyed_at: int | None = None
        self._warned_at = 0
        self.page_calls = 0  # uses of the page twins, which driver code for netmem must not need
        if params.netdev is not None:
            params.netdev.page_pools.add(self)

    def _open(self, ring: int, size: int) -> None:
        params, area = self.params, self.area
        queue = ctypes.sizeof(PoolRecord)
        release = queue + 8 * ring
        synced = release + 8 * area.count
        shadowed = area.record.shadow != 0
        self.arena = Arena(f"pool:{self.id}", synced + 8 * area.count * shadowed)
        self.at = self.arena.address
        pool = self.record = self.arena.record(PoolRecord)
        self._releases: Words = self.arena.bytes[release:synced].view(np.int64)
        if shadowed:
            pool.synced = self.at + synced
            sanitizer.called(area.record)
        pool.id, pool.shift, pool.tag = self.id, area.shift, area.record.tag
        pool.area, pool.netmems, pool.count = area.at, area.record.netmems, area.count
        pool.ring.queue, pool.ring.mask, pool.ring.size = self.at + queue, ring - 1, size
        pool.release = self.at + release
        pool.max_len, pool.offset, pool.nid = params.max_len, params.offset, params.nid
        pool.host = area.address
        pool.has_provider = self.provider is not None
        pool.binding = self.binding_id
        pool.unreadable = self.is_unreadable()
        pool.buffers_per_netmem = pool.share = 1
        self._mapping: PoolMapping | None = None
        if params.flags & PP_FLAG_DMA_MAP:
            assert params.dev is not None
            self._mapping = PoolMapping(params.dev, pool)
            if self.provider is not None and self.provider.unreadable:
                # The binding mapped the area once; syncing it is its user's duty.
                io = self.provider.io_address(params.dev)
                if io is None:
                    raise gave_up(errno.EINVAL, "the provider is not mapped for a device")
                pool.dma = io
            else:
                fd = self.provider.fd if self.provider is not None else self._page_fd()
                self._mapping.map(fd, area.size, params.dma_dir)
                pool.dma_sync = bool(params.flags & PP_FLAG_DMA_SYNC_DEV)
            if shadowed:
                self._mapping.watch(sanitizer.DmaWatch(self.at, pool, area.record))

    def _page_fd(self) -> int:
        assert self._pages is not None
        return self._pages.fd

    @property
    def area(self) -> Area:
        """The area that this pool's netmems are pieces of."""
        if self.provider is not None:
            return self.provider.area
        assert self._pages is not None
        return self._pages.area

    # -- allocation ---------------------------------------------------------------------------

    def refill(self, n: int = PP_ALLOC_CACHE_REFILL) -> int:
        """__page_pool_alloc_netmems_slow(): netmems from the provider into the cache; how many."""
        if self.destroyed_at is not None:
            return 0
        pool = self.record
        have = pool.alloc.count
        n = min(n, PP_ALLOC_CACHE_SIZE - have)
        if self.provider is not None:
            refs = self.provider.alloc_netmems(n)
        else:
            refs = self.area.take(n if self.params.order == 0 else 1)
        if not len(refs):
            return 0
        self.area.netmems()["pp_ref_count"][indexes_of(refs)] = 1
        pool.alloc.cache[have : have + len(refs)] = refs[::-1].tolist()  # the lowest comes out first
        pool.alloc.count = have + len(refs)
        pool.pages_state_hold_cnt += len(refs)
        if self.provider is None:  # what a provider gives is not counted, as in the kernel
            if self.params.order:
                pool.stats.alloc_slow_high_order += 1
            else:
                pool.stats.alloc_slow += 1
        # What comes out of the cache next was paid for here, not on the fast path.
        pool.stats.alloc_fast -= 1
        return len(refs)

    def alloc_netmems(self, n: int, out: Words | None = None) -> Words:
        """page_pool_alloc_netmems(): up to ``n`` netmems as int64 references, shape (k,), k <= n.

        Fewer (or none) come back when the provider has no more; that is no error, the caller
        starves politely. ``out`` takes the result without a new array.
        """
        if out is None:
            out = np.empty(n, np.int64)
        got = calls.alloc_bulk(self.at, out, n)
        if got == n:
            return out
        return self._alloc_slow(out, got, n)

    def _alloc_slow(self, out: Words, got: int, n: int) -> Words:
        self.flush()
        while got < n and self.refill():
            got += calls.alloc_bulk(self.at, out[got:], n - got)
        return out[:got]

    def alloc_netmem(self, size: int) -> tuple[NetmemRef, int]:
        """page_pool_alloc_netmem(): (netmem, offset) of at least ``size`` bytes; (0, 0) when empty.

        A whole netmem when two of ``size`` would not fit one, else a fragment.
        """
        return self._with_refill(calls.alloc_buffer, size)

    def alloc_frag_netmem(self, size: int) -> tuple[NetmemRef, int]:
        """page_pool_alloc_frag_netmem(): a fragment of ``size`` bytes; EINVAL when it cannot fit."""
        return self._with_refill(calls.alloc_frag, size)

    def _with_refill(self, kernel: Any, size: int) -> tuple[NetmemRef, int]:
        if not 0 < size <= 1 << self.area.shift:
            raise NetmemError(errno.EINVAL, f"a fragment of {size} bytes does not fit a netmem")
        ref, offset = kernel(self.at, size)
        if not ref:
            self.flush()
            if self.refill():
                ref, offset = kernel(self.at, size)
        return NetmemRef(int(ref)), int(offset)

    def alloc(self, size: int) -> tuple[Page | None, int]:
        """page_pool_alloc(): the page twin of alloc_netmem; (None, 0) when empty.

        EINVAL on a pool whose memory is no pages (R3).
        """
        self._need_pages("page_pool_alloc")
        ref, offset = self.alloc_netmem(size)
        return (Page(int(ref)) if ref else None), offset

    def alloc_pages(self, n: int) -> Words:
        """page_pool_alloc_pages(): the page twin of alloc_netmems."""
        self._need_pages("page_pool_alloc_pages")
        return self.alloc_netmems(n)

    def _need_pages(self, call: str) -> None:
        self.page_calls += 1
        if self.area.net_iov:
            raise NetmemError(errno.EINVAL, f"{call}(): this pool's memory is net_iovs, not pages (R3)")

    def _page(self, page: int, call: str) -> int:
        self.page_calls += 1
        if int(page) & 1:
            raise NetmemError(errno.EINVAL, f"{call}() on a net_iov: use the netmem call (R3)")
        return int(page)

    # -- giving back --------------------------------------------------------------------------

    def put_netmem(self, netmem: int | Words, dma_sync_size: int = -1, allow_direct: bool = False) -> None:
        """page_pool_put_netmem(): drop one reference of each; recycle at the last.

        ``dma_sync_size``: bytes to sync for the device, -1 for all. ``allow_direct``: into the
        cache; only the polling side may. EINVAL for a netmem that is not held from this pool.
        """
        if isinstance(netmem, np.ndarray):
            refused = calls.put_bulk(self.at, netmem, len(netmem), allow_direct)
        else:
            refused = not calls.put(self.at, int(netmem), allow_direct)
        if self.record.released:
            self.flush()
        if refused:
            raise NetmemError(
                errno.EINVAL, f"page_pool_put_netmem(): {int(refused)} not held from pool {self.id}"
            )

    def put_full_netmem(self, netmem: int | Words, allow_direct: bool = False) -> None:
        """page_pool_put_full_netmem(): put, synced whole."""
        self.put_netmem(netmem, -1, allow_direct)

    def recycle_direct_netmem(self, netmem: int | Words) -> None:
        """page_pool_recycle_direct_netmem(): put into the cache, from the polling side."""
        self.put_netmem(netmem, -1, True)

    def put_netmem_bulk(self, netmems: Words) -> None:
        """page_pool_put_netmem_bulk(): put an array, not direct."""
        self.put_netmem(netmems)

    def put_page(self, page: int, dma_sync_size: int = -1, allow_direct: bool = False) -> None:
        """page_pool_put_page(): the page twin; EINVAL for a net_iov (R3)."""
        self.put_netmem(self._page(page, "page_pool_put_page"), dma_sync_size, allow_direct)

    def put_full_page(self, page: int, allow_direct: bool = False) -> None:
        """page_pool_put_full_page()."""
        self.put_page(page, -1, allow_direct)

    def recycle_direct(self, page: int) -> None:
        """page_pool_recycle_direct()."""
        self.put_page(page, -1, True)

    def flush(self) -> None:
        """Hand netmems that left the pool to the provider, and finish a deferred destruction."""
        n = self.record.released
        if n:
            refs = self._releases[:n].copy()
            self.record.released = 0
            self.record.pages_state_release_cnt += n
            if self.provider is not None:
                self.provider.release_netmem(refs)
            else:
                self.area.give(refs)
        if self.destroyed_at is not None and not self.inflight():
            self._free()

    # -- fragments and references -------------------------------------------------------------

    def fragment_netmem(self, netmem: int, nr: int) -> None:
        """page_pool_fragment_netmem(): set the reference count to ``nr`` of a netmem just allocated."""
        record = self._held(netmem)
        if nr < 1:
            raise NetmemError(errno.EINVAL, "a netmem has at least one user")
        self._note(netmem, Event.FRAGMENT)
        record.pp_ref_count = nr

    def ref_netmem(self, netmem: int, nr: int = 1) -> None:
        """page_pool_ref_netmem(): ``nr`` more references."""
        record = self._held(netmem)
        self._note(netmem, Event.REF)
        record.pp_ref_count += nr

    def unref_netmem(self, netmem: int, nr: int = 1) -> int:
        """page_pool_unref_netmem(): drop ``nr``; what is left. At 0 the caller is the last user.

        The last user finds the count at 1 again and puts the netmem. EINVAL below zero.
        """
        self._held(netmem)
        left = int(calls.unref(self.at, int(netmem), nr))
        if left < 0:
            raise NetmemError(errno.EINVAL, f"page_pool_unref_netmem(): fewer than {nr} references held")
        return left

    def _held(self, netmem: int) -> NetmemRecord:
        index = index_of(int(netmem))
        if tag_of(int(netmem)) != self.record.tag or index >= self.record.count:
            raise NetmemError(errno.EINVAL, f"netmem {int(netmem):#x} is not of pool {self.id}")
        return NetmemRecord.nth(self.record.netmems, index)

    def _note(self, netmem: int, event: int) -> None:
        """Something is done with a netmem that must be held: for the sanitiser."""
        if self.record.synced:
            calls.note_use(self.at, int(netmem), event)

    # -- addresses and syncing ----------------------------------------------------------------

    @overload
    def get_dma_addr_netmem(self, netmem: Words) -> Words: ...
    @overload
    def get_dma_addr_netmem(self, netmem: int) -> int: ...
    def get_dma_addr_netmem(self, netmem: int | Words) -> int | Words:
        """page_pool_get_dma_addr_netmem(): the I/O address of one netmem or an array of them."""
        if not self.params.flags & PP_FLAG_DMA_MAP:
            raise NetmemError(errno.EINVAL, "the pool was made without PP_FLAG_DMA_MAP")
        base, shift = self.record.dma, self.area.shift
        if isinstance(netmem, np.ndarray):
            return base + (indexes_of(netmem) << shift)
        return base + offset_of(int(netmem), shift)

    def get_dma_addr(self, page: int) -> int:
        """page_pool_get_dma_addr(): the page twin; EINVAL for a net_iov (R3)."""
        return self.get_dma_addr_netmem(self._page(page, "page_pool_get_dma_addr"))

    def dma_sync_netmem_for_cpu(self, netmem: int, offset: int, size: int) -> None:
        """page_pool_dma_sync_netmem_for_cpu(): make what the device wrote visible, where it is due.

        On unreadable memory this is a counted no-op: its user syncs (DMA_BUF_IOCTL_SYNC).
        """
        self._held(netmem)
        if offset < 0 or size < 0 or self.params.offset + offset + size > 1 << self.area.shift:
            raise NetmemError(errno.EINVAL, f"sync of {size} bytes at {offset} is outside the netmem")
        self._note(netmem, Event.SYNC_CPU)
        calls.sync_for_cpu(self.at, int(netmem), offset, size)

    def is_unreadable(self) -> bool:
        """page_pool_is_unreadable()."""
        return self.provider is not None and self.provider.unreadable

    # -- accounts and the end -----------------------------------------------------------------

    def get_stats(self) -> dict[str, int]:
        """page_pool_get_stats(): the kernel's eleven counters by name."""
        return items(self.record.stats)

    def _accounts(self) -> dict[str, int]:
        return accounts(self.record, self.area.record, self.area.netmems())

    def inflight(self) -> int:
        """page_pool_inflight(): netmems taken from the provider and not handed back."""
        return self._accounts()["inflight"]

    def outstanding(self) -> int:
        """Netmems that somebody outside cache and ring holds."""
        return self._accounts()["outstanding"]

    def destroy(self, now: int = 0) -> None:
        """page_pool_destroy(): nothing is recycled any more; freed when the last netmem is back."""
        if self.destroyed_at is not None:
            return
        pool = self.record
        if pool.frag_netmem:
            ref, pool.frag_netmem = pool.frag_netmem, 0
            calls.put(self.at, ref, True)
        self.destroyed_at, self._warned_at = now, now
        pool.destroyed = 1
        calls.scrub(self.at)
        self.flush()

    def release_retry(self, now: int) -> bool:
        """page_pool_release_retry(): True when the pool is gone; warns of a stalled shutdown.

        As in the kernel the warning, each 60 s, is for pools whose device is gone only.
        """
        if self.destroyed_at is None:
            return False
        self.flush()
        left = self.inflight()
        if not left:
            return True
        if now - self._warned_at >= DEFER_WARN:
            self._warned_at = now
            if self.params.netdev is None or not self.params.netdev.is_registered():
                log.warning(
                    "page_pool_release_retry() stalled pool shutdown: id %d, %d inflight %d sec",
                    self.id,
                    left,
                    (now - self.destroyed_at) // SEC,
                )
        return False

    def _free(self) -> None:
        if self._mapping is not None:
            self._mapping.close()
        if self.provider is not None:
            if self.arena.fd >= 0:
                self.provider.destroy()
        elif self._pages is not None and self.arena.fd >= 0:
            self._pages.close()
        self.arena.close()

    def describe(self) -> dict[str, Any]:
        """What tools show: id, order, level, flags, provider and statistics."""
        return {
            "ifname": self.params.netdev.name if self.params.netdev else None,
            "queue": self.params.queue_idx,
            "io": self.provider.describe() if self.provider else None,
            **self._accounts(),
        }


class SanitizedPagePool(PagePool):
    """A page pool whose calls note who calls, and raise what was trapped."""


for _name in (
    "alloc_netmems", "alloc_netmem", "alloc_frag_netmem", "put_netmem", "fragment_netmem",
    "ref_netmem", "unref_netmem", "dma_sync_netmem_for_cpu", "destroy",
):  # fmt: skip
    setattr(SanitizedPagePool, _name, sanitizer.guarded(getattr(PagePool, _name)))
