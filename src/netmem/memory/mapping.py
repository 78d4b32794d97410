"""How a page pool's memory is mapped for its device (PP_FLAG_DMA_MAP)."""

from __future__ import annotations

from netmem.base.dma import DmaDevice, DmaDirection, DmaWatcher
from netmem.memory.layout import PoolRecord


class PoolMapping:
    """The mapping of one pool for ``dev``, and who watches it, until ``close``."""

    def __init__(self, dev: DmaDevice, pool: PoolRecord) -> None:
        self._dev, self._pool = dev, pool
        self._io: int | None = None
        self._watcher: DmaWatcher | None = None

    def map(self, fd: int, size: int, direction: DmaDirection) -> None:
        """Map the whole area: pages, or what else the CPU may read, which therefore needs syncing."""
        self._pool.dma = self._io = self._dev.dma_map(fd, 0, size, direction)
        self._pool.bounce = self._dev.dma_bounce(self._io)
        self._pool.dma_sync_for_cpu = 1

    def watch(self, watcher: DmaWatcher) -> None:
        """Let the sanitiser see what is done to mappings."""
        self._watcher = watcher
        self._dev.watchers.append(watcher)

    def close(self) -> None:
        """End it. May be called again."""
        if self._watcher is not None:
            self._dev.watchers.remove(self._watcher)
            self._watcher = None
        if self._io is not None:
            io, self._io = self._io, None
            self._dev.dma_unmap(io)
