"""What TCP sends: acknowledgements, new data and lost data, window updates, and timers (kernels).

Headers go into the transmit slot of their row; payload, from the send buffer or from device memory, is
named by I/O address and never touched (``segment``).
"""

from __future__ import annotations

from netmem.base.formats import (
    ACK,
    FIN,
    IP_HLEN,
    PSH,
    TCP_HLEN,
)
from netmem.base.jit import (
    inline_kernel,
    kernel,
)
from netmem.base.native import (
    memcpy,
)
from netmem.inet.tcp.entries import entry_free, entry_take, until_sent
from netmem.inet.tcp.recovery import (
    MS,
    RTO_MAX,
    arm,
    pipe,
    schedule_probe,
    tq_append,
    tq_merge,
    tq_split,
)
from netmem.inet.tcp.segment import (
    IP_MAX,
    payload,
    piece,
    tcp_header,
)
from netmem.inet.tcp.tcb import (
    BACKOFF,
    BYTES_OUT,
    CF_ACK_NOW,
    CF_FIN_QUEUED,
    CF_FIN_SENT,
    CF_LIMITED,
    CF_LOSS,
    CF_NODELAY,
    CF_RECOVERY,
    CF_STARVED,
    CF_TLP_RETRANS,
    CLOSE_WAIT,
    CLOSING,
    CUBIC_EPOCH,
    CWND,
    DELACK_AT,
    E_LEN,
    E_NEXT,
    E_SEQ,
    ESTABLISHED,
    FIN_WAIT_1,
    FLAGS,
    G_COUNTERS,
    G_ECOUNT,
    G_NOW,
    G_ROWS,
    G_TIMER,
    G_TOUCHED,
    G_TOUCHED_AT,
    G_TURN,
    G_ZC_HEAD,
    G_ZC_TAIL,
    LAST_ACK,
    LAST_TIMER,
    LOST,
    MASK32,
    MAX_SND_WND,
    MSS,
    PERSIST_AT,
    RETRANS,
    RTO,
    RTO_AT,
    S_LOSS_PROBES,
    S_OUT_ACKS,
    S_PROBES,
    S_RETRANS,
    S_WINDOW_UPDATES,
    SB_HEAD,
    SB_HOST,
    SB_SIZE,
    SB_TAIL,
    SND_NXT,
    SND_SML,
    SND_UNA,
    SND_WND,
    SP_HEAD,
    SP_TAIL,
    STATE,
    STUCK_AT,
    TLP_END,
    TQ_HEAD,
    TQ_TAIL,
    USER_TIMEOUT,
    X_STATE,
    X_TIME,
    XS_EVER,
    XS_FIN,
    XS_LOST,
    XS_RETRANS,
    XS_SACKED,
    Y_CALL,
    Y_IO,
    Y_MARK,
    Y_START,
    seq_diff,
    seq_lt,
)
from netmem.inet.tcp.window import reclaim, window_update_due
from netmem.netdev.words import T_HEAD

FAR = 1 << 62
INITIAL_WINDOW = 10  # segments (RFC 6928)


@kernel
def can_send(state):
    """True in states in which data (or its retransmission) may go out."""
    return (
        state == ESTABLISHED
        or state == CLOSE_WAIT
        or state == FIN_WAIT_1
        or state == CLOSING
        or state == LAST_ACK
    )


@kernel
def start_timer(g, t, c):
    """Start the retransmission timer if it is not running (RFC 6298, 5.1); the user timeout bounds it."""
    if t[c, RTO_AT] == 0:
        t[c, RTO_AT] = g[G_NOW] + min(t[c, RTO] << min(t[c, BACKOFF], 8), RTO_MAX)
        if t[c, USER_TIMEOUT] > 0:
            t[c, RTO_AT] = max(min(t[c, RTO_AT], t[c, STUCK_AT] + t[c, USER_TIMEOUT]), g[G_NOW] + MS)
        arm(g, t[c, RTO_AT])


@inline_kernel
def longest(t, c):
    """Most payload bytes of one transmit row: whole segments that an IP packet's length can say."""
    return (IP_MAX - IP_HLEN - TCP_HLEN - 12) // t[c, MSS] * t[c, MSS]


@kernel
def tcp_resend(g, t, e, c, txm, txr, i, length):
    """Send the first ``length`` sequence numbers of entry ``i`` again. The row, or -1."""
    data = length - (1 if e[i, X_STATE] & XS_FIN and length == e[i, E_LEN] else 0)
    offset = t[c, SB_HEAD] + seq_diff(e[i, E_SEQ], t[c, SND_UNA])
    fits = piece(t, e, c, offset, data) if data > 0 else 0
    if fits < data:
        length = data = fits
    if length < e[i, E_LEN] and not tq_split(g, t, e, c, i, length):
        return -1
    fin = FIN if e[i, X_STATE] & XS_FIN else 0
    r = tcp_header(g, t, e, c, txm, txr, e[i, E_SEQ], ACK | fin | (PSH if data > 0 else 0), data)
    if r >= 0:
        if data > 0:
            payload(t, e, c, txm, txr, r, offset, data)
        if e[i, X_STATE] & XS_LOST and e[i, X_STATE] & XS_RETRANS == 0:
            t[c, RETRANS] += e[i, E_LEN]
            e[i, X_STATE] |= XS_RETRANS
        e[i, X_STATE] |= XS_EVER
        e[i, X_TIME] = g[G_NOW]
        g[G_COUNTERS + S_RETRANS] += 1
        start_timer(g, t, c)
    return r


@kernel
def send_lost(g, t, e, c, txm, txr):
    """What was lost goes first, as far as the congestion window allows (RFC 6675, 4, NextSeg). Rows or -1."""
    used = 0
    i = t[c, TQ_HEAD]
    while i != 0 and t[c, LOST] > t[c, RETRANS]:
        if e[i, X_STATE] & (XS_LOST | XS_RETRANS) == XS_LOST:
            room = t[c, CWND] - pipe(t, c)
            if room <= 0 and t[c, RETRANS] > 0:
                break  # the first goes out whatever is in the network (RFC 6675, 5, step 4.3)
            room = min(max(room // t[c, MSS], 1) * t[c, MSS], longest(t, c))
            if e[i, E_LEN] < room:
                tq_merge(g, t, e, c, i, room)
            if tcp_resend(g, t, e, c, txm, txr, i, min(e[i, E_LEN], room)) < 0:
                return -1
            used += 1
        i = e[i, E_NEXT]
    return used


@kernel
def tcp_output(g, t, e, c, txm, txr, force):
    """Send what was lost, what windows allow, the FIN behind the last byte, or an acknowledgement due.

    ``force`` sends a part of a segment that silly window avoidance would hold back. Returns rows
    used, or -1 when rows or entries ran out and it has to be called again.
    """
    used = 0
    if can_send(t[c, STATE]):
        if t[c, LOST] > t[c, RETRANS]:
            used = send_lost(g, t, e, c, txm, txr)
            if used < 0:
                return -1
        mss, big = t[c, MSS], longest(t, c)
        fresh = False
        while True:
            flight = seq_diff(t[c, SND_NXT], t[c, SND_UNA])
            unsent = t[c, SB_TAIL] - t[c, SB_HEAD] - flight
            if t[c, FLAGS] & CF_FIN_SENT:
                unsent = 0
            room = t[c, CWND] - pipe(t, c)
            window = min(t[c, SND_WND] - flight, room)
            length = min(min(unsent, window), big)
            if unsent > 0:
                if (room <= mss and t[c, CWND] < t[c, SND_WND]) or (length < unsent and room < unsent):
                    t[c, FLAGS] |= CF_LIMITED
                else:
                    t[c, FLAGS] &= ~CF_LIMITED
            if length > 0:
                length = piece(t, e, c, t[c, SB_HEAD] + flight, length)
            fin = 0
            if t[c, FLAGS] & (CF_FIN_QUEUED | CF_FIN_SENT) == CF_FIN_QUEUED and length == unsent >= 0:
                if window >= length:
                    fin = FIN
            if length <= 0 and fin == 0:
                break
            if length > mss and length < unsent:
                length -= length % mss  # whole segments, while there is more
            if fin == 0 and length < mss:
                # Sender's silly window avoidance and Nagle (RFC 9293, 3.8.6.2.1; RFC 896), which holds
                # a short segment back only while another short one is not acknowledged.
                free = t[c, FLAGS] & CF_NODELAY or not seq_lt(t[c, SND_UNA], t[c, SND_SML])
                all_of_it = length == unsent and (flight == 0 or free)
                cut = t[c, SP_HEAD] != 0 and length < min(unsent, window)
                if not all_of_it and not cut and not force and length < t[c, MAX_SND_WND] >> 1:
                    break
            if g[G_ECOUNT] == 0:
                return -1
            flags = ACK | fin | (PSH if length == unsent and length > 0 else 0)
            r = tcp_header(g, t, e, c, txm, txr, t[c, SND_NXT], flags, length)
            if r < 0:
                return -1
            if length > 0:
                payload(t, e, c, txm, txr, r, t[c, SB_HEAD] + flight, length)
            if flight == 0:
                if g[G_NOW] - t[c, STUCK_AT] > t[c, RTO]:  # idle: start anew (RFC 5681, 4.1)
                    t[c, CWND] = min(t[c, CWND], INITIAL_WINDOW * mss)
                    t[c, CUBIC_EPOCH] = 0
                t[c, STUCK_AT] = g[G_NOW]
            numbers = length + (1 if fin else 0)
            tq_append(g, t, e, c, t[c, SND_NXT], numbers, XS_FIN if fin else 0)
            t[c, SND_NXT] = (t[c, SND_NXT] + numbers) & MASK32
            t[c, BYTES_OUT] += length
            if length % mss != 0:
                t[c, SND_SML] = t[c, SND_NXT]
            if fin:
                t[c, FLAGS] |= CF_FIN_SENT
            start_timer(g, t, c)
            t[c, PERSIST_AT] = 0
            fresh = True
            used += 1
        if fresh:
            schedule_probe(g, t, c)
        unsent = t[c, SB_TAIL] - t[c, SB_HEAD]
        if t[c, SND_NXT] == t[c, SND_UNA] and unsent > 0 and t[c, PERSIST_AT] == 0:
            # Nothing in flight, something to send: only the peer's window holds it back.
            if t[c, BACKOFF] == 0:
                t[c, STUCK_AT] = g[G_NOW]
            t[c, PERSIST_AT] = g[G_NOW] + min(t[c, RTO] << min(t[c, BACKOFF], 8), RTO_MAX)
            arm(g, t[c, PERSIST_AT])
    if t[c, FLAGS] & CF_ACK_NOW:
        if tcp_ack(g, t, e, c, txm, txr) < 0:
            return -1
        used += 1
    return used


@kernel
def tcp_ack(g, t, e, c, txm, txr):
    """A bare acknowledgement."""
    r = tcp_header(g, t, e, c, txm, txr, t[c, SND_NXT], ACK, 0)
    if r >= 0:
        g[G_COUNTERS + S_OUT_ACKS] += 1
    else:
        t[c, FLAGS] |= CF_ACK_NOW
        t[c, DELACK_AT] = g[G_NOW] + MS
        arm(g, t[c, DELACK_AT])
    return r


@kernel
def loss_probe(g, t, e, c, txm, txr):
    """RFC 8985, 7.3: one segment of new data, or the last one again, to provoke an acknowledgement."""
    flight = seq_diff(t[c, SND_NXT], t[c, SND_UNA])
    if flight <= 0 or t[c, FLAGS] & (CF_RECOVERY | CF_LOSS):
        return
    g[G_COUNTERS + S_LOSS_PROBES] += 1
    unsent = t[c, SB_TAIL] - t[c, SB_HEAD] - flight
    before = t[c, SND_NXT]
    if unsent > 0 and t[c, FLAGS] & CF_FIN_SENT == 0 and t[c, SND_WND] > flight:
        cwnd = t[c, CWND]
        t[c, CWND] = pipe(t, c) + min(min(t[c, MSS], unsent), t[c, SND_WND] - flight)
        t[c, TLP_END] = 0  # no further probe is armed
        tcp_output(g, t, e, c, txm, txr, True)
        t[c, CWND] = cwnd
        t[c, FLAGS] &= ~CF_TLP_RETRANS
    if t[c, SND_NXT] == before:
        i = t[c, TQ_TAIL]
        over = e[i, E_LEN] - t[c, MSS]
        if over > 0 and tq_split(g, t, e, c, i, over):
            i = e[i, E_NEXT]
        if e[i, X_STATE] & XS_SACKED == 0:
            tcp_resend(g, t, e, c, txm, txr, i, e[i, E_LEN])
        t[c, FLAGS] |= CF_TLP_RETRANS
    t[c, TLP_END] = t[c, SND_NXT]
    t[c, RTO_AT] = 0
    start_timer(g, t, c)


@kernel
def tcp_probe(g, t, e, c, txm, txr):
    """A window or keepalive probe: an old sequence number without data, which must be answered."""
    g[G_COUNTERS + S_PROBES] += 1
    return tcp_header(g, t, e, c, txm, txr, (t[c, SND_UNA] - 1) & MASK32, ACK, 0)


@kernel
def tcp_flush(g, t, e, txm, txr):
    """Output for every connection that the batch touched; those that find no row try again soon."""
    for n in range(g[G_TOUCHED]):
        c = g[G_TOUCHED_AT + n]
        if t[c, STATE] >= ESTABLISHED and tcp_output(g, t, e, c, txm, txr, False) < 0:
            t[c, DELACK_AT] = g[G_NOW] + MS
            arm(g, t[c, DELACK_AT])
    g[G_TOUCHED] = 0


@kernel
def window_updates(g, t, e, txm, txr):
    """Tell starved peers that the pool has room again, in turn; how many were told."""
    reclaim(g, t)
    told, rows, first = 0, g[G_ROWS], g[G_TURN]
    for n in range(rows):
        c = (first + n) % rows
        if t[c, FLAGS] & CF_STARVED and window_update_due(g, t, c):
            if tcp_ack(g, t, e, c, txm, txr) < 0:
                break
            g[G_COUNTERS + S_WINDOW_UPDATES] += 1
            g[G_TURN] = c + 1
            told += 1
    return told


@kernel
def write_send_buffer(t, c, src, length):
    """Copy bytes of the application into the send buffer; how many had room."""
    room = t[c, SB_SIZE] - (t[c, SB_TAIL] - t[c, SB_HEAD])
    length = min(length, room)
    if length > 0:
        at = t[c, SB_TAIL] % t[c, SB_SIZE]
        first = min(length, t[c, SB_SIZE] - at)
        memcpy(t[c, SB_HOST] + at, src, first)
        if length > first:
            memcpy(t[c, SB_HOST], src + first, length - first)
        t[c, SB_TAIL] += length
    return length


@kernel
def spans_done(g, e, txm, out):
    """Spans that no transmit row names any more: the numbers of their calls into ``out``; how many."""
    n = 0
    i = g[G_ZC_HEAD]
    while i != 0 and n < out.shape[0] and e[i, Y_MARK] <= txm[T_HEAD]:
        following = e[i, E_NEXT]
        out[n] = e[i, Y_CALL]
        n += 1
        entry_free(g, e, i)
        i = following
    g[G_ZC_HEAD] = i
    if i == 0:
        g[G_ZC_TAIL] = 0
    return n


@kernel
def note_sent(g, e, call, mark):
    """A datagram from device memory is over when the transmit row before ``mark`` is. False: no entry."""
    i = entry_take(g, e, 0, 0)
    if i == 0:
        return False
    e[i, Y_CALL] = call
    until_sent(g, e, i, mark)
    return True


@kernel
def add_span(g, t, e, c, io, length, call):
    """``length`` bytes at an I/O address of device memory go behind what is to be sent.

    1: as a span of its own; 0: they lengthen the last one; -1: no entry is left.
    """
    tail = t[c, SP_TAIL]
    if tail != 0 and e[tail, Y_CALL] == call and e[tail, Y_IO] + e[tail, E_LEN] == io:
        if e[tail, Y_START] + e[tail, E_LEN] == t[c, SB_TAIL]:
            e[tail, E_LEN] += length
            t[c, SB_TAIL] += length
            return 0
    i = entry_take(g, e, 0, length)
    if i == 0:
        return -1
    e[i, Y_START], e[i, Y_IO], e[i, Y_CALL], e[i, Y_MARK] = t[c, SB_TAIL], io, call, 0
    if tail != 0:
        e[tail, E_NEXT] = i
    else:
        t[c, SP_HEAD] = i
    t[c, SP_TAIL] = i
    t[c, SB_TAIL] += length
    return 1


@kernel
def tcp_timers(g, t, out):
    """Rows with a timer that has run out, into ``out``; works out when the next one does."""
    now, soonest, n = g[G_NOW], FAR, 0
    for c in range(g[G_ROWS]):
        if t[c, STATE] == 0:
            continue
        due = False
        for word in range(RTO_AT, LAST_TIMER + 1):
            at = t[c, word]
            if at != 0:
                if at <= now:
                    due = True
                elif at < soonest:
                    soonest = at
        if due and n < out.shape[0]:
            out[n] = c
            n += 1
    g[G_TIMER] = soonest if n < out.shape[0] else now
    return n
