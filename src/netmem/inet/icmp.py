"""ICMP and ICMPv6: what answers ping, and what errors say about our own packets (RFC 792, 1191, 4443)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from netmem.base.address import ip_from
from netmem.base.checksum import inet_checksum
from netmem.base.headers import (
    ICMP6_UNREACH_PORT,
    ICMP_UNREACH_NEEDFRAG,
    ICMP_UNREACH_PORT,
    PROTO_ICMP,
    PROTO_ICMPV6,
    EthHdr,
    Icmp6Type,
    IcmpHdr,
    IcmpType,
    Ip6Hdr,
    IpHdr,
)
from netmem.inet.neighbour import icmp6_frame

MIN_MTU4, MIN_MTU6 = 576, 1280
QUOTE = 512  # most bytes of a packet that an error of ours quotes


class IcmpError(NamedTuple):
    """An error about a packet of ours: where it was going, and the start of its transport header.

    ``mtu``: of the hop that it was too big for, 0 for other errors; ``unreachable``: port, host or net.
    """

    source: int
    target: int
    proto: int
    ports: int  # remote << 16 | local, as a segment from the peer has them
    seq: int
    mtu: int
    unreachable: bool


def _ip4_packet(source: bytes, target: bytes, body: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, IpHdr.LEN + len(body), 0, 0x4000, 64, PROTO_ICMP, 0)
    head += source + target
    return head[:10] + inet_checksum(head).to_bytes(2, "big") + head[12:] + body


def _summed(body: bytes) -> bytes:
    body = body[:2] + b"\0\0" + body[4:]
    return body[:2] + inet_checksum(body).to_bytes(2, "big") + body[4:]


def body4(frame: bytes) -> bytes:
    """The ICMP message of a whole frame, empty when it is malformed or its checksum is wrong."""
    start = EthHdr.LEN + (frame[EthHdr.LEN] & 15) * 4
    total = int.from_bytes(frame[EthHdr.LEN + 2 : EthHdr.LEN + 4], "big")
    body = frame[start : EthHdr.LEN + total]
    return body if len(body) >= IcmpHdr.LEN and not inet_checksum(body) else b""


def body6(frame: bytes) -> bytes:
    """The ICMPv6 message of a whole frame without extension headers, empty when it is bad."""
    size = int.from_bytes(frame[EthHdr.LEN + 4 : EthHdr.LEN + 6], "big")
    body = frame[EthHdr.LEN + Ip6Hdr.LEN : EthHdr.LEN + Ip6Hdr.LEN + size]
    if frame[EthHdr.LEN + 6] != PROTO_ICMPV6 or len(body) < max(size, IcmpHdr.LEN):
        return b""
    pseudo = frame[22:54] + struct.pack("!II", size, PROTO_ICMPV6)
    return b"" if inet_checksum(pseudo + body) else body


def echo_reply4(frame: bytes, body: bytes) -> bytes:
    """The answer to an echo request."""
    reply = _summed(bytes((IcmpType.ECHO_REPLY, 0, 0, 0)) + body[4:])
    return frame[6:12] + frame[0:6] + frame[12:14] + _ip4_packet(frame[30:34], frame[26:30], reply)


def echo_reply6(frame: bytes, body: bytes, mac: int, ours: int) -> bytes:
    """The answer to an echo request, from ``ours``."""
    reply = bytes((Icmp6Type.ECHO_REPLY, 0, 0, 0)) + body[4:]
    return icmp6_frame(frame[6:12], mac, ours, ip_from(frame[22:38]), reply)


def is_echo4(body: bytes) -> bool:
    """True for an echo request."""
    return body[:2] == bytes((IcmpType.ECHO, 0))


def is_echo6(body: bytes) -> bool:
    """True for an echo request."""
    return body[:2] == bytes((Icmp6Type.ECHO, 0))


def error4(body: bytes) -> IcmpError | None:
    """What a destination-unreachable message says, None for other messages and garbled quotes."""
    if body[0] != IcmpType.UNREACH or len(body) < IcmpHdr.LEN + IpHdr.LEN + 8 or body[8] >> 4 != 4:
        return None
    at = IcmpHdr.LEN + (body[8] & 15) * 4
    if len(body) < at + 8:
        return None
    mtu = 0
    if body[1] == ICMP_UNREACH_NEEDFRAG:
        mtu = max(int.from_bytes(body[6:8], "big") or MIN_MTU4, 68)
    sport, dport, seq = struct.unpack_from("!HHI", body, at)
    source, target = ip_from(body[20:24]), ip_from(body[24:28])
    return IcmpError(source, target, body[17], dport << 16 | sport, seq, mtu, not mtu)


def error6(body: bytes) -> IcmpError | None:
    """What an unreachable or packet-too-big message says, None for others and garbled quotes."""
    if body[0] not in (Icmp6Type.UNREACH, Icmp6Type.TOO_BIG) or len(body) < IcmpHdr.LEN + Ip6Hdr.LEN + 8:
        return None
    if body[8] >> 4 != 6:
        return None
    mtu = 0
    if body[0] == Icmp6Type.TOO_BIG:
        mtu = max(int.from_bytes(body[4:8], "big"), MIN_MTU6)
    sport, dport, seq = struct.unpack_from("!HHI", body, IcmpHdr.LEN + Ip6Hdr.LEN)
    source, target = ip_from(body[16:32]), ip_from(body[32:48])
    return IcmpError(source, target, body[14], dport << 16 | sport, seq, mtu, not mtu)


def port_unreachable(headers: bytes, mac: int, *, v6: bool) -> bytes:
    """The error for a datagram that nobody takes; ``headers`` is what can be read of its frame."""
    quote = headers[EthHdr.LEN : EthHdr.LEN + QUOTE]
    if v6:
        body = struct.pack("!BBHI", Icmp6Type.UNREACH, ICMP6_UNREACH_PORT, 0, 0) + quote
        return icmp6_frame(headers[6:12], mac, ip_from(headers[38:54]), ip_from(headers[22:38]), body)
    body = _summed(struct.pack("!BBHI", IcmpType.UNREACH, ICMP_UNREACH_PORT, 0, 0) + quote)
    ethernet = headers[6:12] + mac.to_bytes(6, "big") + headers[12:14]
    return ethernet + _ip4_packet(headers[30:34], headers[26:30], body)
