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
from netmem.netdev.batch import (
    B_ACK,
    B_DST,
    B_DST_HI,
    B_GSO,
    B_HDR,
    B_HLEN,
    B_L3,
    B_L4,
    B_LEN,
    B_LIN,
    B_LINLEN,
    B_MORE,
    B_NEXT,
    B_OWN,
    B_PORTS,
    B_SACK,
    B_SEQ,
    B_SIZE,
    B_SRC,
    B_SRC_HI,
    B_STATUS,
    B_TFLAGS,
    B_TS,
    B_TSECR,
    B_TSVAL,
    B_WND,
    KIND_ARP,
    KIND_DROP,
    KIND_ICMP,
    KIND_ICMP6,
    KIND_TCP,
    KIND_UDP,
    M_COUNTERS,
    N_RX_ARP,
    N_RX_BAD_IP_CSUM,
    N_RX_BAD_IP_HEADER,
    N_RX_BAD_IP_LENGTH,
    N_RX_BAD_L4_CSUM,
    N_RX_BAD_TCP_HEADER,
    N_RX_BAD_UDP_HEADER,
    N_RX_BYTES,
    N_RX_FRAGMENT,
    N_RX_HEADER_UNREADABLE,
    N_RX_ICMP,
    N_RX_ICMP6,
    N_RX_MERGED_BY_NIC,
    N_RX_PACKETS,
    N_RX_RUNT,
    N_RX_TCP,
    N_RX_UDP,
    N_RX_UNKNOWN_ETHERTYPE,
    N_RX_UNKNOWN_PROTO,
    N_RX_UNVERIFIED_CSUM,
    RX_L3_BAD,
    RX_L3_OK,
    RX_L4_BAD,
    RX_L4_OK,
)

TIMESTAMPS_ALONE = 0x0101080A  # no-operation twice, then a timestamp option


@inline_kernel
def tcp_options(tcp, header, row):
    """Note timestamps (RFC 7323) and where a SACK option is (RFC 2018) in ``row``."""
    at, end = tcp + TCP_HLEN, tcp + header
    if header == TCP_HLEN + 12 and load_be32(at) == TIMESTAMPS_ALONE:
        row[B_TS], row[B_TSVAL], row[B_TSECR] = 1, load_be32(at + 4), load_be32(at + 8)
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
            row[B_TS], row[B_TSVAL], row[B_TSECR] = 1, load_be32(at + 2), load_be32(at + 6)
        elif kind == OPT_SACK and size >= 10 and (size - 2) & 7 == 0:
            row[B_SACK] = at - row[B_HDR]
        at += size


@inline_kernel
def parse_ip4(meta, row, ip, have, total):
    """IPv4: (protocol, offset of what follows, packet size); protocol -1 when it was dropped."""
    if have < IP_HLEN or load_u8(ip) >> 4 != 4:
        meta[M_COUNTERS + N_RX_BAD_IP_HEADER] += 1
        return -1, 0, 0
    ihl = (load_u8(ip) & 15) * 4
    size = load_be16(ip + IP_TOTLEN)
    if ihl < IP_HLEN or ihl > have:
        meta[M_COUNTERS + N_RX_BAD_IP_HEADER] += 1
        return -1, 0, 0
    if size < ihl or size > total:
        meta[M_COUNTERS + N_RX_BAD_IP_LENGTH] += 1
        return -1, 0, 0
    status = row[B_STATUS]
    if status & RX_L3_BAD or (status & RX_L3_OK == 0 and csum_fold(csum_add(ip, ihl, 0)) != 0):
        meta[M_COUNTERS + N_RX_BAD_IP_CSUM] += 1
        return -1, 0, 0
    if load_be16(ip + IP_FRAG) & IP_MF_OR_OFFSET:
        meta[M_COUNTERS + N_RX_FRAGMENT] += 1
        return -1, 0, 0
    row[B_SRC], row[B_DST] = V4_MAPPED | load_be32(ip + IP_SRC), V4_MAPPED | load_be32(ip + IP_DST)
    row[B_SRC_HI] = row[B_DST_HI] = 0
    return load_u8(ip + IP_PROTO), ihl, size


@inline_kernel
def parse_ip6(meta, row, ip, have, total):
    """IPv6 and its extension headers: (protocol, offset of what follows, packet size), or -1."""
    if have < IP6_HLEN or load_u8(ip) >> 4 != 6:
        meta[M_COUNTERS + N_RX_BAD_IP_HEADER] += 1
        return -1, 0, 0
    size = IP6_HLEN + load_be16(ip + IP6_PLEN)
    if size > total:
        meta[M_COUNTERS + N_RX_BAD_IP_LENGTH] += 1
        return -1, 0, 0
    proto, at = ip6_upper(ip, have, size)
    row[B_SRC_HI], row[B_SRC] = load_be64(ip + IP6_SRC), load_be64(ip + IP6_SRC + 8)
    row[B_DST_HI], row[B_DST] = load_be64(ip + IP6_DST), load_be64(ip + IP6_DST + 8)
    # An IPv4-mapped address on the wire would be taken for the IPv4 one it names.
    mapped = row[B_SRC_HI] == 0 and row[B_SRC] >> 32 == 0xFFFF
    if proto < 0 or mapped or load_u8(ip + IP6_SRC) == 0xFF:
        meta[M_COUNTERS + N_RX_BAD_IP_HEADER] += 1
        return -1, 0, 0
    if proto == IP6_FRAGMENT:
        meta[M_COUNTERS + N_RX_FRAGMENT] += 1
        return -1, 0, 0
    return proto, at, size


@inline_kernel
def parse(meta, rows, row):
    """Fill in what the stack needs from a packet's headers; returns its KIND_*."""
    row[B_NEXT] = -1
    row[B_LEN] = 0
    hdr, have = row[B_HDR], row[B_HLEN]
    total = have + row[B_SIZE]
    more = row[B_MORE]
    while more >= 0:
        total += rows[more, B_SIZE]
        more = rows[more, B_MORE]
    meta[M_COUNTERS + N_RX_PACKETS] += 1
    meta[M_COUNTERS + N_RX_BYTES] += total
    if row[B_GSO] > 0:
        meta[M_COUNTERS + N_RX_MERGED_BY_NIC] += 1
    if have < ETH_HLEN:
        meta[M_COUNTERS + N_RX_RUNT] += 1
        return KIND_DROP
    kind = load_be16(hdr + ETH_TYPE)
    if kind == ETHERTYPE_ARP:
        meta[M_COUNTERS + N_RX_ARP] += 1
        return KIND_ARP
    ip = hdr + ETH_HLEN
    if kind == ETHERTYPE_IPV4:
        proto, at, size = parse_ip4(meta, row, ip, have - ETH_HLEN, total - ETH_HLEN)
    elif kind == ETHERTYPE_IPV6:
        proto, at, size = parse_ip6(meta, row, ip, have - ETH_HLEN, total - ETH_HLEN)
    else:
        meta[M_COUNTERS + N_RX_UNKNOWN_ETHERTYPE] += 1
        return KIND_DROP
    if proto < 0:
        return KIND_DROP
    row[B_L3], row[B_L4] = ETH_HLEN, ETH_HLEN + at
    if proto == PROTO_TCP:
        return parse_tcp(meta, rows, row, ip, at, have - ETH_HLEN - at, size - at)
    if proto == PROTO_UDP:
        return parse_udp(meta, rows, row, ip, at, have - ETH_HLEN - at, size - at)
    row[B_LEN] = size - at
    if proto == PROTO_ICMP and kind == ETHERTYPE_IPV4:
        meta[M_COUNTERS + N_RX_ICMP] += 1
        return KIND_ICMP
    if proto == PROTO_ICMPV6 and kind == ETHERTYPE_IPV6:
        meta[M_COUNTERS + N_RX_ICMP6] += 1
        return KIND_ICMP6
    meta[M_COUNTERS + N_RX_UNKNOWN_PROTO] += 1
    return KIND_DROP


@inline_kernel
def verified(meta, row, ip, l4, room, size, proto):
    """True when the NIC vouches for a TCP or UDP checksum, or all of it lies in readable memory.

    The stack never reads payload: without the NIC's word only what is all header is summed.
    """
    status = row[B_STATUS]
    if status & RX_L4_OK:
        return True
    if status & RX_L4_BAD:
        meta[M_COUNTERS + N_RX_BAD_L4_CSUM] += 1
        return False
    if size > room:
        meta[M_COUNTERS + N_RX_UNVERIFIED_CSUM] += 1
        return False
    if csum_fold(csum_add(l4, size, pseudo_sum(ip, proto, size))) != 0:
        meta[M_COUNTERS + N_RX_BAD_L4_CSUM] += 1
        return False
    return True


@inline_kernel
def parse_tcp(meta, rows, row, ip, at, room, size):
    """A segment of ``size`` bytes at ``ip + at``, of which ``room`` can be read."""
    tcp = ip + at
    if size < TCP_HLEN:
        meta[M_COUNTERS + N_RX_BAD_TCP_HEADER] += 1
        return KIND_DROP
    if room < TCP_HLEN:
        meta[M_COUNTERS + N_RX_HEADER_UNREADABLE] += 1
        return KIND_DROP
    header = (load_u8(tcp + TCP_DATAOFF) >> 4) * 4
    if header < TCP_HLEN or header > size:
        meta[M_COUNTERS + N_RX_BAD_TCP_HEADER] += 1
        return KIND_DROP
    if header > room:
        meta[M_COUNTERS + N_RX_HEADER_UNREADABLE] += 1
        return KIND_DROP
    if not verified(meta, row, ip, tcp, room, size, PROTO_TCP):
        return KIND_DROP
    payload(rows, row, header, size - header)
    row[B_PORTS] = load_be32(tcp)
    row[B_SEQ], row[B_ACK] = load_be32(tcp + TCP_SEQ), load_be32(tcp + TCP_ACK)
    row[B_TFLAGS] = load_u8(tcp + TCP_FLAGS)
    row[B_WND] = load_be16(tcp + TCP_WINDOW)
    row[B_TS] = row[B_SACK] = 0
    if header > TCP_HLEN:
        tcp_options(tcp, header, row)
    meta[M_COUNTERS + N_RX_TCP] += 1
    return KIND_TCP


@inline_kernel
def parse_udp(meta, rows, row, ip, at, room, size):
    """A datagram of ``size`` bytes at ``ip + at``, of which ``room`` can be read."""
    udp = ip + at
    if size < UDP_HLEN:
        meta[M_COUNTERS + N_RX_BAD_UDP_HEADER] += 1
        return KIND_DROP
    if room < UDP_HLEN:
        meta[M_COUNTERS + N_RX_HEADER_UNREADABLE] += 1
        return KIND_DROP
    length = load_be16(udp + UDP_LEN)
    summed = load_be16(udp + UDP_CSUM) != 0
    vouched = summed or row[B_STATUS] & RX_L4_OK != 0  # only IPv4 can do without a checksum
    if length < UDP_HLEN or length > size or (not vouched and load_u8(ip) >> 4 == 6):
        meta[M_COUNTERS + N_RX_BAD_UDP_HEADER] += 1
        return KIND_DROP
    if summed and not verified(meta, row, ip, udp, room, length, PROTO_UDP):
        return KIND_DROP
    payload(rows, row, UDP_HLEN, length - UDP_HLEN)
    row[B_PORTS] = load_be32(udp)
    meta[M_COUNTERS + N_RX_UDP] += 1
    return KIND_UDP


@inline_kernel
def payload(rows, row, header, length):
    """Note ``length`` payload bytes behind ``header`` bytes of TCP or UDP; padding is cut off."""
    row[B_LIN] = row[B_L4] + header
    row[B_LINLEN] = min(length, row[B_HLEN] - row[B_LIN])
    row[B_LEN] = row[B_OWN] = length
    left = length - row[B_LINLEN]
    row[B_SIZE] = min(row[B_SIZE], left)
    left -= row[B_SIZE]
    more = row[B_MORE]
    while more >= 0:
        size = min(rows[more, B_SIZE], left)
        rows[more, B_SIZE] = size
        left -= size
        more = rows[more, B_MORE]
