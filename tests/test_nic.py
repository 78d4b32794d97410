"""Each NIC through its driver: split, steering, checksums, segmentation, syncing, queues under load."""

from __future__ import annotations

import errno
import functools
import struct

import dpkt
import pytest

from conftest import NIC_MEMORY, make_provider, offer, payload, take
from netmem.base.address import ip4
from netmem.base.errors import NetmemError
from netmem.base.ethtool import SteeringRule, TcpDataSplit
from netmem.netdev.ethtool import RSS_KEY
from netmem.testing import frames

TS = bytes.fromhex("0101080a0000000100000002")


@pytest.fixture
def network(network, nic):
    """Networks in which our host has each NIC in turn."""
    return functools.partial(network, nic=nic)


def harvest(net, queue):
    """One NAPI poll of a queue, and what stands in its batch: (header bytes, payload bytes, status) each."""
    batch = net.ours.dev.batch
    batch.clear()
    net.ours.driver.napi_poll(queue, 64, batch)
    found = [(row.header_len, row.size, row.status) for row in batch.used()]
    net.ours.driver.rx_refill(queue, batch)
    return found


def toeplitz(data):
    """The hash by its definition: the XOR of the key's 32-bit windows at each set bit."""
    key, result = int.from_bytes(RSS_KEY, "big"), 0
    for bit in range(8 * len(data)):
        if data[bit // 8] & (0x80 >> bit % 8):
            result ^= (key >> (320 - 32 - bit)) & 0xFFFFFFFF
    return result


def segment(size, **fields):
    return frames.ethernet(frames.ipv4(frames.tcp_segment(payload(size)), **fields))


def tagged(size, tag):
    return frames.ethernet(frames.ipv4(frames.tcp_segment(payload(size))), vlan=tag)


# Header split by kind of packet: name, frame, then (header buffer bytes, packet buffer bytes, split) with the
# software NIC and with the 82576. The 82576 splits behind the last header that it knows, fragments and other
# protocols behind IP, and lays what fits its header buffer there whole, SPH clear (data sheet, 7.1.10); frames
# reach it padded to 60 bytes. Ours splits TCP and UDP only.
PACKETS = [
    ("TCP", frames.tcp(payload(1000)), (54, 1000, True), (54, 1000, True)),
    ("TCP with timestamps", frames.tcp(payload(1000), options=TS), (66, 1000, True), (66, 1000, True)),
    ("TCP without payload", frames.tcp(), (54, 0, True), (60, 0, False)),
    ("TCP, one byte", frames.tcp(b"x"), (54, 1, True), (60, 0, False)),
    ("TCP that just fits a header buffer", frames.tcp(payload(202)), (54, 202, True), (256, 0, False)),
    ("TCP, one byte more", frames.tcp(payload(203)), (54, 203, True), (54, 203, True)),
    ("IP options", segment(999, options=b"\1" * 8), (62, 999, True), (62, 999, True)),
    ("VLAN", tagged(999, 7), (58, 999, True), (58, 999, True)),
    ("TCP over IPv6", frames.tcp6(payload(1000)), (74, 1000, True), (74, 1000, True)),
    ("UDP", frames.udp(payload(300)), (42, 300, True), (42, 300, True)),
    ("UDP over IPv6", frames.udp6(payload(1000)), (62, 1000, True), (62, 1000, True)),
    ("ARP", frames.arp(), (42, 0, False), (60, 0, False)),
    ("ICMP", frames.icmp_echo(payload(100)), (142, 0, False), (142, 0, False)),
    ("long ICMP", frames.icmp_echo(payload(1000)), (256, 786, False), (34, 1008, True)),
    ("first fragment", segment(1000, fragment=0x2000), (256, 798, False), (34, 1020, True)),
    ("later fragment", segment(1000, fragment=0x00B9), (256, 798, False), (34, 1020, True)),
    ("small fragment", segment(100, fragment=0x2000), (154, 0, False), (154, 0, False)),
    ("unknown ethertype", frames.ethernet(payload(50), 0x88B5), (64, 0, False), (64, 0, False)),
    ("long unknown", frames.ethernet(payload(1000), 0x88B5), (256, 758, False), (256, 758, False)),
    ("runt", frames.ethernet(b"run", 0x88B5), (17, 0, False), (60, 0, False)),
    ("bad IP header length", frames.ethernet(b"\x41" + bytes(40)), (55, 0, False), (60, 0, False)),
    ("IPv4 longer than its frame", segment(0, total=999), (54, 0, False), (60, 0, False)),
    ("bad data offset", frames.tcp(payload(20), offset=2), (74, 0, False), (74, 0, False)),
]


@pytest.fixture
def splitting(network):
    """A host alone with one queue and header split on."""
    net = network(alone=True, rx_queues=1, mtu=9000)
    net.ours.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
    return net


def test_header_split_by_kind_of_packet(splitting, nic):
    wrong = []
    for name, frame, softnic, igb in PACKETS:
        splitting.wire.inject(frame)
        splitting.settle()
        ((header, packet, status),) = harvest(splitting, 0)
        expected = igb if nic == "igb" else softnic
        if (header, packet, bool(status & 1)) != expected:
            wrong.append((name, (header, packet, bool(status & 1)), expected))
    assert not wrong
    stats = splitting.ours.driver.get_queue_stats(0)
    split = [(igb if nic == "igb" else softnic)[2] for _, _, softnic, igb in PACKETS]
    assert (stats["hds_hit"], stats["hds_miss"]) == (split.count(True), split.count(False))


def test_a_threshold_is_for_devices_that_have_one(splitting, nic):
    ethtool = splitting.ours.dev.ethtool
    if nic == "igb":
        with pytest.raises(NetmemError) as error:
            ethtool.set_ringparam(hds_thresh=1000)
        assert error.value.errno == errno.EOPNOTSUPP
    else:
        ethtool.set_ringparam(hds_thresh=1000)
        splitting.wire.inject(frames.tcp(payload(900)))
        splitting.settle()
        assert [row[:2] for row in harvest(splitting, 0)] == [(256, 698)]


def test_split_off_puts_all_into_the_packet_buffer(network):
    net = network(alone=True, rx_queues=1, mtu=9000)
    net.wire.inject(frames.tcp(payload(8000)))
    net.settle()
    rows = harvest(net, 0)
    assert [(h, p) for h, p, _ in rows] == [(4096, 0), (0, 8054 - 4096)]
    stats = net.ours.driver.get_queue_stats(0)
    assert (stats["hds_hit"], stats["hds_miss"], stats["rx_packets"]) == (0, 0, 1)


def test_jumbo_spans_descriptors(splitting):
    splitting.wire.inject(frames.tcp(payload(8900)))
    splitting.settle()
    assert [(h, p) for h, p, _ in harvest(splitting, 0)] == [(54, 4096), (0, 4096), (0, 708)]


def test_a_frame_longer_than_the_mtu_does_not_come_in(network):
    net = network(alone=True, rx_queues=1, mtu=1500)
    net.wire.inject(frames.tcp(payload(1461 + 8)))
    net.wire.inject(frames.tcp(payload(10)))
    net.settle()
    assert len(harvest(net, 0)) == 1


def test_checksum_verdicts(network):
    net = network(alone=True, rx_queues=1)
    good = frames.tcp(payload(101))
    bad_tcp = good[:-1] + bytes([good[-1] ^ 1])
    bad_ip = good[:24] + bytes([good[24] ^ 1]) + good[25:]
    padded = frames.tcp() + b"\xaa" * 6  # Ethernet padding is no part of the sum
    for frame in (good, bad_tcp, bad_ip, padded):
        net.wire.inject(frame)
    net.settle()
    status = [row[2] & 30 for row in harvest(net, 0)]
    assert status[0] == status[3] == 6
    assert status[1] == 18
    assert status[2] & 10 == 8
    counters = net.ours.dev.batch.counters()
    assert (counters["rx_tcp"], counters["rx_bad_l4_csum"], counters["rx_bad_ip_csum"]) == (2, 1, 1)


def test_rss_follows_the_table_and_arp_goes_to_queue_0(network):
    net = network(alone=True, rx_queues=4)
    ethtool = net.ours.dev.ethtool
    for port in range(40):
        net.wire.inject(frames.tcp(sport=1000 + port))
    net.settle()
    spread = [len(harvest(net, q)) for q in range(4)]
    assert sum(spread) == 40
    assert min(spread) > 0
    ethtool.set_rxfh_indir([2])
    for port in range(8):
        net.wire.inject(frames.tcp(sport=1000 + port))
    net.wire.inject(frames.arp())
    net.settle()
    assert [len(harvest(net, q)) for q in range(4)] == [1, 0, 8, 0]


def test_both_nics_hash_alike(network):
    """Toeplitz with one key: a flow's queue does not depend on the NIC."""
    net = network(alone=True, rx_queues=4)
    found = []
    for port in range(12):
        net.wire.inject(frames.tcp(sport=5000 + port))
        net.settle()
        found.append([len(harvest(net, q)) for q in range(4)].index(1))
    addresses = struct.pack("!II", ip4(frames.THEIRS), ip4(frames.OURS))
    hashes = [toeplitz(addresses + struct.pack("!HH", 5000 + port, 5001)) for port in range(12)]
    assert found == [(value & 127) % 4 for value in hashes]
    assert len(set(found)) > 1


def test_rules_come_before_rss_or_are_refused(network, nic):
    net = network(alone=True, rx_queues=4)
    ethtool = net.ours.dev.ethtool
    if nic == "igb":  # QEMU's 82576 has no 5-tuple filters
        with pytest.raises(NetmemError, match="RSS") as error:
            ethtool.add_rule(SteeringRule(queue=3, dst_port=5001))
        assert error.value.errno == errno.EOPNOTSUPP
        assert not ethtool.rules
        return
    rule = ethtool.add_rule(SteeringRule(queue=3, dst_port=5001))
    ethtool.set_rxfh_indir([2])
    for port in (5001, 80):
        net.wire.inject(frames.tcp(dport=port))
    net.settle()
    assert [len(harvest(net, q)) for q in range(4)] == [0, 0, 1, 1]
    ethtool.delete_rule(rule)
    ethtool.add_rule(SteeringRule(queue=1, src_ip=ip4(frames.THEIRS), src_port=7, proto=6))
    net.wire.inject(frames.tcp(dport=5001))
    net.wire.inject(frames.tcp(sport=7))
    net.settle()
    assert [len(harvest(net, q)) for q in range(4)] == [0, 1, 1, 0]


def test_a_dry_queue_does_not_hold_the_others_for_good_and_recovers(network):
    net = network(alone=True)
    dev = net.ours.dev
    dev.ethtool.set_ringparam(rx_pending=32)
    dev.ethtool.set_rxfh_indir([1])
    for _ in range(80):
        net.wire.inject(frames.tcp())
    net.settle()
    assert 31 <= len(harvest(net, 1)) <= 32
    net.run(1)
    net.wire.inject(frames.tcp())
    net.wire.inject(frames.arp())
    net.settle()
    assert len(harvest(net, 0)) == 1
    assert len(harvest(net, 1)) >= 1


def test_sent_segments_carry_right_checksums(network):
    """What our TCP sends through segmentation offload, checked by dpkt."""
    net = network(alone=True)
    listener = net.ours.stack.listen(5001)
    net.wire.inject(frames.arp())
    net.wire.inject(frames.tcp(flags=2, seq=99, options=bytes.fromhex("020405b4")))
    net.run(3)
    answer = dpkt.ethernet.Ethernet([f for f in net.wire.sent if f[12:14] == b"\x08\x00"][-1])
    ack = answer.data.data.seq + 1
    net.wire.inject(frames.tcp(flags=16, seq=100, ack=ack))
    net.run(2)
    sock = listener.accept(timeout=0)
    net.wire.sent.clear()
    data = payload(7000)
    sock.sendall(data)
    net.run(3)
    segments = [dpkt.ethernet.Ethernet(f) for f in net.wire.sent]
    assert len(segments) == 5
    assert b"".join(s.data.data.data for s in segments) == data
    for one in segments:
        ip, tcp = one.data, one.data.data
        sent = (ip.sum, tcp.sum)
        ip.sum = tcp.sum = 0
        again = dpkt.ip.IP(bytes(ip))
        assert sent == (again.sum, again.data.sum)


@pytest.mark.parametrize(("nic", "memory"), NIC_MEMORY, indirect=["nic"])
@pytest.mark.parametrize("forget", [False, True])
def test_a_missing_sync_delivers_old_bytes_on_a_bouncing_bus(network, memory, forget):
    net = network(bounce=True)
    provider = make_provider(memory, net)
    net.bind(provider)
    ours, theirs, _ = net.connect()
    pool = net.ours.dev.rx_queues[1].pool
    if forget:
        pool.record.dma_sync_for_cpu = 0  # as if nobody called page_pool_dma_sync_netmem_for_cpu()
    data = payload(1000)
    theirs.send(data)
    net.until(lambda: ours.queued() == 1000)
    if provider is None:
        got = ours.recv(1000)
    else:
        frag = ours.recvmsg_devmem().frags[0]
        start = int(frag["frag_offset"])
        got = provider.map()[start : start + 1000].tobytes()
        ours.devmem_dontneed([frag["frag_token"]])
    # Device memory is never bounced: its user syncs, and the pool's call is a counted no-op.
    host_memory = memory in ("none", "pages")
    assert got == (bytes(1000) if forget and host_memory else data)
    assert (pool.record.counters.sync_cpu > 0) == (host_memory and not forget)


@pytest.mark.parametrize(("nic", "memory"), NIC_MEMORY, indirect=["nic"])
def test_a_queue_restarts_under_load_and_nothing_is_lost(network, memory):
    net = network()
    provider = make_provider(memory, net)
    net.bind(provider)
    ours, theirs, _ = net.connect()
    data, got = payload(200_000), bytearray()
    left = memoryview(data)
    restarts = 0
    for i in range(20_000):
        left = offer(theirs, left)
        if i % 3 == 2 and restarts < 6 and got:
            net.ours.dev.queues.restart(net.ours.dev.rx_queues[1])
            restarts += 1
        net.run(1)
        got += take(ours, provider)
        if len(got) == len(data):
            break
    assert bytes(got) == data
    assert restarts >= 3


def test_a_dead_nic_is_noticed_and_everything_is_given_back(network):
    net = network()
    provider = make_provider("dmabuf", net)
    net.bind(provider)
    ours, theirs, _ = net.connect()
    theirs.send(payload(2896))
    net.until(lambda: ours.queued() == 2896)
    net.ours.bus.unplug()
    assert not net.ours.dev.queues.is_present()
    frags = ours.recvmsg_devmem().frags
    with pytest.raises(NetmemError) as error:
        ours.recvmsg_devmem(timeout=1)
    assert error.value.errno == errno.ENODEV
    ours.devmem_dontneed(frags["frag_token"])
