"""Headers of a received packet: what the stack needs of them, noted in its row; payload is not looked at."""

from __future__ import annotations

from netmem.base.formats import (
    ETH_HLEN,
    ETH_TYPE,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IP6_DST,
    IP6_FRAGMENT,
    IP6_HLEN,
    IP6_PLEN,
    IP6_SRC,
    IP_DST,
    IP_FRAG,
    IP_HLEN,
    IP_MF_OR_OFFSET,
    IP_PROTO,
    IP_SRC,
    IP_TOTLEN,
    OPT_END,
    OPT_NOP,
    OPT_SACK,
    OPT_TIMESTAMP,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_TCP,
    PROTO_UDP,
    TCP_ACK,
    TCP_DATAOFF,
    TCP_FLAGS,
    TCP_HLEN,
    TCP_SEQ,
    TCP_WINDOW,
    UDP_CSUM,
    UDP_HLEN,
    UDP_LEN,
    V4_MAPPED,
    csum_add,
    csum_fold,
    ip6_upper,
    pseudo_sum,
)
from netmem.base.jit import inline_kernel
from netmem.base.native import load_be16, load_be32, load_be64, load_u8
from netmem.netdev.batch import BatchRecord, Kind, Rx, RxRow, row_of

TIMESTAMPS_ALONE = 0x0101080A  # no-operation twice, then a timestamp option


@inline_kernel
def tcp_options(tcp: int, header: int, row: RxRow) -> None:
    """Note timestamps (RFC 7323) and where a SACK option is (RFC 2018) in ``row``."""
    at, end = tcp + TCP_HLEN, tcp + header
    if header == TCP_HLEN + 12 and load_be32(at) == TIMESTAMPS_ALONE:
        row.has_timestamp, row.tsval, row.tsecr = 1, load_be32(at + 4), load_be32(at + 8)
        return
    while at < end:
        kind = load_u8(at)
        if kind == OPT_END:
            break
        if kind == OPT_NOP:
            at += 1
            continue
        if at + 1 >= end:
            break
        size = load_u8(at + 1)
        if size < 2 or at + size > end:
            break
        if kind == OPT_TIMESTAMP and size == 10:
            row.has_timestamp, row.tsval, row.tsecr = 1, load_be32(at + 2), load_be32(at + 6)
        elif kind == OPT_SACK and size >= 10 and (size - 2) & 7 == 0:
            row.sack = at - row.header
        at += size


@inline_kernel
def parse_ip4(batch: BatchRecord, row: RxRow, ip: int, have: int, total: int) -> tuple[int, int, int]:
    """IPv4: (protocol, offset of what follows, packet size); protocol -1 when it was dropped."""
    if have < IP_HLEN or load_u8(ip) >> 4 != 4:
        batch.counters.rx_bad_ip_header += 1
        return -1, 0, 0
    ihl = (load_u8(ip) & 15) * 4
    size = load_be16(ip + IP_TOTLEN)
    if ihl < IP_HLEN or ihl > have:
        batch.counters.rx_bad_ip_header += 1
        return -1, 0, 0
    if size < ihl or size > total:
        batch.counters.rx_bad_ip_length += 1
        return -1, 0, 0
    status = row.status
    if status & Rx.L3_BAD or (status & Rx.L3_OK == 0 and csum_fold(csum_add(ip, ihl, 0)) != 0):
        batch.counters.rx_bad_ip_csum += 1
        return -1, 0, 0
    if load_be16(ip + IP_FRAG) & IP_MF_OR_OFFSET:
        batch.counters.rx_fragment += 1
        return -1, 0, 0
    row.src, row.dst = V4_MAPPED | load_be32(ip + IP_SRC), V4_MAPPED | load_be32(ip + IP_DST)
    row.src_hi = row.dst_hi = 0
    return load_u8(ip + IP_PROTO), ihl, size


@inline_kernel
def parse_ip6(batch: BatchRecord, row: RxRow, ip: int, have: int, total: int) -> tuple[int, int, int]:
    """IPv6 and its extension headers: (protocol, offset of what follows, packet size), or -1."""
    if have < IP6_HLEN or load_u8(ip) >> 4 != 6:
        batch.counters.rx_bad_ip_header += 1
        return -1, 0, 0
    size = IP6_HLEN + load_be16(ip + IP6_PLEN)
    if size > total:
        batch.counters.rx_bad_ip_length += 1
        return -1, 0, 0
    proto, at = ip6_upper(ip, have, size)
    row.src_hi, row.src = load_be64(ip + IP6_SRC), load_be64(ip + IP6_SRC + 8)
    row.dst_hi, row.dst = load_be64(ip + IP6_DST), load_be64(ip + IP6_DST + 8)
    # An IPv4-mapped address on the wire would be taken for the IPv4 one it names.
    mapped = row.src_hi == 0 and row.src >> 32 == 0xFFFF
    if proto < 0 or mapped or load_u8(ip + IP6_SRC) == 0xFF:
        batch.counters.rx_bad_ip_header += 1
        return -1, 0, 0
    if proto == IP6_FRAGMENT:
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
    if have < ETH_HLEN:
        batch.counters.rx_runt += 1
        return Kind.DROP
    kind = load_be16(hdr + ETH_TYPE)
    if kind == ETHERTYPE_ARP:
        batch.counters.rx_arp += 1
        return Kind.ARP
    ip = hdr + ETH_HLEN
    if kind == ETHERTYPE_IPV4:
        proto, at, size = parse_ip4(batch, row, ip, have - ETH_HLEN, total - ETH_HLEN)
    elif kind == ETHERTYPE_IPV6:
        proto, at, size = parse_ip6(batch, row, ip, have - ETH_HLEN, total - ETH_HLEN)
    else:
        batch.counters.rx_unknown_ethertype += 1
        return Kind.DROP
    if proto < 0:
        return Kind.DROP
    row.l3, row.l4 = ETH_HLEN, ETH_HLEN + at
    if proto == PROTO_TCP:
        return parse_tcp(batch, row, ip, at, have - ETH_HLEN - at, size - at)
    if proto == PROTO_UDP:
        return parse_udp(batch, row, ip, at, have - ETH_HLEN - at, size - at)
    row.len = size - at
    if proto == PROTO_ICMP and kind == ETHERTYPE_IPV4:
        batch.counters.rx_icmp += 1
        return Kind.ICMP
    if proto == PROTO_ICMPV6 and kind == ETHERTYPE_IPV6:
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
    if size < TCP_HLEN:
        batch.counters.rx_bad_tcp_header += 1
        return Kind.DROP
    if room < TCP_HLEN:
        batch.counters.rx_header_unreadable += 1
        return Kind.DROP
    header = (load_u8(tcp + TCP_DATAOFF) >> 4) * 4
    if header < TCP_HLEN or header > size:
        batch.counters.rx_bad_tcp_header += 1
        return Kind.DROP
    if header > room:
        batch.counters.rx_header_unreadable += 1
        return Kind.DROP
    if not verified(batch, row, ip, tcp, room, size, PROTO_TCP):
        return Kind.DROP
    payload(batch, row, header, size - header)
    row.ports = load_be32(tcp)
    row.seq, row.ack = load_be32(tcp + TCP_SEQ), load_be32(tcp + TCP_ACK)
    row.tcp_flags = load_u8(tcp + TCP_FLAGS)
    row.window = load_be16(tcp + TCP_WINDOW)
    row.has_timestamp = row.sack = 0
    if header > TCP_HLEN:
        tcp_options(tcp, header, row)
    batch.counters.rx_tcp += 1
    return Kind.TCP


@inline_kernel
def parse_udp(batch: BatchRecord, row: RxRow, ip: int, at: int, room: int, size: int) -> int:
    """A datagram of ``size`` bytes at ``ip + at``, of which ``room`` can be read."""
    udp = ip + at
    if size < UDP_HLEN:
        batch.counters.rx_bad_udp_header += 1
        return Kind.DROP
    if room < UDP_HLEN:
        batch.counters.rx_header_unreadable += 1
        return Kind.DROP
    length = load_be16(udp + UDP_LEN)
    summed = load_be16(udp + UDP_CSUM) != 0
    vouched = summed or row.status & Rx.L4_OK != 0  # only IPv4 can do without a checksum
    if length < UDP_HLEN or length > size or (not vouched and load_u8(ip) >> 4 == 6):
        batch.counters.rx_bad_udp_header += 1
        return Kind.DROP
    if summed and not verified(batch, row, ip, udp, room, length, PROTO_UDP):
        return Kind.DROP
    payload(batch, row, UDP_HLEN, length - UDP_HLEN)
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
