"""A network device: its queues, the pools behind them, and one poll of everything."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

from netmem.base.board import Board
from netmem.base.errors import NetmemError
from netmem.memory import calls, sanitizer
from netmem.memory.page_pool import PagePool
from netmem.memory.provider import MemoryProvider
from netmem.netdev.batch import RxBatch
from netmem.netdev.binding import Binding, TxBinding, bind_rx, bind_tx
from netmem.netdev.capture import Capture
from netmem.netdev.driver import Driver, QueueConfig, RingParams
from netmem.netdev.ethtool import Ethtool
from netmem.netdev.tx import TxQueue
from netmem.netdev.watch import Watch

log = logging.getLogger("netmem.netdev")

PAGE_SIZE = 4096
BUDGET = 256


class RxQueue:
    """struct netdev_rx_queue: the driver's memory for it, and the provider bound to it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.mem: Any = None
        self.mp_params: MemoryProvider | None = None
        self.binding_id = 0
        self.pool: PagePool | None = None  # payload pool, for accounts


class NetDevice:
    """struct net_device over a driver.

    ``lock`` is the one lock of the device and of the stack above it (netdev_lock). ``pools`` maps
    the handles that travel with received buffers to page pools, retired ones included.
    """

    def __init__(self, driver: Driver, name: str = "nm0", *, rx_queues: int = 1, mtu: int = 1500) -> None:
        if not 1 <= rx_queues <= driver.max_rx_queues:
            raise NetmemError(
                errno.EINVAL, f"{rx_queues} receive queues; {driver.name} has 1 to {driver.max_rx_queues}"
            )
        self.driver, self.name = driver, name
        self.lock = threading.RLock()
        self.mtu = 0
        self.ethtool = Ethtool(self, RingParams())
        self.rx_queues = [RxQueue(i) for i in range(rx_queues)]
        self.tx = TxQueue()
        self.batch = RxBatch()
        self.bindings: list[Binding] = []
        self.tx_bindings: list[TxBinding] = []
        self.after_stop: list[Callable[[], object]] = []  # what waits for the device to read no more
        self.pools: dict[int, PagePool] = {}
        self.page_pools: weakref.WeakSet[PagePool] = weakref.WeakSet()
        self._handles = itertools.count(1)
        self._registered = True
        self.running = False
        self.capture: Capture | None = None
        self.now = 0
        self.queue_generation = 0  # counts queue starts and stops, for whoever caches
        self.watch = Watch(self)
        self.board = Board(name)
        self.stack_notice: dict[str, Any] = {}  # what the stack above adds to the board
        self.set_mtu(mtu)

    # -- life ---------------------------------------------------------------------------------

    def open(self) -> None:
        """dev_open(): start the device and all its queues; undone whole when one fails."""
        with self.lock:
            if self.running:
                return
            self.tx.reset()  # what was queued while the device was down is lost, as on any device
            try:
                self.driver.open(self)
            except BaseException:
                self.driver.stop()
                raise
            self.running = True
            try:
                for queue in self.rx_queues:
                    self._start_queue(queue)
                self.ethtool.apply()
            except BaseException:
                self.stop()
                raise
            self.publish()

    def stop(self) -> None:
        """dev_close(): stop all queues and the device."""
        with self.lock:
            if not self.running:
                return
            for queue in self.rx_queues:
                self._stop_queue(queue)
            self.running = False
            self.driver.stop()
            self.tx.reset()
            for call in self.after_stop:
                call()
            self.after_stop.clear()
            self.publish()

    def close(self) -> None:
        """unregister_netdevice(): unbind, stop, and give the driver up, whatever fails on the way."""
        with self.lock:
            if not self._registered:
                return
            for queue in self.rx_queues:
                if queue.mp_params is not None:
                    queue.mp_params.uninstall(queue.index)
            with contextlib.ExitStack() as ends:  # each is done even if one before it failed
                for end in (
                    self.board.close, self.batch.arena.close, self.tx.close, self.driver.close,
                    lambda: self.reap(self.now), self._unregister, self._end_tx, self.stop,
                ):  # fmt: skip
                    ends.callback(end)
                for binding in list(self.bindings):
                    ends.callback(binding.close)

    def _end_tx(self) -> None:
        """The device is stopped: it reads no memory any more, whatever was in flight."""
        for binding in list(self.tx_bindings):
            binding.end()

    def _unregister(self) -> None:
        self._registered = False

    def is_registered(self) -> bool:
        """False once closed."""
        return self._registered

    def is_present(self) -> bool:
        """netif_device_present(): False when the hardware went away."""
        return self._registered and self.driver.is_alive()

    def check_present(self) -> None:
        """ENODEV when the hardware went away."""
        if self._registered and not self.driver.is_alive():
            raise NetmemError(errno.ENODEV, f"{self.name}: the device is not present")

    def set_mtu(self, mtu: int) -> None:
        """dev_set_mtu(): EINVAL outside 68 (RFC 791) to the driver's largest."""
        if not 68 <= mtu <= self.driver.max_mtu:
            raise NetmemError(errno.EINVAL, f"mtu {mtu} is outside 68 to {self.driver.max_mtu}")
        self.mtu = mtu
        if self.running:
            self.driver.set_mtu(mtu)
        self.publish()

    # -- queues -------------------------------------------------------------------------------

    def queue_config(self, queue: RxQueue) -> QueueConfig:
        """What a queue is to be made with, given settings and provider."""
        provider = queue.mp_params
        size = 1 << provider.area.shift if provider is not None else PAGE_SIZE
        return QueueConfig(rx_page_size=size, ring=self.ethtool.ring)

    def rxq_memory_provider(self, queue: int) -> MemoryProvider | None:
        """The provider that a pool for this queue must use."""
        return self.rx_queues[queue].mp_params

    def rxq_binding_id(self, queue: int) -> int:
        """Id of the binding that the queue's provider came with, 0 without."""
        return self.rx_queues[queue].binding_id

    def _start_queue(self, queue: RxQueue) -> None:
        mem = self.driver.queue_mem_alloc(self.queue_config(queue), queue.index)
        try:
            self.check_memory_provider(queue)
            self.driver.queue_start(mem, queue.index)
        except BaseException:
            self.driver.queue_mem_free(mem)
            raise
        queue.mem = mem

    def _stop_queue(self, queue: RxQueue) -> None:
        if queue.mem is not None:
            mem = self.driver.queue_stop(queue.index)
            queue.mem = None
            self.driver.queue_mem_free(mem)

    def set_queue_pool(self, index: int, pool: PagePool | None) -> None:
        """The driver started a queue with this payload pool, or stopped it."""
        self.rx_queues[index].pool = pool
        pools = [queue.pool for queue in self.rx_queues if queue.pool is not None]
        for one in pools:
            one.record.share = sum(one.area is other.area for other in pools)
        self.queue_generation += 1

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

    def restart_queue(self, queue: RxQueue) -> None:
        """netdev_rx_queue_restart(): new memory, old queue stopped, new one started.

        When the new memory cannot be had nothing changed; when the new queue does not start the old
        one is started again. On a device that is down the memory is only allocated and freed.
        """
        qcfg = self.queue_config(queue)
        self.driver.validate_qcfg(qcfg, queue.index)
        mem = self.driver.queue_mem_alloc(qcfg, queue.index)
        try:
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
                queue.mem = None  # neither will do: the queue stays stopped
                log.warning("%s: RX queue %d may be unhealthy: it starts no more", self.name, queue.index)
                self.driver.queue_mem_free(old)
                raise
            raise
        queue.mem = mem
        self.driver.queue_mem_free(old)
        self.publish()

    def set_rx_queues(self, count: int) -> None:
        """Change the number of receive queues; ``ethtool.set_channels`` checks it."""
        with self.lock:
            for queue in self.rx_queues[count:]:
                self._stop_queue(queue)
            del self.rx_queues[count:]
            for index in range(len(self.rx_queues), count):
                queue = RxQueue(index)
                self.rx_queues.append(queue)
                try:
                    if self.running:
                        self._start_queue(queue)
                except BaseException:
                    self.rx_queues.remove(queue)
                    raise
            self.publish()

    def bind_rx(self, queues: list[int], provider: MemoryProvider) -> Binding:
        """NETDEV_CMD_BIND_RX: give receive queues a memory provider. See ``binding.bind_rx``."""
        with self.lock:
            binding = bind_rx(self, queues, provider)
            self.publish()
            return binding

    def bind_tx(self, provider: MemoryProvider) -> TxBinding:
        """NETDEV_CMD_BIND_TX: let sockets send from a provider's memory. See ``binding.bind_tx``."""
        with self.lock:
            binding = bind_tx(self, provider)
            self.publish()
            return binding

    # -- pools --------------------------------------------------------------------------------

    def page_pool_list(self, pool: PagePool) -> None:
        """page_pool_list(): know a pool made for this device, for as long as it lives."""
        self.page_pools.add(pool)

    def register_pool(self, pool: PagePool) -> int:
        """A handle for a pool, to travel with the buffers that come from it."""
        handle = next(self._handles)
        self.pools[handle] = pool
        pool.record.handle = handle
        return handle

    def reap(self, now: int) -> None:
        """Forget destroyed pools that came to their end, and bindings without pools."""
        before = len(self.pools) + len(self.bindings)
        for handle, pool in list(self.pools.items()):
            if pool.release_retry(now):
                del self.pools[handle]
        for binding in list(self.bindings):
            binding.reap()
        if len(self.pools) + len(self.bindings) != before:
            self.publish()

    # -- polling ------------------------------------------------------------------------------

    def poll(self, now: int, receive: Callable[[RxBatch, int, int], None], budget: int = BUDGET) -> int:
        """One NAPI poll of each queue: batches go to ``receive(batch, queue, available)``.

        ``available``: buffers that the queue's pool can still receive into. Returns descriptors
        handled. ENODEV when the device is gone.
        """
        self.now = now
        total = 0
        driver, batch = self.driver, self.batch
        for queue in self.rx_queues:
            if sanitizer.ON:
                self.watch.blame(queue.index, f"{type(driver).__name__}.napi_poll()")
            got = driver.napi_poll(queue.index, budget, batch)
            pool = queue.pool
            if not got:
                if pool is not None and pool.record.posted == 0:
                    driver.rx_refill(queue.index, batch)  # it ran dry: try again
                continue
            available = 0
            if pool is not None:
                pool.area.record.now = now
                available = calls.available(pool.at)
            if sanitizer.ON:
                self.watch.batch(queue.index, batch)
                self.watch.blame(queue.index, "the stack")
            if self.capture is not None:
                self.capture.received(batch, now)
            try:
                receive(batch, queue.index, available)
            finally:  # whatever happens up there, what was not taken is posted again, and handed up once
                if sanitizer.ON:
                    self.watch.blame(queue.index, f"{type(driver).__name__}.rx_refill()")
                driver.rx_refill(queue.index, batch)
                batch.clear()
            total += got
        if sanitizer.ON:
            self.watch.check()
        return total

    def xmit(self) -> None:
        """ndo_start_xmit for what waits in the transmit queue."""
        if self.capture is not None:
            self.capture.sent(self.now)
        self.driver.xmit()

    def available(self, queue: int) -> int:
        """Buffers that a queue's pool can still receive into."""
        pool = self.rx_queues[queue].pool
        return calls.available(pool.at) if pool is not None else 0

    def publish(self) -> None:
        """Say on the board what the device is like now; ``lab.observe`` reads it from outside."""
        if self.board.fd < 0:
            return
        try:
            link = self.running and self.is_present() and self.driver.link_up()
        except OSError:
            link = False
        self.board.write(
            {
                "name": self.name,
                "driver": self.driver.name,
                "mac": self.driver.mac_address() if self.running else 0,
                "mtu": self.mtu,
                "running": self.running,
                "present": self.is_present(),
                "link": link,
                "ring": self.ethtool.describe(),
                "batch": self.batch.arena.fd,
                "queues": [
                    {
                        "id": queue.index,
                        "pool": queue.pool.id if queue.pool else None,
                        "ring": queue.mem.arena.fd if hasattr(queue.mem, "arena") else -1,
                        "provider": (
                            {**queue.mp_params.describe(), "binding": queue.binding_id}
                            if queue.mp_params
                            else None
                        ),
                    }
                    for queue in self.rx_queues
                ],
                "pools": [
                    {
                        "id": pool.id,
                        "queue": pool.params.queue_idx,
                        "words": pool.arena.fd,
                        "area": pool.area.arena.fd,
                        "provider": pool.provider.describe() if pool.provider else None,
                    }
                    for pool in self.pools.values()
                    if pool.arena.fd >= 0
                ],
                "tx": [
                    {"id": b.id, "area": b.area.arena.fd, "provider": b.provider.describe()}
                    for b in self.tx_bindings
                ],
                "stack": self.stack_notice,
            }
        )

    def describe(self) -> dict[str, Any]:
        """What tools show of the device."""
        return {
            "name": self.name,
            "driver": self.driver.name,
            "mtu": self.mtu,
            "queues": [
                {
                    "id": queue.index,
                    "provider": queue.mp_params.describe() if queue.mp_params else None,
                    **self.driver.get_queue_stats(queue.index),
                }
                for queue in self.rx_queues
            ],
            "pools": [pool.describe() for pool in self.pools.values()],
            "ring": self.ethtool.describe(),
            "netdev": self.batch.counters(),
            "ethtool": self.driver.get_ethtool_stats(),
        }
