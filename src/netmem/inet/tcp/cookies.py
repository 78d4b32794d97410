"""SYN cookies (RFC 4987, 3.6): while a backlog is full, what a half-open connection would remember travels
in the initial sequence number, and in the low bits of the timestamp, and comes back with the ACK.

The sequence number: five bits of a count of 64 s, three of the peer's MSS, 24 of a keyed hash of both, of
the addresses, the ports and the peer's sequence number: a forger has to hit one of 2**24 in time.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from typing import NamedTuple

from netmem.base.clock import SEC

PERIOD_NS = 64 * SEC
PERIODS = 2  # for which a cookie is good
MSS = (64, 536, 1200, 1360, 1440, 1460, 4312, 8940)
WINDOW = 10 * 1460  # what a SYN-ACK with a cookie advertises: nothing says later what else it was
NO_SCALE = 15
USED = 1 << 17  # cookies that are known to have been used, at most: then no more are taken
STAMP_BITS = 5  # four of the window scale, one of SACK


class Offer(NamedTuple):
    """What a peer's SYN said: ``scale`` -1 without window scaling, ``stamp`` with timestamps."""

    mss: int
    scale: int
    sack: bool
    stamp: bool


class SynCookies:
    """Makes and checks cookies with a key of its own."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.sent_at = -PERIODS * PERIOD_NS  # an ACK is only looked at while cookies may come back
        self._used: OrderedDict[tuple[int, int, int], int] = OrderedDict()  # and when

    def _hash(self, count: int, index: int, laddr: int, raddr: int, ports: int, seq: int) -> int:
        text = laddr.to_bytes(16, "big") + raddr.to_bytes(16, "big")
        text += struct.pack("!IIQB", ports, seq, count & 0xFFFFFFFF, index)
        return int.from_bytes(hashlib.blake2b(text, key=self._key, digest_size=3).digest(), "big")

    def make(self, offer: Offer, laddr: int, raddr: int, ports: int, seq: int, now: int) -> int:
        """The initial sequence number for a SYN with sequence number ``seq``."""
        self.sent_at = now
        count = now // PERIOD_NS
        index = max((n for n, mss in enumerate(MSS) if mss <= offer.mss), default=0)
        return (count & 31) << 27 | index << 24 | self._hash(count, index, laddr, raddr, ports, seq)

    def mss(self, cookie: int, laddr: int, raddr: int, ports: int, seq: int, now: int) -> int:
        """The MSS of a cookie that came back, 0 when it is none of ours, too old, or was used before."""
        while self._used and now - next(iter(self._used.values())) >= PERIODS * PERIOD_NS:
            self._used.popitem(last=False)
        if (cookie, raddr, ports) in self._used or len(self._used) >= USED:
            return 0
        count, index = now // PERIOD_NS, cookie >> 24 & 7
        for age in range(PERIODS):
            if (count - age) & 31 == cookie >> 27:
                if self._hash(count - age, index, laddr, raddr, ports, seq) == cookie & 0xFFFFFF:
                    return MSS[index]
        return 0

    def use(self, cookie: int, raddr: int, ports: int, now: int) -> None:
        """A cookie made a connection: an ACK that the network has kept for later makes no second one."""
        self._used[cookie, raddr, ports] = now

    def expected(self, now: int) -> bool:
        """True while a cookie that was sent can come back."""
        return now - self.sent_at < PERIODS * PERIOD_NS


def stamp(offer: Offer, now: int) -> int:
    """The timestamp to send: not later than ``now``, with what the SYN offered in its low bits."""
    low = (offer.scale if offer.scale >= 0 else NO_SCALE) | offer.sack << 4
    stamp = now >> STAMP_BITS << STAMP_BITS | low
    return (stamp if stamp <= now else stamp - (1 << STAMP_BITS)) & 0xFFFFFFFF


def offered(mss: int, echo: int | None) -> Offer:
    """What the SYN had offered, from the MSS of the cookie and the echoed timestamp, if there is one."""
    if echo is None:
        return Offer(mss, -1, False, False)
    scale = echo & 15
    return Offer(mss, scale if scale != NO_SCALE else -1, bool(echo >> 4 & 1), True)
