"""NVIDIA GPUs, as far as memory goes: allocations that other processes can have by descriptor, and copies.

CUDA's virtual memory management (CUDA Driver API, section 6.14): physical memory is a handle, exported as
a file descriptor; who wants to reach it maps the handle into its own addresses. That descriptor is no
dma-buf: what PCI devices need is ``Allocation.dmabuf``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from netmem.base.arena import Bytes
from netmem.base.errors import MissingError, NetmemError

ERRNO = {  # enum cudaError_enum
    "CUDA_ERROR_INVALID_VALUE": errno.EINVAL,
    "CUDA_ERROR_OUT_OF_MEMORY": errno.ENOMEM,
    "CUDA_ERROR_NO_DEVICE": errno.ENODEV,
    "CUDA_ERROR_INVALID_DEVICE": errno.ENODEV,
    "CUDA_ERROR_INVALID_HANDLE": errno.EBADF,
    "CUDA_ERROR_NOT_SUPPORTED": errno.EOPNOTSUPP,
    "CUDA_ERROR_NOT_PERMITTED": errno.EPERM,
}
BATCH_VERSION = 12080  # CUDA 12.8 has cuMemcpyBatchAsync()
_NOT_READY = 600  # CUDA_ERROR_NOT_READY
_LOOKS = 10_000  # at the word that the stream writes, before the driver is asked what keeps it
_STREAM_ORDER = 1  # CU_MEMCPY_SRC_ACCESS_ORDER_STREAM


@functools.cache
def _driver() -> Any:
    """cuda.bindings.driver, initialised. MissingError (ENODEV) says what is not there."""
    try:
        from cuda.bindings import driver
    except ImportError:
        raise MissingError("GPU memory needs NVIDIA's bindings: pip install 'pynetmem[cuda]'") from None
    try:
        (status,) = driver.cuInit(0)
    except Exception as error:  # of cuda.pathfinder: no library of that name
        raise MissingError(f"no NVIDIA driver here (libcuda.so.1): {str(error).splitlines()[0]}") from None
    if int(status):
        raise MissingError(f"the NVIDIA driver finds no GPU that it can use: {status.name}")
    return driver


def call(name: str, *args: Any) -> Any:
    """A function of the driver API; its results. NetmemError with an errno for its CUresult."""
    status, *results = getattr(_driver(), name)(*args)
    if int(status):
        raise NetmemError(ERRNO.get(status.name, errno.EIO), f"{name}: {status.name}")
    return results[0] if len(results) == 1 else results


class _Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Attributes(ctypes.Structure):
    """CUmemcpyAttributes."""

    _fields_ = (
        ("order", ctypes.c_uint), ("source", _Location), ("destination", _Location), ("flags", ctypes.c_uint),
    )  # fmt: skip


class Gpu:
    """A GPU, and its primary context, which CuPy and PyTorch use as well. ENODEV for one that is not there.

    As a context manager: its context is the thread's meanwhile.
    """

    def __init__(self, ordinal: int) -> None:
        self.ordinal, self._thread = ordinal, 0
        count = call("cuDeviceGetCount")
        if not 0 <= ordinal < count:
            have = ", ".join(f"cuda:{i}" for i in range(count)) or "none"
            raise NetmemError(errno.ENODEV, f"there is no GPU cuda:{ordinal} here; there is {have}")
        self._device = call("cuDeviceGet", ordinal)
        self.name = call("cuDeviceGetName", 64, self._device).rstrip(b"\0").decode()
        self.uuid = bytes(call("cuDeviceGetUuid", self._device).bytes).hex()
        self.granularity = int(call("cuMemGetAllocationGranularity", self.properties(), 0))

    @functools.cached_property
    def _context(self) -> Any:
        """Made when it is first needed: it takes memory of the GPU, and a moment."""
        return call("cuDevicePrimaryCtxRetain", self._device)

    @classmethod
    def by_uuid(cls, uuid: str) -> Gpu:
        """The GPU with this UUID, whatever its number is in this process. ENODEV."""
        for gpu in gpus():
            if gpu.uuid == uuid:
                return gpu
        raise NetmemError(errno.ENODEV, f"no GPU with the UUID {uuid} here (CUDA_VISIBLE_DEVICES?)")

    def properties(self) -> Any:
        """CUmemAllocationProp of memory on this GPU that can be exported."""
        cu = _driver()
        found = cu.CUmemAllocationProp()
        found.type = cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        found.location = self._location()
        found.requestedHandleTypes = _posix()
        return found

    def _location(self) -> Any:
        cu = _driver()
        location = cu.CUmemLocation()
        location.type, location.id = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE, self.ordinal
        return location

    def readable(self) -> Any:
        """CUmemAccessDesc: this GPU reads and writes."""
        cu = _driver()
        access = cu.CUmemAccessDesc()
        access.location = self._location()
        access.flags = cu.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        return access

    def round_up(self, size: int) -> int:
        """``size`` as this GPU allocates it: a multiple of its granularity (2 MiB)."""
        return -(-size // self.granularity) * self.granularity

    def stay(self) -> None:
        """Leave its context the calling thread's for good: a thread that works with this GPU all the time."""
        call("cuCtxSetCurrent", self._context)
        self._thread = threading.get_ident()

    def __enter__(self) -> Gpu:
        if self._thread != threading.get_ident():
            call("cuCtxPushCurrent", self._context)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread != threading.get_ident():
            call("cuCtxPopCurrent")


def gpus() -> list[Gpu]:
    """All GPUs here. MissingError (ENODEV) without driver or bindings."""
    return [Gpu(i) for i in range(call("cuDeviceGetCount"))]


def available() -> bool:
    """True where GPU memory can be had."""
    try:
        return bool(call("cuDeviceGetCount"))
    except NetmemError:
        return False


def _posix() -> Any:
    return _driver().CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


class Allocation:
    """Physical memory of a GPU. The driver frees it when no process has a handle to it, or a mapping.

    ``size``: bytes, a multiple of the GPU's granularity.
    """

    def __init__(self, gpu: Gpu, size: int, handle: Any) -> None:
        self.gpu, self.size, self._handle = gpu, size, handle
        self._address = 0

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _finalizing():
            self.close()

    @classmethod
    def make(cls, gpu: Gpu, size: int) -> Allocation:
        """New memory (cuMemCreate), at least ``size`` bytes, zeroed. ENOMEM."""
        size = gpu.round_up(size)
        try:
            made = cls(gpu, size, call("cuMemCreate", size, gpu.properties(), 0))
        except NetmemError as error:
            if error.errno != errno.ENOMEM:
                raise
            with gpu:
                free, total = call("cuMemGetInfo")
            have = f"cuda:{gpu.ordinal} ({gpu.name}) has {free >> 20} of {total >> 20} MiB free"
            raise NetmemError(errno.ENOMEM, f"{have}, not {size >> 20}") from None
        with gpu:
            call("cuMemsetD8", made.address, 0, size)  # what others left there is nobody's business
        return made

    @classmethod
    def imported(cls, gpu: Gpu, fd: int, size: int) -> Allocation:
        """The memory of another process behind a descriptor. EBADF for any other descriptor."""
        try:
            handle = call("cuMemImportFromShareableHandle", fd, _posix())
        except NetmemError as error:
            text = f"descriptor {fd} is no memory of a GPU: {error.strerror}"
            raise NetmemError(errno.EBADF, text) from None
        return cls(gpu, gpu.round_up(size), handle)

    def export(self) -> int:
        """A descriptor of the memory, for another process."""
        fd = int(call("cuMemExportToShareableHandle", self._handle, _posix(), 0))
        os.set_inheritable(fd, False)
        return fd

    def dmabuf(self) -> int:
        """A dma-buf of the memory, for a PCI device. EOPNOTSUPP where the driver offers none."""
        kind = _driver().CUmemRangeHandleType.CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD
        with self.gpu:
            fd = int(call("cuMemGetHandleForAddressRange", self.address, self.size, kind, 0))
        os.set_inheritable(fd, False)
        return fd

    @property
    def address(self) -> int:
        """Where the GPU reaches it in this process; mapped when it is first asked for."""
        if not self._address:
            reserved = call("cuMemAddressReserve", self.size, 0, 0, 0)
            try:
                call("cuMemMap", reserved, self.size, 0, self._handle, 0)
            except BaseException:
                call("cuMemAddressFree", reserved, self.size)
                raise
            self._address = int(reserved)
            call("cuMemSetAccess", reserved, self.size, [self.gpu.readable()], 1)
        return self._address

    def close(self) -> None:
        """Unmap it here and give the handle up."""
        with contextlib.suppress(NetmemError):  # the process ends, and its context is gone
            if self._address:
                address, self._address = self._address, 0
                call("cuMemUnmap", address, self.size)
                call("cuMemAddressFree", address, self.size)
            if self._handle is not None:
                handle, self._handle = self._handle, None
                call("cuMemRelease", handle)


class Copies:
    """Copies between host and GPU, in batches, on a stream of their own. One thread at a time."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        with gpu:
            self.stream = call("cuStreamCreate", 1)  # CU_STREAM_NON_BLOCKING
        self._word = PinnedMemory(gpu, 4)  # the stream writes there how many batches are done
        self._done = ctypes.c_uint32.from_address(self._word.address)
        self._done.value = self._begun = self._looks = 0
        self._attributes, self._first = _Attributes(order=_STREAM_ORDER), ctypes.c_size_t(0)
        self._failed = ctypes.c_size_t(0)
        self._batch = self._function("cuMemcpyBatchAsync", BATCH_VERSION, 9)
        self._one = self._function("cuMemcpyAsync", 4000, 4)
        self._write = self._function("cuStreamWriteValue32", 12000, 4)
        self._query = self._function("cuStreamQuery", 2000, 1)
        self._wait = self._function("cuStreamSynchronize", 2000, 1)

    def _function(self, name: str, version: int, args: int) -> Any:
        """A function of the driver, called with addresses as they are; for every batch of packets."""
        try:
            found, _ = call("cuGetProcAddress", name.encode(), version, 0)
        except NetmemError:
            return None
        return ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_size_t] * args)(int(found)) if int(found) else None

    def copy(self, to: int, source: int, sizes: int, n: int) -> None:
        """``start``, and wait until they are done. EIO."""
        self.start(to, source, sizes, n)
        with self.gpu:
            self._check(self._wait(int(self.stream)))

    def start(self, to: int, source: int, sizes: int, n: int) -> None:
        """Begin with ``n`` copies; the arguments are addresses of int64 arrays, free again on return. EIO."""
        if not n:
            return
        stream = int(self.stream)
        with self.gpu:
            if self._batch is not None:
                status = self._batch(
                    to, source, sizes, n, ctypes.addressof(self._attributes),
                    ctypes.addressof(self._first), 1, ctypes.addressof(self._failed), stream,
                )  # fmt: skip
            else:
                status = self._each(to, source, sizes, n, stream)
            self._check(status)
            self._begun = self._begun + 1 & 0xFFFFFFFF
            if self._write is not None and self._write(stream, self._word.address, self._begun, 0):
                self._write = None  # not on this GPU

    def is_done(self) -> bool:
        """Whether all that was begun is done. EIO."""
        if self._write is not None:
            if self._done.value == self._begun:
                return True
            self._looks += 1
            if self._looks % _LOOKS:
                return False
        with self.gpu:
            status = int(self._query(int(self.stream)))
        if status == _NOT_READY:
            return False
        self._check(status)
        return True

    def _check(self, status: int) -> None:
        if status:
            raise NetmemError(errno.EIO, f"cuda:{self.gpu.ordinal}: a copy failed: CUresult {status}")

    def _each(self, to: int, source: int, sizes: int, n: int, stream: int) -> int:
        """Before CUDA 12.8."""
        kind = ctypes.c_int64 * n
        for one in zip(*(kind.from_address(at) for at in (to, source, sizes)), strict=True):
            status = int(self._one(*one, stream))
            if status:
                return status
        return 0

    def close(self) -> None:
        """Give the stream up."""
        with contextlib.suppress(NetmemError), self.gpu:
            call("cuStreamDestroy", self.stream)
        self._word.close()


class PinnedMemory:
    """Host memory that a GPU's copy engine reaches (cuMemAllocHost): ``address``, ``size`` bytes. ENOMEM."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self.gpu, self.size = gpu, size
        with gpu:
            self.address = int(call("cuMemHostAlloc", size, 0))

    @property
    def bytes(self) -> Bytes:
        """The memory, as uint8, while this object lives."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address))

    def close(self) -> None:
        """Free it."""
        address, self.address = self.address, 0
        if address:
            with contextlib.suppress(NetmemError), self.gpu:
                call("cuMemFreeHost", address)


class RegisteredMemory:
    """Memory of this process that a GPU's copy engine reaches (cuMemHostRegister). EIO, ENOMEM."""

    def __init__(self, gpu: Gpu, address: int, size: int) -> None:
        self.gpu, self.address = gpu, address
        with gpu:
            call("cuMemHostRegister", address, size, 0)

    def close(self) -> None:
        """It is memory like any other again."""
        address, self.address = self.address, 0
        if address:
            with contextlib.suppress(NetmemError), self.gpu:
                call("cuMemHostUnregister", address)
