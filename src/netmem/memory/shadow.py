"""The sanitiser's shadow of each netmem: its last events, and which of its bytes were synced (kernels).

At the end of an area's arena stand a ShadowRecord and a History for each netmem. A pool's arena has one word
for each netmem (``PoolRecord.synced``): a bit for each 32nd of it, set when that part was synced for the CPU
since it was posted. A pool has these words if and only if its area has a shadow.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Annotated

from netmem.base.jit import inline_kernel, kernel
from netmem.base.record import Items, Record, Word, i32, i64
from netmem.memory.layout import AreaRecord, Holder, NetmemRecord, PoolRecord
from netmem.memory.ref import index_of, tag_of

EVENTS = 4  # of each netmem are remembered, a power of two
LOG_ENTRIES = 16
GRAIN_BITS = 5  # a netmem has 32 grains, each synced or not


class Trap(enum.IntEnum):
    """What the sanitiser traps."""

    DOUBLE_PUT = 1
    WRONG_POOL = 2
    USE_AFTER_RETURN = 3
    SYNC_MISSING = 4
    SYNC_DIRECTION = 5
    WRITE_AFTER_UNMAP = 6
    NEGATIVE_COUNT = 7
    TOKEN_TWICE = 8
    PLEDGES = 9


class Event(enum.IntEnum):
    """What happens to a netmem beside going to another Holder, whose numbers are events too."""

    PUT = 16
    UNREF = 17
    FRAGMENT = 18
    SYNC_CPU = 19
    SYNC_DEV = 20
    UNMAP = 21
    NIC_WRITE = 22
    DELIVER = 23
    TOKEN = 24
    REF = 25


class EventRecord(Record):
    """Something that happened to a netmem."""

    kind: i32  # Event or Holder
    pool: i32  # the pool's id
    site: i64  # who called
    time: i64  # ns


class History(Record):
    """The last events of a netmem; ``event_of`` finds them. Kind 0 where there was none."""

    count: i64  # how many there were
    _unused: Annotated[Items[int], ctypes.c_int64 * 3]
    events: Annotated[Items[EventRecord], EventRecord * EVENTS]


class TrapRecord(Record):
    """What was trapped: the event that did it, and those before it."""

    trap: i64  # Trap
    netmem: i64
    event: Annotated[EventRecord, EventRecord]
    before: Annotated[History, History]
    offset: i64  # the bytes in question, of the netmem
    size: i64


class ShadowRecord(Record):
    """The head of an area's shadow."""

    trapped: i64  # so far
    told: i64  # of these, reported
    log: Annotated[Items[TrapRecord], TrapRecord * LOG_ENTRIES]


SHADOW_BYTES = ctypes.sizeof(ShadowRecord)


def shadow_bytes(count: int) -> int:
    """What the shadow of ``count`` netmems takes."""
    return SHADOW_BYTES + ctypes.sizeof(History) * count


@inline_kernel
def netmem_of(pool: PoolRecord, ref: int) -> NetmemRecord:
    """The record of a netmem of this pool's area."""
    return NetmemRecord.nth(pool.netmems, index_of(ref))


@inline_kernel
def pp_is_mine(pool: PoolRecord, ref: int) -> bool:
    """True when ``ref`` is a netmem of this pool's area."""
    return tag_of(ref) == pool.tag and index_of(ref) < pool.count


@inline_kernel
def history_of(area: AreaRecord, ref: int) -> History:
    """The last events of a netmem of this area."""
    return History.nth(area.shadow + SHADOW_BYTES, index_of(ref))


@inline_kernel
def event_of(history: History, i: int) -> EventRecord:
    """The ``i``-th newest event of a history, from 0."""
    return history.events[(history.count - 1 - i) & (EVENTS - 1)]


@inline_kernel
def copy_event(to: EventRecord, of: EventRecord) -> None:
    """``to`` becomes what ``of`` is."""
    to.kind, to.pool = of.kind, of.pool
    to.site, to.time = of.site, of.time


@inline_kernel
def set_event(event: EventRecord, kind: int, pool: PoolRecord) -> None:
    """``kind`` happens now, by the caller that the area knows."""
    area = AreaRecord.at(pool.area)
    event.kind, event.pool = kind, pool.id
    event.site, event.time = area.site, area.now


@kernel
def note(pool: PoolRecord, ref: int, kind: int) -> None:
    """Note what happened to a netmem of this pool's area."""
    history = history_of(AreaRecord.at(pool.area), ref)
    history.count += 1
    set_event(event_of(history, 0), kind, pool)


@kernel
def trap(pool: PoolRecord, what: int, ref: int, kind: int, offset: int, size: int) -> None:
    """Note that something was trapped: event ``kind`` on ``ref``, with the events before it."""
    area = AreaRecord.at(pool.area)
    shadow = ShadowRecord.at(area.shadow)
    n = shadow.trapped
    shadow.trapped = n + 1
    if n - shadow.told >= LOG_ENTRIES:
        return
    entry = shadow.log[n % LOG_ENTRIES]
    entry.trap, entry.netmem = what, ref
    entry.offset, entry.size = offset, size
    set_event(entry.event, kind, pool)
    mine = pp_is_mine(pool, ref)
    entry.before.count = history_of(area, ref).count if mine else 0
    for i in range(EVENTS):
        if mine:
            copy_event(entry.before.events[i], history_of(area, ref).events[i])
        else:
            entry.before.events[i].kind = 0


@inline_kernel
def synced_word(pool: PoolRecord, ref: int) -> Word:
    """Which grains of a netmem were synced for the CPU."""
    return Word.nth(pool.synced, index_of(ref))


@kernel
def moved(pool: PoolRecord, ref: int, holder: int) -> None:
    """A netmem goes to ``holder``: from pool or free list only an allocation takes it away."""
    if not pp_is_mine(pool, ref):
        trap(pool, Trap.WRONG_POOL, ref, holder, 0, 0)
        return
    if holder > Holder.DRIVER and netmem_of(pool, ref).holder <= Holder.RING:
        trap(pool, Trap.USE_AFTER_RETURN, ref, holder, 0, 0)
    if holder == Holder.DRIVER:
        synced_word(pool, ref).value = 0
    note(pool, ref, holder)


@kernel
def may_put(pool: PoolRecord, ref: int) -> bool:
    """Look at a put before it is done. False: trapped, and not to be done."""
    netmem = netmem_of(pool, ref)
    if netmem.holder <= Holder.RING:
        pool.counters.dead += 1
        trap(pool, Trap.DOUBLE_PUT, ref, Event.PUT, 0, 0)
        return False
    if netmem.pool != pool.id:
        pool.counters.foreign += 1
        trap(pool, Trap.WRONG_POOL, ref, Event.PUT, 0, 0)
        return False
    if netmem.pp_ref_count < 1:
        pool.counters.dead += 1
        trap(pool, Trap.NEGATIVE_COUNT, ref, Event.PUT, 0, 0)
        return False
    if netmem.pp_ref_count > 1:
        note(pool, ref, Event.UNREF)
    return True


@inline_kernel
def grain_mask(first: int, stop: int) -> int:
    """Bits of the grains ``first`` to ``stop`` (exclusive) of a netmem."""
    return ((1 << (stop - first)) - 1) << first if stop > first else 0


@inline_kernel
def touched(pool: PoolRecord, offset: int, size: int) -> int:
    """Bits of the grains that ``size`` bytes at ``offset`` touch; 0 when they are outside the netmem."""
    shift = pool.shift - GRAIN_BITS
    if size <= 0 or offset < 0 or offset + size > 1 << pool.shift:
        return 0
    return grain_mask(offset >> shift, ((offset + size - 1) >> shift) + 1)


@kernel
def posted(pool: PoolRecord, ref: int, offset: int, size: int) -> None:
    """The NIC gets a buffer to write to: nothing of it is synced. Grains shared with others stay."""
    shift = pool.shift - GRAIN_BITS
    first, stop = (offset + (1 << shift) - 1) >> shift, (offset + size) >> shift
    synced_word(pool, ref).value &= ~grain_mask(first, stop)


@kernel
def synced(pool: PoolRecord, ref: int, offset: int, size: int) -> None:
    """A part of a netmem was synced for the CPU."""
    synced_word(pool, ref).value |= touched(pool, offset, size)


@inline_kernel
def any_synced(pool: PoolRecord, ref: int, offset: int, size: int) -> bool:
    """True when some of a part was synced for the CPU."""
    return synced_word(pool, ref).value & touched(pool, offset, size) != 0


@kernel
def delivered(pool: PoolRecord, ref: int, offset: int, size: int) -> None:
    """A driver hands ``size`` bytes of a netmem up: it must hold it, and have synced them."""
    if not pp_is_mine(pool, ref):
        trap(pool, Trap.WRONG_POOL, ref, Event.DELIVER, offset, size)
        return
    want = touched(pool, offset, size)
    if netmem_of(pool, ref).holder <= Holder.RING:
        trap(pool, Trap.USE_AFTER_RETURN, ref, Event.DELIVER, offset, size)
    elif synced_word(pool, ref).value & want != want:
        trap(pool, Trap.SYNC_MISSING, ref, Event.DELIVER, offset, size)
