"""Payload that is taken for pages, looked at, or not synced: R3, R5 and R6."""

from __future__ import annotations

import contextlib
import ctypes

from netmem.base.arena import Region
from netmem.base.errors import NetmemError
from netmem.contract.mutants.base import LATER, breaks, payload_rows
from netmem.drivers.base import RingDriver
from netmem.memory.netmem import netmem_address
from netmem.memory.page_pool import PagePool
from netmem.memory.ref import offset_of
from netmem.netdev.batch import Rx, RxBatch, RxRow
from netmem.netdev.rx import RxRing

# -- R3 ---------------------------------------------------------------------------------------------


@breaks("R3")
class FreesPages(RingDriver):
    """Gives the ring's buffers back with the page call."""

    def queue_mem_free(self, mem: RxRing) -> None:
        for slot in (mem.slot(i) for i in range(8)):
            if slot.netmem:
                mem.pool.put_full_page(slot.netmem)
                slot.netmem = 0
        super().queue_mem_free(mem)


@breaks("R3")
class AllocatesPages(RingDriver):
    """Tries a page from the payload pool at each refill."""

    def rx_refill(self, queue: int, batch: RxBatch) -> None:
        pages = self._rx[queue].pool.alloc_pages(1)
        self._rx[queue].pool.put_full_netmem(pages)
        super().rx_refill(queue, batch)


@breaks("R3")
class LosesTheTag(RingDriver):
    """Keeps a buffer as if it were an address: the area is cut off when it is given back."""

    def queue_mem_free(self, mem: RxRing) -> None:
        if mem.slot(0).netmem:
            try:
                mem.pool.put_full_netmem(mem.slot(0).netmem & 0xFFFFFFFE)
            except NetmemError:
                self.lost = True
        super().queue_mem_free(mem)


@breaks("R3")
class PutsToTheHeaderPool(RingDriver):
    """Gives a payload buffer back to the pool of headers."""

    def queue_mem_free(self, mem: RxRing) -> None:
        if mem.slot(0).netmem:
            with contextlib.suppress(NetmemError):
                mem.hpool.put_full_netmem(mem.slot(0).netmem)
        super().queue_mem_free(mem)


@breaks("R3")
class AsksForAPage(RingDriver):
    """Asks for the DMA address by the page call."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        for row in payload_rows(batch)[:1]:
            self._io = self._rx[queue].pool.get_dma_addr(row.netmem)
        return got


# -- R5 ---------------------------------------------------------------------------------------------


@breaks("R5")
class Prefetches(RingDriver):
    """Reads the first byte of each payload buffer, to have it in the cache."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        pool = self._rx[queue].pool.record
        for row in payload_rows(batch):
            ctypes.string_at(pool.host + offset_of(row.netmem, pool.shift) + row.offset, 1)
        return got


@breaks("R5")
class TrustsTheAddress(RingDriver):
    """Takes netmem_address() for granted."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        for row in payload_rows(batch):
            self.last_seen = netmem_address(row.netmem) + row.offset  # type: ignore[operator]
        return got


@breaks("R5")
class MapsToLook(RingDriver):
    """Maps the memory behind a payload buffer to look at it."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        provider = self._rx[queue].pool.provider
        if payload_rows(batch) and provider is not None and provider.unreadable:
            self.view = Region(provider.fd, provider.size, writable=False)
        return got


@breaks("R5", on_igb=False)  # which leaves all short packets unsplit: nothing at all would come through
class IgnoresTheMissBit(RingDriver):
    """Takes every frame for split: what came with the headers but is payload gets lost."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        for row in batch.used():
            if self._rx[queue].split and row.header_netmem and not row.status & Rx.SPLIT:
                row.header_len = min(row.header_len, 66)
                row.linear_len = 0
                row.len = row.own_len = row.size
        return got


@breaks("R5")
class DropsUnreadable(RingDriver):
    """Takes a packet whose payload has no address for a broken one."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        for row in payload_rows(batch):
            if netmem_address(row.netmem) is None:
                row.len = row.own_len = row.linear_len = 0
        return got


@breaks("R5")
class LooksAtTheEnd(RingDriver):
    """Looks at the last byte of long packets."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        pool = self._rx[queue].pool.record
        for row in payload_rows(batch):
            if row.size > 1400:
                ctypes.string_at(pool.host + offset_of(row.netmem, pool.shift) + row.offset + row.size - 1, 1)
        return got


@breaks("R5")
class MapsAtStart(RingDriver):
    """Maps the payload memory when the queue starts, to have it at hand."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        super().queue_start(mem, queue)
        provider = mem.pool.provider
        if provider is not None and provider.unreadable:
            self.view = Region(provider.fd, provider.size, writable=False)


# -- R6 ---------------------------------------------------------------------------------------------


@breaks("R6")
class SyncsByItself(RingDriver):
    """Calls the DMA API on payload, beside the pool."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        pool = self._rx[queue].pool
        for row in payload_rows(batch):
            self.bus.sync_for_cpu(pool.get_dma_addr_netmem(row.netmem), row.size)
        return got


@breaks("R6")
class SyncsForTheWrongSide(RingDriver):
    """Syncs payload for the device when the CPU is to have it."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        pool = self._rx[queue].pool
        for row in payload_rows(batch):
            self.bus.sync_for_device(pool.get_dma_addr_netmem(row.netmem), 64)
        return got


@breaks("R6")
class NeverSyncs(RingDriver):
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


class _SyncsByHand(RingDriver):
    """What drivers have in common that sync less than they should: their kernel's sync does nothing."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        super().queue_start(mem, queue)
        self.__dict__.setdefault("_bounce", {})[mem.pool.id] = mem.pool.record.bounce
        mem.pool.record.bounce = 0

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        if queue not in self._rx:
            return got
        pool = self._rx[queue].pool
        pool.record.bounce = self.__dict__["_bounce"].get(pool.id, 0)
        if pool.record.bounce:
            self.sync(pool, queue, payload_rows(batch))
        pool.record.bounce = 0
        return got

    def sync(self, pool: PagePool, queue: int, rows: list[RxRow]) -> None:
        """What it does sync."""
        raise NotImplementedError


@breaks("R6")
class SyncsHalf(_SyncsByHand):
    """Syncs half of what the device wrote."""

    def sync(self, pool: PagePool, queue: int, rows: list[RxRow]) -> None:
        for row in rows:
            pool.dma_sync_netmem_for_cpu(row.netmem, row.offset, -(-row.size // 2))


@breaks("R6")
class SyncsTheFirstBuffer(_SyncsByHand):
    """Syncs the first buffer of a packet that has several."""

    def sync(self, pool: PagePool, queue: int, rows: list[RxRow]) -> None:
        for row in rows:
            if row.header_slot != -1:
                pool.dma_sync_netmem_for_cpu(row.netmem, row.offset, row.size)


@breaks("R6")
class SyncsTwoQueues(_SyncsByHand):
    """Syncs on the first two queues only."""

    def sync(self, pool: PagePool, queue: int, rows: list[RxRow]) -> None:
        for row in rows if queue < LATER else ():
            pool.dma_sync_netmem_for_cpu(row.netmem, row.offset, row.size)


@breaks("R6")
class CopiesBeforeItSyncs(_SyncsByHand):
    """Copies small payload before it syncs, and hands on the copy."""

    def sync(self, pool: PagePool, queue: int, rows: list[RxRow]) -> None:
        for row in rows:
            place = netmem_address(row.netmem)
            old = ctypes.string_at(place + row.offset, row.size) if place and row.size < 200 else b""
            pool.dma_sync_netmem_for_cpu(row.netmem, row.offset, row.size)
            if old and place:
                ctypes.memmove(place + row.offset, old, len(old))
