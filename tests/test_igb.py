"""The 82576 and QEMU alone: finding it, registers, slots for memory, interrupts, link, filters, long runs."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import select
import signal
import struct
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_provider, need_qemu, offer, payload, scaled, take
from netmem.base.address import ip4
from netmem.base.errors import DeviceGoneError, MissingError, NetmemError
from netmem.base.ethtool import SteeringRule, TcpDataSplit
from netmem.base.memfd import memfd
from netmem.drivers.igb import IgbDriver
from netmem.drivers.igb import regs as r
from netmem.hw.pci import PCI_CAP_ID_EXP, PCI_CAP_ID_MSIX, PciFunction
from netmem.hw.qemu import machine
from netmem.hw.qemu.bus import QemuBus
from netmem.hw.qemu.find import find_qemu, how_to_install
from netmem.hw.registers import Register, RegisterFile
from netmem.lab.device import open_device
from netmem.lab.observe import observe
from netmem.lab.qemu import QemuHost, bar_memory, start_stream
from netmem.netdev.device import NetDevice
from netmem.testing import frames
from test_nic import harvest
from test_process import client


def program(path, version, devices=""):
    """A stand-in for QEMU that knows two questions."""
    path.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "QEMU emulator version {version}"\necho \'{devices}\'\n'
    )
    path.chmod(0o755)
    return str(path)


# -- finding QEMU ---------------------------------------------------------------------------------


def test_a_qemu_that_is_missing_old_or_bare_is_named_with_the_cure(tmp_path, monkeypatch):
    cases = (
        (program(tmp_path / "old", "7.2.5"), "7.2; its 82576 splits headers from 8.2 on"),
        (
            program(tmp_path / "bare", "9.0.0", '"ivshmem-plain" "pcie-root-port"'),
            "without igb, ivshmem-doorbell",
        ),
    )
    for path, text in cases:
        with pytest.raises(MissingError, match=text) as error:
            find_qemu(path)
        assert how_to_install() in str(error.value)
    (tmp_path / "other").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "other").chmod(0o755)
    for path in ("/no/such/qemu", str(tmp_path), str(tmp_path / "other")):
        with pytest.raises(NetmemError) as error:
            find_qemu(path)
        assert error.value.errno == errno.EINVAL
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(MissingError, match="is not installed"):
        find_qemu()


@pytest.mark.parametrize(
    ("system", "text"),
    [
        ({"ID": "debian", "VERSION_ID": "12"}, "bookworm-backports"),
        ({"ID": "ubuntu", "ID_LIKE": "debian"}, "apt install qemu-system-x86"),
        ({"ID": "fedora"}, "dnf install"),
        ({"ID": "arch"}, "QEMU 8.2"),
    ],
)
def test_the_cure_depends_on_the_distribution(monkeypatch, system, text):
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: system)
    assert text in how_to_install()


def test_a_qemu_that_does_not_start_leaves_nothing(tmp_path):
    need_qemu()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DeviceGoneError, match="exited with"):
        QemuBus(find_qemu(), "no-such-nic", "user")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


# -- registers as data ----------------------------------------------------------------------------


class FakeRegisters:
    """Registers that are plain memory (or, with ``dead``, read as 0)."""

    def __init__(self):
        self.words: dict[int, int] = {}

    def read32(self, offset):
        return self.words.get(offset, 0)

    def write32(self, offset, value):
        self.words[offset] = value


@given(
    st.dictionaries(st.sampled_from(["LOW", "MID", "TOP"]), st.integers(0, 255)), st.integers(0, 2**32 - 1)
)
def test_fields_are_encoded_where_they_decode(fields, start):
    register = Register(0, {"LOW": (0, 8), "MID": (9, 10), "TOP": (24, 8)})
    value = register.encode(start, **fields)
    assert register.decode(value) == {**register.decode(start), **fields}
    assert (value ^ start) & (1 << 8 | 0x1F << 19) == 0  # bits between the fields stay


def test_the_table_reads_writes_modifies_and_dumps():
    io = FakeRegisters()
    file = RegisterFile(io, r.REGISTERS)
    file.write("SRRCTL", n=3, BSIZEPACKET=4, BSIZEHEADER=4, DESCTYPE=5, DROP_EN=1)
    assert io.words == {0xC00C + 3 * 0x40: 0x8A000404}
    file.modify("SRRCTL", n=3, DESCTYPE=1)
    assert file.get("SRRCTL", "DESCTYPE", 3) == 1
    assert file.dump()["SRRCTL[3]"] == 0x82000404
    assert "GPRC" not in file.dump()  # reading it would clear it
    with pytest.raises(ValueError, match="does not fit"):
        file.write("SRRCTL", BSIZEHEADER=64)
    with pytest.raises(IndexError):
        file.read("RDT", 16)
    places = [file.offset(name, n) for name, register in r.REGISTERS.items() for n in range(register.count)]
    assert len(places) == len(set(places))  # no two registers overlap


class FakeBus(FakeRegisters):
    """A bus with a device that has all registers, for what QEMU's 82576 lacks."""

    device_id = (0x8086, 0x10C9)
    irq_fd = -1

    def replug(self):
        pass

    def wait(self, ready, what, timeout_ns):
        self.words[0] = 0  # the reset ends

    def close(self):
        pass


def test_five_tuple_filters_are_programmed_as_the_data_sheet_has_it():
    """Sections 7.1.2.5 and 8.11; no machine here has a real 82576, and QEMU's has no filters."""
    bus = FakeBus()
    driver = IgbDriver(bus)
    rule = SteeringRule(queue=5, src_ip=ip4("10.1.2.3"), dst_port=5001, proto=6)
    driver.set_rules([rule, SteeringRule(queue=1, src_port=80, proto=17)])
    assert struct.pack("<I", bus.words[0x5980]) == bytes([10, 1, 2, 3])
    assert bus.words[0x59E0] == 6 | 1 << 8 | 1 << 15 | 5 << 16 | 0b1100 << 28
    assert struct.pack("<H", bus.words[0x5A80]) == struct.pack(">H", 5001)
    assert bus.words[0x59E4] == 17 | 1 << 8 | 1 << 15 | 1 << 16 | 0b0110 << 28
    assert bus.words[0x5A84] == 1 << 17  # any destination port
    driver.set_rules([rule])
    assert bus.words[0x59E4] == 0
    with pytest.raises(NetmemError) as error:
        driver.set_rules([rule] * 9)
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(NetmemError) as error:
        driver.set_rules([SteeringRule(queue=8)])
    assert error.value.errno == errno.EINVAL


# -- the machine ----------------------------------------------------------------------------------


@pytest.fixture
def bus():
    """A machine with an 82576 that nobody drives yet."""
    need_qemu()
    made, cable = start_stream(None, 15, bounce=False)
    yield made
    made.close()
    cable.close()


def test_the_nic_is_a_pci_function_with_capabilities(bus):
    assert bus.device_id in IgbDriver.device_ids
    found = dict(bus.config.capabilities())
    assert {PCI_CAP_ID_EXP, PCI_CAP_ID_MSIX} <= set(found)
    assert bus.config.bar_size(0) == 128 << 10
    with pytest.raises(NetmemError):
        bus.config.capability(0x7F)
    with pytest.raises(NetmemError):
        bus.config.assign_bar(0, 0xE000_0100)
    bus.device_id = (0x8086, 0x100E)
    with pytest.raises(NetmemError, match="no 82576") as error:
        IgbDriver(bus)
    assert error.value.errno == errno.ENODEV


@pytest.mark.parametrize("size", [4096, 1 << 20, 48 << 20, (2 << 20) + (1 << 20)])
def test_mapped_memory_is_reached_and_unmapped_memory_is_not(bus, size):
    fd = memfd("test", size + 8192)
    qtest, last = bus.machine.qtest, size - 4
    for value in (1, 2, 3):  # slots and addresses are used again
        io = bus.dma_map(fd, 4096, size, 2)
        qtest.writel(io + last, value)
        assert os.pread(fd, 4, 4096 + last) == value.to_bytes(4, "little")
        assert qtest.readl(io + last) == value
        bus.dma_unmap(io)
        qtest.writel(io + last, 99)
        assert os.pread(fd, 4, 4096 + last) == value.to_bytes(4, "little")
    os.close(fd)


def test_the_machine_says_when_memory_does_not_fit(bus):
    fd = memfd("test", 16 << 20)
    with pytest.raises(NetmemError, match="power of two") as error:
        bus.dma_map(fd, 0, (1 << 20) + 4096, 2)
    assert error.value.errno == errno.EINVAL
    with pytest.raises(NetmemError, match="power of two") as error:
        bus.add_memory_device(fd, 3 << 20)
    assert error.value.errno == errno.EINVAL
    with pytest.raises(NetmemError, match="QEMU refused"):
        bus.dma_map(fd, 0, 32 << 20, 2)  # more than there is
    mapped = [bus.dma_map(fd, 0, 4096, 2) for _ in range(machine.PORTS)]
    with pytest.raises(NetmemError) as error:
        bus.dma_map(fd, 0, 4096, 2)
    assert error.value.errno == errno.ENOSPC
    for io in mapped:
        bus.dma_unmap(io)
    bus.dma_unmap(bus.dma_map(fd, 0, 4096, 2))
    os.close(fd)


def test_a_machine_that_dies_answers_with_how(bus):
    bus.unplug()
    assert not bus.is_alive()
    with pytest.raises(DeviceGoneError, match="SIGKILL"):
        bus.read32(8)
    bus.post32(8, 1)  # a doorbell rings nowhere
    assert select.select(bus.filenos(), [], [], 0)[0]


def test_memory_of_another_device_is_a_function_of_its_own(bus):
    provider = bar_memory(bus, 2 << 20)
    function = bus.machine.function_at(provider.address)
    assert function.device_id == (0x1AF4, 0x1110)
    assert function.bar_size(2) == 2 << 20
    bus.machine.qtest.writel(provider.address, 7)
    assert provider.map()[0] == 7
    provider.close()
    assert not bus.machine._slots


def test_a_provider_closed_while_bound_keeps_its_memory(network):
    """Nobody else gets the address that the rings still name."""
    need_qemu()
    net = network(nic="igb")
    provider = make_provider("bar", net)
    net.bind(provider)
    ours, theirs, _ = net.connect()
    view = provider.map()
    provider.close()
    other = make_provider("bar", net)
    assert other.address != provider.address
    theirs.send(payload(10_000))
    net.until(lambda: ours.queued() == 10_000)
    frags = ours.recvmsg_devmem().frags
    got = b"".join(view[int(f["frag_offset"]) :][: int(f["frag_size"])].tobytes() for f in frags)
    assert got == payload(10_000)[: len(got)]
    assert not other.map().any()
    ours.devmem_dontneed(frags["frag_token"])
    ours.close()
    net.binding.close()
    net.run(2)
    net.ours.dev.reap(net.clock.now())
    assert provider.address not in net.ours.bus.machine._slots
    other.close()
    net.provider = None


def test_a_qemu_that_hangs_is_given_up(bus, monkeypatch):
    monkeypatch.setattr("netmem.hw.qemu.qtest.TIMEOUT_S", 0.2)
    os.kill(bus.machine.process.pid, signal.SIGSTOP)
    start = time.monotonic()
    bus.post32(8, 1)  # a doorbell waits for nobody
    assert time.monotonic() - start < 0.1
    with pytest.raises(DeviceGoneError, match="did not answer to 'readl"):
        bus.read32(8)
    assert not bus.is_alive()
    with pytest.raises(DeviceGoneError):
        bus.read32(8)


def test_configuration_space_is_one_access_at_a_time(bus):
    functions = (bus.config, PciFunction(bus.machine.qtest, 0, machine.DOORBELL_SLOT))
    wanted, wrong = [f.device_id for f in functions], []

    def read(i):
        for _ in range(scaled(2000)):
            if functions[i].device_id != wanted[i]:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


def test_refused_memory_costs_no_slot_and_no_address(bus):
    fd = memfd("test", 4096)
    before = bus.dma_map(fd, 0, 4096, 2)
    for _ in range(3):
        with pytest.raises(NetmemError, match="QEMU refused"):
            bus.dma_map(fd, 0, 1 << 30, 2)
    assert len(bus.machine._ports) == machine.PORTS - 1
    assert bus.dma_map(fd, 0, 4096, 2) - before < 4 << 30
    os.close(fd)


@pytest.mark.parametrize(
    "step", ["_start_link", "_start_interrupts", "_start_transmit", "queue_start", "set_rxfh"]
)
def test_a_death_while_opening_leaves_nothing(monkeypatch, step):
    need_qemu()
    real = getattr(IgbDriver, step)

    def die(self, *args):
        self.bus.unplug()
        return real(self, *args)

    monkeypatch.setattr(IgbDriver, step, die)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DeviceGoneError):
        QemuHost("10.0.2.15")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert observe(os.getpid()) == []


def test_a_death_between_two_queues_lives(network, monkeypatch):
    need_qemu()
    net = network(nic="igb")
    real = IgbDriver.queue_stop

    def die(self, queue):
        mem = real(self, queue)
        self.bus.unplug()
        return mem

    net.ours.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
    monkeypatch.setattr(IgbDriver, "queue_stop", die)
    with pytest.raises(DeviceGoneError):
        net.ours.dev.bind_rx([1], make_provider("dmabuf"))
    monkeypatch.undo()
    assert net.ours.dev.rx_queues[1].mem is None


# -- the driver -----------------------------------------------------------------------------------


@pytest.fixture
def host():
    """A host with an 82576."""
    need_qemu()
    made = QemuHost("10.0.2.15", rx_queues=2)
    yield made
    made.close()


def test_an_interrupt_tells_of_a_packet_and_is_moderated(host):
    irq = host.driver.irq_fd()
    host.driver.irq_ack()
    frame = frames.arp()
    for _ in range(200):
        host.cable.sendall(struct.pack("!I", len(frame)) + frame)
    assert select.select([irq], [], [], 5)[0]
    host.settle(0)
    told = os.eventfd_read(irq)
    assert 1 <= told < 200
    host.driver.irq_ack()  # nothing to acknowledge is no error


def test_the_link_comes_up_by_negotiation_too(bus):
    driver = IgbDriver(bus, autoneg=True)
    dev = NetDevice(driver, mtu=1500)
    dev.open()
    assert not driver.link_up()
    bus.wait(driver.link_up, "its link", 5_000_000_000)
    dev.stop()


def test_a_device_that_was_stopped_has_a_link_again(network, nic):
    net = network(nic=nic)
    net.ours.dev.stop()
    net.ours.dev.open()
    assert net.ours.driver.link_up()
    net.bind(None)
    ours, theirs, _ = net.connect()
    theirs.send(payload(5000))
    net.until(lambda: ours.queued() == 5000)
    assert ours.recv(5000) == payload(5000)


def test_headers_longer_than_their_buffer_are_a_miss(network):
    """IPv6 options push the TCP header beyond 256 bytes: nothing beyond the buffer is looked at."""
    need_qemu()
    net = network(nic="igb", alone=True, rx_queues=1)
    net.ours.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
    options = bytes([6, 25 - 1, 1, 196]) + bytes(196)  # next header TCP, 200 bytes, PadN
    net.wire.inject(
        frames.ethernet(frames.ipv6(options + frames.tcp_segment(payload(500)), proto=60), 0x86DD)
    )
    net.settle()
    ((header, packet, status),) = harvest(net, 0)
    assert (header, packet, status & 1) == (256, 18 + 500, 0)
    stats = net.ours.driver.get_queue_stats(0)
    assert (stats["hds_hit"], stats["hds_miss"]) == (0, 1)


def test_statistics_registers_add_up(host):
    frame = frames.arp()
    host.cable.sendall((struct.pack("!I", len(frame)) + frame) * 3)
    host.settle(0)
    for _ in range(2):  # reading clears the device's, not ours
        stats = host.driver.get_ethtool_stats()
        assert (stats["rx_frames"], stats["rx_total"]) == (3, 3)
    host.dev.stop()
    host.dev.open()
    assert host.driver.get_ethtool_stats()["rx_frames"] == 3


def test_counters_of_a_queue_survive_its_restart(network):
    need_qemu()
    for nic in ("igb", "softnic"):
        net = network(nic=nic, alone=True, rx_queues=1)
        for _ in range(2):
            net.wire.inject(frames.arp())
            net.settle()
            net.ours.stack.poll(net.clock.now())
            net.ours.dev.queues.restart(net.ours.dev.rx_queues[0])
        assert net.ours.driver.get_queue_stats(0)["rx_packets"] == 2


def test_sixteen_queues(network):
    need_qemu()
    net = network(nic="igb", alone=True, rx_queues=16)
    for port in range(300):
        net.wire.inject(frames.tcp(sport=1000 + port))
    net.settle()
    net.run(1)
    stats = [net.ours.driver.get_queue_stats(q)["rx_packets"] for q in range(16)]
    assert sum(stats) == 300
    assert min(stats) > 0
    assert net.ours.driver.get_queue_stats(15)["hds_hit"] == 0


def test_settings_that_an_82576_cannot_have(host):
    ethtool = host.dev.ethtool
    for name, value in (("rx_buf_len", 3000), ("rx_buf_len", 32768), ("rx_pending", 100), ("rx_pending", 16)):
        with pytest.raises(NetmemError) as error:
            ethtool.set_ringparam(**{name: value})
        assert error.value.errno == errno.EINVAL
    ethtool.set_ringparam(rx_buf_len=2048, rx_pending=64)


def test_large_netmems_are_cut_into_buffers(network):
    need_qemu()
    net = network(nic="igb")
    provider = make_provider("dmabuf", size=8 << 20, rx_page_size=65536)
    net.bind(provider)
    ours, theirs, _ = net.connect()
    data, got = payload(100_000), b""
    left = memoryview(data)
    while len(got) < len(data):
        left = offer(theirs, left)
        net.run(1)
        got += take(ours, provider)
    assert got == data


@pytest.mark.parametrize("pending", [32, 256])
def test_a_long_run_through_a_short_ring_never_stalls_and_loses_nothing(pending):
    """The device writes a descriptor's status twice; a slot filled anew in between would be lost."""
    need_qemu()
    data = payload(scaled(20_000_000))
    with open_device("igb", queues=1) as device, make_provider("dmabuf") as provider:
        device.ethtool.set_ringparam(rx_pending=pending, tcp_data_split=TcpDataSplit.ENABLED)
        device.bind_rx([0], provider)
        listener = device.listen(5001)
        port = device.forward("127.0.0.1", 0, 5001)
        thread = client(port, data)
        sock, got = listener.accept(30), hashlib.sha256()
        view = provider.map()
        while (message := sock.recvmsg_devmem(timeout=30)).size:
            got.update(message.linear)
            for frag in message.frags:
                start = int(frag["frag_offset"])
                got.update(view[start : start + int(frag["frag_size"])])
            sock.devmem_dontneed(message.frags["frag_token"])
        sock.close()
        thread.join(30)
        assert got.digest() == hashlib.sha256(data).digest()
        assert device.dev.driver.get_queue_stats(0)["rx_packets"] >= len(data) // 1460
