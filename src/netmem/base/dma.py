"""What the page pool and a binding need of a device that can do DMA (kernel/dma/mapping.c)."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol


class DmaDirection(enum.IntEnum):
    """enum dma_data_direction."""

    BIDIRECTIONAL = 0
    TO_DEVICE = 1
    FROM_DEVICE = 2


DmaWatcher = Callable[[str, int, int], None]
"""Called before ``unmap``, ``sync_for_cpu`` or ``sync_for_device``: that name, I/O address and length."""


class DmaDevice(Protocol):
    """A device behind a bus. Memory is named by file descriptor; nobody hands over a pointer.

    ``watchers``: who wants to see its unmaps and syncs (the sanitiser). ``pins``: what is mapped is pinned,
    and costs memory whether it is touched or not.
    """

    watchers: list[DmaWatcher]
    pins: bool

    def dma_map(
        self, fd: int, offset: int, length: int, direction: DmaDirection, *, peer: bool = False,
        exporter: str = "",
    ) -> int:  # fmt: skip
        """Map a range of a memory file descriptor for the device and return its I/O address.

        ``peer`` says that the memory is not the host's to read (dma_buf_map_attachment): a bus
        that bounces passes it straight through. ``exporter``: who made it, where that is more than
        a file to be mapped (``cuda:UUID``). EOPNOTSUPP on a bus whose device cannot reach such memory.
        """

    def dma_map_resource(self, address: int, length: int) -> int:
        """dma_map_resource(): I/O address of another device's BAR at a bus address.

        EOPNOTSUPP on a bus without other devices.
        """

    def dma_unmap(self, io_address: int) -> None:
        """End a mapping. EINVAL when ``io_address`` does not start one."""

    def dma_bounce(self, io_address: int) -> int:
        """Host address of the bounce buffer behind a mapping, or 0 on a coherent bus."""

    def sync_for_cpu(self, io_address: int, length: int) -> None:
        """dma_sync_single_for_cpu(): for a driver's own buffers; payload goes through the pool."""

    def sync_for_device(self, io_address: int, length: int) -> None:
        """dma_sync_single_for_device()."""
