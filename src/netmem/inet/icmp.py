"""ICMP and ICMPv6: what answers ping, and what errors say about our own packets (RFC 792, 1191, 4443)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from netmem.base.headers import (
    ICMP6_UNREACH_PORT,
    ICMP_UNREACH_NEEDFRAG,
    ICMP_UNREACH_PORT,
    Icmp6Type,
    IcmpHdr,
    IcmpType,
)
from netmem.inet.packet import IpPacket, ethernet, icmp_frame, ip_packet

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


def is_echo(body: bytes, *, v6: bool) -> bool:
    """True for an echo request."""
    return body[: IcmpHdr.CSUM] == bytes((Icmp6Type.ECHO if v6 else IcmpType.ECHO, 0))


def echo_reply(to: bytes, mac: int, ip: IpPacket, body: bytes) -> bytes:
    """The frame that answers the echo request ``body``, which came in ``ip``."""
    kind = Icmp6Type.ECHO_REPLY if ip.v6 else IcmpType.ECHO_REPLY
    return icmp_frame(to, mac, ip.target, ip.source, bytes((kind, 0, 0, 0)) + body[4:])


def error4(body: bytes) -> IcmpError | None:
    """What a destination-unreachable message says, None for other messages and garbled quotes."""
    if body[IcmpHdr.TYPE] != IcmpType.UNREACH:
        return None
    mtu = 0
    if body[IcmpHdr.CODE] == ICMP_UNREACH_NEEDFRAG:
        mtu = max(int.from_bytes(body[6:8], "big") or MIN_MTU4, 68)
    quote = ip_packet(body[IcmpHdr.LEN :])
    return _about(quote, mtu) if quote is not None and not quote.v6 else None


def error6(body: bytes) -> IcmpError | None:
    """What an unreachable or packet-too-big message says, None for others and garbled quotes."""
    if body[IcmpHdr.TYPE] not in (Icmp6Type.UNREACH, Icmp6Type.TOO_BIG):
        return None
    mtu = 0
    if body[IcmpHdr.TYPE] == Icmp6Type.TOO_BIG:
        mtu = max(int.from_bytes(body[4:8], "big"), MIN_MTU6)
    quote = ip_packet(body[IcmpHdr.LEN :])
    return _about(quote, mtu) if quote is not None and quote.v6 else None


def _about(quote: IpPacket, mtu: int) -> IcmpError | None:
    """The error about the packet that is quoted, of which eight bytes behind its header must be there."""
    if len(quote.rest) < 8:
        return None
    sport, dport, seq = struct.unpack_from("!HHI", quote.rest)
    return IcmpError(quote.source, quote.target, quote.proto, dport << 16 | sport, seq, mtu, not mtu)


def port_unreachable(headers: bytes, mac: int) -> bytes | None:
    """The error for a datagram that nobody takes; ``headers`` is what can be read of its frame."""
    frame = ethernet(headers)
    ip = ip_packet(frame.data)
    if ip is None:
        return None
    unreachable = (IcmpType.UNREACH, ICMP_UNREACH_PORT)
    unreachable6 = (Icmp6Type.UNREACH, ICMP6_UNREACH_PORT)
    head = struct.pack("!BBHI", *(unreachable6 if ip.v6 else unreachable), 0, 0)
    body = head + frame.data[:QUOTE]
    return icmp_frame(frame.sender, mac, ip.target, ip.source, body)
