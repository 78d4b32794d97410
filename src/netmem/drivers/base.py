"""What drivers have in common whose NIC has rings of descriptors, whatever the descriptors look like."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from netmem.base.dma import DmaDevice, DmaDirection
from netmem.base.errors import NetmemError
from netmem.base.ops import address_of_op
from netmem.base.record import address_of, clear
from netmem.hw.bus import Bus
from netmem.netdev.batch import RxBatch
from netmem.netdev.driver import Netdev, NetmemTx, QueueConfig
from netmem.netdev.kernels import rx_return
from netmem.netdev.napi import NetdevOps
from netmem.netdev.ring import QueueCounters, TxRingRecord
from netmem.netdev.rx import DescriptorRing, RxRing

TX_RING = 2048
WAIT_NS = 5_000_000_000  # for what a device does by itself


def owner(kind: type, name: str) -> type:
    """The class that a class has an attribute from."""
    return next(one for one in kind.__mro__ if name in vars(one))


class RingDriver:
    """A base for drivers with one transmit ring, and ``ring_class`` for each receive queue.

    A subclass gives ``desc_bytes`` and the kernels, and does what its registers need: ``post`` after buffers
    were added, ``tx_notify`` after rows were posted, ``queue_start`` and ``queue_stop``. ``post_kernel`` and
    ``xmit_kernel`` say whether the device has to be told at all.
    """

    name: ClassVar[str]
    desc_bytes: ClassVar[int]
    rx_kernel: ClassVar[Callable[..., int]]
    refill_kernel: ClassVar[Callable[..., int]]
    pending_kernel: ClassVar[Callable[..., int]]
    post_kernel: ClassVar[Callable[..., int]]
    xmit_kernel: ClassVar[Callable[..., int]]
    ring_class: ClassVar[type[RxRing]] = RxRing
    queue_mgmt_ops: ClassVar[bool] = True
    supports_rx_page_size: ClassVar[bool] = True
    netmem_tx: ClassVar[NetmemTx] = NetmemTx.DMA
    bus: Bus

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._dev: Netdev | None = None
        self._rx: dict[int, RxRing] = {}
        self._counters: dict[int, QueueCounters] = {}  # of queues that were stopped
        self._tx: DescriptorRing | None = None
        self._tx_io: int | None = None
        self._ops = NetdevOps()

    def netdev_ops(self) -> NetdevOps:
        """What of napi.NetdevOps is compiled: what a subclass overrides is called as it is."""
        ops, own, ring = self._ops, type(self), self.ring_class
        if own.napi_poll is RingDriver.napi_poll and ring.poll is RxRing.poll:
            ops.poll = address_of_op(self.rx_kernel, 3)
        same = own.rx_refill is RingDriver.rx_refill and ring.fill is RxRing.fill
        if same and owner(own, "post") is owner(own, "post_kernel"):
            refill, post = address_of_op(self.refill_kernel, 1), address_of_op(self.post_kernel, 1)
            ops.refill, ops.post = (refill, post) if refill and post else (0, 0)
        same = own.xmit is RingDriver.xmit and own.tx_waits is RingDriver.tx_waits
        if same and owner(own, "tx_notify") is owner(own, "xmit_kernel"):
            ops.xmit = address_of_op(self.xmit_kernel, 1)
        return ops

    @property
    def dev(self) -> Netdev:
        """The net device above."""
        if self._dev is None:
            raise NetmemError(errno.ENETDOWN, "the device is down")
        return self._dev

    def close(self) -> None:
        self.bus.close()

    def dma_device(self) -> DmaDevice | None:
        return self.bus

    # -- transmit -----------------------------------------------------------------------------

    def open_tx(self, dev: Netdev, record: TxRingRecord) -> DescriptorRing:
        """Map the stack's transmit memory, and make the ring that ``record`` is then about."""
        self._tx_io = self.bus.dma_map(dev.tx.fd, 0, dev.tx.size, DmaDirection.TO_DEVICE, peer=True)
        dev.tx.record.io = self._tx_io
        self._tx = DescriptorRing(self.bus, f"{dev.name}:tx-ring", TX_RING, self.desc_bytes)
        clear(record)
        record.desc, record.mask, record.queue = self._tx.region.address, TX_RING - 1, dev.tx.at
        self._ops.tx_ring = address_of(record)
        return self._tx

    def close_tx(self) -> None:
        """Let ring and memory go; the device has stopped."""
        self._ops.tx_ring = 0
        if self._tx is not None:
            self._tx.close()
            self._tx = None
        if self._tx_io is not None:
            self.bus.dma_unmap(self._tx_io)
            self._tx_io = None

    def xmit(self) -> None:
        if self.tx_waits() and self.xmit_kernel(self._ops.tx_ring):
            self.tx_notify()

    def tx_notify(self) -> None:
        """Tell the device of what ``xmit_kernel`` posted."""
        raise NotImplementedError

    def tx_waits(self) -> bool:
        """True when rows wait, or were sent and not completed: cleaning is what frees rows. ENETDOWN."""
        tx = self.dev.tx.record
        return self._tx is not None and tx.filled != tx.completed

    # -- NAPI ---------------------------------------------------------------------------------

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        ring = self._rx.get(queue)  # without one the queue could not be started again
        return ring.poll(self.rx_kernel, batch, budget) if ring else 0

    def rx_refill(self, queue: int, batch: RxBatch) -> None:
        ring = self._rx.get(queue)
        if ring is not None:
            rx_return(ring.at, batch.at)
            ring.fill(self.refill_kernel)
            self.post(ring, queue)

    def post(self, ring: RxRing, queue: int) -> None:
        """Tell the device of buffers that were added to a ring."""
        raise NotImplementedError

    def has_work(self) -> bool:
        return any(self.pending_kernel(ring.at) for ring in self._rx.values())

    def irq_arm(self) -> None:
        self.bus.irq_arm()

    def irq_ack(self) -> None:
        self.bus.irq_ack()

    def irq_fd(self) -> int:
        return self.bus.irq_fd

    def filenos(self) -> list[int]:
        return self.bus.filenos()

    def is_alive(self) -> bool:
        return self.bus.is_alive()

    def rx_buf_len(self) -> int:
        """Bytes of a receive buffer where nobody set them and pages have room: what a packet can fill."""
        return 4096

    # -- netdev_queue_mgmt_ops ----------------------------------------------------------------

    def validate_qcfg(self, qcfg: QueueConfig, queue: int) -> None:
        """Anything that passed set_ringparam will do."""

    def queue_mem_alloc(self, qcfg: QueueConfig, queue: int) -> RxRing:
        size = min(qcfg.ring.rx_buf_len or self.rx_buf_len(), qcfg.rx_page_size)
        qcfg = replace(qcfg, ring=replace(qcfg.ring, rx_buf_len=size))
        return self.ring_class(self.dev, self.bus, qcfg, queue, self.desc_bytes)

    def queue_mem_free(self, mem: RxRing) -> None:
        mem.free()

    def queue_start(self, mem: RxRing, queue: int) -> None:
        """Give the device the queue and its memory, then ``queue_started``."""
        raise NotImplementedError

    def queue_stop(self, queue: int) -> RxRing:
        """Take the queue from the device, then ``queue_stopped``; its memory."""
        raise NotImplementedError

    def queue_started(self, mem: RxRing, queue: int) -> None:
        """The device has the queue: fill its ring."""
        self._rx[queue] = mem
        self.dev.set_queue_pool(queue, mem.pool)
        mem.fill(self.refill_kernel)
        self.post(mem, queue)

    def queue_stopped(self, queue: int) -> RxRing:
        """The device let go of the queue; its memory."""
        self.dev.set_queue_pool(queue, None)
        ring = self._rx.pop(queue)
        self._counters[queue] = ring.counters
        return ring
