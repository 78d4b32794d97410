"""Drivers for the software NIC that break the contract, each in one plausible way.

They show what the conformance kit catches, and that it catches it: ``netmem check
netmem.contract.mutants:FlagAlways``. ``BREAKS`` says which requirement each of them breaks.
"""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any, ClassVar

from netmem.base.arena import Region
from netmem.base.dma import DmaDevice, DmaDirection
from netmem.base.errors import NetmemError
from netmem.base.ethtool import TcpDataSplit
from netmem.base.record import publish
from netmem.drivers.softnic import SoftnicDriver
from netmem.hw.softnic import regs as r
from netmem.memory.layout import PP_FLAG_ALLOW_UNREADABLE_NETMEM, PP_FLAG_DMA_SYNC_DEV
from netmem.memory.netmem import netmem_address
from netmem.memory.page_pool import PagePool
from netmem.memory.params import PagePoolParams
from netmem.memory.ref import offset_of
from netmem.netdev.batch import Rx, RxBatch, RxRow
from netmem.netdev.driver import Netdev, QueueConfig
from netmem.netdev.rx import RxRing
from netmem.netdev.tx import Tx

BREAKS: dict[str, str] = {}


def breaks(requirement: str) -> Any:
    """Note which requirement a mutant breaks."""

    def note(cls: type[SoftnicDriver]) -> type[SoftnicDriver]:
        BREAKS[cls.__name__] = requirement
        return cls

    return note


def ring_with(**changes: Any) -> type[RxRing]:
    """A receive ring whose payload pool has other parameters."""

    class Ring(RxRing):
        @staticmethod
        def pool_params(dev: Netdev, dma: DmaDevice, qcfg: QueueConfig, queue: int) -> PagePoolParams:
            return dataclasses.replace(RxRing.pool_params(dev, dma, qcfg, queue), **changes)

    return Ring


def flags_by_split(on: int, off: int) -> type[RxRing]:
    """A receive ring whose payload pool has these extra bits (negative: lacks them) with split on and off."""

    class Ring(RxRing):
        @staticmethod
        def pool_params(dev: Netdev, dma: DmaDevice, qcfg: QueueConfig, queue: int) -> PagePoolParams:
            params = RxRing.pool_params(dev, dma, qcfg, queue)
            change = on if qcfg.ring.tcp_data_split == TcpDataSplit.ENABLED else off
            flags = params.flags | change if change >= 0 else params.flags & ~-change
            return dataclasses.replace(params, flags=flags)

    return Ring


def payload_rows(batch: RxBatch) -> list[RxRow]:
    """Rows with payload in a buffer of its own."""
    return [row for row in batch.used() if row.netmem and row.size]


# -- R1 -------------------------------------------------------------------------------------------


@breaks("R1")
class PoolOfNobody(SoftnicDriver):
    """Makes its pool without naming net device and queue: the provider never hears of it."""

    ring_class = ring_with(netdev=None)


@breaks("R1")
class PoolOfQueueZero(SoftnicDriver):
    """Names queue 0 for every pool."""

    ring_class = ring_with(queue_idx=0)


@breaks("R1")
class PoolForShow(SoftnicDriver):
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


@breaks("R1")
class NeverReturns(SoftnicDriver):
    """Frees a queue's memory without giving the buffers in its ring back."""

    def queue_mem_free(self, mem: RxRing) -> None:
        if mem.pool.provider is not None:
            for i in range(mem.desc.size):
                mem.slot(i).netmem = 0
        super().queue_mem_free(mem)


# -- R2 -------------------------------------------------------------------------------------------


@breaks("R2")
class SplitNotOffered(SoftnicDriver):
    """Splits in hardware, and does not let users say so."""

    supported_ring_params: ClassVar[frozenset[str]] = frozenset({"rx_pending", "rx_buf_len"})


@breaks("R2")
class SplitNotProgrammed(SoftnicDriver):
    """Accepts the setting, and never tells the device."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        mem.record.header_len = 0
        super().queue_start(mem, queue)


@breaks("R2")
class SplitStuck(SoftnicDriver):
    """Once on, split stays on in the device."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        super().queue_start(mem, queue)
        self._was_on = getattr(self, "_was_on", False) or mem.split
        if self._was_on and not mem.split:
            mem.record.header_len = 256
            publish(self.bus.regs.rxq[queue], "header_len", 256)
            publish(self.bus.regs.rxq[queue], "hds", r.HDS_ON)


@breaks("R2")
class ThresholdIgnored(SoftnicDriver):
    """Claims a threshold, and splits everything."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        super().queue_start(mem, queue)
        if mem.split:
            publish(self.bus.regs.rxq[queue], "hds", r.HDS_ON)


# -- R3 -------------------------------------------------------------------------------------------


@breaks("R3")
class FreesPages(SoftnicDriver):
    """Gives the ring's buffers back with the page call."""

    def queue_mem_free(self, mem: RxRing) -> None:
        for slot in (mem.slot(i) for i in range(8)):
            if slot.netmem:
                mem.pool.put_full_page(slot.netmem)
                slot.netmem = 0
        super().queue_mem_free(mem)


@breaks("R3")
class AllocatesPages(SoftnicDriver):
    """Tries a page from the payload pool at each refill."""

    def rx_refill(self, queue: int, batch: RxBatch) -> None:
        pages = self._rx[queue].pool.alloc_pages(1)
        self._rx[queue].pool.put_full_netmem(pages)
        super().rx_refill(queue, batch)


@breaks("R3")
class LosesTheTag(SoftnicDriver):
    """Keeps a buffer as if it were an address: the area is cut off when it is given back."""

    def queue_mem_free(self, mem: RxRing) -> None:
        if mem.slot(0).netmem:
            try:
                mem.pool.put_full_netmem(mem.slot(0).netmem & 0xFFFFFFFE)
            except NetmemError:
                self.lost = True
        super().queue_mem_free(mem)


# -- R4 -------------------------------------------------------------------------------------------


@breaks("R4")
class FlagAlways(SoftnicDriver):
    """Allows unreadable memory although split is off."""

    ring_class = flags_by_split(0, PP_FLAG_ALLOW_UNREADABLE_NETMEM)


@breaks("R4")
class FlagNever(SoftnicDriver):
    """Never allows unreadable memory."""

    ring_class = flags_by_split(-PP_FLAG_ALLOW_UNREADABLE_NETMEM, 0)


@breaks("R4")
class FlagInverted(SoftnicDriver):
    """Has the condition the wrong way round."""

    ring_class = flags_by_split(-PP_FLAG_ALLOW_UNREADABLE_NETMEM, PP_FLAG_ALLOW_UNREADABLE_NETMEM)


@breaks("R4")
class NoSyncForDevice(SoftnicDriver):
    """Leaves syncing for the device to itself."""

    ring_class = flags_by_split(-PP_FLAG_DMA_SYNC_DEV, -PP_FLAG_DMA_SYNC_DEV)


@breaks("R4")
class MapsItself(SoftnicDriver):
    """Maps payload memory for the device although the pool has."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        super().queue_start(mem, queue)
        fd = mem.pool.provider.fd if mem.pool.provider is not None else mem.pool._page_fd()
        mem.own_io = self.bus.dma_map(fd, 0, 4096, DmaDirection.FROM_DEVICE, peer=True)  # type: ignore[attr-defined]

    def queue_mem_free(self, mem: RxRing) -> None:
        if hasattr(mem, "own_io"):
            self.bus.dma_unmap(mem.own_io)
        super().queue_mem_free(mem)


# -- R5 -------------------------------------------------------------------------------------------


@breaks("R5")
class Prefetches(SoftnicDriver):
    """Reads the first byte of each payload buffer, to have it in the cache."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        pool = self._rx[queue].pool.record
        for row in payload_rows(batch):
            ctypes.string_at(pool.host + offset_of(row.netmem, pool.shift) + row.offset, 1)
        return got


@breaks("R5")
class TrustsTheAddress(SoftnicDriver):
    """Takes netmem_address() for granted."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        for row in payload_rows(batch):
            self.last_seen = netmem_address(row.netmem) + row.offset  # type: ignore[operator]
        return got


@breaks("R5")
class MapsToLook(SoftnicDriver):
    """Maps the memory behind a payload buffer to look at it."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        provider = self._rx[queue].pool.provider
        if payload_rows(batch) and provider is not None and provider.unreadable:
            self.view = Region(provider.fd, provider.size, writable=False)
        return got


@breaks("R5")
class IgnoresTheMissBit(SoftnicDriver):
    """Takes every frame for split: what came with the headers but is payload gets lost."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        for row in batch.used():
            if self._rx[queue].split and row.header_netmem and not row.status & Rx.SPLIT:
                row.header_len = min(row.header_len, 66)
                row.linear_len = 0
                row.len = row.own_len = row.size
        return got


# -- R6 -------------------------------------------------------------------------------------------


@breaks("R6")
class SyncsByItself(SoftnicDriver):
    """Calls the DMA API on payload, beside the pool."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        pool = self._rx[queue].pool
        for row in payload_rows(batch):
            self.bus.sync_for_cpu(pool.get_dma_addr_netmem(row.netmem), row.size)
        return got


@breaks("R6")
class SyncsForTheWrongSide(SoftnicDriver):
    """Syncs payload for the device when the CPU is to have it."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        pool = self._rx[queue].pool
        for row in payload_rows(batch):
            self.bus.sync_for_device(pool.get_dma_addr_netmem(row.netmem), 64)
        return got


@breaks("R6")
class NeverSyncs(SoftnicDriver):
    """Forgets to sync: right on machines whose buses are coherent, so nobody noticed."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        super().queue_start(mem, queue)
        self._silence(mem)

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        if queue in self._rx:
            self._silence(self._rx[queue])
        return got

    @staticmethod
    def _silence(mem: RxRing) -> None:
        """Undo what its kernel's sync did: copy, counters, and the sanitiser's marks."""
        pool = mem.pool.record
        if pool.synced:
            ctypes.memset(pool.synced, 0, 8 * pool.count)
        if mem.split:
            pool.bounce = pool.counters.sync_cpu = pool.counters.sync_cpu_noop = 0


# -- R7 -------------------------------------------------------------------------------------------


@breaks("R7")
class KeepsACache(SoftnicDriver):
    """Keeps netmems for itself, a few more at each refill, to have them at hand."""

    def rx_refill(self, queue: int, batch: RxBatch) -> None:
        super().rx_refill(queue, batch)
        mine: list[Any] = self.__dict__.setdefault("_mine", [])
        ring = self._rx.get(queue)
        if ring is not None and queue and len(mine) < 20:
            mine.append((ring, ring.pool.alloc_netmems(4)))

    def queue_mem_free(self, mem: RxRing) -> None:
        mine = self.__dict__.get("_mine", [])
        for ring, refs in mine:
            if ring is mem and len(refs):
                mem.pool.put_full_netmem(refs)
        self.__dict__["_mine"] = [(ring, refs) for ring, refs in mine if ring is not mem]
        super().queue_mem_free(mem)


@breaks("R7")
class PostsTwice(SoftnicDriver):
    """Posts a buffer again that the stack has taken."""

    def rx_refill(self, queue: int, batch: RxBatch) -> None:
        ring = self._rx.get(queue)
        if ring is None:
            return
        rows = batch.used()
        before = {row.slot: ring.slot(row.slot).netmem for row in rows}
        taken = [row.slot for row in rows if row.netmem == 0 and row.size]
        self.count = getattr(self, "count", 0) + len(taken)
        if taken and self.count > 20 and not getattr(self, "done", False):
            # As if it had overlooked that the stack took this one: it stays in its slot.
            slot = taken[0]
            for row in batch.used():
                if row.slot == slot:
                    row.netmem = before[slot]
            self.done = True
        super().rx_refill(queue, batch)


@breaks("R7")
class ForgetsAReference(SoftnicDriver):
    """Takes a reference to a netmem that it wants to use again, and never gives it up."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        for row in payload_rows(batch)[:1]:
            self._rx[queue].pool.ref_netmem(row.netmem)
        return got


@breaks("R7")
class PutsWhatTheStackHas(SoftnicDriver):
    """Recycles buffers at once, although the stack still has them."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        self._seen = [row.netmem for row in payload_rows(batch)]
        return got

    def rx_refill(self, queue: int, batch: RxBatch) -> None:
        left = {row.netmem for row in batch.used()}
        gone = [ref for ref in getattr(self, "_seen", []) if ref not in left]
        self._seen = []
        super().rx_refill(queue, batch)
        for ref in gone[:1]:
            self._rx[queue].pool.put_full_netmem(ref)


# -- TX1 ------------------------------------------------------------------------------------------


class _Transmits(SoftnicDriver):
    """What drivers that do too much on transmit have in common."""

    def payload_rows(self) -> list[int]:
        """I/O addresses of the device memory that waits to be sent."""
        tx = self.dev.tx
        rows = (tx.row(n) for n in range(tx.record.sent, tx.record.filled))
        return [row.payload for row in rows if row.flags & Tx.NETMEM]


@breaks("TX1")
class UnmapsPayload(_Transmits):
    """Unmaps what it sent as if it had mapped it (dma_unmap_page() on every fragment)."""

    def xmit(self) -> None:
        sent = self.payload_rows()
        super().xmit()
        for io in sent:
            self.bus.dma_unmap(io)


@breaks("TX1")
class SyncsPayload(_Transmits):
    """Syncs payload for the device before it sends it."""

    def xmit(self) -> None:
        for io in self.payload_rows():
            self.bus.sync_for_device(io, 1)
        super().xmit()


@breaks("TX1")
class CompletesEarly(_Transmits):
    """Calls packets done when they are posted, not when the device has read them."""

    def xmit(self) -> None:
        super().xmit()
        tx = self.dev.tx
        tx.record.completed = tx.record.sent


# -- TX2 ------------------------------------------------------------------------------------------


@breaks("TX2")
class SaysNothing(SoftnicDriver):
    """Does not declare netmem_tx."""

    netmem_tx = None  # type: ignore[assignment]


@breaks("TX2")
class SaysYes(SoftnicDriver):
    """Declares netmem_tx as if it were a switch."""

    netmem_tx = True  # type: ignore[assignment]


@breaks("TX2")
class SaysSomethingElse(SoftnicDriver):
    """Declares a kind of transmit that does not exist."""

    netmem_tx = 7  # type: ignore[assignment]
