"""TCP between two stacks: transfer, close, loss, windows, tokens held long, tiny segments."""

from __future__ import annotations

import errno

import pytest

from conftest import make_provider, payload, scaled, take, transfer
from netmem.base.clock import MS, SEC
from netmem.base.errors import NetmemError
from netmem.inet.tcp import calls
from netmem.inet.tcp.connections import TcpConfig
from netmem.inet.tcp.tcb import Flag, TcpState
from netmem.netdev.tx import TX_ROWS
from netmem.testing import frames
from netmem.testing.net import PORT
from netmem.testing.wire import FaultyLink


@pytest.mark.parametrize("mtu", [1500, 9000])
@pytest.mark.parametrize("rx_page_size", [4096, 65536])
def test_transfer_into_each_memory(network, memory, mtu, rx_page_size):
    net = network(mtu=mtu)
    provider = make_provider(memory, rx_page_size=rx_page_size)
    net.bind(provider)
    ours, theirs, _ = net.connect()
    data = payload(scaled(3_000_000))
    assert transfer(net, theirs, ours, data, provider) == data
    stats = net.ours.driver.get_queue_stats(1)
    assert stats["hds_hit"] >= len(data) // mtu
    assert stats["rx_no_desc"] == 0
    fast = net.ours.stack.conns.counters()["in_fast"]
    assert fast > 0


def test_both_directions_and_half_close(network):
    net = network()
    ours, theirs, _ = net.connect()
    data = payload(scaled(500_000))
    assert transfer(net, theirs, ours, data, None) == data
    assert theirs.state() == TcpState.FIN_WAIT_2
    assert ours.recv(10) == b""  # end of stream, and still open for sending
    assert transfer(net, ours, theirs, data[::-1], None) == data[::-1]
    net.run(20)
    assert theirs.state() == TcpState.TIME_WAIT
    assert ours.state() == TcpState.CLOSED
    ours.close()
    theirs.close()


def test_time_wait_ends_and_the_row_is_used_again(network):
    net = network()
    for _ in range(3):
        ours, theirs, _ = net.connect()
        theirs.close()
        net.run(10)
        ours.close()
        net.run(10)
        assert net.peer.stack.statistics()["connections"][0]["state"] == "TIME-WAIT"
        net.run(2, 61 * SEC)
        assert net.peer.stack.statistics()["connections"] == []
        assert net.ours.stack.statistics()["connections"] == []


@pytest.mark.parametrize("loss", [0.01, 0.1])
def test_loss_reordering_and_duplication_lose_no_byte(network, loss):
    link = FaultyLink(seed=7, loss=loss, duplicate=0.02, reorder=0.05, damage=0.01)
    net = network(link=link)
    provider = make_provider("dmabuf")
    net.bind(provider)
    ours, theirs, _ = net.connect()
    data = payload(scaled(600_000))
    assert transfer(net, theirs, ours, data, provider) == data
    counters = net.peer.stack.conns.counters()
    if len(data) > 100_000:
        assert link.counts["lost"] > 0
        assert counters["retrans"] > 0
        assert net.ours.stack.conns.counters()["ooo_queued"] > 0
        assert counters["fast_retrans"] > 0


def test_loss_towards_us_and_from_us(network):
    net = network(link=FaultyLink(seed=3, loss=0.05, reorder=0.05))
    ours, theirs, _ = net.connect()
    data = payload(scaled(400_000))
    assert transfer(net, ours, theirs, data, None) == data


@pytest.mark.parametrize("connections", [1, 2])
def test_tokens_held_long_close_the_window_and_nothing_is_dropped(network, connections):
    net = network()
    provider = make_provider("dmabuf", size=6 << 20)  # 1536 netmems, of which the ring takes 1024
    net.bind(provider)
    pairs = [net.connect()[:2] for _ in range(connections)]
    data = payload(4 << 20)
    left = [memoryview(data)] * connections
    held = [[] for _ in pairs]
    got = [bytearray() for _ in pairs]
    view = provider.map()

    def push(rounds):
        for _ in range(rounds):
            for i, (ours, theirs) in enumerate(pairs):
                if len(left[i]) and theirs.writable():
                    left[i] = left[i][theirs.send(left[i]) :]
                if ours.readable():
                    frags = ours.recvmsg_devmem().frags
                    for frag in frags:
                        start = int(frag["frag_offset"])
                        got[i] += view[start : start + int(frag["frag_size"])].tobytes()
                    held[i].extend(frags["frag_token"].tolist())
            net.run(1)

    push(3000)
    stuck = [len(tokens) for tokens in held]
    push(300)
    assert stuck == [len(tokens) for tokens in held]  # the window is closed
    assert all(
        len(remaining) or theirs.statistics()["bytes_out"] > len(part)
        for remaining, (_, theirs), part in zip(left, pairs, got, strict=True)
    )
    stats = net.ours.driver.get_queue_stats(1)
    assert stats["rx_no_desc"] == 0
    assert net.ours.stack.conns.counters()["pool_low"] == 0
    for _ in range(4000):  # give back, and it goes on to the end
        for tokens, (ours, _) in zip(held, pairs, strict=True):
            while tokens:
                batch, tokens[:] = tokens[:1024], tokens[1024:]
                assert ours.devmem_dontneed(batch) == len(batch)
        push(1)
        if all(len(part) == len(data) for part in got):
            break
    assert all(bytes(part) == data for part in got)
    assert net.ours.driver.get_queue_stats(1)["rx_no_desc"] == 0
    assert net.ours.stack.conns.counters()["pool_low"] == 0
    assert net.peer.stack.conns.counters()["retrans"] == 0
    for tokens, (ours, _) in zip(held, pairs, strict=True):
        ours.devmem_dontneed(tokens)


def test_tiny_segments_may_be_dropped_are_counted_and_recover(network):
    net = network()
    provider = make_provider("dmabuf", size=1 << 20)  # 256 netmems
    net.bind(provider)
    ours, theirs, _ = net.connect()
    net.peer.stack.conns.tcbs[theirs._c].flags |= Flag.NODELAY
    data = payload(2000)
    held, got, sent = [], bytearray(), 0
    view = provider.map()

    def receive():
        while ours.queued():
            message = ours.recvmsg_devmem()
            for frag in message.frags:
                start = int(frag["frag_offset"])
                got.extend(view[start : start + int(frag["frag_size"])].tobytes())
            held.extend(message.frags["frag_token"].tolist())

    for _ in range(600):  # one byte a segment, every token kept
        if sent < len(data):
            sent += theirs.send(data[sent : sent + 1])
        net.run(1)
        receive()
    assert net.ours.stack.conns.counters()["over_share"] > 0
    while len(got) < len(data):
        if held:
            ours.devmem_dontneed(held[:1024])
            del held[:1024]
        if sent < len(data):
            sent += theirs.send(data[sent : sent + 200])
        net.run(1, 5 * MS)
        receive()
    assert bytes(got) == data
    ours.devmem_dontneed(held)


def test_a_stack_that_is_out_of_entries_counts_it_and_loses_no_byte(network):
    net = network(config=TcpConfig(entries=24))
    net.bind(make_provider("dmabuf"))
    ours, theirs, _ = net.connect()
    record = net.ours.stack.conns.record
    net.peer.stack.conns.tcbs[theirs._c].flags |= Flag.NODELAY
    data = payload(6000)
    for at in range(0, len(data), 100):  # more segments than there are entries, and none is read
        theirs.send(data[at : at + 100])
        net.run(1)
    assert net.ours.stack.conns.counters()["entries_empty"] > 0
    assert (record.entries_used, record.free_entries) == (24, 0)
    got = bytearray()
    for _ in range(2000):
        got += take(ours, net.provider)
        net.run(1, 5 * MS)
        if len(got) == len(data):
            break
    assert bytes(got) == data
    assert (record.entries_used, record.free_entries) == (24, 24)


def test_zero_window_is_probed_until_it_opens(network):
    net = network(config=TcpConfig(rcvbuf=8192))
    ours, theirs, _ = net.connect()
    data = payload(50_000)
    left = memoryview(data)
    left = left[theirs.send(left) :]
    net.run(50, 50 * MS)  # the last 952 bytes of the window go when the persist timer says so
    assert theirs.statistics()["peer_window"] == 0
    net.run(40, SEC)
    assert net.peer.stack.conns.counters()["probes"] >= 2
    got = bytearray()
    for _ in range(2000):
        got += take(ours, None)
        if len(left) and theirs.writable():
            left = left[theirs.send(left) :]
        net.run(1, MS)
    assert bytes(got) == data


def test_reset_is_reported_and_what_arrived_stays_readable(network):
    net = network()
    ours, theirs, _ = net.connect()
    theirs.send(b"last words")
    net.run(5)
    theirs.abort()
    net.run(5)
    assert ours.recv(100) == b"last words"
    with pytest.raises(NetmemError) as error:
        ours.recv(100)
    assert error.value.errno == errno.ECONNRESET
    with pytest.raises(NetmemError) as error:
        ours.send(b"x")
    assert error.value.errno == errno.EPIPE
    ours.close()


def test_stalls_that_end_do_not_add_up(network):
    """A peer that falls silent for a while, again and again, is not given up on."""
    net = network()
    ours, theirs, _ = net.connect()
    data = payload(30_000)
    got = bytearray()
    for i in range(20):
        theirs.send(data[i * 1500 : (i + 1) * 1500])
        now = net.clock.advance(70 * SEC)  # only the sender's clock moves on: it times out
        net.peer.step(now)
        net.run(20)
        got += take(ours, None)
    assert net.peer.stack.conns.counters()["rto"] >= 15
    assert bytes(got) == data
    assert theirs.state() == TcpState.ESTABLISHED


def test_a_fin_that_was_acknowledged_after_a_timeout_is_acknowledged(network):
    net = network()
    ours, theirs, _ = net.connect()
    theirs.send(payload(6000))
    theirs.shutdown()
    for _ in range(2):
        net.peer.step(net.clock.advance(SEC))  # the receiver sleeps; the sender times out
    net.run(100)
    assert ours.recv(10_000) == payload(6000)
    assert theirs.state() == TcpState.FIN_WAIT_2
    ours.close()
    net.run(100)
    assert theirs.state() == TcpState.TIME_WAIT
    assert net.peer.stack.conns.counters()["timeouts"] == 0


def test_transmit_rows_that_ran_out_come_back(network):
    net = network()
    ours, theirs, _ = net.connect()
    stack = net.ours.stack
    for _ in range(600):  # more than there are rows, while the NIC does nothing
        stack.ip.send_frame(frames.arp(2))
        stack.dev.driver.xmit()
    assert stack.conns.counters()["tx_full"] > 0
    net.run(10)
    ours.send(b"still alive")
    net.run(10)
    assert theirs.recv(100) == b"still alive"


def test_sending_while_the_device_is_down_and_after_it_came_back(network):
    net = network()
    ours, theirs, _ = net.connect()
    net.ours.dev.stop()
    ours.send(b"sent while down, ")
    net.run(5)
    net.ours.dev.open()
    ours.send(b"sent after")
    net.until(lambda: theirs.queued() == 27, 100, 50 * MS)
    assert theirs.recv(100) == b"sent while down, sent after"
    assert net.ours.driver.get_ethtool_stats()["dma_fault"] == 0


def test_a_sender_that_stops_while_its_frame_holds_the_wire(network):
    net = network()
    net.ours.dev.ethtool.set_ringparam(rx_pending=8)
    _, theirs, _ = net.connect()
    theirs.send(payload(60_000))
    for _ in range(3):
        net.peer.step(net.clock.advance(1000))
        net.ours.bus.step(net.clock.now())  # the NIC works, the driver does not
    assert net.ours.nic.is_paused()
    net.peer.dev.stop()
    for _ in range(5):
        net.ours.bus.step(net.clock.advance(SEC))
    assert net.ours.driver.get_ethtool_stats()["rx_runt"] == 1
    net.peer.dev.open()


def test_out_of_order_data_of_all_connections_holds_at_most_a_quarter(network):
    net = network(alone=True, rx_queues=1)
    provider = make_provider("dmabuf", size=1 << 20)  # 256 netmems
    net.bind(provider, queue=0)
    net.ours.stack.listen(PORT)
    net.wire.inject(frames.arp())
    for port in range(1000, 1005):
        net.wire.inject(frames.tcp(sport=port, flags=2, seq=99, options=bytes.fromhex("020405b4")))
        net.run(2)
        row = net.ours.stack.statistics()["connections"][-1]
        assert row["state"] == "SYN-RECEIVED"
        c = next(c for c in range(8) if net.ours.stack.conns.tcbs[c].ports >> 16 == port)
        ack = net.ours.stack.conns.tcbs[c].snd_nxt
        net.wire.inject(frames.tcp(sport=port, seq=100, ack=ack))
        for i in range(40):
            net.wire.inject(frames.tcp(payload(1000), sport=port, seq=110 + 1100 * i, ack=ack))
        net.run(3)
    stack = net.ours.stack
    held = sum(tcb.oq_bufs for tcb in stack.conns.tcbs[:8])
    assert held == stack.conns.record.accounts[0].ooo <= 64
    assert all(c["out_of_order"] for c in stack.statistics()["connections"])  # nobody took it all
    assert stack.conns.counters()["ooo_pruned"] > 0


def test_connect_to_a_closed_port_is_refused(network):
    net = network()
    sock = net.peer.stack.connect_nowait(frames.OURS, 1)
    net.run(10)
    with pytest.raises(NetmemError) as error:
        sock.recv(1)
    assert error.value.errno == errno.ECONNREFUSED


def test_peer_that_vanishes_times_out(network):
    net = network()
    ours, _, _ = net.connect()
    net.theirs.bus.unplug()
    ours.send(b"anybody there?")
    net.run(200, 5 * SEC)
    with pytest.raises(NetmemError) as error:
        ours.recv(1)
    assert error.value.errno == errno.ETIMEDOUT
    assert net.ours.stack.conns.counters()["rto"] >= 5


def test_backlog_is_bounded_and_a_syn_flood_costs_no_netmem(network):
    net = network(alone=True)
    listener = net.ours.stack.listen(PORT, backlog=8)
    net.run(2)
    pools = [(pool, pool.outstanding()) for pool in net.ours.dev.pools.values()]
    for port in range(1024, 1024 + 500):
        net.wire.inject(frames.tcp(sport=port, flags=0x02, seq=port))
        net.run(1)
    counters = net.ours.stack.conns.counters()
    assert counters["passive"] == 8
    assert counters["cookies_out"] == 492
    assert net.ours.stack.conns.record.accounts[0].pledged == 0
    assert len(net.ours.stack.statistics()["connections"]) == 8
    assert [(pool, pool.outstanding()) for pool, _ in pools] == pools
    listener.close()
    assert net.ours.stack.statistics()["connections"] == []


def test_connection_table_full_refuses(network):
    net = network(peer_config=TcpConfig(connections=2))
    net.ours.stack.listen(PORT)
    for _ in range(2):
        net.peer.stack.connect_nowait(frames.OURS, PORT)
    with pytest.raises(NetmemError) as error:
        net.peer.stack.connect_nowait(frames.OURS, PORT)
    assert error.value.errno == errno.ENOBUFS
    assert net.peer.stack.conns.counters()["table_full"] == 1


def test_delayed_acknowledgement_and_nagle(network):
    net = network()
    ours, theirs, _ = net.connect()
    net.run(5)
    before = net.ours.stack.conns.counters()["out_acks"]
    theirs.send(b"a")
    net.run(10)
    theirs.send(b"b")  # Nagle holds it: "a" is not acknowledged yet
    net.run(10)
    assert ours.queued() == 1
    assert net.ours.stack.conns.counters()["out_acks"] == before
    net.run(2, 40 * MS)
    net.run(5)
    assert net.ours.stack.conns.counters()["delayed_acks"] >= 1
    assert ours.queued() == 2


def test_ping_is_answered(network):
    net = network(alone=True)
    net.wire.inject(frames.arp())
    net.run(2)
    assert net.wire.sent.popleft()[12:14] == b"\x08\x06"
    for size in (0, 56, 1400):
        net.wire.inject(frames.icmp_echo(payload(size)))
        net.run(2)
        reply = net.wire.sent.popleft()
        assert reply[34] == 0
        assert reply[42 : 42 + size] == payload(size)
    assert net.ours.stack.conns.counters()["icmp_echo"] == 3


def test_a_connection_reset_before_it_was_accepted_is_accepted_and_says_so(network):
    """As Linux does: what came before the reset can be read."""
    net = network()
    listener = net.ours.stack.listen(7)
    for accept in (True, False):
        theirs = net.peer.stack.connect_nowait("10.0.2.15", 7)
        net.until(listener.pending)
        net.until(lambda sock=theirs: sock.state() == TcpState.ESTABLISHED)
        theirs.send(b"before")
        net.run(5)
        theirs.abort()
        net.run(5)
        assert listener.pending() == 1
        if accept:
            sock = listener.accept(timeout=0)
            assert sock.recv(10) == b"before"
            with pytest.raises(NetmemError) as error:
                sock.recv(10)
            assert error.value.errno == errno.ECONNRESET
            sock.close()
    listener.close()  # gives back what the second one left


@pytest.fixture
def crowd(network):
    """Seven hundred connections, more than there are transmit rows, made at once: network, ours, theirs."""
    config = TcpConfig(connections=1000)
    net = network(config=config, peer_config=config)
    listener = net.ours.stack.listen(PORT, backlog=1000)
    theirs = [net.peer.stack.connect_nowait(frames.OURS, PORT) for _ in range(700)]
    start = net.clock.now()
    net.until(lambda: listener.pending() == 700, 1000)
    assert net.peer.stack.conns.counters()["tx_full"] > 0
    assert net.clock.now() - start < 100 * MS  # no SYN waited for its retransmission
    return net, [listener.accept(timeout=0) for _ in theirs], theirs


def test_who_finds_no_transmit_row_sends_later(crowd):
    net, ours, theirs = crowd
    data = payload(20_000)
    for sock in theirs:
        sock.send(data)
        sock.shutdown()
    for sock in ours:
        sock.send(data)
    got = {sock: bytearray() for sock in ours + theirs}
    for _ in range(100_000):
        for sock, have in got.items():
            if sock.queued():
                have += sock.recv(1 << 20)
        net.run(1)
        if all(len(have) == len(data) for have in got.values()):
            break
    assert all(have == data for have in got.values())
    assert net.peer.stack.conns.counters()["tx_full"] > 700


def test_an_abort_that_finds_no_transmit_row_is_sent_later(crowd):
    net, ours, theirs = crowd
    for sock in theirs:
        sock.abort()
    net.run(50)
    assert all(sock.state() == TcpState.CLOSED for sock in ours)
    assert net.peer.stack.conns.counters()["out_rst"] == 700
    assert len(net.peer.stack.conns.free) == 1000


def test_an_acknowledgement_does_not_end_the_wait_for_a_transmit_row(network):
    net = network()
    ours, theirs, _ = net.connect()
    net.run(10)
    tx, conns = net.peer.dev.tx.record, net.peer.stack.conns
    tx.completed -= TX_ROWS  # all in use
    theirs.send(b"held back")
    tx.completed += TX_ROWS
    calls.acknowledge(conns.at, theirs._c)
    net.run(30)
    assert ours.queued() == 9
