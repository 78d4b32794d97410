"""Packet formats: where fields stand in their headers, and the numbers in them.

RFC 894 and 826 (Ethernet, ARP), RFC 791 (IPv4), RFC 792 (ICMP), RFC 8200 (IPv6), RFC 4443 and 4861 (ICMPv6,
neighbour discovery), RFC 768 (UDP), RFC 9293, 7323 and 2018 (TCP). Offsets are bytes from the start of the
header, LEN is its shortest length. Fields are big-endian: ``native.load_be16`` and ``load_be32`` read them.
"""

from __future__ import annotations

import enum


class EthHdr(enum.IntEnum):
    """Ethernet (struct ethhdr)."""

    DST = 0
    SRC = 6
    TYPE = 12
    LEN = 14


class EtherType(enum.IntEnum):
    """ETH_P_*."""

    IPV4 = 0x0800
    ARP = 0x0806
    VLAN = 0x8100
    IPV6 = 0x86DD


VLAN_LEN = 4
ETH_ZLEN = 60  # shortest frame on a wire, without frame check sequence
BROADCAST = b"\xff" * 6


class ArpHdr(enum.IntEnum):
    """ARP for IPv4 over Ethernet."""

    OPER = 6
    SHA = 8
    SPA = 14
    THA = 18
    TPA = 24
    LEN = 28


ARP_REQUEST, ARP_REPLY = 1, 2


class IpHdr(enum.IntEnum):
    """IPv4 (struct iphdr)."""

    VIHL = 0
    TOTLEN = 2
    ID = 4
    FRAG = 6
    TTL = 8
    PROTO = 9
    CSUM = 10
    SRC = 12
    DST = 16
    LEN = 20


IP_DF, IP_MF_OR_OFFSET = 0x4000, 0x3FFF
IP_MAX = 65535  # bytes of an IPv4 packet
PROTO_ICMP, PROTO_TCP, PROTO_UDP, PROTO_ICMPV6 = 1, 6, 17, 58
V4_MAPPED = 0xFFFF00000000  # low word of an IPv4 address, without the address


class Ip6Hdr(enum.IntEnum):
    """IPv6 (struct ipv6hdr)."""

    PLEN = 4
    NEXT = 6
    HOPS = 7
    SRC = 8
    DST = 24
    LEN = 40


class Ip6Ext(enum.IntEnum):
    """IPv6 extension headers that are looked behind."""

    HOPOPTS = 0
    ROUTING = 43
    FRAGMENT = 44
    DSTOPTS = 60


class UdpHdr(enum.IntEnum):
    """UDP (struct udphdr)."""

    SPORT = 0
    DPORT = 2
    LENGTH = 4
    CSUM = 6
    LEN = 8


class IcmpHdr(enum.IntEnum):
    """ICMP and ICMPv6."""

    TYPE = 0
    CODE = 1
    CSUM = 2
    LEN = 8


class IcmpType(enum.IntEnum):
    """ICMP."""

    ECHO_REPLY = 0
    UNREACH = 3
    ECHO = 8


class Icmp6Type(enum.IntEnum):
    """ICMPv6."""

    UNREACH = 1
    TOO_BIG = 2
    ECHO = 128
    ECHO_REPLY = 129
    ND_SOLICIT = 135
    ND_ADVERT = 136


ICMP_UNREACH_PORT, ICMP_UNREACH_NEEDFRAG = 3, 4
ICMP6_UNREACH_PORT = 4


class TcpHdr(enum.IntEnum):
    """TCP (struct tcphdr)."""

    SPORT = 0
    DPORT = 2
    SEQ = 4
    ACK = 8
    DATAOFF = 12
    FLAGS = 13
    WINDOW = 14
    CSUM = 16
    URG = 18
    LEN = 20


FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128


class TcpOpt(enum.IntEnum):
    """Kinds of TCP options."""

    END = 0
    NOP = 1
    MSS = 2
    WSCALE = 3
    SACK_OK = 4
    SACK = 5
    TIMESTAMP = 8
