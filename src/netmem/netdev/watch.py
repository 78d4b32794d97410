"""The sanitiser's eyes on a device: who works on a queue's memory, and what batches hold."""

from __future__ import annotations

from collections.abc import Mapping

from netmem.memory import sanitizer
from netmem.memory.layout import AreaRecord
from netmem.memory.page_pool import PagePool
from netmem.netdev.batch import RxBatch
from netmem.netdev.kernels import rx_check


class Watch:
    """What the sanitiser asks of one device, whose ``pools`` it has at hand by queue."""

    def __init__(self, pools: Mapping[int, PagePool]) -> None:
        self._pools = pools
        self._known: tuple[int, ...] = ()
        self._queues: dict[int, list[tuple[int, PagePool]]] = {}
        self._areas: list[AreaRecord] = []

    def _look(self) -> None:
        """Sort the device's pools by queue, when they are not the ones known."""
        known = tuple(self._pools)
        if known != self._known:
            self._known, self._queues = known, {}
            for handle, pool in self._pools.items():
                if pool.record.synced:
                    self._queues.setdefault(pool.params.queue_idx, []).append((handle, pool))
            pools = (pool for queue in self._queues.values() for _, pool in queue)
            self._areas = list({id(pool.area): pool.area.record for pool in pools}.values())

    def blame(self, queue: int, who: str) -> None:
        """From here on it is ``who`` that works on a queue's memory."""
        self._look()
        number = sanitizer.number(who)
        for _, pool in self._queues.get(queue, ()):
            pool.area.record.site = number

    def batch(self, queue: int, batch: RxBatch) -> None:
        """A driver hands up a batch: are its buffers held, and synced?"""
        for handle, pool in self._queues.get(queue, ()):
            rx_check(batch.at, handle, pool.at)

    def check(self) -> None:
        """Raise what was trapped: SanitizerError."""
        self._look()
        sanitizer.check(self._areas)
