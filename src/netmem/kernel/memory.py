"""Memory for payload that the kernel binds to queues: dma-bufs, of its exporters or of anybody's."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os

import numpy as np
import numpy.typing as npt

from netmem.base import dmabuf
from netmem.base.errors import NetmemError

Bytes = npt.NDArray[np.uint8]


class Dmabuf:
    """A dma-buf: of an exporter (auto, udmabuf, system-heap), or ``fd``, which stays the caller's.

    ENODEV where nothing exports one; EINVAL; EBADF for a descriptor that is no dma-buf.
    """

    def __init__(self, size: int = 0, *, exporter: str = "auto", fd: int | None = None) -> None:
        have, self.exporter_used = (size, "") if fd is None else dmabuf.look_at(fd)
        self.fd, self.size, why = -1, size or have, ""
        if not 0 < self.size <= have or self.size % mmap.PAGESIZE:
            raise NetmemError(
                errno.EINVAL, f"{self.size} bytes: a multiple of {mmap.PAGESIZE}, and no more than there is"
            )
        if fd is None:
            self.fd, self.exporter_used, why = dmabuf.export(size, exporter)
        else:
            self.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        if self.exporter_used == "memfd":
            self.close()
            raise NetmemError(errno.ENODEV, f"the kernel binds dma-bufs only: {why or 'this is a memfd'}")

    def map(self, *, writable: bool = False) -> Bytes:
        """The application's own view of the memory, as uint8; look at it within ``cpu_access``."""
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return np.frombuffer(mmap.mmap(self.fd, self.size, mmap.MAP_SHARED, access), np.uint8)

    def cpu_access(self, *, write: bool = False) -> contextlib.AbstractContextManager[None]:
        """Brackets the CPU's access (DMA_BUF_IOCTL_SYNC)."""
        return dmabuf.cpu_access(self.fd, write=write)

    def close(self) -> None:
        """The memory lives on while it is bound, mapped, or held by sockets."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Dmabuf:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
