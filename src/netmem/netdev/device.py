"""A network device: the root of this room, with one poll of everything, and what tools see."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from typing import Any, BinaryIO

from netmem.base.board import Board
from netmem.base.errors import NetmemError
from netmem.memory import sanitizer
from netmem.memory.page_pool import PagePool
from netmem.memory.provider import MemoryProvider
from netmem.netdev.batch import RxBatch
from netmem.netdev.binding import Binding, TxBinding, bind_rx, bind_tx
from netmem.netdev.capture import Capture
from netmem.netdev.driver import Driver
from netmem.netdev.ethtool import Ethtool
from netmem.netdev.napi import Napi, PacketType, Stage, blame_queue, net_rx_action
from netmem.netdev.queues import RxQueue, RxQueues
from netmem.netdev.tx import PINNED, SPARSE, TxQueue
from netmem.netdev.watch import Watch

BUDGET = 256


class NetDevice:
    """struct net_device over a driver.

    ``queues`` are its receive queues, with ``lock``, ``rx_queues`` and ``pools`` of them at hand.
    """

    def __init__(self, driver: Driver, name: str = "nm0", *, rx_queues: int = 1, mtu: int = 1500) -> None:
        self.driver, self.name = driver, name
        self.board = Board(name)
        self.queues = RxQueues(driver, name, rx_queues, self.publish)
        self.lock, self.rx_queues, self.pools = self.queues.lock, self.queues.queues, self.queues.pools
        self.page_pools = self.queues.page_pools
        self.mtu = 0
        self.ethtool = Ethtool(self.queues)
        dma = driver.dma_device()
        self.tx = TxQueue(PINNED if dma is not None and dma.pins else SPARSE)
        self.batch = RxBatch()
        self.napi = Napi(self.queues, driver, self.batch)
        self.tx_bindings: list[TxBinding] = []
        self.after_stop: list[Callable[[], object]] = []  # what waits for the device to read no more
        self.capture: Capture | None = None
        self.watch = Watch(self.pools, type(driver).__name__)
        self.stack_notice: dict[str, Any] = {}  # what the stack above adds to the board
        self.set_mtu(mtu)

    @property
    def now(self) -> int:
        """Time of the last poll, ns."""
        return self.queues.now

    @property
    def running(self) -> bool:
        """netif_running()."""
        return self.queues.running

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
            self.queues.running = True
            try:
                self.driver.set_features(self.ethtool.features)  # buffer sizes follow them
                for queue in self.rx_queues:
                    self.queues.start(queue)
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
                self.queues.stop(queue)
            self.queues.running = False
            self.driver.stop()
            self.tx.reset()
            for call in self.after_stop:
                call()
            self.after_stop.clear()
            self.publish()

    def close(self) -> None:
        """unregister_netdevice(): unbind, stop, and give the driver up, whatever fails on the way."""
        with self.lock:
            if not self.queues.registered:
                return
            for queue in self.rx_queues:
                if queue.mp_params is not None:
                    queue.mp_params.uninstall(queue.index)
            with contextlib.ExitStack() as ends:  # each is done even if one before it failed
                for end in (
                    self.board.close, self.napi.arena.close, self.batch.arena.close, self.tx.close,
                    self.driver.close, lambda: self.reap(self.now), self.stop_capture,
                    self._unregister, self._end_tx, self.stop,
                ):  # fmt: skip
                    ends.callback(end)
                for binding in list(self.queues.bindings):
                    ends.callback(binding.close)

    def _end_tx(self) -> None:
        """The device is stopped: it reads no memory any more, whatever was in flight."""
        for binding in list(self.tx_bindings):
            binding.end()

    def _unregister(self) -> None:
        self.queues.registered = False

    def set_mtu(self, mtu: int) -> None:
        """dev_set_mtu(): EINVAL outside 68 (RFC 791) to the driver's largest."""
        if not 68 <= mtu <= self.driver.max_mtu:
            raise NetmemError(errno.EINVAL, f"mtu {mtu} is outside 68 to {self.driver.max_mtu}")
        self.mtu = mtu
        if self.running:
            self.driver.set_mtu(mtu)
        self.publish()

    # -- what a driver sees (driver.Netdev) ---------------------------------------------------

    def rxq_memory_provider(self, queue: int) -> MemoryProvider | None:
        """The provider that a pool for this queue must use."""
        return self.rx_queues[queue].mp_params

    def rxq_binding_id(self, queue: int) -> int:
        """Id of the binding that the queue's provider came with, 0 without."""
        return self.rx_queues[queue].binding_id

    def is_registered(self) -> bool:
        """False once closed."""
        return self.queues.registered

    def register_pool(self, pool: PagePool) -> int:
        """A handle for a pool, to travel with the buffers that come from it."""
        return self.queues.register_pool(pool)

    def set_queue_pool(self, index: int, pool: PagePool | None) -> None:
        """The driver started a queue with this payload pool, or stopped it."""
        self.queues.set_pool(index, pool)

    def reap(self, now: int) -> None:
        """Forget destroyed pools that came to their end, and bindings without pools."""
        self.queues.reap(now)

    # -- memory -------------------------------------------------------------------------------

    def bind_rx(self, queues: list[int], provider: MemoryProvider) -> Binding:
        """NETDEV_CMD_BIND_RX: give receive queues a memory provider. See ``binding.bind_rx``."""
        with self.lock:
            binding = bind_rx(self.queues, queues, provider)
            self.publish()
            return binding

    def bind_tx(self, provider: MemoryProvider) -> TxBinding:
        """NETDEV_CMD_BIND_TX: let sockets send from a provider's memory. See ``binding.bind_tx``."""
        with self.lock:
            binding = bind_tx(self.queues, self.tx_bindings, provider)
            self.publish()
            return binding

    # -- capture ------------------------------------------------------------------------------

    def start_capture(self, file: BinaryIO) -> Capture:
        """What is received and sent from here on goes into ``file``, as pcapng. See ``capture.Capture``."""
        self.capture = Capture(self.name, self.tx, self.pools, self.tx_bindings, file)
        self.batch.record.stamps = 1
        return self.capture

    def stop_capture(self) -> None:
        """End the capture, if there is one, and close its file."""
        with self.lock:
            capture, self.capture = self.capture, None
            if capture is not None:
                self.batch.record.stamps = 0
                capture.close()

    # -- polling ------------------------------------------------------------------------------

    def poll(self, now: int, who: PacketType, budget: int = BUDGET) -> int:
        """One NAPI poll of each queue, whose batches go to ``who``; descriptors handled.

        ENODEV when the device is gone.
        """
        self.begin_poll(now, who, budget)
        while (stage := net_rx_action(self.napi.at)) != Stage.DONE:
            self.poll_stage(stage, who)
        return self.end_poll()

    def begin_poll(self, now: int, who: PacketType, budget: int) -> None:
        """A poll starts; whoever calls ``net_rx_action`` does what it asks for by ``poll_stage``."""
        if self.napi.record.stage != Stage.DONE:
            self._abandoned()
        self.queues.now = now
        self.napi.begin(now, budget, who, stops=self.capture is not None)
        if sanitizer.ON:
            self.watch.look(self.napi.record)
        elif self.watch.looking:
            self.watch.forget(self.napi.record)

    def _abandoned(self) -> None:
        """The last poll ended by an exception: what its batch still holds is posted again."""
        index = self.napi.record.current
        if len(self.batch) or self.batch.record.used:
            if index < len(self.rx_queues):
                self._refill(self.rx_queues[index])
            self.batch.clear()

    def end_poll(self) -> int:
        """A poll is over; descriptors handled. SanitizerError."""
        if sanitizer.ON:
            self.watch.check()
        return self.napi.record.total

    def poll_stage(self, stage: int, who: PacketType) -> None:
        """Python's share of a poll at a Stage."""
        napi, driver, batch = self.napi, self.driver, self.batch
        queue = napi.queue
        if stage == Stage.POLL:
            self._blame(napi.record.poll_site)
            napi.record.work = driver.napi_poll(queue.index, napi.record.budget, batch)
            napi.record.stage = Stage.RECEIVE
        elif stage == Stage.REFILL:
            self._refill(queue)
        else:
            try:
                if stage == Stage.RECEIVE:
                    self._receive(queue, who)
                elif who.rest is not None:
                    who.rest(batch)
            except BaseException:  # what was not taken is posted again, and handed up once
                if sanitizer.ON:
                    self.watch.look(napi.record)
                self._refill(queue)
                raise
            napi.record.stage = Stage.REFILL
        if sanitizer.ON:
            self.watch.look(napi.record)  # pools may have come to their end

    def _blame(self, site: int) -> None:
        """For the sanitiser: it is ``site`` that works on the memory of the queue at hand."""
        if sanitizer.ON:
            blame_queue(self.napi.at, site)

    def _receive(self, queue: RxQueue, who: PacketType) -> None:
        if self.capture is not None:
            self.capture.received(self.batch, self.now)
        who.func(self.batch, queue.index, self.queues.available(queue.index))

    def _refill(self, queue: RxQueue) -> None:
        self._blame(self.napi.record.refill_site)
        self.driver.rx_refill(queue.index, self.batch)
        self.batch.clear()
        self.napi.skip()

    def xmit(self) -> None:
        """ndo_start_xmit for what waits in the transmit queue."""
        if self.capture is not None:
            self.capture.sent(self.now)
        self.napi.xmit()

    def publish(self) -> None:
        """Say on the board what the device is like now; ``lab.observe`` reads it from outside."""
        if self.board.fd < 0:
            return
        try:
            link = self.running and self.queues.is_present() and self.driver.link_up()
        except OSError:
            link = False
        self.board.write(
            {
                "name": self.name,
                "driver": self.driver.name,
                "mac": self.driver.mac_address() if self.running else 0,
                "mtu": self.mtu,
                "running": self.running,
                "present": self.queues.is_present(),
                "link": link,
                "ring": self.ethtool.describe(),
                "batch": self.batch.arena.fd,
                "queues": [
                    {
                        "id": queue.index,
                        "pool": queue.pool.id if queue.pool else None,
                        "ring": queue.mem.arena.fd if queue.mem is not None else -1,
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
