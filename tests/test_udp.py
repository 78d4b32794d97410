"""UDP sockets: datagrams into each memory, both families, batches, limits, sends from device memory."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from conftest import make_provider, payload, scaled
from netmem.base.address import ip_number, ip_text
from netmem.base.errors import ETOOSMALL, NetmemError
from netmem.testing import frames
from netmem.testing.net import PORT


def bound(network, memory, **options):
    """A network whose port PORT leads UDP into ``memory``, and a peer's socket that knows the way."""
    net = network(**options)
    provider = make_provider(memory)
    net.bind(provider)
    from netmem.lab.device import steer

    if options.get("nic") != "igb":
        steer(net.ours.dev, PORT, 1, 17)
    ours = net.ours.stack.udp_socket(PORT)
    theirs = net.peer.stack.udp_socket()
    return net, provider, ours, theirs


def meet(net, sock, host):
    """Have the neighbour's address found out."""
    for _ in range(50):
        try:
            sock.sendto(b"hello", (host, PORT))
            break
        except NetmemError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            net.run(3)
    net.run(3)


def contents(provider, message):
    view = provider.map() if provider is not None else None
    parts = [message.linear]
    for frag in message.frags:
        start = int(frag["frag_offset"])
        parts.append(view[start : start + int(frag["frag_size"])].tobytes())
    return b"".join(parts)


@pytest.mark.parametrize("host", [frames.OURS, frames.OURS6])
def test_datagrams_arrive_in_each_memory(network, memory, nic, host):
    net, provider, ours, theirs = bound(network, memory, nic=nic)
    meet(net, theirs, host)
    assert contents(provider, ours.recvmsg_devmem(timeout=0)) == b"hello"
    for size in (0, 1, 100, 1000, 1452):
        theirs.sendto(payload(size), (host, PORT))
        net.until(ours.pending)
        message = ours.recvmsg_devmem(timeout=0)
        assert message.peer == (frames.THEIRS if ":" not in host else frames.THEIRS6, theirs.port)
        assert message.size == size
        assert contents(provider, message) == payload(size)
        if memory == "dmabuf" and size >= 1000:
            assert len(message.frags) == 1
        if len(message.frags):
            assert ours.devmem_dontneed(message.frags["frag_token"]) == len(message.frags)
    ours.sendto(b"back", message.peer)
    net.until(theirs.pending)
    assert theirs.recvmsg_devmem(timeout=0).linear == b"back"


def test_a_batch_makes_no_object_for_a_datagram(network):
    net, provider, ours, theirs = bound(network, "dmabuf")
    meet(net, theirs, frames.OURS)
    ours.devmem_dontneed(ours.recvmsg_devmem(timeout=0).frags["frag_token"])
    for n in range(20):
        theirs.sendto(payload(1000 + n), (frames.OURS, PORT))
        net.run(2)
    rows, linear, frags = ours.recv_batch(64)
    assert rows["size"].tolist() == [1000 + n for n in range(20)]
    assert rows["frags"].tolist() == [1] * 20
    assert linear == b""
    assert ip_text(ip_number(int(rows[0]["peer_hi"]), int(rows[0]["peer_lo"]))) == frames.THEIRS
    view, at = provider.map(), 0
    for n, frag in enumerate(frags):
        at = int(frag["frag_offset"])
        assert view[at : at + int(frag["frag_size"])].tobytes() == payload(1000 + n)
    assert ours.statistics()["tokens"] == 20
    assert ours.devmem_dontneed(frags["frag_token"]) == 20


def test_a_socket_that_is_not_read_holds_no_more_than_its_limit(network):
    net, _, ours, theirs = bound(network, "dmabuf")
    meet(net, theirs, frames.OURS)
    net.ours.stack.udp.records[ours._s].limit = 20_000
    for _ in range(scaled(100) + 25):
        theirs.sendto(payload(1000), (frames.OURS, PORT))
        net.run(1)
    stats = ours.statistics()
    assert stats["queued"] <= 20_000
    assert stats["dropped"] > 0
    assert net.ours.stack.conns.counters()["udp_full"] == stats["dropped"]
    ours.close()  # what is queued goes back: the network's end looks


def test_refusals(network):
    net, _, ours, theirs = bound(network, "none")
    meet(net, theirs, frames.OURS)
    for call, code in (
        (lambda: net.ours.stack.udp_socket(PORT), errno.EADDRINUSE),
        (lambda: net.ours.stack.udp_socket(70_000), errno.EINVAL),
        (lambda: theirs.sendto(b"x"), errno.EDESTADDRREQ),
        (lambda: theirs.sendto(payload(1473), (frames.OURS, PORT)), errno.EMSGSIZE),
        (lambda: theirs.sendto(b"x", ("localhost", PORT)), errno.EINVAL),
    ):
        with pytest.raises(NetmemError) as error:
            call()
        assert error.value.errno == code
    theirs.connect(frames.OURS, 9)
    theirs.sendto(b"anybody?")
    net.run(5)
    with pytest.raises(NetmemError) as error:
        theirs.recvmsg_devmem(timeout=0)
    assert error.value.errno == errno.ECONNREFUSED
    with pytest.raises(TimeoutError):
        theirs.recvmsg_devmem(timeout=0)
    theirs.close()
    with pytest.raises(NetmemError) as error:
        theirs.sendto(b"x")
    assert error.value.errno == errno.EBADF
    assert ours.pending() == 1


def test_too_few_frags_asked_for(network):
    net, _, ours, theirs = bound(network, "dmabuf", mtu=9000)
    net.ours.dev.ethtool.set_ringparam(rx_buf_len=2048)
    meet(net, theirs, frames.OURS)
    ours.recvmsg_devmem(timeout=0)
    theirs.sendto(payload(8000), (frames.OURS, PORT))
    net.until(ours.pending)
    with pytest.raises(NetmemError) as error:
        ours.recvmsg_devmem(max_frags=1)
    assert error.value.errno == ETOOSMALL
    message = ours.recvmsg_devmem()
    assert message.size == 8000
    assert len(message.frags) >= 4
    ours.devmem_dontneed(message.frags["frag_token"])


@pytest.mark.parametrize("host", [frames.THEIRS, frames.THEIRS6])
def test_a_datagram_straight_from_device_memory(network, nic, host):
    net, provider, ours, theirs = bound(network, "dmabuf", nic=nic)
    meet(net, theirs, frames.OURS if ":" not in host else frames.OURS6)
    data = payload(1200)
    memory = make_provider("dmabuf")
    memory.map(writable=True)[5000:6200] = np.frombuffer(data, np.uint8)
    binding = net.ours.dev.bind_tx(memory)
    assert ours.sendmsg_devmem([(5000, 700), (5700, 500)], binding, (host, theirs.port)) == 1200
    net.until(theirs.pending)
    message = theirs.recvmsg_devmem(timeout=0)
    assert message.linear == data
    net.run(3)
    assert ours.zerocopy_completions() == [(0, 0)]
    assert binding.in_flight == 0
    with pytest.raises(NetmemError) as error:
        ours.sendmsg_devmem([(0, 1)] * 3, binding, (host, theirs.port))
    assert error.value.errno == errno.EINVAL
    binding.close()
    memory.close()
