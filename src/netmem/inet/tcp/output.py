"""What TCP sends: windows, acknowledgements, segments from the send buffer, and timers (kernels).

Headers go into the transmit slot of their row; payload is named by I/O address and never touched.
"""

from __future__ import annotations

from netmem.base.formats import (
    ACK,
    ETH_HLEN,
    FIN,
    IP_CSUM,
    IP_HLEN,
    IP_ID,
    IP_TOTLEN,
    PSH,
    RST,
    SYN,
    TCP_ACK,
    TCP_DATAOFF,
    TCP_FLAGS,
    TCP_HLEN,
    TCP_SEQ,
    TCP_WINDOW,
    csum_add,
    csum_fold,
)
from netmem.base.jit import kernel
from netmem.base.native import memcpy, store_be16, store_be32, store_u8
from netmem.inet.tcp.tcb import (
    ACK_PENDING,
    ADV_MSS,
    BACKOFF,
    BYTES_OUT,
    CF_ACK_NOW,
    CF_FIN_QUEUED,
    CF_FIN_SENT,
    CF_LIMITED,
    CF_NODELAY,
    CF_RECOVERY,
    CF_STARVED,
    CF_TS,
    CF_WSCALE,
    CLOSE_WAIT,
    CLOSING,
    CR_AVAIL,
    CR_OUT,
    CR_RESERVE,
    CR_WORDS,
    CWND,
    DELACK_AT,
    DUPACKS,
    ESTABLISHED,
    FIN_WAIT_1,
    FLAGS,
    G_COUNTERS,
    G_CREDIT,
    G_IP_ID,
    G_NOW,
    G_ROWS,
    G_STARVED,
    G_TIMER,
    G_TOUCHED,
    G_TOUCHED_AT,
    G_TS_BASE,
    LAST_ACK,
    LAST_ACK_SENT,
    MASK32,
    MAX_SND_WND,
    MSS,
    OQ_BYTES,
    OUT,
    PERSIST_AT,
    PPN,
    QUEUE,
    RCV_ADV,
    RCV_BUF,
    RCV_MSS,
    RCV_NXT,
    RCV_SCALE,
    RECOVER,
    RQ_BYTES,
    RTO,
    RTO_AT,
    RTT_AT,
    RTT_SEQ,
    RTTVAR,
    S_OUT_ACKS,
    S_OUT_SEGS,
    S_PROBES,
    S_RETRANS,
    S_TX_FULL,
    S_WINDOW_UPDATES,
    SB_HEAD,
    SB_HOST,
    SB_OFFSET,
    SB_SIZE,
    SB_TAIL,
    SND_MAX,
    SND_NXT,
    SND_UNA,
    SND_WND,
    SRTT,
    SSTHRESH,
    STATE,
    TCB_WORDS,
    TPL,
    TS_RECENT,
    USER_RETRIES,
    WAIT_AT,
    seq_diff,
    seq_lt,
)
from netmem.netdev.tx import (
    SLOT_BYTES,
    T_FULL,
    T_HEAD,
    T_IO,
    T_SLOTS,
    T_TAIL,
    TX_CSUM,
    TX_ROWS,
    X_FLAGS,
    X_GSO,
    X_HLEN,
    X_P2LEN,
    X_PAY,
    X_PAY2,
    X_PLEN,
)

MS = 1_000_000
RTO_MIN = 200 * MS
RTO_MAX = 60_000 * MS
FAR = 1 << 62
IP_MAX = 65535


@kernel
def arm(g, at):
    """Remember that a timer runs out at ``at``."""
    if at < g[G_TIMER]:
        g[G_TIMER] = at


@kernel
def update_rtt(g, t, c, echo, stamped):
    """RFC 6298: smooth a measured round trip; ``echo`` is a TSecr in ms, or a time in ns."""
    if stamped:
        rtt = ((g[G_NOW] // MS + g[G_TS_BASE] - echo) & MASK32) * MS
        if rtt > RTO_MAX:
            return
    else:
        rtt = g[G_NOW] - echo
    if t[c, SRTT] == 0:
        t[c, SRTT], t[c, RTTVAR] = max(rtt, 1), rtt // 2
    else:
        t[c, RTTVAR] += (abs(t[c, SRTT] - rtt) - t[c, RTTVAR]) // 4
        t[c, SRTT] = max(1, t[c, SRTT] + (rtt - t[c, SRTT]) // 8)
    t[c, RTO] = min(max(t[c, SRTT] + max(4 * t[c, RTTVAR], MS), RTO_MIN), RTO_MAX)


@kernel
def advance_una(g, t, c, ack):
    """New data was acknowledged: free it, grow the congestion window, restart the timer."""
    acked = seq_diff(ack, t[c, SND_UNA])
    if t[c, RTT_AT] != 0 and seq_lt(t[c, RTT_SEQ], ack):
        if t[c, FLAGS] & CF_TS == 0:
            update_rtt(g, t, c, t[c, RTT_AT], False)
        t[c, RTT_AT] = 0
    t[c, SND_UNA] = ack
    if seq_lt(t[c, SND_NXT], ack):
        t[c, SND_NXT] = ack
    t[c, SB_HEAD] = min(t[c, SB_HEAD] + acked, t[c, SB_TAIL])
    t[c, BACKOFF] = 0
    t[c, DUPACKS] = 0
    t[c, USER_RETRIES] = 0
    if t[c, FLAGS] & CF_RECOVERY == 0 and seq_lt(t[c, RECOVER], ack):
        t[c, RECOVER] = ack  # stays near, so that comparing it goes on meaning something
    if t[c, FLAGS] & (CF_LIMITED | CF_RECOVERY) == CF_LIMITED:
        if t[c, CWND] < t[c, SSTHRESH]:
            t[c, CWND] += acked
        else:
            t[c, CWND] += max(1, t[c, MSS] * acked // t[c, CWND])
        t[c, CWND] = min(t[c, CWND], 1 << 30)
    if ack == t[c, SND_MAX]:
        t[c, RTO_AT] = 0
    else:
        t[c, RTO_AT] = g[G_NOW] + t[c, RTO]
        arm(g, t[c, RTO_AT])


@kernel
def select_window(g, t, c):
    """The window field to send now; notes the right edge and the share of the pool it stands for.

    The edge never moves back (RFC 9293, 3.8.6). It is moved on by whole segments only, and so that
    half of what the pool has left stays for the others: n connections settle at 1/(n+1) each.
    """
    left = max(seq_diff(t[c, RCV_ADV], t[c, RCV_NXT]), 0)
    space = max(t[c, RCV_BUF] - t[c, RQ_BYTES] - t[c, OQ_BYTES], 0)
    credit = G_CREDIT + CR_WORDS * t[c, QUEUE]
    others = g[credit + CR_OUT] - t[c, OUT]
    grant = max((g[credit + CR_AVAIL] - g[credit + CR_RESERVE] - others) >> 1, 0)
    pool = (grant * t[c, PPN]) >> 4
    window = min(space, pool)
    wanted = min(t[c, RCV_BUF] >> 1, 4 * t[c, RCV_MSS])
    if pool < wanted and pool < space:
        if t[c, FLAGS] & CF_STARVED == 0:
            t[c, FLAGS] |= CF_STARVED
            g[G_STARVED] += 1
    elif t[c, FLAGS] & CF_STARVED:
        t[c, FLAGS] &= ~CF_STARVED
        g[G_STARVED] -= 1
    if window - left < min(t[c, RCV_BUF] >> 1, t[c, RCV_MSS]):
        window = left
    scale = t[c, RCV_SCALE]
    if window > left:
        field = min(window >> scale, 0xFFFF)
    else:
        field = min((left + (1 << scale) - 1) >> scale, 0xFFFF)
    if (field << scale) > left:
        t[c, RCV_ADV] = (t[c, RCV_NXT] + (field << scale)) & MASK32
        need = ((field << scale) * 16 + t[c, PPN] - 1) // t[c, PPN]
        g[credit + CR_OUT] += need - t[c, OUT]
        t[c, OUT] = need
    return field


@kernel
def window_update_due(g, t, c):
    """True when telling the peer of the window now would open it well (RFC 9293, 3.8.6.2.2)."""
    left = max(seq_diff(t[c, RCV_ADV], t[c, RCV_NXT]), 0)
    space = t[c, RCV_BUF] - t[c, RQ_BYTES] - t[c, OQ_BYTES]
    credit = G_CREDIT + CR_WORDS * t[c, QUEUE]
    others = g[credit + CR_OUT] - t[c, OUT]
    grant = max((g[credit + CR_AVAIL] - g[credit + CR_RESERVE] - others) >> 1, 0)
    window = min(space, (grant * t[c, PPN]) >> 4)
    return window - left >= max(2 * t[c, RCV_MSS], min(left, t[c, RCV_BUF] >> 1))


@kernel
def tx_row(g, txm, txr):
    """The next free transmit row, -1 when all are in use."""
    if txm[T_TAIL] - txm[T_HEAD] >= TX_ROWS:
        txm[T_FULL] += 1
        g[G_COUNTERS + S_TX_FULL] += 1
        return -1
    return txm[T_TAIL] & (TX_ROWS - 1)


@kernel
def tcp_header(g, t, c, txm, txr, seq, flags, length):
    """Start a segment in the next transmit row: all headers, no payload yet. Returns the row or -1."""
    r = tx_row(g, txm, txr)
    if r < 0:
        return -1
    at = txm[T_SLOTS] + r * SLOT_BYTES
    memcpy(at, t.ctypes.data + 8 * (c * TCB_WORDS + TPL), ETH_HLEN + IP_HLEN + TCP_HLEN)
    ip, tcp = at + ETH_HLEN, at + ETH_HLEN + IP_HLEN
    size = TCP_HLEN
    stamp = (g[G_NOW] // MS + g[G_TS_BASE]) & MASK32
    if flags & SYN:
        store_be32(tcp + size, 0x02040000 | t[c, ADV_MSS])
        size += 4
        if t[c, FLAGS] & CF_WSCALE:
            store_be32(tcp + size, 0x01030300 | t[c, RCV_SCALE])
            size += 4
    if t[c, FLAGS] & CF_TS and flags & RST == 0:
        store_be32(tcp + size, 0x0101080A)
        store_be32(tcp + size + 4, stamp)
        store_be32(tcp + size + 8, t[c, TS_RECENT] if flags & ACK else 0)
        size += 12
    store_be32(tcp + TCP_SEQ, seq)
    store_be32(tcp + TCP_ACK, t[c, RCV_NXT] if flags & ACK else 0)
    store_u8(tcp + TCP_DATAOFF, size << 2)
    store_u8(tcp + TCP_FLAGS, flags)
    if flags & SYN:
        window = min(max(t[c, RCV_BUF], 0), 0xFFFF)  # never scaled in a SYN
        left = max(seq_diff(t[c, RCV_ADV], t[c, RCV_NXT]), 0)
        window = min(window, left)
    else:
        window = select_window(g, t, c)
    store_be16(tcp + TCP_WINDOW, window)
    total = IP_HLEN + size + length
    store_be16(ip + IP_TOTLEN, min(total, IP_MAX))
    store_be16(ip + IP_ID, g[G_IP_ID])
    g[G_IP_ID] = (g[G_IP_ID] + 1 + length // max(t[c, MSS], 1)) & 0xFFFF
    store_be16(ip + IP_CSUM, 0)
    store_be16(ip + IP_CSUM, csum_fold(csum_add(ip, IP_HLEN, 0)))
    txr[r, X_HLEN] = ETH_HLEN + IP_HLEN + size
    txr[r, X_PLEN] = txr[r, X_P2LEN] = txr[r, X_GSO] = 0
    txr[r, X_FLAGS] = TX_CSUM
    txm[T_TAIL] += 1
    g[G_COUNTERS + S_OUT_SEGS] += 1
    if flags & ACK:
        t[c, LAST_ACK_SENT] = t[c, RCV_NXT]
        t[c, ACK_PENDING] = 0
        t[c, DELACK_AT] = 0
        t[c, FLAGS] &= ~CF_ACK_NOW
    return r


@kernel
def payload(t, c, txm, txr, r, offset, length):
    """Name ``length`` bytes at stream offset ``offset`` of the send buffer in row ``r``."""
    size = t[c, SB_SIZE]
    at = offset % size
    first = min(length, size - at)
    io = txm[T_IO] + t[c, SB_OFFSET]
    txr[r, X_PAY], txr[r, X_PLEN] = io + at, first
    txr[r, X_PAY2], txr[r, X_P2LEN] = io, length - first
    if length > t[c, MSS]:
        txr[r, X_GSO] = t[c, MSS]


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
def tcp_output(g, t, c, txm, txr, force):
    """Send what windows allow, the FIN behind the last byte, or an acknowledgement that is due.

    ``force`` sends a part of a segment that silly window avoidance would hold back. Returns rows
    used, or -1 when rows ran out and it has to be called again.
    """
    used = 0
    if can_send(t[c, STATE]):
        mss = t[c, MSS]
        big = (IP_MAX - IP_HLEN - TCP_HLEN - 12) // mss * mss
        while True:
            flight = seq_diff(t[c, SND_NXT], t[c, SND_UNA])
            unsent = t[c, SB_TAIL] - t[c, SB_HEAD] - flight
            if t[c, FLAGS] & CF_FIN_SENT:
                unsent = 0
            window = min(t[c, SND_WND], t[c, CWND]) - flight
            length = min(min(unsent, window), big)
            if unsent > 0:
                room = t[c, CWND] - flight
                if (room <= mss and t[c, CWND] < t[c, SND_WND]) or (length < unsent and room < unsent):
                    t[c, FLAGS] |= CF_LIMITED
                else:
                    t[c, FLAGS] &= ~CF_LIMITED
            fin = 0
            if t[c, FLAGS] & (CF_FIN_QUEUED | CF_FIN_SENT) == CF_FIN_QUEUED and length == unsent:
                if window >= length:
                    fin = FIN
            if length <= 0 and fin == 0:
                break
            if length > mss and length < unsent:
                length -= length % mss  # whole segments, while there is more
            if fin == 0 and length < mss:
                # Sender's silly window avoidance and Nagle (RFC 9293, 3.8.6.2.1; RFC 896).
                all_of_it = length == unsent and (flight == 0 or t[c, FLAGS] & CF_NODELAY)
                if not all_of_it and not force and length < t[c, MAX_SND_WND] >> 1:
                    break
            flags = ACK | fin | (PSH if length == unsent and length > 0 else 0)
            r = tcp_header(g, t, c, txm, txr, t[c, SND_NXT], flags, length)
            if r < 0:
                return -1
            if length > 0:
                payload(t, c, txm, txr, r, t[c, SB_HEAD] + flight, length)
            if seq_lt(t[c, SND_NXT], t[c, SND_MAX]):
                g[G_COUNTERS + S_RETRANS] += 1
            elif t[c, RTT_AT] == 0:
                t[c, RTT_AT], t[c, RTT_SEQ] = g[G_NOW], t[c, SND_NXT]
            t[c, SND_NXT] = (t[c, SND_NXT] + length + (fin != 0)) & MASK32
            if fin:
                t[c, FLAGS] |= CF_FIN_SENT
            if seq_lt(t[c, SND_MAX], t[c, SND_NXT]):
                t[c, BYTES_OUT] += length
                t[c, SND_MAX] = t[c, SND_NXT]
            if t[c, RTO_AT] == 0:
                t[c, RTO_AT] = g[G_NOW] + min(t[c, RTO] << min(t[c, BACKOFF], 8), RTO_MAX)
                arm(g, t[c, RTO_AT])
            t[c, PERSIST_AT] = 0
            used += 1
        unsent = t[c, SB_TAIL] - t[c, SB_HEAD]
        if t[c, SND_NXT] == t[c, SND_UNA] and unsent > 0 and t[c, PERSIST_AT] == 0:
            # Nothing in flight, something to send: only the peer's window holds it back.
            t[c, PERSIST_AT] = g[G_NOW] + min(t[c, RTO] << min(t[c, BACKOFF], 8), RTO_MAX)
            arm(g, t[c, PERSIST_AT])
    if t[c, FLAGS] & CF_ACK_NOW:
        if tcp_ack(g, t, c, txm, txr) < 0:
            return -1
        used += 1
    return used


@kernel
def tcp_ack(g, t, c, txm, txr):
    """A bare acknowledgement."""
    r = tcp_header(g, t, c, txm, txr, t[c, SND_NXT], ACK, 0)
    if r >= 0:
        g[G_COUNTERS + S_OUT_ACKS] += 1
    else:
        t[c, FLAGS] |= CF_ACK_NOW
        t[c, DELACK_AT] = g[G_NOW] + MS
        arm(g, t[c, DELACK_AT])
    return r


@kernel
def tcp_retransmit(g, t, c, txm, txr):
    """Send the first unacknowledged segment again (fast retransmit, NewReno partial acks)."""
    flight = seq_diff(t[c, SND_MAX], t[c, SND_UNA])
    data = t[c, SB_TAIL] - t[c, SB_HEAD]
    length = min(min(data, flight), t[c, MSS])
    fin = FIN if t[c, FLAGS] & CF_FIN_SENT and length == data and flight > length else 0
    r = tcp_header(g, t, c, txm, txr, t[c, SND_UNA], ACK | fin | PSH, length)
    if r >= 0:
        if length > 0:
            payload(t, c, txm, txr, r, t[c, SB_HEAD], length)
        g[G_COUNTERS + S_RETRANS] += 1
        t[c, RTT_AT] = 0  # Karn: never time a segment that was sent twice
    return r


@kernel
def tcp_probe(g, t, c, txm, txr):
    """A window probe: an old sequence number without data, which must be answered."""
    g[G_COUNTERS + S_PROBES] += 1
    return tcp_header(g, t, c, txm, txr, (t[c, SND_UNA] - 1) & MASK32, ACK, 0)


@kernel
def tcp_flush(g, t, txm, txr):
    """Output for every connection that the batch touched; those that find no row try again soon."""
    for n in range(g[G_TOUCHED]):
        c = g[G_TOUCHED_AT + n]
        if t[c, STATE] >= ESTABLISHED and tcp_output(g, t, c, txm, txr, False) < 0:
            t[c, DELACK_AT] = g[G_NOW] + MS
            arm(g, t[c, DELACK_AT])
    g[G_TOUCHED] = 0


@kernel
def window_updates(g, t, txm, txr):
    """Tell starved peers that the pool has room again; how many were told."""
    told = 0
    for c in range(g[G_ROWS]):
        if t[c, FLAGS] & CF_STARVED and t[c, STATE] >= ESTABLISHED and window_update_due(g, t, c):
            if tcp_ack(g, t, c, txm, txr) < 0:
                break
            g[G_COUNTERS + S_WINDOW_UPDATES] += 1
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
def tcp_timers(g, t, out):
    """Rows with a timer that has run out, into ``out``; works out when the next one does."""
    now, soonest, n = g[G_NOW], FAR, 0
    for c in range(g[G_ROWS]):
        if t[c, STATE] == 0:
            continue
        due = False
        for word in range(RTO_AT, WAIT_AT + 1):
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
