"""The page pool's hot paths (net/core/page_pool.c), on the arenas of ``layout``.

``p`` is a pool's arena, ``a`` its area's. Each function has a slow twin in the tests.
"""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import memcpy
from netmem.memory.layout import (
    A_COUNT,
    A_FREE,
    A_NID,
    A_NOW,
    A_REC,
    A_SHADOW,
    A_SHIFT,
    P_AREA,
    P_BOUNCE,
    P_CACHE,
    P_CACHE_N,
    P_DESTROYED,
    P_DMA,
    P_FRAG_OFFSET,
    P_FRAG_REF,
    P_HOST,
    P_ID,
    P_NID,
    P_OFFSET,
    P_PER,
    P_POSTED,
    P_RELEASE_AT,
    P_RELEASE_N,
    P_RING_AT,
    P_RING_HEAD,
    P_RING_MASK,
    P_RING_SIZE,
    P_RING_TAIL,
    P_SHADOW,
    P_SHARE,
    P_SHIFT,
    P_SYNC_CPU,
    P_SYNC_DEV,
    PP_ALLOC_CACHE_REFILL,
    PP_ALLOC_CACHE_SIZE,
    PS_ALLOC_EMPTY,
    PS_ALLOC_FAST,
    PS_ALLOC_REFILL,
    PS_ALLOC_WAIVE,
    PS_RECYCLE_CACHE_FULL,
    PS_RECYCLE_CACHED,
    PS_RECYCLE_RING,
    PS_RECYCLE_RING_FULL,
    PX_DEAD,
    PX_FOREIGN,
    PX_SYNC_CPU,
    PX_SYNC_CPU_NOOP,
    PX_SYNC_DEV,
    REC_REF,
    REC_SHIFT,
    REC_STATE,
    REC_TIME,
    REC_WORDS,
    ST_CACHE,
    ST_DRIVER,
    ST_FREE,
    ST_RING,
    ST_TX,
)
from netmem.memory.records import INDEX_MASK, pp_is_mine, record
from netmem.memory.shadow import (
    EV_FRAGMENT,
    EV_NIC_WRITE,
    EV_PUT,
    EV_UNREF,
    TRAP_NEGATIVE_COUNT,
    TRAP_USE_AFTER_RETURN,
    TRAP_WRITE_AFTER_UNMAP,
    TRAP_WRONG_POOL,
    sh_event,
    sh_may_put,
    sh_moved,
    sh_posted,
    sh_synced,
    sh_trap,
)

FRAG_ALIGN = 64  # max(DMA cache alignment, what the kernel rounds fragments up to)


@inline_kernel
def set_state(p, a, ref, state):
    """Note who holds ``ref`` from now on (the leak ledger reads this)."""
    if a[A_SHADOW] != 0:
        sh_moved(p, a, ref, state)
    r = record(ref)
    a[r + REC_STATE] = state | p[P_ID] << 8
    a[r + REC_TIME] = a[A_NOW]


@kernel
def pp_refill_cache(p, a):
    """page_pool_refill_alloc_cache(): up to 64 netmems from the ring; how many the cache has."""
    head, tail = p[P_RING_HEAD], p[P_RING_TAIL]
    if head == tail:
        p[PS_ALLOC_EMPTY] += 1
        return 0
    if p[P_NID] >= 0 and a[A_NID] >= 0 and p[P_NID] != a[A_NID]:
        # Memory of another NUMA node: one goes back to its owner, and the slow path decides.
        ref = p[p[P_RING_AT] + (head & p[P_RING_MASK])]
        p[P_RING_HEAD] = head + 1
        p[PS_ALLOC_WAIVE] += 1
        pp_release(p, a, ref)
        return 0
    n = p[P_CACHE_N]
    ring, mask = p[P_RING_AT], p[P_RING_MASK]
    stop = min(tail, head + PP_ALLOC_CACHE_REFILL)
    while head < stop:
        p[P_CACHE + n] = p[ring + (head & mask)]
        n += 1
        head += 1
    p[P_RING_HEAD] = head
    p[P_CACHE_N] = n
    p[PS_ALLOC_REFILL] += 1
    return n


@inline_kernel
def pp_alloc(p, a):
    """One netmem from cache or ring; 0 when the slow path must be taken.

    What waits in a pool has a reference count of 1, so that neither end of its life sets it.
    """
    n = p[P_CACHE_N]
    if n == 0:
        n = pp_refill_cache(p, a)
        if n == 0:
            return 0
    n -= 1
    ref = p[P_CACHE + n]
    p[P_CACHE_N] = n
    p[PS_ALLOC_FAST] += 1
    set_state(p, a, ref, ST_DRIVER)
    return ref


@kernel
def pp_alloc_bulk(p, a, out, n):
    """Fill ``out[:n]``; returns how many there were before the slow path is needed."""
    done = 0
    state = ST_DRIVER | p[P_ID] << 8
    now = a[A_NOW]
    while done < n:
        have = p[P_CACHE_N]
        if have == 0:
            have = pp_refill_cache(p, a)
            if have == 0:
                break
        take = min(have, n - done)
        for i in range(take):
            ref = p[P_CACHE + have - 1 - i]
            out[done + i] = ref
            if a[A_SHADOW] != 0:
                sh_moved(p, a, ref, ST_DRIVER)
            r = record(ref)
            a[r + REC_STATE] = state
            a[r + REC_TIME] = now
        p[P_CACHE_N] = have - take
        p[PS_ALLOC_FAST] += take
        done += take
    return done


@kernel
def pp_alloc_frag(p, a, size):
    """page_pool_alloc_frag_netmem(): (netmem, offset); (0, 0) when the slow path is needed.

    ``size`` is rounded up to FRAG_ALIGN and must fit a netmem. The pool keeps a reference of its
    own to the netmem it is cutting until the next one does not fit any more.
    """
    whole = 1 << p[P_SHIFT]
    size = (size + FRAG_ALIGN - 1) & ~(FRAG_ALIGN - 1)
    ref = p[P_FRAG_REF]
    if ref != 0 and p[P_FRAG_OFFSET] + size > whole:
        p[P_FRAG_REF] = 0
        pp_put(p, a, ref, True)
        ref = 0
    if ref == 0:
        ref = pp_alloc(p, a)
        if ref == 0:
            return 0, 0
        p[P_FRAG_REF] = ref
        p[P_FRAG_OFFSET] = 0
    offset = p[P_FRAG_OFFSET]
    p[P_FRAG_OFFSET] = offset + size
    if a[A_SHADOW] != 0 and offset != 0:
        sh_event(p, a, ref, EV_FRAGMENT)
    a[record(ref) + REC_REF] += 1
    return ref, offset


@kernel
def pp_alloc_buffer(p, a, size):
    """page_pool_alloc_netmem(): a whole netmem when two of ``size`` would not fit, else a fragment."""
    if 2 * size > (1 << p[P_SHIFT]):
        return pp_alloc(p, a), 0
    return pp_alloc_frag(p, a, size)


@inline_kernel
def pp_release(p, a, ref):
    """Note ``ref`` for its provider; Python hands the list over when the kernel has returned."""
    if a[A_SHADOW] != 0:
        sh_event(p, a, ref, ST_FREE)
    r = record(ref)
    a[r + REC_REF] = 0
    a[r + REC_STATE] = ST_FREE
    a[r + REC_TIME] = a[A_NOW]
    n = p[P_RELEASE_N]
    p[p[P_RELEASE_AT] + n] = ref
    p[P_RELEASE_N] = n + 1


@inline_kernel
def pp_recycle(p, a, ref, direct):
    """The last user is gone: to the cache when ``direct``, else to the ring, else released."""
    r = record(ref)
    if p[P_DESTROYED]:
        pp_release(p, a, ref)
        return
    if p[P_SYNC_DEV]:
        p[PX_SYNC_DEV] += 1
    if direct:
        n = p[P_CACHE_N]
        if n < PP_ALLOC_CACHE_SIZE:
            p[P_CACHE + n] = ref
            p[P_CACHE_N] = n + 1
            p[PS_RECYCLE_CACHED] += 1
            if a[A_SHADOW] != 0:
                sh_event(p, a, ref, ST_CACHE)
            a[r + REC_STATE] = ST_CACHE | p[P_ID] << 8
            return
        p[PS_RECYCLE_CACHE_FULL] += 1
    tail = p[P_RING_TAIL]
    if tail - p[P_RING_HEAD] < p[P_RING_SIZE]:
        p[p[P_RING_AT] + (tail & p[P_RING_MASK])] = ref
        p[P_RING_TAIL] = tail + 1
        p[PS_RECYCLE_RING] += 1
        if a[A_SHADOW] != 0:
            sh_event(p, a, ref, ST_RING)
        a[r + REC_STATE] = ST_RING | p[P_ID] << 8
        return
    p[PS_RECYCLE_RING_FULL] += 1
    pp_release(p, a, ref)


@inline_kernel
def pp_put(p, a, ref, direct):
    """page_pool_put_netmem(): drop one reference, recycle at the last. False: refused."""
    if not pp_is_mine(p, a, ref):
        p[PX_FOREIGN] += 1
        if a[A_SHADOW] != 0:
            sh_trap(p, a, TRAP_WRONG_POOL, ref, EV_PUT, 0, 0)
        return False
    if a[A_SHADOW] != 0 and not sh_may_put(p, a, ref):
        return False
    r = record(ref)
    count = a[r + REC_REF]
    if count < 1 or (a[r + REC_STATE] & 0xFF) <= ST_RING:
        p[PX_DEAD] += 1
        return False
    if count > 1:
        a[r + REC_REF] = count - 1
        return True
    pp_recycle(p, a, ref, direct)
    return True


@kernel
def pp_put_bulk(p, a, refs, n, direct):
    """page_pool_put_netmem_bulk(): returns how many were refused.

    The plain case, a last user and room in the cache, keeps cache and counters in registers: stored
    and loaded again for each netmem they cost more than all the rest.
    """
    refused = 0
    i = 0
    if direct and p[P_DESTROYED] == 0 and a[A_SHADOW] == 0:
        have = p[P_CACHE_N]
        state = ST_CACHE | p[P_ID] << 8
        tag, count = p[P_AREA], a[A_COUNT]
        while i < n and have < PP_ALLOC_CACHE_SIZE:
            ref = refs[i]
            index = (ref >> 1) & INDEX_MASK
            if ref & ~(INDEX_MASK << 1) != tag or index >= count:
                break
            r = A_REC + (index << REC_SHIFT)
            if a[r + REC_REF] != 1 or (a[r + REC_STATE] & 0xFF) <= ST_RING:
                break
            a[r + REC_STATE] = state
            p[P_CACHE + have] = ref
            have += 1
            i += 1
        p[P_CACHE_N] = have
        p[PS_RECYCLE_CACHED] += i
        if p[P_SYNC_DEV]:
            p[PX_SYNC_DEV] += i
    while i < n:
        if not pp_put(p, a, refs[i], direct):
            refused += 1
        i += 1
    return refused


@kernel
def pp_unref(p, a, ref, n):
    """page_pool_unref_netmem(): drop ``n`` references; what is left, -1 when too few were held.

    The last user gets 0 and the count back at 1: the netmem is then its to put.
    """
    r = record(ref)
    count = a[r + REC_REF]
    if not pp_is_mine(p, a, ref) or n > count:
        p[PX_DEAD] += 1
        if a[A_SHADOW] != 0:
            sh_trap(p, a, TRAP_NEGATIVE_COUNT, ref, EV_UNREF, 0, 0)
        return -1
    if a[A_SHADOW] != 0:
        if a[r + REC_STATE] & 0xFF <= ST_RING:
            sh_trap(p, a, TRAP_USE_AFTER_RETURN, ref, EV_UNREF, 0, 0)
        sh_event(p, a, ref, EV_UNREF)
    if count == n:
        a[r + REC_REF] = 1
        return 0
    a[r + REC_REF] = count - n
    return count - n


@inline_kernel
def pp_fault(p, a, ref):
    """The NIC could not write to a buffer that it was given: for the sanitiser."""
    if a[A_SHADOW] != 0:
        sh_trap(p, a, TRAP_WRITE_AFTER_UNMAP, ref, EV_NIC_WRITE, 0, 0)


@inline_kernel
def pp_posted(p, ref, offset, size):
    """A buffer goes to the NIC: for the sanitiser, which asks whether what came was synced."""
    if p[P_SHADOW] != 0:
        sh_posted(p, ref, offset, size)


@inline_kernel
def pp_io_address(p, ref):
    """page_pool_get_dma_addr_netmem()."""
    return p[P_DMA] + (((ref >> 1) & INDEX_MASK) << p[P_SHIFT])


@inline_kernel
def pp_sync_for_cpu(p, ref, offset, size):
    """page_pool_dma_sync_netmem_for_cpu(): counted, and a copy only where a bounce buffer is."""
    if p[P_SHADOW] != 0:
        sh_synced(p, ref, offset, size)
    if p[P_SYNC_CPU] == 0 or p[P_BOUNCE] == 0:
        p[PX_SYNC_CPU_NOOP] += 1
        return
    at = (((ref >> 1) & INDEX_MASK) << p[P_SHIFT]) + p[P_OFFSET] + offset
    memcpy(p[P_HOST] + at, p[P_BOUNCE] + at, size)
    p[PX_SYNC_CPU] += 1


@kernel
def pp_available(p, a):
    """Buffers that this pool can still receive into: its share of the free ones, its own, posted."""
    netmems = a[A_FREE] // max(p[P_SHARE], 1) + p[P_CACHE_N] + p[P_RING_TAIL] - p[P_RING_HEAD]
    return netmems * max(p[P_PER], 1) + p[P_POSTED]


@kernel
def gather(base, frags, n, out):
    """Copy ``n`` (offset, size) pieces of mapped memory behind one another; returns the bytes.

    ``frags`` is the int64 view of received frags, shape (n, 3): offset, size | token << 32, ids.
    """
    done = 0
    for i in range(n):
        size = frags[i, 1] & 0xFFFFFFFF
        memcpy(out + done, base + frags[i, 0], size)
        done += size
    return done


@kernel
def hold_range(a, offset, size, by, now):
    """Add ``by`` to the references of the net_iovs that a range lies in: transmit in flight, or over."""
    shift = a[A_SHIFT]
    for index in range(offset >> shift, (offset + size - 1 >> shift) + 1):
        at = A_REC + REC_WORDS * index
        a[at + REC_REF] += by
        a[at + REC_STATE] = ST_TX if a[at + REC_REF] > 0 else ST_FREE
        a[at + REC_TIME] = now
