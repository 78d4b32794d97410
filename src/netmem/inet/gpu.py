"""A reader's arrays in GPU memory: gathered by the GPU, handed on through DLPack.

What the application gets is a ``cuda.core`` StridedMemoryView, which ``cupy.from_dlpack`` and
``torch.from_dlpack`` take without a copy. All of it has arrived when it is returned, on every stream. Letting
go of it waits for what the GPU works on, as cudaFree() does: only then its memory is used again.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from netmem.base.arena import Words
from netmem.base.cuda import Copies, Gpu, call
from netmem.base.cuda_gather import GatherKernel, groups_of
from netmem.base.errors import NetmemError
from netmem.base.place import NOT_WRITABLE, Writable
from netmem.memory.provider import AreaProvider
from netmem.memory.providers.cuda import CudaProvider


class GpuBytes:
    """``size`` bytes of a GPU at ``address``, which ``owner`` keeps."""

    def __init__(self, address: int, size: int, owner: object) -> None:
        self.address, self.size, self.owner = address, size, owner


class _Allocated:
    """Memory of our own (cuMemAlloc); cuMemFree waits for whoever still works on it."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu = gpu
        with gpu:
            self.address = int(call("cuMemAlloc", size)) if size else 0

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        address = getattr(self, "address", 0)
        if address and not _finalizing():
            with contextlib.suppress(NetmemError), self._gpu:
                call("cuMemFree", address)


class OnGpu:
    """Memory of one GPU. ENODEV without it. One thread at a time."""

    def __init__(self, device: str) -> None:
        kind, _, ordinal = device.partition(":")
        if kind != "cuda" or not ordinal.isdigit():
            raise NetmemError(errno.EINVAL, f"unknown device {device!r}: cuda:0, or the like")
        self.device = device
        self.gpu = Gpu(int(ordinal))
        self._copies, self._kernel = Copies(self.gpu), GatherKernel(self.gpu)

    def empty(self, size: int) -> GpuBytes:
        """Place.empty."""
        made = _Allocated(self.gpu, size)
        return GpuBytes(made.address, size, made)

    def writable(self, destination: Writable) -> tuple[GpuBytes, int]:
        """Place.writable: a tensor on this GPU."""
        from cuda.core.utils import StridedMemoryView

        name = type(destination).__name__
        try:
            with self.gpu:
                view = StridedMemoryView.from_any_interface(destination, stream_ptr=-1)
        except (AttributeError, TypeError, BufferError, RuntimeError, ValueError) as error:
            raise NetmemError(errno.EINVAL, f"{name} is no memory of a GPU: {error}") from None
        if not view.is_device_accessible or view.device_id != self.gpu.ordinal:
            raise NetmemError(errno.EINVAL, f"{name} is not on {self.device}, where this reader's arrays are")
        size = view.dtype.itemsize * int(np.prod(view.shape, dtype=np.int64))
        if view.readonly or not _is_contiguous(view):
            raise NetmemError(errno.EINVAL, NOT_WRITABLE)
        return GpuBytes(int(view.ptr), size, view), size

    def address(self, memory: GpuBytes) -> int:
        """Place.address."""
        return memory.address

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Place.store."""
        source = np.frombuffer(bytes(data), np.uint8)
        self._copy(address, source.ctypes.data, len(source))

    def move(self, address: int, memory: GpuBytes, size: int) -> None:
        """Place.move."""
        self._copy(address, memory.address, size)

    def load(self, memory: GpuBytes, size: int) -> bytes:
        """Place.load."""
        out = np.empty(size, np.uint8)
        self._copy(out.ctypes.data, memory.address, size)
        return out.tobytes()

    def _copy(self, to: int, source: int, size: int) -> None:
        if size:
            words = np.array([to, source, size], np.int64)
            at = words.ctypes.data
            self._copies.copy(at, at + 8, at + 16, 1)

    def gather(self, provider: AreaProvider, base: int, rows: Words, to: int) -> int:
        """GpuPlace.gather: by the GPU where the memory is its own, else through the host."""
        if base:
            groups, done = groups_of(rows)
            self._kernel.load(groups)
            self._kernel.launch(base, to)
            self._kernel.finish()
            return done
        part = np.empty(int((rows[:, 1] & 0xFFFFFFFF).sum()), np.uint8)
        provider.gather(rows, part.ctypes.data)
        self.store(to, part.data)
        return len(part)

    def base(self, provider: AreaProvider) -> int:
        """GpuPlace.base."""
        assert isinstance(provider, CudaProvider)
        return provider.address

    def view(self, view: Any, size: int) -> GpuBytes:
        """Place.view."""
        return GpuBytes(view.address, size, view)

    def settle(self) -> None:
        """Place.settle: kernels that were launched on a view, and have not run yet."""
        with contextlib.suppress(NetmemError), self.gpu:
            call("cuCtxSynchronize")

    def shaped(self, memory: GpuBytes, kind: np.dtype[Any], shape: tuple[int, ...]) -> Any:
        """Place.shaped."""
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        buffer = Buffer.from_handle(memory.address, memory.size, owner=memory)
        return StridedMemoryView.from_buffer(buffer, shape, dtype=kind)


def _is_contiguous(view: Any) -> bool:
    """True for a tensor in C order; DLPack says no strides for such, or the usual ones, in items."""
    if view.strides is None:
        return True
    expected = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
