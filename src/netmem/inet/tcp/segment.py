"""A segment as it leaves: its window, its headers, and where its payload lies (kernels)."""

from __future__ import annotations

from netmem.base.formats import (
    ACK,
    ETH_HLEN,
    FIN,
    IP6_PLEN,
    IP_CSUM,
    IP_HLEN,
    IP_ID,
    IP_TOTLEN,
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
from netmem.base.jit import (
    kernel,
)
from netmem.base.native import (
    memcpy,
    store_be16,
    store_be32,
    store_u8,
)
from netmem.inet.tcp.recovery import (
    MS,
)
from netmem.inet.tcp.sack import (
    sack_option,
)
from netmem.inet.tcp.tcb import (
    ACK_PENDING,
    ADV_MSS,
    CF_ACK_NOW,
    CF_SACK,
    CF_TS,
    CF_V6,
    CF_WSCALE,
    DELACK_AT,
    DSACK_END,
    DSACK_START,
    E_LEN,
    E_NEXT,
    FLAGS,
    G_COUNTERS,
    G_IP_ID,
    G_NOW,
    G_TS_BASE,
    LAST_ACK_SENT,
    MASK32,
    MSS,
    OQ_HEAD,
    RCV_ADV,
    RCV_BUF,
    RCV_NXT,
    RCV_SCALE,
    S_OUT_SEGS,
    S_TX_FULL,
    SB_OFFSET,
    SB_SIZE,
    SP_HEAD,
    SP_NEXT,
    TCB_WORDS,
    TPL,
    TPL_LEN,
    TS_RECENT,
    Y_IO,
    Y_START,
    seq_diff,
)
from netmem.inet.tcp.window import select_window
from netmem.netdev.tx import SLOT_BYTES, TX_ROWS
from netmem.netdev.words import (
    T_FULL,
    T_HEAD,
    T_IO,
    T_SLOTS,
    T_TAIL,
    TX_CSUM,
    TX_NETMEM,
    X_FLAGS,
    X_GSO,
    X_HLEN,
    X_P2LEN,
    X_PAY,
    X_PAY2,
    X_PLEN,
)

IP_MAX = 65535


@kernel
def tx_row(g, txm, txr):
    """The next free transmit row, -1 when all are in use."""
    if txm[T_TAIL] - txm[T_HEAD] >= TX_ROWS:
        txm[T_FULL] += 1
        g[G_COUNTERS + S_TX_FULL] += 1
        return -1
    return txm[T_TAIL] & (TX_ROWS - 1)


@kernel
def tcp_header(g, t, e, c, txm, txr, seq, flags, length):
    """Start a segment in the next transmit row: all headers, no payload yet. Returns the row or -1."""
    r = tx_row(g, txm, txr)
    if r < 0:
        return -1
    at = txm[T_SLOTS] + r * SLOT_BYTES
    memcpy(at, t.ctypes.data + 8 * (c * TCB_WORDS + TPL), t[c, TPL_LEN])
    ip, tcp = at + ETH_HLEN, at + t[c, TPL_LEN] - TCP_HLEN
    size = TCP_HLEN
    stamp = (g[G_NOW] // MS + g[G_TS_BASE]) & MASK32
    if flags & SYN:
        store_be32(tcp + size, 0x02040000 | t[c, ADV_MSS])
        size += 4
        if t[c, FLAGS] & CF_WSCALE:
            store_be32(tcp + size, 0x01030300 | t[c, RCV_SCALE])
            size += 4
        if t[c, FLAGS] & CF_SACK:
            store_be32(tcp + size, 0x01010402)
            size += 4
    if t[c, FLAGS] & CF_TS and flags & RST == 0:
        store_be32(tcp + size, 0x0101080A)
        store_be32(tcp + size + 4, stamp)
        store_be32(tcp + size + 8, t[c, TS_RECENT] if flags & ACK else 0)
        size += 12
    if length == 0 and flags & (SYN | RST | FIN) == 0 and t[c, FLAGS] & CF_SACK:
        if t[c, OQ_HEAD] != 0 or t[c, DSACK_START] != t[c, DSACK_END]:
            size += sack_option(g, t, e, c, tcp + size)
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
    if t[c, FLAGS] & CF_V6:
        store_be16(ip + IP6_PLEN, min(size + length, IP_MAX))
    else:
        store_be16(ip + IP_TOTLEN, min(IP_HLEN + size + length, IP_MAX))
        store_be16(ip + IP_ID, g[G_IP_ID])
        g[G_IP_ID] = (g[G_IP_ID] + 1 + length // max(t[c, MSS], 1)) & 0xFFFF
        store_be16(ip + IP_CSUM, 0)
        store_be16(ip + IP_CSUM, csum_fold(csum_add(ip, IP_HLEN, 0)))
    txr[r, X_HLEN] = t[c, TPL_LEN] - TCP_HLEN + size
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
def span_at(t, e, c, offset):
    """The span that stream offset ``offset`` lies in or comes before, 0: neither."""
    i = t[c, SP_NEXT]
    if i == 0 or offset < e[i, Y_START]:
        i = t[c, SP_HEAD]
    while i != 0 and e[i, Y_START] + e[i, E_LEN] <= offset:
        i = e[i, E_NEXT]
    return i


@kernel
def piece(t, e, c, offset, length):
    """How much of ``length`` bytes at a stream offset one transmit row can name: never both memories."""
    if t[c, SP_HEAD] == 0:
        return length
    i = span_at(t, e, c, offset)
    if i == 0:
        return length
    if offset < e[i, Y_START]:
        return min(length, e[i, Y_START] - offset)
    end = e[i, Y_START] + e[i, E_LEN]
    following = e[i, E_NEXT]
    if following != 0 and e[following, Y_START] == end:
        end += e[following, E_LEN]
    return min(length, end - offset)


@kernel
def payload(t, e, c, txm, txr, r, offset, length):
    """Name ``length`` bytes at stream offset ``offset`` in row ``r``, as ``piece`` allowed."""
    if length > t[c, MSS]:
        txr[r, X_GSO] = t[c, MSS]
    if t[c, SP_HEAD] != 0:
        i = span_at(t, e, c, offset)
        if i != 0 and offset >= e[i, Y_START]:
            first = min(length, e[i, Y_START] + e[i, E_LEN] - offset)
            txr[r, X_PAY], txr[r, X_PLEN] = e[i, Y_IO] + offset - e[i, Y_START], first
            if first < length:
                txr[r, X_PAY2], txr[r, X_P2LEN] = e[e[i, E_NEXT], Y_IO], length - first
            t[c, SP_NEXT] = i
            txr[r, X_FLAGS] |= TX_NETMEM
            return
    size = t[c, SB_SIZE]
    at = offset % size
    first = min(length, size - at)
    io = txm[T_IO] + t[c, SB_OFFSET]
    txr[r, X_PAY], txr[r, X_PLEN] = io + at, first
    txr[r, X_PAY2], txr[r, X_P2LEN] = io, length - first
