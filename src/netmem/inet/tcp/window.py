"""Windows, and the receive pool behind them: pledges of buffers, and who may hold how many (kernels).

A pool's available buffers less a reserve are shared. A connection is *pledged* buffers for what its
advertised window lets in, as many as full segments would take; pledges of all connections together never
exceed what there is. A window is no bigger than the connection's DEMAND, which doubles when a quarter of it
is made use of, and shrinks when it is not and others want more: idle connections keep next to nothing. While
more than half of the pool is spoken for, use is what the application reads, and what it leaves unread counts.

The right edge of a window never moves back (RFC 9293, 3.8.6), so a pledge is no promise for each byte of it:
who sends segments so short that they take more buffers, or wakes up after its pledge went to others, finds
room as far as its share goes, and loses data beyond that, counted, which it sends again.

Shares are dynamic thresholds (Choudhury and Hahne, 1998), multiples of what is free beside them, so that n
connections settle at equal parts and a new one always finds room: once for what is pledged and queued, four
times with what the application holds, a sixteenth for buffers that hold next to nothing.
"""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.inet.tcp.tcb import (
    ADV_MSS,
    CF_FIN_SEEN,
    CF_ORPHAN,
    CF_STARVED,
    CR_AVAIL,
    CR_GRANT,
    CR_PLEDGED,
    CR_RESERVE,
    CR_TOTAL,
    CR_WORDS,
    DEMAND,
    ESTABLISHED,
    FIN_SEQ,
    FIN_WAIT_2,
    FLAGS,
    G_CREDIT,
    G_NOW,
    G_RECLAIM_AT,
    G_ROWS,
    G_STARVED,
    MASK32,
    OQ_BUFS,
    OQ_BYTES,
    PER,
    PLEDGED,
    QUEUE,
    RCV_ADV,
    RCV_BUF,
    RCV_MSS,
    RCV_NXT,
    RCV_SCALE,
    RQ_BUFS,
    RQ_BYTES,
    STATE,
    USED,
    USED_AT,
    USER,
    seq_diff,
)

IDLE_NS = 200_000_000  # a sender that was silent for longer starts anew (RFC 5681, 4.1), with ten segments
USER_SHARE = 4
WASTE_SHIFT = 4
DEMAND_START = 64 << 10  # bytes: what a SYN can advertise; less where that is much of the pool
START_PART = 64
HEADROOM = 4  # of the window over what comes in: a sender that repairs a loss sends on beyond it


@inline_kernel
def receives(t, c):
    """True in states in which data may still come, and is wanted."""
    return ESTABLISHED <= t[c, STATE] <= FIN_WAIT_2 and t[c, FLAGS] & CF_ORPHAN == 0


@inline_kernel
def unpledged(g, at):
    """Buffers that nobody was pledged, of the account at ``at``; may be less than none."""
    return g[at + CR_AVAIL] - g[at + CR_RESERVE] - g[at + CR_PLEDGED]


@inline_kernel
def pressure(g, at):
    """True while more than half of a pool's buffers are held or pledged."""
    return 2 * unpledged(g, at) < g[at + CR_TOTAL]


@kernel
def room(g, t, c):
    """Buffers that a connection may have beyond those it was pledged: what is left of its share."""
    at = G_CREDIT + CR_WORDS * t[c, QUEUE]
    free = unpledged(g, at)
    held = t[c, PLEDGED] + t[c, RQ_BUFS] + t[c, OQ_BUFS]
    more = (free - held) >> 1
    with_user = (USER_SHARE * free - held - t[c, USER]) // (USER_SHARE + 1)
    return max(min(more, with_user), 0)


@kernel
def pledge(g, t, c, wanted):
    """Pledge ``wanted`` buffers to a connection, or as many of them as it may have."""
    more = wanted - t[c, PLEDGED]
    if more > 0:
        more = min(more, room(g, t, c))
    if more != 0:
        t[c, PLEDGED] += more
        g[G_CREDIT + CR_WORDS * t[c, QUEUE] + CR_PLEDGED] += more


@inline_kernel
def least(t, c):
    """Bytes of window that even an idle connection can have: four segments, so that it gets started."""
    return 4 * t[c, ADV_MSS]


@inline_kernel
def enough(t, c):
    """Bytes of window with which a connection gets on: its peer can send a whole segment."""
    return min(t[c, RCV_BUF] >> 1, t[c, RCV_MSS])


@kernel
def demand_start(g, t, c):
    """What a new connection's window may be: ten segments (RFC 6928) at least."""
    at = G_CREDIT + CR_WORDS * t[c, QUEUE]
    part = g[at + CR_TOTAL] // START_PART * t[c, PER]
    t[c, DEMAND] = max(min(min(part, DEMAND_START), t[c, RCV_BUF]), 10 * t[c, ADV_MSS])


@kernel
def note_starved(g, t, c):
    """Note whether a connection waits for room in the pool: it has no window, and nothing to give back."""
    left = seq_diff(t[c, RCV_ADV], t[c, RCV_NXT])
    space = min(t[c, RCV_BUF] - t[c, OQ_BYTES], t[c, DEMAND]) - t[c, RQ_BYTES]
    holds = t[c, RQ_BUFS] + t[c, USER]
    starved = receives(t, c) and left < enough(t, c) <= space and holds == 0
    if starved != (t[c, FLAGS] & CF_STARVED != 0):
        t[c, FLAGS] ^= CF_STARVED
        g[G_STARVED] += 1 if starved else -1


@kernel
def wanted(g, t, c):
    """Buffers that the open part of a connection's window asks for, as far as it makes use of it."""
    if not receives(t, c):
        return 0
    left = seq_diff(t[c, RCV_ADV], t[c, RCV_NXT])
    if t[c, FLAGS] & CF_FIN_SEEN:
        left = min(left, seq_diff(t[c, FIN_SEQ], t[c, RCV_NXT]))
    left = max(min(left, t[c, DEMAND]), 0)
    buffers = (left + t[c, PER] - 1) // t[c, PER]
    if t[c, DEMAND] <= least(t, c):
        buffers = min(buffers, g[G_CREDIT + CR_WORDS * t[c, QUEUE] + CR_GRANT])
    return buffers


@kernel
def pledge_anew(g, t, c):
    """Bring a connection's pledge to what its window and its state ask for."""
    pledge(g, t, c, wanted(g, t, c))


@inline_kernel
def took(g, t, c, buffers):
    """The queue's pool gave ``buffers`` to a connection: out of its pledge, as far as that goes."""
    at = G_CREDIT + CR_WORDS * t[c, QUEUE]
    g[at + CR_AVAIL] -= buffers
    paid = min(buffers, t[c, PLEDGED])
    t[c, PLEDGED] -= paid
    g[at + CR_PLEDGED] -= paid


@kernel
def may_take(g, t, c, length):
    """True when a connection may take one more buffer, for ``length`` bytes.

    One whose buffers hold next to nothing gets few, and none of the last quarter of the pool, but for the
    first: a short message comes through as long as an eighth is there.
    """
    at = G_CREDIT + CR_WORDS * t[c, QUEUE]
    buffers = t[c, RQ_BUFS] + t[c, OQ_BUFS] + 1
    waste = buffers - (t[c, RQ_BYTES] + t[c, OQ_BYTES] + length) // t[c, PER]
    if 2 * waste > buffers:
        free = unpledged(g, at)
        if buffers == 1:
            return t[c, PLEDGED] > 0 or free > g[at + CR_TOTAL] >> 3
        if waste << WASTE_SHIFT > free - (g[at + CR_TOTAL] >> 2):
            return False
    return t[c, PLEDGED] > 0 or room(g, t, c) > 0


@inline_kernel
def use(g, t, c, length):
    """``length`` bytes of window were of use: who uses a quarter of what it is kept gets twice that."""
    t[c, USED] += length
    if HEADROOM * t[c, USED] >= t[c, DEMAND]:
        t[c, DEMAND] = min(2 * t[c, DEMAND], max(t[c, RCV_BUF], 2 * t[c, RCV_MSS]))
        t[c, USED], t[c, USED_AT] = 0, g[G_NOW]


@kernel
def came(g, t, c, length):
    """``length`` bytes came in sequence."""
    if not pressure(g, G_CREDIT + CR_WORDS * t[c, QUEUE]):
        use(g, t, c, length)
    pledge_anew(g, t, c)


@kernel
def was_read(g, t, c, length):
    """The application took ``length`` bytes."""
    if pressure(g, G_CREDIT + CR_WORDS * t[c, QUEUE]):
        use(g, t, c, length)


@kernel
def offer(g, t, c):
    """The window in bytes that a connection can have now: its buffer, its demand, its share of the pool."""
    space = t[c, RCV_BUF] - t[c, RQ_BYTES] - t[c, OQ_BYTES]
    demand = t[c, DEMAND]
    if pressure(g, G_CREDIT + CR_WORDS * t[c, QUEUE]):
        demand -= t[c, RQ_BYTES]
    more = room(g, t, c)
    if g[G_STARVED] > 0:  # enough to get started for as many as possible, before anybody gets more
        segments = (2 * t[c, RCV_MSS] + t[c, PER] - 1) // t[c, PER]
        equal = max(unpledged(g, G_CREDIT + CR_WORDS * t[c, QUEUE]) // (g[G_STARVED] + 1), segments)
        more = min(more, max(equal - t[c, PLEDGED], 0))
    return max(min(min(space, demand), (t[c, PLEDGED] + more) * t[c, PER]), 0)


@kernel
def select_window(g, t, c):
    """The window field to send now; notes the right edge, and pledges what it stands for.

    It is moved on by whole segments only (RFC 9293, 3.8.6.2.2), within what the connection's share of
    the pool can take.
    """
    left = max(seq_diff(t[c, RCV_ADV], t[c, RCV_NXT]), 0)
    limit = window = left
    if receives(t, c):
        limit = window = offer(g, t, c)
        if window - left < enough(t, c):
            window = left
    scale = t[c, RCV_SCALE]
    if window > left:
        field = min(window >> scale, 0xFFFF)
    else:
        # Rounded up, so that the edge does not move back; where there is no room for that, rounded down,
        # or a peer that sends a byte at a time would find a window for ever.
        field = min((left + (1 << scale) - 1) >> scale, 0xFFFF)
        if (field << scale) > limit:
            field = min(left >> scale, 0xFFFF)
    if (field << scale) > left:
        t[c, RCV_ADV] = (t[c, RCV_NXT] + (field << scale)) & MASK32
    pledge_anew(g, t, c)
    note_starved(g, t, c)
    return field


@kernel
def window_update_due(g, t, c):
    """True when telling the peer of the window now would open it well (RFC 9293, 3.8.6.2.2)."""
    if not receives(t, c):
        return False
    left = max(seq_diff(t[c, RCV_ADV], t[c, RCV_NXT]), 0)
    if t[c, FLAGS] & CF_STARVED:
        return offer(g, t, c) - left >= enough(t, c)
    return offer(g, t, c) - left >= max(2 * t[c, RCV_MSS], min(left, t[c, RCV_BUF] >> 1))


@kernel
def decay(g, t, c):
    """Who did not use a quarter of what it is kept for a while is kept four times what it used."""
    if g[G_NOW] - t[c, USED_AT] >= IDLE_NS:
        t[c, DEMAND] = max(min(t[c, DEMAND], HEADROOM * t[c, USED]), least(t, c))
        t[c, USED], t[c, USED_AT] = 0, g[G_NOW]
    if t[c, PLEDGED] > wanted(g, t, c):
        pledge_anew(g, t, c)


@kernel
def reclaim(g, t):
    """There is not enough for all: connections give up what they do not use."""
    if g[G_NOW] < g[G_RECLAIM_AT]:
        return
    g[G_RECLAIM_AT] = g[G_NOW] + IDLE_NS // 8
    for c in range(g[G_ROWS]):
        if t[c, PLEDGED] > 0:
            decay(g, t, c)


@kernel
def trim(g, t, queue):
    """A pool has less than was pledged, since others draw on its memory too: all give up in proportion."""
    at = G_CREDIT + CR_WORDS * queue
    have, total = max(g[at + CR_AVAIL], 0), g[at + CR_PLEDGED]
    if total <= have:
        return
    left = 0
    for c in range(g[G_ROWS]):
        if t[c, PLEDGED] > 0 and t[c, QUEUE] == queue:
            t[c, PLEDGED] = t[c, PLEDGED] * have // total
            left += t[c, PLEDGED]
    g[at + CR_PLEDGED] = left
