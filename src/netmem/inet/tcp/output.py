"""What TCP sends: acknowledgements, new data and lost data, window updates, and timers (kernels).

Headers go into the transmit slot of their row; payload, from the send buffer or from device memory, is
named by I/O address and never touched (``segment``).
"""

from __future__ import annotations

from netmem.base.arena import Words
from netmem.base.clock import FAR, MS
from netmem.base.headers import ACK, FIN, IP_MAX, PSH, IpHdr, TcpHdr
from netmem.base.jit import (
    inline_kernel,
    kernel,
)
from netmem.base.native import (
    memcpy,
)
from netmem.base.record import Word, address_of
from netmem.inet.tcp.recovery import schedule_probe
from netmem.inet.tcp.rtt import RTO_MAX, arm
from netmem.inet.tcp.scoreboard import pipe, tq_append, tq_merge, tq_split
from netmem.inet.tcp.segment import payload, tcp_header
from netmem.inet.tcp.spans import piece
from netmem.inet.tcp.tcb import (
    MASK32,
    TIMERS,
    Flag,
    Mark,
    StackRecord,
    Tcb,
    TcpState,
    sent_of,
    seq_diff,
    seq_lt,
    tcb_of,
)
from netmem.inet.tcp.window import reclaim, window_update_due
from netmem.netdev.tx import TxQueueRecord

INITIAL_WINDOW = 10  # segments (RFC 6928)


@kernel
def can_send(state: int) -> bool:
    """True in states in which data (or its retransmission) may go out."""
    return (
        state == TcpState.ESTABLISHED
        or state == TcpState.CLOSE_WAIT
        or state == TcpState.FIN_WAIT_1
        or state == TcpState.CLOSING
        or state == TcpState.LAST_ACK
    )


@kernel
def start_timer(stack: StackRecord, tcb: Tcb) -> None:
    """Start the retransmission timer if it is not running (RFC 6298, 5.1); the user timeout bounds it."""
    if tcb.timers.rto == 0:
        tcb.timers.rto = stack.now + min(tcb.rto << min(tcb.backoff, 8), RTO_MAX)
        if tcb.user_timeout > 0:
            tcb.timers.rto = max(min(tcb.timers.rto, tcb.stuck_at + tcb.user_timeout), stack.now + MS)
        arm(stack, tcb.timers.rto)


@inline_kernel
def longest(tcb: Tcb) -> int:
    """Most payload bytes of one transmit row: whole segments that an IP packet's length can say."""
    return (IP_MAX - IpHdr.LEN - TcpHdr.LEN - 12) // tcb.mss * tcb.mss


@kernel
def tcp_resend(stack: StackRecord, tcb: Tcb, i: int, length: int) -> int:
    """Send the first ``length`` sequence numbers of entry ``i`` again. The row, or -1."""
    data = length - (1 if sent_of(stack, i).marks & Mark.FIN and length == sent_of(stack, i).len else 0)
    offset = tcb.sb_head + seq_diff(sent_of(stack, i).seq, tcb.snd_una)
    fits = piece(stack, tcb, offset, data) if data > 0 else 0
    if fits < data:
        length = data = fits
    if length < sent_of(stack, i).len and not tq_split(stack, tcb, i, length):
        return -1
    fin = FIN if sent_of(stack, i).marks & Mark.FIN else 0
    r = tcp_header(stack, tcb, sent_of(stack, i).seq, ACK | fin | (PSH if data > 0 else 0), data)
    if r >= 0:
        if data > 0:
            payload(stack, tcb, r, offset, data)
        if sent_of(stack, i).marks & Mark.LOST and sent_of(stack, i).marks & Mark.RETRANS == 0:
            tcb.retrans += sent_of(stack, i).len
            sent_of(stack, i).marks |= Mark.RETRANS
        sent_of(stack, i).marks |= Mark.EVER
        sent_of(stack, i).time = stack.now
        stack.counters.retrans += 1
        start_timer(stack, tcb)
    return r


@kernel
def send_lost(stack: StackRecord, tcb: Tcb) -> int:
    """What was lost goes first, as far as the congestion window allows (RFC 6675, 4, NextSeg). Rows or -1."""
    used = 0
    i = tcb.tq_head
    while i != 0 and tcb.lost > tcb.retrans:
        if sent_of(stack, i).marks & (Mark.LOST | Mark.RETRANS) == Mark.LOST:
            room = tcb.cwnd - pipe(tcb)
            if room <= 0 and tcb.retrans > 0:
                break  # the first goes out whatever is in the network (RFC 6675, 5, step 4.3)
            room = min(max(room // tcb.mss, 1) * tcb.mss, longest(tcb))
            if sent_of(stack, i).len < room:
                tq_merge(stack, tcb, i, room)
            if tcp_resend(stack, tcb, i, min(sent_of(stack, i).len, room)) < 0:
                return -1
            used += 1
        i = sent_of(stack, i).next
    return used


@kernel
def send_new(stack: StackRecord, tcb: Tcb, force: int) -> int:
    """Send what windows allow, and the FIN behind the last byte; rows used, or -1 when none are left."""
    mss, big, used = tcb.mss, longest(tcb), 0
    while True:
        flight = seq_diff(tcb.snd_nxt, tcb.snd_una)
        unsent = tcb.sb_tail - tcb.sb_head - flight
        if tcb.flags & Flag.FIN_SENT:
            unsent = 0
        room = tcb.cwnd - pipe(tcb)
        window = min(tcb.snd_wnd - flight, room)
        length = min(min(unsent, window), big)
        if unsent > 0:
            if (room <= mss and tcb.cwnd < tcb.snd_wnd) or (length < unsent and room < unsent):
                tcb.flags |= Flag.LIMITED
            else:
                tcb.flags &= ~Flag.LIMITED
        length = piece(stack, tcb, tcb.sb_head + flight, length) if length > 0 else length
        fin = 0
        if tcb.flags & (Flag.FIN_QUEUED | Flag.FIN_SENT) == Flag.FIN_QUEUED and length == unsent >= 0:
            if window >= length:
                fin = FIN
        if length <= 0 and fin == 0:
            break
        if length > mss and length < unsent:
            length -= length % mss  # whole segments, while there is more
        if fin == 0 and length < mss:
            # Sender's silly window avoidance and Nagle (RFC 9293, 3.8.6.2.1; RFC 896), which holds
            # a short segment back only while another short one is not acknowledged.
            free = tcb.flags & Flag.NODELAY or not seq_lt(tcb.snd_una, tcb.snd_sml)
            all_of_it = length == unsent and (flight == 0 or free)
            cut = tcb.sp_head != 0 and length < min(unsent, window)
            if not all_of_it and not cut and not force and length < tcb.max_snd_wnd >> 1:
                break
        if stack.free_entries == 0:
            return -1
        flags = ACK | fin | (PSH if length == unsent and length > 0 else 0)
        r = tcp_header(stack, tcb, tcb.snd_nxt, flags, length)
        if r < 0:
            return -1
        if length > 0:
            payload(stack, tcb, r, tcb.sb_head + flight, length)
        if flight == 0:
            if stack.now - tcb.stuck_at > tcb.rto:  # idle: start anew (RFC 5681, 4.1)
                tcb.cwnd = min(tcb.cwnd, INITIAL_WINDOW * mss)
                tcb.cubic_epoch = 0
            tcb.stuck_at = stack.now
        numbers = length + (1 if fin else 0)
        tq_append(stack, tcb, tcb.snd_nxt, numbers, Mark.FIN if fin else 0)
        tcb.snd_nxt = (tcb.snd_nxt + numbers) & MASK32
        tcb.bytes_out += length
        if length % mss != 0:
            tcb.snd_sml = tcb.snd_nxt
        if fin:
            tcb.flags |= Flag.FIN_SENT
        start_timer(stack, tcb)
        tcb.timers.persist = 0
        used += 1
    if used > 0:
        schedule_probe(stack, tcb)
    return used


@kernel
def tcp_output(stack: StackRecord, tcb: Tcb, force: int) -> int:
    """Send what was lost, what windows allow, the FIN behind the last byte, or an acknowledgement due.

    ``force`` sends a part of a segment that silly window avoidance would hold back. Returns rows
    used, or -1 when rows or entries ran out and it has to be called again.
    """
    used = 0
    if can_send(tcb.state) and tcb.flags & Flag.ABORTED == 0:
        if tcb.lost > tcb.retrans:
            used = send_lost(stack, tcb)
            if used < 0:
                return -1
        rows = send_new(stack, tcb, force)
        if rows < 0:
            return -1
        used += rows
        unsent = tcb.sb_tail - tcb.sb_head
        if tcb.snd_nxt == tcb.snd_una and unsent > 0 and tcb.timers.persist == 0:
            # Nothing in flight, something to send: only the peer's window holds it back.
            if tcb.backoff == 0:
                tcb.stuck_at = stack.now
            tcb.timers.persist = stack.now + min(tcb.rto << min(tcb.backoff, 8), RTO_MAX)
            arm(stack, tcb.timers.persist)
    if tcb.flags & Flag.ACK_NOW:
        if tcp_ack(stack, tcb) < 0:
            return -1
        used += 1
    return used


@kernel
def tcp_ack(stack: StackRecord, tcb: Tcb) -> int:
    """A bare acknowledgement."""
    r = tcp_header(stack, tcb, tcb.snd_nxt, ACK, 0)
    if r >= 0:
        stack.counters.out_acks += 1
    else:
        tcb.flags |= Flag.ACK_NOW
        tcb.timers.delack = stack.now + MS
        arm(stack, tcb.timers.delack)
    return r


@kernel
def loss_probe(stack: StackRecord, tcb: Tcb) -> None:
    """RFC 8985, 7.3: one segment of new data, or the last one again, to provoke an acknowledgement."""
    flight = seq_diff(tcb.snd_nxt, tcb.snd_una)
    if flight <= 0 or tcb.flags & (Flag.RECOVERY | Flag.LOSS):
        return
    stack.counters.loss_probes += 1
    unsent = tcb.sb_tail - tcb.sb_head - flight
    before = tcb.snd_nxt
    if unsent > 0 and tcb.flags & Flag.FIN_SENT == 0 and tcb.snd_wnd > flight:
        cwnd = tcb.cwnd
        tcb.cwnd = pipe(tcb) + min(min(tcb.mss, unsent), tcb.snd_wnd - flight)
        tcb.tlp_end = 0  # no further probe is armed
        tcp_output(stack, tcb, True)
        tcb.cwnd = cwnd
        tcb.flags &= ~Flag.TLP_RETRANS
    if tcb.snd_nxt == before:
        i = tcb.tq_tail
        over = sent_of(stack, i).len - tcb.mss
        if over > 0 and tq_split(stack, tcb, i, over):
            i = sent_of(stack, i).next
        if sent_of(stack, i).marks & Mark.SACKED == 0:
            tcp_resend(stack, tcb, i, sent_of(stack, i).len)
        tcb.flags |= Flag.TLP_RETRANS
    tcb.tlp_end = tcb.snd_nxt
    tcb.timers.rto = 0
    start_timer(stack, tcb)


@kernel
def tcp_probe(stack: StackRecord, tcb: Tcb) -> int:
    """A window or keepalive probe: an old sequence number without data, which must be answered."""
    stack.counters.probes += 1
    return tcp_header(stack, tcb, (tcb.snd_una - 1) & MASK32, ACK, 0)


@kernel
def tcp_flush(stack: StackRecord) -> None:
    """Output for every connection that the batch touched; those that find no row try again soon."""
    for n in range(stack.touched):
        tcb = tcb_of(stack, Word.nth(stack.touched_list, n).value)
        if tcb.state >= TcpState.ESTABLISHED and tcp_output(stack, tcb, False) < 0:
            tcb.timers.xmit = stack.now + MS
            arm(stack, tcb.timers.xmit)
    stack.touched = 0


@kernel
def window_updates(stack: StackRecord) -> int:
    """Tell starved peers that the pool has room again, in turn; how many were told."""
    reclaim(stack)
    told, rows, first = 0, stack.rows, stack.turn
    for n in range(rows):
        c = (first + n) % rows
        tcb = tcb_of(stack, c)
        if tcb.flags & Flag.STARVED and window_update_due(stack, tcb):
            if tcp_ack(stack, tcb) < 0:
                break
            stack.counters.window_updates += 1
            stack.turn = c + 1
            told += 1
    return told


@inline_kernel
def send_buffer_unused(stack: StackRecord, tcb: Tcb) -> bool:
    """True when a send buffer holds nothing, no transmit row names it, and nobody is about to fill it."""
    if tcb.sb_head != tcb.sb_tail or tcb.flags & Flag.FILLING:
        return False
    return tcb.sb_mark <= TxQueueRecord.at(stack.tx).completed


@kernel
def write_send_buffer(stack: StackRecord, tcb: Tcb, src: int, length: int) -> int:
    """Copy bytes of the application into the send buffer; how many had room."""
    room = tcb.sb_size - (tcb.sb_tail - tcb.sb_head)
    length = min(length, room)
    if length > 0:
        buffer = TxQueueRecord.at(stack.tx).host + tcb.sb_offset
        at = tcb.sb_tail % tcb.sb_size
        first = min(length, tcb.sb_size - at)
        memcpy(buffer + at, src, first)
        if length > first:
            memcpy(buffer, src + first, length - first)
        tcb.sb_tail += length
    return length


@kernel
def tcp_timers(stack: StackRecord, out: Words) -> int:
    """Blocks with a timer that has run out, into ``out``; works out when the next one does."""
    now, soonest, n = stack.now, FAR, 0
    for c in range(stack.rows):
        tcb = tcb_of(stack, c)
        if tcb.state == TcpState.CLOSED:
            continue
        due = False
        timers = address_of(tcb.timers)
        for k in range(TIMERS):
            at = Word.nth(timers, k).value
            if at != 0:
                if at <= now:
                    due = True
                elif at < soonest:
                    soonest = at
        if due and n < out.shape[0]:
            out[n] = c
            n += 1
    stack.timer = soonest if n < out.shape[0] else now
    return n
