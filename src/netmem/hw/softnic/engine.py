"""The NIC's copy engine: bytes between staging and memory that cannot be mapped here, a GPU's.

Staging is as large as the mapping, so that everything else of the NIC treats it as the memory itself; see
``copies``. The engine works on one queue of copies while the NIC fills the other.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Protocol

from netmem.base.arena import Region
from netmem.base.cuda import Allocation, Copies, Gpu, PinnedMemory, RegisteredMemory
from netmem.base.errors import NetmemError
from netmem.base.memfd import memfd
from netmem.base.record import address_of, field_offset
from netmem.hw.softnic.state import CopyQueue

CUDA, STAGED = "cuda:", "staged"
_TO, _FROM, _SIZE = (field_offset(CopyQueue, name) for name in ("to", "source", "size"))


class Staging:
    """``size`` bytes at host ``address`` that stand for those at ``far``; ``close`` gives both up."""

    def __init__(self, address: int, size: int, far: int, close: Callable[[], None]) -> None:
        self.address, self.size, self.far, self.close = address, size, far, close


class CopyEngine(Protocol):
    """``exporter``: whose memory it reaches, as ``DmaDevice.dma_map`` names it."""

    exporter: str

    def attach(self, fd: int, length: int) -> Staging:
        """Reach ``length`` bytes behind a descriptor. EBADF for one of others; ENOMEM."""

    def reach(self, address: int, size: int) -> bool:
        """Have it read ``size`` bytes of this process's memory where they are. False: it cannot."""

    def start(self, queue: CopyQueue) -> None:
        """Begin with the copies that are queued. EIO."""

    def is_done(self) -> bool:
        """Whether they are made. EIO."""

    def close(self) -> None:
        """Stop; all staging is closed by now."""


class CudaEngine:
    """A GPU's copy engine, from pinned memory, on a stream of its own."""

    def __init__(self, exporter: str) -> None:
        self.exporter = exporter
        self.gpu = Gpu.by_uuid(exporter.removeprefix(CUDA))
        self.gpu.stay()
        self._copies = Copies(self.gpu)
        self._reached: list[RegisteredMemory] = []

    def attach(self, fd: int, length: int) -> Staging:
        """CopyEngine.attach."""
        memory = Allocation.imported(self.gpu, fd, length)
        try:
            pinned = PinnedMemory(self.gpu, length)
        except BaseException:
            memory.close()
            raise

        def close() -> None:
            pinned.close()
            memory.close()

        return Staging(pinned.address, length, memory.address, close)

    def reach(self, address: int, size: int) -> bool:
        """CopyEngine.reach."""
        try:
            self._reached.append(RegisteredMemory(self.gpu, address, size))
        except NetmemError:
            return False  # by way of staging, then
        return True

    def start(self, queue: CopyQueue) -> None:
        """CopyEngine.start."""
        at = address_of(queue)
        self._copies.start(at + _TO, at + _FROM, at + _SIZE, queue.copies)

    def is_done(self) -> bool:
        """CopyEngine.is_done."""
        return self._copies.is_done()

    def close(self) -> None:
        """CopyEngine.close."""
        for memory in self._reached:
            memory.close()
        self._copies.close()


class HostEngine:
    """The same for memory of this host, copied by this process: how all of this is tested without a GPU.

    ``exporter``: "staged", or "staged:N", of an engine that is asked N times whether it is done.
    """

    def __init__(self, exporter: str) -> None:
        self.exporter = exporter
        self.rounds = self.copies = self._waited = 0
        self.delay = int(exporter.partition(":")[2] or 0)

    def attach(self, fd: int, length: int) -> Staging:
        """CopyEngine.attach."""
        memory = Region(fd, length)
        staging_fd = memfd("staging", length)
        try:
            staging = Region(staging_fd, length)
        finally:
            os.close(staging_fd)
        keep = [memory, staging]
        return Staging(staging.address, length, memory.address, keep.clear)

    def reach(self, address: int, size: int) -> bool:
        """CopyEngine.reach."""
        return True

    def start(self, queue: CopyQueue) -> None:
        """CopyEngine.start."""
        self._queue, self.rounds, self.copies = queue, self.rounds + 1, self.copies + queue.copies

    def is_done(self) -> bool:
        """CopyEngine.is_done: it works when it is asked, ``delay`` times in vain."""
        if self._waited < self.delay:
            self._waited += 1
            return False
        queue, self._waited = self._queue, 0
        for i in range(queue.copies):
            ctypes.memmove(queue.to[i], queue.source[i], queue.size[i])
        return True

    def close(self) -> None:
        """CopyEngine.close."""


def engine_for(exporter: str) -> CopyEngine:
    """The engine that reaches an exporter's memory. EOPNOTSUPP for an unknown one; ENODEV without the GPU."""
    if exporter.startswith(CUDA):
        return CudaEngine(exporter)
    if exporter.partition(":")[0] == STAGED:
        return HostEngine(exporter)
    raise NetmemError(errno.EOPNOTSUPP, f"the software NIC reaches no memory of {exporter!r}")
