"""Frags of GPU memory end to end, by the GPU: one launch for a whole receive."""

from __future__ import annotations

import numpy as np

from netmem.base.arena import Words
from netmem.base.cuda import Gpu, PinnedMemory

PART = 8 << 10  # bytes that one warp copies at a time, at most
GROUP = 8  # parts that one block of threads copies
THREADS = 128
SIZE_SHIFT = 48  # of a part: its offset, and its bytes above
SOURCE = """
#define WARP 32

// Parts that lie end to end at the target, the first at ``to``; each is an offset, and its size above it.
struct group { unsigned long long to, part[GROUP]; };

template <typename Word> __device__ unsigned copy(const char *from, char *to, unsigned size, unsigned lane)
{
    const Word *source = (const Word *)from;
    Word *target = (Word *)to;
    const unsigned words = size / sizeof(Word);
    unsigned i = lane;
    for (; i + 7 * WARP < words; i += 8 * WARP) {
        Word many[8];
#pragma unroll
        for (int k = 0; k < 8; k++) many[k] = source[i + k * WARP];
#pragma unroll
        for (int k = 0; k < 8; k++) target[i + k * WARP] = many[k];
    }
    for (; i < words; i += WARP) target[i] = source[i];
    return words * sizeof(Word);
}

extern "C" __global__ void __launch_bounds__(THREADS) gather(const group *groups, const char *base, char *out)
{
    __shared__ group mine;
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned long long *listed = (const unsigned long long *)&groups[blockIdx.x];
    if (threadIdx.x < sizeof(group) / 8)  // the list is in the host's memory: one read for all
        ((unsigned long long *)&mine)[threadIdx.x] = listed[threadIdx.x];
    __syncthreads();
    char *to = out + mine.to;
    for (unsigned i = 0; i < GROUP; i++) {
        const unsigned size = (unsigned)(mine.part[i] >> SIZE_SHIFT);
        const char *from = base + (mine.part[i] & ((1ull << SIZE_SHIFT) - 1));
        if (i % (THREADS / WARP) == warp) {
            const unsigned long long both = (unsigned long long)from | (unsigned long long)to;
            unsigned done = 0;
            if ((both & 15) == 0) done = copy<uint4>(from, to, size, lane);
            else if ((both & 3) == 0) done = copy<unsigned>(from, to, size, lane);
            for (unsigned k = done + lane; k < size; k += WARP) to[k] = from[k];
        }
        to += size;
    }
}
"""


def groups_of(frags: Words) -> tuple[Words, int]:
    """What the kernel is told of frags (offset, size | token << 32, ids): its groups; and the bytes in all.

    Shape (n, 1 + GROUP): where the group goes, and for each part its offset and, above it, its size.
    """
    sizes = frags[:, 1] & 0xFFFFFFFF
    counts = -(-sizes // PART)
    of = np.repeat(np.arange(len(frags)), counts)
    start = (np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)) * PART
    part_sizes = np.minimum(sizes[of] - start, PART)
    groups = np.zeros((-(-len(of) // GROUP), 1 + GROUP), np.int64)
    parts = np.zeros(len(groups) * GROUP, np.int64)
    parts[: len(of)] = frags[of, 0] + start | part_sizes << SIZE_SHIFT
    groups[:, 1:] = parts.reshape(-1, GROUP)
    groups[:, 0] = (np.cumsum(part_sizes) - part_sizes)[::GROUP]
    return groups, int(sizes.sum())


class GatherKernel:
    """The kernel on one GPU, and the list that it reads. One thread at a time; ``stream`` is its own.

    Compiled when it is made (NVRTC, about 0.2 s).
    """

    def __init__(self, gpu: Gpu, most: int = 1024) -> None:
        from cuda.core import Device, Program, ProgramOptions

        self.gpu, self._count = gpu, 0
        self._device = Device(gpu.ordinal)
        with gpu:
            self._device.set_current()
            self.stream = self._device.create_stream()
            macros = [f"THREADS={THREADS}", f"GROUP={GROUP}", f"SIZE_SHIFT={SIZE_SHIFT}"]
            options = ProgramOptions(std="c++17", arch=f"sm_{self._device.arch}", define_macro=macros)
            self._kernel = Program(SOURCE, "c++", options).compile("cubin").get_kernel("gather")
        self._make_room(most)

    def _make_room(self, most: int) -> None:
        self._most, self._groups = most, PinnedMemory(self.gpu, most * (1 + GROUP) * 8)

    def load(self, groups: Words) -> None:
        """Take the list that ``launch`` works on. Nothing is launched that is not finished."""
        if len(groups) > self._most:
            self._groups.close()
            self._make_room(len(groups))
        self._count = len(groups)
        self._groups.bytes[: groups.nbytes] = groups.reshape(-1).view(np.uint8)

    def launch(self, base: int, to: int) -> None:
        """Copy the frags of the list, behind GPU address ``base``, end to end to ``to``.

        Returns at once: ``finish`` waits.
        """
        from cuda.core import LaunchConfig, launch

        if self._count:
            with self.gpu:
                config = LaunchConfig(grid=self._count, block=THREADS)
                launch(self.stream, config, self._kernel, self._groups.address, base, to)

    def close(self) -> None:
        """Give up what it keeps on the GPU."""
        self._groups.close()
        self.stream.close()

    def finish(self) -> None:
        """Until what was launched is done. EIO."""
        with self.gpu:
            self.stream.sync()
