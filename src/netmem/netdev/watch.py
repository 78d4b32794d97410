"""The sanitiser's eyes on a device: who works on a queue's memory, and what batches hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netmem.base.arena import Words
from netmem.memory import sanitizer
from netmem.memory.layout import A_SHADOW, A_SITE
from netmem.memory.page_pool import PagePool
from netmem.netdev.batch import M_ROWS, RxBatch
from netmem.netdev.kernels import rx_check

if TYPE_CHECKING:
    from netmem.netdev.device import NetDevice


class Watch:
    """What the sanitiser asks of one device, with its pools at hand by queue."""

    def __init__(self, dev: NetDevice) -> None:
        self._dev = dev
        self._known: tuple[int, ...] = ()
        self._queues: dict[int, list[tuple[int, PagePool, memoryview]]] = {}
        self._areas: list[Words] = []

    def _look(self) -> None:
        """Sort the device's pools by queue, when they are not the ones known."""
        known = tuple(self._dev.pools)
        if known != self._known:
            self._known, self._queues = known, {}
            for handle, pool in self._dev.pools.items():
                if pool.area_a[A_SHADOW]:
                    entry = handle, pool, pool.area_a.data
                    self._queues.setdefault(pool.params.queue_idx, []).append(entry)
            pools = (pool for queue in self._queues.values() for _, pool, _ in queue)
            self._areas = list({id(pool.area): pool.area_a for pool in pools}.values())

    def blame(self, queue: int, who: str) -> None:
        """From here on it is ``who`` that works on a queue's memory."""
        self._look()
        number = sanitizer.number(who)
        for _, _, words in self._queues.get(queue, ()):
            words[A_SITE] = number

    def batch(self, queue: int, batch: RxBatch) -> None:
        """A driver hands up a batch: are its buffers held, and synced?"""
        n = int(batch.meta[M_ROWS])
        for handle, pool, _ in self._queues.get(queue, ()):
            rx_check(batch.rows, n, handle, pool.p, pool.area_a)

    def check(self) -> None:
        """Raise what was trapped: SanitizerError."""
        self._look()
        sanitizer.check(self._areas)
