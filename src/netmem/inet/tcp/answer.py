"""Answers to segments that no connection has: resets, and SYN cookies (kernels).

They go back the way the segment came, from its own headers: no row, no neighbour is looked up, so that a
flood from invented addresses costs neither.
"""

from __future__ import annotations

from netmem.base.formats import (
    ACK,
    ETH_HLEN,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IP6_DST,
    IP6_HLEN,
    IP6_HOPS,
    IP6_NEXT,
    IP6_PLEN,
    IP6_SRC,
    IP_CSUM,
    IP_DF,
    IP_DST,
    IP_FRAG,
    IP_HLEN,
    IP_ID,
    IP_PROTO,
    IP_SRC,
    IP_TOTLEN,
    IP_TTL,
    IP_VIHL,
    PROTO_TCP,
    SYN,
    TCP_ACK,
    TCP_DATAOFF,
    TCP_DPORT,
    TCP_FLAGS,
    TCP_HLEN,
    TCP_SEQ,
    TCP_SPORT,
    TCP_WINDOW,
    csum_add,
    csum_fold,
)
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load_u8, memcpy, store_be16, store_be32, store_u8
from netmem.inet.tcp.segment import tx_row
from netmem.inet.tcp.tcb import G_COUNTERS, MASK32, S_OUT_SEGS
from netmem.netdev.tx import SLOT_BYTES
from netmem.netdev.words import (
    B_HDR,
    B_L3,
    B_PORTS,
    T_SLOTS,
    T_TAIL,
    TX_CSUM,
    X_FLAGS,
    X_GSO,
    X_HLEN,
    X_P2LEN,
    X_PLEN,
)

TTL = 64


@inline_kernel
def syn_options(at, mss, scale, sack, stamp, echo):
    """The options of a SYN-ACK at address ``at``; their length. ``scale`` and ``stamp`` -1: without."""
    store_be32(at, 0x02040000 | mss)
    size = 4
    if scale >= 0:
        store_be32(at + size, 0x01030300 | scale)
        size += 4
    if sack != 0:
        store_be32(at + size, 0x01010402)
        size += 4
    if stamp >= 0:
        store_be32(at + size, 0x0101080A)
        store_be32(at + size + 4, stamp)
        store_be32(at + size + 8, echo)
        size += 12
    return size


@kernel
def answer(g, txm, txr, rows, i, mac, seq, ack, flags, window, mss, scale, sack, stamp, echo):
    """One segment back to whoever sent packet ``i``, from our ``mac``. False: no transmit row is free."""
    r = tx_row(g, txm, txr)
    if r < 0:
        return False
    row = rows[i]
    at, came = txm[T_SLOTS] + r * SLOT_BYTES, row[B_HDR]
    from_ip = came + row[B_L3]
    memcpy(at, came + 6, 6)
    store_be16(at + 6, mac >> 32)
    store_be32(at + 8, mac & MASK32)
    ip = at + ETH_HLEN
    six = load_u8(from_ip + IP_VIHL) >> 4 == 6
    tcp = ip + (IP6_HLEN if six else IP_HLEN)
    size = TCP_HLEN
    if flags & SYN:
        size += syn_options(tcp + TCP_HLEN, mss, scale, sack, stamp, echo)
    if six:
        store_be16(at + 12, ETHERTYPE_IPV6)
        store_be32(ip, 6 << 28)
        store_be16(ip + IP6_PLEN, size)
        store_u8(ip + IP6_NEXT, PROTO_TCP)
        store_u8(ip + IP6_HOPS, TTL)
        memcpy(ip + IP6_SRC, from_ip + IP6_DST, 16)
        memcpy(ip + IP6_DST, from_ip + IP6_SRC, 16)
    else:
        store_be16(at + 12, ETHERTYPE_IPV4)
        store_be16(ip + IP_VIHL, 0x4500)
        store_be16(ip + IP_TOTLEN, IP_HLEN + size)
        store_be16(ip + IP_ID, 0)  # atomic: never a fragment (RFC 6864, 4.1)
        store_be16(ip + IP_FRAG, IP_DF)
        store_u8(ip + IP_TTL, TTL)
        store_u8(ip + IP_PROTO, PROTO_TCP)
        store_be16(ip + IP_CSUM, 0)
        memcpy(ip + IP_SRC, from_ip + IP_DST, 4)
        memcpy(ip + IP_DST, from_ip + IP_SRC, 4)
        store_be16(ip + IP_CSUM, csum_fold(csum_add(ip, IP_HLEN, 0)))
    store_be16(tcp + TCP_SPORT, row[B_PORTS] & 0xFFFF)
    store_be16(tcp + TCP_DPORT, row[B_PORTS] >> 16)
    store_be32(tcp + TCP_SEQ, seq)
    store_be32(tcp + TCP_ACK, ack if flags & ACK else 0)
    store_u8(tcp + TCP_DATAOFF, size << 2)
    store_u8(tcp + TCP_FLAGS, flags)
    store_be16(tcp + TCP_WINDOW, window)
    store_be16(tcp + TCP_WINDOW + 2, 0)
    store_be16(tcp + TCP_WINDOW + 4, 0)
    txr[r, X_HLEN] = tcp + size - at
    txr[r, X_PLEN] = txr[r, X_P2LEN] = txr[r, X_GSO] = 0
    txr[r, X_FLAGS] = TX_CSUM
    txm[T_TAIL] += 1
    g[G_COUNTERS + S_OUT_SEGS] += 1
    return True
