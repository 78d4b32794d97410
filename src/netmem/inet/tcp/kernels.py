"""TCP's fast path: lookup, header prediction, receive queues, acknowledgements, windows.

``g`` is the stack arena, ``t`` the connection table, ``e`` the receive entries, ``meta`` and
``rows`` a received batch. What is not plain goes on the slow list for the state machine.
"""

from __future__ import annotations

from netmem.base.formats import ACK, PSH
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import memcpy
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
    CR_AVAIL,
    CR_BUFLEN,
    CR_HHOST,
    CR_HOST,
    CR_HPOOL,
    CR_HSHIFT,
    CR_OOO,
    CR_OOO_N,
    CR_POOL,
    CR_RESERVE,
    CR_SHIFT,
    CR_WORDS,
    DATA_AT,
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
    G_BATCH,
    G_BUCKETS,
    G_COUNTERS,
    G_CREDIT,
    G_DELACK,
    G_HASH_AT,
    G_NOW,
    G_PRUNE_AT,
    G_QUEUE,
    G_RELEASE,
    G_RELEASE_AT,
    G_ROWS,
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
    PER,
    PERSIST_AT,
    PLEDGED,
    PORTS,
    QUEUE,
    RADDR,
    RADDR_HI,
    RCV_ADV,
    RCV_MSS,
    RCV_NXT,
    RELEASE_ROOM,
    RQ_BUFS,
    RQ_BYTES,
    RQ_HEAD,
    RQ_TAIL,
    S_DUP_DROPPED,
    S_IN_FAST,
    S_IN_SEGS,
    S_MERGED,
    S_OOO_PRUNED,
    S_OOO_QUEUED,
    S_OVER_SHARE,
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
from netmem.inet.tcp.window import came, may_take, pressure, reclaim, took, trim
from netmem.memory.ref import offset_of
from netmem.netdev.ring import DMA_ALIGN, HEADER_BYTES
from netmem.netdev.words import (
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
    M_ROWS,
)

OOO_SHARE, OOO_LEAST = 8, 4
STALE_NS = 1_000_000_000  # a sender has tried again by then, several times
MERGE_MOST = 512  # bytes: what is longer is not worth a copy


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
def buffer_end(g, credit, pool, offset):
    """Where the buffer of an offset in a netmem ends; 0: memory that cannot be written here."""
    if pool == g[credit + CR_POOL] and g[credit + CR_HOST] != 0:
        size = g[credit + CR_BUFLEN]
    elif pool == g[credit + CR_HPOOL] and g[credit + CR_HHOST] != 0:
        size = HEADER_BYTES
    else:
        return 0
    stride = (size + DMA_ALIGN - 1) // DMA_ALIGN * DMA_ALIGN
    return offset // stride * stride + size


@inline_kernel
def host_of(g, credit, ref, offset, pool):
    """Host address of a place in the queue's payload or header memory, which must be readable."""
    at = credit + (CR_HOST if pool == g[credit + CR_POOL] else CR_HHOST)
    shift = g[credit + (CR_SHIFT if pool == g[credit + CR_POOL] else CR_HSHIFT)]
    return g[at] + offset_of(ref, shift) + offset


@kernel
def merge(g, t, e, c, length, ref, offset, pool, kind):
    """Copy a short piece behind the last one of the receive queue, if that one's buffer has room.

    So a peer that sends a byte at a time takes a buffer for many of them, where memory is readable.
    """
    i = t[c, RQ_TAIL]
    if i == 0 or e[i, E_KIND] != kind:
        return False
    at = G_CREDIT + CR_WORDS * t[c, QUEUE]
    end = e[i, E_OFFSET] + e[i, E_LEN]
    if end + length > buffer_end(g, at, e[i, E_POOL], e[i, E_OFFSET]) or buffer_end(g, at, pool, offset) == 0:
        return False
    memcpy(
        host_of(g, at, e[i, E_NETMEM], end, e[i, E_POOL]), host_of(g, at, ref, offset, pool), length
    )
    e[i, E_LEN] += length
    t[c, RQ_BYTES] += length
    t[c, BYTES_IN] += length
    t[c, RCV_NXT] = (t[c, RCV_NXT] + length) & MASK32
    g[G_COUNTERS + S_MERGED] += 1
    return True


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
    if length <= MERGE_MOST and seq == t[c, RCV_NXT] and merge(g, t, e, c, length, ref, offset, pool, kind):
        return False
    # What is pledged is there for whoever fills his buffers; everybody else is looked at.
    if (t[c, PLEDGED] <= 0 or 2 * length < t[c, PER]) and not may_take(g, t, c, length):
        if seq != t[c, RCV_NXT] or t[c, OQ_HEAD] == 0:
            g[G_COUNTERS + S_OVER_SHARE] += 1
            return False
        prune_highest(g, t, e, c)  # what fills the gap is worth more than what waits behind it
    i = entry_new(g, e, seq, length, ref, offset, pool, kind)
    if i == 0:
        return False
    if seq == t[c, RCV_NXT]:
        append(t, e, c, i)
    elif not insert_out_of_order(g, t, e, c, i):
        return False
    if pool == g[G_CREDIT + CR_WORDS * t[c, QUEUE] + CR_POOL]:
        took(g, t, c, 1)
    return True


@inline_kernel
def ooo_share(g, credit):
    """Most out-of-order buffers of one connection: some times what all leave of the room but an eighth.

    That eighth is for whoever has next to nothing, so that nobody can fill all of it.
    """
    have, held = g[credit + CR_OOO], g[credit + CR_OOO_N]
    return max(OOO_SHARE * (have - have // 8 - held), OOO_LEAST if held < have else 0)


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
    share = ooo_share(g, credit)
    if e[i, E_LEN] <= 0 or (after == 0 and t[c, OQ_BUFS] >= share):
        if e[i, E_LEN] <= 0:
            g[G_COUNTERS + S_DUP_DROPPED] += 1
            dsack_note(t, c, seq, length)
        else:
            g[G_COUNTERS + S_OOO_PRUNED] += 1
            prune_stale(g, t, e)
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
    if t[c, OQ_BUFS] > share:
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
def prune_stale(g, t, e):
    """There is no room for out-of-order data: whoever has waited long for what fills a gap gives up most."""
    if g[G_NOW] < g[G_PRUNE_AT]:
        return
    g[G_PRUNE_AT] = g[G_NOW] + STALE_NS // 8
    for c in range(g[G_ROWS]):
        if t[c, OQ_BUFS] > OOO_LEAST and g[G_NOW] - t[c, DATA_AT] >= STALE_NS:
            while t[c, OQ_BUFS] > OOO_LEAST and g[G_RELEASE] < RELEASE_ROOM // 2:
                prune_highest(g, t, e, c)


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
    """Queue the payload of packet ``i`` and all merged into it, as far as the connection's share goes.

    A buffer that is taken is taken from the row too (netmem 0); the rest stays the driver's.
    """
    at = G_CREDIT + CR_WORDS * t[c, QUEUE]
    if g[at + CR_AVAIL] < g[at + CR_RESERVE] >> 1:
        g[G_COUNTERS + S_POOL_LOW] += 1
        return
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
                seq = (seq + piece[B_SIZE]) & MASK32
            part = piece[B_MORE]
        i = row[B_NEXT]
    if t[c, OQ_HEAD] != 0:
        drain_out_of_order(g, t, e, c)


@inline_kernel
def on_loan(g, t, meta, rows):
    """The batch's payload buffers can still be received into: what the stack leaves is posted again."""
    at = G_CREDIT + CR_WORDS * g[G_QUEUE]
    pool = g[at + CR_POOL]
    n = 0
    for i in range(meta[M_ROWS]):
        row = rows[i]
        if row[B_NETMEM] != 0 or (row[B_HNETMEM] != 0 and row[B_HPOOL] == pool):
            n += 1
    g[at + CR_AVAIL] += n
    trim(g, t, g[G_QUEUE])
    if pressure(g, at):
        reclaim(g, t)


@kernel
def tcp_rx(g, t, e, meta, rows, txm):
    """Header prediction for a batch; returns how many packets went on the slow list."""
    g[G_TOUCHED] = 0
    g[G_SLOW] = 0
    slow = 0
    batch = g[G_BATCH]
    on_loan(g, t, meta, rows)
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
        tcp_data(g, t, e, rows, i, c)
        received(g, t, c, seq_diff(t[c, RCV_NXT], before))
    return True


@kernel
def received(g, t, c, length):
    """Data came in: account for it, decide when to acknowledge."""
    if length <= 0:
        t[c, FLAGS] |= CF_ACK_NOW
        return
    t[c, DATA_AT] = g[G_NOW]
    came(g, t, c, length)
    t[c, ACK_PENDING] += length
    if t[c, ACK_PENDING] >= 2 * t[c, RCV_MSS]:
        t[c, FLAGS] |= CF_ACK_NOW
    elif t[c, DELACK_AT] == 0:
        t[c, DELACK_AT] = g[G_NOW] + g[G_DELACK]
        arm(g, t[c, DELACK_AT])
