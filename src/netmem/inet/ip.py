"""The addresses of a stack, the way to others, and what is not TCP or UDP: ARP, ND, ICMP, frames."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Sequence

from netmem.base.address import ip, ip_text, is_ip4
from netmem.base.clock import SEC
from netmem.base.errors import NetmemError
from netmem.base.headers import ETH_ZLEN, Icmp6Type, IcmpHdr
from netmem.inet import icmp
from netmem.inet import neighbour as nb
from netmem.inet.packet import IpPacket, ethernet, icmp_message, ip_packet
from netmem.inet.tcp.tcb import MAX_ADDRESSES, StackRecord
from netmem.memory.ref import offset_of
from netmem.netdev.batch import RxBatch
from netmem.netdev.device import NetDevice
from netmem.netdev.tx import SLOT_BYTES, TX_ROWS

FRAME_MAX = 2048  # of frames built in Python: ARP and ICMP
PMTU_CACHE, PMTU_AGE = 256, 600 * SEC  # RFC 1191, 6.3
ND_MESSAGES = (Icmp6Type.ND_SOLICIT, Icmp6Type.ND_ADVERT)


def address_of(host: str) -> int:
    """An address in text as a number. EINVAL for what is none."""
    try:
        return ip(host)
    except ValueError:
        raise NetmemError(errno.EINVAL, f"{host!r} is not an IP address") from None


class Ip:
    """IPv4 and IPv6 of one device.

    ``addresses``: interface addresses in text, with or without a prefix length (24 and 64 without);
    ``gateways``: at most one router for each family. An IPv6 address brings the link-local one along.
    ``neighbour_up(address)`` is called when a neighbour's MAC became known or changed, ``failed(error)``
    for an ICMP error about a packet of ours. Errors: EINVAL for what is no address.
    """

    def __init__(self, dev: NetDevice, addresses: Sequence[str], gateways: Sequence[str]) -> None:
        self.dev = dev
        self.mac = dev.driver.mac_address()
        self.cache = nb.NeighbourCache()
        self.record = StackRecord()  # of the stack: the time, and the counters; it puts its own here
        self.neighbour_up: Callable[[int], None] = lambda address: None
        self.failed: Callable[[icmp.IcmpError], None] = lambda error: None
        self._prefixes: dict[int, int] = {}  # address: bits that are the link's
        self._gateways: dict[bool, int] = {}
        self._pmtu: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._control: int | None = None
        for text in addresses:
            self.add(text)
        for text in gateways:
            router = address_of(text)
            if not self._on_link(router):
                raise NetmemError(errno.EINVAL, f"the gateway {text} is in none of the stack's networks")
            self._gateways[is_ip4(router)] = router

    def add(self, text: str) -> None:
        """Give the interface one more address, ``10.0.2.15/24`` or ``fd00::f/64``. EINVAL."""
        host, slash, bits = text.partition("/")
        address = address_of(host)
        width = 32 if is_ip4(address) else 128
        if slash and not (bits.isdigit() and int(bits) <= width):
            raise NetmemError(errno.EINVAL, f"{text!r}: a prefix length is a number up to {width}")
        parsed = ipaddress.ip_address(host)
        if parsed.is_multicast or parsed.is_unspecified:
            raise NetmemError(errno.EINVAL, f"{host} is no address that a host can have")
        if len(self._prefixes) + 2 > MAX_ADDRESSES:
            raise NetmemError(errno.ENOBUFS, f"a stack has at most {MAX_ADDRESSES} addresses")
        self._prefixes[address] = 128 - width + (int(bits) if slash else 24 if width == 32 else 64)
        if width == 128:
            self._prefixes.setdefault(nb.link_local(self.mac), 64)
        self.ours = frozenset(self._prefixes)

    @property
    def addresses(self) -> list[str]:
        """The addresses of the interface, as text."""
        return [ip_text(address) for address in self._prefixes]

    def is_martian(self, address: int) -> bool:
        """True for a source that nobody beyond the wire can have: our own (LAND), a group, or none at all."""
        if address in self.ours:
            return True
        if is_ip4(address):
            return not 0 < address & 0xFFFFFFFF < 0xE0000000
        return not address or address >> 120 == 0xFF

    # -- the way to others --------------------------------------------------------------------

    def _on_link(self, address: int) -> bool:
        return any(
            is_ip4(ours) == is_ip4(address) and (ours ^ address) >> (128 - bits) == 0
            for ours, bits in self._prefixes.items()
        )

    def source_for(self, target: int) -> int:
        """The address to speak to ``target`` from: on its link, if there is one. ENETUNREACH without."""
        four, local = is_ip4(target), target >> 118 == 0xFE80 >> 6
        best = -1
        for ours, bits in self._prefixes.items():
            if is_ip4(ours) != four or (ours >> 118 == 0xFE80 >> 6) != local:
                continue
            if (ours ^ target) >> (128 - bits) == 0:
                return ours
            best = ours if best < 0 else best
        if best < 0:
            family = "IPv4" if four else "IPv6"
            text = f"no way to {ip_text(target)}: there is no {family} address here"
            raise NetmemError(errno.ENETUNREACH, text)
        return best

    def next_hop(self, target: int) -> int:
        """Whom to hand a packet for ``target``: itself on the link, a router otherwise."""
        return target if self._on_link(target) else self._gateways.get(is_ip4(target), target)

    def resolve(self, hop: int) -> int | None:
        """MAC of a neighbour; None while it is being asked for."""
        self.cache.now = self.record.now
        mac = self.cache.lookup(hop)
        if (mac is None or self.cache.is_stale(hop)) and self.cache.may_ask(hop, self.record.now):
            try:
                ours = self.source_for(hop)
            except NetmemError:
                return mac
            if is_ip4(hop):
                self.record.counters.arp_out += 1
                self.send_frame(nb.arp_request(self.mac, ours, hop))
            else:
                self.record.counters.nd_out += 1
                self.send_frame(nb.nd_solicit(self.mac, ours, hop))
        return mac

    def mtu(self, target: int) -> int:
        """Longest packet on the way to ``target`` that is known of (RFC 1191, 8201)."""
        known = self._pmtu.get(target)
        if known is not None and self.record.now < known[1]:
            return min(known[0], self.dev.mtu)
        return self.dev.mtu

    # -- receiving ----------------------------------------------------------------------------

    def _frame(self, batch: RxBatch, i: int) -> bytes:
        """A whole frame as bytes, empty when a part of it cannot be read or it is too long."""
        row = batch.row(i)
        frame = ctypes.string_at(row.header, row.header_len)
        while True:
            if row.size:
                pool = self.dev.pools[row.pool]
                if pool.is_unreadable() or len(frame) + row.size > FRAME_MAX:
                    return b""
                at = pool.area.address + offset_of(row.netmem, pool.area.shift) + row.offset
                frame += ctypes.string_at(at, row.size)
            if row.more < 0:
                return frame
            row = batch.row(row.more)

    def arp_in(self, batch: RxBatch, i: int) -> None:
        """An ARP packet."""
        self.cache.now = self.record.now
        seen = nb.arp_in(self.cache, self._frame(batch, i), self.mac, self.ours)
        if seen.good:
            self.record.counters.arp_in += 1
        else:
            self.record.counters.bad_arp += 1
        self._neighbour(seen)

    def _neighbour(self, seen: nb.Seen) -> None:
        if seen.learnt is not None:
            self.neighbour_up(seen.learnt.address)
        if seen.reply is not None:
            self.send_frame(seen.reply)

    def icmp_in(self, batch: RxBatch, i: int) -> None:
        """An ICMP or ICMPv6 packet."""
        frame = ethernet(self._frame(batch, i))
        packet = ip_packet(frame.data)
        body = icmp_message(packet) if packet is not None else b""
        if packet is None or not body:
            self.record.counters.icmp_dropped += 1
            return
        if packet.v6 and body[IcmpHdr.TYPE] in ND_MESSAGES:
            self._nd_in(frame.sender, packet)
        elif packet.target not in self.ours:
            self.record.counters.icmp_dropped += 1
        elif icmp.is_echo(body, v6=packet.v6):
            self.record.counters.icmp_echo += 1
            self.send_frame(icmp.echo_reply(frame.sender, self.mac, packet, body))
        else:
            self._error(icmp.error6(body) if packet.v6 else icmp.error4(body))

    def _nd_in(self, sender: bytes, packet: IpPacket) -> None:
        self.cache.now = self.record.now
        seen = nb.nd_in(self.cache, sender, packet, self.mac, self.ours)
        if seen.good:
            self.record.counters.nd_in += 1
        else:
            self.record.counters.bad_nd += 1
        self._neighbour(seen)

    def _error(self, error: icmp.IcmpError | None) -> None:
        if error is None or error.source not in self.ours:
            self.record.counters.icmp_dropped += 1
            return
        self.record.counters.icmp_errors += 1
        self.failed(error)

    def note_mtu(self, error: icmp.IcmpError) -> None:
        """A hop on the way to a target forwards no longer packets; the caller saw that it is no forgery."""
        self._pmtu[error.target] = (error.mtu, self.record.now + PMTU_AGE)
        self._pmtu.move_to_end(error.target)
        if len(self._pmtu) > PMTU_CACHE:
            self._pmtu.popitem(last=False)

    # -- sending ------------------------------------------------------------------------------

    def send_frame(self, frame: bytes) -> None:
        """Send a frame built in Python; dropped and counted when no transmit row is free."""
        tx = self.dev.tx
        frame = frame.ljust(ETH_ZLEN, b"\0")
        head, rest = frame[:SLOT_BYTES], frame[SLOT_BYTES:]
        row = tx.begin(head) if len(rest) <= FRAME_MAX else None
        if row is None:
            self.record.counters.tx_full += 1
            return
        if rest:
            if self._control is None:
                self._control = tx.alloc_buffer(TX_ROWS * FRAME_MAX)
                if self._control is None:
                    return
            at = self._control + tx.record.filled % TX_ROWS * FRAME_MAX
            ctypes.memmove(tx.record.host + at, rest, len(rest))
            row.payload, row.payload_len = tx.record.io + at, len(rest)
        tx.record.filled += 1
