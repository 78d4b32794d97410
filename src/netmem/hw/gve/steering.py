"""Where a gve puts a packet: flow rules first, then RSS; and what it found out about it on the way."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from netmem.base.headers import PROTO_TCP, PROTO_UDP, Ip6Hdr, IpHdr
from netmem.base.record import address_of
from netmem.hw.gve import layout as ly
from netmem.hw.softnic.look import look_at, toeplitz_table
from netmem.hw.softnic.regs import Bar, Rxs
from netmem.hw.softnic.state import NicState
from netmem.hw.wire import FrameRow

HASH_KEY_BYTES, LUT_ENTRIES = 40, 128
FLOWS_KEPT = 4096
PROTO_ICMP, PROTO_ICMP6, PROTO_SCTP = 1, 58, 132
_L4 = {
    PROTO_TCP: ly.L4Type.TCP, PROTO_UDP: ly.L4Type.UDP, PROTO_ICMP: ly.L4Type.ICMP,
    PROTO_ICMP6: ly.L4Type.ICMP, PROTO_SCTP: ly.L4Type.SCTP,
}  # fmt: skip
_FLOW_TYPES = {
    (4, PROTO_TCP): ly.FlowType.TCPV4, (4, PROTO_UDP): ly.FlowType.UDPV4,
    (6, PROTO_TCP): ly.FlowType.TCPV6, (6, PROTO_UDP): ly.FlowType.UDPV6,
}  # fmt: skip


class Seen(NamedTuple):
    """What the device knows of a frame once it has looked at it."""

    queue: int
    packet_type: int  # index into the map that GET_PTYPE_MAP hands out
    header: int  # bytes of headers up to TCP's or UDP's end, the whole frame for all else
    tcp: bool
    hash: int
    l3_bad: bool
    l4_bad: bool
    checked: bool  # the checksum of TCP or UDP was looked at


def packet_type(l3: int, l4: int) -> int:
    """The number of a packet type: ours to choose, told to the driver by ``ptype_map``."""
    return l3 << 3 | l4


def ptype_map() -> bytes:
    """struct gve_ptype_map: (l3, l4) of every packet type."""
    entries = bytearray(2 * ly.NUM_PTYPES)
    for l3 in ly.L3Type:
        for l4 in ly.L4Type:
            at = 2 * packet_type(l3, l4)
            entries[at : at + 2] = bytes((l3, l4))
    return bytes(entries)


class Steering:
    """Flow rules by location, RSS key and table; the queue of each frame.

    ``rss_key``: HASH_KEY_BYTES; ``lut``: LUT_ENTRIES queue numbers.
    """

    def __init__(self, queues: int) -> None:
        self._bar = Bar()
        self._nic = NicState(bar=address_of(self._bar))
        self.rules: dict[int, ly.FlowRule] = {}
        self._flows: dict[tuple[int, bytes], int] = {}  # what the rules say of flows seen
        self.hash_types, self.hash_alg = 0, 0
        self.lut = [i % queues for i in range(LUT_ENTRIES)]
        self.set_key(bytes(HASH_KEY_BYTES))

    def set_key(self, key: bytes) -> None:
        """Hash with another key from now on (Toeplitz)."""
        self.rss_key = key
        self._bar.rss_key[:] = list(key)
        toeplitz_table(address_of(self._nic))

    def set_rule(self, location: int, rule: ly.FlowRule | None) -> None:
        """Set, or take away, the rule at a location: of those that match, the lowest one counts."""
        if rule is None:
            del self.rules[location]
        else:
            self.rules[location] = rule
        self._flows.clear()

    def clear_rules(self) -> None:
        """Take all rules away."""
        self.rules.clear()
        self._flows.clear()

    def see(self, frame: FrameRow) -> Seen:
        """Look at a frame: headers, checksums, hash, and the queue it goes to."""
        if not frame.seen:
            look_at(address_of(self._nic), address_of(frame))
        l3, l4, size = frame.l3, frame.l4, frame.header_len
        status = frame.status
        if not l3:
            kind = packet_type(ly.L3Type.OTHER, ly.L4Type.UNKNOWN)
            return Seen(0, kind, size, False, 0, False, False, False)
        head = ctypes.string_at(frame.header, min(size, 256))
        version = head[l3] >> 4
        if version == 4:
            proto, kind = head[l3 + IpHdr.PROTO], ly.L3Type.IPV4
        else:
            proto, kind = _last_header(head, l3), ly.L3Type.IPV6
        upper = _L4.get(proto, ly.L4Type.OTHER)
        hash_ = frame.hash
        queue = self._by_rule(version, proto, head, l3, l4) if self.rules and l4 else -1
        if queue < 0:
            queue = self.lut[hash_ % LUT_ENTRIES]
        return Seen(
            queue, packet_type(kind, upper), frame.split if l4 else size,
            l4 > 0 and proto == PROTO_TCP, hash_, bool(status & Rxs.L3_BAD),
            bool(status & Rxs.L4_BAD), bool(status & (Rxs.L4_OK | Rxs.L4_BAD)),
        )  # fmt: skip

    def _by_rule(self, version: int, proto: int, head: bytes, l3: int, l4: int) -> int:
        if version == 4:
            src, dst = head[l3 + IpHdr.SRC :][:4], head[l3 + IpHdr.DST :][:4]
            tos = head[l3 + 1]
        else:
            src, dst = head[l3 + Ip6Hdr.SRC :][:16], head[l3 + Ip6Hdr.DST :][:16]
            tos = (head[l3] << 4 | head[l3 + 1] >> 4) & 0xFF
        # The layout of FlowSpec, so that a rule's key and mask can be laid over it.
        spec = src.ljust(16, b"\0") + dst.ljust(16, b"\0") + head[l4 : l4 + 4] + bytes((tos,))
        flow = (_FLOW_TYPES.get((version, proto), -1), spec)
        if flow not in self._flows:
            if len(self._flows) >= FLOWS_KEPT:
                self._flows.clear()
            self._flows[flow] = self._match(*flow)
        return self._flows[flow]

    def _match(self, kind: int, spec: bytes) -> int:
        """The queue that the first matching rule names, -1 without one."""
        flow = int.from_bytes(spec, "big")
        for location in sorted(self.rules):
            rule = self.rules[location]
            mask = int.from_bytes(bytes(rule.mask)[: len(spec)], "big")
            key = int.from_bytes(bytes(rule.key)[: len(spec)], "big")
            if rule.flow_type == kind and flow & mask == key & mask:
                return int(rule.action)
        return -1


def _last_header(head: bytes, l3: int) -> int:
    """The upper protocol of an IPv6 packet, behind the extension headers that can be stepped over."""
    proto, at = head[l3 + 6], l3 + Ip6Hdr.LEN
    while proto in (0, 43, 60) and at + 2 <= len(head):
        proto, at = head[at], at + 8 * (head[at + 1] + 1)
    return proto
