"""The sender's picture of the network: what is in flight, what was lost, how fast to go (kernels).

RFC 6298 (round trips), 9438 (CUBIC), 2018 and 2883 (SACK, D-SACK), 6675 (Pipe, recovery), 8985
(RACK-TLP, which decides what is lost; RFC 6675's DupThresh is its first step). What is in flight is a
chain of entries in sequence order, one for each transmit row, split where a SACK block ends in one.
"""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load_be32
from netmem.inet.tcp.entries import entry_free, entry_take
from netmem.inet.tcp.spans import spans_acked
from netmem.inet.tcp.tcb import MASK32, Flag, Mark, StackRecord, Tcb, sent_of, seq_diff, seq_le, seq_lt

MS = 1_000_000
RTO_MIN = 200 * MS
RTO_MAX = 60_000 * MS
PTO_MIN = 2 * MS
ACK_DELAY = 200 * MS  # the longest that a peer may delay an acknowledgement (RFC 8985, 7.2)
DUP_THRESH = 3
CWND_MAX = 1 << 30
BETA, CUBIC_C = 0.7, 0.4  # RFC 9438, 4.6 and 5
ALPHA = 3 * (1 - BETA) / (1 + BETA)


@kernel
def arm(stack: StackRecord, at: int) -> None:
    """Remember that a timer runs out at ``at``."""
    if at < stack.timer:
        stack.timer = at


# -- round trips and the congestion window ------------------------------------------------------


@kernel
def update_rtt(tcb: Tcb, rtt: int) -> None:
    """RFC 6298, section 2: smooth a measured round trip of ``rtt`` ns, and set the timeout."""
    if rtt > RTO_MAX:
        return
    if tcb.srtt == 0:
        tcb.srtt, tcb.rttvar = max(rtt, 1), rtt // 2
    else:
        tcb.rttvar += (abs(tcb.srtt - rtt) - tcb.rttvar) // 4
        tcb.srtt = max(1, tcb.srtt + (rtt - tcb.srtt) // 8)
    tcb.rto = min(max(tcb.srtt + max(4 * tcb.rttvar, MS), RTO_MIN), RTO_MAX)


@kernel
def cubic_grow(stack: StackRecord, tcb: Tcb, acked: int) -> None:
    """New data was acknowledged: slow start, or RFC 9438, section 4."""
    cwnd, mss = tcb.cwnd, tcb.mss
    if cwnd < tcb.ssthresh:
        tcb.cwnd = min(cwnd + acked, CWND_MAX)
        return
    if tcb.cubic_epoch == 0:
        tcb.cubic_epoch, tcb.cubic_west = stack.now, cwnd
        if cwnd < tcb.cubic_wmax:
            segments = (tcb.cubic_wmax - cwnd) / mss
            tcb.cubic_k = int((segments / CUBIC_C) ** (1 / 3) * 1e9)
        else:
            tcb.cubic_k, tcb.cubic_wmax = 0, cwnd
    since = (stack.now - tcb.cubic_epoch - tcb.cubic_k) / 1e9
    now = CUBIC_C * since * since * since * mss + tcb.cubic_wmax
    then = since + tcb.srtt / 1e9
    target = CUBIC_C * then * then * then * mss + tcb.cubic_wmax
    alpha = 1.0 if tcb.cubic_west >= tcb.cubic_wmax else ALPHA
    tcb.cubic_west += max(1, int(alpha * mss * acked / cwnd))
    if now < tcb.cubic_west:  # as friendly to Reno as Reno (4.3)
        cwnd = max(cwnd, tcb.cubic_west)
    else:
        target = min(max(target, float(cwnd)), 1.5 * cwnd)
        cwnd += int((target - cwnd) * acked / cwnd)
    tcb.cwnd = min(cwnd, CWND_MAX)


@kernel
def cubic_reduce(tcb: Tcb) -> None:
    """A loss: RFC 9438, sections 4.6 and 4.7. Sets SSTHRESH."""
    flight = seq_diff(tcb.snd_nxt, tcb.snd_una)
    cwnd = min(tcb.cwnd, max(flight, 2 * tcb.mss))
    tcb.cubic_wmax = int(cwnd * (1 + BETA) / 2) if cwnd < tcb.cubic_wmax else cwnd
    tcb.cubic_epoch = 0
    tcb.ssthresh = max(int(cwnd * BETA), 2 * tcb.mss)


# -- the chain of what is in flight -------------------------------------------------------------


@inline_kernel
def pipe(tcb: Tcb) -> int:
    """Bytes that are in the network, as far as one can tell (RFC 6675, section 4)."""
    bytes_ = seq_diff(tcb.snd_nxt, tcb.snd_una) - tcb.sacked - tcb.lost + tcb.retrans
    if tcb.flags & Flag.SACK == 0:
        bytes_ -= tcb.dupacks * tcb.mss
    return max(bytes_, 0)


@inline_kernel
def tq_new(stack: StackRecord, seq: int, length: int, state: int) -> int:
    """An entry of what is in flight, 0 when there is none left."""
    i = entry_take(stack, seq, length)
    if i == 0:
        return 0
    sent_of(stack, i).time, sent_of(stack, i).marks = stack.now, state
    return i


@inline_kernel
def tq_append(stack: StackRecord, tcb: Tcb, seq: int, length: int, state: int) -> None:
    """Note that ``length`` sequence numbers were sent for the first time."""
    i = tq_new(stack, seq, length, state)
    if tcb.tq_tail != 0:
        sent_of(stack, tcb.tq_tail).next = i
    else:
        tcb.tq_head = i
    tcb.tq_tail = i


@kernel
def tq_split(stack: StackRecord, tcb: Tcb, i: int, length: int) -> bool:
    """Cut entry ``i`` after ``length`` sequence numbers. False: there is no entry left for the rest."""
    rest = tq_new(stack, (sent_of(stack, i).seq + length) & MASK32, sent_of(stack, i).len - length, sent_of(stack, i).marks)
    if rest == 0:
        return False
    sent_of(stack, rest).time = sent_of(stack, i).time
    sent_of(stack, rest).next = sent_of(stack, i).next
    sent_of(stack, i).next = rest
    sent_of(stack, i).len = length
    sent_of(stack, i).marks &= ~Mark.FIN
    if tcb.tq_tail == i:
        tcb.tq_tail = rest
    return True


@kernel
def tq_merge(stack: StackRecord, tcb: Tcb, i: int, limit: int) -> None:
    """Make one entry of ``i`` and lost ones behind it, up to ``limit``: small segments go together."""
    while True:
        j = sent_of(stack, i).next
        if j == 0 or sent_of(stack, i).len + sent_of(stack, j).len > limit or sent_of(stack, i).marks & Mark.FIN:
            return
        if sent_of(stack, j).marks & (Mark.LOST | Mark.RETRANS) != Mark.LOST:
            return
        sent_of(stack, i).len += sent_of(stack, j).len
        sent_of(stack, i).marks |= sent_of(stack, j).marks
        sent_of(stack, i).next = sent_of(stack, j).next
        if tcb.tq_tail == j:
            tcb.tq_tail = i
        entry_free(stack, j)


@inline_kernel
def tq_forget(stack: StackRecord, tcb: Tcb, i: int, length: int) -> None:
    """``length`` bytes of entry ``i`` have arrived: they are neither lost nor sent again any more."""
    state = sent_of(stack, i).marks
    if state & Mark.SACKED:
        tcb.sacked -= length
    if state & Mark.LOST:
        tcb.lost -= length
    if state & Mark.RETRANS:
        tcb.retrans -= length


@kernel
def tq_clear(stack: StackRecord, tcb: Tcb) -> None:
    """Forget all that is in flight: the connection is over."""
    i = tcb.tq_head
    while i != 0:
        following = sent_of(stack, i).next
        entry_free(stack, i)
        i = following
    tcb.tq_head = tcb.tq_tail = tcb.sacked = tcb.lost = tcb.retrans = 0


@inline_kernel
def mark_lost(stack: StackRecord, tcb: Tcb, i: int) -> None:
    """Take entry ``i``, or what was sent again of it, for lost."""
    if sent_of(stack, i).marks & Mark.RETRANS:
        tcb.retrans -= sent_of(stack, i).len
        sent_of(stack, i).marks &= ~Mark.RETRANS
    elif sent_of(stack, i).marks & Mark.LOST == 0:
        tcb.lost += sent_of(stack, i).len
        sent_of(stack, i).marks |= Mark.LOST


# -- RACK ---------------------------------------------------------------------------------------


@kernel
def rack_arrived(stack: StackRecord, tcb: Tcb, sent: int, end: int, state: int, echo: int) -> int:
    """RFC 8985, 6.2, steps 1 to 3, for a segment that arrived; its round trip in ns, or -1.

    ``echo``: the TSecr that came with the news, -1 without.
    """
    rtt = stack.now - sent
    if state & Mark.EVER:
        # Which of two transmissions arrived? An older echo, or too short a round trip: the first.
        if echo >= 0:
            age = ((stack.now // MS + stack.ts_base - echo) & MASK32) * MS
            if age > rtt + MS:
                return -1
        elif rtt < tcb.min_rtt:
            return -1
    elif tcb.rack_time != 0 and seq_lt(end, tcb.rack_fack):
        tcb.flags |= Flag.REORDERED
    if tcb.min_rtt == 0 or rtt < tcb.min_rtt:
        tcb.min_rtt = max(rtt, 1)
    if tcb.rack_time == 0 or seq_lt(tcb.rack_fack, end):
        tcb.rack_fack = end
    if sent > tcb.rack_time or (sent == tcb.rack_time and seq_lt(tcb.rack_end, end)):
        tcb.rack_time, tcb.rack_end, tcb.rack_rtt = sent, end, rtt
    return -1 if state & Mark.EVER else rtt


@kernel
def rack_window(tcb: Tcb) -> int:
    """How long a segment may be overtaken before it counts as lost, ns (RFC 8985, 6.2, step 4)."""
    if tcb.flags & Flag.REORDERED == 0:
        if tcb.flags & (Flag.RECOVERY | Flag.LOSS) or tcb.sacked >= DUP_THRESH * tcb.mss:
            return 0
    return min(tcb.rack_mult * tcb.min_rtt // 4, tcb.srtt)


@kernel
def rack_detect(stack: StackRecord, tcb: Tcb) -> int:
    """RFC 8985, 6.2, step 5: mark what is lost; arms the reordering timer. True when some was marked."""
    tcb.timers.reo = 0
    if tcb.rack_time == 0:
        return False
    window, wait, found = rack_window(tcb), 0, False
    i = tcb.tq_head
    while i != 0:
        state = sent_of(stack, i).marks
        if state & Mark.SACKED == 0 and state & (Mark.LOST | Mark.RETRANS) != Mark.LOST:
            sent, end = sent_of(stack, i).time, (sent_of(stack, i).seq + sent_of(stack, i).len) & MASK32
            if sent < tcb.rack_time or (sent == tcb.rack_time and seq_lt(end, tcb.rack_end)):
                left = sent + tcb.rack_rtt + window - stack.now
                if left <= 0:
                    mark_lost(stack, tcb, i)
                    stack.counters.loss_rack += 1
                    found = True
                else:
                    wait = max(wait, left)
        i = sent_of(stack, i).next
    if wait > 0:
        tcb.timers.reo = stack.now + max(wait, MS // 4)
        arm(stack, tcb.timers.reo)
    return found


@kernel
def schedule_probe(stack: StackRecord, tcb: Tcb) -> None:
    """Arm the tail loss probe's timer (RFC 8985, 7.2), where it would come before the timeout."""
    tcb.timers.pto = 0
    flight = seq_diff(tcb.snd_nxt, tcb.snd_una)
    if flight <= 0 or tcb.flags & Flag.SACK == 0 or tcb.flags & (Flag.RECOVERY | Flag.LOSS):
        return
    if tcb.tlp_end >= 0 or tcb.srtt == 0:
        return
    wait = max(2 * tcb.srtt, PTO_MIN)
    if flight <= tcb.mss:
        wait += ACK_DELAY
    if tcb.timers.rto == 0 or stack.now + wait < tcb.timers.rto:
        tcb.timers.pto = stack.now + wait
        arm(stack, tcb.timers.pto)


# -- acknowledgements ---------------------------------------------------------------------------


@kernel
def advance_una(stack: StackRecord, tcb: Tcb, ack: int, echo: int) -> None:
    """New data was acknowledged: forget it, measure, grow the congestion window, restart timers."""
    acked = seq_diff(ack, tcb.snd_una)
    rtt = -1
    i = tcb.tq_head
    while i != 0 and seq_lt(sent_of(stack, i).seq, ack):
        length = min(seq_diff(ack, sent_of(stack, i).seq), sent_of(stack, i).len)
        tq_forget(stack, tcb, i, length)
        end = (sent_of(stack, i).seq + length) & MASK32
        if sent_of(stack, i).marks & Mark.SACKED == 0:
            measured = rack_arrived(stack, tcb, sent_of(stack, i).time, end, sent_of(stack, i).marks, echo)
            if measured >= 0:
                rtt = measured
        if length < sent_of(stack, i).len:
            sent_of(stack, i).seq, sent_of(stack, i).len = ack, sent_of(stack, i).len - length
            break
        following = sent_of(stack, i).next
        entry_free(stack, i)
        i = following
    tcb.tq_head = i
    if i == 0:
        tcb.tq_tail = 0
    if rtt >= 0:
        update_rtt(tcb, rtt)
    tcb.snd_una = ack
    tcb.sb_head = min(tcb.sb_head + acked, tcb.sb_tail)
    if tcb.sp_head != 0:
        spans_acked(stack, tcb, False)
    tcb.backoff = tcb.dupacks = tcb.user_retries = 0
    tcb.stuck_at = stack.now
    if tcb.flags & (Flag.RECOVERY | Flag.LOSS) == 0 and seq_lt(tcb.recover, ack):
        tcb.recover = ack  # stays near, so that comparing it goes on meaning something
    if tcb.flags & Flag.LIMITED == 0:
        tcb.cubic_epoch = 0  # time that the application did not use is no time to grow in (RFC 9438, 5.8)
    elif tcb.flags & Flag.RECOVERY == 0:
        cubic_grow(stack, tcb, acked)
    if i == 0:
        tcb.timers.rto = tcb.timers.pto = tcb.timers.reo = 0
    else:
        tcb.timers.rto = stack.now + tcb.rto
        arm(stack, tcb.timers.rto)
        schedule_probe(stack, tcb)


@kernel
def sack_mark(stack: StackRecord, tcb: Tcb, left: int, right: int, echo: int) -> None:
    """Mark what a SACK block says has arrived."""
    i = tcb.tq_head
    while i != 0 and seq_lt(sent_of(stack, i).seq, right):
        seq = sent_of(stack, i).seq
        end = (seq + sent_of(stack, i).len) & MASK32
        if sent_of(stack, i).marks & Mark.SACKED == 0 and seq_lt(left, end):
            # Segments arrive whole: a block that cuts one counts for those within it only, or a peer
            # could make us keep an entry for every byte.
            mss = tcb.mss
            if seq_lt(seq, left):
                cut = (seq_diff(left, seq) + mss - 1) // mss * mss
                if cut < sent_of(stack, i).len and not tq_split(stack, tcb, i, cut):
                    return
                i = sent_of(stack, i).next
                continue
            if seq_lt(right, end):
                cut = seq_diff(right, seq) // mss * mss
                if cut == 0 or not tq_split(stack, tcb, i, cut):
                    return
            tq_forget(stack, tcb, i, sent_of(stack, i).len)
            end = (seq + sent_of(stack, i).len) & MASK32
            rack_arrived(stack, tcb, sent_of(stack, i).time, end, sent_of(stack, i).marks, echo)
            sent_of(stack, i).marks = (sent_of(stack, i).marks | Mark.SACKED) & ~(Mark.LOST | Mark.RETRANS)
            tcb.sacked += sent_of(stack, i).len
        i = sent_of(stack, i).next


@kernel
def sack_in(stack: StackRecord, tcb: Tcb, option: int, size: int, ack: int, echo: int) -> bool:
    """A SACK option's blocks, after ``ack`` was taken in. True when the first reports a duplicate."""
    stack.counters.sack_in += 1
    duplicate = False
    blocks = (size - 2) // 8
    for n in range(blocks):
        left, right = load_be32(option + 2 + 8 * n), load_be32(option + 6 + 8 * n)
        if n == 0:
            inside = False
            if blocks > 1:
                inside = seq_le(load_be32(option + 10), left) and seq_le(right, load_be32(option + 14))
            if seq_le(right, ack) or inside:
                duplicate = True
                continue
        if seq_lt(left, right) and seq_le(tcb.snd_una, left) and seq_le(right, tcb.snd_nxt):
            sack_mark(stack, tcb, left, right, echo)
    if duplicate:
        stack.counters.dsack_in += 1
        if seq_le(tcb.rack_round, ack):  # once a round trip (RFC 8985, 6.2, step 4)
            tcb.rack_mult = min(tcb.rack_mult + 1, 64)
            tcb.rack_persist = 16
            tcb.rack_round = tcb.snd_nxt
    return duplicate


@kernel
def enter_recovery(stack: StackRecord, tcb: Tcb) -> None:
    """The first loss of a window: RFC 6675, section 5, step 4."""
    cubic_reduce(tcb)
    tcb.cwnd = tcb.ssthresh
    tcb.recover = tcb.snd_nxt
    tcb.flags |= Flag.RECOVERY
    tcb.timers.pto, tcb.tlp_end = 0, -1
    stack.counters.fast_retrans += 1


@kernel
def after_ack(stack: StackRecord, tcb: Tcb, ack: int, advanced: int, duplicate: int) -> None:
    """What an acknowledgement means for recovery: its end, new losses, the tail loss probe's outcome."""
    if tcb.flags & (Flag.RECOVERY | Flag.LOSS) and seq_le(tcb.recover, ack):
        tcb.flags &= ~(Flag.RECOVERY | Flag.LOSS)
        tcb.recover = ack
        if tcb.rack_persist > 0:
            tcb.rack_persist -= 1
            if tcb.rack_persist == 0:
                tcb.rack_mult = 1
        schedule_probe(stack, tcb)
    if tcb.tlp_end >= 0 and seq_le(tcb.tlp_end, ack):
        if tcb.flags & Flag.TLP_RETRANS and not duplicate:  # the probe mended a loss (RFC 8985, 7.4)
            cubic_reduce(tcb)
            tcb.cwnd = tcb.ssthresh
        tcb.tlp_end = -1
    if tcb.flags & Flag.SACK:
        lost = rack_detect(stack, tcb)
    else:
        lost = reno_detect(stack, tcb, advanced)
    if lost and tcb.flags & (Flag.RECOVERY | Flag.LOSS) == 0:
        enter_recovery(stack, tcb)


@kernel
def reno_detect(stack: StackRecord, tcb: Tcb, advanced: int) -> bool:
    """Without SACK: the third duplicate, and each partial acknowledgement, mean one loss (RFC 6582)."""
    i = tcb.tq_head
    recovering = tcb.flags & Flag.RECOVERY != 0
    due = tcb.dupacks == DUP_THRESH if not recovering else advanced
    if i == 0 or not due or sent_of(stack, i).marks & (Mark.LOST | Mark.RETRANS) == Mark.LOST:
        return False
    if not recovering and seq_lt(tcb.snd_una, tcb.recover):
        return False  # duplicates of what a timeout sent again (RFC 6582, 3.2, step 2)
    if sent_of(stack, i).len > tcb.mss and not tq_split(stack, tcb, i, tcb.mss):
        return False
    mark_lost(stack, tcb, i)
    return True


@kernel
def timed_out(stack: StackRecord, tcb: Tcb) -> None:
    """A retransmission timeout: all that is not known to have arrived is lost (RFC 6298, 5; 5681, 3.1)."""
    i = tcb.tq_head
    renege = i != 0 and sent_of(stack, i).marks & Mark.SACKED != 0  # it was dropped after all (RFC 2018, 8)
    while i != 0:
        if renege and sent_of(stack, i).marks & Mark.SACKED:
            sent_of(stack, i).marks &= ~Mark.SACKED
            tcb.sacked -= sent_of(stack, i).len
        if sent_of(stack, i).marks & Mark.SACKED == 0:
            mark_lost(stack, tcb, i)
        i = sent_of(stack, i).next
    if tcb.flags & Flag.LOSS == 0:
        cubic_reduce(tcb)
    tcb.cwnd = tcb.mss
    tcb.recover = tcb.snd_nxt
    tcb.dupacks = 0
    tcb.timers.pto = tcb.timers.reo = 0
    tcb.tlp_end = -1
    tcb.flags = (tcb.flags | Flag.LOSS | Flag.LIMITED) & ~Flag.RECOVERY


@kernel
def all_lost(stack: StackRecord, tcb: Tcb) -> None:
    """Send all that is in flight again, for a reason that is no congestion: it was too big for the path."""
    i = tcb.tq_head
    while i != 0:
        if sent_of(stack, i).marks & Mark.SACKED == 0:
            mark_lost(stack, tcb, i)
        i = sent_of(stack, i).next
