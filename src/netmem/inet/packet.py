"""Control packets taken apart and put together, in Python: Ethernet, ARP, IPv4, IPv6, ICMP's checksums.

What comes with payload is parsed by kernels (``netdev.parse``); this is for the few packets that are not.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from netmem.base.address import ip_bytes, ip_from, is_ip4
from netmem.base.checksum import inet_checksum
from netmem.base.headers import (
    IP_DF,
    PROTO_ICMP,
    PROTO_ICMPV6,
    ArpHdr,
    EtherType,
    EthHdr,
    IcmpHdr,
    Ip6Hdr,
    IpHdr,
)

HOPS = 64  # of what we send (RFC 1700)
MAC_BYTES = 6
ARP_ETHERNET = struct.pack("!HHBB", 1, EtherType.IPV4, MAC_BYTES, 4)


class Ethernet(NamedTuple):
    """A frame: MACs as they stand in it, and what it carries, padding included."""

    to: bytes
    sender: bytes
    type: int
    data: bytes


class Arp(NamedTuple):
    """ARP for IPv4 over Ethernet: operation, addresses of sender and target."""

    oper: int
    sha: bytes
    spa: int
    tpa: int


class IpPacket(NamedTuple):
    """An IP packet, without options or padding. ``whole``: False when it is cut short.

    Addresses are numbers of 128 bits. ``rest`` is all that was there behind the header.
    """

    v6: bool
    source: int
    target: int
    proto: int
    hops: int
    body: bytes
    whole: bool
    rest: bytes


def ethernet(frame: bytes) -> Ethernet:
    """Take a frame apart."""
    kind = int.from_bytes(frame[EthHdr.TYPE : EthHdr.LEN], "big")
    return Ethernet(frame[: EthHdr.SRC], frame[EthHdr.SRC : EthHdr.TYPE], kind, frame[EthHdr.LEN :])


def arp(data: bytes) -> Arp | None:
    """An ARP message; None when it is short, or about other addresses."""
    if len(data) < ArpHdr.LEN or data[: ArpHdr.OPER] != ARP_ETHERNET:
        return None
    return Arp(
        int.from_bytes(data[ArpHdr.OPER : ArpHdr.SHA], "big"),
        data[ArpHdr.SHA : ArpHdr.SPA],
        ip_from(data[ArpHdr.SPA : ArpHdr.THA]),
        ip_from(data[ArpHdr.TPA : ArpHdr.LEN]),
    )


def ip_packet(data: bytes) -> IpPacket | None:
    """An IPv4 or IPv6 packet, or as much as there is of it; None without a whole and sound header.

    IPv6 extension headers are not looked behind: ``proto`` is then theirs.
    """
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= IpHdr.LEN:
        size = int.from_bytes(data[IpHdr.TOTLEN : IpHdr.ID], "big")
        start = (data[IpHdr.VIHL] & 15) * 4
        if not IpHdr.LEN <= start <= len(data):
            return None
        return IpPacket(
            False, ip_from(data[IpHdr.SRC : IpHdr.DST]), ip_from(data[IpHdr.DST : IpHdr.LEN]),
            data[IpHdr.PROTO], data[IpHdr.TTL], data[start:size], len(data) >= size, data[start:],
        )  # fmt: skip
    if version == 6 and len(data) >= Ip6Hdr.LEN:
        size = Ip6Hdr.LEN + int.from_bytes(data[Ip6Hdr.PLEN : Ip6Hdr.NEXT], "big")
        source, target = ip_from(data[Ip6Hdr.SRC : Ip6Hdr.DST]), ip_from(data[Ip6Hdr.DST : Ip6Hdr.LEN])
        if is_ip4(source) or is_ip4(target):
            return None  # IPv4-mapped addresses are for hosts, not for wires
        return IpPacket(
            True, source, target,
            data[Ip6Hdr.NEXT], data[Ip6Hdr.HOPS], data[Ip6Hdr.LEN : size], len(data) >= size,
            data[Ip6Hdr.LEN :],
        )  # fmt: skip
    return None


def icmp_message(ip: IpPacket) -> bytes:
    """The ICMP or ICMPv6 message of a packet; empty when it is cut short, or its checksum is wrong."""
    if not ip.whole or len(ip.body) < IcmpHdr.LEN:
        return b""
    summed = _pseudo6(ip.source, ip.target, ip.body) if ip.v6 else ip.body
    good = ip.proto == (PROTO_ICMPV6 if ip.v6 else PROTO_ICMP) and not inet_checksum(summed)
    return ip.body if good else b""


def _pseudo6(source: int, target: int, body: bytes) -> bytes:
    """An ICMPv6 message behind its pseudo-header (RFC 8200, 8.1)."""
    addresses = source.to_bytes(16, "big") + target.to_bytes(16, "big")
    return addresses + struct.pack("!II", len(body), PROTO_ICMPV6) + body


def arp_frame(mac: int, ours: int, to: bytes, oper: int, tha: bytes, tpa: int) -> bytes:
    """An ARP frame from ``mac`` and the IPv4 address ``ours``."""
    sender = mac.to_bytes(MAC_BYTES, "big")
    body = ARP_ETHERNET + struct.pack("!H", oper) + sender + ip_bytes(ours) + tha + ip_bytes(tpa)
    return to + sender + struct.pack("!H", EtherType.ARP) + body


def icmp_frame(to: bytes, mac: int, source: int, target: int, body: bytes, hops: int = HOPS) -> bytes:
    """A frame with an ICMP message, or an ICMPv6 one by its addresses, whose checksum is filled in."""
    v4 = is_ip4(source)
    body = body[: IcmpHdr.CSUM] + b"\0\0" + body[IcmpHdr.CSUM + 2 :]
    check = inet_checksum(body if v4 else _pseudo6(source, target, body))
    body = body[: IcmpHdr.CSUM] + struct.pack("!H", check) + body[IcmpHdr.CSUM + 2 :]
    addresses = ip_bytes(source) + ip_bytes(target)
    if v4:
        size = IpHdr.LEN + len(body)
        head = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, IP_DF, hops, PROTO_ICMP, 0) + addresses
        check = inet_checksum(head)
        head = head[: IpHdr.CSUM] + struct.pack("!H", check) + head[IpHdr.SRC :]
    else:
        head = struct.pack("!IHBB", 6 << 28, len(body), PROTO_ICMPV6, hops) + addresses
    kind = EtherType.IPV4 if v4 else EtherType.IPV6
    return to + mac.to_bytes(MAC_BYTES, "big") + struct.pack("!H", kind) + head + body
