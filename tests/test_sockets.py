"""Devmem sockets: recvmsg, dontneed and what ordinary receive refuses (kernel rules 2H)."""

from __future__ import annotations

import errno
import functools

import numpy as np
import pytest

from conftest import make_provider, offer, payload
from netmem.base.clock import MS, SEC
from netmem.base.errors import ETOOSMALL, NetmemError
from netmem.base.frags import FRAG
from netmem.hw.softnic import regs as r
from netmem.memory import sanitizer
from netmem.memory.page_pool import PagePool
from netmem.testing import frames
from test_gro import established


@pytest.fixture
def network(network, nic):
    """Networks in which our host has each NIC in turn."""
    return functools.partial(network, nic=nic)


@pytest.fixture
def connected(network):
    """(network, provider, our socket, the peer's) with 10,000 bytes waiting, for a kind of memory."""

    def make(memory="dmabuf", size=10_000, **options):
        net = network(**options)
        provider = make_provider(memory)
        net.bind(provider)
        ours, theirs, _ = net.connect()
        if size:
            theirs.send(payload(size))
            net.until(lambda: ours.queued() == size)
        return net, provider, ours, theirs

    return make


def test_the_record_is_the_kernels():
    assert FRAG.itemsize == 24
    assert [FRAG.fields[name][1] for name in FRAG.names] == [0, 8, 12, 16, 20]


def test_frags_name_offset_size_token_and_binding(connected):
    net, provider, ours, _ = connected()
    message = ours.recvmsg_devmem()
    assert message.linear == b""
    assert message.size == 10_000
    assert message.frags["frag_size"].tolist() == [1448] * 6 + [1312]
    assert sorted(message.frags["frag_token"].tolist()) == [1, 2, 3, 4, 5, 6, 7]
    assert set(message.frags["dmabuf_id"].tolist()) == {net.binding.id}
    view = provider.map()
    got = b"".join(view[int(f["frag_offset"]) :][: int(f["frag_size"])].tobytes() for f in message.frags)
    assert got == payload(10_000)
    assert not view.flags.writeable
    assert ours.devmem_dontneed(message.frags["frag_token"]) == 7


def test_ordinary_receive_of_unreadable_data_is_efault_and_keeps_it(connected):
    _, _, ours, _ = connected()
    for call in (lambda: ours.recv(10), lambda: ours.recv_into(bytearray(10))):
        with pytest.raises(NetmemError) as error:
            call()
        assert error.value.errno == errno.EFAULT
    assert ours.queued() == 10_000


def test_bound_pages_give_tokens_and_can_be_read_too(connected):
    _, _, ours, _ = connected("pages")
    frags = ours.recvmsg_devmem(4000).frags
    assert frags["frag_size"].tolist() == [1448, 1448, 1104]
    assert ours.recv(10_000) == payload(10_000)[4000:]
    assert ours.devmem_dontneed(frags["frag_token"]) == 3


def test_unbound_data_is_copied_without_tokens(connected):
    _, _, ours, _ = connected("none")
    message = ours.recvmsg_devmem(3000)
    assert message.linear == payload(10_000)[:3000]
    assert len(message.frags) == 0
    buffer = bytearray(20_000)
    assert ours.recv_into(buffer) == 7000
    assert bytes(buffer[:7000]) == payload(10_000)[3000:]


def test_a_frag_that_the_limit_cuts_gets_a_new_token_for_its_rest(connected):
    _, provider, ours, _ = connected(size=1000)
    first, second = (ours.recvmsg_devmem(n).frags for n in (300, 10_000))
    assert first["frag_size"].tolist() == [300]
    assert second["frag_size"].tolist() == [700]
    assert second["frag_offset"][0] == first["frag_offset"][0] + 300
    assert first["frag_token"][0] != second["frag_token"][0]
    pool = ours.pool()
    out = pool.outstanding()
    assert ours.devmem_dontneed(first["frag_token"]) == 1
    assert pool.outstanding() == out  # the other half still holds the netmem
    assert ours.devmem_dontneed(second["frag_token"]) == 1
    assert pool.outstanding() == out - 1


def test_linear_and_split_bytes_keep_their_order_on_an_unbound_queue(network, nic):
    """Small frames whole in the header buffer (the 82576 does so, ours with a threshold), large ones split."""
    net = network(rx_queues=1)
    dev = net.ours.dev
    dev.ethtool.set_ringparam(tcp_data_split=2)
    if nic == "softnic":
        dev.ethtool.set_ringparam(hds_thresh=200)
    ours, theirs, _ = net.connect()
    theirs.send(b"small")
    net.until(lambda: ours.queued() == 5)
    theirs.send(payload(1448))
    net.until(lambda: ours.queued() == 1453)
    stats = dev.driver.get_queue_stats(0)
    assert stats["hds_hit"] >= 1
    assert stats["hds_miss"] >= 1
    assert ours.recv(2000) == b"small" + payload(1448)


def test_linear_then_frags_on_a_bound_queue(network, nic):
    net = network(alone=True)
    provider = make_provider("dmabuf")
    net.bind(provider)
    sock, iss = established(net)
    net.wire.inject(frames.tcp(payload(300), seq=100, ack=iss))
    net.run(2)
    # What the NIC does not split stands behind the headers in the header buffer: short frames with the
    # 82576; with ours only as if it had a threshold.
    if nic == "softnic":
        net.ours.nic.bar.rxq[1].hds = r.HDS_ON | 5000 << 8
    net.wire.inject(frames.tcp(b"linear bytes", seq=400, ack=iss))
    net.wire.inject(frames.tcp(b"more", seq=412, ack=iss))
    net.run(2)
    if nic == "softnic":
        net.ours.nic.bar.rxq[1].hds = r.HDS_ON
    net.wire.inject(frames.tcp(payload(250), seq=416, ack=iss))
    net.run(2)
    first = sock.recvmsg_devmem()
    assert (first.linear, first.frags["frag_size"].tolist()) == (b"", [300])
    second = sock.recvmsg_devmem()
    assert second.linear == b"linear bytesmore"
    assert second.frags["frag_size"].tolist() == [250]
    sock.devmem_dontneed(np.concatenate([first.frags, second.frags])["frag_token"])


def test_no_room_for_a_control_message_is_etoosmall(connected):
    _, _, ours, _ = connected()
    with pytest.raises(NetmemError) as error:
        ours.recvmsg_devmem(max_frags=0)
    assert error.value.errno == ETOOSMALL
    assert ours.queued() == 10_000


def test_dontneed_skips_what_it_does_not_know(connected):
    _, _, ours, _ = connected()
    tokens = ours.recvmsg_devmem().frags["frag_token"].tolist()
    with sanitizer.collecting() as trapped:
        assert ours.devmem_dontneed([0, 99_999, -3, 1 << 40, tokens[0], tokens[0]]) == 1
        assert ours.devmem_dontneed(tokens[0]) == 0
        assert ours.devmem_dontneed(tokens) == 6
    assert [one.trap for one in trapped] == ["token returned twice"] * 3
    assert ours.devmem_dontneed([]) == 0


def test_dontneed_takes_ranges_of_any_number_and_length(connected):
    _, _, ours, _ = connected()
    tokens = sorted(ours.recvmsg_devmem().frags["frag_token"].tolist())
    assert ours.devmem_dontneed([[tokens[0], 3]]) == 3
    for wrong in (np.ones((2, 3), int), [0.5], ["1"]):
        with pytest.raises(NetmemError) as error:
            ours.devmem_dontneed(wrong)
        assert error.value.errno == errno.EINVAL
    ranges = [[100_000, 1 << 60], [-5, 3], *[[7_000, 1]] * 200, [tokens[3], 2], [tokens[5], 2]]
    assert ours.devmem_dontneed(ranges) == len(tokens[3:])


def test_more_than_1024_tokens_in_one_call_are_all_freed(connected):
    net, _, ours, theirs = connected(size=0, config=None)
    data = memoryview(payload(1_500 * 1448))
    tokens = []
    while len(tokens) < 1100:
        data = offer(theirs, data)
        net.run(1)
        if ours.queued():
            tokens += ours.recvmsg_devmem(max_frags=50).frags["frag_token"].tolist()
    assert len(set(tokens)) == len(tokens)
    assert ours.devmem_dontneed(tokens) == len(tokens)
    ours.close()


def test_close_gives_every_token_back(connected):
    net, provider, ours, _ = connected()
    ours.recvmsg_devmem(5000)
    pool: PagePool = ours.pool()
    posted = pool.record.posted
    assert pool.outstanding() == posted + 7
    ours.close()
    net.run(3)
    assert pool.outstanding() == pool.record.posted == posted
    for call in (ours.recvmsg_devmem, lambda: ours.devmem_dontneed([1]), lambda: ours.send(b"x")):
        with pytest.raises(NetmemError) as error:
            call()
        assert error.value.errno == errno.EBADF
    ours.close()


def test_end_of_stream_is_an_empty_message(connected):
    net, _, ours, theirs = connected(size=0)
    theirs.shutdown()
    net.run(5)
    for _ in range(2):
        message = ours.recvmsg_devmem()
        assert message.size == 0
    assert ours.recv(5) == b""


def test_port_in_use_and_bad_ports(network):
    stack = network(alone=True).ours.stack
    listener = stack.listen(7)
    with pytest.raises(NetmemError) as error:
        stack.listen(7)
    assert error.value.errno == errno.EADDRINUSE
    listener.close()
    stack.listen(7).close()
    for port in (0, 65536):
        with pytest.raises(NetmemError):
            stack.listen(port)
    with pytest.raises(NetmemError):
        listener.accept(timeout=0)


def test_an_idle_stack_is_looked_at_after_the_longest_back_stop(network):
    net = network(alone=True)
    net.run(3)
    net.ours.stack.conns.record.timer = net.clock.now() + 3600 * SEC
    assert net.ours.stack.poller.next_timer() == 50 * MS
