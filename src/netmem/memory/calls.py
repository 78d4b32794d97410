"""What Python calls of this room's kernels. ``at`` is the address of a PoolRecord."""

from __future__ import annotations

from netmem.base.arena import Words
from netmem.base.jit import kernel
from netmem.base.native import memcpy
from netmem.base.record import Word
from netmem.memory import kernels as k
from netmem.memory import shadow
from netmem.memory.layout import AreaRecord, Holder, NetmemRecord, PoolRecord
from netmem.memory.ref import ref_of
from netmem.memory.shadow import netmem_of


@kernel
def alloc_bulk(at: int, out: Words, n: int) -> int:
    """page_pool_alloc_netmems(): fill ``out[:n]``; how many there were before the slow path is needed."""
    pool = PoolRecord.at(at)
    now, pool_id = AreaRecord.at(pool.area).now, pool.id
    cache = pool.alloc.cache
    done = 0
    while done < n:
        have = pool.alloc.count
        if have == 0:
            have = k.pp_refill_cache(pool)
            if have == 0:
                break
        take = min(have, n - done)
        for i in range(take):
            ref = cache[have - 1 - i]
            out[done + i] = ref
            if pool.synced != 0:
                shadow.moved(pool, ref, Holder.DRIVER)
            netmem = netmem_of(pool, ref)
            netmem.holder, netmem.pool = Holder.DRIVER, pool_id
            netmem.changed = now
        pool.alloc.count = have - take
        pool.stats.alloc_fast += take
        done += take
    return done


@kernel
def alloc_buffer(at: int, size: int) -> tuple[int, int]:
    """pp_alloc_buffer."""
    return k.pp_alloc_buffer(PoolRecord.at(at), size)


@kernel
def alloc_frag(at: int, size: int) -> tuple[int, int]:
    """pp_alloc_frag."""
    return k.pp_alloc_frag(PoolRecord.at(at), size)


@kernel
def put(at: int, ref: int, direct: bool) -> bool:
    """pp_put."""
    return k.pp_put(PoolRecord.at(at), ref, direct)


@kernel
def put_bulk(at: int, refs: Words, n: int, direct: bool) -> int:
    """page_pool_put_netmem_bulk(): drop one reference of each of ``refs[:n]``; how many were refused."""
    pool = PoolRecord.at(at)
    refused = 0
    i = 0
    if direct and pool.destroyed == 0 and pool.synced == 0:
        i = k.pp_put_to_cache(pool, refs, n)
    while i < n:
        if not k.pp_put(pool, int(refs[i]), direct):
            refused += 1
        i += 1
    return refused


@kernel
def scrub(at: int) -> None:
    """page_pool_scrub(): release what cache and ring hold."""
    pool = PoolRecord.at(at)
    ring = pool.ring
    for i in range(pool.alloc.count):
        k.pp_release(pool, pool.alloc.cache[i])
    pool.alloc.count = 0
    while ring.consumer < ring.producer:
        k.pp_release(pool, Word.nth(ring.queue, ring.consumer & ring.mask).value)
        ring.consumer += 1


@kernel
def unref(at: int, ref: int, n: int) -> int:
    """pp_unref."""
    return k.pp_unref(PoolRecord.at(at), ref, n)


@kernel
def sync_for_cpu(at: int, ref: int, offset: int, size: int) -> None:
    """pp_sync_for_cpu."""
    k.pp_sync_for_cpu(PoolRecord.at(at), ref, offset, size)


@kernel
def available(at: int) -> int:
    """pp_available."""
    return k.pp_available(PoolRecord.at(at))


@kernel
def note_use(at: int, ref: int, event: int) -> None:
    """For the sanitiser: something is done with a netmem that must be held."""
    pool = PoolRecord.at(at)
    if netmem_of(pool, ref).holder <= Holder.RING:
        shadow.trap(pool, shadow.Trap.USE_AFTER_RETURN, ref, event, 0, 0)
    shadow.note(pool, ref, event)


@kernel
def trap(at: int, what: int, ref: int, event: int, offset: int, size: int) -> None:
    """shadow.trap."""
    shadow.trap(PoolRecord.at(at), what, ref, event, offset, size)


@kernel
def note_synced(at: int, ref: int, offset: int, size: int) -> None:
    """shadow.synced."""
    shadow.synced(PoolRecord.at(at), ref, offset, size)


@kernel
def any_synced(at: int, ref: int, offset: int, size: int) -> bool:
    """shadow.any_synced."""
    return shadow.any_synced(PoolRecord.at(at), ref, offset, size)


@kernel
def hold_range(at: int, offset: int, size: int, by: int, now: int) -> None:
    """Add ``by`` to the references of the net_iovs that a range of an area lies in: transmit, or over."""
    area = AreaRecord.at(at)
    for index in range(offset >> area.shift, (offset + size - 1 >> area.shift) + 1):
        netmem = NetmemRecord.nth(area.netmems, index)
        netmem.pp_ref_count += by
        netmem.holder = Holder.TX if netmem.pp_ref_count > 0 else Holder.FREE
        netmem.changed = now


@kernel
def run_of(frags: Words, n: int, start: int) -> int:
    """Bytes of ``n`` frags (as ``gather`` has them) if they lie end to end in one memory, else -1.

    ``start``: where the first must be, -1: anywhere.
    """
    end = start if start >= 0 else frags[0, 0]
    size = 0
    for i in range(n):
        if frags[i, 0] != end or frags[i, 2] != frags[0, 2]:
            return -1
        size += frags[i, 1] & 0xFFFFFFFF
        end = frags[i, 0] + (frags[i, 1] & 0xFFFFFFFF)
    return size


@kernel
def hold_frags(at: int, frags: Words, n: int, refs: Words) -> bool:
    """page_pool_ref_netmem() for the netmems that ``n`` frags lie in, into ``refs``. False: not all mine."""
    pool = PoolRecord.at(at)
    for i in range(n):
        netmem = NetmemRecord.nth(pool.netmems, frags[i, 0] >> pool.shift)
        if netmem.pool != pool.id or netmem.holder <= Holder.RING:  # given back by now: the socket was closed
            return False
    for i in range(n):
        refs[i] = ref_of(pool.tag, frags[i, 0] >> pool.shift)
        netmem_of(pool, refs[i]).pp_ref_count += 1
        if pool.synced != 0:
            shadow.note(pool, refs[i], shadow.Event.REF)
    return True


@kernel
def gather(base: int, frags: Words, n: int, out: int) -> int:
    """Copy ``n`` (offset, size) pieces of mapped memory behind one another; returns the bytes.

    ``frags`` is the int64 view of received frags, shape (n, 3): offset, size | token << 32, ids.
    """
    done = 0
    for i in range(n):
        size = frags[i, 1] & 0xFFFFFFFF
        memcpy(out + done, base + frags[i, 0], size)
        done += size
    return done
