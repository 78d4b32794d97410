"""Memory that the driver knows by file descriptor only: a DMA-buf, or a memfd in its place.

The descriptor is never mapped here; only the application that asks for a view maps it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Any

from netmem.base.arena import PAGE_SIZE, memfd
from netmem.base.errors import NetmemError
from netmem.memory.provider import AreaProvider, check_size

EXPORTERS = ("auto", "udmabuf", "system-heap", "memfd")
UDMABUF, SYSTEM_HEAP = "/dev/udmabuf", "/dev/dma_heap/system"

# Request numbers: include/uapi/linux/udmabuf.h, dma-heap.h and dma-buf.h.
UDMABUF_CREATE = 0x40187542  # _IOW('u', 0x42, struct udmabuf_create)
DMA_HEAP_IOCTL_ALLOC = 0xC0184800  # _IOWR('H', 0, struct dma_heap_allocation_data)
DMA_BUF_IOCTL_SYNC = 0x40086200  # _IOW('b', 0, struct dma_buf_sync)
SYNC_READ, SYNC_WRITE, SYNC_END = 1, 2, 4
UDMABUF_FLAGS_CLOEXEC = 1


def _from_udmabuf(size: int) -> int:
    device = os.open(UDMABUF, os.O_RDWR | os.O_CLOEXEC)
    try:
        source = os.memfd_create("netmem:udmabuf", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(source, size)
            fcntl.fcntl(source, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            request = struct.pack("=IIQQ", source, UDMABUF_FLAGS_CLOEXEC, 0, size)
            return fcntl.ioctl(device, UDMABUF_CREATE, request)  # type: ignore[return-value]
        finally:
            os.close(source)
    finally:
        os.close(device)


def _from_system_heap(size: int) -> int:
    heap = os.open(SYSTEM_HEAP, os.O_RDWR | os.O_CLOEXEC)
    try:
        request = bytearray(struct.pack("=QIIQ", size, 0, os.O_RDWR | os.O_CLOEXEC, 0))
        fcntl.ioctl(heap, DMA_HEAP_IOCTL_ALLOC, request)
        return int(struct.unpack_from("=I", request, 8)[0])
    finally:
        os.close(heap)


def export(size: int, exporter: str = "auto") -> tuple[int, str, str]:
    """Memory of ``size`` bytes as (descriptor, exporter used, why a better one was passed over).

    ``auto`` tries udmabuf, then the system heap, then an ordinary memfd. Errors: EINVAL for an
    unknown exporter, ENODEV when the one asked for is not there, and what the exporter says.
    """
    if exporter not in EXPORTERS:
        raise NetmemError(errno.EINVAL, f"unknown exporter {exporter!r}; one of {', '.join(EXPORTERS)}")
    makers = {"udmabuf": (_from_udmabuf, UDMABUF), "system-heap": (_from_system_heap, SYSTEM_HEAP)}
    why: list[str] = []
    for name, (make, path) in makers.items():
        if exporter not in ("auto", name):
            continue
        try:
            return make(size), name, "; ".join(why)
        except OSError as error:
            text = f"{path} is not there" if error.errno == errno.ENOENT else f"{path}: {error.strerror}"
            if name == "udmabuf" and error.errno == errno.EINVAL:
                text += " (its size limit is udmabuf.size_limit_mb, 64 MiB by default)"
            if exporter == name:
                code = errno.ENODEV if error.errno == errno.ENOENT else error.errno or errno.EIO
                raise NetmemError(code, f"cannot export {size} bytes with {name}: {text}") from None
            why.append(text)
    return memfd("dmabuf", size), "memfd", "; ".join(why)


class DmabufProvider(AreaProvider):
    """``size`` bytes that driver, pool and stack never map (net_devmem_dmabuf_binding).

    ``exporter``: auto, udmabuf, system-heap or memfd; ``exporter_used`` and ``fallback`` say what
    it came to and why. ``rx_page_size``: bytes of one net_iov, a power of two from 4 KiB to 2 MiB.
    Errors: EINVAL, ERANGE for sizes; ENODEV for an exporter that is not there.
    """

    name = "dmabuf"
    unreadable = True

    def __init__(self, size: int, *, exporter: str = "auto", rx_page_size: int = PAGE_SIZE) -> None:
        check_size(size, rx_page_size)
        fd, self.exporter_used, self.fallback = export(size, exporter)
        super().__init__(fd, size, rx_page_size, net_iov=True, address=0)

    def cpu_access(self, *, write: bool = False) -> contextlib.AbstractContextManager[None]:
        """Brackets the application's own access to the memory (DMA_BUF_IOCTL_SYNC).

        Syncing a DMA-buf for the CPU is its user's duty, not the page pool's (netmem.rst, rule 6).
        """
        return super().cpu_access() if self.exporter_used == "memfd" else self._bracket(write)

    @contextlib.contextmanager
    def _bracket(self, write: bool) -> Iterator[None]:
        flags = SYNC_READ | (SYNC_WRITE if write else 0)
        self._sync(flags)
        try:
            yield
        finally:
            self._sync(flags | SYNC_END)

    def _sync(self, flags: int) -> None:
        fcntl.ioctl(self.fd, DMA_BUF_IOCTL_SYNC, struct.pack("=Q", flags))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "exporter": self.exporter_used, "fallback": self.fallback}

    def _release(self) -> None:
        os.close(self.fd)
        self.fd = -1
