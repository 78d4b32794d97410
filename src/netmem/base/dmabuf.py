"""dma-bufs of the running kernel: who exports them, and the bracket around access by the CPU."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator

from netmem.base.errors import NetmemError
from netmem.base.memfd import memfd

EXPORTERS = ("auto", "udmabuf", "system-heap", "memfd")
DEVICES = {"udmabuf": "/dev/udmabuf", "system-heap": "/dev/dma_heap/system"}

# Request numbers: include/uapi/linux/udmabuf.h, dma-heap.h and dma-buf.h.
UDMABUF_CREATE = 0x40187542  # _IOW('u', 0x42, struct udmabuf_create)
DMA_HEAP_IOCTL_ALLOC = 0xC0184800  # _IOWR('H', 0, struct dma_heap_allocation_data)
DMA_BUF_IOCTL_SYNC = 0x40086200  # _IOW('b', 0, struct dma_buf_sync)
SYNC_READ, SYNC_WRITE, SYNC_END = 1, 2, 4
UDMABUF_FLAGS_CLOEXEC = 1


Keep = Callable[[int], None]


def _from_udmabuf(size: int, keep: Keep | None) -> int:
    device = os.open(DEVICES["udmabuf"], os.O_RDWR | os.O_CLOEXEC)
    try:
        source = os.memfd_create("netmem:udmabuf", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(source, size)
            fcntl.fcntl(source, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            # Of bytes that cannot be changed, ioctl() returns a copy, not the descriptor.
            request = bytearray(struct.pack("=IIQQ", source, UDMABUF_FLAGS_CLOEXEC, 0, size))
            made = fcntl.ioctl(device, UDMABUF_CREATE, request)
            if keep is not None:
                keep(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 0))
            return made
        finally:
            os.close(source)
    finally:
        os.close(device)


def _from_system_heap(size: int, keep: Keep | None) -> int:
    heap = os.open(DEVICES["system-heap"], os.O_RDWR | os.O_CLOEXEC)
    try:
        request = bytearray(struct.pack("=QIIQ", size, 0, os.O_RDWR | os.O_CLOEXEC, 0))
        fcntl.ioctl(heap, DMA_HEAP_IOCTL_ALLOC, request)
        return int(struct.unpack_from("=I", request, 8)[0])
    finally:
        os.close(heap)


def export(size: int, exporter: str = "auto", keep: Keep | None = None) -> tuple[int, str, str]:
    """Memory of ``size`` bytes as (descriptor, exporter used, why a better one was passed over).

    ``auto`` tries udmabuf, then the system heap, then an ordinary memfd. ``keep`` gets a descriptor of the
    memfd that a udmabuf consists of: the same memory, for who cannot import a dma-buf. Errors: EINVAL for an
    unknown exporter, ENODEV when the one asked for is not there, and what the exporter says.
    """
    if exporter not in EXPORTERS:
        raise NetmemError(errno.EINVAL, f"unknown exporter {exporter!r}; one of {', '.join(EXPORTERS)}")
    makers = {"udmabuf": _from_udmabuf, "system-heap": _from_system_heap}
    why: list[str] = []
    for name, make in makers.items():
        if exporter not in ("auto", name):
            continue
        path = DEVICES[name]
        try:
            return make(size, keep), name, "; ".join(why)
        except OSError as error:
            text = f"{path} is not there" if error.errno == errno.ENOENT else f"{path}: {error.strerror}"
            if name == "udmabuf" and error.errno == errno.EINVAL:
                text += " (its size limit is udmabuf.size_limit_mb, 64 MiB by default)"
            if exporter == name:
                code = errno.ENODEV if error.errno == errno.ENOENT else error.errno or errno.EIO
                raise NetmemError(code, f"cannot export {size} bytes with {name}: {text}") from None
            why.append(text)
    return memfd("dmabuf", size), "memfd", "; ".join(why)


def look_at(fd: int) -> tuple[int, str]:
    """Bytes of a dma-buf that somebody else made, and its exporter as far as one sees it: given, or memfd.

    A memfd stands in for a dma-buf here as well. EBADF for anything else, as dma_buf_get() says.
    """
    try:
        what = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        raise NetmemError(errno.EBADF, f"{fd} is no open file descriptor") from None
    if not what.startswith(("/dmabuf:", "/memfd:")):
        raise NetmemError(errno.EBADF, f"descriptor {fd} ({what}) is neither a dma-buf nor a memfd")
    if what.startswith("/memfd:"):
        return os.fstat(fd).st_size, "memfd"
    size = os.lseek(fd, 0, os.SEEK_END)
    os.lseek(fd, 0, os.SEEK_SET)
    return size, "given"


@contextlib.contextmanager
def cpu_access(fd: int, *, write: bool = False) -> Iterator[None]:
    """Brackets the CPU's own access to a dma-buf (DMA_BUF_IOCTL_SYNC), which is its user's duty."""
    flags = SYNC_READ | (SYNC_WRITE if write else 0)
    _sync(fd, flags)
    try:
        yield
    finally:
        _sync(fd, flags | SYNC_END)


def _sync(fd: int, flags: int) -> None:
    fcntl.ioctl(fd, DMA_BUF_IOCTL_SYNC, struct.pack("=Q", flags))
