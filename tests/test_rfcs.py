"""TCP by the letter: every transition of RFC 9293 is driven once, and what later RFCs ask for."""

from __future__ import annotations

import errno
import struct

import dpkt
import pytest

from conftest import payload, take
from netmem.base.clock import MS, SEC
from netmem.base.errors import NetmemError
from netmem.base.headers import ACK, FIN, RST, SYN
from netmem.inet.tcp.connections import TcpConfig
from netmem.inet.tcp.control import Control
from netmem.inet.tcp.tcb import MASK32, TRANSITIONS, TcpState, seq_lt
from netmem.testing import frames
from netmem.testing.net import PORT
from netmem.testing.wire import FaultyLink

PEER = 40000
SACK_OK = bytes.fromhex("0101 0402 020405b4")
WITH_TS = bytes.fromhex("0402080a 00000064 00000000 020405b4 0000")


class ByHand:
    """A connection whose peer is the test: segments by hand."""

    def __init__(self, network, *, options=SACK_OK, accept=True, **more):
        self.net = network(alone=True, rx_queues=1, config=TcpConfig(**more))
        self.stack = self.net.ours.stack
        self.listener = self.stack.listen(PORT)
        self.net.wire.inject(frames.arp())
        self.net.run(2)
        self.seq = 1000
        self.send(SYN, options=options, ack=0)
        self.seq += 1
        self.isn = self.last().seq
        if accept:
            self.send(ACK)
            self.sock = self.listener.accept(timeout=0)

    @property
    def c(self):
        return self.sock._c

    def send(self, flags=ACK, data=b"", *, seq=None, ack=None, options=b"", window=65535, rounds=2):
        """A segment from the peer; by default in sequence, acknowledging all there is."""
        if ack is None:
            ack = self.stack.conns.tcbs[0].snd_nxt
        self.net.wire.inject(
            frames.tcp(
                data,
                sport=PEER,
                dport=PORT,
                seq=self.seq if seq is None else seq,
                ack=ack,
                flags=flags,
                options=options,
                window=window,
            )
        )
        self.net.run(rounds)

    def sent(self):
        """Segments that we sent since last asked."""
        found = []
        while self.net.wire.sent:
            ip = dpkt.ethernet.Ethernet(self.net.wire.sent.popleft()).data
            if isinstance(ip, dpkt.ip.IP) and isinstance(ip.data, dpkt.tcp.TCP):
                found.append(ip.data)
        return found

    def last(self):
        return self.sent()[-1]

    def counters(self):
        return self.stack.conns.counters()

    def state(self):
        return self.stack.conns.tcbs[0].state


def sack_blocks(segment):
    """The SACK option of a segment, as an independent parser finds it."""
    for kind, data in dpkt.tcp.parse_opts(segment.opts):
        if kind == dpkt.tcp.TCP_OPT_SACK:
            numbers = struct.unpack(f"!{len(data) // 4}I", data)
            return list(zip(numbers[::2], numbers[1::2], strict=True))
    return []


# -- RFC 9293 ---------------------------------------------------------------------------------------


def drive_everything(network):
    """Connections that go through every state change there is."""
    net = network(
        link=FaultyLink(), config=TcpConfig(fin_wait_ns=SEC), peer_config=TcpConfig(fin_wait_ns=SEC)
    )
    pairs = [net.connect()[:2] for _ in range(12)]
    # Both ways of closing, and both at once.
    (a, b), (c, d), (e, f), (g, h), (i, j), (k, m), (n, o), (p, q), (r, s), (u, v), (w, x), (y, z) = pairs
    a.close()  # FIN-WAIT-1, FIN-WAIT-2
    net.run(10)
    b.close()  # LAST-ACK, and TIME-WAIT here
    c.close()
    d.close()  # CLOSING on both sides, then TIME-WAIT
    net.run(10)
    e.abort()  # ESTABLISHED to CLOSED
    f.abort()
    g.shutdown()
    g.abort()  # FIN-WAIT-1 to CLOSED
    i.shutdown()
    net.run(10)
    i.abort()  # FIN-WAIT-2 to CLOSED; CLOSE-WAIT to CLOSED there
    k.shutdown()
    net.run(10)
    m.shutdown()
    m.abort()  # LAST-ACK to CLOSED
    n.shutdown()
    o.shutdown()
    net.peer.step(net.clock.advance(MS // 10))
    net.run(1)
    for sock in (n, o, p, q, r, s, u, v, w, x, y, z, h, j):
        sock.close()
    net.run(30)
    net.run(3, 61 * SEC)  # TIME-WAIT ends
    refused = net.peer.stack.connect_nowait(frames.OURS, 9)  # SYN-SENT to CLOSED
    net.run(5)
    refused.close()
    return net


def test_every_transition_of_rfc_9293_is_legal_and_happens(network, monkeypatch):
    seen = set()
    enter = Control.enter

    def noting(self, c, state):
        before = self.conns.tcbs[c].state
        if before != state:
            seen.add((before, state))
        enter(self, c, state)

    monkeypatch.setattr(Control, "enter", noting)
    drive_everything(network)
    # Segments by hand for what two well-behaved stacks do not do to each other.
    one = ByHand(network, accept=False)
    one.send(RST, ack=0)  # SYN-RECEIVED to CLOSED
    two = ByHand(network)
    two.sock.shutdown()
    two.net.run(1)
    two.send(FIN | ACK)  # the FIN with the ACK of ours: FIN-WAIT-1, (FIN-WAIT-2,) TIME-WAIT
    two.sock.close()
    three = ByHand(network)
    before = three.stack.conns.tcbs[0].snd_nxt
    three.sock.shutdown()
    three.net.run(1)
    three.send(FIN | ACK, ack=before)  # CLOSING
    assert three.state() == TcpState.CLOSING
    three.sock.abort()  # CLOSING to CLOSED
    four = ByHand(network)
    before = four.stack.conns.tcbs[0].snd_nxt
    four.sock.shutdown()
    four.net.run(1)
    four.send(FIN | ACK, ack=before)
    four.seq += 1
    four.send(ACK)  # CLOSING to TIME-WAIT
    assert four.state() == TcpState.TIME_WAIT
    four.sock.close()
    four.send(SYN, seq=four.seq + 100_000, ack=0, options=SACK_OK)  # TIME-WAIT ended by a new SYN
    five = ByHand(network, accept=False)
    five.stack.tcp.shutdown(0)
    five.send(ACK)  # SYN-RECEIVED to FIN-WAIT-1: the FIN waited for it
    assert five.state() == TcpState.FIN_WAIT_1
    six = network(alone=True)
    six.wire.inject(frames.arp())
    six.run(1)
    sock = six.ours.stack.connect_nowait(frames.THEIRS, 7)
    six.run(1)
    six.wire.inject(frames.tcp(sport=7, dport=sock.port, seq=5, flags=SYN, options=SACK_OK))  # both at once
    six.run(1)
    six.wire.inject(
        frames.tcp(sport=7, dport=sock.port, seq=6, ack=six.ours.stack.conns.tcbs[0].snd_nxt, flags=ACK)
    )
    six.run(1)
    assert sock.state() == TcpState.ESTABLISHED
    sock.abort()
    assert seen <= set(TRANSITIONS), sorted(seen - set(TRANSITIONS))
    # FIN-WAIT-1 to TIME-WAIT goes by FIN-WAIT-2 here: the ACK of a segment counts before its FIN.
    by_another_way = {(TcpState.FIN_WAIT_1, TcpState.TIME_WAIT)}
    missing = set(TRANSITIONS) - seen - by_another_way
    names = {f"{a.title} to {b.title}" for a, b in missing}
    assert not names


# -- RFC 2018, 2883 -----------------------------------------------------------------------------------


def test_sack_blocks_say_what_arrived_newest_first(network):
    hand = ByHand(network)
    base = hand.seq
    hand.sent()
    for at in (100, 300, 500, 400):
        hand.send(data=payload(100), seq=base + at)
    acks = [sack_blocks(segment) for segment in hand.sent()]
    assert acks[0] == [(base + 100, base + 200)]
    assert acks[1] == [(base + 300, base + 400), (base + 100, base + 200)]
    assert acks[2] == [(base + 500, base + 600), (base + 300, base + 400), (base + 100, base + 200)]
    assert acks[3] == [(base + 300, base + 600), (base + 100, base + 200)]
    hand.send(data=payload(100), seq=base)
    assert sack_blocks(hand.last()) == [(base + 300, base + 600)]
    hand.send(data=payload(100), seq=base + 200)
    assert sack_blocks(hand.last()) == []
    assert hand.sock.queued() == 600


def test_a_duplicate_is_reported_once_as_the_first_block(network):
    hand = ByHand(network)
    base = hand.seq
    hand.send(data=payload(100), seq=base)
    hand.send(data=payload(100), seq=base + 200)
    hand.sent()
    hand.send(data=payload(100), seq=base)  # again, below RCV.NXT
    assert sack_blocks(hand.last()) == [(base, base + 100), (base + 200, base + 300)]
    hand.send(data=payload(100), seq=base + 200)  # again, out of order
    assert sack_blocks(hand.last()) == [(base + 200, base + 300), (base + 200, base + 300)]
    hand.send(data=payload(100), seq=base + 400)
    assert sack_blocks(hand.last())[0] == (base + 400, base + 500)


def test_no_sack_for_a_peer_that_did_not_offer_it(network):
    hand = ByHand(network, options=bytes.fromhex("020405b4"))
    hand.sent()
    hand.send(data=payload(10), seq=hand.seq + 100)
    assert sack_blocks(hand.last()) == []


def sacks(*blocks):
    """A SACK option."""
    return b"\1\1\5" + bytes((2 + 8 * len(blocks),)) + b"".join(struct.pack("!II", *b) for b in blocks)


def test_only_what_is_missing_is_sent_again(network):
    hand = ByHand(network)
    hand.sock.send(payload(14_000))
    hand.net.run(2)
    first = hand.isn + 1
    segments = [s for s in hand.sent() if len(s.data)]
    size = len(segments[0].data)
    lost = [(first + size, first + 2 * size)]
    hand.send(ack=first + size, options=sacks((lost[0][1], first + 6 * size)))
    hand.net.run(30, MS)
    again = [(s.seq, s.seq + len(s.data)) for s in hand.sent() if len(s.data) and s.seq < first + 6 * size]
    assert again == lost
    tcbs = hand.stack.conns.tcbs
    assert tcbs[hand.c].sacked == 4 * size
    hand.send(ack=first + 14_000)
    assert (tcbs[hand.c].sacked, tcbs[hand.c].lost, tcbs[hand.c].retrans) == (0, 0, 0)
    assert tcbs[hand.c].tq_head == 0


def test_without_sack_three_duplicates_mean_a_loss(network):
    hand = ByHand(network, options=bytes.fromhex("020405b4"))
    hand.sock.send(payload(14_000))
    hand.net.run(2)
    hand.sent()
    for _ in range(3):
        hand.send(ack=hand.isn + 1)
    again = [s for s in hand.sent() if len(s.data) and s.seq == hand.isn + 1]
    assert len(again) == 1
    assert hand.counters()["fast_retrans"] == 1


def test_sack_that_lies_does_no_harm(network):
    hand = ByHand(network)
    hand.sock.send(payload(5000))
    hand.net.run(2)
    first = hand.isn + 1
    for blocks in (
        [(first + 10_000, first + 20_000)], [(first + 2000, first + 1000)], [(first - 500, first + 100)],
        [(first + 1, first + 2), (first + 3, first + 4), (first + 5, first + 6)], [(0, 0)],
    ):  # fmt: skip
        hand.send(ack=first, options=sacks(*blocks))
    hand.net.run(20, 100 * MS)
    hand.send(ack=first + 5000)
    assert hand.sock.drained()
    assert hand.stack.conns.tcbs[hand.c].sacked == 0


def test_a_peer_cannot_make_us_keep_an_entry_for_every_byte(network):
    hand = ByHand(network)
    hand.sock.send(payload(14_000))
    hand.net.run(2)
    first, free = hand.isn + 1, hand.stack.conns.record.free_entries
    for at in range(0, 10_000, 40):
        hand.send(ack=first, options=sacks(*((first + at + n, first + at + n + 1) for n in (1, 11, 21))))
    assert free - hand.stack.conns.record.free_entries <= 14_000 // 536


# -- windows ----------------------------------------------------------------------------------------


def test_a_window_closes_for_a_peer_that_sends_a_byte_at_a_time(network):
    hand = ByHand(network, options=bytes.fromhex("0103030002040218"), rcvbuf=1 << 17)
    tcbs = hand.stack.conns.tcbs
    hand.send(data=payload(1400))
    hand.seq += 1400
    while seq_lt(hand.seq & MASK32, tcbs[0].rcv_adv) and tcbs[0].rcv_adv - hand.seq > 200:
        size = min(1400, tcbs[0].rcv_adv - hand.seq - 100)
        hand.send(data=payload(size))
        hand.seq += size
    for _ in range(400):
        hand.send(data=b"x")
        hand.seq += 1
    assert hand.sock.queued() <= 1 << 17
    assert hand.sent()[-1].win == 0


def test_a_user_timeout_counts_from_when_something_was_to_be_sent(network):
    hand = ByHand(network)
    hand.sock.set_user_timeout(30.0)
    hand.send(window=0)
    hand.net.run(60, SEC)
    hand.sock.send(b"after a long silence, into a closed window")
    hand.net.run(20, SEC // 10)
    assert hand.state() == TcpState.ESTABLISHED


# -- RFC 7323, 5961, 6528 ------------------------------------------------------------------------------


def stamped(value, echo=0):
    return b"\1\1\x08\x0a" + struct.pack("!II", value, echo)


def test_an_old_timestamp_is_refused_until_the_known_one_is_too_old(network):
    hand = ByHand(network, options=WITH_TS)
    hand.send(data=b"new", options=stamped(200))
    hand.seq += 3
    hand.send(data=b"old", options=stamped(150))
    assert hand.counters()["paws"] == 1
    assert hand.sock.queued() == 3
    hand.net.clock.advance(25 * 86400 * SEC)
    hand.send(data=b"old", options=stamped(150))
    assert hand.sock.queued() == 6


def test_resets_and_syns_that_might_be_forged_are_challenged(network):
    hand = ByHand(network)
    hand.sent()
    hand.send(RST, seq=hand.seq + 10)  # in the window, but not next
    assert hand.last().flags == ACK
    hand.net.run(1, SEC)
    hand.send(SYN, seq=hand.seq + 10)
    assert hand.last().flags == ACK
    hand.send(SYN, seq=hand.seq + 10)  # too soon: not again within half a second
    assert hand.sent() == []
    assert hand.counters()["challenge_ack"] == 2
    assert hand.state() == TcpState.ESTABLISHED
    hand.send(RST, seq=(hand.seq - 100_000) & MASK32)  # outside: nothing at all
    assert hand.state() == TcpState.ESTABLISHED
    hand.send(RST)
    assert hand.state() == TcpState.CLOSED


def test_acknowledgements_outside_what_was_sent_are_refused(network):
    hand = ByHand(network)
    hand.send(data=b"evil", ack=hand.isn + 100_000)
    hand.send(data=b"evil", ack=(hand.isn - 200_000) & MASK32)
    assert hand.counters()["bad_ack"] == 2
    assert hand.sock.queued() == 0
    hand.send(data=b"good")
    assert hand.sock.queued() == 4


def test_initial_sequence_numbers_differ_by_peer_and_grow_with_time(network):
    net = network(alone=True)
    conns = net.ours.stack.conns
    net.run(1)
    a, b = conns.initial_sequence(1, 2, 3), conns.initial_sequence(1, 2, 4)
    assert a != b
    net.run(1, SEC)
    assert (conns.initial_sequence(1, 2, 3) - a) & MASK32 == pytest.approx(250_000, rel=0.01)


# -- RFC 9293 3.8.4, 5482; 1191, 8201 ------------------------------------------------------------------


def test_keepalive_finds_a_peer_that_is_gone(network):
    net = network()
    ours, theirs, _ = net.connect()
    ours.set_keepalive(10.0, interval=2.0, count=3)
    net.run(20, SEC)
    assert net.ours.stack.conns.counters()["keepalives"] >= 1
    assert ours.state() == TcpState.ESTABLISHED  # it answers
    net.theirs.bus.unplug()
    net.run(30, SEC)
    assert ours.state() == TcpState.CLOSED
    with pytest.raises(NetmemError) as error:
        ours.recv(1)
    assert error.value.errno == errno.ETIMEDOUT


def test_user_timeout_bounds_how_long_data_waits(network):
    net = network()
    ours, _, _ = net.connect()
    ours.set_user_timeout(3.0)
    net.theirs.bus.unplug()
    ours.send(b"anybody?")
    start = net.clock.now()
    net.until(lambda: ours.state() == TcpState.CLOSED, 1000, 20 * MS)
    assert 2.9 * SEC < net.clock.now() - start < 4 * SEC


@pytest.mark.parametrize("seq", ["in flight", "forged"])
def test_too_big_for_the_path(network, seq):
    hand = ByHand(network)
    hand.sock.send(payload(5000))
    hand.net.run(2)
    segment = hand.sent()[-1]
    quoted = frames.ipv4(
        struct.pack("!HHI", PORT, PEER, segment.seq if seq == "in flight" else 1),
        src=frames.OURS,
        dst=frames.THEIRS,
    )
    body = struct.pack("!BBHHH", 3, 4, 0, 0, 900) + quoted
    hand.net.wire.inject(frames.ethernet(frames.ipv4(frames.icmp(body), proto=1)))
    hand.net.run(3)
    sizes = {len(s.data) for s in hand.sent()}
    if seq == "forged":
        assert not sizes
        return
    assert max(sizes) == 900 - 40
    assert hand.counters()["pmtu"] == 1
    hand.send(ack=hand.isn + 5001)
    assert hand.sock.drained()


def test_simultaneous_data_in_both_directions_survives_loss(network):
    net = network(link=FaultyLink(seed=5, loss=0.03, reorder=0.05, duplicate=0.02))
    ours, theirs, _ = net.connect()
    data, got = payload(20_000), {ours: b"", theirs: b""}
    left = {ours: memoryview(data), theirs: memoryview(data[::-1])}
    for _ in range(20_000):
        for sock in (ours, theirs):
            if len(left[sock]) and sock.writable():
                left[sock] = left[sock][sock.send(left[sock]) :]
            got[sock] += take(sock, None)
        net.run(1)
        if len(got[ours]) == len(got[theirs]) == len(data):
            break
    assert got == {ours: data[::-1], theirs: data}
