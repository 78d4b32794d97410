"""Netmems that go round beside the pool: R7."""

from __future__ import annotations

from typing import Any

from netmem.contract.mutants.base import breaks, payload_rows
from netmem.drivers.base import RingDriver
from netmem.netdev.batch import RxBatch
from netmem.netdev.rx import RxRing

# -- R7 ---------------------------------------------------------------------------------------------


@breaks("R7")
class KeepsACache(RingDriver):
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
class PostsTwice(RingDriver):
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
class ForgetsAReference(RingDriver):
    """Takes a reference to a netmem that it wants to use again, and never gives it up."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        got = super().napi_poll(queue, budget, batch)
        for row in payload_rows(batch)[:1]:
            self._rx[queue].pool.ref_netmem(row.netmem)
        return got


@breaks("R7")
class PutsWhatTheStackHas(RingDriver):
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


@breaks("R7")
class LeaksEverySixteenth(RingDriver):
    """Takes a netmem too many every sixteenth refill, and forgets it."""

    def rx_refill(self, queue: int, batch: RxBatch) -> None:
        super().rx_refill(queue, batch)
        self._times = getattr(self, "_times", 0) + 1
        if not self._times % 16 and queue in self._rx:
            self._rx[queue].pool.alloc_netmems(1)


@breaks("R7")
class KeepsTwo(RingDriver):
    """Keeps two netmems of each queue for good, to have them at hand."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        super().queue_start(mem, queue)
        self.__dict__.setdefault("_mine", []).append(mem.pool.alloc_netmems(2))


@breaks("R7")
class TakesOneAtTheEnd(RingDriver):
    """Takes a netmem when its queue stops."""

    def queue_stop(self, queue: int) -> RxRing:
        ring = super().queue_stop(queue)
        ring.pool.alloc_netmems(1)
        return ring


@breaks("R7")
class ReturnsTwice(RingDriver):
    """Gives a buffer back when its queue is freed, and once more with the rest."""

    def queue_mem_free(self, mem: RxRing) -> None:
        if mem.slot(3).netmem:
            mem.pool.put_full_netmem(mem.slot(3).netmem)
        super().queue_mem_free(mem)


@breaks("R7")
class LosesWhatWasNotPolled(RingDriver):
    """Forgets a buffer when its queue stops while packets wait that nobody has polled."""

    def queue_stop(self, queue: int) -> RxRing:
        waits = bool(self.pending_kernel(self._rx[queue].at))
        ring = super().queue_stop(queue)
        slots = (ring.slot(i) for i in range(ring.desc.size))
        slot = next((one for one in slots if one.netmem), None)
        if waits and slot is not None:
            slot.netmem = 0
        return ring


@breaks("R7")
class TakesOneForEachRestart(RingDriver):
    """Takes a netmem for later each time that its queue is started again with a packet in its ring."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        super().queue_start(mem, queue)
        if getattr(self, "_waited", False):
            mem.pool.alloc_netmems(1)

    def queue_stop(self, queue: int) -> RxRing:
        self._waited = bool(self.pending_kernel(self._rx[queue].at))
        return super().queue_stop(queue)
