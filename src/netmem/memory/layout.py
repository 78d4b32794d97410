"""The records that this room's kernels share: a netmem's, its area's, its pool's.

An area's arena: AreaRecord, a NetmemRecord for each netmem, a stack of free indexes, and with the sanitiser
a shadow. A pool's: PoolRecord, the ring, the list of netmems to hand back, and with the sanitiser a word for
each netmem.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Annotated

from netmem.base.record import Items, Record, i32, i64

PP_ALLOC_CACHE_SIZE = 128  # net/page_pool/types.h
PP_ALLOC_CACHE_REFILL = 64


class PoolFlag(enum.IntFlag):
    """PP_FLAG_* (include/net/page_pool/types.h)."""

    DMA_MAP = 1
    DMA_SYNC_DEV = 2
    SYSTEM_POOL = 4
    ALLOW_UNREADABLE_NETMEM = 8


PP_FLAG_DMA_MAP = int(PoolFlag.DMA_MAP)
PP_FLAG_DMA_SYNC_DEV = int(PoolFlag.DMA_SYNC_DEV)
PP_FLAG_SYSTEM_POOL = int(PoolFlag.SYSTEM_POOL)
PP_FLAG_ALLOW_UNREADABLE_NETMEM = int(PoolFlag.ALLOW_UNREADABLE_NETMEM)
PP_FLAG_ALL = 15


class Holder(enum.IntEnum):
    """Who holds a netmem. Up to RING it is free: nobody may use or put it."""

    FREE = 0  # its area, or its provider
    CACHE = 1
    RING = 2
    DRIVER = 3
    NIC = 4  # posted
    BATCH = 5
    USER = 8
    TX = 9  # transmit in flight


class NetmemRecord(Record):
    """What is known of a netmem (struct netmem_desc)."""

    pp_ref_count: i64  # users; what waits in a pool has 1, so that neither end of its life sets it
    holder: i32  # Holder
    pool: i32  # id of the pool that it came from
    changed: i64  # ns of the last change of holder; 0 before the first poll
    _unused: i64


class AreaRecord(Record):
    """A run of equal pieces of memory (struct net_iov_area)."""

    id: i64
    count: i64  # netmems
    shift: i64  # log2 of a netmem's bytes
    tag: i64  # the reference to netmem 0
    nid: i64  # NUMA node, -1 without
    free: i64  # netmems on the free stack
    free_stack: i64  # address: a word for each netmem, its index
    netmems: i64  # address of NetmemRecord 0
    now: i64  # ns, stamped by whoever polls
    shadow: i64  # address of the sanitiser's ShadowRecord, 0 without
    site: i64  # who calls, as the sanitiser numbers callers


class AllocCache(Record):
    """struct pp_alloc_cache: only the polling side touches it."""

    count: i64
    cache: Annotated[Items[int], ctypes.c_int64 * PP_ALLOC_CACHE_SIZE]


class PtrRing(Record):
    """struct ptr_ring: netmems that were put from elsewhere. Indexes run on; ``mask`` makes them slots."""

    consumer: i64
    producer: i64
    mask: i64
    size: i64  # netmems that it holds at most
    queue: i64  # address: a word for each slot, a reference


class PoolStats(Record):
    """struct page_pool_alloc_stats and page_pool_recycle_stats, in the kernel's order."""

    alloc_fast: i64
    alloc_slow: i64
    alloc_slow_high_order: i64
    alloc_empty: i64
    alloc_refill: i64
    alloc_waive: i64
    recycle_cached: i64
    recycle_cache_full: i64
    recycle_ring: i64
    recycle_ring_full: i64
    recycle_released_refcnt: i64


class PoolCounters(Record):
    """What the kernel does not count."""

    sync_cpu: i64  # ranges copied to be visible to the CPU
    sync_cpu_noop: i64  # sync asked for where none is due (coherent bus, unreadable memory)
    sync_dev: i64
    foreign: i64  # put or unref of a reference that is not this pool's: refused
    dead: i64  # put of a netmem that nobody held: refused


class PoolRecord(Record):
    """A page pool (struct page_pool)."""

    id: i64
    area: i64  # address of the AreaRecord
    netmems: i64  # address of the area's NetmemRecord 0
    count: i64  # netmems in the area
    tag: i64  # the reference to netmem 0
    shift: i64  # log2 of a netmem's bytes
    dma: i64  # I/O address of netmem 0
    bounce: i64  # host address of the bounce buffer, 0 when the bus is coherent
    host: i64  # host address of the memory, 0 when it is not mapped here
    dma_sync_for_cpu: i64
    dma_sync: i64
    max_len: i64
    offset: i64
    nid: i64
    alloc: Annotated[AllocCache, AllocCache]
    ring: Annotated[PtrRing, PtrRing]
    released: i64  # netmems to hand back to the provider, when Python comes by
    release: i64  # address: a word for each
    frag_netmem: i64  # the netmem that is being cut, 0 without
    frag_offset: i64
    pages_state_hold_cnt: i64
    pages_state_release_cnt: i64
    buffers_per_netmem: i64  # receive buffers that the driver cuts from one
    share: i64  # pools that draw on the same area
    posted: i64  # buffers that the driver has posted to its NIC
    has_provider: i64  # 1: payload is handed out by token
    handle: i64  # as received buffers name the pool, 0: no device knows it
    binding: i64  # as received frags name the memory (dmabuf_id), 0 without a binding
    unreadable: i64
    destroyed: i64  # nothing is recycled any more
    synced: i64  # address: a word for each netmem, what was synced of it (``shadow``); 0 without sanitiser
    stats: Annotated[PoolStats, PoolStats]
    counters: Annotated[PoolCounters, PoolCounters]
