"""Whatever arrives, no exception leaves the stack: parsers and TCP input, fed with anything.

A few seconds here; ``python tests/test_fuzz.py MINUTES`` goes on for longer.
"""

from __future__ import annotations

import random
import struct
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_provider, scaled
from netmem.base.address import ip
from netmem.base.clock import MS, SEC
from netmem.base.headers import ACK, SYN
from netmem.inet import icmp, packet
from netmem.inet import neighbour as nb
from netmem.inet.tcp.tcb import MASK32, seq_diff
from netmem.testing import frames
from netmem.testing.net import PORT, Network

EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
SAMPLES = (
    frames.tcp(b"x" * 40), frames.tcp6(b"x" * 40), frames.udp(b"y" * 40), frames.udp6(b"y" * 40), frames.arp(),
    frames.arp(2), frames.icmp_echo(), frames.tcp(options=b"\1\1\x08\x0a" + bytes(8) + b"\5\x0a" + bytes(8)),
    nb.nd_solicit(0x026E6D000002, ip(frames.THEIRS6), ip(frames.OURS6)),
)  # fmt: skip


class Fuzzer:
    """A stack with connections in every state, and frames that are nearly right."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.net = Network(alone=True, rx_queues=1)
        self.net.bind(make_provider("dmabuf", size=16 << 20), queue=0)
        self.stack = self.net.ours.stack
        self.listener = self.stack.listen(PORT)
        self.udp = self.stack.udp_socket(PORT)
        self.socks = []
        self.feed(frames.arp())
        for number in range(6):
            self.feed(
                frames.tcp(
                    sport=1000 + number,
                    dport=PORT,
                    seq=5000,
                    ack=0,
                    flags=SYN,
                    options=bytes.fromhex("0101 0402 020405b4") if number % 2 else b"",
                )
            )
            c = self.row(1000 + number)
            self.feed(
                frames.tcp(sport=1000 + number, dport=PORT, seq=5001, ack=self.word(c, "snd_nxt"), flags=ACK)
            )
        while self.listener.pending():
            self.socks.append(self.listener.accept(timeout=0))
        for sock in self.socks[:4]:
            sock.send(bytes(20_000))
        for sock in self.socks[3:5]:
            sock.shutdown()

    def word(self, c, at):
        return getattr(self.stack.conns.tcbs[c], at)

    def row(self, port):
        tcbs = self.stack.conns.tcbs
        return next((c for c in range(64) if tcbs[c].ports >> 16 == port), 0)

    def feed(self, frame):
        self.net.wire.inject(frame[:1500], flags=self.random.choice((0, 0, 1)))
        self.net.run(1, self.random.choice((1000, MS, SEC)))
        self.net.wire.sent.clear()

    def segment(self):
        """A segment near the truth for one of the connections, in every field a little off or not."""
        rng = self.random
        port = 1000 + rng.randrange(8)
        c = self.row(port)

        def near(at):
            return (
                self.word(c, at) + rng.choice((0, 0, 0, 1, -1, 100, -100, 1448, 70_000, -70_000))
            ) & MASK32

        sack = b"".join(
            struct.pack("!II", near(rng.choice(("snd_una", "snd_nxt"))), near("snd_nxt"))
            for _ in range(rng.randrange(4))
        )
        options = b""
        if sack:
            options += b"\1\1\5" + bytes((2 + len(sack),)) + sack
        if rng.random() < 0.3:
            options += b"\1\1\x08\x0a" + struct.pack("!II", rng.choice(EDGES), rng.choice(EDGES))
        if rng.random() < 0.1:
            options += rng.randbytes(rng.randrange(8))
        return frames.tcp(
            rng.randbytes(rng.choice((0, 0, 1, 100, 1000))), sport=port, dport=PORT, seq=near("rcv_nxt"),
            ack=near(rng.choice(("snd_una", "snd_nxt"))), flags=rng.choice((16, 16, 16, 24, 17, 2, 4, 18, 0, 255)),
            window=rng.choice((0, 1, 1000, 65535)), options=options[:40],
        )  # fmt: skip

    def mutated(self):
        """A sample with some of its bytes changed, or cut short."""
        rng = self.random
        frame = bytearray(rng.choice(SAMPLES))
        for _ in range(rng.randrange(4)):
            frame[rng.randrange(12, len(frame))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        return bytes(frame[: rng.choice((len(frame), len(frame), rng.randrange(14, len(frame))))])

    def step(self):
        """One frame, and now and then a call of the application."""
        rng = self.random
        self.feed(self.segment() if rng.random() < 0.7 else self.mutated())
        if rng.random() < 0.2:
            sock = rng.choice(self.socks)
            try:
                if sock.queued():
                    message = sock.recvmsg_devmem()
                    sock.devmem_dontneed(message.frags["frag_token"])
                if sock.writable() and sock.room() > 0:
                    sock.send(bytes(rng.randrange(1, 3000)))
            except OSError:
                pass  # the connection is over: that is an answer
            while self.udp.pending():
                self.udp.devmem_dontneed(self.udp.recvmsg_devmem().frags["frag_token"])
        conns = self.stack.conns
        for sock in self.socks:
            c = sock._c
            if conns.tcbs[c].state:
                assert 0 <= conns.tcbs[c].retrans <= conns.tcbs[c].lost
                flight = seq_diff(conns.tcbs[c].snd_nxt, conns.tcbs[c].snd_una)
                assert conns.tcbs[c].sacked + conns.tcbs[c].lost <= flight

    def close(self):
        for sock in self.socks:
            sock.close()
        self.udp.close()
        self.net.close()


@pytest.mark.parametrize("seed", range(2))
def test_tcp_input_survives_anything(seed):
    fuzzer = Fuzzer(seed)
    for _ in range(scaled(1000)):
        fuzzer.step()
    fuzzer.close()


@given(st.binary(max_size=200))
def test_parsers_of_icmp_and_neighbours_survive_anything(data):
    cache, ours = nb.NeighbourCache(), frozenset((ip(frames.OURS), ip(frames.OURS6)))
    nb.arp_in(cache, data, 1, ours)
    six = frames.ethernet(b"\x60" + data.ljust(40, b"\0"), 0x86DD)
    four = frames.ethernet(b"\x45" + data.ljust(40, b"\0"))
    for frame in (data, six, four, six + data, four + data):
        ip_ = packet.ip_packet(packet.ethernet(frame).data)
        if ip_ is not None:
            packet.icmp_message(ip_)
            nb.nd_in(cache, b"\2" * 6, ip_, 1, ours)
            nb.nd_in(cache, b"\2" * 6, ip_._replace(hops=255, body=bytes(8) + data), 1, ours)
        icmp.port_unreachable(frame, 1)
    for body in (data, bytes(8) + data):
        if len(body) >= 8:
            icmp.error4(body)
            icmp.error6(body)


def test_addresses_of_the_other_family_in_control_packets_are_refused():
    """IPv4-mapped addresses on the wire, and headers shorter than headers are."""
    mapped, ours6 = bytes(10) + b"\xff\xff" + bytes((10, 0, 2, 15)), bytes(15) + b"\1"
    for source, target in ((mapped, ours6), (ours6, mapped), (mapped, mapped)):
        assert packet.ip_packet(b"\x60" + bytes(3) + b"\0\x08\x3a\xff" + source + target + bytes(8)) is None
    assert packet.ip_packet(b"\x40" + bytes(40)) is None
    assert packet.ip_packet(b"\x4f" + bytes(30)) is None
    assert icmp.error4(bytes((3, 3)) + bytes(6) + b"\x40" + bytes(19)) is None
    solicited = packet.IpPacket(
        True, ip("fe80::2"), ip("ff02::1"), 58, 255, bytes((135, 0)) + bytes(6) + mapped, True, b""
    )
    cache = nb.NeighbourCache()
    assert nb.nd_in(cache, b"\2" * 6, solicited, 1, frozenset((ip("10.0.2.15"),))) == nb.Seen(False)


def test_a_packet_to_a_mapped_address_is_dropped_before_the_stack():
    net = Network(alone=True)
    before = net.ours.dev.batch.counters()["rx_bad_ip_header"]
    for proto in (6, 17, 58):
        net.wire.inject(frames.ethernet(frames.ipv6(bytes(40), proto=proto, dst="::ffff:10.0.2.15"), 0x86DD))
    net.run(3)
    assert net.ours.dev.batch.counters()["rx_bad_ip_header"] == before + 3
    net.close()


if __name__ == "__main__":
    end = time.monotonic() + 60 * float(sys.argv[1] if len(sys.argv) > 1 else 10)
    seed = steps = 0
    while time.monotonic() < end:
        one = Fuzzer(seed)
        for _ in range(5000):
            one.step()
        one.close()
        seed, steps = seed + 1, steps + 5000
    print(f"{steps} frames, {seed} stacks, nothing left the stack")
