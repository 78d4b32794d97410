"""Frames as bytes, built with ``struct`` alone, right or deliberately wrong."""

from __future__ import annotations

import ipaddress
import struct

from netmem.base.address import ip4
from netmem.base.checksum import inet_checksum

MAC_OURS, MAC_THEIRS = bytes.fromhex("026e6d00000f"), bytes.fromhex("026e6d000002")
OURS, THEIRS = "10.0.2.15", "10.0.2.2"
OURS6, THEIRS6 = "fd00::f", "fd00::2"


def ethernet(payload: bytes, kind: int = 0x0800, *, vlan: int | None = None) -> bytes:
    """An Ethernet frame from THEIRS to OURS, without padding."""
    tag = struct.pack("!HH", 0x8100, vlan) if vlan is not None else b""
    return MAC_OURS + MAC_THEIRS + tag + struct.pack("!H", kind) + payload


def ipv4(
    payload: bytes,
    *,
    proto: int = 6,
    src: str = THEIRS,
    dst: str = OURS,
    options: bytes = b"",
    total: int | None = None,
    fragment: int = 0x4000,
    ttl: int = 64,
    ident: int = 0,
) -> bytes:
    """An IPv4 packet; ``total`` overrides the length field."""
    size = 20 + len(options)
    length = size + len(payload) if total is None else total
    head = struct.pack(
        "!BBHHHBBHII", 0x40 | size // 4, 0, length, ident, fragment, ttl, proto, 0, ip4(src), ip4(dst)
    )
    head += options
    return head[:10] + struct.pack("!H", inet_checksum(head)) + head[12:] + payload


def tcp_segment(
    payload: bytes = b"",
    *,
    sport: int = 40000,
    dport: int = 5001,
    seq: int = 1,
    ack: int = 0,
    flags: int = 0x10,
    window: int = 65535,
    options: bytes = b"",
    src: str = THEIRS,
    dst: str = OURS,
    offset: int | None = None,
) -> bytes:
    """A TCP segment with a right checksum for ``src`` and ``dst``; ``offset`` overrides its field."""
    options += b"\0" * (-len(options) % 4)
    words = 5 + len(options) // 4 if offset is None else offset
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, words << 4, flags, window, 0, 0)
    body = head + options + payload
    pseudo = struct.pack("!IIBBH", ip4(src), ip4(dst), 0, 6, len(body))
    return body[:16] + struct.pack("!H", inet_checksum(pseudo + body)) + body[18:]


def tcp(payload: bytes = b"", **fields: object) -> bytes:
    """A whole Ethernet frame with a TCP segment; ``fields`` go to ``tcp_segment``."""
    src, dst = str(fields.get("src", THEIRS)), str(fields.get("dst", OURS))
    return ethernet(ipv4(tcp_segment(payload, **fields), src=src, dst=dst))  # type: ignore[arg-type]


def udp(payload: bytes = b"", *, sport: int = 40000, dport: int = 9) -> bytes:
    """A whole frame with a UDP datagram."""
    head = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
    pseudo = struct.pack("!IIBBH", ip4(THEIRS), ip4(OURS), 0, 17, len(head) + len(payload))
    check = inet_checksum(pseudo + head + payload) or 0xFFFF
    return ethernet(ipv4(head[:6] + struct.pack("!H", check) + payload, proto=17))


def ipv6(payload: bytes, *, proto: int = 6, src: str = THEIRS6, dst: str = OURS6) -> bytes:
    """An IPv6 packet without extension headers."""
    head = struct.pack("!IHBB", 6 << 28, len(payload), proto, 64)
    return head + ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed + payload


def _over_ipv6(body: bytes, proto: int, at: int) -> bytes:
    """``body`` with its checksum at ``at`` filled in, as a whole frame over IPv6 (RFC 8200, 8.1)."""
    addresses = ipaddress.ip_address(THEIRS6).packed + ipaddress.ip_address(OURS6).packed
    body = body[:at] + b"\0\0" + body[at + 2 :]
    check = inet_checksum(addresses + struct.pack("!II", len(body), proto) + body) or 0xFFFF
    body = body[:at] + struct.pack("!H", check) + body[at + 2 :]
    return ethernet(ipv6(body, proto=proto), 0x86DD)


def tcp6(payload: bytes = b"", **fields: object) -> bytes:
    """A whole frame with a TCP segment over IPv6; ``fields`` go to ``tcp_segment``."""
    return _over_ipv6(tcp_segment(payload, **fields), 6, 16)  # type: ignore[arg-type]


def udp6(payload: bytes = b"", *, sport: int = 40000, dport: int = 9) -> bytes:
    """A whole frame with a UDP datagram over IPv6."""
    return _over_ipv6(struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload, 17, 6)


def arp(oper: int = 1, *, spa: str = THEIRS, tpa: str = OURS) -> bytes:
    """An ARP frame from THEIRS."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, oper) + MAC_THEIRS
    body += struct.pack("!I", ip4(spa)) + bytes(6) + struct.pack("!I", ip4(tpa))
    return ethernet(body, 0x0806)


def icmp(body: bytes) -> bytes:
    """An ICMP message with its checksum filled in."""
    return body[:2] + struct.pack("!H", inet_checksum(body[:2] + b"\0\0" + body[4:])) + body[4:]


def icmp_echo(payload: bytes = b"ping", *, ident: int = 1, seq: int = 1) -> bytes:
    """A whole frame with an ICMP echo request."""
    body = struct.pack("!BBHHH", 8, 0, 0, ident, seq) + payload
    body = body[:2] + struct.pack("!H", inet_checksum(body)) + body[4:]
    return ethernet(ipv4(body, proto=1))
