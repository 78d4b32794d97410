"""A receive queue's memory: what drivers have in common whatever their descriptors look like.

Header pool and payload pool stand apart (R3): headers live in readable pages, payload in whatever
memory the queue was given.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable

from netmem.base.arena import Arena, Region
from netmem.base.dma import DmaDevice, DmaDirection
from netmem.base.ethtool import TcpDataSplit
from netmem.base.memfd import memfd
from netmem.memory.layout import PP_FLAG_ALLOW_UNREADABLE_NETMEM, PP_FLAG_DMA_MAP, PP_FLAG_DMA_SYNC_DEV
from netmem.memory.page_pool import PagePool
from netmem.memory.params import PagePoolParams
from netmem.netdev.batch import RxBatch
from netmem.netdev.driver import Netdev, QueueConfig
from netmem.netdev.ring import DMA_ALIGN, HEADER_BYTES, QueueCounters, Refill, RxRingRecord, Slot


class DescriptorRing:
    """Descriptor memory that the device and we share, mapped for DMA. ``size`` descriptors."""

    def __init__(self, dma: DmaDevice, name: str, size: int, desc_bytes: int) -> None:
        self._dma, self.size, self.bytes = dma, size, max(size * desc_bytes, 4096)
        self.fd = memfd(name, self.bytes)
        self.region = Region(self.fd, self.bytes)
        try:
            self.io = dma.dma_map(self.fd, 0, self.bytes, DmaDirection.BIDIRECTIONAL, peer=True)
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Unmap and forget the memory."""
        self._dma.dma_unmap(self.io)
        os.close(self.fd)


class RxRing:
    """What ``queue_mem_alloc`` makes: descriptors, slots, payload pool and header pool.

    ``record``, ``at`` its address: what kernels work on. ``params``: the settings it was made with.
    """

    def __init__(self, dev: Netdev, dma: DmaDevice, qcfg: QueueConfig, queue: int, desc_bytes: int) -> None:
        self._dev = dev
        ring = self.params = qcfg.ring
        name = dev.name
        split = ring.tcp_data_split == TcpDataSplit.ENABLED
        with contextlib.ExitStack() as undo:
            self.pool = PagePool(self.pool_params(dev, dma, qcfg, queue))
            undo.callback(self.pool.destroy)
            self.hpool = PagePool(self.header_pool_params(dev, dma, qcfg, queue))
            undo.callback(self.hpool.destroy)
            self.desc = DescriptorRing(dma, f"{name}:rx-ring{queue}", ring.rx_pending, desc_bytes)
            undo.pop_all()
        slots = ctypes.sizeof(RxRingRecord)
        self.arena = Arena(f"{name}:rx{queue}", slots + ctypes.sizeof(Slot) * ring.rx_pending)
        self.at = self.arena.address
        self._slots = self.arena.table(Slot, slots, ring.rx_pending)
        record = self.record = self.arena.record(RxRingRecord)
        record.desc, record.mask, record.queue = self.desc.region.address, self.desc.size - 1, queue
        record.slots = self.at + slots
        record.buf_len = min(ring.rx_buf_len or qcfg.rx_page_size, qcfg.rx_page_size)
        record.header_len = HEADER_BYTES if split else 0
        record.pool, record.header_pool = self.pool.at, self.hpool.at
        record.pool_handle = dev.register_pool(self.pool)
        record.header_pool_handle = dev.register_pool(self.hpool)
        piece = -(-record.buf_len // DMA_ALIGN * DMA_ALIGN)
        self.pool.record.buffers_per_netmem = max(1, qcfg.rx_page_size // piece)

    @staticmethod
    def pool_params(dev: Netdev, dma: DmaDevice, qcfg: QueueConfig, queue: int) -> PagePoolParams:
        """Of the payload pool: it may be unreadable if and only if header split is on (R4)."""
        split = qcfg.ring.tcp_data_split == TcpDataSplit.ENABLED
        unreadable = PP_FLAG_ALLOW_UNREADABLE_NETMEM if split else 0
        return PagePoolParams(
            flags=PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV | unreadable,
            order=(qcfg.rx_page_size // 4096).bit_length() - 1,
            pool_size=4 * qcfg.ring.rx_pending,
            dev=dma,
            max_len=qcfg.rx_page_size,
            netdev=dev,
            queue_idx=queue,
        )

    @staticmethod
    def header_pool_params(dev: Netdev, dma: DmaDevice, qcfg: QueueConfig, queue: int) -> PagePoolParams:
        """Of the header pool: readable pages always."""
        return PagePoolParams(
            flags=PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV,
            pool_size=qcfg.ring.rx_pending,
            dev=dma,
            max_len=4096,
            netdev=dev,
            queue_idx=queue,
        )

    @property
    def split(self) -> bool:
        """True when the device is to split headers from payload."""
        return self.record.header_len != 0

    def start(self, counters: QueueCounters | None) -> None:
        """Both ends of the ring back to its beginning: the queue is about to start.

        ``counters`` are those of the queue's memory before this, so that they go on.
        """
        record = self.record
        record.next_to_clean = record.next_to_use = record.buf_clean = record.buf_use = 0
        self.pool.record.posted = 0
        if counters is not None:
            self.record.counters = counters

    @property
    def counters(self) -> QueueCounters:
        """A copy of the queue's counters."""
        return QueueCounters.from_buffer_copy(self.record.counters)

    def slot(self, i: int) -> Slot:
        """The slot behind descriptor ``i``."""
        return Slot.nth(self.record.slots, i & self.record.mask)

    def poll(self, kernel: Callable[..., int], batch: RxBatch, budget: int) -> int:
        """Clean the ring with the driver's ``kernel``; descriptors cleaned."""
        return kernel(self.at, batch.at, budget)

    def fill(self, kernel: Callable[..., int]) -> None:
        """Post buffers with the driver's ``kernel``, refilling the pools as it asks."""
        while True:
            short = kernel(self.at)
            if short == Refill.DONE:
                return
            pool = self.pool if short == Refill.PAYLOAD else self.hpool
            pool.flush()
            if not pool.refill():
                self.record.counters.starved += 1
                return  # starve politely: what comes back is posted at the next poll

    def free(self) -> None:
        """Give all buffers back to their pools, destroy these, and let the memory go."""
        for column, pool in (("netmem", self.pool), ("header_netmem", self.hpool)):
            held = self._slots[column]
            pool.put_full_netmem(held[held != 0].copy())
            held[:] = 0
        for left in self.record.open:
            if left.netmem:
                self.pool.put_full_netmem(left.netmem)
                left.netmem = left.room = 0
        for pool in (self.pool, self.hpool):
            pool.destroy(self._dev.now)
        self.desc.close()
        self.arena.close()
        self._dev.reap(self._dev.now)
