"""Answers to segments that no connection has: resets, and SYN cookies (kernels).

They go back the way the segment came, from its own headers: no row, no neighbour is looked up, so that a
flood from invented addresses costs neither.
"""

from __future__ import annotations

from netmem.base.checksum import csum_add, csum_fold
from netmem.base.headers import ACK, IP_DF, PROTO_TCP, SYN, EtherType, EthHdr, Ip6Hdr, IpHdr, TcpHdr
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
    ip = at + EthHdr.LEN
    six = load_u8(from_ip + IpHdr.VIHL) >> 4 == 6
    tcp = ip + (int(Ip6Hdr.LEN) if six else int(IpHdr.LEN))
    size = int(TcpHdr.LEN)
    if flags & SYN:
        size += syn_options(tcp + TcpHdr.LEN, what)
    if six:
        store_be16(at + 12, EtherType.IPV6)
        store_be32(ip, 6 << 28)
        store_be16(ip + Ip6Hdr.PLEN, size)
        store_u8(ip + Ip6Hdr.NEXT, PROTO_TCP)
        store_u8(ip + Ip6Hdr.HOPS, TTL)
        memcpy(ip + Ip6Hdr.SRC, from_ip + Ip6Hdr.DST, 16)
        memcpy(ip + Ip6Hdr.DST, from_ip + Ip6Hdr.SRC, 16)
    else:
        store_be16(at + 12, EtherType.IPV4)
        store_be16(ip + IpHdr.VIHL, 0x4500)
        store_be16(ip + IpHdr.TOTLEN, IpHdr.LEN + size)
        store_be16(ip + IpHdr.ID, 0)  # atomic: never a fragment (RFC 6864, 4.1)
        store_be16(ip + IpHdr.FRAG, IP_DF)
        store_u8(ip + IpHdr.TTL, TTL)
        store_u8(ip + IpHdr.PROTO, PROTO_TCP)
        store_be16(ip + IpHdr.CSUM, 0)
        memcpy(ip + IpHdr.SRC, from_ip + IpHdr.DST, 4)
        memcpy(ip + IpHdr.DST, from_ip + IpHdr.SRC, 4)
        store_be16(ip + IpHdr.CSUM, csum_fold(csum_add(ip, IpHdr.LEN, 0)))
    store_be16(tcp + TcpHdr.SPORT, row.ports & 0xFFFF)
    store_be16(tcp + TcpHdr.DPORT, row.ports >> 16)
    store_be32(tcp + TcpHdr.SEQ, what.seq)
    store_be32(tcp + TcpHdr.ACK, what.ack if flags & ACK else 0)
    store_u8(tcp + TcpHdr.DATAOFF, size << 2)
    store_u8(tcp + TcpHdr.FLAGS, flags)
    store_be16(tcp + TcpHdr.WINDOW, what.window)
    store_be16(tcp + TcpHdr.WINDOW + 2, 0)
    store_be16(tcp + TcpHdr.WINDOW + 4, 0)
    begin_row(tx_row(queue, r), tcp + size - at)
    queue.filled += 1
    stack.counters.out_segs += 1
    return True
