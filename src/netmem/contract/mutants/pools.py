"""Pools that are not what a driver must make: R1 and R4."""

from __future__ import annotations

import dataclasses

from netmem.base.dma import DmaDevice, DmaDirection
from netmem.base.ethtool import TcpDataSplit
from netmem.contract.mutants.base import breaks, flags_by_split, ring_of_later_queues, ring_with
from netmem.drivers.base import RingDriver
from netmem.memory.layout import PP_FLAG_ALLOW_UNREADABLE_NETMEM, PP_FLAG_DMA_MAP, PP_FLAG_DMA_SYNC_DEV
from netmem.memory.page_pool import PagePool
from netmem.memory.params import PagePoolParams
from netmem.netdev.batch import Kind, RxBatch
from netmem.netdev.driver import Netdev, QueueConfig
from netmem.netdev.kernels import rx_return
from netmem.netdev.rx import RxRing

# -- R1 ---------------------------------------------------------------------------------------------


@breaks("R1")
class PoolOfNobody(RingDriver):
    """Makes its pool without naming net device and queue: the provider never hears of it."""

    ring_class = ring_with(netdev=None)


@breaks("R1")
class PoolOfQueueZero(RingDriver):
    """Names queue 0 for every pool."""

    ring_class = ring_with(queue_idx=0)


@breaks("R1")
class PoolForShow(RingDriver):
    """Makes the pool that it should, and receives into one of its own."""

    def queue_mem_alloc(self, qcfg: QueueConfig, queue: int) -> RxRing:
        ring = super().queue_mem_alloc(qcfg, queue)
        if ring.pool.provider is not None:
            self._shown = ring.pool
            params = dataclasses.replace(ring.pool.params, netdev=None)
            ring.pool = PagePool(params)
            ring.record.pool = ring.pool.at
            self._shown.alloc_netmems(16)
        return ring


@breaks("R7")
class NeverReturns(RingDriver):
    """Frees a queue's memory without giving the buffers in its ring back."""

    def queue_mem_free(self, mem: RxRing) -> None:
        if mem.pool.provider is not None:
            for i in range(mem.desc.size):
                mem.slot(i).netmem = 0
        super().queue_mem_free(mem)


@breaks("R1")
class PoolOfNobodyLater(RingDriver):
    """Forgets to name net device and queue from queue 2 on."""

    ring_class = ring_of_later_queues(netdev=None)


@breaks("R7")
class ForgetsOne(RingDriver):
    """Frees a queue's memory, but for the buffer in one slot."""

    def queue_mem_free(self, mem: RxRing) -> None:
        mem.slot(5).netmem = 0
        super().queue_mem_free(mem)


@breaks("R1")
class NeverDestroys(RingDriver):
    """Gives a queue's buffers back, and keeps the pool."""

    def queue_mem_free(self, mem: RxRing) -> None:
        mem.pool.destroy = lambda now=0: None  # type: ignore[method-assign]
        super().queue_mem_free(mem)


@breaks("R1")
class DeafToSmallBuffers(RingDriver):
    """Throws away what comes in buffers of less than 2048 bytes."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        if queue in self._rx and self._rx[queue].record.buf_len < 2048:
            for row in batch.used():
                row.kind = Kind.DROP
        return got


@breaks("R1")
class GivesUpWhenShort(RingDriver):
    """Asks no more for buffers once there were none: what comes back is never posted."""

    def rx_refill(self, queue: int, batch: RxBatch) -> None:
        ring = self._rx.get(queue)
        if ring is None or not ring.counters.starved:
            super().rx_refill(queue, batch)
        else:
            rx_return(ring.at, batch.at)


@breaks("R1")
class TwoBuffersAtMost(RingDriver):
    """Takes a frame for at most two buffers: the others' bytes are not handed on."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        rows = batch.used()
        for row in rows:
            second = rows[row.more] if row.kind != Kind.CONT and row.more >= 0 else None
            if second is not None and second.more >= 0:
                second.size, second.more = 0, -1
        return got


# -- R4 ---------------------------------------------------------------------------------------------


@breaks("R4")
class FlagAlways(RingDriver):
    """Allows unreadable memory although split is off."""

    ring_class = flags_by_split(0, PP_FLAG_ALLOW_UNREADABLE_NETMEM)


@breaks("R4")
class FlagNever(RingDriver):
    """Never allows unreadable memory."""

    ring_class = flags_by_split(-PP_FLAG_ALLOW_UNREADABLE_NETMEM, 0)


@breaks("R4")
class FlagInverted(RingDriver):
    """Has the condition the wrong way round."""

    ring_class = flags_by_split(-PP_FLAG_ALLOW_UNREADABLE_NETMEM, PP_FLAG_ALLOW_UNREADABLE_NETMEM)


@breaks("R4")
class NoSyncForDevice(RingDriver):
    """Leaves syncing for the device to itself."""

    ring_class = flags_by_split(-PP_FLAG_DMA_SYNC_DEV, -PP_FLAG_DMA_SYNC_DEV)


@breaks("R4")
class MapsItself(RingDriver):
    """Maps payload memory for the device although the pool has."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        super().queue_start(mem, queue)
        fd = mem.pool.provider.fd if mem.pool.provider is not None else mem.pool._page_fd()
        mem.own_io = self.bus.dma_map(fd, 0, 4096, DmaDirection.FROM_DEVICE, peer=True)  # type: ignore[attr-defined]

    def queue_mem_free(self, mem: RxRing) -> None:
        if hasattr(mem, "own_io"):
            self.bus.dma_unmap(mem.own_io)
        super().queue_mem_free(mem)


@breaks("R4")
class NoMap(RingDriver):
    """Leaves mapping for the device to itself."""

    ring_class = flags_by_split(-PP_FLAG_DMA_MAP, -PP_FLAG_DMA_MAP)


@breaks("R4")
class FlagStuck(RingDriver):
    """Once split was on, pools allow unreadable memory for ever."""

    def queue_mem_alloc(self, qcfg: QueueConfig, queue: int) -> RxRing:
        self._was_on = getattr(self, "_was_on", False) or qcfg.ring.tcp_data_split == TcpDataSplit.ENABLED
        bit = PP_FLAG_ALLOW_UNREADABLE_NETMEM if self._was_on else 0
        self.ring_class = flags_by_split(bit, bit)  # type: ignore[misc]
        return super().queue_mem_alloc(qcfg, queue)


@breaks("R4")
class FlagsLater(RingDriver):
    """Forgets PP_FLAG_DMA_SYNC_DEV from queue 2 on."""

    ring_class = ring_of_later_queues(flags=PP_FLAG_DMA_MAP)


@breaks("R4")
class ShortMaxLen(RingDriver):
    """Has only the first 1024 bytes of a buffer synced for the device."""

    ring_class = ring_with(max_len=1024)


@breaks("R4")
class HeadersUnreadable(RingDriver):
    """Allows unreadable memory for headers, too."""

    class ring_class(RxRing):
        """With the payload pool's flags for both."""

        @staticmethod
        def header_pool_params(dev: Netdev, dma: DmaDevice, qcfg: QueueConfig, queue: int) -> PagePoolParams:
            flags = RxRing.pool_params(dev, dma, qcfg, queue).flags
            return dataclasses.replace(RxRing.header_pool_params(dev, dma, qcfg, queue), flags=flags)
