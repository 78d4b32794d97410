"""The gve model, driven by a driver of ours through vfio-user, without a virtual machine."""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from netmem.base.address import ip4
from netmem.base.clock import MS, SEC
from netmem.base.errors import NetmemError
from netmem.base.jit import COMPILED
from netmem.hw.gve import Gve, GveConfig, regs
from netmem.hw.gve import descriptors as d
from netmem.hw.gve import layout as ly
from netmem.hw.gve.faults import GveFaults
from netmem.hw.gve.steering import HASH_KEY_BYTES, LUT_ENTRIES
from netmem.hw.vfio_user import Function
from netmem.hw.wire import cable
from netmem.hw.wrap import WAITING, FaultyWire
from netmem.testing import frames
from netmem.testing.gve_driver import GveDriver, R
from netmem.testing.vfio_user import Client, Ram

TCP_HEADERS = 14 + 20 + 20
KEY = bytes(range(1, 41))


class Port:
    """One gve with its driver."""

    def __init__(self, wire: object, config: GveConfig, **how: object) -> None:
        self.nic = Gve(wire, config)  # type: ignore[arg-type]
        self.client = Client(Function(self.nic))
        self.ram = Ram(32 << 20)
        self.client.version()
        self.client.map(0, self.ram.size, self.ram.fd)
        self.client.enable_irqs(self.nic.vectors)
        self.driver = GveDriver(self.client, self.ram)

    def close(self) -> None:
        self.client.close()
        self.ram.close()


class Pair:
    """Two ports back to back; ``run`` until nothing moves."""

    def __init__(self, config: GveConfig | None = None, far: GveConfig | None = None) -> None:
        one, two = cable()
        self.a, self.b = Port(one, far or GveConfig()), Port(two, config or GveConfig())
        self.now = SEC

    def run(self) -> None:
        while self.a.nic.step(self.now) | self.b.nic.step(self.now):
            pass

    def up(self, **how: object) -> None:
        self.a.driver.up(**{"queues": 1, **how})  # type: ignore[arg-type]
        self.b.driver.up(**{"queues": 1, **how})  # type: ignore[arg-type]

    def close(self) -> None:
        self.a.close()
        self.b.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def of_faults(faults: GveFaults) -> Pair:
    return Pair(GveConfig(faults=faults))


def test_probe_describes_the_device(pair: Pair) -> None:
    descriptor, options = pair.b.driver.describe()
    assert bytes(descriptor.mac) == GveConfig().mac
    assert (descriptor.mtu, descriptor.default_num_queues) == (1500, 4)
    rda = ly.OptionDqoRda.from_buffer_copy(options[ly.OptionId.DQO_RDA])
    assert rda.supported_features_mask == 0xFFFFFFFF  # this one gates the others
    sizes = ly.OptionBufferSizes.from_buffer_copy(options[ly.OptionId.BUFFER_SIZES])
    assert (sizes.packet_buffer_size, sizes.header_buffer_size) == (4096, 256)
    assert not pair.b.driver.register(R.device_status) & regs.DeviceStatus.DEVICE_IS_RESET
    assert pair.b.driver.register(R.device_status) & regs.DeviceStatus.LINK_STATUS


def test_driver_version_is_read_a_character_at_a_time(pair: Pair) -> None:
    for byte in b"6.6.6-test\n":
        pair.b.client.write(0, R.driver_version.offset, bytes([byte]))
    assert pair.b.nic.driver_version == "6.6.6-test"


@pytest.mark.parametrize("opcode", [0x3, 0x4, 0x11, 0x13, 0x7777])
def test_unknown_commands_are_unimplemented(pair: Pair, opcode: int) -> None:
    assert pair.b.driver.status_of(opcode) == ly.Status.ERROR_UNIMPLEMENTED


def test_commands_need_what_they_need(pair: Pair) -> None:
    driver, s = pair.b.driver, ly.Status
    create = ly.CreateTxQueue(
        queue_page_list_id=ly.RAW_ADDRESSING_QPL_ID, tx_ring_size=64, tx_comp_ring_size=64
    )
    assert driver.status_of(ly.Opcode.CREATE_TX_QUEUE, create) == s.ERROR_FAILED_PRECONDITION
    driver.up()
    create.queue_id = 9
    assert driver.status_of(ly.Opcode.CREATE_TX_QUEUE, create) == s.ERROR_OUT_OF_RANGE
    create.queue_id, create.tx_ring_size = 1, 100
    assert driver.status_of(ly.Opcode.CREATE_TX_QUEUE, create) == s.ERROR_INVALID_ARGUMENT
    create.queue_id = 0
    assert driver.status_of(ly.Opcode.CREATE_TX_QUEUE, create) == s.ERROR_ALREADY_EXISTS
    create.queue_id, create.tx_ring_size, create.queue_page_list_id = 1, 64, 3
    assert driver.status_of(ly.Opcode.CREATE_TX_QUEUE, create) == s.ERROR_INVALID_ARGUMENT
    assert driver.status_of(ly.Opcode.DESTROY_RX_QUEUE, ly.DestroyQueue(3)) == s.ERROR_NOT_FOUND
    driver.down()
    assert driver.status_of(ly.Opcode.DESTROY_RX_QUEUE, ly.DestroyQueue(0)) == s.ERROR_NOT_FOUND


def test_a_command_that_points_nowhere_fails(pair: Pair) -> None:
    status = pair.b.driver.status_of(ly.Opcode.DESCRIBE_DEVICE, ly.DescribeDevice(1 << 40, 1, 4096))
    assert status == ly.Status.ERROR_INVALID_ARGUMENT
    assert pair.b.nic.port.counters["dma_faults"] == 1
    assert "0x10000000000" in pair.b.nic.port.dma_faults[0]


def test_frame_comes_through_and_interrupts(pair: Pair) -> None:
    pair.up()
    frame = frames.tcp(b"hello")
    tag = pair.a.driver.tx[0].send(frame, pieces=3)
    pair.run()
    (packet,) = pair.b.driver.rx[0].received()
    assert packet.frame == frame
    assert (packet.split, packet.checked, packet.l4_bad) == (False, True, False)
    kinds = dict(pair.a.driver.tx[0].completed())
    assert kinds == {d.CompletionType.PKT: tag, d.CompletionType.DESC: pair.a.driver.tx[0].tail}
    assert pair.a.client.fired() == {0}
    assert pair.b.client.fired() == {1}  # transmit blocks come first
    pair.a.driver.tx[0].send(frame)
    pair.run()
    assert pair.b.client.fired() == set()  # masked until asked for again
    pair.b.driver.enable(1)
    assert pair.b.client.fired() == {1}  # what came meanwhile is told at once


@pytest.mark.parametrize("size", [1, 1000, 1446])
def test_headers_are_split(pair: Pair, size: int) -> None:
    pair.up(split=True)
    payload = random.Random(size).randbytes(size)
    pair.a.driver.tx[0].send(frames.tcp(payload))
    pair.a.driver.tx[0].send(frames.tcp(b""))
    pair.a.driver.tx[0].send(frames.udp(payload))
    pair.run()
    one, ack, udp = pair.b.driver.rx[0].received()
    assert (one.header, one.payload) == (frames.tcp(payload)[:TCP_HEADERS], payload)
    assert (ack.header, ack.payload, ack.split) == (frames.tcp(b"")[:TCP_HEADERS], b"", True)
    assert udp.payload == frames.udp(payload)
    assert not udp.split


@pytest.mark.parametrize("rsc", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_segments_arrive_together_or_apart(pair: Pair, rsc: bool, split: bool) -> None:
    pair.up(rsc=rsc, split=split)
    mss, payload = 1448, random.Random(1).randbytes(40_000)
    head = frames.tcp(payload)[:TCP_HEADERS]
    pair.a.driver.tx[0].send(head + payload, mss=mss, header=TCP_HEADERS, csum=True)
    pair.run()
    got = pair.b.driver.rx[0].received()
    skip = 0 if split else TCP_HEADERS
    assert b"".join(one.payload[skip:] for one in got) == payload
    if rsc:
        (one,) = got
        assert one.rsc_seg_len == mss
        assert one.buffers == -(-(len(payload) + skip) // 4096)
    else:
        assert len(got) == -(-len(payload) // mss)
        assert all(one.checked and not one.l4_bad and one.split == split for one in got)
        assert [struct.unpack_from("!I", one.frame, 38)[0] for one in got] == [
            1 + i * mss for i in range(len(got))
        ]


@pytest.mark.parametrize("size", [5, 600, 1401])
@pytest.mark.parametrize("make", [frames.tcp, frames.udp, frames.tcp6, frames.udp6])
def test_a_checksum_left_to_the_nic_is_in_the_packet_that_arrives(pair: Pair, make, size: int) -> None:
    pair.up()
    whole = make(random.Random(size).randbytes(size))
    at = {frames.tcp: 50, frames.udp: 40, frames.tcp6: 70, frames.udp6: 60}[make]
    unfinished = bytearray(whole)
    unfinished[at : at + 2] = b"\x12\x34"  # the pseudo-header's, in a kernel
    pair.a.driver.tx[0].send(bytes(unfinished), csum=True)
    pair.run()
    (got,) = pair.b.driver.rx[0].received()
    assert got.checked
    assert got.frame == whole


def test_checksums_are_verified(pair: Pair) -> None:
    pair.up(split=True)
    frame = bytearray(frames.tcp(b"some payload"))
    frame[-1] ^= 1
    pair.a.driver.tx[0].send(bytes(frame))
    pair.a.driver.tx[0].send(frames.tcp(b"some payload"))
    pair.run()
    assert [one.l4_bad for one in pair.b.driver.rx[0].received()] == [True, False]
    assert pair.b.nic.setup.rx_queues[0].bad_checksum == 1


def _rule(flow: ly.FlowType, port: int, queue: int) -> ly.FlowRule:
    rule = ly.FlowRule(flow, queue)
    rule.key.dst_port, rule.mask.dst_port = port, 0xFFFF
    rule.key.dst_ip[:4] = ip4(frames.OURS).to_bytes(4, "big")
    rule.mask.dst_ip[:4] = b"\xff" * 4
    return rule


def _extended(pair: Pair, op: int, location: int, rule: ly.FlowRule | None = None) -> int:
    ram, body = pair.b.ram, ly.ConfigureFlowRule(op, location=location, rule=rule or ly.FlowRule())
    place = ram.alloc(128)
    ram.write(place, bytes(body))
    return pair.b.driver.status_of(
        ly.Opcode.EXTENDED_COMMAND, ly.ExtendedCommand(ly.Opcode.CONFIGURE_FLOW_RULE, len(bytes(body)), place)
    )


def test_flow_rules_steer_and_can_be_asked_for(pair: Pair) -> None:
    pair.a.driver.up()
    pair.b.driver.up(4)
    op = ly.FlowRuleOp
    assert _extended(pair, op.ADD, 5, _rule(ly.FlowType.TCPV4, 5001, 3)) == ly.Status.PASSED
    assert _extended(pair, op.ADD, 5, _rule(ly.FlowType.TCPV4, 1, 1)) == ly.Status.ERROR_ALREADY_EXISTS
    assert _extended(pair, op.ADD, 6, _rule(ly.FlowType.TCPV4, 1, 9)) == ly.Status.ERROR_OUT_OF_RANGE
    assert _extended(pair, op.ADD, 2, _rule(ly.FlowType.UDPV4, 9, 2)) == ly.Status.PASSED
    pair.a.driver.tx[0].send(frames.tcp(b"x", dport=5001))
    pair.a.driver.tx[0].send(frames.udp(b"x", dport=9))
    pair.run()
    assert [len(rx.received()) for rx in pair.b.driver.rx] == [0, 0, 1, 1]
    place = pair.b.ram.alloc(4096)
    ask = ly.QueryFlowRules(ly.FlowRuleQuery.IDS, available_length=4096, rule_descriptor_addr=place)
    pair.b.driver.command(ly.Opcode.QUERY_FLOW_RULES, ask)
    head = ly.QueryFlowRulesDescriptor.from_buffer_copy(pair.b.ram.read(place, 16))
    assert (head.num_flow_rules, head.num_queried_rules) == (2, 2)
    assert pair.b.ram.read(place + 16, 8) == struct.pack("!II", 2, 5)
    ask.opcode, ask.starting_rule_id = ly.FlowRuleQuery.RULES, 3
    pair.b.driver.command(ly.Opcode.QUERY_FLOW_RULES, ask)
    found = ly.QueriedFlowRule.from_buffer_copy(pair.b.ram.read(place + 16, 88))
    assert (found.location, found.flow_rule.action, found.flow_rule.key.dst_port) == (5, 3, 5001)
    assert _extended(pair, op.DEL, 5) == ly.Status.PASSED
    assert _extended(pair, op.DEL, 5) == ly.Status.ERROR_NOT_FOUND
    assert _extended(pair, op.RESET, 0) == ly.Status.PASSED
    assert not pair.b.nic.setup.steering.rules


def test_rss_spreads_by_the_table(pair: Pair) -> None:
    pair.a.driver.up()
    pair.b.driver.up(4)
    ram, driver = pair.b.ram, pair.b.driver
    key, lut = ram.alloc(HASH_KEY_BYTES), ram.alloc(4 * LUT_ENTRIES)
    ram.write(key, KEY)
    ram.write(lut, b"".join(struct.pack("!I", i % 3) for i in range(LUT_ENTRIES)))  # "equal 3"
    driver.command(
        ly.Opcode.CONFIGURE_RSS, ly.ConfigureRss(0xFF, 1, 0, HASH_KEY_BYTES, LUT_ENTRIES, key, lut)
    )
    for port in range(1, 60):
        pair.a.driver.tx[0].send(frames.tcp(b"x", sport=port))
    pair.run()
    got = [rx.received() for rx in driver.rx]
    counts = [len(one) for one in got]
    assert sum(counts) == 59
    assert min(counts[:3]) > 0
    assert counts[3] == 0
    assert all(one.hash % LUT_ENTRIES % 3 == queue for queue, many in enumerate(got) for one in many)
    place = ram.alloc(1024)
    driver.command(ly.Opcode.QUERY_RSS, ly.QueryRss(1024, place))
    head = ly.QueryRssDescriptor.from_buffer_copy(ram.read(place, 8))
    assert head.total_length == 8 + HASH_KEY_BYTES + 4 * LUT_ENTRIES
    assert ram.read(place + 8, HASH_KEY_BYTES) == KEY
    driver.command(ly.Opcode.CONFIGURE_RSS, ly.ConfigureRss(0xFF, 1, 0, 0, 0, 0, 0))  # leaves both
    assert pair.b.nic.setup.steering.rss_key == KEY


def test_toeplitz_is_the_specification_s(pair: Pair) -> None:
    """The sample of Microsoft's RSS verification suite: its key, TCP over IPv4."""
    key = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
    pair.up()
    place = pair.b.ram.alloc(HASH_KEY_BYTES)
    pair.b.ram.write(place, key)
    pair.b.driver.command(ly.Opcode.CONFIGURE_RSS, ly.ConfigureRss(0xFF, 1, 0, HASH_KEY_BYTES, 0, place, 0))
    src, dst = "66.9.149.187", "161.142.100.80"
    pair.a.driver.tx[0].send(frames.tcp(b"x", src=src, dst=dst, sport=2794, dport=1766))
    pair.run()
    (packet,) = pair.b.driver.rx[0].received()
    assert packet.hash == 0x51CCC178


def test_packet_types_are_those_of_the_map(pair: Pair) -> None:
    pair.up()
    place = pair.b.ram.alloc(2048)
    pair.b.driver.command(ly.Opcode.GET_PTYPE_MAP, ly.GetPtypeMap(2048, place))
    kinds = pair.b.ram.read(place, 2048)
    pair.a.driver.tx[0].send(frames.tcp(b"x"))
    pair.a.driver.tx[0].send(frames.udp(b"x"))
    pair.a.driver.tx[0].send(frames.ethernet(b"\0" * 46, 0x0806))
    pair.run()
    said = [kinds[2 * one.packet_type :][:2] for one in pair.b.driver.rx[0].received()]
    assert said == [bytes((2, 2)), bytes((2, 3)), bytes((1, 0))]


def test_frames_wait_for_buffers_then_drop(pair: Pair) -> None:
    pair.a.driver.up()
    pair.b.driver.up(post=0)
    rx = pair.b.driver.rx[0]
    pair.a.driver.tx[0].send(frames.tcp(b"one"))
    pair.run()
    assert rx.received() == []
    rx.post(1)
    pair.run()
    assert [one.frame for one in rx.received()] == [frames.tcp(b"one")]  # it had waited
    rx._free += list(range(0))
    pair.a.driver.tx[0].send(frames.tcp(b"two"))
    # The test's driver has posted the used buffer again: take it, then nothing is left.
    pair.run()
    rx.received()
    pair.b.nic.setup.rx_queues[0].tail = pair.b.nic.setup.rx_queues[0].head
    pair.a.driver.tx[0].send(frames.tcp(b"three"))
    pair.run()
    pair.now += SEC
    pair.run()
    assert pair.b.nic.setup.rx_queues[0].no_buffers == 1
    assert len(pair.b.nic.port.wire.rx) == 0


def test_too_large_frames_are_dropped(pair: Pair) -> None:
    pair.up()
    pair.a.driver.tx[0].send(frames.tcp(b"x" * 3000))
    pair.run()
    assert pair.b.driver.rx[0].received() == []
    assert pair.b.nic.setup.rx_queues[0].over_mru == 1
    pair.b.driver.command(ly.Opcode.SET_DRIVER_PARAMETER, ly.SetDriverParameter(ly.SET_PARAM_MTU, 0, 9000))
    pair.a.driver.tx[0].send(frames.tcp(b"x" * 3000))
    pair.run()
    assert len(pair.b.driver.rx[0].received()) == 1
    wrong = ly.SetDriverParameter(ly.SET_PARAM_MTU, 0, 9001)
    assert pair.b.driver.status_of(ly.Opcode.SET_DRIVER_PARAMETER, wrong) == ly.Status.ERROR_OUT_OF_RANGE


def test_many_laps_of_every_ring(pair: Pair) -> None:
    pair.up(split=True, size=64)
    rng = random.Random(3)
    for _ in range(200):
        sent = [rng.randbytes(rng.randrange(1, 1400)) for _ in range(rng.randrange(1, 9))]
        for payload in sent:
            pair.a.driver.tx[0].send(frames.tcp(payload))
        pair.run()
        assert [one.payload for one in pair.b.driver.rx[0].received()] == sent
        assert len(pair.a.driver.tx[0].completed()) == 2 * len(sent)
        pair.a.ram._next = min(pair.a.ram._next, 8 << 20)


def test_statistics_report(pair: Pair) -> None:
    pair.up()
    size = ly.REPORT_HEAD + 16 * 8
    place = pair.b.ram.alloc(size)
    pair.b.driver.command(ly.Opcode.REPORT_STATS, ly.ReportStats(size, place, 20_000))
    pair.a.driver.tx[0].send(frames.tcp(b"x" * 3000))
    pair.run()
    pair.now += 2 * SEC
    pair.run()
    raw = pair.b.ram.read(place, size)
    stats = [ly.Stat.from_buffer_copy(raw, size - 16 * (4 - i)) for i in range(4)]  # the NIC's are the last
    values = {int(one.stat_name): int(one.value) for one in stats}
    assert values[ly.StatName.RX_DROPS_PACKET_OVER_MRU] == 1
    pair.b.driver.command(ly.Opcode.REPORT_STATS, ly.ReportStats(0, 0, 0))
    assert pair.b.nic.setup.stats_report is None


def test_link_and_reset_are_told(pair: Pair) -> None:
    pair.up()
    management = pair.b.driver.blocks
    pair.b.client.fired()
    pair.b.nic.set_link(False)
    assert pair.b.client.fired() == {management}
    assert not pair.b.driver.register(R.device_status) & regs.DeviceStatus.LINK_STATUS
    pair.a.driver.tx[0].send(frames.tcp(b"x"))
    pair.run()
    assert pair.b.driver.rx[0].received() == []
    pair.b.nic.set_link(True)
    pair.b.client.fired()
    pair.b.nic.request_reset()
    assert pair.b.client.fired() == {management}
    assert pair.b.driver.register(R.device_status) & regs.DeviceStatus.RESET
    pair.b.driver._set(R.driver_status, int(regs.DriverStatus.RESET).to_bytes(4, "big"))
    assert pair.b.driver.register(R.device_status) & regs.DeviceStatus.DEVICE_IS_RESET
    assert not pair.b.nic.setup.rx_queues
    again = GveDriver(pair.b.client, pair.b.ram).up()
    pair.a.driver.tx[0].send(frames.tcp(b"y"))
    pair.run()
    assert [one.frame for one in again.rx[0].received()] == [frames.tcp(b"y")]


def test_link_speed_and_driver_information(pair: Pair) -> None:
    place = pair.b.ram.alloc(512)
    pair.b.driver.command(ly.Opcode.REPORT_LINK_SPEED, ly.ReportLinkSpeed(place))
    assert int.from_bytes(pair.b.ram.read(place, 8), "big") == 100_000_000_000
    info = ly.DriverInfo(os_type=1)
    pair.b.ram.write(place, bytes(info))
    ask = ly.VerifyDriverCompatibility(304, place)
    refused = pair.b.driver.status_of(ly.Opcode.VERIFY_DRIVER_COMPATIBILITY, ask)
    assert refused == ly.Status.ERROR_FAILED_PRECONDITION
    info.driver_capability_flags[0] = ly.CAPABILITY_DQO_RDA
    pair.b.ram.write(place, bytes(info))
    pair.b.driver.command(ly.Opcode.VERIFY_DRIVER_COMPATIBILITY, ask)


# -- faults -----------------------------------------------------------------------------------


def test_fault_completions_lost_and_late() -> None:
    faults = GveFaults()
    pair = Pair(far=GveConfig(faults=faults))
    try:
        pair.up()
        faults.set("completion_loss", 1)
        pair.a.driver.tx[0].send(frames.tcp(b"x"))
        pair.run()
        assert pair.a.driver.tx[0].completed() == []
        assert len(pair.b.driver.rx[0].received()) == 1
        faults.set("completion_loss", 0)
        faults.set("completion_late", 1)
        tag = pair.a.driver.tx[0].send(frames.tcp(b"x"))
        pair.run()
        assert pair.a.driver.tx[0].completed() == []
        assert pair.a.nic.timer(pair.now) == pair.now + 50 * MS
        pair.now += 51 * MS
        pair.run()
        assert (d.CompletionType.PKT, tag) in pair.a.driver.tx[0].completed()
    finally:
        pair.close()


def test_fault_unsplit_overflow_and_no_buffers() -> None:
    faults = GveFaults()
    pair = of_faults(faults)
    try:
        pair.up(split=True)
        faults.set("unsplit", 1)
        pair.a.driver.tx[0].send(frames.tcp(b"x"))
        pair.run()
        (one,) = pair.b.driver.rx[0].received()
        assert not one.split
        assert one.frame == frames.tcp(b"x")
        faults.set("unsplit", 0)
        faults.set("overflow", 1)
        pair.a.driver.tx[0].send(frames.tcp(b"x"))
        pair.run()
        (one,) = pair.b.driver.rx[0].received()
        assert one.overflow
        faults.set("overflow", 0)
        faults.set("no_buffers", 1)
        pair.a.driver.tx[0].send(frames.tcp(b"x"))
        pair.run()
        assert pair.b.driver.rx[0].received() == []
        assert pair.b.nic.statistics()["rx_no_buffers"] == 1
        assert pair.b.nic.statistics()["fault_no_buffers"] == 1
    finally:
        pair.close()


def test_fault_a_queue_stops_in_a_packet() -> None:
    faults = GveFaults()
    pair = of_faults(faults)
    try:
        pair.up(rsc=True, split=True)
        frame = frames.tcp(b"x" * 9000)
        faults.set("torn", 1)
        pair.a.driver.tx[0].send(frames.tcp(b"x"))  # of one buffer: nothing to be seen in part
        pair.a.driver.tx[0].send(frame, mss=1448, header=54, csum=True)
        pair.run()
        ring = pair.b.driver.rx[0]
        assert [one.frame for one in ring.received(torn=True)] == [frames.tcp(b"x")]
        assert ring.torn is not None
        assert (ring.torn.buffers, ring.torn.payload) == (1, b"x" * 4096)
        faults.set("torn", 0)
        pair.a.driver.tx[0].send(frames.tcp(b"y"))
        pair.run()
        assert ring.received(torn=True) == []
        assert pair.b.nic.statistics()["rx_dropped"] == 1
        assert pair.b.nic.statistics()["fault_torn"] == 1
        pair.b.driver.down()
        pair.b.driver.up(rsc=True, split=True)
        pair.a.driver.tx[0].send(frame, mss=1448, header=54, csum=True)
        pair.run()
        (one,) = pair.b.driver.rx[0].received()
        assert one.payload == b"x" * 9000
    finally:
        pair.close()


def test_fault_a_command_fails_once() -> None:
    faults = GveFaults()
    pair = of_faults(faults)
    try:
        pair.b.driver.configure(1)
        faults.fail("report_link_speed", "ERROR_INTERNAL_ERROR")
        ask = ly.ReportLinkSpeed(pair.b.ram.alloc(8))
        status = pair.b.driver.status_of(ly.Opcode.REPORT_LINK_SPEED, ask)
        assert status == ly.Status.ERROR_INTERNAL_ERROR
        pair.b.driver.command(ly.Opcode.REPORT_LINK_SPEED, ask)
        for name, value in (("colour", 1.0), ("overflow", 2.0)):
            with pytest.raises(NetmemError) as caught:
                faults.set(name, value)
            assert caught.value.errno == errno.EINVAL
        with pytest.raises(NetmemError):
            faults.fail("make_coffee")
    finally:
        pair.close()


# -- a driver that is broken, or means ill ----------------------------------------------------


def test_buffers_that_point_nowhere_are_errors_of_that_packet(pair: Pair) -> None:
    pair.a.driver.up()
    pair.b.driver.up(post=0)
    rx = pair.b.driver.rx[0]
    rx._places[0] = (1 << 40, 1 << 40)
    place = d.RxBuffer(buf_id=0, buf_addr=1 << 40, header_buf_addr=1 << 40)
    pair.b.ram.write(rx.ring, bytes(place))
    pair.b.driver.ring_doorbell(rx.doorbell, 1)
    pair.a.driver.tx[0].send(frames.tcp(b"x"))
    pair.run()
    raw = pair.b.ram.read(rx.completions, 32)
    assert d.RxCompletion.from_buffer_copy(raw).rx_error
    assert pair.b.nic.port.counters["dma_faults"] == 1


@pytest.mark.parametrize(("mss", "header"), [(1, 54), (87, 54), (9729, 54), (1448, 255)])
def test_segment_sizes_that_no_driver_asks_for_are_refused(pair: Pair, mss: int, header: int) -> None:
    pair.up()
    frame = frames.tcp(b"x" * 150)
    pair.a.driver.tx[0].send(frame, mss=mss, header=min(header, 255) if header < 255 else 255)
    pair.run()
    assert pair.b.driver.rx[0].received() == []
    assert pair.a.nic.port.counters["tx_bad_descriptor"] == 1
    assert len(pair.a.driver.tx[0].completed()) == 2  # the driver gets its buffers back


def test_a_bad_wire_carries_the_shortest_frames_and_holds_back_so_many(pair: Pair) -> None:
    wire = FaultyWire(pair.a.nic.port.wire, 1, damage=1.0)
    pair.a.nic.port.wire = wire
    pair.up()
    pair.a.driver.tx[0].send(b"\xff" * 14)
    pair.run()
    # Nobody takes anything from here on.
    for _ in range(600):
        pair.a.driver.tx[0].send(frames.tcp(b"x" * 60_000)[:60_000], mss=1448, header=TCP_HEADERS)
        pair.a.nic.step(pair.now)
        pair.a.driver.tx[0].completed()
        pair.a.ram._next = min(pair.a.ram._next, 8 << 20)
    assert max(len(way.waiting) for way in wire._ways) < 2 * WAITING


def test_a_queue_without_buffers_holds_nobody_up_for_long(pair: Pair) -> None:
    pair.a.driver.up()
    pair.b.driver.up(2, post=0)
    pair.b.driver.rx[1].post(100)
    assert _extended(pair, ly.FlowRuleOp.ADD, 1, _rule(ly.FlowType.TCPV4, 1, 0)) == ly.Status.PASSED
    assert _extended(pair, ly.FlowRuleOp.ADD, 2, _rule(ly.FlowType.TCPV4, 2, 1)) == ly.Status.PASSED
    for _ in range(20):
        pair.a.driver.tx[0].send(frames.tcp(b"nobody waits", dport=1))
        pair.a.driver.tx[0].send(frames.tcp(b"for this", dport=2))
    pair.run()
    pair.now += 60 * MS  # the first waits in vain, the others no more
    pair.run()
    assert len(pair.b.driver.rx[1].received()) == 20
    assert pair.b.nic.setup.rx_queues[0].no_buffers == 20
    pair.b.driver.rx[0].post(5)
    pair.a.driver.tx[0].send(frames.tcp(b"now", dport=1))
    pair.run()
    assert len(pair.b.driver.rx[0].received()) == 1


def test_a_refused_flow_rule(pair: Pair) -> None:
    pair.b.driver.up(2)
    pair.b.nic.port.faults.fail("CONFIGURE_FLOW_RULE", "ERROR_RESOURCE_EXHAUSTED")
    rule = _rule(ly.FlowType.TCPV4, 1, 0)
    assert _extended(pair, ly.FlowRuleOp.ADD, 1, rule) == ly.Status.ERROR_RESOURCE_EXHAUSTED
    assert _extended(pair, ly.FlowRuleOp.ADD, 1, rule) == ly.Status.PASSED


@pytest.mark.skipif(not COMPILED, reason="it is about the compiler")
def test_nothing_is_compiled_while_a_machine_waits() -> None:
    """A model's process has compiled all before it is attached: QEMU waits for answers for five seconds."""
    code = """
from netmem.hw import faults, wrap
from netmem.hw.gve import steering
from netmem.lab.selftest import compile_frames
compile_frames()
kernels = [faults.look_at, faults.frame_render, steering.look_at, steering.toeplitz_table]
before = [list(one.signatures) for one in kernels]
assert all(before)
import test_gve
pair = test_gve.Pair()
pair.a.nic.port.wire = wrap.FaultyWire(pair.a.nic.port.wire, 1, duplicate=0.5)
pair.up(rsc=False, split=True)
frame = test_gve.frames.tcp(b"x" * 9000)
pair.a.driver.tx[0].send(frame, mss=1448, header=54, csum=True)
pair.a.driver.tx[0].send(test_gve.frames.udp(b"x"))
pair.run()
assert pair.b.driver.rx[0].received()
pair.close()
assert [list(one.signatures) for one in kernels] == before
"""
    folder = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def test_random_rings_commands_and_registers_do_no_harm(pair: Pair) -> None:
    """Whatever a guest writes, the model lives and touches nothing that is not mapped."""
    rng = random.Random(7)
    pair.up(queues=2, split=True)
    b = pair.b
    for _ in range(3000):
        kind = rng.randrange(5)
        if kind == 0:
            opcode = rng.choice([*ly.Opcode, rng.randrange(1 << 32)])
            if opcode == ly.Opcode.DECONFIGURE_DEVICE_RESOURCES and rng.random() < 0.9:
                continue
            b.driver.status_of(opcode, rng.randbytes(56) if rng.random() < 0.5 else bytes(56))
        elif kind == 1:
            place = rng.choice([b.driver.tx[0].ring, b.driver.rx[0].ring, b.driver.tx[1].ring])
            b.ram.write(place + 16 * rng.randrange(64), rng.randbytes(32))
        elif kind == 2:
            b.client.post(2, 4 * rng.choice([0, 1, 2, 1024, 1025, 2048, 2049, rng.randrange(4096)]),
                          rng.randrange(256).to_bytes(4, "little"))  # fmt: skip
        elif kind == 3:
            offset = rng.choice([0, 8, 12, 0x18, 0x1F, 0x30, rng.randrange(4000)])
            b.client.post(0, offset, rng.randbytes(rng.choice([1, 2, 4, 8])))
        else:
            pair.a.driver.tx[0].send(frames.tcp(rng.randbytes(rng.randrange(1400))))
            pair.a.ram._next = min(pair.a.ram._next, 8 << 20)
        pair.now += MS
        pair.run()
    b.driver._set(R.driver_status, int(regs.DriverStatus.RESET).to_bytes(4, "big"))
    again = GveDriver(b.client, b.ram).up()
    pair.run()
    again.rx[0].received()
    pair.a.driver.tx[0].send(frames.tcp(b"still here"))
    pair.run()
    assert [one.frame for one in again.rx[0].received()] == [frames.tcp(b"still here")]
