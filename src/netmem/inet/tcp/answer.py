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
from netmem.base.record import Record, i64
from netmem.inet.tcp.segment import begin_row, next_row, slot_of
from netmem.inet.tcp.tcb import MASK32, StackRecord
from netmem.netdev.batch import BatchRecord, row_of
from netmem.netdev.tx import TxQueueRecord, tx_row

TTL = 64


class Answer(Record):
    """What a segment of no connection is to say; the rest comes from the segment that it answers."""

    mac: i64  # ours
    seq: i64
    ack: i64
    flags: i64
    window: i64
    # Of a SYN.
    mss: i64
    scale: i64  # -1: without
    sack: i64
    stamp: i64  # -1: without
    echo: i64


@inline_kernel
def syn_options(at: int, offer: Answer) -> int:
    """The options of a SYN-ACK at address ``at``; their length."""
    store_be32(at, 0x02040000 | offer.mss)
    size = 4
    if offer.scale >= 0:
        store_be32(at + size, 0x01030300 | offer.scale)
        size += 4
    if offer.sack != 0:
        store_be32(at + size, 0x01010402)
        size += 4
    if offer.stamp >= 0:
        store_be32(at + size, 0x0101080A)
        store_be32(at + size + 4, offer.stamp)
        store_be32(at + size + 8, offer.echo)
        size += 12
    return size


@kernel
def answer(stack_at: int, batch_at: int, i: int, answer_at: int) -> bool:
    """One segment back to whoever sent packet ``i`` of a batch. False: no transmit row is free."""
    stack, what = StackRecord.at(stack_at), Answer.at(answer_at)
    r = next_row(stack)
    if r < 0:
        return False
    queue, row, flags = TxQueueRecord.at(stack.tx), row_of(BatchRecord.at(batch_at), i), what.flags
    at, came = slot_of(queue, r), row.header
    from_ip = came + row.l3
    memcpy(at, came + 6, 6)
    store_be16(at + 6, what.mac >> 32)
    store_be32(at + 8, what.mac & MASK32)
    ip = at + ETH_HLEN
    six = load_u8(from_ip + IP_VIHL) >> 4 == 6
    tcp = ip + (IP6_HLEN if six else IP_HLEN)
    size = TCP_HLEN
    if flags & SYN:
        size += syn_options(tcp + TCP_HLEN, what)
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
    store_be16(tcp + TCP_SPORT, row.ports & 0xFFFF)
    store_be16(tcp + TCP_DPORT, row.ports >> 16)
    store_be32(tcp + TCP_SEQ, what.seq)
    store_be32(tcp + TCP_ACK, what.ack if flags & ACK else 0)
    store_u8(tcp + TCP_DATAOFF, size << 2)
    store_u8(tcp + TCP_FLAGS, flags)
    store_be16(tcp + TCP_WINDOW, what.window)
    store_be16(tcp + TCP_WINDOW + 2, 0)
    store_be16(tcp + TCP_WINDOW + 4, 0)
    begin_row(tx_row(queue, r), tcp + size - at)
    queue.filled += 1
    stack.counters.out_segs += 1
    return True
