"""Headers of a received packet: what the stack needs of them, noted in its row; payload is not looked at."""

from __future__ import annotations

from netmem.base.checksum import csum_add, csum_fold, ip6_upper, pseudo_sum
from netmem.base.headers import (
    IP_MF_OR_OFFSET,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_TCP,
    PROTO_UDP,
    V4_MAPPED,
    EtherType,
    EthHdr,
    Ip6Ext,
    Ip6Hdr,
    IpHdr,
    TcpHdr,
    TcpOpt,
    UdpHdr,
)
from netmem.base.jit import inline_kernel
from netmem.base.native import load_be16, load_be32, load_be64, load_u8
from netmem.netdev.batch import BatchRecord, Kind, Rx, RxRow, row_of

TIMESTAMPS_ALONE = 0x0101080A  # no-operation twice, then a timestamp option


@inline_kernel
def tcp_options(tcp: int, header: int, row: RxRow) -> None:
    """Note timestamps (RFC 7323) and where a SACK option is (RFC 2018) in ``row``."""
    at, end = tcp + TcpHdr.LEN, tcp + header
    if header == TcpHdr.LEN + 12 and load_be32(at) == TIMESTAMPS_ALONE:
        row.has_timestamp, row.tsval, row.tsecr = 1, load_be32(at + 4), load_be32(at + 8)
        return
    while at < end:
        kind = load_u8(at)
        if kind == TcpOpt.END:
            break
        if kind == TcpOpt.NOP:
            at += 1
            continue
        if at + 1 >= end:
            break
        size = load_u8(at + 1)
        if size < 2 or at + size > end:
            break
        if kind == TcpOpt.TIMESTAMP and size == 10:
            row.has_timestamp, row.tsval, row.tsecr = 1, load_be32(at + 2), load_be32(at + 6)
        elif kind == TcpOpt.SACK and size >= 10 and (size - 2) & 7 == 0:
            row.sack = at - row.header
        at += size


@inline_kernel
def parse_ip4(batch: BatchRecord, row: RxRow, ip: int, have: int, total: int) -> tuple[int, int, int]:
    """IPv4: (protocol, offset of what follows, packet size); protocol -1 when it was dropped."""
    if have < IpHdr.LEN or load_u8(ip) >> 4 != 4:
        batch.counters.rx_bad_ip_header += 1
        return -1, 0, 0
    ihl = (load_u8(ip) & 15) * 4
    size = load_be16(ip + IpHdr.TOTLEN)
    if ihl < IpHdr.LEN or ihl > have:
        batch.counters.rx_bad_ip_header += 1
        return -1, 0, 0
    if size < ihl or size > total:
        batch.counters.rx_bad_ip_length += 1
        return -1, 0, 0
    status = row.status
    if status & Rx.L3_BAD or (status & Rx.L3_OK == 0 and csum_fold(csum_add(ip, ihl, 0)) != 0):
        batch.counters.rx_bad_ip_csum += 1
        return -1, 0, 0
    if load_be16(ip + IpHdr.FRAG) & IP_MF_OR_OFFSET:
        batch.counters.rx_fragment += 1
        return -1, 0, 0
    row.src, row.dst = V4_MAPPED | load_be32(ip + IpHdr.SRC), V4_MAPPED | load_be32(ip + IpHdr.DST)
    row.src_hi = row.dst_hi = 0
    return load_u8(ip + IpHdr.PROTO), ihl, size


@inline_kernel
def parse_ip6(batch: BatchRecord, row: RxRow, ip: int, have: int, total: int) -> tuple[int, int, int]:
    """IPv6 and its extension headers: (protocol, offset of what follows, packet size), or -1."""
    if have < Ip6Hdr.LEN or load_u8(ip) >> 4 != 6:
        batch.counters.rx_bad_ip_header += 1
        return -1, 0, 0
    size = Ip6Hdr.LEN + load_be16(ip + Ip6Hdr.PLEN)
    if size > total:
        batch.counters.rx_bad_ip_length += 1
        return -1, 0, 0
    proto, at = ip6_upper(ip, have, size)
    row.src_hi, row.src = load_be64(ip + Ip6Hdr.SRC), load_be64(ip + Ip6Hdr.SRC + 8)
    row.dst_hi, row.dst = load_be64(ip + Ip6Hdr.DST), load_be64(ip + Ip6Hdr.DST + 8)
    # An IPv4-mapped address on the wire would be taken for the IPv4 one it names.
    mapped = (row.src_hi == 0 and row.src >> 32 == 0xFFFF) or (row.dst_hi == 0 and row.dst >> 32 == 0xFFFF)
    if proto < 0 or mapped or load_u8(ip + Ip6Hdr.SRC) == 0xFF:
        batch.counters.rx_bad_ip_header += 1
        return -1, 0, 0
    if proto == Ip6Ext.FRAGMENT:
        batch.counters.rx_fragment += 1
        return -1, 0, 0
    return proto, at, size


@inline_kernel
def parse(batch: BatchRecord, row: RxRow) -> int:
    """Fill in what the stack needs from a packet's headers; returns its Kind."""
    row.next = -1
    row.len = 0
    hdr, have = row.header, row.header_len
    total = have + row.size
    more = row.more
    while more >= 0:
        total += row_of(batch, more).size
        more = row_of(batch, more).more
    batch.counters.rx_packets += 1
    batch.counters.rx_bytes += total
    if row.gso_size > 0:
        batch.counters.rx_merged_by_nic += 1
    if have < EthHdr.LEN:
        batch.counters.rx_runt += 1
        return Kind.DROP
    kind = load_be16(hdr + EthHdr.TYPE)
    if kind == EtherType.ARP:
        batch.counters.rx_arp += 1
        return Kind.ARP
    ip = hdr + EthHdr.LEN
    if kind == EtherType.IPV4:
        proto, at, size = parse_ip4(batch, row, ip, have - EthHdr.LEN, total - EthHdr.LEN)
    elif kind == EtherType.IPV6:
        proto, at, size = parse_ip6(batch, row, ip, have - EthHdr.LEN, total - EthHdr.LEN)
    else:
        batch.counters.rx_unknown_ethertype += 1
        return Kind.DROP
    if proto < 0:
        return Kind.DROP
    row.l3, row.l4 = EthHdr.LEN, EthHdr.LEN + at
    if proto == PROTO_TCP:
        return parse_tcp(batch, row, ip, at, have - EthHdr.LEN - at, size - at)
    if proto == PROTO_UDP:
        return parse_udp(batch, row, ip, at, have - EthHdr.LEN - at, size - at)
    row.len = size - at
    if proto == PROTO_ICMP and kind == EtherType.IPV4:
        batch.counters.rx_icmp += 1
        return Kind.ICMP
    if proto == PROTO_ICMPV6 and kind == EtherType.IPV6:
        batch.counters.rx_icmp6 += 1
        return Kind.ICMP6
    batch.counters.rx_unknown_proto += 1
    return Kind.DROP


@inline_kernel
def verified(batch: BatchRecord, row: RxRow, ip: int, l4: int, room: int, size: int, proto: int) -> bool:
    """True when the NIC vouches for a TCP or UDP checksum, or all of it lies in readable memory.

    The stack never reads payload: without the NIC's word only what is all header is summed.
    """
    status = row.status
    if status & Rx.L4_OK:
        return True
    if status & Rx.L4_BAD:
        batch.counters.rx_bad_l4_csum += 1
        return False
    if size > room:
        batch.counters.rx_unverified_csum += 1
        return False
    if csum_fold(csum_add(l4, size, pseudo_sum(ip, proto, size))) != 0:
        batch.counters.rx_bad_l4_csum += 1
        return False
    return True


@inline_kernel
def parse_tcp(batch: BatchRecord, row: RxRow, ip: int, at: int, room: int, size: int) -> int:
    """A segment of ``size`` bytes at ``ip + at``, of which ``room`` can be read."""
    tcp = ip + at
    if size < TcpHdr.LEN:
        batch.counters.rx_bad_tcp_header += 1
        return Kind.DROP
    if room < TcpHdr.LEN:
        batch.counters.rx_header_unreadable += 1
        return Kind.DROP
    header = (load_u8(tcp + TcpHdr.DATAOFF) >> 4) * 4
    if header < TcpHdr.LEN or header > size:
        batch.counters.rx_bad_tcp_header += 1
        return Kind.DROP
    if header > room:
        batch.counters.rx_header_unreadable += 1
        return Kind.DROP
    if not verified(batch, row, ip, tcp, room, size, PROTO_TCP):
        return Kind.DROP
    payload(batch, row, header, size - header)
    row.ports = load_be32(tcp)
    row.seq, row.ack = load_be32(tcp + TcpHdr.SEQ), load_be32(tcp + TcpHdr.ACK)
    row.tcp_flags = load_u8(tcp + TcpHdr.FLAGS)
    row.window = load_be16(tcp + TcpHdr.WINDOW)
    row.has_timestamp = row.sack = 0
    if header > TcpHdr.LEN:
        tcp_options(tcp, header, row)
    batch.counters.rx_tcp += 1
    return Kind.TCP


@inline_kernel
def parse_udp(batch: BatchRecord, row: RxRow, ip: int, at: int, room: int, size: int) -> int:
    """A datagram of ``size`` bytes at ``ip + at``, of which ``room`` can be read."""
    udp = ip + at
    if size < UdpHdr.LEN:
        batch.counters.rx_bad_udp_header += 1
        return Kind.DROP
    if room < UdpHdr.LEN:
        batch.counters.rx_header_unreadable += 1
        return Kind.DROP
    length = load_be16(udp + UdpHdr.LENGTH)
    summed = load_be16(udp + UdpHdr.CSUM) != 0
    vouched = summed or row.status & Rx.L4_OK != 0  # only IPv4 can do without a checksum
    if length < UdpHdr.LEN or length > size or (not vouched and load_u8(ip) >> 4 == 6):
        batch.counters.rx_bad_udp_header += 1
        return Kind.DROP
    if summed and not verified(batch, row, ip, udp, room, length, PROTO_UDP):
        return Kind.DROP
    payload(batch, row, UdpHdr.LEN, length - UdpHdr.LEN)
    row.ports = load_be32(udp)
    batch.counters.rx_udp += 1
    return Kind.UDP


@inline_kernel
def payload(batch: BatchRecord, row: RxRow, header: int, length: int) -> None:
    """Note ``length`` payload bytes behind ``header`` bytes of TCP or UDP; padding is cut off."""
    row.linear = row.l4 + header
    row.linear_len = min(length, row.header_len - row.linear)
    row.len = row.own_len = length
    left = length - row.linear_len
    row.size = min(row.size, left)
    left -= row.size
    more = row.more
    while more >= 0:
        size = min(row_of(batch, more).size, left)
        row_of(batch, more).size = size
        left -= size
        more = row_of(batch, more).more
