"""Payload in the right place, and told of when it is not; what tools see; refusals as the kernel's."""

from __future__ import annotations

import errno
import logging
import os

import pytest

from conftest import make_provider, need_qemu, payload
from netmem.base import board
from netmem.base.errors import NetmemError
from netmem.base.ethtool import SteeringRule, TcpDataSplit
from netmem.lab.device import open_device
from netmem.lab.leaks import leaks
from netmem.lab.observe import observe
from netmem.memory.page_pool import PagePool
from netmem.memory.params import PagePoolParams
from netmem.netdev.driver import NetmemTx
from netmem.testing import frames
from netmem.testing.net import PORT


def refused(code, call, *args, text="", **words):
    with pytest.raises(NetmemError) as error:
        call(*args, **words)
    assert error.value.errno == code, error.value
    assert text in str(error.value)


def test_a_steer_that_would_move_anothers_payload_is_refused():
    need_qemu()
    with open_device("igb", queues=3) as device:
        assert device.steer(5001, 1) is None
        device.steer(5003, 1)
        refused(errno.EBUSY, device.steer, 5002, 2, text="queue 1")
        assert device.ethtool.indirection == [1]


def test_a_flow_that_leaves_its_queue_is_told_of(network, caplog):
    net = network()
    net.bind(make_provider("dmabuf"))
    ours, theirs, _ = net.connect()
    theirs.send(payload(1000))
    net.until(ours.queued)
    message = ours.recvmsg_devmem()
    assert (len(message.frags), message.copied) == (1, False)
    ours.devmem_dontneed(message.frags["frag_token"])
    ethtool = net.ours.dev.ethtool
    for rule in list(ethtool.rules):
        ethtool.delete_rule(rule)
    ethtool.add_rule(SteeringRule(queue=0, dst_port=PORT))
    with caplog.at_level(logging.WARNING):
        theirs.send(payload(1000))
        net.until(ours.queued)
    message = ours.recvmsg_devmem()
    assert (message.linear, len(message.frags), message.copied) == (payload(1000), 0, True)
    assert net.ours.stack.conns.counters()["left_queue"] == 1
    assert "left queue 1" in caplog.text
    assert "steer the port" in caplog.text


def test_udp_is_seen_and_its_netmems_have_a_holder(network):
    net = network()
    net.bind(make_provider("dmabuf"), port=9)
    ours, theirs, _ = net.connect(9)  # so that both know each other's address
    net.ours.dev.ethtool.add_rule(SteeringRule(queue=1, dst_port=6000, proto=17))
    receiver, sender = net.ours.stack.udp_socket(6000), net.peer.stack.udp_socket()
    for _ in range(3):
        sender.sendto(payload(500), ("10.0.2.15", 6000))
    net.until(lambda: receiver.readable())
    net.run(5)
    held = {(r["holder"], r["who"]): r["count"] for r in leaks(os.getpid()) if r["memory"] == "dmabuf"}
    assert held["socket queue", "UDP port 6000"] >= 1
    frags = receiver.recvmsg_devmem(timeout=0).frags
    device = next(d for d in observe(os.getpid()) if d["addresses"][0] == "10.0.2.15")
    (seen,) = [s for s in device["sockets"] if s["state"] == "UDP"]
    assert (seen["port"], seen["tokens"], seen["datagrams"]) == (6000, 1, 3)
    held = {(r["holder"], r["who"]): r["count"] for r in leaks(os.getpid()) if r["memory"] == "dmabuf"}
    assert held["user token", "UDP port 6000"] == 1
    receiver.devmem_dontneed(frags["frag_token"])
    receiver.close()
    sender.close()


def test_udp_on_the_user_wire_is_refused_with_the_cure():
    with open_device() as device:
        refused(errno.EOPNOTSUPP, device.udp_socket, 6000, text="tap:NAME")


def test_two_devices_have_names_and_addresses_of_their_own():
    with open_device() as one, open_device() as two:
        assert one.dev.name != two.dev.name
        assert one.dev.driver.mac_address() != two.dev.driver.mac_address()
        assert {d["name"] for d in observe(os.getpid())} == {one.dev.name, two.dev.name}


def test_another_versions_words_are_not_read(network, monkeypatch, caplog):
    net = network()
    assert observe(os.getpid())
    monkeypatch.setattr("netmem.lab.observe.layout", lambda: "another")
    monkeypatch.setattr("netmem.lab.leaks.layout", lambda: "another")
    with caplog.at_level(logging.WARNING):
        assert observe(os.getpid()) == []
    assert "another version" in caplog.text
    assert leaks(os.getpid()) == []
    assert board.layout() == board.layout()
    assert net.ours.dev.board.fd >= 0


def test_sends_that_are_over_are_counted(network):
    net = network()
    provider = make_provider("dmabuf")
    net.provider = provider
    ours, _, _ = net.connect()
    with net.ours.dev.bind_tx(provider) as binding:
        ours.sendmsg_devmem([(0, 1000)], binding)
        net.until(ours.zerocopy_done)
        assert net.ours.stack.conns.counters()["zc_done"] == 1


# -- refusals ---------------------------------------------------------------------------------------


def test_a_pools_order_and_ring_are_the_kernels():
    refused(errno.EINVAL, PagePool, PagePoolParams(order=-1))
    pool = PagePool(PagePoolParams(pool_size=700, pages=2000 * 4096))
    refs = pool.alloc_netmems(1000)
    pool.put_full_netmem(refs)
    stats = pool.get_stats()
    assert stats["recycle_ring"] == 700
    assert stats["recycle_ring_full"] == 300
    more = pool.alloc_netmems(1)
    pool.destroy()
    pool.put_full_netmem(more)
    assert pool.get_stats()["recycle_released_refcnt"] == 0
    assert pool.release_retry(0)


def test_a_queue_that_starts_no_more_is_warned_of(network, monkeypatch, caplog):
    net = network()
    dev = net.ours.dev
    dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)

    def broken(*args):
        raise NetmemError(errno.EIO, "broken")

    monkeypatch.setattr(dev.driver, "queue_start", broken)
    provider = make_provider("dmabuf")
    with caplog.at_level(logging.WARNING):
        refused(errno.EIO, dev.bind_rx, [1], provider)
    assert "RX queue 1 may be unhealthy" in caplog.text
    provider.close()


def test_a_device_that_goes_tells_its_providers(network):
    net = network()
    provider = make_provider("dmabuf")
    told = []
    provider.uninstall = told.append
    net.bind(provider)
    net.close()
    assert told == [1]


def test_transmit_binding_wants_a_device_that_can_do_dma(network, monkeypatch):
    net = network()
    provider = make_provider("dmabuf")
    monkeypatch.setattr(type(net.ours.dev.driver), "netmem_tx", NetmemTx.NO_DMA)
    refused(errno.EOPNOTSUPP, net.ours.dev.bind_tx, provider, text="no DMA-capable device")
    provider.close()


def test_settings_of_a_dead_nic_are_enodev(network):
    net = network()
    net.bind(make_provider("dmabuf"))
    net.ours.bus.unplug()
    ethtool = net.ours.dev.ethtool
    refused(errno.ENODEV, ethtool.set_ringparam, tcp_data_split=TcpDataSplit.DISABLED)
    refused(errno.ENODEV, ethtool.add_rule, SteeringRule(queue=0, dst_port=1))


def test_the_pool_never_runs_below_what_is_pledged(network):
    """Two queues that share a memory: each sees half of what is free, and pledges are cut when it goes."""
    net = network(rx_queues=3)
    provider = make_provider("dmabuf", size=16 << 20)
    net.bind(provider, queue=1)
    second = net.ours.dev.bind_rx([2], provider)
    net.steer(6000, 2)
    pairs = [net.connect(port)[:2] for port in (PORT, 6000)]
    left = [memoryview(payload(3_000_000)) for _ in pairs]
    kept = [[], []]
    for _ in range(400):
        for n, (ours, theirs) in enumerate(pairs):
            if len(left[n]) and theirs.writable():
                left[n] = left[n][theirs.send(left[n]) :]
            while ours.queued():
                kept[n] += ours.recvmsg_devmem().frags["frag_token"].tolist()
        net.run(1)
    for queue in (1, 2):
        account = net.ours.stack.conns.record.accounts[queue]
        assert account.pledged <= max(net.ours.dev.queues.available(queue), 0)
    for (ours, _), tokens in zip(pairs, kept, strict=True):
        ours.devmem_dontneed(tokens)
    second.close()


def test_extension_headers_are_skipped_and_vlan_tags_counted(network):
    net = network(alone=True)
    net.bind(make_provider("dmabuf"))
    net.ours.stack.listen(PORT)
    options = bytes([6, 0, 1, 4, 0, 0, 0, 0])  # hop-by-hop: TCP is next, padding
    segment = frames.tcp6(sport=1000, flags=2, seq=9)[54:]
    net.wire.inject(frames.ethernet(frames.ipv6(options + segment, proto=0), 0x86DD))
    net.run(3)
    assert [c["state"] for c in net.ours.stack.statistics()["connections"]] == ["SYN-RECEIVED"]
    tagged = frames.ethernet(frames.ipv4(frames.tcp_segment(flags=2, seq=1, sport=2000)), vlan=5)
    net.wire.inject(tagged)
    net.run(3)
    assert net.ours.dev.batch.counters()["rx_unknown_ethertype"] == 1
    assert len(net.ours.stack.statistics()["connections"]) == 1
