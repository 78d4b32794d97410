"""Sending from device memory: bytes, completions, refusals in the kernel's terms, leaks."""

from __future__ import annotations

import errno
import itertools
import os

import numpy as np
import pytest

from conftest import make_provider, need_nic, payload, scaled, take
from netmem.base.clock import SEC
from netmem.base.errors import NetmemError
from netmem.inet.tcp import calls
from netmem.inet.tcp.connections import TcpConfig
from netmem.inet.tcp.tcb import TcpState
from netmem.lab.leaks import leaks
from netmem.lab.qemu import bar_memory
from netmem.netdev.driver import NetmemTx
from netmem.testing.wire import FaultyLink


def filled(provider, data, at=0):
    """Write ``data`` into a provider's memory, as an application would."""
    with provider.cpu_access(write=True):
        provider.map(writable=True)[at : at + len(data)] = np.frombuffer(data, np.uint8)


def send_all(net, ours, theirs, frags, binding, size):
    """Send frags as far as there is room, again and again; what the peer got."""
    left, got = [list(f) for f in frags], bytearray()
    for _ in range(100_000):
        if left and ours.writable():
            taken = ours.sendmsg_devmem(np.array(left[:64]), binding)
            while taken:
                part = min(taken, left[0][1])
                left[0][0] += part
                left[0][1] -= part
                taken -= part
                if not left[0][1]:
                    left.pop(0)
        net.run(1)
        got += take(theirs, None)
        if len(got) >= size:
            return bytes(got)
    raise AssertionError(f"{len(got)} of {size} bytes arrived")


@pytest.mark.parametrize(
    ("nic", "memory"), [("softnic", "pages"), ("softnic", "dmabuf"), ("igb", "dmabuf"), ("igb", "bar")]
)
@pytest.mark.parametrize("piece", [100, 1448, 4096, 100_000])
def test_bytes_from_each_memory_arrive(network, nic, memory, piece):
    net = network(nic=need_nic(nic))
    data = payload(scaled(300_000))
    provider = bar_memory(net.ours.bus, 8 << 20) if memory == "bar" else make_provider(memory)
    filled(provider, data, 12_288)
    binding = net.ours.dev.bind_tx(provider)
    ours, theirs, _ = net.connect()
    frags = [(12_288 + at, min(piece, len(data) - at)) for at in range(0, len(data), piece)]
    assert send_all(net, ours, theirs, frags, binding, len(data)) == data
    net.run(100)
    done = ours.zerocopy_completions()
    assert done[0][0] == 0
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(done))
    assert binding.in_flight == 0
    assert not binding.area.netmems()["pp_ref_count"].any()
    binding.close()
    provider.close()


def test_loss_is_mended_from_device_memory(network):
    net = network(link=FaultyLink(seed=9, loss=0.05, reorder=0.05, duplicate=0.02))
    data = payload(scaled(400_000))
    provider = make_provider("dmabuf")
    filled(provider, data)
    ours, theirs, _ = net.connect()
    binding = net.ours.dev.bind_tx(provider)
    frags = [(at, min(3000, len(data) - at)) for at in range(0, len(data), 3000)]
    assert send_all(net, ours, theirs, frags, binding, len(data)) == data
    net.run(1000)
    assert binding.in_flight == 0
    binding.close()
    provider.close()


def test_readable_and_device_memory_in_one_stream(network):
    net = network()
    provider = make_provider("dmabuf")
    filled(provider, b"device " * 1000)
    binding = net.ours.dev.bind_tx(provider)
    ours, theirs, _ = net.connect()
    want, got = b"", b""
    for n in range(40):
        ours.send(b"ordinary %d " % n)
        ours.sendmsg_devmem([(0, 7 * (n + 1))], binding)
        want += b"ordinary %d " % n + b"device " * (n + 1)
        net.run(2)
    for _ in range(3000):
        net.run(1)
        got += take(theirs, None)
    assert got == want
    binding.close()
    provider.close()


def test_completion_comes_when_the_peer_has_it_and_not_before(network):
    net = network()
    provider = make_provider("dmabuf")
    filled(provider, payload(10_000))
    binding = net.ours.dev.bind_tx(provider)
    ours, theirs, _ = net.connect()
    assert ours.sendmsg_devmem([(0, 10_000)], binding) == 10_000
    assert ours.zerocopy_completions() == []
    rows = [row for row in leaks(os.getpid()) if row["holder"] == "transmit in flight"]
    assert [(row["memory"], row["count"]) for row in rows] == [("dmabuf", 3)]
    binding.close()  # no new sends; the mapping stays for those in flight
    with pytest.raises(NetmemError) as error:
        ours.sendmsg_devmem([(0, 1)], binding)
    assert error.value.errno == errno.EINVAL
    net.until(lambda: theirs.queued() == 10_000)
    assert theirs.recv(20_000) == payload(10_000)
    net.run(100)
    assert ours.wait_zerocopy(0) == [(0, 0)]
    assert not [row for row in leaks(os.getpid()) if row["holder"] == "transmit in flight"]
    assert net.ours.dev.tx_bindings == []
    provider.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_within_a_send_leaves_it_to_complete(network, monkeypatch, when):
    """Its handler raises where the span is queued, and nothing of Python's has noted that."""
    net = network()
    provider = make_provider("dmabuf")
    data = payload(10_000)
    filled(provider, data)
    binding = net.ours.dev.bind_tx(provider)
    ours, theirs, _ = net.connect()
    add_span = calls.add_span

    def interrupted(*args):
        if when == "after":
            add_span(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calls, "add_span", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ours.sendmsg_devmem([(0, 4000)], binding)
    sent = data[:4000] if when == "after" else b""
    assert ours.sendmsg_devmem([(4000, 6000)], binding) == 6000
    net.until(lambda: theirs.queued() == len(sent) + 6000)
    assert theirs.recv(20_000) == sent + data[4000:]
    net.run(100)
    assert ours.zerocopy_completions() == ([(0, 1)] if when == "after" else [(1, 1)])
    binding.close()
    provider.close()


def test_a_connection_that_breaks_completes_its_sends(network):
    net = network(link=FaultyLink())
    provider = make_provider("dmabuf")
    binding = net.ours.dev.bind_tx(provider)
    ours, theirs, _ = net.connect()
    net.link.cut()
    for _ in range(5):
        ours.sendmsg_devmem([(0, 5000)], binding)
    assert binding.in_flight == 5
    ours.abort()
    net.run(5)
    assert binding.in_flight == 0
    binding.close()
    provider.close()


def test_a_reset_completes_what_will_never_be_acknowledged(network):
    net = network()
    provider = make_provider("dmabuf")
    binding = net.ours.dev.bind_tx(provider)
    ours, theirs, _ = net.connect()
    net.peer.stack.conns.tcbs[theirs._c].rcv_buf = 0
    for _ in range(3):
        ours.sendmsg_devmem([(0, 60_000)], binding)
    theirs.abort()
    net.run(5)
    assert ours.state() == TcpState.CLOSED  # and the socket is still open
    net.run(5)
    assert ours.wait_zerocopy(0) == [(0, 2)]
    assert binding.in_flight == 0
    binding.close()
    provider.close()


def test_a_stack_that_closes_leaves_the_memory_to_the_nic_until_it_stops(network):
    net = network()
    provider = make_provider("dmabuf")
    binding = net.ours.dev.bind_tx(provider)
    ours, _, _ = net.connect()
    ours.sendmsg_devmem([(0, 60_000)], binding)
    binding.close()
    net.ours.stack.close()  # the wire has not taken the rows yet
    assert binding.in_flight == 1
    net.ours.bus.step(net.clock.now())
    assert net.ours.driver.get_ethtool_stats()["dma_fault"] == 0
    net.ours.dev.close()
    assert binding.in_flight == 0
    provider.close()


def test_a_send_buffer_is_not_used_again_while_rows_name_it(network):
    net = network()
    tx = net.ours.dev.tx
    ours, _, _ = net.connect()
    ours.send(b"x" * 1000)
    assert tx.record.completed < tx.record.filled  # a row waits
    at = net.ours.stack.conns.tcbs[ours._c].sb_offset
    size = net.ours.stack.conns.tcbs[ours._c].sb_size
    ours.abort()
    assert tx.alloc_buffer(size) != at
    net.run(5)
    net.ours.dev.xmit()
    assert tx.alloc_buffer(size) == at


def test_refusals_are_the_kernels(network):
    net = network()
    provider = make_provider("dmabuf", size=1 << 20)
    receiving = make_provider("dmabuf", size=8 << 20)
    net.bind(receiving)
    ours, theirs, _ = net.connect()
    binding = net.ours.dev.bind_tx(provider)
    other = net.peer.dev.bind_tx(provider)
    for frags, to, code in (
        ([(0, 1)], 0, errno.EINVAL),
        ([(0, 1)], 12345, errno.EINVAL),
        ([(0, 1)], net.binding.id, errno.EINVAL),  # a binding for receiving
        ([(0, 1)], other, errno.ENODEV),
        ([(1 << 20, 1)], binding, errno.EFAULT),
        ([((1 << 20) - 1, 2)], binding, errno.EFAULT),
        ([(-1, 2)], binding, errno.EFAULT),
        ([1, 2, 3], binding, errno.EINVAL),
    ):
        with pytest.raises(NetmemError) as error:
            ours.sendmsg_devmem(frags, to)
        assert error.value.errno == code, (frags, to)
    assert ours.sendmsg_devmem([(0, 0)], binding.id) == 0
    ours.shutdown()
    with pytest.raises(NetmemError) as error:
        ours.sendmsg_devmem([(0, 1)], binding)
    assert error.value.errno == errno.EPIPE
    net.ours.driver.__class__.netmem_tx, before = NetmemTx.NONE, net.ours.driver.__class__.netmem_tx
    try:
        with pytest.raises(NetmemError) as error:
            net.ours.dev.bind_tx(provider)
    finally:
        net.ours.driver.__class__.netmem_tx = before
    assert error.value.errno == errno.EOPNOTSUPP
    assert "netmem TX" in str(error.value)
    other.close()
    binding.close()
    provider.close()


def test_received_frags_are_sent_on_without_a_copy(network):
    """A proxy: the memory is bound for receiving and for transmit."""
    net = network()
    provider = make_provider("dmabuf")
    net.bind(provider)
    ours, theirs, _ = net.connect()
    binding = net.ours.dev.bind_tx(provider)
    data = payload(scaled(100_000))
    left, got, held = memoryview(data), bytearray(), []
    for _ in range(20_000):
        if len(left) and theirs.writable():
            left = left[theirs.send(left) :]
        net.run(1)
        if ours.queued():
            message = ours.recvmsg_devmem()
            frags = message.frags
            if message.linear:
                ours.send(message.linear)
            if len(frags):
                assert ours.sendmsg_devmem(frags, binding) == message.size - len(message.linear)
                held.append(frags["frag_token"].copy())
        for first, last in ours.zerocopy_completions():
            for _ in range(first, last + 1):
                ours.devmem_dontneed(held.pop(0))
        got += take(theirs, None)
        if len(got) == len(data) and not held:
            break
    assert bytes(got) == data
    binding.close()


def test_sending_while_the_link_is_silent_times_out_and_gives_back(network):
    net = network(link=FaultyLink())
    provider = make_provider("dmabuf")
    binding = net.ours.dev.bind_tx(provider)
    ours, theirs, _ = net.connect()
    ours.set_user_timeout(2.0)
    net.link.cut()
    ours.sendmsg_devmem([(0, 9000)], binding)
    net.run(100, SEC // 10)
    with pytest.raises(NetmemError) as error:
        ours.recv(1)
    assert error.value.errno == errno.ETIMEDOUT
    ours.close()
    net.run(5)
    assert binding.in_flight == 0
    binding.close()
    provider.close()


def test_send_buffers_shrink_before_they_run_out(network):
    net = network()
    tx = net.ours.dev.tx
    sizes = []
    for _ in range(2000):
        size = tx.fair_size(4 << 20)
        sizes.append((tx.alloc_buffer(size), size))
    assert all(offset is not None for offset, _ in sizes)
    assert sizes[0][1] == 4 << 20
    assert sizes[-1][1] == 64 << 10
    ranges = sorted(sizes)
    assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(ranges))
    for offset, size in sizes:
        tx.free_buffer(offset, size, tx.record.filled)
    net.run(2)
    net.ours.dev.xmit()
    assert tx.fair_size(4 << 20) == 4 << 20
    assert tx.alloc_buffer(1 << 30) is not None  # side by side again


def test_idle_connections_give_their_send_buffers_up(network):
    """Hundreds that sent something once leave a new one all that it wants, and send on unharmed."""
    config = TcpConfig(connections=600, sndbuf=4 << 20)
    net = network(config=config, peer_config=config)
    tcbs = net.peer.stack.conns.tcbs
    pairs = [net.connect()[:2] for _ in range(300)]
    for n, (_, theirs) in enumerate(pairs):
        theirs.send(payload(100, seed=n))
    held = pairs[7][1].send_window()  # to be filled by somebody who takes his time
    net.run(400)
    for n, (ours, _) in enumerate(pairs):
        assert ours.recv(1000) == payload(100, seed=n)
    ours, theirs, _ = net.connect()
    theirs.send(b"x")
    assert tcbs[theirs._c].sb_size == 4 << 20
    assert [n for n, (_, one) in enumerate(pairs) if tcbs[one._c].sb_size] == [7]
    assert all(one.writable() for _, one in pairs)
    held[:5] = b"there"
    pairs[7][1].commit(5)
    for n, (_, one) in enumerate(pairs):
        one.send(payload(100, seed=1000 + n))
    net.run(1000)  # Nagle's algorithm and delayed acknowledgements included
    assert ours.recv(10) == b"x"
    for n, (one, _) in enumerate(pairs):
        assert one.recv(1000) == (b"there" if n == 7 else b"") + payload(100, seed=1000 + n)
    assert min(tcbs[one._c].sb_size for _, one in pairs) >= 1 << 20
