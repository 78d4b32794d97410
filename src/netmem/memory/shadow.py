"""The sanitiser's shadow of each netmem: its last events, and which of its bytes were synced (kernels).

Behind an area's free stack stand a header, the log of what was trapped, and SH_WORDS words for each
netmem: its last three events with their times, the newest first. A pool's arena has one word for
each netmem: a bit for each 32nd of it, set when that part was synced for the CPU since it was posted.
An event is a kind (ST_* or EV_*), the pool's id << 8, and the number of the caller << 32.
"""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.memory.layout import (
    A_NOW,
    A_SHADOW,
    A_SITE,
    P_ID,
    P_SHADOW,
    P_SHIFT,
    PX_DEAD,
    PX_FOREIGN,
    REC_REF,
    REC_STATE,
    ST_DRIVER,
    ST_RING,
)
from netmem.memory.records import INDEX_MASK, pp_is_mine, record, state_of

# The shadow's header and log.
SH_TRAPS = 0  # trapped so far
SH_TOLD = 1  # of these, reported
SH_LOG = 8
LOG_ENTRIES = 16
LOG_WORDS = 16
SH_REC = SH_LOG + LOG_ENTRIES * LOG_WORDS
SH_SHIFT = 3
SH_WORDS = 1 << SH_SHIFT
EVENTS = 3
GRAIN_BITS = 5  # a netmem has 32 grains, each synced or not

# A log entry: what was trapped, the netmem, the event that trapped, and the netmem's events before it.
T_TRAP = 0
T_REF = 1
T_EVENT = 2
T_TIME = 3
T_BEFORE = 4  # EVENTS pairs of event and time
T_OFFSET = 10
T_SIZE = 11

TRAP_DOUBLE_PUT = 1
TRAP_WRONG_POOL = 2
TRAP_USE_AFTER_RETURN = 3
TRAP_SYNC_MISSING = 4
TRAP_SYNC_DIRECTION = 5
TRAP_WRITE_AFTER_UNMAP = 6
TRAP_NEGATIVE_COUNT = 7
TRAP_TOKEN_TWICE = 8
TRAP_PLEDGES = 9

# Events beside the ST_* that a netmem goes to.
EV_PUT = 16
EV_UNREF = 17
EV_FRAGMENT = 18
EV_SYNC_CPU = 19
EV_SYNC_DEV = 20
EV_UNMAP = 21
EV_NIC_WRITE = 22
EV_DELIVER = 23
EV_TOKEN = 24
EV_REF = 25


def shadow_words(count: int) -> int:
    """Words that the shadow of ``count`` netmems takes."""
    return SH_REC + SH_WORDS * count


@kernel
def sh_event(p, a, ref, kind):
    """Note what happened to a netmem of this area."""
    at = a[A_SHADOW] + SH_REC + (((ref >> 1) & INDEX_MASK) << SH_SHIFT)
    for i in range(2 * EVENTS - 1, 1, -1):
        a[at + i] = a[at + i - 2]
    a[at] = kind | p[P_ID] << 8 | a[A_SITE] << 32
    a[at + 1] = a[A_NOW]


@kernel
def sh_trap(p, a, trap, ref, kind, offset, size):
    """Note that something was trapped: event ``kind`` on ``ref``, with the events before it."""
    head = a[A_SHADOW]
    n = a[head + SH_TRAPS]
    a[head + SH_TRAPS] = n + 1
    if n - a[head + SH_TOLD] >= LOG_ENTRIES:
        return
    at = head + SH_LOG + (n % LOG_ENTRIES) * LOG_WORDS
    a[at + T_TRAP], a[at + T_REF] = trap, ref
    a[at + T_EVENT], a[at + T_TIME] = kind | p[P_ID] << 8 | a[A_SITE] << 32, a[A_NOW]
    a[at + T_OFFSET], a[at + T_SIZE] = offset, size
    mine = pp_is_mine(p, a, ref)
    before = head + SH_REC + (((ref >> 1) & INDEX_MASK) << SH_SHIFT)
    for i in range(2 * EVENTS):
        a[at + T_BEFORE + i] = a[before + i] if mine else 0


@kernel
def sh_moved(p, a, ref, state):
    """A netmem goes to ``state``: from pool or free list only an allocation takes it away."""
    if not pp_is_mine(p, a, ref):
        sh_trap(p, a, TRAP_WRONG_POOL, ref, state, 0, 0)
        return
    if state > ST_DRIVER and state_of(a, ref) <= ST_RING:
        sh_trap(p, a, TRAP_USE_AFTER_RETURN, ref, state, 0, 0)
    if state == ST_DRIVER and p[P_SHADOW] != 0:
        p[p[P_SHADOW] + ((ref >> 1) & INDEX_MASK)] = 0
    sh_event(p, a, ref, state)


@kernel
def sh_may_put(p, a, ref):
    """Look at a put before it is done. False: trapped, and not to be done."""
    r = record(ref)
    state = a[r + REC_STATE]
    if state & 0xFF <= ST_RING:
        p[PX_DEAD] += 1
        sh_trap(p, a, TRAP_DOUBLE_PUT, ref, EV_PUT, 0, 0)
        return False
    if state >> 8 != p[P_ID]:
        p[PX_FOREIGN] += 1
        sh_trap(p, a, TRAP_WRONG_POOL, ref, EV_PUT, 0, 0)
        return False
    if a[r + REC_REF] < 1:
        p[PX_DEAD] += 1
        sh_trap(p, a, TRAP_NEGATIVE_COUNT, ref, EV_PUT, 0, 0)
        return False
    if a[r + REC_REF] > 1:
        sh_event(p, a, ref, EV_UNREF)
    return True


@inline_kernel
def grain_mask(first, stop):
    """Bits of the grains ``first`` to ``stop`` (exclusive) of a netmem."""
    return ((1 << (stop - first)) - 1) << first if stop > first else 0


@inline_kernel
def touched(p, offset, size):
    """Bits of the grains that ``size`` bytes at ``offset`` touch; 0 when they are outside the netmem."""
    shift = p[P_SHIFT] - GRAIN_BITS
    if size <= 0 or offset < 0 or offset + size > 1 << p[P_SHIFT]:
        return 0
    return grain_mask(offset >> shift, ((offset + size - 1) >> shift) + 1)


@kernel
def sh_posted(p, ref, offset, size):
    """The NIC gets a buffer to write to: nothing of it is synced. Grains shared with others stay."""
    shift = p[P_SHIFT] - GRAIN_BITS
    first, stop = (offset + (1 << shift) - 1) >> shift, (offset + size) >> shift
    p[p[P_SHADOW] + ((ref >> 1) & INDEX_MASK)] &= ~grain_mask(first, stop)


@kernel
def sh_synced(p, ref, offset, size):
    """A part of a netmem was synced for the CPU."""
    p[p[P_SHADOW] + ((ref >> 1) & INDEX_MASK)] |= touched(p, offset, size)


@inline_kernel
def sh_any_synced(p, ref, offset, size):
    """True when some of a part was synced for the CPU."""
    return p[p[P_SHADOW] + ((ref >> 1) & INDEX_MASK)] & touched(p, offset, size) != 0


@inline_kernel
def sh_is_synced(p, ref, offset, size):
    """True when all of a part was synced for the CPU."""
    want = touched(p, offset, size)
    return p[p[P_SHADOW] + ((ref >> 1) & INDEX_MASK)] & want == want


@kernel
def sh_delivered(p, a, ref, offset, size):
    """A driver hands ``size`` bytes of a netmem up: it must hold it, and have synced them."""
    if not pp_is_mine(p, a, ref):
        sh_trap(p, a, TRAP_WRONG_POOL, ref, EV_DELIVER, offset, size)
    elif state_of(a, ref) <= ST_RING:
        sh_trap(p, a, TRAP_USE_AFTER_RETURN, ref, EV_DELIVER, offset, size)
    elif not sh_is_synced(p, ref, offset, size):
        sh_trap(p, a, TRAP_SYNC_MISSING, ref, EV_DELIVER, offset, size)
