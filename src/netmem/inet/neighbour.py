"""Neighbours on the link: ARP for IPv4 (RFC 826), neighbour discovery for IPv6 (RFC 4861).

A cache, and functions from a received frame to (well formed, neighbour learnt, reply to send).
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import NamedTuple

from netmem.base.address import ip_bytes, ip_from, is_ip4
from netmem.base.headers import ARP_REPLY, ARP_REQUEST, BROADCAST, Icmp6Type, IcmpHdr
from netmem.inet.packet import IpPacket, arp, arp_frame, ethernet, icmp_frame

CACHE_SIZE = 1024
ASK_AGAIN_NS = 1_000_000_000
STALE_NS = 30 * ASK_AGAIN_NS
OPT_SOURCE_LLA, OPT_TARGET_LLA = 1, 2
NA_SOLICITED, NA_OVERRIDE = 0x40000000, 0x20000000
ND_HOPS = 255
ND_LEN = 24  # of a solicitation or advertisement without options
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


def arp_request(mac: int, ours: int, wanted: int) -> bytes:
    """The frame that asks for an IPv4 address."""
    return arp_frame(mac, ours, BROADCAST, ARP_REQUEST, bytes(6), wanted)


def arp_in(cache: NeighbourCache, frame: bytes, mac: int, ours: frozenset[int]) -> Seen:
    """A whole ARP frame came, for a host with MAC ``mac`` and the addresses ``ours``."""
    asked = arp(ethernet(frame).data)
    if asked is None or asked.oper not in (ARP_REQUEST, ARP_REPLY):
        return Seen(False)
    # Merge: refresh what is known, add only what speaks to us.
    learnt = None
    if asked.spa & 0xFFFFFFFF and asked.spa not in ours and (asked.tpa in ours or asked.spa in cache):
        learnt = cache.learn(asked.spa, int.from_bytes(asked.sha, "big"))
    reply = None
    if asked.tpa in ours and asked.oper == ARP_REQUEST:
        reply = arp_frame(mac, asked.tpa, asked.sha, ARP_REPLY, asked.sha, asked.spa)
    return Seen(True, learnt, reply)


# -- neighbour discovery --------------------------------------------------------------------------


def solicited_node(address: int) -> tuple[int, bytes]:
    """The group that an IPv6 address is asked for in, and its MAC (RFC 4291, 2.7.1; RFC 2464, 7)."""
    low = address & 0xFFFFFF
    return 0xFF0200000000000000000001FF000000 | low, b"\x33\x33\xff" + low.to_bytes(3, "big")


def nd_solicit(mac: int, ours: int, wanted: int) -> bytes:
    """The neighbour solicitation that asks for ``wanted`` (RFC 4861, 4.3)."""
    group, to = solicited_node(wanted)
    body = struct.pack("!BBHI", Icmp6Type.ND_SOLICIT, 0, 0, 0) + ip_bytes(wanted)
    body += bytes((OPT_SOURCE_LLA, 1)) + mac.to_bytes(6, "big")
    return icmp_frame(to, mac, ours, group, body, ND_HOPS)


def nd_in(cache: NeighbourCache, sender: bytes, ip: IpPacket, mac: int, ours: frozenset[int]) -> Seen:
    """A solicitation or advertisement came from the MAC ``sender`` (RFC 4861, 7.1 and 7.2).

    It is without extension headers, and its checksum was found right.
    """
    body, source = ip.body, ip.source
    if len(body) < ND_LEN or ip.hops != ND_HOPS or body[IcmpHdr.CODE]:
        return Seen(False)
    target = ip_from(body[IcmpHdr.LEN : ND_LEN])
    option = 0
    at = ND_LEN
    while at < len(body):
        size = body[at + 1] * 8 if at + 1 < len(body) else 0
        if not size or at + size > len(body):
            return Seen(False)
        if body[at] == (OPT_SOURCE_LLA if body[0] == Icmp6Type.ND_SOLICIT else OPT_TARGET_LLA):
            option = int.from_bytes(body[at + 2 : at + 8], "big")
        at += size
    if target >> 120 == 0xFF or is_ip4(target):
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
    asker, to_mac = (source, sender) if source else (ALL_NODES, b"\x33\x33\0\0\0\x01")
    flags = NA_OVERRIDE | (NA_SOLICITED if source else 0)
    reply = struct.pack("!BBHI", Icmp6Type.ND_ADVERT, 0, 0, flags) + body[IcmpHdr.LEN : ND_LEN]
    reply += bytes((OPT_TARGET_LLA, 1)) + mac.to_bytes(6, "big")
    return Seen(True, learnt, icmp_frame(to_mac, mac, target, asker, reply, ND_HOPS))


def link_local(mac: int) -> int:
    """The link-local address of an interface with this MAC (RFC 4291, appendix A)."""
    high, low = mac >> 24 ^ 0x020000, mac & 0xFFFFFF
    return 0xFE80 << 112 | high << 40 | 0xFFFE << 24 | low
