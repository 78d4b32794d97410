"""Memory that the software NIC reaches by its copy engine only: staging, batches, and who is told when."""

from __future__ import annotations

import ctypes
import errno
import socket
import threading

import numpy as np
import pytest

from conftest import over_a_tap, payload, scaled, take, transfer
from netmem.base.errors import NetmemError
from netmem.contract.conformance import CHECKS
from netmem.drivers.softnic import SoftnicDriver
from netmem.hw.softnic.engine import HostEngine
from netmem.hw.softnic.state import COPIES
from netmem.lab.device import open_device
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.testing.wire import FaultyLink
from tap_transfer import StagedProvider


def bound(network, size=8 << 20, rx_page_size=4096, reached=0, **options):
    """A network with staged memory bound to queue 1, and a port that leads there.

    ``reached``: bytes of the peer's transmit memory that the engine reads where they are.
    """
    net = network(**options)
    if reached:
        net.ours.bus.nic.sent_from(*net.theirs.sends_from(reached))
    net.ours.dev.ethtool.set_ringparam(tcp_data_split=2)
    net.provider = StagedProvider(size, exporter="memfd", rx_page_size=rx_page_size)
    net.binding = net.ours.dev.bind_rx([1], net.provider)
    net.steer(5001, 1)
    return net


def engine_of(net) -> HostEngine:
    engine = net.ours.bus.nic._engine
    assert isinstance(engine, HostEngine)
    return engine


def test_a_transfer_is_bit_for_bit(network):
    net = bound(network)
    ours, theirs, _ = net.connect(5001)
    data = payload(scaled(5_000_000))
    assert transfer(net, theirs, ours, data, net.provider) == data
    engine = engine_of(net)
    assert engine.rounds
    assert engine.copies >= engine.rounds


@pytest.mark.parametrize("reached", [64 << 20, 180_000])  # headers take the first 128 KiB
@pytest.mark.parametrize("delay", [0, 9])
@pytest.mark.parametrize("rx_page_size", [4096, 65536])
def test_payload_is_copied_once(network, monkeypatch, reached, delay, rx_page_size):
    """The engine reads what the cable's far end sends from; a part of it that it does not reach is staged."""
    net = bound(network, rx_page_size=rx_page_size, reached=reached)
    ours, theirs, _ = net.connect(5001)
    engine, start, sources = engine_of(net), HostEngine.start, []
    engine.delay = delay
    lo, _ = net.theirs.sends_from(reached)
    assert lo

    def noted(self, queue):
        sources.extend((queue.source[i], queue.size[i]) for i in range(queue.copies))
        start(self, queue)

    monkeypatch.setattr(HostEngine, "start", noted)
    data = payload(scaled(5_000_000), 8)
    assert transfer(net, theirs, ours, data, net.provider) == data
    direct = sum(size for at, size in sources if lo <= at < lo + reached)
    total = sum(size for _, size in sources)
    assert total == len(data)
    assert direct == total if reached > 1 << 20 else 0 < direct < total


def test_memory_is_not_used_again_while_the_engine_reads_it(network):
    """The far end gives up in the middle: its buffer is another connection's once nobody reads it."""
    net = bound(network, reached=64 << 20)
    engine, cut = engine_of(net), 0
    data, other = payload(200_000, 31), payload(200_000, 32)
    for _ in range(8):
        ours, theirs, _ = net.connect(5001)
        second, again, _ = net.connect(5001)
        sent, got, engine.delay = theirs.send(data), bytearray(), 40
        net.run(3)
        theirs.abort()
        again.send(other)  # takes its send buffer now
        for _ in range(600):
            net.run(1)
            while ours.queued():
                got += take(ours, net.provider)
        assert data[:sent].startswith(got)
        cut += bool(got)
        assert take(second, net.provider)[:1000] == other[:1000]
        ours.abort()
        again.abort()
        second.abort()
        net.run(100)
    assert cut


def test_loss_on_the_wire(network):
    net = bound(network, link=FaultyLink(7, loss=0.02, reorder=0.02, delay=1_000_000))
    ours, theirs, _ = net.connect(5001)
    data = payload(scaled(2_000_000), 3)
    assert transfer(net, theirs, ours, data, net.provider) == data


def test_tokens_held_long_keep_their_bytes(network):
    net = bound(network)
    ours, theirs, _ = net.connect(5001)
    theirs.send(payload(40_000))
    net.until(lambda: ours.queued() == 40_000, 2000)
    kept = ours.recvmsg_devmem()
    data = payload(scaled(1_000_000), 5)
    assert transfer(net, theirs, ours, data, net.provider) == data
    out = np.empty(int(kept.frags["frag_size"].sum()), np.uint8)
    net.provider.gather(kept.frags.view(np.int64).reshape(-1, 3), out.ctypes.data)
    assert out.tobytes() == payload(40_000)[: len(out)]
    ours.devmem_dontneed(kept.frags["frag_token"])


def test_sends_are_fetched_first(network):
    net = bound(network)
    ours, theirs, _ = net.connect(5001)
    data = payload(200_000, 9)
    memory = StagedProvider(1 << 20, exporter="memfd")
    memory.write(4096, data)
    binding = net.ours.dev.bind_tx(memory)
    engine_of(net).delay = 2
    sent, got = 0, bytearray()
    for _ in range(4000):
        if sent < len(data) and ours.writable():
            sent += ours.sendmsg_devmem([(4096 + sent, len(data) - sent)], binding)
        net.run(1)
        if theirs.queued():
            got += theirs.recv(1 << 20)
        if len(got) == len(data):
            break
    assert bytes(got) == data
    net.run(200)
    binding.close()
    memory.close()


def test_nobody_is_told_before_the_bytes_are_there(network):
    net = bound(network)
    ours, theirs, _ = net.connect(5001)
    engine, seen = engine_of(net), []
    done = engine.is_done
    engine.delay = 3

    def watched():
        queue = engine._queue
        assert not any(word_at(queue.tell_at[i]) & 1 for i in range(queue.told))
        seen.append(queue.told)
        return done()

    engine.is_done = watched
    theirs.send(payload(30_000))
    net.until(lambda: ours.queued() == 30_000, 2000)
    assert any(seen)
    assert take(ours, net.provider) == payload(30_000)


@pytest.mark.parametrize("delay", [0, 1, 7])
def test_the_nic_goes_on_while_the_engine_works(network, delay):
    net = bound(network)
    ours, theirs, _ = net.connect(5001)
    engine_of(net).delay = delay
    nic, data = net.ours.bus.nic, payload(scaled(2_000_000), 21)
    step = nic.step

    def watched(now):
        moved = step(now)
        queue = nic.nic.queues[nic.nic.filling]
        assert nic.nic.flying or not (queue.copies or queue.told or queue.frames)  # nobody would move it on
        assert moved or not nic.nic.flying
        return moved

    nic.step = watched
    assert transfer(net, theirs, ours, data, net.provider) == data


def word_at(address):
    return ctypes.c_int64.from_address(address).value


def test_more_than_a_round_can_queue(network):
    """Far apart buffers cannot be joined: with small pages a round fills, and goes on in the next."""
    net = bound(network, size=32 << 20, mtu=9000)
    net.ours.dev.ethtool.set_ringparam(rx_pending=4096)
    ours, theirs, _ = net.connect(5001)
    most = 0
    engine = engine_of(net)
    engine.delay = 50
    start = engine.start

    def count(queue):
        nonlocal most
        most = max(most, queue.copies, queue.told)
        start(queue)

    engine.start = count
    data = payload(scaled(8_000_000), 4)
    assert transfer(net, theirs, ours, data, net.provider) == data
    assert 0 < most <= COPIES


def test_one_engine_for_a_nic(network):
    net = bound(network)
    memory = StagedProvider(1 << 20, exporter="memfd")
    memory.exporter = "cuda:0123"
    with pytest.raises(NetmemError, match="the copy engine serves staged") as caught:
        net.ours.dev.bind_tx(memory)
    assert caught.value.errno == errno.EBUSY
    memory.close()


def test_memory_that_no_engine_reaches(network):
    net = network()
    memory = StagedProvider(1 << 20, exporter="memfd")
    memory.exporter = "moon"
    with pytest.raises(NetmemError, match="moon") as caught:
        net.ours.dev.bind_tx(memory)
    assert caught.value.errno == errno.EOPNOTSUPP
    memory.close()


@pytest.mark.process
@pytest.mark.parametrize("exporter", ["staged", "staged:40"])
def test_a_nic_in_its_own_process(exporter):
    with open_device() as device:
        device.ethtool.set_ringparam(tcp_data_split=2)
        memory = StagedProvider(8 << 20, exporter="memfd", rx_page_size=65536)
        memory.exporter = exporter
        device.bind_rx([1], memory)
        device.steer(5001, 1)
        listener = device.listen(5001)
        port = device.forward("127.0.0.1", 0, 5001)
        data, got = payload(scaled(200_000_000), 6), bytearray()
        sender = threading.Thread(target=send_to, args=(port, data))
        sender.start()
        sock = listener.accept(timeout=30)
        while True:
            message = sock.recvmsg_devmem(timeout=30)
            if not message.size:
                break
            got += message.linear
            for frag in message.frags:
                got += memory.read(int(frag["frag_offset"]), int(frag["frag_size"]))
            sock.devmem_dontneed(message.frags["frag_token"])
        sender.join(30)
        assert bytes(got) == data
        sock.close()
    memory.close()


@pytest.mark.process
def test_from_the_kernel_over_a_tap():
    over_a_tap("staged", scaled(30_000_000))


def send_to(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(data)


BOUND = [check for check in CHECKS if "dmabuf" in check.memory and not check.name.startswith("tx2")]


@pytest.mark.parametrize("check", BOUND, ids=lambda check: check.name)
def test_the_kit_sees_no_difference(monkeypatch, check):
    monkeypatch.setattr(DmabufProvider, "exporter", "staged")
    check.run(SoftnicDriver, "dmabuf")
