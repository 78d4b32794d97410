"""Windows, and the receive pool behind them: pledges of buffers, and who may hold how many (kernels).

A pool's available buffers less a reserve are shared. A connection is *pledged* buffers for what its
advertised window lets in, as many as its data took of late, or full segments would take; pledges of all
connections together never exceed what there is. A window is no bigger than the connection's DEMAND, which
doubles when a quarter of it is made use of, and shrinks when it is not and others want more: idle connections
keep next to nothing. While more than half of the pool is spoken for, use is what the application reads, and
what it leaves unread counts.

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
    MASK32,
    Account,
    Flag,
    StackRecord,
    Tcb,
    TcpState,
    account_of,
    seq_diff,
    tcb_of,
)

IDLE_NS = 200_000_000  # a sender that was silent for longer starts anew (RFC 5681, 4.1), with ten segments
USER_SHARE = 4
WASTE_SHIFT = 4
DEMAND_START = 64 << 10  # bytes: what a SYN can advertise; less where that is much of the pool
START_PART = 64
MEASURE = 8  # buffers that were taken, after which per_buffer is worked out anew
HEADROOM = 4  # of the window over what comes in: a sender that repairs a loss sends on beyond it


@inline_kernel
def receives(tcb: Tcb) -> bool:
    """True in states in which data may still come, and is wanted."""
    return TcpState.ESTABLISHED <= tcb.state <= TcpState.FIN_WAIT_2 and tcb.flags & Flag.ORPHAN == 0


@inline_kernel
def unpledged(account: Account) -> int:
    """Buffers that nobody was pledged, of an account; may be less than none."""
    return account.available - account.reserve - account.pledged


@inline_kernel
def pressure(account: Account) -> bool:
    """True while more than half of a pool's buffers are held or pledged."""
    return 2 * unpledged(account) < account.total


@kernel
def room(stack: StackRecord, tcb: Tcb) -> int:
    """Buffers that a connection may have beyond those it was pledged: what is left of its share."""
    account = account_of(stack, tcb)
    free = unpledged(account)
    held = tcb.pledged + tcb.rq_bufs + tcb.oq_bufs
    more = (free - held) >> 1
    with_user = (USER_SHARE * free - held - tcb.user) // (USER_SHARE + 1)
    return max(min(more, with_user), 0)


@kernel
def pledge(stack: StackRecord, tcb: Tcb, wanted: int) -> None:
    """Pledge ``wanted`` buffers to a connection, or as many of them as it may have."""
    more = wanted - tcb.pledged
    if more > 0:
        more = min(more, room(stack, tcb))
    if more != 0:
        tcb.pledged += more
        account_of(stack, tcb).pledged += more


@inline_kernel
def least(tcb: Tcb) -> int:
    """Bytes of window that even an idle connection can have: four segments, so that it gets started."""
    return 4 * tcb.adv_mss


@inline_kernel
def enough(tcb: Tcb) -> int:
    """Bytes of window with which a connection gets on: its peer can send a whole segment."""
    return min(tcb.rcv_buf >> 1, tcb.rcv_mss)


@kernel
def demand_start(stack: StackRecord, tcb: Tcb) -> None:
    """What a new connection's window may be: ten segments (RFC 6928) at least."""
    account = account_of(stack, tcb)
    part = account.total // START_PART * tcb.per_buffer
    tcb.demand = max(min(min(part, DEMAND_START), tcb.rcv_buf), 10 * tcb.adv_mss)


@kernel
def note_starved(stack: StackRecord, tcb: Tcb) -> None:
    """Note whether a connection waits for room in the pool: it has no window, and nothing to give back."""
    left = seq_diff(tcb.rcv_adv, tcb.rcv_nxt)
    space = min(tcb.rcv_buf - tcb.oq_bytes, tcb.demand) - tcb.rq_bytes
    holds = tcb.rq_bufs + tcb.user
    starved = receives(tcb) and left < enough(tcb) <= space and holds == 0
    if starved != (tcb.flags & Flag.STARVED != 0):
        tcb.flags ^= Flag.STARVED
        stack.starved += 1 if starved else -1


@kernel
def wanted(stack: StackRecord, tcb: Tcb) -> int:
    """Buffers that the open part of a connection's window asks for, as far as it makes use of it."""
    if not receives(tcb):
        return 0
    left = seq_diff(tcb.rcv_adv, tcb.rcv_nxt)
    if tcb.flags & Flag.FIN_SEEN:
        left = min(left, seq_diff(tcb.fin_seq, tcb.rcv_nxt))
    left = max(min(left, tcb.demand), 0)
    buffers = (left + tcb.per_buffer - 1) // tcb.per_buffer
    if tcb.demand <= least(tcb):
        buffers = min(buffers, account_of(stack, tcb).grant)
    return buffers


@kernel
def pledge_anew(stack: StackRecord, tcb: Tcb) -> None:
    """Bring a connection's pledge to what its window and its state ask for."""
    pledge(stack, tcb, wanted(stack, tcb))


@kernel
def measure(tcb: Tcb, account: Account) -> None:
    """What a buffer holds: of those that were taken since the last time, and half of those before."""
    length = (tcb.bytes_in - tcb.took_from) & MASK32
    tcb.per_buffer = max(min(length // tcb.took_buffers, account.buf_len), tcb.per_segment)
    tcb.took_from += length >> 1
    tcb.took_buffers >>= 1


@inline_kernel
def took(stack: StackRecord, tcb: Tcb) -> None:
    """The queue's pool gave a buffer to a connection: out of its pledge, as far as that goes."""
    account = account_of(stack, tcb)
    account.available -= 1
    paid = 1 if tcb.pledged > 0 else 0
    tcb.pledged -= paid
    account.pledged -= paid
    tcb.took_buffers += 1
    if tcb.took_buffers >= MEASURE:
        measure(tcb, account)


@kernel
def may_take(stack: StackRecord, tcb: Tcb, length: int) -> bool:
    """True when a connection may take one more buffer, for ``length`` bytes.

    One whose buffers hold next to nothing gets few, and none of the last quarter of the pool, but for the
    first: a short message comes through as long as an eighth is there.
    """
    account = account_of(stack, tcb)
    buffers = tcb.rq_bufs + tcb.oq_bufs + 1
    waste = buffers - (tcb.rq_bytes + tcb.oq_bytes + length) // tcb.per_segment
    if 2 * waste > buffers:
        free = unpledged(account)
        if buffers == 1:
            return tcb.pledged > 0 or free > account.total >> 3
        if waste << WASTE_SHIFT > free - (account.total >> 2):
            return False
    return tcb.pledged > 0 or room(stack, tcb) > 0


@inline_kernel
def use(stack: StackRecord, tcb: Tcb, length: int) -> None:
    """``length`` bytes of window were of use: who uses a quarter of what it is kept gets twice that."""
    tcb.used += length
    if HEADROOM * tcb.used >= tcb.demand:
        tcb.demand = min(2 * tcb.demand, max(tcb.rcv_buf, 2 * tcb.rcv_mss))
        tcb.used, tcb.used_at = 0, stack.now


@kernel
def came(stack: StackRecord, tcb: Tcb, length: int) -> None:
    """``length`` bytes came in sequence."""
    if not pressure(account_of(stack, tcb)):
        use(stack, tcb, length)
    pledge_anew(stack, tcb)


@kernel
def was_read(stack: StackRecord, tcb: Tcb, length: int) -> None:
    """The application took ``length`` bytes."""
    if pressure(account_of(stack, tcb)):
        use(stack, tcb, length)


@kernel
def offer(stack: StackRecord, tcb: Tcb) -> int:
    """The window in bytes that a connection can have now: its buffer, its demand, its share of the pool."""
    space = tcb.rcv_buf - tcb.rq_bytes - tcb.oq_bytes
    demand = tcb.demand
    if pressure(account_of(stack, tcb)):
        demand -= tcb.rq_bytes
    more = room(stack, tcb)
    if stack.starved > 0:  # enough to get started for as many as possible, before anybody gets more
        segments = (2 * tcb.rcv_mss + tcb.per_buffer - 1) // tcb.per_buffer
        equal = max(unpledged(account_of(stack, tcb)) // (stack.starved + 1), segments)
        more = min(more, max(equal - tcb.pledged, 0))
    return max(min(min(space, demand), (tcb.pledged + more) * tcb.per_buffer), 0)


@kernel
def select_window(stack: StackRecord, tcb: Tcb) -> int:
    """The window field to send now; notes the right edge, and pledges what it stands for.

    It is moved on by whole segments only (RFC 9293, 3.8.6.2.2), within what the connection's share of
    the pool can take.
    """
    left = max(seq_diff(tcb.rcv_adv, tcb.rcv_nxt), 0)
    limit = window = left
    if receives(tcb):
        limit = window = offer(stack, tcb)
        if window - left < enough(tcb):
            window = left
    scale = tcb.rcv_scale
    if window > left:
        field = min(window >> scale, 0xFFFF)
    else:
        # Rounded up, so that the edge does not move back; where there is no room for that, rounded down,
        # or a peer that sends a byte at a time would find a window for ever.
        field = min((left + (1 << scale) - 1) >> scale, 0xFFFF)
        if (field << scale) > limit:
            field = min(left >> scale, 0xFFFF)
    if (field << scale) > left:
        tcb.rcv_adv = (tcb.rcv_nxt + (field << scale)) & MASK32
    pledge_anew(stack, tcb)
    note_starved(stack, tcb)
    return field


@kernel
def window_update_due(stack: StackRecord, tcb: Tcb) -> bool:
    """True when telling the peer of the window now would open it well (RFC 9293, 3.8.6.2.2)."""
    if not receives(tcb):
        return False
    left = max(seq_diff(tcb.rcv_adv, tcb.rcv_nxt), 0)
    if tcb.flags & Flag.STARVED:
        return offer(stack, tcb) - left >= enough(tcb)
    return offer(stack, tcb) - left >= max(2 * tcb.rcv_mss, min(left, tcb.rcv_buf >> 1))


@kernel
def decay(stack: StackRecord, tcb: Tcb) -> None:
    """Who did not use a quarter of what it is kept for a while is kept four times what it used."""
    if stack.now - tcb.used_at >= IDLE_NS:
        tcb.demand = max(min(tcb.demand, HEADROOM * tcb.used), least(tcb))
        tcb.used, tcb.used_at = 0, stack.now
    if tcb.pledged > wanted(stack, tcb):
        pledge_anew(stack, tcb)


@kernel
def reclaim(stack: StackRecord) -> None:
    """There is not enough for all: connections give up what they do not use."""
    if stack.now < stack.reclaim_at:
        return
    stack.reclaim_at = stack.now + IDLE_NS // 8
    for c in range(stack.rows):
        tcb = tcb_of(stack, c)
        if tcb.pledged > 0:
            decay(stack, tcb)


@kernel
def trim(stack: StackRecord, queue: int) -> None:
    """A pool has less than was pledged, since others draw on its memory too: all give up in proportion."""
    account = stack.accounts[queue]
    have, total = max(account.available, 0), account.pledged
    if total <= have:
        return
    left = 0
    for c in range(stack.rows):
        tcb = tcb_of(stack, c)
        if tcb.pledged > 0 and tcb.queue == queue:
            tcb.pledged = tcb.pledged * have // total
            left += tcb.pledged
    account.pledged = left


@kernel
def pledged_by(stack: StackRecord, queue: int) -> int:
    """Buffers pledged to the connections of a queue, one by one; -1 when one has less than none."""
    total = 0
    for c in range(stack.rows):
        tcb = tcb_of(stack, c)
        if tcb.queue == queue:
            if tcb.pledged < 0:
                return -1
            total += tcb.pledged
    return total
