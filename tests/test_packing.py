"""Payload of a flow end to end: a NIC that fills its buffers, the driver's references, frags that grow."""

from __future__ import annotations

import itertools
import os

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_provider, offer, payload, take, transfer
from netmem.base.ethtool import SteeringRule, TcpDataSplit
from netmem.hw.softnic.regs import OPEN_BUFFERS
from netmem.lab.leaks import leaks
from netmem.netdev.batch import Shared
from netmem.netdev.napi import PacketType
from netmem.netdev.ring import RxRingRecord
from netmem.testing import frames
from netmem.testing.frames import OURS
from netmem.testing.net import PORT, Network


def packing(net: Network, memory: str, *, page: int = 65536, size: int = 8 << 20):
    """``net`` receives into large pages, with a NIC that merges and packs; the provider."""
    net.ours.dev.ethtool.set_features(rx_gro_hw=True)
    provider = make_provider(memory, size=size, rx_page_size=page)
    net.bind(provider)
    return provider


def open_buffers(net: Network, queue: int = 1):
    """The netmems that a queue's ring holds for more of a flow."""
    ring = net.ours.dev.rx_queues[queue].mem.arena.record(RxRingRecord)
    return [left.netmem for left in ring.open if left.netmem]


def frags_of(sock):
    """What has come as (offset, size) and all tokens; nothing is given back."""
    message = sock.recvmsg_devmem(max_frags=4096)
    assert not message.linear
    places = [(int(f["frag_offset"]), int(f["frag_size"])) for f in message.frags]
    return places, message.frags["frag_token"]


@pytest.mark.parametrize("page", [4096, 65536])
@pytest.mark.parametrize("memory", ["pages", "dmabuf"])
@pytest.mark.parametrize("sizes", [[1, 700, 1448, 20_000, 65_000, 3], [65_000]])
def test_a_stream_fills_every_page(network, memory, page, sizes):
    """Nothing is read until the end: pages are full, whatever the segments' sizes; large ones lie end to end."""
    net = network()
    provider = packing(net, memory, page=page, size=1024 * page)
    ours, theirs, _ = net.connect()
    data = payload(600_000)
    left = memoryview(data)
    cuts = itertools.cycle(sizes)
    while len(left) or ours.queued() < len(data):
        part = left[: next(cuts)]
        left = left[len(part) - len(offer(theirs, part)) :]
        net.run(1)
    places, tokens = frags_of(ours)
    view = provider.map()
    assert b"".join(view[at : at + n].tobytes() for at, n in places) == data
    pages = {at // page for at, _ in places}
    assert len(pages) <= -(-len(data) // page) + 2
    assert sum(n == page for _, n in places) >= len(pages) - 3
    if len(sizes) == 1:
        gaps = sum(a + n != b for (a, n), (b, _) in itertools.pairwise(places))
        assert gaps <= 3 + len(places) // 20
    assert ours.devmem_dontneed(tokens) == len(places)


def test_buffers_are_as_large_as_pages_and_cut_where_the_user_says_so(network):
    net = network()
    provider = packing(net, "dmabuf")
    ring = net.ours.dev.rx_queues[1].mem.arena.record(RxRingRecord)
    assert ring.buf_len == 65536
    net.ours.dev.ethtool.set_ringparam(rx_buf_len=8192)
    ring = net.ours.dev.rx_queues[1].mem.arena.record(RxRingRecord)
    assert ring.buf_len == 8192
    ours, theirs, _ = net.connect()
    data = payload(300_000)
    assert transfer(net, theirs, ours, data, provider) == data


def test_without_merging_buffers_are_a_packets(network):
    """64 KiB for each packet of 1448 bytes would waste all memory."""
    net = network()
    net.bind(make_provider("dmabuf", rx_page_size=65536))
    ring = net.ours.dev.rx_queues[1].mem.arena.record(RxRingRecord)
    assert ring.buf_len == 4096
    assert net.ours.dev.rx_queues[1].pool.record.buffers_per_netmem == 16


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 70_000)), min_size=1, max_size=12),
    st.sampled_from([4096, 16384, 65536]),
    st.integers(0, 3),
)
def test_flows_that_take_turns_get_their_own_bytes(turns, page, hold):
    """Up to six flows into one queue; the application holds some frags for long."""
    with Network() as net:
        provider = packing(net, "dmabuf", page=page, size=64 * 65536)
        pairs = [net.connect()[:2] for _ in range(6)]
        sent = [bytearray() for _ in pairs]
        got = [bytearray() for _ in pairs]
        held = []
        view = provider.map()
        for number, (who, size) in enumerate(turns):
            data = payload(size, seed=number)
            sent[who] += data
            left = memoryview(data)
            while len(left) or len(got[who]) < len(sent[who]):
                left = offer(pairs[who][1], left)
                net.run(1)
                sock = pairs[who][0]
                if not sock.queued():
                    continue
                message = sock.recvmsg_devmem(max_frags=8)
                for frag in message.frags:
                    at, n = int(frag["frag_offset"]), int(frag["frag_size"])
                    held.append((sock, int(frag["frag_token"]), at, bytes(view[at : at + n])))
                    got[who] += held[-1][3]
                while len(held) > hold:
                    sock, token, at, before = held.pop(0)
                    assert bytes(view[at : at + len(before)]) == before  # nobody wrote to what we hold
                    assert sock.devmem_dontneed([token]) == 1
            assert len(open_buffers(net)) <= OPEN_BUFFERS
        for sock, token, at, before in held:
            assert bytes(view[at : at + len(before)]) == before
            assert sock.devmem_dontneed([token]) == 1
        assert got == sent


@pytest.mark.parametrize("size", [16 * 4096, 64 * 4096])
def test_small_memory_is_left_for_all_flows(network, size):
    """With few buffers none is kept for a flow that may never send again."""
    net = network()
    provider = packing(net, "dmabuf", page=4096, size=size)
    ours, theirs, _ = net.connect()
    data = payload(50_000)
    assert transfer(net, theirs, ours, data, provider) == data
    if size == 16 * 4096:
        assert open_buffers(net) == []


def test_a_buffer_left_open_is_in_the_ledger_and_comes_back(network):
    """All tokens are back: what the ring still holds is said to be the ring's, and is no leak at unbinding."""
    net = network()
    provider = packing(net, "dmabuf")
    ours, theirs, _ = net.connect()
    theirs.send(payload(10_000))
    net.until(lambda: ours.queued() == 10_000)
    _, tokens = frags_of(ours)
    held = [row for row in leaks(os.getpid()) if row["holder"] == "user token"]
    assert sum(row["count"] for row in held) == 1
    ours.devmem_dontneed(tokens)
    assert len(open_buffers(net)) == 1
    rows = [row for row in leaks(os.getpid()) if row["device"] == net.ours.dev.name]
    assert {row["holder"] for row in rows} == {"ring slot"}
    net.binding.close()
    net.run(3)
    assert provider.area.free == provider.area.count


def test_a_queue_that_restarts_while_a_buffer_is_open_loses_nothing(network):
    net = network()
    provider = packing(net, "dmabuf")
    ours, theirs, _ = net.connect()
    first, second = payload(30_000), payload(30_000, seed=2)
    theirs.send(first)
    net.until(lambda: ours.queued() == len(first))
    assert open_buffers(net)
    net.ours.dev.ethtool.set_ringparam(rx_pending=512)
    assert not open_buffers(net)
    theirs.send(second)
    net.until(lambda: ours.queued() == len(first) + len(second))
    got = bytearray()
    while ours.queued():
        got += take(ours, provider)
    assert got == first + second


def test_dropped_packets_give_their_part_of_a_buffer_back(network):
    """Data beyond what the connection takes (a closed window) is dropped, wherever in a buffer it lay."""
    net = network()
    provider = packing(net, "dmabuf")
    ours, theirs, _ = net.connect()
    theirs.send(payload(20_000))
    net.until(lambda: ours.queued() == 20_000)
    pool = net.ours.dev.rx_queues[1].pool
    before = pool.outstanding()
    ours.abort()  # what comes from now on nobody wants
    for _ in range(5):
        if theirs.state() == 4:
            theirs.send(payload(2_000))
        net.run(3)
    assert pool.outstanding() <= before
    net.binding.close()
    net.run(3)
    assert provider.area.free == provider.area.count


def test_turned_off_nothing_is_packed_any_more(network):
    net = network()
    provider = packing(net, "dmabuf")
    ours, theirs, _ = net.connect()
    data = payload(100_000)
    left = memoryview(data)
    net.ours.dev.ethtool.set_features(rx_gro_hw=False)
    got = bytearray()
    while len(got) < len(data):
        part = left[:5000]
        left = left[len(part) - len(offer(theirs, part)) :]
        net.run(1)
        if ours.queued():
            message = ours.recvmsg_devmem()
            assert all(int(f["frag_offset"]) % 4096 == 0 for f in message.frags)
            view = provider.map()
            for frag in message.frags:
                at = int(frag["frag_offset"])
                got += view[at : at + int(frag["frag_size"])].tobytes()
            ours.devmem_dontneed(message.frags["frag_token"])
    assert got == data
    assert net.ours.dev.ethtool.describe()["tcp_data_split"] == TcpDataSplit.ENABLED.name.lower()


def test_frags_that_grew_take_one_entry_and_one_token(network):
    """A peer that sends a byte at a time into unreadable memory costs a buffer and a token, not one for each."""
    net = network()
    provider = packing(net, "dmabuf", page=4096)
    ours, theirs, _ = net.connect()
    data = payload(300)
    theirs.set_nodelay(True)
    for i in range(len(data)):
        theirs.send(data[i : i + 1])
        net.run(2)
    net.until(lambda: ours.queued() == len(data))
    places, tokens = frags_of(ours)
    assert len(places) == 1
    at, n = places[0]
    assert provider.map()[at : at + n].tobytes() == data
    assert net.ours.stack.conns.counters()["coalesced"] >= 290
    ours.devmem_dontneed(tokens)


# -- who counts for how many buffers --------------------------------------------------------------


def raw(network, count):
    """Our end of a connection whose peer is the test, into ``count`` pages of 4 KiB: (network, socket, ack)."""
    net = network(alone=True)
    packing(net, "dmabuf", page=4096, size=count * 4096)
    listener = net.ours.stack.listen(PORT)
    net.wire.inject(frames.arp())
    net.wire.inject(frames.tcp(flags=2, seq=1000, options=bytes.fromhex("020405a801030307")))
    net.run(3)
    answer = dpkt.ethernet.Ethernet([f for f in net.wire.sent if f[12:14] == b"\x08\x00"][-1])
    ack = answer.data.data.seq + 1
    net.wire.inject(frames.tcp(seq=1001, ack=ack))
    net.run(2)
    return net, listener.accept(timeout=0), ack


def test_bytes_behind_what_nobody_kept_are_not_free_of_charge(network):
    """A peer that lets old data fill the pages, and has one new byte in each, gets few, as without packing."""
    net, sock, ack = raw(network, 512)
    seq = 1001
    old = bytes(1448)
    net.wire.inject(frames.tcp(old, seq=seq, ack=ack))
    net.run(2)
    seq += len(old)
    for _ in range(300):
        for _ in range(3):
            net.wire.inject(frames.tcp(old, seq=1001, ack=ack))
        net.wire.inject(frames.tcp(b"n", seq=seq, ack=ack))
        net.run(1)
        net.wire.sent.clear()
        seq = (1001 + sock.statistics()["bytes_in"]) & 0xFFFFFFFF
    assert net.ours.dev.queues.available(1) > 512 - 64
    assert net.ours.stack.conns.counters()["over_share"] > 100
    assert sock.queued() < 2000


def test_a_batch_of_packed_pieces_is_no_memory(network, monkeypatch):
    """What is in the batch counts as still to be had, each buffer once: not each packet in it."""
    net = network()
    packing(net, "dmabuf", size=64 * 65536)
    ours, theirs, _ = net.connect()
    theirs.set_nodelay(True)
    for _ in range(12):
        theirs.send(bytes(20_000))
        net.run(5)
        take(ours, net.provider)
    stack = net.ours.stack
    seen = []

    def receive(batch, queue, free):
        stack._receive(batch, queue, free)
        behind = sum(row.shared == Shared.BEHIND for row in batch.used())
        seen.append((behind, stack.conns.record.accounts[queue].available))

    monkeypatch.setattr(stack, "_packets", PacketType(receive, stack._rest, 0, stack.conns.at))
    for _ in range(60):
        theirs.send(bytes(50))
    net.run(3)
    assert max(behind for behind, _ in seen) > 30
    assert all(available <= 64 for _, available in seen)
    while ours.queued():
        take(ours, net.provider)


def test_a_queue_without_headers_goes_on_when_some_come_back(network):
    """Every descriptor used up, no header memory: the next poll that has some fills the ring."""
    net = network(alone=True, rx_queues=1)
    dev = net.ours.dev
    dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED, rx_pending=8, hds_thresh=300)
    sock = net.ours.stack.udp_socket(6000)
    ring = dev.rx_queues[0].mem
    net.run(2)
    kept = ring.hpool.alloc_netmems(5000)

    def send(count):
        for _ in range(count):
            net.wire.inject(frames.udp(bytes(100), dport=6000))
            net.run(1)

    send(60)
    assert ring.record.next_to_use == ring.record.next_to_clean
    ring.hpool.put_full_netmem(kept)
    sock.recv_batch(256)
    before = net.ours.stack.conns.counters()["udp_in"]
    send(40)
    assert net.ours.stack.conns.counters()["udp_in"] >= before + 40
    sock.close()


def test_datagrams_and_tokens_count_for_the_buffers_that_they_are_in(network):
    net = network()
    packing(net, "dmabuf")
    dev = net.ours.dev
    dev.ethtool.add_rule(SteeringRule(queue=1, dst_port=6000, proto=17))
    sock = net.ours.stack.udp_socket(6000)
    other = net.theirs.stack.udp_socket(7000)
    ours, theirs, _ = net.connect()  # both know each other's MAC address
    for i in range(600):
        other.sendto(bytes(1400), (OURS, 6000))
        if i % 20 == 19:
            net.run(1)
    net.run(3)
    assert net.ours.stack.conns.counters()["udp_in"] == 600  # 128 buffers
    sock.close()
    theirs.set_nodelay(True)
    tokens = []
    for _ in range(100):
        theirs.send(bytes(100))
        net.until(ours.queued)
        tokens += ours.recvmsg_devmem().frags["frag_token"].tolist()
    assert len(tokens) == 100
    assert ours._tcb.user <= 2
    ours.devmem_dontneed(tokens[::2])
    ours.devmem_dontneed(tokens[1::2])
    assert ours._tcb.user == 0


def test_buffers_follow_the_feature(network):
    net = network()
    net.bind(make_provider("dmabuf", rx_page_size=65536))
    sizes = []
    for on in (True, False):
        net.ours.dev.ethtool.set_features(rx_gro_hw=on)
        sizes.append(net.ours.dev.rx_queues[1].mem.arena.record(RxRingRecord).buf_len)
    assert sizes == [65536, 4096]
