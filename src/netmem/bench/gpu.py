"""Into GPU memory: goodput beside a kernel socket with a copy to the GPU, and what gathering costs there."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from netmem.base.arena import Words
from netmem.base.cuda import Allocation, Gpu, call
from netmem.base.cuda_gather import GatherKernel, groups_of
from netmem.bench.figures import Figure, in_turn, receiver_argv
from netmem.hw.process import python_argv

GATHERED = 512 << 20
PIECES = (1448, 4096, 65536)
TIMES = 9
AHEAD = 6


def goodput(rounds: int, size: int) -> dict[str, tuple[Figure, Figure]]:
    """`netmem recv --memory cuda:0`, and a kernel socket that receives into pinned memory, in turn."""
    commands = {
        "netmem": receiver_argv("--memory", "cuda:0"),
        "pages": receiver_argv("--memory", "cuda:0", "--rx-page-size", "4096"),
        "host": receiver_argv(),
        "kernel": python_argv("netmem.bench.gpu_receiver"),
    }
    return in_turn(commands, rounds, size)


def pieces(size: int, count: int) -> Words:
    """``count`` frags of ``size`` bytes in no order, 4 KiB aligned as net_iovs are."""
    room = -(-size // 4096) * 4096
    frags = np.zeros((count, 3), np.int64)
    frags[:, 0] = np.random.default_rng(1).permutation(count) * room
    frags[:, 1] = size
    return frags


def gather() -> dict[str, Figure]:
    """GB/s of payload: "copy" is one from the device to the device, the others are gathered from pieces."""
    gpu = Gpu(0)
    kernel = GatherKernel(gpu)
    source, target = Allocation.make(gpu, 2 * GATHERED), Allocation.make(gpu, GATHERED)
    found: dict[str, list[float]] = {"copy": [], **{str(size): [] for size in PIECES}}
    busy = Allocation.make(gpu, GATHERED)
    lists = {size: groups_of(pieces(size, GATHERED // (-(-size // 4096) * 4096))) for size in PIECES}
    for _ in range(TIMES + 1):
        found["copy"].append(_timed(kernel, busy, functools.partial(_copy, kernel, source, target), GATHERED))
        for size, (groups, total) in lists.items():
            kernel.load(groups)
            run = functools.partial(kernel.launch, source.address, target.address)
            found[str(size)].append(_timed(kernel, busy, run, total))
    source.close()
    busy.close()
    target.close()
    return {name: Figure(tuple(rates[1:])) for name, rates in found.items()}  # the first warms up


def _copy(kernel: GatherKernel, source: Allocation, target: Allocation) -> None:
    with kernel.gpu:
        call("cuMemcpyDtoDAsync", target.address, source.address, GATHERED, int(kernel.stream.handle))


def _timed(kernel: GatherKernel, busy: Allocation, run: Callable[[], None], size: int) -> float:
    """GB/s, by the GPU's own clock."""
    stream = int(kernel.stream.handle)
    with kernel.gpu:
        first, last = call("cuEventCreate", 0), call("cuEventCreate", 0)
        for _ in range(AHEAD):  # the GPU is busy until all of it is asked for: no wait for us is timed
            call("cuMemsetD8Async", busy.address, 0, busy.size, stream)
        call("cuEventRecord", first, stream)
        run()
        call("cuEventRecord", last, stream)
        kernel.finish()
        seconds = float(call("cuEventElapsedTime", first, last)) / 1e3
        call("cuEventDestroy", first)
        call("cuEventDestroy", last)
    return float(size / seconds / 1e9)
