"""Binding and ethtool settings: what is refused, in which order, with which errno; rollback."""

from __future__ import annotations

import errno
import functools
import os

import pytest

from conftest import make_provider, offer, payload, take, transfer
from netmem.base.errors import NetmemError
from netmem.base.ethtool import SteeringRule, TcpDataSplit
from netmem.memory.layout import PP_FLAG_ALLOW_UNREADABLE_NETMEM
from netmem.memory.page_pool import PagePool
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.netdev.binding import open_rxq
from netmem.netdev.ethtool import Ethtool
from netmem.netdev.queues import RxQueues
from netmem.testing import frames
from netmem.testing.net import PORT

SPLIT = {"tcp_data_split": TcpDataSplit.ENABLED}


def refused(code, call, *args, text="", **options):
    """Assert that a call is refused with an errno, and return the message."""
    with pytest.raises(NetmemError) as error:
        call(*args, **options)
    assert error.value.errno == code, str(error.value)
    assert text in str(error.value)


@pytest.fixture
def network(network, nic):
    """Networks in which our host has each NIC in turn."""
    return functools.partial(network, nic=nic)


@pytest.fixture
def dev(network):
    """A device with four queues, header split not configured."""
    return network(alone=True, rx_queues=4).ours.dev


def test_bind_refusals_come_in_the_kernels_order(dev, monkeypatch):
    provider = make_provider("dmabuf")
    refused(errno.EINVAL, dev.bind_rx, [], provider, text="queues")
    refused(errno.EINVAL, dev.bind_rx, [4], provider, text="no receive queue 4")
    refused(errno.EINVAL, dev.bind_rx, [1], provider, text="tcp-data-split")
    dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.DISABLED)
    refused(errno.EINVAL, dev.bind_rx, [1], provider, text="tcp-data-split")
    dev.ethtool.set_ringparam(**SPLIT)
    if dev.driver.hds_thresh_max:
        dev.ethtool.set_ringparam(hds_thresh=1)
        refused(errno.EINVAL, dev.bind_rx, [1], provider, text="hds-thresh")
        dev.ethtool.set_ringparam(hds_thresh=0)
    refused(errno.ERANGE, open_rxq, dev.queues, 7, provider)
    large = make_provider("dmabuf", rx_page_size=8192)
    monkeypatch.setattr(type(dev.driver), "supports_rx_page_size", False)
    refused(errno.EOPNOTSUPP, dev.bind_rx, [1], large, text="4096 bytes only: leave")
    monkeypatch.undo()
    monkeypatch.setattr(type(dev.driver), "queue_mgmt_ops", False)
    refused(errno.EOPNOTSUPP, dev.bind_rx, [1], provider)
    monkeypatch.undo()
    binding = dev.bind_rx([1, 1], provider)  # a queue named twice is accepted
    assert binding.queues == [1]
    refused(errno.EEXIST, dev.bind_rx, [1], make_provider("pages"), text="already")
    binding.close()
    binding.close()
    assert provider.area.free == provider.area.count
    assert dev.queues.bindings == []


def test_a_failing_queue_undoes_the_whole_call(dev):
    dev.ethtool.set_ringparam(**SPLIT)
    first = dev.bind_rx([2], make_provider("pages"))
    provider = make_provider("dmabuf")
    maps = dev.driver.bus.mappings()
    refused(errno.EEXIST, dev.bind_rx, [1, 2, 3], provider)
    assert [queue.mp_params is not None for queue in dev.rx_queues] == [False, False, True, False]
    assert dev.driver.bus.mappings() == maps
    assert provider.area.free == provider.area.count
    first.close()
    dev.bind_rx([1, 2, 3], provider).close()


def test_a_driver_that_makes_no_pool_with_the_provider_gets_enodata(dev, monkeypatch):
    dev.ethtool.set_ringparam(**SPLIT)
    real = PagePool.__init__

    def without_flag(self, params):
        object.__setattr__(params, "flags", params.flags & ~PP_FLAG_ALLOW_UNREADABLE_NETMEM)
        real(self, params)

    monkeypatch.setattr(PagePool, "__init__", without_flag)
    refused(errno.ENODATA, dev.bind_rx, [1], make_provider("dmabuf"), text="no page pool")
    assert dev.rx_queues[1].mp_params is None


def test_a_queue_that_does_not_start_gets_its_old_memory_back(network, monkeypatch):
    net = network()
    net.bind(None)
    ours, theirs, _ = net.connect()
    driver = type(net.ours.driver)
    real = driver.queue_start
    failures = [True]

    def fail_once(self, mem, queue):
        if failures.pop() if failures else False:
            raise NetmemError(errno.EIO, "no")
        real(self, mem, queue)

    monkeypatch.setattr(driver, "queue_start", fail_once)
    provider = make_provider("dmabuf")
    refused(errno.EIO, net.ours.dev.bind_rx, [1], provider)
    assert provider.area.free == provider.area.count
    assert transfer(net, theirs, ours, payload(20_000), None) == payload(20_000)


def test_binding_a_device_that_is_down_only_tries_the_memory(network):
    net = network(alone=True)
    dev = net.ours.dev
    dev.ethtool.set_ringparam(**SPLIT)
    dev.stop()
    provider = make_provider("dmabuf")
    binding = dev.bind_rx([1], provider)
    assert provider.area.free == provider.area.count
    dev.open()
    assert dev.rx_queues[1].pool.provider is provider
    binding.close()


def test_settings_are_refused_while_a_provider_is_bound(dev):
    ethtool = dev.ethtool
    ethtool.set_ringparam(**SPLIT)
    binding = dev.bind_rx([3], make_provider("dmabuf"))
    for split in (TcpDataSplit.DISABLED, TcpDataSplit.UNKNOWN):
        refused(errno.EINVAL, ethtool.set_ringparam, tcp_data_split=split, text="provider")
    if dev.driver.hds_thresh_max:
        refused(errno.EINVAL, ethtool.set_ringparam, hds_thresh=5, text="provider")
    refused(errno.EINVAL, ethtool.set_channels, 3, text="memory provider (4)")
    ethtool.set_ringparam(rx_pending=64)  # restarts the bound queue with its provider
    assert dev.rx_queues[3].pool.provider is binding.provider
    binding.close()
    ethtool.set_channels(2)
    ethtool.set_ringparam(tcp_data_split=TcpDataSplit.DISABLED)


def test_settings_that_no_device_can_have(dev):
    ethtool = dev.ethtool
    refused(errno.ERANGE, ethtool.set_ringparam, tcp_data_split=3)
    refused(errno.ERANGE, ethtool.set_ringparam, rx_buf_len=0)
    refused(errno.EOPNOTSUPP, ethtool.set_ringparam, tx_pending=64, text="cannot set")
    limit = dev.driver.hds_thresh_max
    refused(errno.EINVAL if limit else errno.EOPNOTSUPP, ethtool.set_ringparam, hds_thresh=9001)
    refused(errno.EINVAL, ethtool.set_ringparam, rx_pending=100)
    refused(errno.EINVAL, ethtool.set_ringparam, nonsense=1)
    before = dev.queues.generation
    ethtool.set_ringparam(rx_pending=dev.queues.ring.rx_pending)
    assert dev.queues.generation == before  # nothing changed: the driver was not called
    ethtool.set_rxfh_indir([0, 3])
    refused(errno.EINVAL, ethtool.set_channels, 2, text="indirection")
    refused(errno.EINVAL, ethtool.set_rxfh_indir, [4])
    ethtool.set_rxfh_indir(None)
    refused(errno.EINVAL, ethtool.set_channels, 17)


def test_rules_hold_their_queues_and_end_somewhere(dev, nic):
    ethtool = dev.ethtool
    refused(errno.EINVAL, ethtool.add_rule, SteeringRule(queue=4))
    if nic == "igb":
        refused(errno.EOPNOTSUPP, ethtool.add_rule, SteeringRule(queue=2), text="RSS")
        return
    rule = ethtool.add_rule(SteeringRule(queue=2))
    refused(errno.EINVAL, ethtool.set_channels, 2, text="ntuple")
    ethtool.delete_rule(rule)
    refused(errno.ENOENT, ethtool.delete_rule, rule)
    for _ in range(32):
        ethtool.add_rule(SteeringRule(queue=0))
    refused(errno.ENOSPC, ethtool.add_rule, SteeringRule(queue=0))


def test_an_unplugged_device_is_enodev(network):
    net = network(alone=True)
    net.ours.bus.unplug()
    refused(errno.ENODEV, net.ours.dev.bind_rx, [1], make_provider("dmabuf"))


def test_flows_survive_rebinding_to_each_kind_of_memory(network, nic):
    """The same two flows over queue 1 while it is bound, unbound and bound to other memory."""
    net = network()
    dev = net.ours.dev
    dev.ethtool.set_ringparam(**SPLIT)
    net.steer(PORT, 1)
    flows = [net.connect(PORT)[:2] for _ in range(2)]
    for kind in ("dmabuf", "none", "pages", "bar" if nic == "igb" else "dmabuf", "dmabuf", "none"):
        provider = make_provider(kind, net)
        binding = dev.bind_rx([1], provider) if provider else None
        for ours, theirs in flows:
            data, got = payload(50_000), bytearray()
            left = memoryview(data)
            for _ in range(5000):
                left = offer(theirs, left)
                net.run(1)
                got += take(ours, provider)
                if len(got) == len(data):
                    break
            assert bytes(got) == data, kind
        if binding:
            binding.close()
            assert provider.area.free == provider.area.count


def test_traffic_on_another_queue_goes_on_while_one_is_rebound(network, nic):
    """A flow on queue 0 has segments under way while queue 1 is bound and unbound."""
    net = network()
    dev = net.ours.dev
    dev.ethtool.set_ringparam(**SPLIT)
    dev.ethtool.set_rxfh_indir([0])
    ours, theirs, _ = net.connect(80)
    data, got = payload(900_000), bytearray()
    left, rounds, binding = memoryview(data), 0, None
    while len(got) < len(data):
        rounds += 1
        assert rounds < 5000
        left = offer(theirs, left)
        if rounds % 4 == 2:
            binding = dev.bind_rx([1], make_provider("dmabuf"))
        if rounds % 4 == 0:
            binding.close()
        net.run(1)
        got += take(ours, None)
    assert bytes(got) == data
    assert rounds > 8
    assert net.peer.stack.conns.counters()["retrans"] == 0  # nothing of it was lost


def test_tokens_outlive_the_binding_and_the_mapping_ends_with_the_last(network):
    net = network()
    provider = make_provider("dmabuf")
    net.bind(provider)
    ours, theirs, _ = net.connect()
    theirs.send(payload(5000))
    net.until(lambda: ours.queued() == 5000)
    maps = net.ours.bus.mappings()
    frags = ours.recvmsg_devmem().frags
    net.binding.close()
    assert net.binding.outstanding() == len(frags) == 4
    assert net.ours.bus.mappings() == maps + 1  # the area still, and the new pool's pages
    assert net.ours.dev.queues.bindings == [net.binding]
    again = net.ours.dev.bind_rx([0], provider)  # other queues may have the memory meanwhile
    again.close()
    view = provider.map()
    start = int(frags[0]["frag_offset"])
    assert view[start : start + 100].tobytes() == payload(5000)[:100]
    assert ours.devmem_dontneed(frags["frag_token"]) == 4
    net.ours.dev.reap(net.clock.now())
    assert net.ours.dev.queues.bindings == []
    assert net.ours.bus.mappings() == maps
    net.ours.dev.bind_rx([0], provider).close()


def test_split_unknown_splits_nothing(network):
    net = network(alone=True, rx_queues=1)
    net.wire.inject(frames.tcp(payload(100)))
    net.settle()
    net.run(1)
    stats = net.ours.driver.get_queue_stats(0)
    assert (stats["hds_hit"], stats["hds_miss"], stats["rx_packets"]) == (0, 0, 1)


def test_a_binding_whose_end_fails_is_not_ended_twice(network, monkeypatch):
    net = network()
    provider = make_provider("dmabuf")
    net.bind(provider)
    dev = net.ours.dev
    monkeypatch.setattr(net.binding, "end", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net.binding.close()
    assert dev.queues.bindings == []
    dev.reap(net.clock.now())
    monkeypatch.undo()
    net.binding.end()


def test_memory_of_a_queue_without_an_arena_is_refused_and_undone(network, monkeypatch):
    net = network()
    dev = net.ours.dev
    old, freed = dev.rx_queues[1].mem, []
    monkeypatch.setattr(type(dev.driver), "queue_mem_alloc", lambda self, qcfg, queue: "memory")
    monkeypatch.setattr(type(dev.driver), "queue_mem_free", lambda self, mem: freed.append(mem))
    refused(errno.EINVAL, dev.queues.restart, dev.rx_queues[1], text="arena")
    assert freed == ["memory"]
    assert dev.rx_queues[1].mem is old


def test_sending_on_a_device_that_was_never_opened_is_refused(network):
    net = network()
    driver = net.ours.dev.driver
    up, ring = driver._dev, driver._ops.tx_ring
    driver._dev, driver._ops.tx_ring = None, 0
    try:
        refused(errno.ENETDOWN, net.ours.dev.xmit)
    finally:
        driver._dev, driver._ops.tx_ring = up, ring


# -- ethtool -C -----------------------------------------------------------------------------------


def test_coalescing_is_set_read_and_refused(network, nic):
    net = network(nic=nic)
    ethtool = net.ours.dev.ethtool
    ethtool.set_coalesce(rx_usecs=50, use_adaptive_rx=False)
    assert (ethtool.get_coalesce().rx_usecs, ethtool.get_coalesce().use_adaptive_rx) == (50, False)
    refused(errno.ERANGE, ethtool.set_coalesce, rx_usecs=-1)
    refused(errno.EINVAL, ethtool.set_coalesce, rx_usecs=1_000_000)
    refused(errno.EINVAL, ethtool.set_coalesce, tx_usecs=1)
    if nic == "igb":
        refused(errno.EINVAL, ethtool.set_coalesce, use_adaptive_rx=True)
    assert ethtool.get_coalesce().rx_usecs == 50
    ours, theirs, _ = net.connect()
    theirs.send(payload(5000))
    net.until(lambda: ours.queued() == 5000)


class Plain:
    """A driver without interrupt moderation, as far as ethtool asks."""

    name, max_rx_queues = "plain", 1

    def is_alive(self):
        return True


def test_a_driver_need_not_have_coalescing():
    ethtool = Ethtool(RxQueues(Plain(), "nm0", 1, lambda: None))
    refused(errno.EOPNOTSUPP, ethtool.get_coalesce)
    refused(errno.EOPNOTSUPP, ethtool.set_coalesce, rx_usecs=1)


def test_memory_that_something_else_exported(dev):
    """DmabufProvider(fd=...): the descriptor stays the caller's, the memory is the same."""
    whole = DmabufProvider(1 << 20, exporter="memfd")
    with DmabufProvider(fd=whole.fd) as same, DmabufProvider(64 << 10, fd=whole.fd) as part:
        assert (same.size, part.size) == (1 << 20, 64 << 10)
        same.map(writable=True)[5] = 77
        assert whole.map()[5] == part.map()[5] == 77
        dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        dev.bind_rx([1], same).close()
    assert os.lseek(whole.fd, 0, os.SEEK_CUR) == 0  # it is the caller's
    with pytest.raises(NetmemError) as error:
        DmabufProvider(2 << 20, fd=whole.fd)
    assert error.value.errno == errno.EINVAL
    read, write = os.pipe()
    for number in (read, 9999):
        with pytest.raises(NetmemError) as error:
            DmabufProvider(fd=number)
        assert error.value.errno == errno.EBADF
    os.close(read)
    os.close(write)
    whole.close()
