"""TCP's fast path: lookup, header prediction, receive queues, acknowledgements, windows.

``g`` is the stack arena, ``t`` the connection table, ``e`` the receive entries, ``meta`` and
``rows`` a received batch. What is not plain goes on the slow list for the state machine.
"""

from __future__ import annotations

from netmem.base.formats import ACK, PSH
from netmem.base.jit import inline_kernel, kernel
from netmem.inet.tcp.entries import entry_free, entry_take
from netmem.inet.tcp.recovery import advance_una, arm
from netmem.inet.tcp.sack import dsack_note, sack_note
from netmem.inet.tcp.tcb import (
    ACK_PENDING,
    BACKOFF,
    BYTES_IN,
    CF_ACK_NOW,
    CF_FIN_SEEN,
    CF_LOSS,
    CF_RECOVERY,
    CF_TS,
    CR_BUFLEN,
    CR_OOO,
    CR_OOO_N,
    CR_OUT,
    CR_RESERVE,
    CR_WORDS,
    DELACK_AT,
    DUPACKS,
    E_KIND,
    E_LEN,
    E_NETMEM,
    E_NEXT,
    E_OFFSET,
    E_POOL,
    E_SEQ,
    EK_COPY,
    EK_FRAG,
    EK_LINEAR,
    ESTABLISHED,
    FLAGS,
    G_AVAIL,
    G_BATCH,
    G_BUCKETS,
    G_COUNTERS,
    G_CREDIT,
    G_DELACK,
    G_HASH_AT,
    G_NOW,
    G_QUEUE,
    G_RELEASE,
    G_RELEASE_AT,
    G_SLOW,
    G_SLOW_AT,
    G_TOKENS,
    G_TOUCHED,
    G_TOUCHED_AT,
    LADDR,
    LADDR_HI,
    LAST_ACK_SENT,
    LAST_IN,
    MASK32,
    MAX_SND_WND,
    NEXT,
    OQ_BUFS,
    OQ_BYTES,
    OQ_HEAD,
    OQ_TAIL,
    OUT,
    PERSIST_AT,
    PORTS,
    PPN,
    QUEUE,
    RADDR,
    RADDR_HI,
    RCV_ADV,
    RCV_MSS,
    RCV_NXT,
    RQ_BUFS,
    RQ_BYTES,
    RQ_HEAD,
    RQ_TAIL,
    S_DUP_DROPPED,
    S_IN_FAST,
    S_IN_SEGS,
    S_OOO_PRUNED,
    S_OOO_QUEUED,
    S_POOL_LOW,
    SACKED,
    SLOW_IN,
    SND_NXT,
    SND_SCALE,
    SND_UNA,
    SND_WL1,
    SND_WL2,
    SND_WND,
    STATE,
    TLP_END,
    TOUCHED,
    TS_RECENT,
    TS_RECENT_AT,
    seq_diff,
    seq_le,
    seq_lt,
)
from netmem.netdev.batch import (
    B_ACK,
    B_DST,
    B_DST_HI,
    B_HNETMEM,
    B_HOFFSET,
    B_HPOOL,
    B_KIND,
    B_LEN,
    B_LIN,
    B_LINLEN,
    B_MORE,
    B_NETMEM,
    B_NEXT,
    B_OFFSET,
    B_POOL,
    B_PORTS,
    B_SACK,
    B_SEQ,
    B_SIZE,
    B_SRC,
    B_SRC_HI,
    B_TFLAGS,
    B_TS,
    B_TSECR,
    B_TSVAL,
    B_WND,
    HEADS,
    KIND_TCP,
    M_HEADS,
)


@inline_kernel
def fold32(high, low):
    """An address as 32 bits, none of which is lost when products with small numbers are added up."""
    return (high ^ (high >> 32) ^ low ^ (low >> 32)) & MASK32


@inline_kernel
def flow_hash(raddr_hi, raddr, laddr_hi, laddr, ports):
    """Bucket number before masking, of a connection's four-tuple."""
    x = (fold32(raddr_hi, raddr) * 0x1E3779B1) ^ (fold32(laddr_hi, laddr) * 0x05EBCA6B)
    x = (x ^ (ports * 0x02B2AE35)) & 0xFFFFFFFFFFFF  # products are below 2**63
    return x ^ (x >> 17)


@inline_kernel
def lookup(g, t, raddr_hi, raddr, laddr_hi, laddr, ports):
    """The row of a connection, or -1."""
    bucket = G_HASH_AT + (flow_hash(raddr_hi, raddr, laddr_hi, laddr, ports) & (g[G_BUCKETS] - 1))
    c = g[bucket] - 1
    while c >= 0:
        if (
            t[c, PORTS] == ports
            and t[c, RADDR] == raddr
            and t[c, LADDR] == laddr
            and t[c, RADDR_HI] == raddr_hi
            and t[c, LADDR_HI] == laddr_hi
        ):
            return c
        c = t[c, NEXT] - 1
    return -1


@inline_kernel
def row_bucket(g, t, c):
    """Where a row's chain starts."""
    x = flow_hash(t[c, RADDR_HI], t[c, RADDR], t[c, LADDR_HI], t[c, LADDR], t[c, PORTS])
    return G_HASH_AT + (x & (g[G_BUCKETS] - 1))


@kernel
def hash_insert(g, t, c):
    """Put a row into the hash table."""
    bucket = row_bucket(g, t, c)
    t[c, NEXT] = g[bucket]
    g[bucket] = c + 1


@kernel
def hash_remove(g, t, c):
    """Take a row out of the hash table."""
    at = row_bucket(g, t, c)
    if g[at] == c + 1:
        g[at] = t[c, NEXT]
        return
    other = g[at] - 1
    while other >= 0:
        if t[other, NEXT] == c + 1:
            t[other, NEXT] = t[c, NEXT]
            return
        other = t[other, NEXT] - 1


@inline_kernel
def touch(g, t, c):
    """Put a connection on the list of those that this batch concerned."""
    if t[c, TOUCHED] != g[G_BATCH]:
        t[c, TOUCHED] = g[G_BATCH]
        g[G_TOUCHED_AT + g[G_TOUCHED]] = c
        g[G_TOUCHED] += 1


@kernel
def release_later(g, ref, pool):
    """Note a netmem for Python to put back."""
    n = g[G_RELEASE]
    g[G_RELEASE_AT + 2 * n] = ref
    g[G_RELEASE_AT + 2 * n + 1] = pool
    g[G_RELEASE] = n + 1


@kernel
def credit_out(g, t, c):
    """Work out anew how many buffers a connection's advertised window may still fill."""
    left = seq_diff(t[c, RCV_ADV], t[c, RCV_NXT]) * 16
    need = (left + t[c, PPN] - 1) // t[c, PPN] if left > 0 else 0
    at = G_CREDIT + CR_WORDS * t[c, QUEUE] + CR_OUT
    g[at] += need - t[c, OUT]
    t[c, OUT] = need


@kernel
def measure(g, t, c, length, bufs):
    """Follow how much payload a buffer really holds for this connection (PPN)."""
    buflen = max(g[G_CREDIT + CR_WORDS * t[c, QUEUE] + CR_BUFLEN], 1)
    full = t[c, RCV_MSS] // max(1, (t[c, RCV_MSS] + buflen - 1) // buflen)
    ppn = t[c, PPN] + ((length * 16 // max(bufs, 1) - t[c, PPN]) >> 3)
    t[c, PPN] = min(max(ppn, 64 * 16), max(full, 64) * 16)


@inline_kernel
def entry_new(g, e, seq, length, ref, offset, pool, kind):
    """A receive entry, 0 when there is none left."""
    i = entry_take(g, e, seq, length)
    if i == 0:
        return 0
    e[i, E_NETMEM], e[i, E_OFFSET], e[i, E_POOL], e[i, E_KIND] = ref, offset, pool, kind
    return i


@inline_kernel
def append(t, e, c, i):
    """Entry ``i`` to the end of the receive queue; RCV.NXT moves on."""
    if t[c, RQ_TAIL] != 0:
        e[t[c, RQ_TAIL], E_NEXT] = i
    else:
        t[c, RQ_HEAD] = i
    t[c, RQ_TAIL] = i
    t[c, RQ_BYTES] += e[i, E_LEN]
    t[c, RQ_BUFS] += 1
    t[c, BYTES_IN] += e[i, E_LEN]
    t[c, RCV_NXT] = (t[c, RCV_NXT] + e[i, E_LEN]) & MASK32


@inline_kernel
def deliver(g, t, e, c, seq, length, ref, offset, pool, kind):
    """One piece of payload for a connection. True when its buffer was taken."""
    skip = seq_diff(t[c, RCV_NXT], seq)
    if skip >= length:
        g[G_COUNTERS + S_DUP_DROPPED] += 1
        dsack_note(t, c, seq, length)
        return False
    if skip > 0:
        dsack_note(t, c, seq, skip)
        seq, offset, length = (seq + skip) & MASK32, offset + skip, length - skip
    over = seq_diff((seq + length) & MASK32, t[c, RCV_ADV])
    if over > 0:
        length -= over
        if length <= 0:
            return False
    i = entry_new(g, e, seq, length, ref, offset, pool, kind)
    if i == 0:
        return False
    if seq == t[c, RCV_NXT]:
        append(t, e, c, i)
        return True
    return insert_out_of_order(g, t, e, c, i)


@kernel
def insert_out_of_order(g, t, e, c, i):
    """Entry ``i`` into the out-of-order queue, cut to the gap it falls into."""
    seq, end = e[i, E_SEQ], (e[i, E_SEQ] + e[i, E_LEN]) & MASK32
    length = e[i, E_LEN]
    before, after = 0, t[c, OQ_HEAD]
    tail = t[c, OQ_TAIL]
    if tail != 0 and seq_le((e[tail, E_SEQ] + e[tail, E_LEN]) & MASK32, seq):
        before, after = tail, 0
    while after != 0 and seq_le(e[after, E_SEQ], seq):
        before, after = after, e[after, E_NEXT]
    if before != 0:
        over = seq_diff((e[before, E_SEQ] + e[before, E_LEN]) & MASK32, seq)
        if over > 0:
            e[i, E_SEQ] = (seq + over) & MASK32
            e[i, E_OFFSET] += over
            e[i, E_LEN] -= over
    if after != 0:
        over = seq_diff(end, e[after, E_SEQ])
        if over > 0:
            e[i, E_LEN] -= over
    credit = G_CREDIT + CR_WORDS * t[c, QUEUE]
    limit = max(g[credit + CR_OOO], 4)
    if e[i, E_LEN] <= 0 or (after == 0 and g[credit + CR_OOO_N] >= limit):
        if e[i, E_LEN] <= 0:
            g[G_COUNTERS + S_DUP_DROPPED] += 1
            dsack_note(t, c, seq, length)
        else:
            g[G_COUNTERS + S_OOO_PRUNED] += 1
        entry_free(g, e, i)
        return False
    e[i, E_NEXT] = after
    if before != 0:
        e[before, E_NEXT] = i
    else:
        t[c, OQ_HEAD] = i
    if after == 0:
        t[c, OQ_TAIL] = i
    t[c, OQ_BYTES] += e[i, E_LEN]
    t[c, OQ_BUFS] += 1
    g[credit + CR_OOO_N] += 1
    g[G_COUNTERS + S_OOO_QUEUED] += 1
    sack_note(t, c, e[i, E_SEQ])
    if g[credit + CR_OOO_N] > limit:
        prune_highest(g, t, e, c)
    return True


@kernel
def prune_highest(g, t, e, c):
    """Drop the highest out-of-order entry: the peer sends it again, the gap matters more."""
    before, last = 0, t[c, OQ_HEAD]
    while e[last, E_NEXT] != 0:
        before, last = last, e[last, E_NEXT]
    if before != 0:
        e[before, E_NEXT] = 0
    else:
        t[c, OQ_HEAD] = 0
    t[c, OQ_TAIL] = before
    t[c, OQ_BYTES] -= e[last, E_LEN]
    t[c, OQ_BUFS] -= 1
    g[G_CREDIT + CR_WORDS * t[c, QUEUE] + CR_OOO_N] -= 1
    release_later(g, e[last, E_NETMEM], e[last, E_POOL])
    entry_free(g, e, last)
    g[G_COUNTERS + S_OOO_PRUNED] += 1


@kernel
def drain_out_of_order(g, t, e, c):
    """Move entries that have become contiguous to the receive queue."""
    i = t[c, OQ_HEAD]
    while i != 0 and seq_le(e[i, E_SEQ], t[c, RCV_NXT]):
        following = e[i, E_NEXT]
        t[c, OQ_BYTES] -= e[i, E_LEN]
        t[c, OQ_BUFS] -= 1
        g[G_CREDIT + CR_WORDS * t[c, QUEUE] + CR_OOO_N] -= 1
        skip = seq_diff(t[c, RCV_NXT], e[i, E_SEQ])
        if skip >= e[i, E_LEN]:
            release_later(g, e[i, E_NETMEM], e[i, E_POOL])
            entry_free(g, e, i)
        else:
            e[i, E_OFFSET] += skip
            e[i, E_LEN] -= skip
            e[i, E_SEQ] = (e[i, E_SEQ] + skip) & MASK32
            e[i, E_NEXT] = 0
            append(t, e, c, i)
        i = following
    t[c, OQ_HEAD] = i
    if i == 0:
        t[c, OQ_TAIL] = 0


@inline_kernel
def tcp_data(g, t, e, rows, i, c):
    """Queue the payload of packet ``i`` and all merged into it. Returns buffers taken.

    A buffer that is taken is taken from the row too (netmem 0); the rest stays the driver's.
    """
    if g[G_AVAIL] < g[G_CREDIT + CR_WORDS * t[c, QUEUE] + CR_RESERVE] >> 1:
        g[G_COUNTERS + S_POOL_LOW] += 1
        return 0
    taken = 0
    kind = EK_FRAG if g[G_TOKENS] else EK_COPY
    while i >= 0:
        row = rows[i]
        seq = row[B_SEQ]
        if row[B_LINLEN] > 0:
            if deliver(
                g, t, e, c, seq, row[B_LINLEN], row[B_HNETMEM], row[B_HOFFSET] + row[B_LIN],
                row[B_HPOOL], EK_LINEAR if g[G_TOKENS] else EK_COPY,
            ):
                row[B_HNETMEM] = 0
                taken += 1
            seq = (seq + row[B_LINLEN]) & MASK32
        part = i
        while part >= 0:
            piece = rows[part]
            if piece[B_SIZE] > 0:
                if deliver(
                    g, t, e, c, seq, piece[B_SIZE], piece[B_NETMEM], piece[B_OFFSET],
                    piece[B_POOL], kind,
                ):
                    piece[B_NETMEM] = 0
                    taken += 1
                seq = (seq + piece[B_SIZE]) & MASK32
            part = piece[B_MORE]
        i = row[B_NEXT]
    if t[c, OQ_HEAD] != 0:
        drain_out_of_order(g, t, e, c)
    return taken


@kernel
def tcp_rx(g, t, e, meta, rows, txm):
    """Header prediction for a batch; returns how many packets went on the slow list."""
    g[G_TOUCHED] = 0
    g[G_SLOW] = 0
    slow = 0
    batch = g[G_BATCH]
    for n in range(meta[M_HEADS]):
        i = meta[HEADS + n]
        row = rows[i]
        c = -1
        fast = False
        if row[B_KIND] == KIND_TCP:
            g[G_COUNTERS + S_IN_SEGS] += 1
            c = lookup(g, t, row[B_SRC_HI], row[B_SRC], row[B_DST_HI], row[B_DST], row[B_PORTS])
            if c >= 0 and t[c, SLOW_IN] != batch and t[c, STATE] == ESTABLISHED:
                fast = predict(g, t, e, rows, i, c, txm)
        if not fast:
            if c >= 0:
                t[c, SLOW_IN] = batch
            g[G_SLOW_AT + slow] = i
            slow += 1
    g[G_SLOW] = slow
    return slow


@inline_kernel
def predict(g, t, e, rows, i, c, txm):
    """One packet of an established connection; False: not plain, leave it to the state machine."""
    row = rows[i]
    length, ack, seq = row[B_LEN], row[B_ACK], row[B_SEQ]
    if row[B_TFLAGS] & ~PSH != ACK or seq != t[c, RCV_NXT] or t[c, OQ_HEAD] != 0:
        return False
    if t[c, FLAGS] & (CF_RECOVERY | CF_LOSS | CF_FIN_SEEN) or t[c, QUEUE] != g[G_QUEUE]:
        return False
    if row[B_SACK] != 0 or t[c, SACKED] != 0 or t[c, TLP_END] >= 0 or t[c, DUPACKS] != 0:
        return False
    if seq_lt(ack, t[c, SND_UNA]) or seq_lt(t[c, SND_NXT], ack):
        return False
    if length > seq_diff(t[c, RCV_ADV], seq):
        return False
    wnd = row[B_WND] << t[c, SND_SCALE]
    if length == 0 and ack == t[c, SND_UNA] and (wnd == t[c, SND_WND] or wnd == 0):
        return False  # a duplicate acknowledgement, or an answer to a probe
    if t[c, FLAGS] & CF_TS:
        if row[B_TS] == 0 or seq_lt(row[B_TSVAL], t[c, TS_RECENT]):
            return False
        if seq_le(seq, t[c, LAST_ACK_SENT]):
            t[c, TS_RECENT], t[c, TS_RECENT_AT] = row[B_TSVAL], g[G_NOW]
    t[c, LAST_IN] = g[G_NOW]
    if ack != t[c, SND_UNA]:
        advance_una(g, t, e, c, ack, row[B_TSECR] if row[B_TS] else -1, txm)
    if seq_lt(t[c, SND_WL1], seq) or (t[c, SND_WL1] == seq and seq_le(t[c, SND_WL2], ack)):
        t[c, SND_WND], t[c, SND_WL1], t[c, SND_WL2] = wnd, seq, ack
        t[c, MAX_SND_WND] = max(t[c, MAX_SND_WND], wnd)
        if wnd != 0 and t[c, PERSIST_AT] != 0:
            t[c, PERSIST_AT] = t[c, BACKOFF] = 0
    touch(g, t, c)
    g[G_COUNTERS + S_IN_FAST] += 1
    if length > 0:
        before = t[c, RCV_NXT]
        taken = tcp_data(g, t, e, rows, i, c)
        received(g, t, c, seq_diff(t[c, RCV_NXT], before), taken)
    return True


@kernel
def received(g, t, c, length, taken):
    """Data came in: measure it, account for it, decide when to acknowledge."""
    if length <= 0:
        t[c, FLAGS] |= CF_ACK_NOW
        return
    measure(g, t, c, length, taken)
    credit_out(g, t, c)
    t[c, ACK_PENDING] += length
    if t[c, ACK_PENDING] >= 2 * t[c, RCV_MSS]:
        t[c, FLAGS] |= CF_ACK_NOW
    elif t[c, DELACK_AT] == 0:
        t[c, DELACK_AT] = g[G_NOW] + g[G_DELACK]
        arm(g, t[c, DELACK_AT])
