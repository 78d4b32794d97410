"""Neighbours on the link: ARP for IPv4 (RFC 826), neighbour discovery for IPv6 (RFC 4861).

A cache, and functions from a received frame to (well formed, neighbour learnt, reply to send).
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import NamedTuple

from netmem.base.address import ip_bytes, ip_from
from netmem.base.checksum import inet_checksum
from netmem.base.headers import (
    ARP_REPLY,
    ARP_REQUEST,
    BROADCAST,
    PROTO_ICMPV6,
    ArpHdr,
    EtherType,
    EthHdr,
    Icmp6Type,
    Ip6Hdr,
)

CACHE_SIZE = 1024
ASK_AGAIN_NS = 1_000_000_000
STALE_NS = 30 * ASK_AGAIN_NS
OPT_SOURCE_LLA, OPT_TARGET_LLA = 1, 2
NA_SOLICITED, NA_OVERRIDE = 0x40000000, 0x20000000
ND_HOPS = 255
ALL_NODES = 0xFF02 << 112 | 1


class Neighbour(NamedTuple):
    """An address of 128 bits and its MAC."""

    address: int
    mac: int


class Seen(NamedTuple):
    """What a frame of ARP or neighbour discovery came to."""

    good: bool
    learnt: Neighbour | None = None
    reply: bytes | None = None


class NeighbourCache:
    """Neighbours by address. The one heard of longest ago goes when the cache is full."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, int] = OrderedDict()
        self._heard: dict[int, int] = {}
        self.now = 0
        self._asked: OrderedDict[int, int] = OrderedDict()

    def lookup(self, address: int) -> int | None:
        """A neighbour's MAC, None when it is not known."""
        return self._known.get(address)

    def is_stale(self, address: int) -> bool:
        """True when a known neighbour was not heard of for half a minute: ask it again (RFC 4861, 7.3)."""
        return address in self._known and self.now - self._heard.get(address, 0) > STALE_NS

    def was_asked(self, address: int) -> bool:
        """True while a neighbour is being asked for."""
        return address in self._asked

    def __contains__(self, address: int) -> bool:
        return address in self._known

    def learn(self, address: int, mac: int) -> Neighbour | None:
        """Note a neighbour; returned when that is news. A group's MAC is nobody's."""
        if mac >> 40 & 1 or not mac:
            return None
        news = self._known.get(address) != mac
        self._known[address] = mac
        self._heard[address] = self.now
        self._known.move_to_end(address)
        if len(self._known) > CACHE_SIZE:
            gone, _ = self._known.popitem(last=False)
            self._heard.pop(gone, None)
        self._asked.pop(address, None)
        return Neighbour(address, mac) if news else None

    def may_ask(self, address: int, now: int) -> bool:
        """True when it is time to ask for ``address`` (again): once a second."""
        if now - self._asked.get(address, -ASK_AGAIN_NS) < ASK_AGAIN_NS:
            return False
        self._asked[address] = now
        if len(self._asked) > CACHE_SIZE:
            self._asked.popitem(last=False)
        return True


# -- ARP ------------------------------------------------------------------------------------------


def arp_frame(mac: int, ours: int, to: bytes, oper: int, tha: int, tpa: int) -> bytes:
    """An ARP frame from ``mac`` and the IPv4 address ``ours``."""
    sender = mac.to_bytes(6, "big")
    head = to + sender + EtherType.ARP.to_bytes(2, "big")
    body = struct.pack("!HHBBH", 1, EtherType.IPV4, 6, 4, oper) + sender
    return head + body + ip_bytes(ours) + tha.to_bytes(6, "big") + ip_bytes(tpa)


def arp_request(mac: int, ours: int, wanted: int) -> bytes:
    """The frame that asks for an IPv4 address."""
    return arp_frame(mac, ours, BROADCAST, ARP_REQUEST, 0, wanted)


def arp_in(cache: NeighbourCache, frame: bytes, mac: int, ours: frozenset[int]) -> Seen:
    """A whole ARP frame came, for a host with MAC ``mac`` and the addresses ``ours``."""
    if len(frame) < EthHdr.LEN + ArpHdr.LEN:
        return Seen(False)
    kind, proto, hlen, plen, oper = struct.unpack_from("!HHBBH", frame, EthHdr.LEN)
    if (kind, proto, hlen, plen) != (1, EtherType.IPV4, 6, 4) or oper not in (ARP_REQUEST, ARP_REPLY):
        return Seen(False)
    sha = int.from_bytes(frame[22:28], "big")
    spa, tpa = ip_from(frame[28:32]), ip_from(frame[38:42])
    # Merge: refresh what is known, add only what speaks to us.
    learnt = None
    if spa & 0xFFFFFFFF and spa not in ours and (tpa in ours or spa in cache):
        learnt = cache.learn(spa, sha)
    reply = None
    if tpa in ours and oper == ARP_REQUEST:
        reply = arp_frame(mac, tpa, frame[22:28], ARP_REPLY, sha, spa)
    return Seen(True, learnt, reply)


# -- neighbour discovery --------------------------------------------------------------------------


def solicited_node(address: int) -> tuple[int, bytes]:
    """The group that an IPv6 address is asked for in, and its MAC (RFC 4291, 2.7.1; RFC 2464, 7)."""
    low = address & 0xFFFFFF
    return 0xFF0200000000000000000001FF000000 | low, b"\x33\x33\xff" + low.to_bytes(3, "big")


def icmp6_frame(to: bytes, mac: int, source: int, target: int, body: bytes, hops: int = 64) -> bytes:
    """A frame with an ICMPv6 message, whose checksum is filled in."""
    addresses = ip_bytes(source) + ip_bytes(target)
    pseudo = addresses + struct.pack("!II", len(body), PROTO_ICMPV6)
    check = inet_checksum(pseudo + body[:2] + b"\0\0" + body[4:])
    body = body[:2] + check.to_bytes(2, "big") + body[4:]
    head = struct.pack("!IHBB", 6 << 28, len(body), PROTO_ICMPV6, hops)
    return to + mac.to_bytes(6, "big") + EtherType.IPV6.to_bytes(2, "big") + head + addresses + body


def nd_solicit(mac: int, ours: int, wanted: int) -> bytes:
    """The neighbour solicitation that asks for ``wanted`` (RFC 4861, 4.3)."""
    group, to = solicited_node(wanted)
    body = struct.pack("!BBHI", Icmp6Type.ND_SOLICIT, 0, 0, 0) + ip_bytes(wanted)
    body += bytes((OPT_SOURCE_LLA, 1)) + mac.to_bytes(6, "big")
    return icmp6_frame(to, mac, ours, group, body, ND_HOPS)


def nd_in(cache: NeighbourCache, frame: bytes, mac: int, ours: frozenset[int]) -> Seen:
    """A whole frame with a solicitation or advertisement came (RFC 4861, 7.1 and 7.2).

    It is without extension headers, and its checksum was found right.
    """
    body = frame[EthHdr.LEN + Ip6Hdr.LEN :]
    if len(body) < 24 or frame[EthHdr.LEN + 7] != ND_HOPS or body[1]:
        return Seen(False)
    source, target = ip_from(frame[22:38]), ip_from(body[8:24])
    option = 0
    at = 24
    while at < len(body):
        size = body[at + 1] * 8 if at + 1 < len(body) else 0
        if not size or at + size > len(body):
            return Seen(False)
        if body[at] == (OPT_SOURCE_LLA if body[0] == Icmp6Type.ND_SOLICIT else OPT_TARGET_LLA):
            option = int.from_bytes(body[at + 2 : at + 8], "big")
        at += size
    if target >> 120 == 0xFF:
        return Seen(False)
    if body[0] == Icmp6Type.ND_ADVERT:
        flags = int.from_bytes(body[4:8], "big")
        # Only what was asked for, or is known already, is taken; an override replaces what is known.
        asked = cache.was_asked(target) or target in cache
        fresh = asked and (target not in cache or flags & NA_OVERRIDE)
        learnt = cache.learn(target, option) if option and fresh and target not in ours else None
        return Seen(True, learnt)
    if target not in ours:
        return Seen(True)
    learnt = cache.learn(source, option) if source and option and source not in ours else None
    asker, to_mac = (source, frame[6:12]) if source else (ALL_NODES, b"\x33\x33\0\0\0\x01")
    flags = NA_OVERRIDE | (NA_SOLICITED if source else 0)
    reply = struct.pack("!BBHI", Icmp6Type.ND_ADVERT, 0, 0, flags) + body[8:24]
    reply += bytes((OPT_TARGET_LLA, 1)) + mac.to_bytes(6, "big")
    return Seen(True, learnt, icmp6_frame(to_mac, mac, target, asker, reply, ND_HOPS))


def link_local(mac: int) -> int:
    """The link-local address of an interface with this MAC (RFC 4291, appendix A)."""
    high, low = mac >> 24 ^ 0x020000, mac & 0xFFFFFF
    return 0xFE80 << 112 | high << 40 | 0xFFFE << 24 | low
