"""Memory that the driver knows by file descriptor only: a DMA-buf, or a memfd in its place.

The descriptor is never mapped here; only the application that asks for a view maps it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import Any

from netmem.base import dmabuf
from netmem.base.arena import PAGE_SIZE
from netmem.base.dma import DmaDevice, DmaDirection
from netmem.base.errors import NetmemError
from netmem.memory.provider import AreaProvider, check_size


class DmabufProvider(AreaProvider):
    """``size`` bytes that driver, pool and stack never map (net_devmem_dmabuf_binding).

    ``exporter``: auto, udmabuf, system-heap or memfd; ``exporter_used`` and ``fallback`` say what
    it came to and why. Or ``fd``: a dma-buf that something else made (a memfd stands in for one), all of it
    unless ``size`` says less; the caller's descriptor stays his. ``rx_page_size``: bytes of one net_iov, a
    power of two from 4 KiB to 2 MiB. Errors: EINVAL, ERANGE for sizes; ENODEV for an exporter that is not
    there; EBADF for a descriptor that is no dma-buf.
    """

    name = "dmabuf"
    unreadable = True

    def __init__(
        self, size: int = 0, *, exporter: str = "auto", fd: int | None = None, rx_page_size: int = PAGE_SIZE
    ) -> None:
        self._source = -1  # of a udmabuf: the memfd that it consists of
        if fd is None:
            check_size(size, rx_page_size)
            fd, self.exporter_used, self.fallback = dmabuf.export(size, exporter, self._keep)
        else:
            have, self.exporter_used = dmabuf.look_at(fd)
            size, self.fallback = size or have, ""
            if size > have:
                raise NetmemError(errno.EINVAL, f"the dma-buf has {have} bytes, fewer than {size}")
            check_size(size, rx_page_size)
            fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        super().__init__(fd, size, rx_page_size, net_iov=True, address=0)

    def _keep(self, source: int) -> None:
        self._source = source

    def _map_for(self, dma: DmaDevice, direction: DmaDirection) -> int:
        """Our NICs are no devices of the kernel's, which alone can import a dma-buf: they map its memory."""
        fd = self._source if self._source >= 0 else self.fd
        return dma.dma_map(fd, 0, self.size, direction, peer=True, exporter=self.exporter)

    def cpu_access(self, *, write: bool = False) -> contextlib.AbstractContextManager[None]:
        """Brackets the application's own access to the memory (DMA_BUF_IOCTL_SYNC).

        Syncing a DMA-buf for the CPU is its user's duty, not the page pool's (netmem.rst, rule 6).
        """
        if self.exporter_used == "memfd":
            return super().cpu_access()
        return dmabuf.cpu_access(self.fd, write=write)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "exporter": self.exporter_used, "fallback": self.fallback}

    def _release(self) -> None:
        for fd in (self.fd, self._source):
            if fd >= 0:
                os.close(fd)
        self.fd = self._source = -1
