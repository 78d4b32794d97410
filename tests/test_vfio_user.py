"""vfio-user's server: messages, the DMA table, and whatever a hostile client sends."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netmem.base.errors import NetmemError
from netmem.base.memfd import memfd
from netmem.hw import pci
from netmem.hw.vfio_user import DmaFault, DmaTable, Function
from netmem.hw.vfio_user import protocol as p
from netmem.testing.vfio_user import Client, Ram

PAGE = 4096


class Toy:
    """A device with one BAR of memory that echoes, and two vectors."""

    vendor, device, revision, class_code = 0x1234, 0x5678, 3, 0x020000

    def __init__(self) -> None:
        self.bars, self.vectors = {0: PAGE}, 2
        self.memory = bytearray(PAGE)
        self.resets = 0

    def attach(self, dma: DmaTable, signal: object) -> None:
        self.dma, self.signal = dma, signal

    def read(self, bar: int, offset: int, size: int) -> bytes:
        return bytes(self.memory[offset : offset + size])

    def write(self, bar: int, offset: int, data: bytes) -> None:
        self.memory[offset : offset + len(data)] = data

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def client(toy: Toy) -> Iterator[Client]:
    made = Client(Function(toy))
    yield made
    made.close()


def refused(call: object, *args: object) -> int:
    with pytest.raises(OSError, match=r".") as caught:
        call(*args)  # type: ignore[operator]
    return caught.value.errno or 0


def test_version_comes_first(client: Client) -> None:
    assert refused(client.device_info) == errno.EINVAL
    assert refused(client.version, 7) == errno.EINVAL
    assert client.version()["capabilities"]["max_msg_fds"] == p.MAX_FDS
    info = client.device_info()
    assert (info.num_regions, info.num_irqs) == (9, 5)
    assert info.flags == p.DEVICE_PCI | p.DEVICE_RESET


@pytest.mark.parametrize("text", [b"{", b"[" * 100_000, b"\xff\xfe", b'"x"', b"3"])
def test_capabilities_that_are_none(client: Client, text: bytes) -> None:
    body = bytes(p.Version(0, 0)) + text + b"\0"
    assert refused(client.call, p.Command.VERSION, body) == errno.EINVAL


def test_regions_and_configuration_space(client: Client, toy: Toy) -> None:
    client.version()
    sizes = [client.region_info(i).size for i in range(9)]
    assert sizes == [PAGE, PAGE, 0, 0, 0, 0, 0, 256, 0]
    assert refused(client.region_info, 9) == errno.EINVAL
    config = client.read(7, 0, 256)
    assert struct.unpack_from("<HH", config) == (0x1234, 0x5678)
    assert struct.unpack_from("<I", config, 8)[0] == 0x02000003
    cap = config[pci.PCI_CAPABILITY_LIST]
    assert (config[cap], struct.unpack_from("<H", config, cap + 2)[0]) == (pci.PCI_CAP_ID_MSIX, 1)
    client.write(7, 0, b"\xff" * 4)  # read-only
    client.write(7, 0x10, b"\xff" * 4)  # how a BAR's size is found
    config = client.read(7, 0, 64)
    assert struct.unpack_from("<HH", config) == (0x1234, 0x5678)
    assert struct.unpack_from("<I", config, 0x10)[0] == 0xFFFFF000
    client.write(0, 8, b"abcd")
    client.post(0, 12, b"efgh")
    assert client.read(0, 8, 8) == b"abcdefgh"
    assert refused(client.read, 0, PAGE - 1, 2) == errno.EINVAL
    assert refused(client.read, 2, 0, 4) == errno.EINVAL
    assert refused(client.write, 0, 1 << 63, b"x") == errno.EINVAL


def test_vectors_signal_their_eventfds(client: Client, toy: Toy) -> None:
    client.version()
    assert [client.irq_info(i).count for i in range(5)] == [0, 0, 2, 0, 0]
    client.enable_irqs(2)
    toy.signal(1)  # type: ignore[operator]
    assert client.fired() == {1}
    client.set_irqs(0, [])
    spare = os.eventfd(0)
    assert refused(client.set_irqs, 2, [spare]) == errno.EINVAL
    os.close(spare)
    unset = bytes(p.IrqSet(20, int(p.IrqFlag.DATA_EVENTFD | p.IrqFlag.ACTION_TRIGGER), p.MSIX_IRQ, 1, 1))
    client.call(p.Command.DEVICE_SET_IRQS, unset)  # no descriptor: nothing is signalled
    toy.signal(1)  # type: ignore[operator]
    toy.signal(0)  # type: ignore[operator]
    assert client.fired() == {0}
    off = bytes(p.IrqSet(20, int(p.IrqFlag.DATA_NONE | p.IrqFlag.ACTION_TRIGGER), p.MSIX_IRQ, 0, 0))
    client.call(p.Command.DEVICE_SET_IRQS, off)
    toy.signal(0)  # type: ignore[operator]
    assert client.fired() == set()


def test_unknown_commands_and_reset(client: Client, toy: Toy) -> None:
    client.version()
    for command in (6, 11, 12, 14, 15, 99):
        assert refused(client.call, command, b"\0" * 64) == errno.ENOSYS
    client.call(p.Command.DEVICE_RESET)
    assert toy.resets == 1


def test_memory_is_reached_only_where_it_is_mapped(client: Client, toy: Toy) -> None:
    client.version()
    ram = Ram(16 * PAGE)
    client.map(0x10000, 4 * PAGE, ram.fd, 2 * PAGE)
    client.map(0x14000, PAGE, ram.fd, 12 * PAGE)
    client.map(0x15000, PAGE)  # a ROM, without memory
    client.map(0x16000, PAGE, ram.fd, 0, flags=p.DmaFlag.READ)
    toy.dma.write(0x13FF8, b"0123456789abcdef")  # over the seam
    assert ram.read(6 * PAGE - 8, 8) + ram.read(12 * PAGE, 8) == b"0123456789abcdef"
    assert toy.dma.read(0x13FF8, 16) == b"0123456789abcdef"
    for iova, size, write in (
        (0xFFFF, 2, False),
        (0x15000, 1, True),
        (0x16000, 1, True),
        (0x17000, 1, False),
    ):
        with pytest.raises(DmaFault):
            toy.dma.write(iova, bytes(size)) if write else toy.dma.read(iova, size)
    assert toy.dma.fault_count == 4
    with pytest.raises(DmaFault, match="one entry lies in two"):
        toy.dma.address(0x13FF8, 16, write=True)
    before = ram.read(12 * PAGE, PAGE)
    with pytest.raises(DmaFault):
        toy.dma.write(0x14000, b"x" * (PAGE + 1))
    assert ram.read(12 * PAGE, PAGE) == before  # all or nothing
    assert refused(client.map, 0x13000, PAGE, ram.fd) == errno.EEXIST
    assert refused(client.map, 0x20000, PAGE, ram.fd, 16 * PAGE) == errno.EINVAL
    assert refused(client.map, 0x20000, 0, ram.fd) == errno.EINVAL
    assert refused(client.map, (1 << 64) - PAGE, 2 * PAGE) == errno.EINVAL
    assert refused(client.unmap, 0x11000, PAGE) == errno.EINVAL  # part of a mapping
    assert client.unmap(0x10000, 5 * PAGE) == 5 * PAGE
    with pytest.raises(DmaFault):
        toy.dma.read(0x10000, 1)
    assert client.unmap(0, 0, p.UNMAP_ALL) == 2 * PAGE
    assert len(toy.dma) == 0
    ram.close()


def test_what_is_no_file_is_not_mapped(client: Client) -> None:
    client.version()
    here, there = os.pipe()
    assert refused(client.map, 0, PAGE, here) == errno.EINVAL
    os.close(here)
    os.close(there)


def test_descriptors_of_messages_read_together_go_to_the_last(client: Client, toy: Toy) -> None:
    """Three DMA maps in one read, of which only the last brings a descriptor, as QEMU sends them."""
    client.version()
    ram = Ram(4 * PAGE)

    def message(number: int, iova: int) -> bytes:
        body = bytes(p.DmaMap(32, 3, 0, iova, PAGE))
        return bytes(p.Header(number, p.Command.DMA_MAP, 16 + len(body), p.HeaderFlag.NO_REPLY, 0)) + body

    client.sock.send(message(1, 0x1000) + message(2, 0x2000))
    socket.send_fds(client.sock, [message(3, 0x3000)], [ram.fd])
    client.serve()
    toy.dma.write(0x3000, b"x")
    assert ram.read(0, 1) == b"x"
    for iova in (0x1000, 0x2000):
        with pytest.raises(DmaFault):
            toy.dma.read(iova, 1)
    ram.close()


def test_messages_arrive_in_any_pieces(client: Client, toy: Toy) -> None:
    body = bytes(p.Version(0, 0)) + b"{}\0"
    data = bytes(p.Header(5, p.Command.VERSION, 16 + len(body), 0, 0)) + body
    for at in range(len(data)):
        client.sock.send(data[at : at + 1])
        client.serve()
    assert p.Header.from_buffer_copy(client.sock.recv(PAGE)).id == 5


def test_end_of_the_client_is_told(client: Client) -> None:
    client.sock.close()
    with pytest.raises(EOFError):
        client.serve()


@pytest.mark.parametrize("size", [0, 15, p.MAX_MESSAGE + 1, 1 << 31])
def test_lost_framing_ends_the_connection(client: Client, size: int) -> None:
    client.sock.send(struct.pack("<HHIII", 1, 1, size, 0, 0))
    with pytest.raises(NetmemError) as caught:
        client.serve()
    assert caught.value.errno == errno.EPROTO


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_hostile_messages_are_refused_without_a_crash(seed: int) -> None:
    rng, before = random.Random(seed), _descriptors()
    client = Client(Function(Toy()))
    client.version()
    fd = memfd("hostile", 4 * PAGE)
    try:
        for _ in range(40):
            command = rng.choice([*p.Command, rng.randrange(1 << 16)])
            layout = rng.choice([p.DmaMap, p.DmaUnmap, p.IrqSet, p.RegionAccess, p.RegionInfo, p.Version])
            body = bytearray(
                rng.randbytes(ctypes.sizeof(layout)) if rng.random() < 0.3 else bytes(layout(32))
            )
            for _ in range(rng.randrange(4)):  # nearly right
                at = rng.randrange(0, len(body) - 3, 4) if len(body) > 4 else 0
                body[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2, 3, 0x24, 4095, 4096, 1 << 31]))
            flags = rng.choice([0, 0, p.HeaderFlag.NO_REPLY, p.HeaderFlag.REPLY])
            tail = rng.randbytes(rng.randrange(20))
            client.send(command, bytes(body) + tail, [fd] * rng.choice([0, 0, 1, 3]), int(flags))
            client.serve()
            while True:
                try:
                    client.sock.recv(1 << 20)
                except BlockingIOError:
                    break
    except EOFError:
        pass
    finally:
        client.close()
        os.close(fd)
    assert _descriptors() <= before  # what other tests left to the collector may go meanwhile


class _Model:
    """A DMA table as a dictionary of pages."""

    def __init__(self) -> None:
        self.pages: dict[int, tuple[int, bool, bool]] = {}
        self.ranges: dict[int, int] = {}


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1 << 32))
def test_dma_table_against_a_dictionary_of_pages(seed: int) -> None:
    rng, table, model = random.Random(seed), DmaTable(), _Model()
    ram = Ram(32 * PAGE)
    ram.write(0, rng.randbytes(32 * PAGE))
    for _ in range(120):
        page, count = rng.randrange(48), rng.randrange(1, 6)
        if rng.random() < 0.5:
            offset, read, write = rng.randrange(32), rng.random() < 0.9, rng.random() < 0.8
            ok = offset + count <= 32 and not any(page + i in model.pages for i in range(count))
            try:
                table.map(page * PAGE, count * PAGE, ram.fd, offset * PAGE, read=read, write=write)
            except NetmemError:
                assert not ok
                continue
            assert ok
            model.ranges[page] = count
            model.pages.update({page + i: (offset + i, read, write) for i in range(count)})
        elif rng.random() < 0.5:
            inside = [at for at in model.ranges if page <= at < page + count]
            cut = any(
                (at < page < at + n) or (page <= at < page + count < at + n) for at, n in model.ranges.items()
            )
            try:
                gone = table.unmap(page * PAGE, count * PAGE)
            except NetmemError:
                assert cut
                continue
            assert not cut
            assert gone == PAGE * sum(model.ranges[at] for at in inside)
            for at in inside:
                for i in range(model.ranges.pop(at)):
                    del model.pages[at + i]
        else:
            iova, size = page * PAGE + rng.randrange(PAGE), rng.randrange(1, 3 * PAGE)
            wanted = range(iova // PAGE, (iova + size - 1) // PAGE + 1)
            ok = all(model.pages.get(one, (0, False, False))[1] for one in wanted)
            try:
                got = table.read(iova, size)
            except DmaFault:
                assert not ok
                continue
            assert ok
            expected = b"".join(ram.read(model.pages[one][0] * PAGE, PAGE) for one in wanted)
            assert got == expected[iova % PAGE :][:size]
    assert len(table) == len(model.ranges)
    table.unmap_all()
    ram.close()
