"""Packet formats as byte offsets, used alike by device models, GRO and TCP.

RFC 894 and 826 (Ethernet, ARP), RFC 791 (IPv4), RFC 792 (ICMP), RFC 8200 (IPv6), RFC 4443 and 4861
(ICMPv6, neighbour discovery), RFC 768 (UDP), RFC 9293, 7323 and 2018 (TCP).
An address is one number of 128 bits; an IPv4 address is the IPv4-mapped one (RFC 4291, 2.5.5.2).
Kernels hold it as two signed words, high and low.
Multi-byte fields are big-endian; read them with ``native.load_be16`` and ``load_be32``.
"""

from __future__ import annotations

import ipaddress
import struct

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load_be16, load_u8

# Ethernet: offsets in the frame.
ETH_DST, ETH_SRC, ETH_TYPE, ETH_HLEN = 0, 6, 12, 14
ETHERTYPE_IPV4, ETHERTYPE_ARP, ETHERTYPE_VLAN, ETHERTYPE_IPV6 = 0x0800, 0x0806, 0x8100, 0x86DD
VLAN_HLEN = 4
ETH_ZLEN = 60  # shortest frame on a wire, without frame check sequence
BROADCAST = b"\xff" * 6

# ARP for IPv4 over Ethernet: offsets in the ARP packet.
ARP_OPER, ARP_SHA, ARP_SPA, ARP_THA, ARP_TPA, ARP_LEN = 6, 8, 14, 18, 24, 28
ARP_REQUEST, ARP_REPLY = 1, 2

# IPv4: offsets in the IP header.
IP_VIHL, IP_TOTLEN, IP_ID, IP_FRAG, IP_TTL, IP_PROTO, IP_CSUM = 0, 2, 4, 6, 8, 9, 10
IP_SRC, IP_DST, IP_HLEN = 12, 16, 20
IP_DF, IP_MF_OR_OFFSET = 0x4000, 0x3FFF
PROTO_ICMP, PROTO_TCP, PROTO_UDP, PROTO_ICMPV6 = 1, 6, 17, 58
V4_MAPPED = 0xFFFF00000000  # low word of an IPv4 address, without the address

# IPv6: offsets in the IP header; its extension headers that are skipped.
IP6_PLEN, IP6_NEXT, IP6_HOPS, IP6_SRC, IP6_DST, IP6_HLEN = 4, 6, 7, 8, 24, 40
IP6_HOPOPTS, IP6_ROUTING, IP6_FRAGMENT, IP6_DSTOPTS = 0, 43, 44, 60

# UDP: offsets in the UDP header.
UDP_SPORT, UDP_DPORT, UDP_LEN, UDP_CSUM, UDP_HLEN = 0, 2, 4, 6, 8

# ICMP.
ICMP_TYPE, ICMP_CODE, ICMP_CSUM, ICMP_HLEN = 0, 1, 2, 8
ICMP_ECHO_REPLY, ICMP_UNREACH, ICMP_ECHO = 0, 3, 8
ICMP_UNREACH_PORT, ICMP_UNREACH_NEEDFRAG = 3, 4
ICMP6_UNREACH, ICMP6_TOO_BIG, ICMP6_ECHO, ICMP6_ECHO_REPLY = 1, 2, 128, 129
ICMP6_UNREACH_PORT = 4
ND_SOLICIT, ND_ADVERT = 135, 136

# TCP: offsets in the TCP header.
TCP_SPORT, TCP_DPORT, TCP_SEQ, TCP_ACK, TCP_DATAOFF, TCP_FLAGS = 0, 2, 4, 8, 12, 13
TCP_WINDOW, TCP_CSUM, TCP_URG, TCP_HLEN = 14, 16, 18, 20
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
OPT_END, OPT_NOP, OPT_MSS, OPT_WSCALE, OPT_SACK_OK, OPT_SACK, OPT_TIMESTAMP = 0, 1, 2, 3, 4, 5, 8

HEADERS_MAX = ETH_HLEN + VLAN_HLEN + 60 + 60
"""The longest Ethernet, IP and TCP headers together, in bytes, without IPv6 extension headers."""


@kernel
def csum_add(addr, n, total):
    """Add ``n`` bytes at ``addr`` to a one's complement sum (RFC 1071); even starts only."""
    i = 0
    while i + 1 < n:
        total += load_be16(addr + i)
        i += 2
    if i < n:
        total += load_u8(addr + i) << 8
    return total


@kernel
def csum_fold(total):
    """Fold a sum to 16 bits and complement it."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total) & 0xFFFF


@inline_kernel
def pseudo_sum(ip, proto, size):
    """Sum of the pseudo header of ``size`` bytes of TCP, UDP or ICMPv6 (RFC 9293, 3.1; RFC 8200, 8.1)."""
    if load_u8(ip) >> 4 == 4:
        return csum_add(ip + IP_SRC, 8, proto + size)
    return csum_add(ip + IP6_SRC, 32, proto + size)


@inline_kernel
def ip6_upper(ip, have, size):
    """The upper-layer header of an IPv6 packet behind its extension headers: (protocol, offset).

    ``have`` bytes of ``size`` can be read. (-1, 0) when they run out of bounds; a fragment header ends
    the walk as the protocol IP6_FRAGMENT.
    """
    proto, at = load_u8(ip + IP6_NEXT), IP6_HLEN
    while proto == IP6_HOPOPTS or proto == IP6_ROUTING or proto == IP6_DSTOPTS:
        if at + 8 > have or at + 8 > size:
            return -1, 0
        proto, length = load_u8(ip + at), (load_u8(ip + at + 1) + 1) * 8
        at += length
    if at > have or at > size:
        return -1, 0
    return proto, at


def inet_checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of ``data``; 0 over data that carries a right one."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(address: str) -> int:
    """An IPv4 address in text as a 32-bit number."""
    return int(ipaddress.IPv4Address(address))


def ip4_text(address: int) -> str:
    """A 32-bit number as an IPv4 address in text."""
    return str(ipaddress.IPv4Address(int(address)))


def ip(address: str) -> int:
    """An IPv4 or IPv6 address in text as a number of 128 bits."""
    parsed = ipaddress.ip_address(address)
    return V4_MAPPED | int(parsed) if parsed.version == 4 else int(parsed)


def ip_text(address: int) -> str:
    """A number of 128 bits as an address in text."""
    if is_ip4(address):
        return ip4_text(address & 0xFFFFFFFF)
    return str(ipaddress.IPv6Address(address))


def endpoint(address: int, port: int) -> str:
    """Address and port as text, ``10.0.2.15:80`` or ``[fd00::f]:80``."""
    text = ip_text(address)
    return f"{text}:{port}" if is_ip4(address) else f"[{text}]:{port}"


def is_ip4(address: int) -> bool:
    """True for a number that stands for an IPv4 address."""
    return address >> 32 == 0xFFFF


def ip_bytes(address: int) -> bytes:
    """An address as it stands in a packet: 4 or 16 bytes."""
    return (address & 0xFFFFFFFF).to_bytes(4, "big") if is_ip4(address) else address.to_bytes(16, "big")


def ip_from(packed: bytes) -> int:
    """The address that stands in a packet as 4 or 16 bytes."""
    number = int.from_bytes(packed, "big")
    return V4_MAPPED | number if len(packed) == 4 else number


def ip_words(address: int) -> tuple[int, int]:
    """An address as kernels hold it: high and low word, signed."""
    high, low = struct.unpack("!qq", address.to_bytes(16, "big"))
    return high, low


def ip_number(high: int, low: int) -> int:
    """The address that two signed words stand for."""
    return int.from_bytes(struct.pack("!qq", high, low), "big")


def mac(address: str) -> int:
    """A MAC address ``aa:bb:cc:dd:ee:ff`` as a 48-bit number."""
    return int.from_bytes(bytes.fromhex(address.replace(":", "")), "big")
