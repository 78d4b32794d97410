"""What a page pool is asked for (struct page_pool_params), and what of it is refused."""

from __future__ import annotations

import errno
from collections.abc import MutableSet
from dataclasses import dataclass
from typing import Any, Protocol

from netmem.base.dma import DmaDevice, DmaDirection
from netmem.base.errors import NetmemError
from netmem.memory.layout import PP_FLAG_ALL, PP_FLAG_DMA_MAP, PP_FLAG_DMA_SYNC_DEV
from netmem.memory.provider import MemoryProvider


class PoolOwner(Protocol):
    """The net device that a pool belongs to, as far as the pool looks at it."""

    name: str

    def rxq_memory_provider(self, queue: int) -> MemoryProvider | None:
        """rxq[queue].mp_params: the provider that is being or was bound to a queue."""

    def rxq_binding_id(self, queue: int) -> int:
        """Id of the binding that the queue's provider came with, 0 without."""

    def is_registered(self) -> bool:
        """False once the device is gone: only then do stalled pools warn."""

    @property
    def page_pools(self) -> MutableSet[Any]:
        """Every pool made for this device: a pool adds itself (page_pool_list)."""


@dataclass(frozen=True, kw_only=True)
class PagePoolParams:
    """struct page_pool_params.

    ``pool_size``: netmems the ring holds (0: 1024, at most 16384, both silently). ``order``: log2
    pages of a netmem. ``max_len``, ``offset``: what a device may write of each, for syncing.
    ``pages``: bytes of page memory behind a pool without provider.
    """

    flags: int = 0
    order: int = 0
    pool_size: int = 0
    nid: int = -1
    dev: DmaDevice | None = None
    dma_dir: DmaDirection = DmaDirection.FROM_DEVICE
    max_len: int = 0
    offset: int = 0
    netdev: PoolOwner | None = None
    queue_idx: int = 0
    pages: int = 0

    def check_flags(self) -> None:
        """EINVAL for an unknown flag, and for flags that do not go together."""
        flags = self.flags
        if flags & ~PP_FLAG_ALL:
            raise gave_up(errno.EINVAL, f"unknown PP_FLAG bits {flags & ~PP_FLAG_ALL:#x}")
        if flags & PP_FLAG_DMA_MAP and self.dma_dir not in (
            DmaDirection.FROM_DEVICE,
            DmaDirection.BIDIRECTIONAL,
        ):
            raise gave_up(errno.EINVAL, f"PP_FLAG_DMA_MAP with direction {self.dma_dir.name}")
        if flags & PP_FLAG_DMA_SYNC_DEV:
            if not flags & PP_FLAG_DMA_MAP:
                raise gave_up(errno.EINVAL, "PP_FLAG_DMA_SYNC_DEV without PP_FLAG_DMA_MAP")
            if not self.max_len:
                raise gave_up(errno.EINVAL, "PP_FLAG_DMA_SYNC_DEV with max_len 0")
        if flags & PP_FLAG_DMA_MAP and self.dev is None:
            raise gave_up(errno.EINVAL, "PP_FLAG_DMA_MAP without a device")


def gave_up(code: int, why: str) -> NetmemError:
    """The error of page_pool_create()."""
    return NetmemError(code, f"page_pool_create() gave up: {why}")
