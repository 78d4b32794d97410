"""The software NIC through its driver: split, steering, checksums, segmentation, bad addresses."""

from __future__ import annotations

import ctypes

import dpkt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_provider, payload
from netmem.base.formats import ip4
from netmem.drivers.softnic import kernels as dk
from netmem.hw.softnic import kernels as k
from netmem.hw.softnic import regs as r
from netmem.hw.wire import FRAME_CSUM_OK, FrameQueue
from netmem.memory import layout as ly
from netmem.netdev.driver import SteeringRule, TcpDataSplit
from netmem.netdev.ethtool import RSS_KEY
from netmem.testing import frames
from netmem.testing.wire import PacketWire

TS = bytes.fromhex("0101080a0000000100000002")


def harvest(net, queue):
    """One NAPI poll of a queue, and what stands in its batch: (header bytes, payload bytes) each."""
    batch = net.ours.dev.batch
    batch.clear()
    net.ours.driver.napi_poll(queue, 64, batch)
    rows = batch.rows[: int(batch.meta[0])]
    found = [(int(row[1]), int(row[5]), int(row[2])) for row in rows]
    net.ours.driver.rx_refill(queue, batch)
    return found


# name, frame, header buffer bytes, packet buffer bytes, split
PACKETS = [
    ("TCP", frames.tcp(payload(1000)), 54, 1000, True),
    ("TCP with timestamps", frames.tcp(payload(1000), options=TS), 66, 1000, True),
    ("TCP without payload", frames.tcp(), 54, 0, True),
    ("TCP, one byte", frames.tcp(b"x"), 54, 1, True),
    ("TCP with IP options", frames.ethernet(frames.ipv4(frames.tcp_segment(payload(99)), options=b"\1" * 8)),
     62, 99, True),
    ("VLAN", frames.ethernet(frames.ipv4(frames.tcp_segment(payload(99))), vlan=7), 58, 99, True),
    ("UDP", frames.udp(payload(300)), 42, 300, True),
    ("ARP", frames.arp(), 42, 0, False),
    ("ICMP", frames.icmp_echo(payload(100)), 142, 0, False),
    ("long ICMP", frames.icmp_echo(payload(1000)), 256, 786, False),
    ("fragment", frames.ethernet(frames.ipv4(frames.tcp_segment(payload(100)), fragment=0x2000)), 154, 0, False),
    ("unknown ethertype", frames.ethernet(payload(50), 0x88B5), 64, 0, False),
    ("IPv4 with a bad header length", frames.ethernet(b"\x41" + bytes(40)), 55, 0, False),
    ("IPv4 longer than its frame", frames.ethernet(frames.ipv4(frames.tcp_segment(), total=999)), 54, 0, False),
    ("TCP with a bad data offset", frames.tcp(payload(20), offset=2), 74, 0, False),
]


@pytest.mark.parametrize(("name", "frame", "header", "packet", "split"), PACKETS, ids=[p[0] for p in PACKETS])
def test_header_split_by_kind_of_packet(network, name, frame, header, packet, split):
    net = network(alone=True, rx_queues=1)
    net.ours.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
    net.wire.inject(frame)
    net.ours.bus.step(0)
    ((got_header, got_packet, status),) = harvest(net, 0)
    assert (got_header, got_packet, bool(status & 1)) == (header, packet, split)
    stats = net.ours.driver.get_queue_stats(0)
    assert (stats["hds_hit"], stats["hds_miss"]) == (int(split), int(not split))


@pytest.mark.parametrize(("size", "split"), [(900, False), (946, False), (947, True), (1000, True)])
def test_threshold_counts_the_whole_frame(network, size, split):
    net = network(alone=True, rx_queues=1)
    net.ours.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED, hds_thresh=1000)
    net.wire.inject(frames.tcp(payload(size)))
    net.ours.bus.step(0)
    ((header, packet, _),) = harvest(net, 0)
    assert header + packet == 54 + size
    assert header == (54 if split else 256)


def test_split_off_puts_all_into_the_packet_buffer(network):
    net = network(alone=True, rx_queues=1, mtu=9000)
    net.wire.inject(frames.tcp(payload(8000)))
    net.ours.bus.step(0)
    rows = harvest(net, 0)
    assert [(h, p) for h, p, _ in rows] == [(4096, 0), (0, 8054 - 4096)]


def test_jumbo_spans_descriptors(network):
    net = network(alone=True, rx_queues=1, mtu=9000)
    net.ours.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
    net.wire.inject(frames.tcp(payload(8900)))
    net.ours.bus.step(0)
    assert [(h, p) for h, p, _ in harvest(net, 0)] == [(54, 4096), (0, 4096), (0, 708)]


def test_checksum_verdicts(network):
    net = network(alone=True, rx_queues=1)
    good = frames.tcp(payload(101))
    bad_tcp = good[:-1] + bytes([good[-1] ^ 1])
    bad_ip = good[:24] + bytes([good[24] ^ 1]) + good[25:]
    padded = frames.tcp() + b"\xaa" * 6  # Ethernet padding is no part of the sum
    for frame in (good, bad_tcp, bad_ip, padded):
        net.wire.inject(frame)
    net.ours.bus.step(0)
    status = [row[2] for row in harvest(net, 0)]
    assert [s & 30 for s in status] == [6, 18, 12, 6]
    assert net.ours.driver.get_ethtool_stats()["rx_csum_bad"] == 2


def test_toeplitz_matches_the_published_vectors(network):
    """The verification suite of the RSS specification, IPv4 with ports and without."""
    net = network(alone=True)
    net.ours.bus.step(0)
    d = net.ours.nic.d
    for src, dst, sport, dport, with_ports, without in (
        ("66.9.149.187", "161.142.100.80", 2794, 1766, 0x51CCC178, 0x323E8FC2),
        ("199.92.111.2", "65.69.140.83", 14230, 4739, 0xC626B0EA, 0xD718262A),
        ("24.19.198.95", "12.22.207.184", 12898, 38024, 0x5C2B394A, 0xD2D0A5DE),
    ):
        packet = frames.ipv4(frames.tcp_segment(sport=sport, dport=dport), src=src, dst=dst)
        memory = np.frombuffer(bytearray(packet), np.uint8)
        ip = memory.ctypes.data
        assert k.rss_hash(d, ip, ip + 20) == with_ports
        assert k.rss_hash(d, ip, 0) == without


@given(st.binary(min_size=12, max_size=12))
def test_toeplitz_table_agrees_with_the_definition(data):
    """Bit by bit: the hash is the XOR of the key's 32-bit windows at each set bit."""
    key = int.from_bytes(RSS_KEY, "big")
    expected = 0
    for bit in range(96):
        if data[bit // 8] & (0x80 >> bit % 8):
            expected ^= (key >> (320 - 32 - bit)) & 0xFFFFFFFF
    d = np.zeros(k.D_WORDS, np.int64)
    memory = np.frombuffer(RSS_KEY + bytes(8), np.uint8).copy()
    k.toeplitz_table(d, memory.ctypes.data)
    packet = np.frombuffer(bytes(12) + data, np.uint8).copy()
    assert k.rss_hash(d, packet.ctypes.data, packet.ctypes.data + 20) == expected


def test_rules_come_before_rss_and_rss_follows_the_table(network):
    net = network(alone=True, rx_queues=4)
    ethtool = net.ours.dev.ethtool
    rule = ethtool.add_rule(SteeringRule(queue=3, dst_port=5001))
    ethtool.set_rxfh_indir([2])
    for port in (5001, 80):
        net.wire.inject(frames.tcp(dport=port))
    net.wire.inject(frames.arp())
    net.ours.bus.step(0)
    assert [len(harvest(net, q)) for q in range(4)] == [1, 0, 1, 1]
    ethtool.delete_rule(rule)
    ethtool.add_rule(SteeringRule(queue=1, src_ip=ip4(frames.THEIRS), src_port=7, proto=6))
    net.wire.inject(frames.tcp(dport=5001))
    net.wire.inject(frames.tcp(sport=7))
    net.ours.bus.step(0)
    assert [len(harvest(net, q)) for q in range(4)] == [0, 1, 1, 0]


def test_no_descriptor_holds_the_wire_then_drops_and_other_queues_go_on(network):
    net = network(alone=True)
    net.ours.dev.ethtool.set_ringparam(rx_pending=8)
    net.ours.dev.ethtool.add_rule(SteeringRule(queue=1, dst_port=5001))
    net.ours.dev.ethtool.set_rxfh_indir([0])
    for _ in range(12):
        net.wire.inject(frames.tcp(dport=5001))
    for _ in range(3):
        net.wire.inject(frames.tcp(dport=80))
    net.ours.bus.step(1000)
    assert net.ours.nic.is_paused()
    assert len(net.wire.rx) == 7
    net.ours.bus.step(1000 + int(net.ours.nic.bar[r.R_PAUSE_NS]) - 1)
    assert len(net.wire.rx) == 7
    net.ours.bus.step(1000 + int(net.ours.nic.bar[r.R_PAUSE_NS]))
    assert len(net.wire.rx) == 0
    assert net.ours.driver.get_queue_stats(1)["rx_no_desc"] == 4
    assert len(harvest(net, 0)) == 3
    assert len(harvest(net, 1)) == 8
    net.wire.inject(frames.tcp(dport=5001))
    net.ours.bus.step(10**9)
    assert len(harvest(net, 1)) == 1


def test_oversize_and_runt_frames_are_counted(network):
    net = network(alone=True)
    net.wire.inject(frames.tcp(payload(1461)))
    net.wire.inject(b"short")
    net.ours.bus.step(0)
    stats = net.ours.driver.get_ethtool_stats()
    assert (stats["rx_oversize"], stats["rx_runt"], stats["rx_frames"]) == (1, 1, 0)


def test_an_address_that_nobody_mapped_is_refused_and_reported(network):
    net = network(alone=True, rx_queues=1)
    mem = net.ours.driver._rx[0]
    ring = mem.desc.region.words()
    ring[0] = 0x1234_5000
    net.wire.inject(frames.tcp(payload(100)))
    net.ours.bus.step(0)
    assert net.ours.driver.get_ethtool_stats()["dma_fault"] == 1
    assert net.ours.nic.bar[r.R_RXQ + r.Q_STATE] == r.STATE_FAULT
    harvest(net, 0)
    assert net.ours.dev.batch.counters()["rx_fault"] == 1


def test_translate_knows_ends_and_directions():
    d, maps = np.zeros(k.D_WORDS, np.int64), np.zeros((4, 4), np.int64)
    maps[0], maps[1] = (0x1000, 0x1000, 0x9000, 2), (0x4000, 0x100, 0x20000, 0)
    d[k.D_NMAPS] = 2
    assert k.translate(d, maps, 0x1000, 0x1000, 2) == 0x9000
    assert k.translate(d, maps, 0x1800, 0x801, 2) == 0
    assert k.translate(d, maps, 0xFFF, 1, 2) == 0
    assert k.translate(d, maps, 0x1000, 1, 1) == 0  # mapped for the other direction
    assert k.translate(d, maps, 0x4010, 1, 1) == 0x20010


@pytest.mark.parametrize("split", [True, False])
def test_segmentation_on_receive_gives_frames_an_independent_parser_accepts(network, split):
    net = network(alone=True, rx_queues=1)
    if split:
        net.ours.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
    data = payload(5000)
    big = frames.ethernet(frames.ipv4(frames.tcp_segment(data, flags=0x18, options=TS, seq=100), ident=7))
    net.wire.inject(big, flags=FRAME_CSUM_OK, gso=1448)
    net.ours.bus.step(0)
    batch = net.ours.dev.batch
    batch.clear()
    net.ours.driver.napi_poll(0, 64, batch)
    pool = net.ours.dev.rx_queues[0].pool
    got = []
    for row in batch.rows[: int(batch.meta[0])]:
        header = ctypes.string_at(int(row[0]), int(row[1]))
        body = b""
        if row[5]:
            at = pool.area.address + ((int(row[3]) >> 1 & 0x7FFFFFFF) << 12) + int(row[4])
            body = ctypes.string_at(at, int(row[5]))
        got.append(dpkt.ethernet.Ethernet(header + body))
    net.ours.driver.rx_refill(0, batch)
    assert [len(f.data.data.data) for f in got] == [1448, 1448, 1448, 656]
    assert b"".join(f.data.data.data for f in got) == data
    assert [f.data.data.seq for f in got] == [100, 1548, 2996, 4444]
    assert [f.data.id for f in got] == [7, 8, 9, 10]
    assert [bool(f.data.data.flags & dpkt.tcp.TH_PUSH) for f in got] == [False, False, False, True]
    for frame in got:
        raw = bytes(frame.data)
        frame.data.sum = 0
        assert bytes(frame.data)[10:12] == raw[10:12]  # dpkt works the checksum out anew


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
    net.run(2)
    segments = [dpkt.ethernet.Ethernet(f) for f in net.wire.sent]
    assert len(segments) == 5
    assert b"".join(s.data.data.data for s in segments) == data
    for segment in segments:
        ip, tcp = segment.data, segment.data.data
        sent = (ip.sum, tcp.sum)
        ip.sum = tcp.sum = 0
        again = dpkt.ip.IP(bytes(ip))
        assert sent == (again.sum, again.data.sum)


@pytest.mark.parametrize("memory", ["none", "pages", "dmabuf"])
@pytest.mark.parametrize("forget", [False, True])
def test_a_missing_sync_delivers_old_bytes_on_a_bouncing_bus(network, monkeypatch, memory, forget):
    net = network(bounce=True)
    provider = make_provider(memory)
    net.bind(provider)
    ours, theirs, _ = net.connect()
    pool = net.ours.dev.rx_queues[1].pool
    if forget:
        pool.p[ly.P_SYNC_CPU] = 0  # as if nobody called page_pool_dma_sync_netmem_for_cpu()
    theirs.send(b"fresh bytes")
    net.until(ours.queued)
    if provider is None:
        got = ours.recv(100)
    else:
        frag = ours.recvmsg_devmem().frags[0]
        start = int(frag["frag_offset"])
        got = provider.map()[start : start + 11].tobytes()
        ours.devmem_dontneed([frag["frag_token"]])
    # Device memory is never bounced: its user syncs, and the pool's call is a counted no-op.
    assert got == (bytes(11) if forget and memory != "dmabuf" else b"fresh bytes")
    assert (pool.p[ly.PX_SYNC_CPU] > 0) == (memory != "dmabuf" and not forget)


@given(
    st.lists(st.integers(0, 700), min_size=3, max_size=3),
    st.integers(0, 2000), st.integers(0, 2000),
)
def test_payload_copy_and_sum_agree_with_slow_twins(sizes, offset, n):
    pieces = [payload(size, seed=i) for i, size in enumerate(sizes)]
    whole = b"".join(pieces)
    buffers = [np.frombuffer(bytearray(b"H" * 10 + piece if i == 0 else piece + b"?"), np.uint8)
               for i, piece in enumerate(pieces)]
    queue = FrameQueue()
    row = queue.rows[0]
    row[0], row[1], row[11] = buffers[0].ctypes.data, 10 + sizes[0], 10
    row[2], row[3], row[4], row[5] = buffers[1].ctypes.data, sizes[1], buffers[2].ctypes.data, sizes[2]
    out = np.zeros(4096, np.uint8)
    n = min(n, max(0, len(whole) - offset))
    k.payload_copy(row, offset, n, out.ctypes.data)
    assert out[:n].tobytes() == whole[offset : offset + n]
    assert not out[n:].any()
    padded = whole + b"\0" * (len(whole) % 2)
    expected = sum(int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2))
    got = int(k.payload_sum(row, 0))
    assert got % 0xFFFF == expected % 0xFFFF


def test_packet_wire_is_a_wire_and_driver_constants_agree():
    wire = PacketWire()
    wire.inject(b"x" * 60)
    assert wire.exchange(0)
    assert len(wire.rx) == 1
    assert wire.filenos() == []
    assert dk.SLOT_WORDS == 4
