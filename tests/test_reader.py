"""Exact amounts of a stream: arrays, messages, lines; blocking and for asyncio."""

import asyncio
import contextlib
import errno
import gc
import json
import random
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import netmem
from conftest import make_provider, offer, payload, scaled
from netmem.base.errors import NetmemError
from netmem.inet.aio import AsyncStack
from netmem.inet.views import PART, Mapped, View
from netmem.memory.layout import Holder
from netmem.testing.net import Network

LIMIT = 60


def refused(number, call, *args):
    with pytest.raises(NetmemError) as caught:
        call(*args)
    assert caught.value.errno == number


@pytest.fixture(scope="module", params=["dmabuf", "pages", "none"])
def opened(request):
    """A device, a port of the host that leads to its listener, and its memory: 4 MiB, or none."""
    with netmem.open_device() as device:
        memory = {"dmabuf": netmem.DmabufProvider, "pages": netmem.PagesProvider, "none": None}[request.param]
        provider = memory(4 << 20) if memory else None
        device.ethtool.set_ringparam(tcp_data_split=netmem.TcpDataSplit.ENABLED)
        if provider is not None:
            device.bind_rx([1], provider)
        device.steer(5001, 1)
        yield device, device.listen(5001), device.forward("127.0.0.1", 0, 5001)


class Peer(threading.Thread):
    """Sends bytes over a kernel socket, and closes."""

    def __init__(self, port, *pieces):
        super().__init__(daemon=True)
        self.port, self.pieces = port, pieces
        self.start()

    def run(self):
        with socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT) as sock:
            for piece in self.pieces:
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)


def accept(opened, *pieces):
    _, listener, port = opened
    peer = Peer(port, *pieces)
    sock = listener.accept(LIMIT)
    sock.timeout = LIMIT
    return sock, peer


def test_arrays_larger_than_the_memory_arrive_whole(opened):
    wanted = np.frombuffer(payload(scaled(24 << 20) & ~7), "<i8")
    sock, peer = accept(opened, wanted.tobytes())
    with sock:
        got = sock.reader().read_array(wanted.shape, "<i8")
        assert (got == wanted).all()
        assert sock.statistics()["tokens"] == 0
    peer.join(LIMIT)


def test_shapes_dtypes_and_what_is_no_memory(opened):
    grid = np.arange(60, dtype=">f4").reshape(3, 4, 5)
    sock, peer = accept(opened, grid.tobytes(), b"\1\2\3", struct.pack("!d", 2.5))
    with sock:
        reader = sock.reader()
        got = reader.read_array((3, 4, 5), ">f4")
        assert (got == grid).all()
        assert got.flags.c_contiguous
        refused(errno.EINVAL, reader.read_array, 3, object)
        refused(errno.EINVAL, reader.read_into, memoryview(b"abc"))
        refused(errno.EINVAL, reader.read_into, np.zeros((4, 4))[:, ::2])
        reader.read_into(bytearray())
        part = bytearray(3)
        reader.read_into(part)
        assert part == b"\1\2\3"
        into = np.zeros(1, ">f8")
        reader.read_into(into)
        assert into[0] == 2.5
    peer.join(LIMIT)


def test_a_stream_that_ends_early_says_how_far_it_came(opened):
    sock, peer = accept(opened, b"0123456789")
    with sock, pytest.raises(EOFError) as caught:
        sock.reader().read_array(100)
    assert (caught.value.partial, caught.value.expected) == (b"0123456789", 100)
    peer.join(LIMIT)


def test_lines_messages_and_arrays_in_one_stream(opened):
    body = payload(300_000)
    sock, peer = accept(
        opened, b"shape 3\nan empty line follows\n\n", struct.pack("<Q", len(body)), body, b"rest",
        struct.pack("!I", 1 << 31), bytes(70_000),
    )  # fmt: skip
    with sock:
        reader = sock.reader()
        assert reader.readuntil() == b"shape 3\n"
        assert reader.readuntil(b"line ") == b"an empty line "
        assert reader.readuntil(b"\n\n") == b"follows\n\n"
        assert reader.read_message("<Q").tobytes() == body
        assert reader.readexactly(4) == b"rest"
        refused(errno.EMSGSIZE, reader.read_message)
        refused(errno.EMSGSIZE, reader.readuntil)
        assert len(reader.readexactly(70_000)) == 70_000
        with pytest.raises(EOFError):
            reader.readuntil()
    peer.join(LIMIT)


def test_asyncio_reads_as_asyncio_users_know_it(opened):
    device, _, _ = opened
    port = device.forward("127.0.0.1", 0, 5003)
    device.steer(5003, 1)
    arrays = [np.frombuffer(payload(400_000, seed=n), "<u4") for n in range(8)]
    done = []

    async def handler(connection):
        reader = connection.reader()
        n, shape = json.loads(await reader.readuntil())
        got = await reader.read_array(shape, "<u4")
        assert (await reader.readexactly(2)) == b"ok"
        assert (await reader.read_message()).tobytes() == b"message"
        with pytest.raises(asyncio.IncompleteReadError):
            await reader.readexactly(10)
        done.append((n, bool((got == arrays[n]).all())))

    async def main():
        async with AsyncStack(device.stack) as stack:
            server = asyncio.create_task(stack.serve(5003, handler, limit=len(arrays)))
            await asyncio.sleep(0)
            peers = [
                Peer(
                    port, json.dumps([n, array.shape]).encode() + b"\n", array.tobytes(), b"ok",
                    struct.pack("!I", 7) + b"message", b"cut",
                )
                for n, array in enumerate(arrays)
            ]  # fmt: skip
            await asyncio.wait_for(server, LIMIT)
            for peer in peers:
                await asyncio.to_thread(peer.join, LIMIT)

    asyncio.run(main())
    assert sorted(done) == [(n, True) for n in range(len(arrays))]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["dmabuf", "none"])
def test_whatever_is_asked_for_comes_in_order(network, kind, seed):
    net, rng = network(), random.Random(seed)
    if kind != "none":
        net.bind(make_provider(kind))
    ours, theirs, _ = net.connect()
    sent = payload(rng.randrange(1, 50_000), seed=seed)
    theirs.sendall(sent)
    reader, at = ours.reader(), 0
    while at < len(sent):
        n = rng.randrange(1, min(len(sent) - at, 9000) + 1)
        net.until(lambda least=n: ours.queued() >= least)
        assert reader.readexactly(n) == sent[at : at + n]
        at += n


def test_the_example_receives_arrays_of_several_clients():
    example = Path(__file__).parent.parent / "examples" / "receive_arrays.py"
    done = subprocess.run(
        [sys.executable, str(example), "3", "4"], capture_output=True, text=True, timeout=2 * LIMIT
    )
    assert done.returncode == 0, done.stderr
    assert "12 arrays" in done.stdout


def test_the_example_computes_while_tensors_arrive():
    example = Path(__file__).parent.parent / "examples" / "stream_tensors.py"
    argv = [sys.executable, str(example), "--memory", "host", "--senders", "3", "--tensors", "8"]
    done = subprocess.run([*argv, "--area-mib", "32"], capture_output=True, text=True, timeout=2 * LIMIT)
    assert done.returncode == 0, done.stderr
    assert "96 MiB" in done.stdout
    assert "sums agree" in done.stdout


def test_a_reader_passes_on_what_the_socket_says(opened):
    sock, peer = accept(opened, b"")
    with sock, pytest.raises(EOFError):
        sock.reader().readexactly(1)
    with pytest.raises(NetmemError, match="closed"):
        sock.reader().readexactly(1)
    peer.join(LIMIT)


def test_nothing_is_lost_when_time_is_up(opened):
    _, listener, port = opened
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as client:
        client.sendall(struct.pack("!I", 8000) + payload(5000))
        with listener.accept(LIMIT) as sock:
            reader = sock.reader()
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    reader.read_message(timeout=0.2)
            client.sendall(payload(8000)[5000:])
            assert reader.read_message(timeout=LIMIT).tobytes() == payload(8000)
            assert sock.statistics()["tokens"] == 0


def test_what_came_before_the_end_is_told_once(opened):
    sock, peer = accept(opened, b"half a line")
    with sock:
        reader = sock.reader()
        refused(errno.EINVAL, reader.readuntil, b"")
        with pytest.raises(EOFError) as caught:
            reader.readuntil()
        assert caught.value.partial == b"half a line"
        with pytest.raises(EOFError) as caught:
            reader.readexactly(4)
        assert caught.value.partial == b""
    peer.join(LIMIT)


def test_dates_and_records_are_arrays_too(opened):
    days = np.array(["2026-11-25", "2026-11-26"], "M8[D]")
    pairs = np.array([(1, 2.5), (3, 4.5)], [("a", "<i4"), ("b", "<f8")])
    sock, peer = accept(opened, days.tobytes(), pairs.tobytes())
    with sock:
        reader = sock.reader()
        assert (reader.read_array(2, "M8[D]") == days).all()
        assert (reader.read_array((2,), pairs.dtype) == pairs).all()
        assert reader.read_array((0, 3)).shape == (0, 3)
    peer.join(LIMIT)


# -- views: payload where it lies -----------------------------------------------------------------


def root(array):
    """What an array is based on in the end."""
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


class Views:
    """Our end of a connection on a device with 64 KiB pages, time moved by hand."""

    def __init__(self, network, memory="dmabuf", size=16 << 20, page=65536):
        self.net = net = network()
        net.ours.dev.ethtool.set_features(rx_gro_hw=True)
        self.provider = make_provider(memory, size=size, rx_page_size=page)
        net.bind(self.provider)
        self.ours, self.theirs, _ = net.connect()
        self.reader = self.ours.reader()

    def arrive(self, data):
        """Send and receive ``data``; nothing is read."""
        left, before = memoryview(data), self.ours.queued()
        while len(left) or self.ours.queued() < before + len(data):
            left = offer(self.theirs, left)
            self.net.run(1)

    def held(self):
        """References that views have."""
        self.net.run(1)  # what was let go is put by the next poll
        return Mapped.of(self.provider).held


@pytest.mark.parametrize("memory", ["dmabuf", "pages"])
def test_an_array_that_lies_end_to_end_is_a_view(network, memory):
    views = Views(network, memory)
    data = payload(400_000)
    views.arrive(data)
    array = views.reader.read_array(50_000, "<f8")
    assert isinstance(root(array), View)
    assert array.tobytes() == data
    address = array.__array_interface__["data"][0] - Mapped.of(views.provider).address
    assert views.provider.map()[address : address + len(data)].tobytes() == data  # no copy
    array[0] = 1.5  # ours until we let it go
    assert np.from_dlpack(array)[0] == 1.5
    assert views.held() > 0
    part = array[10:20]
    del array
    assert views.held() > 0
    del part
    assert views.held() == 0
    assert views.ours.statistics()["tokens"] == 0


def test_what_lies_elsewhere_is_copied_and_lets_go(network):
    """A gap in the middle (another flow's data lies there): all in order, nothing held."""
    views = Views(network)
    other, theirs, _ = views.net.connect()
    first, second = payload(100_000), payload(100_000, seed=2)
    views.arrive(first)
    theirs.send(payload(200_000, seed=3))
    views.net.until(lambda: other.queued() == 200_000)
    views.arrive(second)
    array = views.reader.read_array(200_000)
    assert array.tobytes() == first + second
    assert not isinstance(root(array), View)
    assert views.held() == 0


def test_a_copy_when_asked_for_or_when_items_would_not_be_aligned(network):
    views = Views(network)
    data = payload(80_001)
    views.arrive(data)
    array = views.reader.read_array(5_000, np.uint64, copy=True)
    assert not isinstance(root(array), View)
    assert views.reader.readexactly(1) == data[40_000:40_001]
    odd = views.reader.read_array(5_000, np.uint64)
    assert odd.tobytes() == data[40_001:]
    assert odd.flags.aligned
    assert not isinstance(root(odd), View)


def test_whoever_keeps_all_he_reads_does_not_run_out_of_memory(network):
    """Twice the memory, every array kept: a quarter in views, copies beyond; nothing stops."""
    views = Views(network, size=8 << 20)
    kept, total = [], scaled(16 << 20)
    data = payload(1 << 18)
    for _ in range(total >> 18):
        views.arrive(data)
        kept.append(views.reader.read_array(1 << 18))
    assert all(array.tobytes() == data for array in kept)
    mine = [array for array in kept if isinstance(root(array), View)]
    assert len(mine) >= 1
    assert views.held() << 16 <= (8 << 20) // PART
    del kept, mine
    assert views.held() == 0


def test_a_view_outlives_its_socket_and_its_binding(network):
    views = Views(network)
    data = payload(300_000)
    views.arrive(data)
    array = views.reader.read_array(300_000)
    assert isinstance(root(array), View)
    views.ours.abort()
    views.net.binding.close()
    views.net.run(3)
    assert views.provider.area.free < views.provider.area.count
    assert array.tobytes() == data
    del array
    views.net.run(3)
    assert views.provider.area.free == views.provider.area.count


def test_a_view_may_be_let_go_after_its_device_is_closed():
    net = Network()
    views = Views(lambda: net)
    views.arrive(payload(100_000))
    array = views.reader.read_array(100_000)
    assert isinstance(root(array), View)
    provider = views.provider
    net.ours.close()
    net.theirs.close()
    assert array.tobytes() == payload(100_000)
    del array
    gc.collect()
    assert provider.area.free == provider.area.count
    provider.close()
    assert provider.area.arena.fd == -1  # nobody has it mapped: the binding has ended


def test_time_runs_out_in_the_middle_of_a_view_and_nothing_is_lost(network):
    views = Views(network)
    data = payload(200_000)
    views.arrive(data[:150_000])
    with pytest.raises(TimeoutError):
        views.reader.read_array(200_000, timeout=0)
    views.arrive(data[150_000:])
    assert views.reader.read_array(200_000).tobytes() == data
    assert views.held() == 0


def test_tensors_of_other_libraries_are_read_into_by_dlpack(network):
    """Whatever speaks DLPack and lies in memory that can be written here."""

    class Tensor:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    views = Views(network)
    data = payload(64_000)
    views.arrive(data)
    into = np.zeros((100, 80), np.float64)
    views.reader.read_into(Tensor(into))
    assert into.tobytes() == data
    refused(errno.EINVAL, views.reader.read_into, Tensor(np.zeros(10)[::2]))
    refused(errno.EINVAL, views.reader.read_into, object())


def test_an_array_over_two_memories_is_a_copy(network):
    """A flow that moves to another queue, at offsets that would fit: each byte from the memory it came to."""
    net = network(rx_queues=3)
    net.ours.dev.ethtool.set_features(rx_gro_hw=True)
    provider, other = (make_provider("dmabuf", rx_page_size=65536) for _ in range(2))
    net.bind(provider, queue=1)
    binding = net.ours.dev.bind_rx([2], other)
    ours, theirs, _ = net.connect()
    ethtool = net.ours.dev.ethtool
    parts = [payload(30_000, seed=1), payload(30_000, seed=2), payload(20_000, seed=3)]
    reader, want = ours.reader(), 0
    for part, queue in zip(parts, (2, 1, 2), strict=True):
        for rule in list(ethtool.rules):
            ethtool.delete_rule(rule)
        net.steer(5001, queue)
        theirs.send(part)
        want += len(part)
        net.until(lambda n=want: ours.queued() == n)
        if part is parts[0]:
            assert reader.read_array(len(part), copy=True).tobytes() == part
            want = 0
    assert reader.read_array(50_000).tobytes() == parts[1] + parts[2]
    net.run(1)
    binding.close()
    net.run(3)
    assert other.area.free == other.area.count
    other.close()


def test_a_socket_closed_under_its_reader_takes_no_netmem_along(network, monkeypatch):
    """Another thread closes between the receive and the hold: what is free by then is not held."""
    views = Views(network)
    views.arrive(payload(200_000))
    receive = views.ours.recvmsg_devmem

    def closing(*args, **options):
        message = receive(*args, **options)
        views.ours.close()
        return message

    monkeypatch.setattr(views.ours, "recvmsg_devmem", closing)
    refused(errno.EBADF, views.reader.read_array, 200_000)
    views.net.run(3)
    netmems = views.provider.area.netmems()
    assert not ((netmems["pp_ref_count"] > 1) & (netmems["holder"] <= Holder.RING)).any()


def test_a_view_of_memory_whose_owner_closed_it_lets_go(network, monkeypatch):
    """The end of the CPU's access cannot be told a closed descriptor: the references go back all the same."""

    @contextlib.contextmanager
    def access(*, write=False):
        yield
        raise ValueError("file descriptor cannot be a negative integer (-1)")

    views = Views(network)
    monkeypatch.setattr(views.provider, "cpu_access", access)
    views.arrive(payload(100_000))
    array = views.reader.read_array(100_000)
    assert isinstance(root(array), View)
    del array
    assert views.held() == 0
