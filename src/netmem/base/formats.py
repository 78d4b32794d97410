"""Packet formats as byte offsets, used alike by device models, GRO and TCP.

RFC 894 and 826 (Ethernet, ARP), RFC 791 (IPv4), RFC 792 (ICMP), RFC 9293 and 7323 (TCP).
Multi-byte fields are big-endian; read them with ``native.load_be16`` and ``load_be32``.
"""

from __future__ import annotations

import ipaddress
import struct

from netmem.base.jit import kernel
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
PROTO_ICMP, PROTO_TCP, PROTO_UDP = 1, 6, 17
UDP_HLEN = 8

# ICMP.
ICMP_TYPE, ICMP_CODE, ICMP_CSUM, ICMP_HLEN = 0, 1, 2, 8
ICMP_ECHO_REPLY, ICMP_ECHO = 0, 8

# TCP: offsets in the TCP header.
TCP_SPORT, TCP_DPORT, TCP_SEQ, TCP_ACK, TCP_DATAOFF, TCP_FLAGS = 0, 2, 4, 8, 12, 13
TCP_WINDOW, TCP_CSUM, TCP_URG, TCP_HLEN = 14, 16, 18, 20
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
OPT_END, OPT_NOP, OPT_MSS, OPT_WSCALE, OPT_SACK_OK, OPT_SACK, OPT_TIMESTAMP = 0, 1, 2, 3, 4, 5, 8

HEADERS_MAX = ETH_HLEN + VLAN_HLEN + 60 + 60
"""The longest Ethernet, IPv4 and TCP headers together, in bytes."""


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


def mac(address: str) -> int:
    """A MAC address ``aa:bb:cc:dd:ee:ff`` as a 48-bit number."""
    return int.from_bytes(bytes.fromhex(address.replace(":", "")), "big")
