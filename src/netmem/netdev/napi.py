"""One poll of a device's receive queues, in compiled code (net/core/dev.c: net_rx_action, napi_poll).

The loop knows neither driver nor protocol: it reaches both through addresses in records, as the kernel
does through net_device_ops and packet_type. Where an address is 0, or something needs Python, it comes back
and says at which stage; when Python has done its share the loop is called again and goes on there. So a
driver in plain Python works too, slower.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from netmem.base.arena import Arena
from netmem.base.jit import inline_kernel, kernel
from netmem.base.ops import call_op
from netmem.base.record import Record, Word, i64
from netmem.memory.kernels import pp_available
from netmem.memory.layout import AreaRecord, PoolRecord
from netmem.netdev.batch import SIZES, BatchRecord, RxBatch, batch_clear
from netmem.netdev.driver import Driver
from netmem.netdev.kernels import rx_check, rx_return
from netmem.netdev.queues import RxQueue, RxQueues
from netmem.netdev.ring import Refill, RxRingRecord


class Stage(enum.IntEnum):
    """Where a poll is, and when the loop came back: what Python has to do there."""

    DONE = 0
    POLL = 1  # napi_poll()
    RECEIVE = 2  # hand the batch to the protocol
    REST = 3  # what the protocol's compiled code left of the batch
    REFILL = 4  # rx_refill()


class NetdevOps(Record):
    """A driver's operations as compiled code: addresses (``base.ops``), 0 for what only its Python does."""

    poll: i64  # napi_poll(ring, batch, budget): descriptors taken
    refill: i64  # post buffers: (ring), how that ended (Refill)
    post: i64  # (ring): 1 when the device must be told of buffers, by rx_refill()
    xmit: i64  # ndo_start_xmit(tx ring): 1 when the device must be told, by tx_notify()
    tx_ring: i64  # what it is called with, 0: the device is down


class NapiRecord(Record):
    """struct napi_struct: one receive queue's poll."""

    queue: i64
    ring: i64  # address of the RxRingRecord, 0: the queue does not run
    pool: i64  # address of the payload pool's PoolRecord, 0 without
    watched: i64  # for the sanitiser: pools of the queue, and a word for each: the address of its PoolRecord
    watched_list: i64


class PollRecord(Record):
    """A poll of all queues: what it is about, and how far it is."""

    napis: i64  # address of NapiRecord 0
    count: i64
    batch: i64  # address of the BatchRecord
    ops: i64  # address of the driver's NetdevOps
    receive: (
        i64  # the protocol's operation (at, batch, this): packets left for Python; 0: only Python does it
    )
    protocol: i64  # address of its record
    running: i64  # 1: the device is up
    stops: i64  # 1: come back at every stage (capture)
    poll_site: (
        i64  # for the sanitiser: the driver's poll, the stack, and the driver's refill, as it numbers them
    )
    receive_site: i64
    refill_site: i64
    now: i64  # ns
    budget: i64  # packets for each queue
    current: i64  # NAPI at hand
    stage: i64  # Stage of it
    work: i64  # descriptors that it took
    total: i64  # that all took


@inline_kernel
def next_napi(poll: PollRecord) -> None:
    """The queue at hand is done."""
    poll.current += 1
    poll.stage = Stage.POLL
    poll.work = 0


@inline_kernel
def ran_dry(napi: NapiRecord, compiled: bool) -> bool:
    """True when a queue's device has no buffer to receive into, or no descriptor to tell of it."""
    if napi.pool != 0 and PoolRecord.at(napi.pool).posted == 0:
        return True
    ring = RxRingRecord.at(napi.ring)
    return compiled and ring.next_to_use == ring.next_to_clean


@inline_kernel
def has_nothing(pool_at: int) -> bool:
    """True when a pool's provider has nothing to give it: to ask is of no use."""
    pool = PoolRecord.at(pool_at)
    return pool.released == 0 and AreaRecord.at(pool.area).free == 0


@inline_kernel
def blame(napi: NapiRecord, site: int) -> None:
    """For the sanitiser: from here on it is ``site`` that works on the queue's memory."""
    for i in range(napi.watched):
        pool = PoolRecord.at(Word.nth(napi.watched_list, i).value)
        AreaRecord.at(pool.area).site = site


@inline_kernel
def watch_batch(napi: NapiRecord, batch_at: int) -> None:
    """For the sanitiser: a driver hands up a batch; are its buffers held, and synced?"""
    for i in range(napi.watched):
        pool_at = Word.nth(napi.watched_list, i).value
        rx_check(batch_at, PoolRecord.at(pool_at).handle, pool_at)


@inline_kernel
def note_size(batch: BatchRecord) -> None:
    """Count a batch by its packets."""
    packets, bits = batch.packets, 0
    while packets > 0 and bits < SIZES - 1:
        packets, bits = packets >> 1, bits + 1
    batch.sizes[bits] += 1


@kernel
def blame_queue(at: int, site: int) -> None:
    """``blame`` for the queue at hand."""
    poll = PollRecord.at(at)
    blame(NapiRecord.nth(poll.napis, poll.current), site)


@kernel
def net_rx_action(at: int) -> int:
    """Poll the queues, all or from where Python was needed; the Stage that needs it, DONE at the end."""
    poll = PollRecord.at(at)
    ops = NetdevOps.at(poll.ops)
    if poll.stage == Stage.DONE:
        poll.current, poll.stage = 0 if poll.running != 0 else poll.count, Stage.POLL
        poll.work = poll.total = 0
    while poll.current < poll.count:
        napi = NapiRecord.nth(poll.napis, poll.current)
        if poll.stage == Stage.POLL:
            if napi.ring == 0:
                next_napi(poll)
                continue
            if ops.poll == 0 or poll.stops != 0:
                return int(Stage.POLL)
            blame(napi, poll.poll_site)
            poll.work = call_op(ops.poll, napi.ring, poll.batch, poll.budget)
            poll.stage = Stage.RECEIVE
        if poll.stage == Stage.RECEIVE:
            if poll.work == 0 and not ran_dry(napi, ops.refill != 0):
                next_napi(poll)
                continue
            poll.total += poll.work
            if poll.work != 0:
                note_size(BatchRecord.at(poll.batch))
                if napi.pool != 0:
                    AreaRecord.at(PoolRecord.at(napi.pool).area).now = poll.now
                watch_batch(napi, poll.batch)
                blame(napi, poll.receive_site)
                if poll.receive == 0 or poll.stops != 0:
                    return int(Stage.RECEIVE)
                left = call_op(poll.receive, poll.protocol, poll.batch, at)
                if left != 0:
                    return int(Stage.REST)
            poll.stage = Stage.REFILL
        if ops.refill == 0 or ops.post == 0 or poll.stops != 0:
            return int(Stage.REFILL)
        blame(napi, poll.refill_site)
        rx_return(napi.ring, poll.batch)
        short = call_op(ops.refill, napi.ring)
        if short == Refill.PAYLOAD and napi.pool != 0 and has_nothing(napi.pool):
            RxRingRecord.at(napi.ring).counters.starved += 1
            short = int(Refill.DONE)
        if short != Refill.DONE or call_op(ops.post, napi.ring) != 0:
            return int(Stage.REFILL)
        batch_clear(BatchRecord.at(poll.batch))
        next_napi(poll)
    poll.stage = Stage.DONE
    return int(Stage.DONE)


@inline_kernel
def available(pool: int) -> int:
    """Buffers that a queue's payload pool can still receive into; 0 without one."""
    return pp_available(PoolRecord.at(pool)) if pool != 0 else 0


@kernel
def net_tx_action(at: int) -> int:
    """Let the driver take what waits in the transmit queue; 1 when its Python has to tell the device."""
    ops = NetdevOps.at(PollRecord.at(at).ops)
    if ops.xmit == 0 or ops.tx_ring == 0:
        return 1
    return call_op(ops.xmit, ops.tx_ring)


@runtime_checkable
class CompiledDriver(Protocol):
    """A driver whose operations are, at least in part, compiled code."""

    def netdev_ops(self) -> NetdevOps:
        """Their addresses; the record lives as long as the driver."""

    def tx_notify(self) -> None:
        """Tell the device of what ``NetdevOps.xmit`` posted."""


@dataclass(frozen=True)
class PacketType:
    """struct packet_type: who receives.

    ``func(batch, queue, available)`` takes a whole batch; ``available``: buffers that the queue's pool can
    still receive into. ``receive``: the same as compiled code, called with ``at``, the batch and the
    PollRecord; what it leaves ``rest(batch)`` does.
    """

    func: Callable[[RxBatch, int, int], None]
    rest: Callable[[RxBatch], None] | None = None
    receive: int = 0
    at: int = 0


class Napi:
    """The poll of one device: ``record``, ``at`` its address."""

    def __init__(self, queues: RxQueues, driver: Driver, batch: RxBatch) -> None:
        self._queues, self._driver = queues, driver
        napis = ctypes.sizeof(PollRecord)
        self.arena = Arena("netdev:napi", napis + driver.max_rx_queues * ctypes.sizeof(NapiRecord))
        self.at = self.arena.address
        self.record = self.arena.record(PollRecord)
        self._generation = -1
        self._wanted: tuple[int, PacketType, bool, bool] | None = None
        self._compiled = driver if isinstance(driver, CompiledDriver) else None
        self._ops = self._compiled.netdev_ops() if self._compiled is not None else NetdevOps()
        self.record.napis, self.record.batch = self.at + napis, batch.at
        self.record.ops = ctypes.addressof(self._ops)

    def begin(self, now: int, budget: int, who: PacketType, *, stops: bool) -> None:
        """A poll of all queues starts; ``stops``: every stage of it is Python's."""
        record = self.record
        if self._generation != self._queues.generation:
            self._look()
        wanted = budget, who, stops, self._queues.running
        if wanted != self._wanted:
            self._wanted = wanted
            record.budget, record.stops, record.running = budget, stops, self._queues.running
            record.receive, record.protocol = who.receive, who.at
        record.now = now
        record.stage = Stage.DONE

    def _look(self) -> None:
        """Queues were started or stopped."""
        self._generation = self._queues.generation
        self.record.count = len(self._queues.queues)
        for queue in self._queues.queues:
            napi = NapiRecord.nth(self.record.napis, queue.index)
            napi.queue = queue.index
            napi.ring = queue.mem.arena.address if queue.mem is not None else 0
            napi.pool = queue.pool.at if queue.pool is not None else 0

    @property
    def queue(self) -> RxQueue:
        """The queue at hand."""
        return self._queues.queues[self.record.current]

    def skip(self) -> None:
        """The queue at hand is done."""
        self.record.current += 1
        self.record.work, self.record.stage = 0, Stage.POLL

    def xmit(self) -> None:
        """ndo_start_xmit for what waits in the transmit queue."""
        if net_tx_action(self.at):
            self.xmit_rest()

    def xmit_rest(self) -> None:
        """Python's share of it, where ``net_tx_action`` said so."""
        if self._compiled is not None and self._ops.xmit and self._ops.tx_ring:
            self._compiled.tx_notify()
        else:
            self._driver.xmit()
