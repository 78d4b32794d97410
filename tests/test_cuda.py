"""Memory of a GPU: provider, lifetime, readers. Needs an NVIDIA GPU; CI has none."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter

import numpy as np
import pytest

from conftest import over_a_tap, payload, scaled
from netmem.base import cuda
from netmem.base.cuda_gather import PART, groups_of
from netmem.base.errors import NetmemError
from netmem.contract.conformance import CHECKS
from netmem.drivers.softnic import SoftnicDriver
from netmem.hw.process import python_argv
from netmem.lab.device import open_device
from netmem.memory.providers.cuda import CudaProvider
from netmem.testing.wire import FaultyLink

needs_gpu = pytest.mark.skipif(
    not cuda.available(), reason="no NVIDIA GPU (with driver and cuda-bindings) here"
)


def free_bytes() -> int:
    gpu = cuda.Gpu(0)
    with gpu:
        return int(cuda.call("cuMemGetInfo")[0])


def names() -> Counter[str]:
    """This process's descriptors, by what they are; CUDA's own come and go."""
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[os.readlink(f"/proc/self/fd/{fd}").rstrip("0123456789[]")] += 1
    return found


@pytest.fixture
def nothing_leaks():
    """The GPU has as much memory free afterwards, and this process as many descriptors."""
    cuda.Gpu(0)
    with CudaProvider(2 << 20) as warm:
        warm.read(0, 1)
    gc.collect()
    before, fds = free_bytes(), names()
    yield
    gc.collect()  # what failed calls kept in their tracebacks
    end = time.monotonic() + 10
    while free_bytes() < before and time.monotonic() < end:
        time.sleep(0.05)
    assert free_bytes() >= before
    now = names()
    assert not now - fds, now - fds


# -- without a GPU ----------------------------------------------------------------------------------


def test_what_is_missing_is_one_line():
    if cuda.available():
        pytest.skip("there is a GPU here")
    with pytest.raises(NetmemError) as caught:
        CudaProvider(2 << 20)
    assert caught.value.errno == errno.ENODEV
    assert "\n" not in str(caught.value)


def test_recv_says_so_too():
    if cuda.available():
        pytest.skip("there is a GPU here")
    argv = python_argv("netmem.cli.entry", "recv", "--memory", "cuda:0")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.startswith("netmem: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_groups_cover_frags():
    rng = np.random.default_rng(5)
    for _ in range(100):
        n = int(rng.integers(1, 40))
        frags = np.zeros((n, 3), np.int64)
        frags[:, 0] = rng.integers(0, 1 << 40, n)
        sizes = rng.choice([0, 1, 1448, 4096, PART - 1, PART, PART + 1, 65536, 200_001], n)
        frags[:, 1] = sizes | rng.integers(0, 1 << 20, n) << 32
        groups, total = groups_of(frags)
        assert total == sizes.sum()
        found, at = [], 0
        for to, *parts in groups.tolist():
            assert to == at
            for part in parts:
                offset, size = part & (1 << 48) - 1, part >> 48
                assert size <= PART
                found += [(offset, at, size)] if size else []
                at += size
        slow, at = [], 0
        for offset, size in zip(frags[:, 0].tolist(), sizes.tolist(), strict=True):
            slow += [(offset + start, at + start, min(PART, size - start)) for start in range(0, size, PART)]
            at += size
        assert found == slow


# -- the provider -------------------------------------------------------------------------------------


@needs_gpu
def test_read_and_write(nothing_leaks):
    with CudaProvider(3 << 20) as memory:
        assert memory.read(0, 100) == bytes(100)
        memory.write(12345, payload(1_000_000))
        assert memory.read(12345, 1_000_000) == payload(1_000_000)
        assert memory.describe()["memory"] == "cuda"
        assert memory.describe()["granularity"] >= 4096
        with pytest.raises(NetmemError, match="not within"):
            memory.read(3 << 20, 1)
        with pytest.raises(NetmemError, match="cannot map") as caught:
            memory.map()
        assert caught.value.errno == errno.EOPNOTSUPP
    with pytest.raises(NetmemError, match="given up"):
        memory.read(0, 1)


@needs_gpu
def test_refusals(nothing_leaks):
    with pytest.raises(NetmemError, match="cuda:99") as caught:
        CudaProvider(2 << 20, device=99)
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(NetmemError, match="MiB free") as caught:
        CudaProvider(1 << 42)
    assert caught.value.errno == errno.ENOMEM
    with pytest.raises(NetmemError) as caught:
        CudaProvider(5000)
    assert caught.value.errno == errno.EINVAL


@needs_gpu
def test_a_dmabuf_of_it():
    with CudaProvider(2 << 20) as memory:
        try:
            fd = memory.dmabuf()
        except NetmemError as error:
            pytest.skip(str(error))
        assert os.readlink(f"/proc/self/fd/{fd}").startswith("/dmabuf:")
        os.close(fd)


@needs_gpu
def test_import_of_something_else(nothing_leaks):
    fd = os.memfd_create("x")
    with pytest.raises(NetmemError, match="no memory of a GPU") as caught:
        cuda.Allocation.imported(cuda.Gpu(0), fd, 4096)
    os.close(fd)
    assert caught.value.errno == errno.EBADF


# -- receiving ------------------------------------------------------------------------------------------


def bound(network, size=32 << 20, rx_page_size=65536, **options):
    net = network(**options)
    net.ours.dev.ethtool.set_ringparam(tcp_data_split=2)
    net.provider = CudaProvider(size, rx_page_size=rx_page_size)
    net.binding = net.ours.dev.bind_rx([1], net.provider)
    net.steer(5001, 1)
    return net


def gathered(provider, message) -> bytes:
    out = np.empty(message.size, np.uint8)
    have = len(message.linear)
    out[:have] = np.frombuffer(message.linear, np.uint8)
    if len(message.frags):
        provider.gather(message.frags.view(np.int64).reshape(-1, 3), out[have:].ctypes.data)
    return out.tobytes()


def received(net, theirs, ours, data) -> bytes:
    left, digest, total = memoryview(data), hashlib.sha256(), 0
    while total < len(data):
        if len(left) and theirs.writable():
            left = left[theirs.send(left) :]
        net.run(1)
        if ours.readable():
            message = ours.recvmsg_devmem()
            digest.update(gathered(net.provider, message))
            total += message.size
            ours.devmem_dontneed(message.frags["frag_token"])
    return digest.digest()


@needs_gpu
@pytest.mark.parametrize("page", [4096, 65536, 2 << 20])
def test_bit_for_bit_with_loss(network, page):
    size = int(os.environ.get("NETMEM_GPU_BYTES", 64 << 20))
    net = bound(
        network, size=64 << 20, rx_page_size=page, mtu=9000, link=FaultyLink(7, loss=0.001, delay=100_000)
    )
    ours, theirs, _ = net.connect(5001)
    data = payload(scaled(size))
    assert received(net, theirs, ours, data) == hashlib.sha256(data).digest()


@needs_gpu
def test_several_connections_and_tokens_held_long(network):
    net = bound(network)
    pairs = [net.connect(5001)[:2] for _ in range(4)]
    held = []
    for n, (ours, theirs) in enumerate(pairs):
        theirs.send(payload(100_000, n))
        net.until(lambda ours=ours: ours.queued() == 100_000, 5000)
        held.append(ours.recvmsg_devmem(100_000, max_frags=1024))
    for n, (ours, theirs) in enumerate(pairs):
        data = payload(2_000_000, 50 + n)
        assert received(net, theirs, ours, data) == hashlib.sha256(data).digest()
    for n, ((ours, _), message) in enumerate(zip(pairs, held, strict=True)):
        assert gathered(net.provider, message) == payload(100_000, n)[: message.size]
        ours.devmem_dontneed(message.frags["frag_token"])


@needs_gpu
def test_sends_from_gpu_memory(network):
    net = bound(network)
    ours, theirs, _ = net.connect(5001)
    data = payload(500_000, 9)
    memory = CudaProvider(2 << 20)
    memory.write(4096, data)
    binding = net.ours.dev.bind_tx(memory)
    sent, got = 0, bytearray()
    for _ in range(8000):
        if sent < len(data) and ours.writable():
            sent += ours.sendmsg_devmem([(4096 + sent, len(data) - sent)], binding)
        net.run(1)
        if theirs.queued():
            got += theirs.recv(1 << 20)
        if len(got) == len(data):
            break
    assert bytes(got) == data
    net.run(200)
    binding.close()
    memory.close()


BOUND = [check for check in CHECKS if "cuda" in check.memory]


@needs_gpu
@pytest.mark.parametrize("check", BOUND, ids=lambda check: check.name)
def test_the_kit(check):
    check.run(SoftnicDriver, "cuda")


# -- lifetime, with the NIC in its own process ------------------------------------------------------------


def started(size=16 << 20):
    """A device with GPU memory bound, a connection to it, and 3 MB on the way."""
    device = open_device()
    device.ethtool.set_ringparam(tcp_data_split=2)
    memory = CudaProvider(size)
    binding = device.bind_rx([1], memory)
    device.steer(5001, 1)
    listener = device.listen(5001)
    port = device.forward("127.0.0.1", 0, 5001)
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    threading.Thread(target=client.sendall, args=(payload(3_000_000),), daemon=True).start()
    return device, memory, binding, listener.accept(timeout=30), client


@needs_gpu
@pytest.mark.process
def test_memory_closed_while_tokens_are_out(nothing_leaks):
    device, memory, binding, sock, client = started()
    message = sock.recvmsg_devmem(timeout=30)
    assert gathered(memory, message) == payload(3_000_000)[: message.size]
    memory.close()
    binding.close()
    sock.devmem_dontneed(message.frags["frag_token"])
    sock.abort()
    client.close()
    device.close()


@needs_gpu
@pytest.mark.process
def test_the_nics_process_is_killed(nothing_leaks):
    device, memory, _, sock, client = started()
    message = sock.recvmsg_devmem(timeout=30)
    os.kill(device.pid, signal.SIGKILL)
    with pytest.raises(NetmemError) as caught:
        drained(sock)
    assert caught.value.errno == errno.ENODEV
    assert gathered(memory, message) == payload(3_000_000)[: message.size]  # what came is still there
    sock.devmem_dontneed(message.frags["frag_token"])
    client.close()
    device.close()
    memory.close()


@needs_gpu
@pytest.mark.process
def test_the_gpu_is_full(nothing_leaks):
    gpu = cuda.Gpu(0)
    hog = cuda.Allocation.make(gpu, (free_bytes() - (256 << 20)) // gpu.granularity * gpu.granularity)
    with open_device() as device, pytest.raises(NetmemError, match="MiB free") as caught:
        device.bind_rx([1], CudaProvider(1 << 30))
    hog.close()
    assert caught.value.errno == errno.ENOMEM


@needs_gpu
@pytest.mark.process
def test_the_gpu_is_full_for_the_nic(nothing_leaks):
    gpu = cuda.Gpu(0)
    with open_device() as device, CudaProvider(2 << 20) as memory:
        device.ethtool.set_ringparam(tcp_data_split=2)
        hog = cuda.Allocation.make(gpu, (free_bytes() - (64 << 20)) // gpu.granularity * gpu.granularity)
        with pytest.raises(NetmemError) as caught:
            device.bind_rx([1], memory)
        hog.close()
        assert caught.value.errno == errno.ENOMEM
        device.bind_rx([1], memory).close()  # and with room it goes on


@needs_gpu
@pytest.mark.process
def test_recv(nothing_leaks, tmp_path):
    argv = python_argv("netmem.cli.entry", "recv", "--memory", "cuda:0", "--listen", "127.0.0.1:0", "--json",
                       "--count", "3", "--sanitize", "-o", str(tmp_path / "{n}"))  # fmt: skip
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    port = json.loads(process.stdout.readline())["port"]
    clients = []
    for n in range(3):
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        clients.append(threading.Thread(target=sent, args=(client, payload(20_000_000, n))))
    for thread in clients:
        thread.start()
    rest, _ = process.communicate(timeout=60)
    for thread in clients:
        thread.join(10)
    assert process.returncode == 0
    summary = json.loads(rest.splitlines()[-1])
    assert summary["bytes"] == 60_000_000
    assert not summary["driver_can_read"]
    found = {hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert found == {hashlib.sha256(payload(20_000_000, n)).hexdigest() for n in range(3)}


@needs_gpu
@pytest.mark.process
def test_from_the_kernel_over_a_tap(nothing_leaks):
    over_a_tap("cuda", 200_000_000)


def drained(sock):
    while sock.recvmsg_devmem(timeout=10).size:
        pass


def sent(client, data):
    with client:
        client.sendall(data)


# -- readers ------------------------------------------------------------------------------------------------


@pytest.fixture
def stream():
    """A device with GPU memory of 64 MiB, and what makes a connection that brings given bytes."""
    with open_device() as device:
        device.ethtool.set_ringparam(tcp_data_split=2)
        memory = CudaProvider(64 << 20)
        device.bind_rx([1], memory)
        device.steer(5001, 1)
        listener = device.listen(5001)
        port = device.forward("127.0.0.1", 0, 5001)

        def bring(data):
            client = socket.create_connection(("127.0.0.1", port), timeout=30)
            threading.Thread(target=sent, args=(client, data), daemon=True).start()
            sock = listener.accept(timeout=30)
            sock.timeout = 30
            return sock

        yield memory, bring
    memory.close()


@needs_gpu
@pytest.mark.process
def test_arrays_are_tensors(stream):
    cupy, torch = pytest.importorskip("cupy"), pytest.importorskip("torch")
    memory, bring = stream
    data = payload(40 * (1 << 20), 8)
    whole = np.frombuffer(data, np.float32).reshape(40, 512, 512)
    sock = bring(data)
    reader, views = sock.reader(device="cuda:0"), 0
    for n in range(40):
        array = reader.read_array((512, 512), np.float32)
        views += memory.address <= array.ptr < memory.address + memory.size
        one, other = cupy.from_dlpack(array), torch.from_dlpack(array)
        assert one.data.ptr == other.data_ptr() == array.ptr  # no copy
        assert tuple(other.shape) == (512, 512)
        assert cupy.asnumpy(one).tobytes() == other.cpu().numpy().tobytes() == whole[n].tobytes()
        del one, other, array
    assert views
    with pytest.raises(EOFError):
        reader.read_array(1)
    sock.close()


@needs_gpu
@pytest.mark.process
def test_copies_and_odd_sizes(stream):
    torch = pytest.importorskip("torch")
    _, bring = stream
    data = payload(6_000_000, 11)
    sock = bring(b"head\n" + (1234567).to_bytes(4, "big") + data)
    reader = sock.reader(device="cuda:0")
    assert reader.readuntil() == b"head\n"
    message = torch.from_dlpack(reader.read_message())
    assert message.cpu().numpy().tobytes() == data[:1234567]
    at = 1234567
    for size in (1, 3, 4097, 100_001, 1_000_003):
        array = torch.from_dlpack(reader.read_array(size, copy=size % 2 == 0))
        assert array.cpu().numpy().tobytes() == data[at : at + size]
        at += size
    target = torch.zeros(250_000, dtype=torch.int32, device="cuda:0")
    reader.read_into(target)
    assert target.cpu().numpy().tobytes() == data[at : at + 1_000_000]
    at += 1_000_000
    assert reader.readexactly(10) == data[at : at + 10]
    with pytest.raises(NetmemError, match=r"is not on cuda:0|of a GPU") as caught:
        reader.read_into(np.zeros(10, np.uint8))
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(NetmemError, match="contiguous"):
        reader.read_into(target.reshape(500, 500).T)
    sock.abort()


@needs_gpu
@pytest.mark.process
def test_host_arrays_of_gpu_memory(stream):
    _, bring = stream
    data = payload(3_000_000, 12)
    sock = bring(data)
    assert sock.reader().read_array(3_000_000).tobytes() == data
    sock.close()


@needs_gpu
@pytest.mark.process
def test_views_keep_their_bytes(stream):
    torch = pytest.importorskip("torch")
    _, bring = stream
    data = payload(48 << 20, 13)
    sock = bring(data)
    reader = sock.reader(device="cuda:0")
    kept = [torch.from_dlpack(reader.read_array(1 << 20)) for _ in range(8)]
    rest = [
        hashlib.sha256(torch.from_dlpack(reader.read_array(1 << 20)).cpu().numpy()).digest()
        for _ in range(40)
    ]
    assert [t.cpu().numpy().tobytes() for t in kept] == [data[i << 20 : i + 1 << 20] for i in range(8)]
    assert rest == [hashlib.sha256(data[i << 20 : i + 1 << 20]).digest() for i in range(8, 48)]
    sock.close()


@needs_gpu
def test_gather_against_a_slow_reference():
    from netmem.base.cuda_gather import GatherKernel

    gpu, rng = cuda.Gpu(0), np.random.default_rng(3)
    kernel = GatherKernel(gpu, most=8)
    memory, target = CudaProvider(16 << 20), CudaProvider(16 << 20)
    data = payload(16 << 20)
    memory.write(0, data)
    for sizes in ([1], [4096] * 100, [65536] * 20, [1448] * 333, [5, 16384, 16385, 3, 70_001, 4, 8, 16]):
        for align in (1, 4, 16, 4096):
            frags = np.zeros((len(sizes), 3), np.int64)
            frags[:, 0] = rng.integers(0, (8 << 20) // align, len(sizes)) * align
            frags[:, 1] = np.array(sizes) | 7 << 32
            groups, total = groups_of(frags)
            kernel.load(groups)
            kernel.launch(memory.address, target.address)
            kernel.finish()
            slow = b"".join(data[o : o + s] for o, s in zip(frags[:, 0], sizes, strict=True))
            assert target.read(0, total) == slow
    memory.close()
    target.close()
    kernel.close()
