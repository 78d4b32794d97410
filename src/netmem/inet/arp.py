"""ARP for IPv4 over Ethernet (RFC 826), with a bounded cache."""

from __future__ import annotations

import struct
from collections import OrderedDict

from netmem.base.formats import (
    ARP_LEN,
    ARP_REPLY,
    ARP_REQUEST,
    BROADCAST,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
)

CACHE_SIZE = 1024
ASK_AGAIN_NS = 1_000_000_000


class ArpCache:
    """Neighbours by IPv4 address. The oldest entry goes when the cache is full."""

    def __init__(self, address: int, mac: int) -> None:
        self.address, self.mac = address, mac
        self._known: OrderedDict[int, int] = OrderedDict()
        self._asked: OrderedDict[int, int] = OrderedDict()

    def lookup(self, ip: int) -> int | None:
        """A neighbour's MAC, None when it is not known."""
        return self._known.get(ip)

    def learn(self, ip: int, mac: int) -> bool:
        """Note a neighbour; True when that is news."""
        news = self._known.get(ip) != mac
        self._known[ip] = mac
        self._known.move_to_end(ip)
        if len(self._known) > CACHE_SIZE:
            self._known.popitem(last=False)
        self._asked.pop(ip, None)
        return news

    def may_ask(self, ip: int, now: int) -> bool:
        """True when it is time to ask for ``ip`` (again): once a second."""
        if now - self._asked.get(ip, -ASK_AGAIN_NS) < ASK_AGAIN_NS:
            return False
        self._asked[ip] = now
        if len(self._asked) > CACHE_SIZE:
            self._asked.popitem(last=False)
        return True

    def request(self, ip: int) -> bytes:
        """The frame that asks for ``ip``."""
        return self._frame(BROADCAST, ARP_REQUEST, 0, ip)

    def receive(self, frame: bytes) -> tuple[bool, tuple[int, int] | None, bytes | None]:
        """An ARP frame came: (well formed, neighbour learnt as (ip, mac), reply to send)."""
        if len(frame) < 14 + ARP_LEN:
            return False, None, None
        kind, proto, hlen, plen, oper = struct.unpack_from("!HHBBH", frame, 14)
        if (kind, proto, hlen, plen) != (1, ETHERTYPE_IPV4, 6, 4) or oper not in (
            ARP_REQUEST,
            ARP_REPLY,
        ):
            return False, None, None
        sha = int.from_bytes(frame[22:28], "big")
        spa, tpa = (int.from_bytes(frame[at : at + 4], "big") for at in (28, 38))
        for_us = tpa == self.address
        # Merge: refresh what is known, add only what speaks to us. Group addresses are no neighbours.
        learnt = None
        if spa and not sha >> 40 & 1 and spa != self.address and (for_us or spa in self._known):
            if self.learn(spa, sha):
                learnt = (spa, sha)
        reply = None
        if for_us and oper == ARP_REQUEST:
            reply = self._frame(frame[22:28], ARP_REPLY, sha, spa)
        return True, learnt, reply

    def _frame(self, to: bytes, oper: int, tha: int, tpa: int) -> bytes:
        mac = self.mac.to_bytes(6, "big")
        head = to + mac + ETHERTYPE_ARP.to_bytes(2, "big")
        body = struct.pack("!HHBBH", 1, ETHERTYPE_IPV4, 6, 4, oper) + mac
        body += self.address.to_bytes(4, "big") + tha.to_bytes(6, "big") + tpa.to_bytes(4, "big")
        return head + body
