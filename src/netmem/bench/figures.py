"""The measurements behind `netmem bench`, one function each; all return one figure per repeat."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netmem.base.clock import MonotonicClock
from netmem.base.dma import DmaDirection, DmaWatcher
from netmem.base.ethtool import SteeringRule, TcpDataSplit
from netmem.bench import kernels as ck
from netmem.drivers.softnic import SoftnicDriver
from netmem.hw.process import python_argv
from netmem.lab.local import pair
from netmem.memory import sanitizer
from netmem.memory.layout import PP_FLAG_ALLOW_UNREADABLE_NETMEM, PP_FLAG_DMA_MAP, PP_FLAG_DMA_SYNC_DEV
from netmem.memory.page_pool import PagePool
from netmem.memory.params import PagePoolParams
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.testing import frames

BULK = 64
SEGMENT = 1448
PORT = 5001
LIMIT_S = 120


@dataclass(frozen=True)
class Figure:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self, digits: int = 1) -> str:
        """Median and spread, as in ``12.3 (11.9 to 12.8)``."""
        low, high = min(self.values), max(self.values)
        return f"{self.median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def repeat(run: Callable[[], float], times: int) -> Figure:
    """``run`` once to warm up, then ``times`` times."""
    run()
    return Figure(tuple(run() for _ in range(times)))


class _NoDevice:
    """A DMA device that maps anything: the pool benchmarks move no data."""

    pins = False

    def __init__(self) -> None:
        self.watchers: list[DmaWatcher] = []

    def dma_map_resource(self, address: int, length: int) -> int:
        return address

    def dma_map(
        self, fd: int, offset: int, length: int, direction: DmaDirection, *, peer: bool = False,
        exporter: str = "",
    ) -> int:  # fmt: skip
        return 1 << 32

    def dma_unmap(self, io_address: int) -> None: ...
    def dma_bounce(self, io_address: int) -> int:
        return 0

    def sync_for_cpu(self, io_address: int, length: int) -> None: ...
    def sync_for_device(self, io_address: int, length: int) -> None: ...


class _Owner:
    name = "bench"

    def __init__(self, provider: DmabufProvider) -> None:
        self.provider = provider
        self.page_pools = set[PagePool]()

    def rxq_memory_provider(self, queue: int) -> DmabufProvider:
        return self.provider

    def rxq_binding_id(self, queue: int) -> int:
        return 1

    def is_registered(self) -> bool:
        return True


def pool(times: int) -> dict[str, Figure | None]:
    """(a): ns per netmem for allocation and put together."""
    provider = DmabufProvider(8 << 20, exporter="memfd")
    device = _NoDevice()
    provider.attach(device)
    made = PagePool(
        PagePoolParams(
            flags=PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV | PP_FLAG_ALLOW_UNREADABLE_NETMEM,
            dev=device,
            max_len=4096,
            netdev=_Owner(provider),
        )
    )
    refs = np.zeros(BULK, np.int64)
    made.recycle_direct_netmem(made.alloc_netmems(BULK))

    def in_kernel(kernel: Callable[..., int]) -> float:
        rounds = 50_000
        start = time.perf_counter_ns()
        n = kernel(made.at, refs, rounds)
        return (time.perf_counter_ns() - start) / n

    def from_python() -> float:
        rounds = 20_000
        start = time.perf_counter_ns()
        for _ in range(rounds):
            made.recycle_direct_netmem(made.alloc_netmems(BULK, refs))
        return (time.perf_counter_ns() - start) / (rounds * BULK)

    def plain_python() -> float:
        free, rounds = list(range(2048)), 5_000
        start = time.perf_counter_ns()
        for _ in range(rounds):
            taken = [free.pop() for _ in range(BULK)]
            for one in taken:
                free.append(one)
        return (time.perf_counter_ns() - start) / (rounds * BULK)

    return {
        "page pool, inside a kernel, bulks of 64": repeat(lambda: in_kernel(ck.pool_rounds), times),
        "page pool, inside a kernel, one by one": repeat(lambda: in_kernel(ck.pool_singles), times),
        "page pool, from Python at bulk 64": repeat(from_python, times),
        "plain-Python free list": repeat(plain_python, times),
        "DPDK rte_mempool at bulk 64 (C)": rte_mempool(),
    }


def rte_mempool() -> Figure | None:
    """DPDK's mempool, when its development package and a C compiler are installed."""
    if not shutil.which("pkg-config") or not shutil.which("cc"):
        return None
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libdpdk"], capture_output=True, text=True)
    if flags.returncode:
        return None
    source = Path(__file__).with_name("rte_mempool.c")
    with tempfile.TemporaryDirectory() as folder:
        binary = f"{folder}/rte_mempool"
        build = ["cc", "-O3", "-march=native", str(source), "-o", binary, *flags.stdout.split()]
        if subprocess.run(build, capture_output=True).returncode:
            return None
        words = [binary, "--no-huge", "--no-pci", "-m", "64", "-l", "0", "--log-level", "1"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)
    try:
        return Figure(tuple(float(line) for line in done.stdout.splitlines()[-5:]))
    except ValueError:
        return None


def sanitized(budget: int, times: int) -> Figure:
    """The receive path as ``receive`` measures it, with the sanitiser on."""
    sanitizer.enable()
    try:
        return receive(budget, times)
    finally:
        sanitizer.enable(False)


def receive(budget: int, times: int, packets: int = 200_000) -> Figure:
    """(b): ns per packet from completed descriptor through recvmsg_devmem back to the pool."""
    clock = MonotonicClock()
    ours, theirs = pair(clock)
    provider = DmabufProvider(64 << 20, exporter="memfd")
    ours.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
    binding = ours.dev.bind_rx([1], provider)
    ours.dev.ethtool.add_rule(SteeringRule(queue=1, dst_port=PORT))
    listener = ours.stack.listen(PORT)
    theirs.stack.connect_nowait(frames.OURS, PORT)
    deadline = time.monotonic() + 10
    while not listener.pending() and time.monotonic() < deadline:
        for host in (ours, theirs):
            host.step(clock.now())
    sock = listener.accept(timeout=1)
    # From here on this loop is the NIC: it completes descriptors, and swallows what is sent.
    stack, tcb = ours.stack, ours.stack.conns.tcbs[0]
    assert isinstance(ours.driver, SoftnicDriver)
    mem = ours.driver._rx[1]
    wire = ours.nic.wire.tx.record
    options = bytes.fromhex("0101080a") + tcb.ts_recent.to_bytes(4, "big") + bytes(4)
    header = frames.tcp(b"", sport=tcb.ports >> 16, dport=PORT, ack=tcb.snd_nxt, options=options, window=512)
    header = header[:16] + (52 + SEGMENT).to_bytes(2, "big") + header[18:]  # IP total length
    template = np.frombuffer(header, np.uint8).copy()
    at = mem.record.next_to_clean

    def batch(n: int) -> int:
        nonlocal at
        seq = tcb.rcv_nxt
        at = ck.complete(mem.at, at, n, template.ctypes.data, len(header), SEGMENT, seq)
        start = time.perf_counter_ns()
        stack.poll()
        frags = sock.recvmsg_devmem(max_frags=n).frags
        sock.devmem_dontneed(frags["frag_token"])
        spent = time.perf_counter_ns() - start
        if len(frags) != n:
            raise RuntimeError(f"{len(frags)} of {n} packets came through")
        ours.bus.step(clock.now())
        wire.head = wire.tail
        ours.bus.step(clock.now())
        return spent

    for _ in range(10):
        batch(16)  # until the window is open

    def run() -> float:
        rounds = packets // budget
        return sum(batch(budget) for _ in range(rounds)) / (rounds * budget)

    figure = repeat(run, times)
    theirs.stack.close()
    sock.close()
    binding.close()
    for host in (ours, theirs):
        host.close()
    return figure


_KERNEL_RECEIVER = """
import json, mmap, os, socket, sys, time
with socket.create_server(("127.0.0.1", 0)) as server:
    print(json.dumps({"port": server.getsockname()[1]}), flush=True)
    sock, _ = server.accept()
fd = os.memfd_create("copy")
os.ftruncate(fd, 64 << 20)
memory = memoryview(mmap.mmap(fd, 64 << 20))
buffer = memoryview(bytearray(256 << 10))
total = at = 0
start = 0.0
while n := sock.recv_into(buffer):
    start = start or time.monotonic()
    if at + n > len(memory):
        at = 0
    memory[at : at + n] = buffer[:n]
    at += n
    total += n
    end = time.monotonic()
sock.close()
print(json.dumps({"bytes": total, "seconds": end - start}), flush=True)
"""


def kernel_receiver() -> list[str]:
    """The command of a kernel socket with recv_into and one copy."""
    return [python_argv("x")[0], "-c", _KERNEL_RECEIVER]


def _cpu(pid: int) -> float:
    """CPU seconds that a process and its children have used, from /proc."""
    ticks = 0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for one in (str(pid), *children):
        fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def transfer(
    argv: list[str],
    size: int,
    *,
    address: str = "127.0.0.1",
    inside: tuple[str, ...] = (),
    congestion: tuple[str, ...] = (),
) -> tuple[float, float]:
    """Start a receiver, send it ``size`` bytes; (Gbit/s, CPU seconds per GB of the receiver).

    ``inside``: words before both commands, such as those that enter a network namespace. ``congestion``: the
    sender's congestion control, the machine's default without.
    """
    words = [*inside, *argv]
    receiver = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert receiver.stdout is not None
        port = str(json.loads(receiver.stdout.readline())["port"])
        before = _cpu(receiver.pid)
        sender = python_argv("netmem.lab.sender", address, port, str(size), *congestion)
        subprocess.run([*inside, *sender], timeout=LIMIT_S, check=True)
        summary: dict[str, Any] = json.loads(receiver.stdout.read().splitlines()[-1])
        _, _, usage = os.wait4(receiver.pid, 0)
        receiver.returncode = 0
    finally:
        if receiver.returncode is None:
            receiver.kill()
            receiver.wait()
    if summary["bytes"] != size:
        raise RuntimeError(f"{summary['bytes']} of {size} bytes arrived")
    spent = usage.ru_utime + usage.ru_stime - before
    return size * 8 / summary["seconds"] / 1e9, spent / (size / 1e9)


def receiver_argv(*more: str) -> list[str]:
    """The command of a `netmem recv` of one connection into unreadable memory."""
    words = ("--memory", "dmabuf", "--exporter", "memfd", "--json", "--count", "1", "--listen", "127.0.0.1:0")
    return python_argv("netmem.cli.entry", "recv", *words, *more)


def in_turn(commands: dict[str, list[str]], rounds: int, size: int) -> dict[str, tuple[Figure, Figure]]:
    """Goodput and CPU of receivers, by name, in alternating rounds."""
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, argv in commands.items():
            results[name].append(transfer(argv, size))
    return {
        name: (Figure(tuple(g for g, _ in found)), Figure(tuple(c for _, c in found)))
        for name, found in results.items()
    }


def goodput(mtu: int, rounds: int, size: int) -> dict[str, tuple[Figure, Figure]]:
    """(c): `netmem recv`, with segments merged by the NIC and not, and a kernel socket with one copy."""
    commands = {
        "netmem": receiver_argv("--mtu", str(mtu)),
        "cut": receiver_argv("--mtu", str(mtu), "--rx-gro-hw", "off"),
        "kernel": kernel_receiver(),
    }
    return in_turn(commands, rounds, size)


def arrays(rounds: int, size: int) -> dict[str, tuple[Figure, Figure]]:
    """(d): arrays where they lie, or gathered, and `netmem recv` on the same wire; by page size."""
    commands = {}
    for page in ("65536", "4096"):
        commands[f"arrays {page}"] = python_argv("netmem.bench.arrays", page)
        commands[f"recv {page}"] = receiver_argv("--rx-page-size", page)
    return in_turn(commands, rounds, size)
