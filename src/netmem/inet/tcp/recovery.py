"""The sender's picture of the network: what is in flight, what was lost, how fast to go (kernels).

RFC 6298 (round trips), 9438 (CUBIC), 2018 and 2883 (SACK, D-SACK), 6675 (Pipe, recovery), 8985
(RACK-TLP, which decides what is lost; RFC 6675's DupThresh is its first step). What is in flight is a
chain of entries in sequence order, one for each transmit row, split where a SACK block ends in one.
"""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load_be32
from netmem.inet.tcp.entries import entry_free, entry_take, until_sent
from netmem.inet.tcp.tcb import (
    BACKOFF,
    CF_LIMITED,
    CF_LOSS,
    CF_RECOVERY,
    CF_REORDERED,
    CF_SACK,
    CF_TLP_RETRANS,
    CUBIC_EPOCH,
    CUBIC_K,
    CUBIC_WEST,
    CUBIC_WMAX,
    CWND,
    DUPACKS,
    E_LEN,
    E_NEXT,
    E_SEQ,
    FLAGS,
    G_COUNTERS,
    G_NOW,
    G_TIMER,
    G_TS_BASE,
    LOST,
    MASK32,
    MIN_RTT,
    MSS,
    PTO_AT,
    RACK_END,
    RACK_FACK,
    RACK_MULT,
    RACK_PERSIST,
    RACK_ROUND,
    RACK_RTT,
    RACK_TIME,
    RECOVER,
    REO_AT,
    RETRANS,
    RTO,
    RTO_AT,
    RTTVAR,
    S_DSACK_IN,
    S_FAST_RETRANS,
    S_LOSS_RACK,
    S_SACK_IN,
    SACKED,
    SB_HEAD,
    SB_TAIL,
    SND_NXT,
    SND_UNA,
    SP_HEAD,
    SP_NEXT,
    SP_TAIL,
    SRTT,
    SSTHRESH,
    STUCK_AT,
    TLP_END,
    TQ_HEAD,
    TQ_TAIL,
    USER_RETRIES,
    X_STATE,
    X_TIME,
    XS_EVER,
    XS_FIN,
    XS_LOST,
    XS_RETRANS,
    XS_SACKED,
    Y_START,
    seq_diff,
    seq_le,
    seq_lt,
)
from netmem.netdev.words import T_TAIL

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
def arm(g, at):
    """Remember that a timer runs out at ``at``."""
    if at < g[G_TIMER]:
        g[G_TIMER] = at


# -- round trips and the congestion window ------------------------------------------------------


@kernel
def update_rtt(t, c, rtt):
    """RFC 6298, section 2: smooth a measured round trip of ``rtt`` ns, and set the timeout."""
    if rtt > RTO_MAX:
        return
    if t[c, SRTT] == 0:
        t[c, SRTT], t[c, RTTVAR] = max(rtt, 1), rtt // 2
    else:
        t[c, RTTVAR] += (abs(t[c, SRTT] - rtt) - t[c, RTTVAR]) // 4
        t[c, SRTT] = max(1, t[c, SRTT] + (rtt - t[c, SRTT]) // 8)
    t[c, RTO] = min(max(t[c, SRTT] + max(4 * t[c, RTTVAR], MS), RTO_MIN), RTO_MAX)


@kernel
def cubic_grow(g, t, c, acked):
    """New data was acknowledged: slow start, or RFC 9438, section 4."""
    cwnd, mss = t[c, CWND], t[c, MSS]
    if cwnd < t[c, SSTHRESH]:
        t[c, CWND] = min(cwnd + acked, CWND_MAX)
        return
    if t[c, CUBIC_EPOCH] == 0:
        t[c, CUBIC_EPOCH], t[c, CUBIC_WEST] = g[G_NOW], cwnd
        if cwnd < t[c, CUBIC_WMAX]:
            segments = (t[c, CUBIC_WMAX] - cwnd) / mss
            t[c, CUBIC_K] = int((segments / CUBIC_C) ** (1 / 3) * 1e9)
        else:
            t[c, CUBIC_K], t[c, CUBIC_WMAX] = 0, cwnd
    since = (g[G_NOW] - t[c, CUBIC_EPOCH] - t[c, CUBIC_K]) / 1e9
    now = CUBIC_C * since * since * since * mss + t[c, CUBIC_WMAX]
    then = since + t[c, SRTT] / 1e9
    target = CUBIC_C * then * then * then * mss + t[c, CUBIC_WMAX]
    alpha = 1.0 if t[c, CUBIC_WEST] >= t[c, CUBIC_WMAX] else ALPHA
    t[c, CUBIC_WEST] += max(1, int(alpha * mss * acked / cwnd))
    if now < t[c, CUBIC_WEST]:  # as friendly to Reno as Reno (4.3)
        cwnd = max(cwnd, t[c, CUBIC_WEST])
    else:
        target = min(max(target, float(cwnd)), 1.5 * cwnd)
        cwnd += int((target - cwnd) * acked / cwnd)
    t[c, CWND] = min(cwnd, CWND_MAX)


@kernel
def cubic_reduce(t, c):
    """A loss: RFC 9438, sections 4.6 and 4.7. Sets SSTHRESH."""
    flight = seq_diff(t[c, SND_NXT], t[c, SND_UNA])
    cwnd = min(t[c, CWND], max(flight, 2 * t[c, MSS]))
    t[c, CUBIC_WMAX] = int(cwnd * (1 + BETA) / 2) if cwnd < t[c, CUBIC_WMAX] else cwnd
    t[c, CUBIC_EPOCH] = 0
    t[c, SSTHRESH] = max(int(cwnd * BETA), 2 * t[c, MSS])


# -- the chain of what is in flight -------------------------------------------------------------


@inline_kernel
def pipe(t, c):
    """Bytes that are in the network, as far as one can tell (RFC 6675, section 4)."""
    bytes_ = seq_diff(t[c, SND_NXT], t[c, SND_UNA]) - t[c, SACKED] - t[c, LOST] + t[c, RETRANS]
    if t[c, FLAGS] & CF_SACK == 0:
        bytes_ -= t[c, DUPACKS] * t[c, MSS]
    return max(bytes_, 0)


@inline_kernel
def tq_new(g, e, seq, length, state):
    """An entry of what is in flight, 0 when there is none left."""
    i = entry_take(g, e, seq, length)
    if i == 0:
        return 0
    e[i, X_TIME], e[i, X_STATE] = g[G_NOW], state
    return i


@inline_kernel
def tq_append(g, t, e, c, seq, length, state):
    """Note that ``length`` sequence numbers were sent for the first time."""
    i = tq_new(g, e, seq, length, state)
    if t[c, TQ_TAIL] != 0:
        e[t[c, TQ_TAIL], E_NEXT] = i
    else:
        t[c, TQ_HEAD] = i
    t[c, TQ_TAIL] = i


@kernel
def tq_split(g, t, e, c, i, length):
    """Cut entry ``i`` after ``length`` sequence numbers. False: there is no entry left for the rest."""
    rest = tq_new(g, e, (e[i, E_SEQ] + length) & MASK32, e[i, E_LEN] - length, e[i, X_STATE])
    if rest == 0:
        return False
    e[rest, X_TIME] = e[i, X_TIME]
    e[rest, E_NEXT] = e[i, E_NEXT]
    e[i, E_NEXT] = rest
    e[i, E_LEN] = length
    e[i, X_STATE] &= ~XS_FIN
    if t[c, TQ_TAIL] == i:
        t[c, TQ_TAIL] = rest
    return True


@kernel
def tq_merge(g, t, e, c, i, limit):
    """Make one entry of ``i`` and lost ones behind it, up to ``limit``: small segments go together."""
    while True:
        j = e[i, E_NEXT]
        if j == 0 or e[i, E_LEN] + e[j, E_LEN] > limit or e[i, X_STATE] & XS_FIN:
            return
        if e[j, X_STATE] & (XS_LOST | XS_RETRANS) != XS_LOST:
            return
        e[i, E_LEN] += e[j, E_LEN]
        e[i, X_STATE] |= e[j, X_STATE]
        e[i, E_NEXT] = e[j, E_NEXT]
        if t[c, TQ_TAIL] == j:
            t[c, TQ_TAIL] = i
        entry_free(g, e, j)


@inline_kernel
def tq_forget(t, e, c, i, length):
    """``length`` bytes of entry ``i`` have arrived: they are neither lost nor sent again any more."""
    state = e[i, X_STATE]
    if state & XS_SACKED:
        t[c, SACKED] -= length
    if state & XS_LOST:
        t[c, LOST] -= length
    if state & XS_RETRANS:
        t[c, RETRANS] -= length


@kernel
def tq_clear(g, t, e, c):
    """Forget all that is in flight: the connection is over."""
    i = t[c, TQ_HEAD]
    while i != 0:
        following = e[i, E_NEXT]
        entry_free(g, e, i)
        i = following
    t[c, TQ_HEAD] = t[c, TQ_TAIL] = t[c, SACKED] = t[c, LOST] = t[c, RETRANS] = 0


@inline_kernel
def mark_lost(t, e, c, i):
    """Take entry ``i``, or what was sent again of it, for lost."""
    if e[i, X_STATE] & XS_RETRANS:
        t[c, RETRANS] -= e[i, E_LEN]
        e[i, X_STATE] &= ~XS_RETRANS
    elif e[i, X_STATE] & XS_LOST == 0:
        t[c, LOST] += e[i, E_LEN]
        e[i, X_STATE] |= XS_LOST


# -- RACK ---------------------------------------------------------------------------------------


@kernel
def rack_arrived(g, t, c, sent, end, state, echo):
    """RFC 8985, 6.2, steps 1 to 3, for a segment that arrived; its round trip in ns, or -1.

    ``echo``: the TSecr that came with the news, -1 without.
    """
    rtt = g[G_NOW] - sent
    if state & XS_EVER:
        # Which of two transmissions arrived? An older echo, or too short a round trip: the first.
        if echo >= 0:
            age = ((g[G_NOW] // MS + g[G_TS_BASE] - echo) & MASK32) * MS
            if age > rtt + MS:
                return -1
        elif rtt < t[c, MIN_RTT]:
            return -1
    elif t[c, RACK_TIME] != 0 and seq_lt(end, t[c, RACK_FACK]):
        t[c, FLAGS] |= CF_REORDERED
    if t[c, MIN_RTT] == 0 or rtt < t[c, MIN_RTT]:
        t[c, MIN_RTT] = max(rtt, 1)
    if t[c, RACK_TIME] == 0 or seq_lt(t[c, RACK_FACK], end):
        t[c, RACK_FACK] = end
    if sent > t[c, RACK_TIME] or (sent == t[c, RACK_TIME] and seq_lt(t[c, RACK_END], end)):
        t[c, RACK_TIME], t[c, RACK_END], t[c, RACK_RTT] = sent, end, rtt
    return -1 if state & XS_EVER else rtt


@kernel
def rack_window(t, c):
    """How long a segment may be overtaken before it counts as lost, ns (RFC 8985, 6.2, step 4)."""
    if t[c, FLAGS] & CF_REORDERED == 0:
        if t[c, FLAGS] & (CF_RECOVERY | CF_LOSS) or t[c, SACKED] >= DUP_THRESH * t[c, MSS]:
            return 0
    return min(t[c, RACK_MULT] * t[c, MIN_RTT] // 4, t[c, SRTT])


@kernel
def rack_detect(g, t, e, c):
    """RFC 8985, 6.2, step 5: mark what is lost; arms the reordering timer. True when some was marked."""
    t[c, REO_AT] = 0
    if t[c, RACK_TIME] == 0:
        return False
    window, wait, found = rack_window(t, c), 0, False
    i = t[c, TQ_HEAD]
    while i != 0:
        state = e[i, X_STATE]
        if state & XS_SACKED == 0 and state & (XS_LOST | XS_RETRANS) != XS_LOST:
            sent, end = e[i, X_TIME], (e[i, E_SEQ] + e[i, E_LEN]) & MASK32
            if sent < t[c, RACK_TIME] or (sent == t[c, RACK_TIME] and seq_lt(end, t[c, RACK_END])):
                left = sent + t[c, RACK_RTT] + window - g[G_NOW]
                if left <= 0:
                    mark_lost(t, e, c, i)
                    g[G_COUNTERS + S_LOSS_RACK] += 1
                    found = True
                else:
                    wait = max(wait, left)
        i = e[i, E_NEXT]
    if wait > 0:
        t[c, REO_AT] = g[G_NOW] + max(wait, MS // 4)
        arm(g, t[c, REO_AT])
    return found


@kernel
def schedule_probe(g, t, c):
    """Arm the tail loss probe's timer (RFC 8985, 7.2), where it would come before the timeout."""
    t[c, PTO_AT] = 0
    flight = seq_diff(t[c, SND_NXT], t[c, SND_UNA])
    if flight <= 0 or t[c, FLAGS] & CF_SACK == 0 or t[c, FLAGS] & (CF_RECOVERY | CF_LOSS):
        return
    if t[c, TLP_END] >= 0 or t[c, SRTT] == 0:
        return
    wait = max(2 * t[c, SRTT], PTO_MIN)
    if flight <= t[c, MSS]:
        wait += ACK_DELAY
    if t[c, RTO_AT] == 0 or g[G_NOW] + wait < t[c, RTO_AT]:
        t[c, PTO_AT] = g[G_NOW] + wait
        arm(g, t[c, PTO_AT])


# -- acknowledgements ---------------------------------------------------------------------------


@kernel
def spans_acked(g, t, e, c, txm, everything):
    """Spans of device memory that were acknowledged go to the list of what the NIC may still read."""
    i = t[c, SP_HEAD]
    while i != 0 and (everything or e[i, Y_START] + e[i, E_LEN] <= t[c, SB_HEAD]):
        following = e[i, E_NEXT]
        if t[c, SP_NEXT] == i:
            t[c, SP_NEXT] = following
        until_sent(g, e, i, txm[T_TAIL])
        i = following
    t[c, SP_HEAD] = i
    if i == 0:
        t[c, SP_TAIL] = t[c, SP_NEXT] = 0


@kernel
def advance_una(g, t, e, c, ack, echo, txm):
    """New data was acknowledged: forget it, measure, grow the congestion window, restart timers."""
    acked = seq_diff(ack, t[c, SND_UNA])
    rtt = -1
    i = t[c, TQ_HEAD]
    while i != 0 and seq_lt(e[i, E_SEQ], ack):
        length = min(seq_diff(ack, e[i, E_SEQ]), e[i, E_LEN])
        tq_forget(t, e, c, i, length)
        end = (e[i, E_SEQ] + length) & MASK32
        if e[i, X_STATE] & XS_SACKED == 0:
            measured = rack_arrived(g, t, c, e[i, X_TIME], end, e[i, X_STATE], echo)
            if measured >= 0:
                rtt = measured
        if length < e[i, E_LEN]:
            e[i, E_SEQ], e[i, E_LEN] = ack, e[i, E_LEN] - length
            break
        following = e[i, E_NEXT]
        entry_free(g, e, i)
        i = following
    t[c, TQ_HEAD] = i
    if i == 0:
        t[c, TQ_TAIL] = 0
    if rtt >= 0:
        update_rtt(t, c, rtt)
    t[c, SND_UNA] = ack
    t[c, SB_HEAD] = min(t[c, SB_HEAD] + acked, t[c, SB_TAIL])
    if t[c, SP_HEAD] != 0:
        spans_acked(g, t, e, c, txm, False)
    t[c, BACKOFF] = t[c, DUPACKS] = t[c, USER_RETRIES] = 0
    t[c, STUCK_AT] = g[G_NOW]
    if t[c, FLAGS] & (CF_RECOVERY | CF_LOSS) == 0 and seq_lt(t[c, RECOVER], ack):
        t[c, RECOVER] = ack  # stays near, so that comparing it goes on meaning something
    if t[c, FLAGS] & CF_LIMITED == 0:
        t[c, CUBIC_EPOCH] = 0  # time that the application did not use is no time to grow in (RFC 9438, 5.8)
    elif t[c, FLAGS] & CF_RECOVERY == 0:
        cubic_grow(g, t, c, acked)
    if i == 0:
        t[c, RTO_AT] = t[c, PTO_AT] = t[c, REO_AT] = 0
    else:
        t[c, RTO_AT] = g[G_NOW] + t[c, RTO]
        arm(g, t[c, RTO_AT])
        schedule_probe(g, t, c)


@kernel
def sack_mark(g, t, e, c, left, right, echo):
    """Mark what a SACK block says has arrived."""
    i = t[c, TQ_HEAD]
    while i != 0 and seq_lt(e[i, E_SEQ], right):
        seq = e[i, E_SEQ]
        end = (seq + e[i, E_LEN]) & MASK32
        if e[i, X_STATE] & XS_SACKED == 0 and seq_lt(left, end):
            # Segments arrive whole: a block that cuts one counts for those within it only, or a peer
            # could make us keep an entry for every byte.
            mss = t[c, MSS]
            if seq_lt(seq, left):
                cut = (seq_diff(left, seq) + mss - 1) // mss * mss
                if cut < e[i, E_LEN] and not tq_split(g, t, e, c, i, cut):
                    return
                i = e[i, E_NEXT]
                continue
            if seq_lt(right, end):
                cut = seq_diff(right, seq) // mss * mss
                if cut == 0 or not tq_split(g, t, e, c, i, cut):
                    return
            tq_forget(t, e, c, i, e[i, E_LEN])
            end = (seq + e[i, E_LEN]) & MASK32
            rack_arrived(g, t, c, e[i, X_TIME], end, e[i, X_STATE], echo)
            e[i, X_STATE] = (e[i, X_STATE] | XS_SACKED) & ~(XS_LOST | XS_RETRANS)
            t[c, SACKED] += e[i, E_LEN]
        i = e[i, E_NEXT]


@kernel
def sack_in(g, t, e, c, option, size, ack, echo):
    """A SACK option's blocks, after ``ack`` was taken in. True when the first reports a duplicate."""
    g[G_COUNTERS + S_SACK_IN] += 1
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
        if seq_lt(left, right) and seq_le(t[c, SND_UNA], left) and seq_le(right, t[c, SND_NXT]):
            sack_mark(g, t, e, c, left, right, echo)
    if duplicate:
        g[G_COUNTERS + S_DSACK_IN] += 1
        if seq_le(t[c, RACK_ROUND], ack):  # once a round trip (RFC 8985, 6.2, step 4)
            t[c, RACK_MULT] = min(t[c, RACK_MULT] + 1, 64)
            t[c, RACK_PERSIST] = 16
            t[c, RACK_ROUND] = t[c, SND_NXT]
    return duplicate


@kernel
def enter_recovery(g, t, c):
    """The first loss of a window: RFC 6675, section 5, step 4."""
    cubic_reduce(t, c)
    t[c, CWND] = t[c, SSTHRESH]
    t[c, RECOVER] = t[c, SND_NXT]
    t[c, FLAGS] |= CF_RECOVERY
    t[c, PTO_AT], t[c, TLP_END] = 0, -1
    g[G_COUNTERS + S_FAST_RETRANS] += 1


@kernel
def after_ack(g, t, e, c, ack, advanced, duplicate):
    """What an acknowledgement means for recovery: its end, new losses, the tail loss probe's outcome."""
    if t[c, FLAGS] & (CF_RECOVERY | CF_LOSS) and seq_le(t[c, RECOVER], ack):
        t[c, FLAGS] &= ~(CF_RECOVERY | CF_LOSS)
        t[c, RECOVER] = ack
        if t[c, RACK_PERSIST] > 0:
            t[c, RACK_PERSIST] -= 1
            if t[c, RACK_PERSIST] == 0:
                t[c, RACK_MULT] = 1
        schedule_probe(g, t, c)
    if t[c, TLP_END] >= 0 and seq_le(t[c, TLP_END], ack):
        if t[c, FLAGS] & CF_TLP_RETRANS and not duplicate:  # the probe mended a loss (RFC 8985, 7.4)
            cubic_reduce(t, c)
            t[c, CWND] = t[c, SSTHRESH]
        t[c, TLP_END] = -1
    if t[c, FLAGS] & CF_SACK:
        lost = rack_detect(g, t, e, c)
    else:
        lost = reno_detect(g, t, e, c, advanced)
    if lost and t[c, FLAGS] & (CF_RECOVERY | CF_LOSS) == 0:
        enter_recovery(g, t, c)


@kernel
def reno_detect(g, t, e, c, advanced):
    """Without SACK: the third duplicate, and each partial acknowledgement, mean one loss (RFC 6582)."""
    i = t[c, TQ_HEAD]
    recovering = t[c, FLAGS] & CF_RECOVERY != 0
    due = t[c, DUPACKS] == DUP_THRESH if not recovering else advanced
    if i == 0 or not due or e[i, X_STATE] & (XS_LOST | XS_RETRANS) == XS_LOST:
        return False
    if not recovering and seq_lt(t[c, SND_UNA], t[c, RECOVER]):
        return False  # duplicates of what a timeout sent again (RFC 6582, 3.2, step 2)
    if e[i, E_LEN] > t[c, MSS] and not tq_split(g, t, e, c, i, t[c, MSS]):
        return False
    mark_lost(t, e, c, i)
    return True


@kernel
def timed_out(g, t, e, c):
    """A retransmission timeout: all that is not known to have arrived is lost (RFC 6298, 5; 5681, 3.1)."""
    i = t[c, TQ_HEAD]
    renege = i != 0 and e[i, X_STATE] & XS_SACKED != 0  # it was dropped after all (RFC 2018, 8)
    while i != 0:
        if renege and e[i, X_STATE] & XS_SACKED:
            e[i, X_STATE] &= ~XS_SACKED
            t[c, SACKED] -= e[i, E_LEN]
        if e[i, X_STATE] & XS_SACKED == 0:
            mark_lost(t, e, c, i)
        i = e[i, E_NEXT]
    if t[c, FLAGS] & CF_LOSS == 0:
        cubic_reduce(t, c)
    t[c, CWND] = t[c, MSS]
    t[c, RECOVER] = t[c, SND_NXT]
    t[c, DUPACKS] = 0
    t[c, PTO_AT] = t[c, REO_AT] = 0
    t[c, TLP_END] = -1
    t[c, FLAGS] = (t[c, FLAGS] | CF_LOSS | CF_LIMITED) & ~CF_RECOVERY


@kernel
def all_lost(t, e, c):
    """Send all that is in flight again, for a reason that is no congestion: it was too big for the path."""
    i = t[c, TQ_HEAD]
    while i != 0:
        if e[i, X_STATE] & XS_SACKED == 0:
            mark_lost(t, e, c, i)
        i = e[i, E_NEXT]
