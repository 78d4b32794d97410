"""What acknowledgements say of what is in flight: what arrived, and what was lost (kernels).

RFC 2018 and 2883 (SACK, D-SACK), 6675 (recovery), 8985 (RACK-TLP, which decides what is lost; RFC 6675's
DupThresh is its first step).
"""

from __future__ import annotations

from netmem.base.clock import MS
from netmem.base.jit import kernel
from netmem.base.native import load_be32
from netmem.inet.tcp.cubic import cubic_grow, cubic_reduce
from netmem.inet.tcp.entries import entry_free
from netmem.inet.tcp.rtt import arm, update_rtt
from netmem.inet.tcp.scoreboard import mark_lost, tq_forget, tq_split
from netmem.inet.tcp.spans import spans_acked
from netmem.inet.tcp.tcb import MASK32, Flag, Mark, Sent, StackRecord, Tcb, sent_of, seq_diff, seq_le, seq_lt

PTO_MIN = 2 * MS
ACK_DELAY = 200 * MS  # the longest that a peer may delay an acknowledgement (RFC 8985, 7.2)
DUP_THRESH = 3


@kernel
def rack_arrived(stack: StackRecord, tcb: Tcb, sent: Sent, end: int, echo: int) -> int:
    """RFC 8985, 6.2, steps 1 to 3, for a segment that arrived; its round trip in ns, or -1.

    ``echo``: the TSecr that came with the news, -1 without.
    """
    rtt = stack.now - sent.time
    if sent.marks & Mark.EVER:
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
    if sent.time > tcb.rack_time or (sent.time == tcb.rack_time and seq_lt(tcb.rack_end, end)):
        tcb.rack_time, tcb.rack_end, tcb.rack_rtt = sent.time, end, rtt
    return -1 if sent.marks & Mark.EVER else rtt


@kernel
def rack_window(tcb: Tcb) -> int:
    """How long a segment may be overtaken before it counts as lost, ns (RFC 8985, 6.2, step 4)."""
    if tcb.flags & Flag.REORDERED == 0:
        if tcb.flags & (Flag.RECOVERY | Flag.LOSS) or tcb.sacked >= DUP_THRESH * tcb.mss:
            return 0
    return min(tcb.rack_mult * tcb.min_rtt // 4, tcb.srtt)


@kernel
def rack_detect(stack: StackRecord, tcb: Tcb) -> bool:
    """RFC 8985, 6.2, step 5: mark what is lost; arms the reordering timer. True when some was marked."""
    tcb.timers.reo = 0
    if tcb.rack_time == 0:
        return False
    window, wait, found = rack_window(tcb), 0, False
    i = tcb.tq_head
    while i != 0:
        sent = sent_of(stack, i)
        if sent.marks & Mark.SACKED == 0 and sent.marks & (Mark.LOST | Mark.RETRANS) != Mark.LOST:
            end = (sent.seq + sent.len) & MASK32
            if sent.time < tcb.rack_time or (sent.time == tcb.rack_time and seq_lt(end, tcb.rack_end)):
                left = sent.time + tcb.rack_rtt + window - stack.now
                if left <= 0:
                    mark_lost(tcb, sent)
                    stack.counters.loss_rack += 1
                    found = True
                else:
                    wait = max(wait, left)
        i = sent.next
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


@kernel
def advance_una(stack: StackRecord, tcb: Tcb, ack: int, echo: int) -> None:
    """New data was acknowledged: forget it, measure, grow the congestion window, restart timers."""
    acked = seq_diff(ack, tcb.snd_una)
    rtt = -1
    i = tcb.tq_head
    while i != 0 and seq_lt(sent_of(stack, i).seq, ack):
        sent = sent_of(stack, i)
        length = min(seq_diff(ack, sent.seq), sent.len)
        tq_forget(tcb, sent, length)
        if sent.marks & Mark.SACKED == 0:
            measured = rack_arrived(stack, tcb, sent, (sent.seq + length) & MASK32, echo)
            if measured >= 0:
                rtt = measured
        if length < sent.len:
            sent.seq, sent.len = ack, sent.len - length
            break
        following = sent.next
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
        sent = sent_of(stack, i)
        end = (sent.seq + sent.len) & MASK32
        if sent.marks & Mark.SACKED == 0 and seq_lt(left, end):
            # Segments arrive whole: a block that cuts one counts for those within it only, or a peer
            # could make us keep an entry for every byte.
            mss = tcb.mss
            if seq_lt(sent.seq, left):
                cut = (seq_diff(left, sent.seq) + mss - 1) // mss * mss
                if cut < sent.len and not tq_split(stack, tcb, i, cut):
                    return
                i = sent.next
                continue
            if seq_lt(right, end):
                cut = seq_diff(right, sent.seq) // mss * mss
                if cut == 0 or not tq_split(stack, tcb, i, cut):
                    return
            tq_forget(tcb, sent, sent.len)
            rack_arrived(stack, tcb, sent, (sent.seq + sent.len) & MASK32, echo)
            sent.marks = (sent.marks | Mark.SACKED) & ~(Mark.LOST | Mark.RETRANS)
            tcb.sacked += sent.len
        i = sent.next


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
def after_ack(stack: StackRecord, tcb: Tcb, ack: int, advanced: bool, duplicate: bool) -> None:
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
def reno_detect(stack: StackRecord, tcb: Tcb, advanced: bool) -> bool:
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
    mark_lost(tcb, sent_of(stack, i))
    return True


@kernel
def timed_out(stack: StackRecord, tcb: Tcb) -> None:
    """A retransmission timeout: all that is not known to have arrived is lost (RFC 6298, 5; 5681, 3.1)."""
    i = tcb.tq_head
    renege = i != 0 and sent_of(stack, i).marks & Mark.SACKED != 0  # it was dropped after all (RFC 2018, 8)
    while i != 0:
        sent = sent_of(stack, i)
        if renege and sent.marks & Mark.SACKED:
            sent.marks &= ~Mark.SACKED
            tcb.sacked -= sent.len
        if sent.marks & Mark.SACKED == 0:
            mark_lost(tcb, sent)
        i = sent.next
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
        sent = sent_of(stack, i)
        if sent.marks & Mark.SACKED == 0:
            mark_lost(tcb, sent)
        i = sent.next
