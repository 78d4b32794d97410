"""The page pool's hot paths (net/core/page_pool.c). Each function has a slow twin in the tests.

Kernels that take a ``pool`` are for other kernels; Python calls those of ``calls``, by address.
"""

from __future__ import annotations

from netmem.base.arena import Words
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import memcpy
from netmem.base.record import Word
from netmem.memory import shadow
from netmem.memory.layout import (
    PP_ALLOC_CACHE_REFILL,
    PP_ALLOC_CACHE_SIZE,
    AreaRecord,
    Holder,
    NetmemRecord,
    PoolRecord,
)
from netmem.memory.ref import index_of, offset_of, tag_of
from netmem.memory.shadow import Event, Trap, netmem_of, pp_is_mine

FRAG_ALIGN = 64  # max(DMA cache alignment, what the kernel rounds fragments up to)


@inline_kernel
def set_holder(pool: PoolRecord, ref: int, holder: int) -> None:
    """Note who holds ``ref`` from now on (the leak ledger reads this)."""
    if pool.synced != 0:
        shadow.moved(pool, ref, holder)
    netmem = netmem_of(pool, ref)
    netmem.holder, netmem.pool = holder, pool.id
    netmem.changed = AreaRecord.at(pool.area).now


@kernel
def pp_refill_cache(pool: PoolRecord) -> int:
    """page_pool_refill_alloc_cache(): up to 64 netmems from the ring; how many the cache has."""
    ring = pool.ring
    consumer, producer = ring.consumer, ring.producer
    if consumer == producer:
        pool.stats.alloc_empty += 1
        return 0
    nid = AreaRecord.at(pool.area).nid
    if pool.nid >= 0 and nid >= 0 and pool.nid != nid:
        # Memory of another NUMA node: one goes back to its owner, and the slow path decides.
        ring.consumer = consumer + 1
        pool.stats.alloc_waive += 1
        pp_release(pool, Word.nth(ring.queue, consumer & ring.mask).value)
        return 0
    n, cache = pool.alloc.count, pool.alloc.cache
    queue, mask = ring.queue, ring.mask
    stop = min(producer, consumer + PP_ALLOC_CACHE_REFILL)
    # What was put first comes out first: payload of one stream then lies in ascending memory, time and again.
    for at in range(stop - 1, consumer - 1, -1):
        cache[n] = Word.nth(queue, at & mask).value
        n += 1
    ring.consumer = stop
    pool.alloc.count = n
    pool.stats.alloc_refill += 1
    return n


@inline_kernel
def pp_alloc(pool: PoolRecord) -> int:
    """One netmem from cache or ring; 0 when the slow path must be taken."""
    n = pool.alloc.count
    if n == 0:
        n = pp_refill_cache(pool)
        if n == 0:
            return 0
    n -= 1
    ref = pool.alloc.cache[n]
    pool.alloc.count = n
    pool.stats.alloc_fast += 1
    set_holder(pool, ref, Holder.DRIVER)
    return ref


@kernel
def pp_alloc_frag(pool: PoolRecord, size: int) -> tuple[int, int]:
    """page_pool_alloc_frag_netmem(): (netmem, offset); (0, 0) when the slow path is needed.

    ``size`` is rounded up to FRAG_ALIGN and must fit a netmem. The pool keeps a reference of its
    own to the netmem it is cutting until the next one does not fit any more.
    """
    whole = 1 << pool.shift
    size = (size + FRAG_ALIGN - 1) & ~(FRAG_ALIGN - 1)
    ref = pool.frag_netmem
    if ref != 0 and pool.frag_offset + size > whole:
        pool.frag_netmem = 0
        pp_put(pool, ref, True)
        ref = 0
    if ref == 0:
        ref = pp_alloc(pool)
        if ref == 0:
            return 0, 0
        pool.frag_netmem = ref
        pool.frag_offset = 0
    offset = pool.frag_offset
    pool.frag_offset = offset + size
    if pool.synced != 0 and offset != 0:
        shadow.note(pool, ref, Event.FRAGMENT)
    netmem_of(pool, ref).pp_ref_count += 1
    return ref, offset


@inline_kernel
def pp_alloc_buffer(pool: PoolRecord, size: int) -> tuple[int, int]:
    """page_pool_alloc_netmem(): a whole netmem when two of ``size`` would not fit, else a fragment."""
    if 2 * size > (1 << pool.shift):
        return pp_alloc(pool), 0
    return pp_alloc_frag(pool, size)


@inline_kernel
def pp_release(pool: PoolRecord, ref: int) -> None:
    """Note ``ref`` for its provider; Python hands the list over when the kernel has returned."""
    if pool.synced != 0:
        shadow.note(pool, ref, Holder.FREE)
    netmem = netmem_of(pool, ref)
    netmem.pp_ref_count = 0
    netmem.holder, netmem.pool = Holder.FREE, 0
    netmem.changed = AreaRecord.at(pool.area).now
    Word.nth(pool.release, pool.released).value = ref
    pool.released += 1


@inline_kernel
def pp_recycle(pool: PoolRecord, ref: int, direct: bool) -> None:
    """The last user is gone: to the cache when ``direct``, else to the ring, else released."""
    if pool.destroyed != 0:
        pp_release(pool, ref)
        return
    if pool.dma_sync != 0:
        pool.counters.sync_dev += 1
    netmem = netmem_of(pool, ref)
    shadowed = pool.synced != 0
    if direct:
        n = pool.alloc.count
        if n < PP_ALLOC_CACHE_SIZE:
            pool.alloc.cache[n] = ref
            pool.alloc.count = n + 1
            pool.stats.recycle_cached += 1
            if shadowed:
                shadow.note(pool, ref, Holder.CACHE)
            netmem.holder, netmem.pool = Holder.CACHE, pool.id
            return
        pool.stats.recycle_cache_full += 1
    ring = pool.ring
    producer = ring.producer
    if producer - ring.consumer < ring.size:
        Word.nth(ring.queue, producer & ring.mask).value = ref
        ring.producer = producer + 1
        pool.stats.recycle_ring += 1
        if shadowed:
            shadow.note(pool, ref, Holder.RING)
        netmem.holder, netmem.pool = Holder.RING, pool.id
        return
    pool.stats.recycle_ring_full += 1
    pp_release(pool, ref)


@inline_kernel
def pp_put(pool: PoolRecord, ref: int, direct: bool) -> bool:
    """page_pool_put_netmem(): drop one reference, recycle at the last. False: refused."""
    shadowed = pool.synced != 0
    if not pp_is_mine(pool, ref):
        pool.counters.foreign += 1
        if shadowed:
            shadow.trap(pool, Trap.WRONG_POOL, ref, Event.PUT, 0, 0)
        return False
    if shadowed and not shadow.may_put(pool, ref):
        return False
    netmem = netmem_of(pool, ref)
    count = netmem.pp_ref_count
    if count < 1 or netmem.holder <= Holder.RING:
        pool.counters.dead += 1
        return False
    if count > 1:
        netmem.pp_ref_count = count - 1
        return True
    pp_recycle(pool, ref, direct)
    return True


@inline_kernel
def pp_put_to_cache(pool: PoolRecord, refs: Words, n: int) -> int:
    """The plain case of a bulk put, last users and room in the cache; how many of ``n`` it was.

    It keeps cache and counters in registers: stored and loaded again for each netmem they cost more than all
    the rest.
    """
    have, cache = pool.alloc.count, pool.alloc.cache
    tag, count, netmems, pool_id = pool.tag, pool.count, pool.netmems, pool.id
    i = 0
    while i < n and have < PP_ALLOC_CACHE_SIZE:
        ref = int(refs[i])
        if tag_of(ref) != tag or index_of(ref) >= count:
            break
        netmem = NetmemRecord.nth(netmems, index_of(ref))
        if netmem.pp_ref_count != 1 or netmem.holder <= Holder.RING:
            break
        netmem.holder, netmem.pool = Holder.CACHE, pool_id
        cache[have] = ref
        have += 1
        i += 1
    pool.alloc.count = have
    pool.stats.recycle_cached += i
    if pool.dma_sync != 0:
        pool.counters.sync_dev += i
    return i


@inline_kernel
def pp_unref(pool: PoolRecord, ref: int, n: int) -> int:
    """page_pool_unref_netmem(): drop ``n`` references; what is left, -1 when too few were held.

    The last user gets 0 and the count back at 1: the netmem is then its to put.
    """
    shadowed = pool.synced != 0
    netmem = netmem_of(pool, ref)
    if not pp_is_mine(pool, ref) or n > netmem.pp_ref_count:
        pool.counters.dead += 1
        if shadowed:
            shadow.trap(pool, Trap.NEGATIVE_COUNT, ref, Event.UNREF, 0, 0)
        return -1
    if shadowed:
        if netmem.holder <= Holder.RING:
            shadow.trap(pool, Trap.USE_AFTER_RETURN, ref, Event.UNREF, 0, 0)
        shadow.note(pool, ref, Event.UNREF)
    if netmem.pp_ref_count == n:
        netmem.pp_ref_count = 1
        return 0
    netmem.pp_ref_count -= n
    return netmem.pp_ref_count


@inline_kernel
def pp_fault(pool: PoolRecord, ref: int) -> None:
    """The NIC could not write to a buffer that it was given: for the sanitiser."""
    if pool.synced != 0:
        shadow.trap(pool, Trap.WRITE_AFTER_UNMAP, ref, Event.NIC_WRITE, 0, 0)


@inline_kernel
def pp_posted(pool: PoolRecord, ref: int, offset: int, size: int) -> None:
    """A buffer goes to the NIC: for the sanitiser, which asks whether what came was synced."""
    if pool.synced != 0:
        shadow.posted(pool, ref, offset, size)


@inline_kernel
def pp_io_address(pool: PoolRecord, ref: int) -> int:
    """page_pool_get_dma_addr_netmem()."""
    return pool.dma + offset_of(ref, pool.shift)


@inline_kernel
def pp_host_address(pool: PoolRecord, ref: int, offset: int) -> int:
    """netmem_address() plus ``offset``, for a pool whose memory is readable."""
    return pool.host + offset_of(ref, pool.shift) + offset


@inline_kernel
def pp_sync_for_cpu(pool: PoolRecord, ref: int, offset: int, size: int) -> None:
    """page_pool_dma_sync_netmem_for_cpu(): counted, and a copy only where a bounce buffer is."""
    if pool.synced != 0:
        shadow.synced(pool, ref, offset, size)
    if pool.dma_sync_for_cpu == 0 or pool.bounce == 0:
        pool.counters.sync_cpu_noop += 1
        return
    at = offset_of(ref, pool.shift) + pool.offset + offset
    memcpy(pool.host + at, pool.bounce + at, size)
    pool.counters.sync_cpu += 1


@inline_kernel
def pp_available(pool: PoolRecord) -> int:
    """Buffers that this pool can still receive into: its share of the free ones, its own, posted."""
    free = AreaRecord.at(pool.area).free // max(pool.share, 1)
    netmems = free + pool.alloc.count + pool.ring.producer - pool.ring.consumer
    return netmems * max(pool.buffers_per_netmem, 1) + pool.posted
