"""A receive queue's memory: what drivers have in common whatever their descriptors look like.

Header pool and payload pool stand apart (R3): headers live in readable pages, payload in whatever
memory the queue was given.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from netmem.base.arena import Arena, Region, Words, memfd
from netmem.memory import layout as ly
from netmem.memory.dma import DmaDevice, DmaDirection
from netmem.memory.page_pool import (
    PP_FLAG_ALLOW_UNREADABLE_NETMEM,
    PP_FLAG_DMA_MAP,
    PP_FLAG_DMA_SYNC_DEV,
    PagePool,
    PagePoolParams,
)
from netmem.netdev.batch import RxBatch
from netmem.netdev.device import NetDevice
from netmem.netdev.driver import QueueConfig, TcpDataSplit
from netmem.netdev.ring import (
    DMA_ALIGN,
    HEADER_BYTES,
    L_HNETMEM,
    L_NETMEM,
    REFILL_DONE,
    REFILL_PAYLOAD,
    S_BUFLEN,
    S_DRIVER,
    S_HDRLEN,
    S_HEAD,
    S_HPOOL,
    S_MASK,
    S_PACKETS,
    S_POOL,
    S_QUEUE,
    S_RING,
    S_SLOTS,
    S_STARVED,
    S_TAIL,
    SLOT_WORDS,
)


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

    ``p``, ``a``: words of the payload pool and of its area; ``hp``, ``ha``: of the header pool.
    """

    def __init__(
        self, dev: NetDevice, dma: DmaDevice, qcfg: QueueConfig, queue: int, desc_bytes: int
    ) -> None:
        self._dev, ring = dev, qcfg.ring
        name = dev.driver.name
        split = ring.tcp_data_split == TcpDataSplit.ENABLED
        with contextlib.ExitStack() as undo:
            self.pool = PagePool(self.pool_params(dev, dma, qcfg, queue))
            undo.callback(self.pool.destroy)
            self.hpool = PagePool(self.header_pool_params(dev, dma, qcfg, queue))
            undo.callback(self.hpool.destroy)
            self.desc = DescriptorRing(dma, f"{name}:rx-ring{queue}", ring.rx_pending, desc_bytes)
            undo.pop_all()
        self.arena = Arena(f"{name}:rx{queue}", S_SLOTS + SLOT_WORDS * ring.rx_pending)
        self.q, self.p, self.a = self.arena.a, self.pool.p, self.pool.area_a
        self.qv = self.q.data  # the same words as plain ints
        self.hp, self.ha = self.hpool.p, self.hpool.area_a
        buflen = min(ring.rx_buf_len, qcfg.rx_page_size)
        q = self.q
        q[S_RING], q[S_MASK], q[S_QUEUE] = self.desc.region.address, self.desc.size - 1, queue
        q[S_BUFLEN], q[S_HDRLEN] = buflen, HEADER_BYTES if split else 0
        q[S_POOL], q[S_HPOOL] = dev.register_pool(self.pool), dev.register_pool(self.hpool)
        self.p[ly.P_PER] = max(1, qcfg.rx_page_size // -(-buflen // DMA_ALIGN * DMA_ALIGN))

    @staticmethod
    def pool_params(dev: NetDevice, dma: DmaDevice, qcfg: QueueConfig, queue: int) -> PagePoolParams:
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
    def header_pool_params(dev: NetDevice, dma: DmaDevice, qcfg: QueueConfig, queue: int) -> PagePoolParams:
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
        return self.qv[S_HDRLEN] != 0

    def start(self, counters: Words | None) -> None:
        """Both ends of the ring back to its beginning: the queue is about to start.

        ``counters`` are those of the queue's memory before this, so that they go on.
        """
        self.q[S_HEAD] = self.q[S_TAIL] = self.p[ly.P_POSTED] = 0
        if counters is not None:
            self.counters[:] = counters

    @property
    def counters(self) -> Words:
        """The queue's counters, S_PACKETS and following."""
        return self.q[S_PACKETS:S_DRIVER]

    def poll(self, kernel: Callable[..., int], batch: RxBatch, budget: int) -> int:
        """Clean the ring with the driver's ``kernel``; descriptors cleaned."""
        return int(kernel(self.q, self.p, self.a, self.hp, batch.meta, batch.rows, budget))

    def fill(self, kernel: Callable[..., int]) -> None:
        """Post buffers with the driver's ``kernel``, refilling the pools as it asks."""
        while True:
            short = kernel(self.q, self.p, self.a, self.hp, self.ha)
            if short == REFILL_DONE:
                return
            pool = self.pool if short == REFILL_PAYLOAD else self.hpool
            pool.flush()
            if not pool.refill():
                self.q[S_STARVED] += 1
                return  # starve politely: what comes back is posted at the next poll

    def free(self) -> None:
        """Give all buffers back to their pools, destroy these, and let the memory go."""
        slots = self.q[S_SLOTS:].reshape(-1, SLOT_WORDS)[: self.desc.size]
        for column, pool in ((L_NETMEM, self.pool), (L_HNETMEM, self.hpool)):
            held = slots[:, column]
            pool.put_full_netmem(held[held != 0].copy())
            held[:] = 0
            pool.destroy(self._dev.now)
        self.desc.close()
        self.arena.close()
        self._dev.reap(self._dev.now)
