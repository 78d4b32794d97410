"""The sanitiser's eyes on a device: who works on a queue's memory, and what batches hold."""

from __future__ import annotations

import numpy as np

from netmem.base.arena import Words
from netmem.memory import sanitizer
from netmem.memory.layout import AreaRecord
from netmem.memory.page_pool import PagePool
from netmem.netdev.napi import NapiRecord, PollRecord


class Watch:
    """What the sanitiser asks of one device, whose ``pools`` it has at hand by queue."""

    def __init__(self, pools: dict[int, PagePool], driver: str) -> None:
        self._pools = pools
        self.looking = False
        self._known = 0, 0
        self._told = 0, 0, 0
        self._areas: list[AreaRecord] = []
        self._lists: dict[int, Words] = {}  # by queue: addresses of its pools
        self._sites = (f"{driver}.napi_poll()", "the stack", f"{driver}.rx_refill()")

    def _sort(self) -> None:
        """Sort the device's pools by queue, when they are not the ones known."""
        known = len(self._pools), next(reversed(self._pools.keys()), 0)  # handles are used once
        if known == self._known:
            return
        self._known = known
        pools = [pool for pool in self._pools.values() if pool.arena.fd >= 0 and pool.record.synced]
        queues: dict[int, list[int]] = {}
        for pool in pools:
            queues.setdefault(pool.params.queue_idx, []).append(pool.at)
        self._lists = {queue: np.array(found, np.int64) for queue, found in queues.items()}
        self._areas = list({id(pool.area): pool.area.record for pool in pools}.values())

    def look(self, poll: PollRecord) -> None:
        """A poll starts: tell it which pools each queue has, and whom to blame at each stage."""
        self._sort()
        told = *self._known, poll.count
        if self.looking and told == self._told:
            return
        self.looking, self._told = True, told
        poll.poll_site, poll.receive_site, poll.refill_site = map(sanitizer.number, self._sites)
        for i in range(poll.count):
            napi, pools = NapiRecord.nth(poll.napis, i), self._lists.get(i)
            napi.watched = len(pools) if pools is not None else 0
            napi.watched_list = pools.ctypes.data if pools is not None else 0

    def forget(self, poll: PollRecord) -> None:
        """The sanitiser was turned off."""
        self.looking = False
        poll.poll_site = poll.receive_site = poll.refill_site = 0
        for i in range(poll.count):
            NapiRecord.nth(poll.napis, i).watched = 0

    def check(self) -> None:
        """Raise what was trapped: SanitizerError."""
        self._sort()
        sanitizer.check(self._areas)
