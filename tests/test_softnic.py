"""The software NIC alone: hashing, thresholds, the held wire, segmentation on receive, bad addresses."""

from __future__ import annotations

import ctypes

import dpkt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import payload
from netmem.base.ethtool import SteeringRule, TcpDataSplit
from netmem.base.jit import kernel
from netmem.base.record import address_of
from netmem.hw.softnic import kernels, look
from netmem.hw.softnic import regs as r
from netmem.hw.softnic.ring import host_address
from netmem.hw.softnic.state import DmaMap, NicState
from netmem.hw.wire import Frame, FrameRow
from netmem.memory import sanitizer
from netmem.memory.ref import offset_of
from netmem.netdev.ethtool import RSS_KEY
from netmem.testing import frames
from netmem.testing.wire import PacketWire
from test_nic import TS, harvest, toeplitz


@pytest.mark.parametrize(("size", "split"), [(900, False), (946, False), (947, True), (1000, True)])
def test_threshold_counts_the_whole_frame(network, size, split):
    net = network(alone=True, rx_queues=1)
    net.ours.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED, hds_thresh=1000)
    net.wire.inject(frames.tcp(payload(size)))
    net.settle()
    ((header, packet, _),) = harvest(net, 0)
    assert header + packet == 54 + size
    assert header == (54 if split else 256)


@kernel
def hash_of(nic_at, ip, l4):
    return look.rss_hash(NicState.at(nic_at), ip, l4)


@kernel
def copy_of(frame_at, offset, n, to):
    kernels.payload_copy(FrameRow.at(frame_at), offset, n, to)


@kernel
def sum_of(frame_at):
    return look.payload_sum(FrameRow.at(frame_at), 0)


def test_toeplitz_matches_the_published_vectors(network):
    """The verification suite of the RSS specification, IPv4 with ports and without."""
    net = network(alone=True)
    net.settle()
    at = net.ours.nic.at
    for src, dst, sport, dport, with_ports, without in (
        ("66.9.149.187", "161.142.100.80", 2794, 1766, 0x51CCC178, 0x323E8FC2),
        ("199.92.111.2", "65.69.140.83", 14230, 4739, 0xC626B0EA, 0xD718262A),
        ("24.19.198.95", "12.22.207.184", 12898, 38024, 0x5C2B394A, 0xD2D0A5DE),
    ):
        packet = frames.ipv4(frames.tcp_segment(sport=sport, dport=dport), src=src, dst=dst)
        memory = np.frombuffer(bytearray(packet), np.uint8)
        ip = memory.ctypes.data
        assert hash_of(at, ip, ip + 20) == with_ports
        assert hash_of(at, ip, 0) == without


@given(st.binary(min_size=12, max_size=12))
def test_toeplitz_table_agrees_with_the_definition(data):
    bar = r.Bar()
    bar.rss_key[:] = list(RSS_KEY)
    nic = NicState(bar=address_of(bar))
    look.toeplitz_table(address_of(nic))
    packet = np.frombuffer(b"\x45" + bytes(11) + data, np.uint8).copy()
    assert hash_of(address_of(nic), packet.ctypes.data, packet.ctypes.data + 20) == toeplitz(data)


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
    net.ours.bus.step(1000 + net.ours.nic.bar.pause_ns - 1)
    assert len(net.wire.rx) == 7
    net.ours.bus.step(1000 + net.ours.nic.bar.pause_ns)
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
    net.settle()
    stats = net.ours.driver.get_ethtool_stats()
    assert (stats["rx_oversize"], stats["rx_runt"], stats["rx_frames"]) == (1, 1, 0)


def test_an_address_that_nobody_mapped_is_refused_and_reported(network):
    net = network(alone=True, rx_queues=1)
    mem = net.ours.driver._rx[0]
    ring = mem.desc.region.words()
    ring[0] = 0x1234_5000
    net.wire.inject(frames.tcp(payload(100)))
    net.settle()
    assert net.ours.driver.get_ethtool_stats()["dma_fault"] == 1
    assert net.ours.nic.bar.rxq[0].state == r.QueueState.FAULT
    harvest(net, 0)
    with sanitizer.collecting() as trapped:
        net.ours.dev.watch.check()
    assert [one.trap for one in trapped] == ["write by the NIC after unmap"]
    assert net.ours.dev.batch.counters()["rx_fault"] == 1


def test_translate_knows_ends_and_directions():
    nic = NicState(maps_used=2)
    nic.maps[0], nic.maps[1] = DmaMap(0x1000, 0x1000, 0x9000, 2), DmaMap(0x4000, 0x100, 0x20000, 0)
    at = address_of(nic)
    assert host_address(at, 0x1000, 0x1000, 2) == 0x9000
    assert host_address(at, 0x1800, 0x801, 2) == 0
    assert host_address(at, 0xFFF, 1, 2) == 0
    assert host_address(at, 0x1000, 1, 1) == 0  # mapped for the other direction
    assert host_address(at, 0x4010, 1, 1) == 0x20010


@pytest.mark.parametrize("split", [True, False])
def test_segmentation_on_receive_gives_frames_an_independent_parser_accepts(network, split):
    net = network(alone=True, rx_queues=1)
    if split:
        net.ours.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
    data = payload(5000)
    big = frames.ethernet(frames.ipv4(frames.tcp_segment(data, flags=0x18, options=TS, seq=100), ident=7))
    net.wire.inject(big, flags=Frame.CSUM_OK, gso=1448)
    net.settle()
    batch = net.ours.dev.batch
    batch.clear()
    net.ours.driver.napi_poll(0, 64, batch)
    pool = net.ours.dev.rx_queues[0].pool
    got = []
    for row in batch.used():
        header = ctypes.string_at(row.header, row.header_len)
        body = b""
        if row.size:
            at = pool.area.address + offset_of(row.netmem, 12) + row.offset
            body = ctypes.string_at(at, row.size)
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


@given(
    st.lists(st.integers(0, 700), min_size=3, max_size=3),
    st.integers(0, 2000),
    st.integers(0, 2000),
)
def test_payload_copy_and_sum_agree_with_slow_twins(sizes, offset, n):
    pieces = [payload(size, seed=i) for i, size in enumerate(sizes)]
    whole = b"".join(pieces)
    buffers = [
        np.frombuffer(bytearray(b"H" * 10 + piece if i == 0 else piece + b"?"), np.uint8)
        for i, piece in enumerate(pieces)
    ]
    frame = FrameRow(
        header=buffers[0].ctypes.data, header_len=10 + sizes[0], split=10, payload=buffers[1].ctypes.data,
        payload_len=sizes[1], payload2=buffers[2].ctypes.data, payload2_len=sizes[2],
    )  # fmt: skip
    out = np.zeros(4096, np.uint8)
    n = min(n, max(0, len(whole) - offset))
    copy_of(address_of(frame), offset, n, out.ctypes.data)
    assert out[:n].tobytes() == whole[offset : offset + n]
    assert not out[n:].any()
    padded = whole + b"\0" * (len(whole) % 2)
    expected = sum(int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2))
    got = int(sum_of(address_of(frame)))
    assert got % 0xFFFF == expected % 0xFFFF


def test_packet_wire_is_a_wire():
    wire = PacketWire()
    wire.inject(b"x" * 60)
    assert wire.exchange(0)
    assert len(wire.rx) == 1
    assert wire.filenos() == []


def interrupts(net, packets, gap_ns):
    """How often the NIC interrupts a driver that waits each time, while packets come every ``gap_ns``."""
    counters, driver = net.ours.nic.bar.counters, net.ours.driver
    before = counters.irq
    for _ in range(packets):
        driver.irq_arm()
        net.wire.inject(frames.tcp(b"x", dport=9))
        net.ours.bus.step(net.clock.advance(gap_ns))
        net.ours.stack.poll()
        net.wire.sent.clear()
    return counters.irq - before


def test_many_packets_are_gathered_and_few_are_told_of_at_once(network):
    net = network(alone=True)
    ethtool = net.ours.dev.ethtool
    ethtool.set_coalesce(rx_usecs=100, use_adaptive_rx=True)
    assert interrupts(net, 100, 200_000) == 100  # one each 200 us: nothing is gained by waiting
    busy = interrupts(net, 2000, 1000)  # one each us: 2 ms are twenty times 100 us
    assert 15 <= busy <= 200
    interrupts(net, 20, 200_000)  # quiet again ...
    assert interrupts(net, 50, 60_000) >= 45  # ... and nothing waits for 100 us
    ethtool.set_coalesce(rx_usecs=100, use_adaptive_rx=False)
    assert 25 <= interrupts(net, 50, 60_000) <= 35
    ethtool.set_coalesce(rx_usecs=0)
    assert interrupts(net, 200, 1000) >= 195
