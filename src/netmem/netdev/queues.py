"""The receive queues of a device: the pools behind them, and how a queue is made anew."""

from __future__ import annotations

import errno
import itertools
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from netmem.base.errors import NetmemError
from netmem.memory import calls
from netmem.memory.page_pool import PagePool
from netmem.memory.provider import MemoryProvider
from netmem.netdev.driver import Driver, QueueConfig, QueueMem, RingParams

log = logging.getLogger("netmem.netdev")

PAGE_SIZE = 4096


class RxQueue:
    """struct netdev_rx_queue: the driver's memory for it, and the provider bound to it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.mem: QueueMem | None = None
        self.mp_params: MemoryProvider | None = None
        self.binding_id = 0
        self.pool: PagePool | None = None  # payload pool, for accounts


class Bound(Protocol):
    """A binding of memory to queues, as far as the queues know it."""

    def is_over(self) -> bool:
        """True once nobody uses its memory any more."""

    def end(self) -> None:
        """End the mapping of its memory."""

    def close(self) -> None:
        """Unbind."""


class RxQueues:
    """All receive queues of one device.

    ``lock`` is the one lock of the device and of the stack above it (netdev_lock). ``pools`` maps the
    handles that travel with received buffers to page pools, retired ones included. ``ring``: the
    settings that queues are made with. ``changed`` is called when something that tools show did.
    """

    def __init__(self, driver: Driver, name: str, count: int, changed: Callable[[], object]) -> None:
        if not 1 <= count <= driver.max_rx_queues:
            raise NetmemError(
                errno.EINVAL, f"{count} receive queues; {driver.name} has 1 to {driver.max_rx_queues}"
            )
        self.driver, self.name, self.changed = driver, name, changed
        self.lock = threading.RLock()
        self.ring = RingParams()
        self.queues = [RxQueue(i) for i in range(count)]
        self.pools: dict[int, PagePool] = {}
        self.page_pools: weakref.WeakSet[PagePool] = weakref.WeakSet()  # every pool made for the device
        self.bindings: list[Bound] = []
        self.running, self.registered = False, True
        self.now = 0
        self.generation = 0  # counts queue starts and stops, for whoever caches
        self._handles = itertools.count(1)

    def is_present(self) -> bool:
        """netif_device_present(): False when the hardware went away."""
        return self.registered and self.driver.is_alive()

    def check_present(self) -> None:
        """ENODEV when the hardware went away."""
        if self.registered and not self.driver.is_alive():
            raise NetmemError(errno.ENODEV, f"{self.name}: the device is not present")

    # -- making queues ------------------------------------------------------------------------

    def config(self, queue: RxQueue) -> QueueConfig:
        """What a queue is to be made with, given settings and provider."""
        provider = queue.mp_params
        size = 1 << provider.area.shift if provider is not None else PAGE_SIZE
        return QueueConfig(rx_page_size=size, ring=self.ring)

    def start(self, queue: RxQueue) -> None:
        """Make a queue's memory and start it; undone when that fails."""
        mem = self.driver.queue_mem_alloc(self.config(queue), queue.index)
        try:
            self._check_mem(mem)
            self.check_memory_provider(queue)
            self.driver.queue_start(mem, queue.index)
        except BaseException:
            self.driver.queue_mem_free(mem)
            raise
        queue.mem = mem
        self.generation += 1

    def _check_mem(self, mem: object) -> None:
        if not isinstance(mem, QueueMem):
            raise NetmemError(
                errno.EINVAL,
                f"{self.driver.name}: queue_mem_alloc() must make memory with an arena (QueueMem)",
            )

    def stop(self, queue: RxQueue) -> None:
        """Stop a queue, if it runs, and free its memory."""
        if queue.mem is not None:
            mem = self.driver.queue_stop(queue.index)
            queue.mem = queue.pool = None
            self.generation += 1
            self.driver.queue_mem_free(mem)

    def restart(self, queue: RxQueue) -> None:
        """netdev_rx_queue_restart(): new memory, old queue stopped, new one started.

        When the new memory cannot be had nothing changed; when the new queue does not start the old
        one is started again. On a device that is down the memory is only allocated and freed.
        """
        qcfg = self.config(queue)
        self.driver.validate_qcfg(qcfg, queue.index)
        mem = self.driver.queue_mem_alloc(qcfg, queue.index)
        try:
            self._check_mem(mem)
            self.check_memory_provider(queue)
            if not self.running:
                self.driver.queue_mem_free(mem)
                return
            old = self.driver.queue_stop(queue.index)
        except BaseException:
            self.driver.queue_mem_free(mem)
            raise
        try:
            self.driver.queue_start(mem, queue.index)
        except BaseException:
            self.driver.queue_mem_free(mem)
            try:
                self.driver.queue_start(old, queue.index)
            except BaseException:
                self.generation += 1
                queue.mem = None  # neither will do: the queue stays stopped
                log.warning("%s: RX queue %d may be unhealthy: it starts no more", self.name, queue.index)
                self.driver.queue_mem_free(old)
                raise
            raise
        queue.mem = mem
        self.generation += 1
        self.driver.queue_mem_free(old)
        self.changed()

    def set_count(self, count: int) -> None:
        """Change the number of queues; ``ethtool.set_channels`` checks it."""
        for queue in self.queues[count:]:
            self.stop(queue)
        del self.queues[count:]
        self.generation += 1
        for index in range(len(self.queues), count):
            queue = RxQueue(index)
            self.queues.append(queue)
            try:
                if self.running:
                    self.start(queue)
            except BaseException:
                self.queues.remove(queue)
                raise
        self.changed()

    # -- pools --------------------------------------------------------------------------------

    def register_pool(self, pool: PagePool) -> int:
        """A handle for a pool, to travel with the buffers that come from it."""
        handle = next(self._handles)
        self.pools[handle] = pool
        pool.record.handle = handle
        return handle

    def set_pool(self, index: int, pool: PagePool | None) -> None:
        """The driver started a queue with this payload pool, or stopped it."""
        self.queues[index].pool = pool
        pools = [queue.pool for queue in self.queues if queue.pool is not None]
        for one in pools:
            one.record.share = sum(one.area is other.area for other in pools)
        self.generation += 1

    def check_memory_provider(self, queue: RxQueue) -> None:
        """page_pool_check_memory_provider(): ENODATA unless a live pool of the queue has it."""
        provider = queue.mp_params
        if provider is None:
            return
        for pool in self.pools.values():
            if (
                pool.provider is provider
                and pool.destroyed_at is None
                and pool.params.queue_idx == queue.index
            ):
                return
        raise NetmemError(
            errno.ENODATA, f"{self.driver.name} made no page pool with the provider for queue {queue.index}"
        )

    def available(self, index: int) -> int:
        """Buffers that a queue's pool can still receive into."""
        pool = self.queues[index].pool
        return calls.available(pool.at) if pool is not None else 0

    def reap(self, now: int) -> None:
        """Forget destroyed pools that came to their end, and bindings without pools."""
        over = [handle for handle, pool in list(self.pools.items()) if pool.release_retry(now)]
        for handle in over:
            self.pools.pop(handle, None)
        ended = [binding for binding in self.bindings if binding.is_over()]
        for binding in ended:
            self.bindings.remove(binding)  # first: should its end fail, it is not tried again
            binding.end()
        if over or ended:
            self.changed()
