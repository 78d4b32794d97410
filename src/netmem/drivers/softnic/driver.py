"""The softnic driver: what each operation of netdev does to the software NIC.

The page pools map, sync and recycle; this driver never looks at payload.
"""

from __future__ import annotations

import errno
from typing import ClassVar

from netmem.base.address import ip_words
from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.base.headers import V4_MAPPED
from netmem.base.record import address_of, clear, items, publish
from netmem.drivers.softnic import kernels as k
from netmem.hw.bus import WordBus
from netmem.hw.softnic import regs as r
from netmem.hw.softnic.regs import QueueRegs, QueueState
from netmem.memory.dma import DmaDevice, DmaDirection
from netmem.netdev.batch import RxBatch
from netmem.netdev.device import NetDevice
from netmem.netdev.driver import NetmemTx, QueueConfig, RingParams, SteeringRule
from netmem.netdev.kernels import rx_return
from netmem.netdev.ring import QueueCounters, TxRingRecord
from netmem.netdev.rx import DescriptorRing, RxRing

TX_RING = 2048
WAIT_NS = 5_000_000_000


class SoftnicDriver:
    """netmem.netdev.driver.Driver for the software NIC, on any bus that has one."""

    name: ClassVar[str] = "softnic"
    device_ids: ClassVar[tuple[tuple[int, int], ...]] = ((0x1AF4, 0x6E6D),)
    supported_ring_params: ClassVar[frozenset[str]] = frozenset(
        {"rx_pending", "rx_buf_len", "tcp_data_split", "hds_thresh"}
    )
    queue_mgmt_ops: ClassVar[bool] = True
    supports_rx_page_size: ClassVar[bool] = True
    netmem_tx: ClassVar[NetmemTx] = NetmemTx.DMA
    hw_features: ClassVar[frozenset[str]] = frozenset({"rx_gro_hw"})
    ring_class: ClassVar[type[RxRing]] = RxRing
    hds_thresh_max: ClassVar[int] = 9000
    max_mtu: ClassVar[int] = 9000

    def __init__(self, bus: WordBus) -> None:
        self.bus = bus
        if bus.regs.magic != r.MAGIC:
            raise NetmemError(errno.ENODEV, "there is no software NIC on this bus")
        self.max_rx_queues = bus.regs.rx_queues
        self._dev: NetDevice | None = None
        self._rx: dict[int, RxRing] = {}
        self._counters: dict[int, QueueCounters] = {}  # of queues that were stopped
        self._tx: DescriptorRing | None = None
        self._tx_ring = TxRingRecord()
        self._tx_io: int | None = None

    @property
    def dev(self) -> NetDevice:
        """The net device above."""
        if self._dev is None:
            raise NetmemError(errno.ENETDOWN, "the device is down")
        return self._dev

    def _configure(self) -> None:
        """Make the device read its configuration again."""
        publish(self.bus.regs, "generation", self.bus.regs.generation + 1)
        self.bus.doorbell()

    # -- ndo_open, ndo_stop -------------------------------------------------------------------

    def open(self, dev: NetDevice) -> None:
        self._dev = dev
        self.set_mtu(dev.mtu)
        self._tx_io = self.bus.dma_map(dev.tx.fd, 0, dev.tx.size, DmaDirection.TO_DEVICE, peer=True)
        dev.tx.record.io = self._tx_io
        self._tx = DescriptorRing(self.bus, "softnic:tx-ring", TX_RING, r.DESC_BYTES)
        q, ring = self.bus.regs.txq[0], self._tx_ring
        clear(ring)
        ring.desc, ring.mask, ring.queue = self._tx.region.address, TX_RING - 1, dev.tx.at
        ring.tail = address_of(q) + r.Q_TAIL
        self._queue_ctrl(q, self._tx, "its transmit queue start")
        publish(self.bus.regs, "ctrl", r.CTRL_ENABLE)

    def stop(self) -> None:
        publish(self.bus.regs, "ctrl", 0)
        self._queue_off(self.bus.regs.txq[0], "its transmit queue stop")
        if self._tx is not None:
            self._tx.close()
            self._tx = None
        if self._tx_io is not None:
            self.bus.dma_unmap(self._tx_io)
            self._tx_io = None

    def close(self) -> None:
        self.bus.close()

    def _queue_ctrl(self, q: QueueRegs, ring: DescriptorRing, what: str) -> None:
        publish(q, "ring", ring.io)
        publish(q, "size", ring.size)
        publish(q, "tail", 0)
        publish(q, "ctrl", 1)
        self._configure()
        self.bus.wait(lambda: q.state != QueueState.STOPPED, what, WAIT_NS)
        if q.state != QueueState.RUNNING:
            self._queue_off(q, what)
            raise NetmemError(errno.EIO, f"the NIC refused {what}")

    def _queue_off(self, q: QueueRegs, what: str) -> None:
        publish(q, "ctrl", 0)
        if not self.bus.is_alive():
            return  # nobody is left to use the memory
        try:
            self._configure()
            self.bus.wait(lambda: q.state == QueueState.STOPPED, what, WAIT_NS)
        except DeviceGoneError:
            pass

    def dma_device(self) -> DmaDevice | None:
        return self.bus

    def mac_address(self) -> int:
        return self.bus.regs.mac

    def link_up(self) -> bool:
        return bool(self.bus.regs.status & r.STATUS_LINK)

    def set_mtu(self, mtu: int) -> None:
        publish(self.bus.regs, "mtu", mtu)

    # -- NAPI and transmit --------------------------------------------------------------------

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        ring = self._rx.get(queue)  # without one the queue could not be started again
        return ring.poll(k.softnic_rx, batch, budget) if ring else 0

    def rx_refill(self, queue: int, batch: RxBatch) -> None:
        ring = self._rx.get(queue)
        if ring is None:
            return
        rx_return(ring.at, batch.at)
        ring.fill(k.softnic_refill)
        if self.bus.regs.held:  # a device that has buffers needs no telling
            self.bus.doorbell()

    def xmit(self) -> None:
        tx = self.dev.tx
        # Rows that were sent but not completed count too: cleaning them is what frees rows.
        if self._tx is None or tx.record.filled == tx.record.completed:
            return
        if k.softnic_xmit(address_of(self._tx_ring)):
            self.bus.doorbell()

    def has_work(self) -> bool:
        return any(k.softnic_pending(ring.at) for ring in self._rx.values())

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

    # -- ethtool ------------------------------------------------------------------------------

    def set_ringparam(self, params: RingParams) -> None:
        """EINVAL for sizes that the rings cannot have; takes effect when queues restart."""
        if params.rx_pending & (params.rx_pending - 1) or not 8 <= params.rx_pending <= 4096:
            raise NetmemError(errno.EINVAL, f"rx {params.rx_pending}: a power of two from 8 to 4096")
        if not 256 <= params.rx_buf_len <= 32768:
            raise NetmemError(errno.EINVAL, f"rx-buf-len {params.rx_buf_len}: 256 to 32768")

    def validate_qcfg(self, qcfg: QueueConfig, queue: int) -> None:
        """Anything that passed set_ringparam will do."""

    def set_features(self, features: frozenset[str]) -> None:
        """rx_gro_hw: what the wire carries as one segmented frame becomes one packet."""
        for queue in range(self.max_rx_queues):
            publish(self.bus.regs.rxq[queue], "merge", int("rx_gro_hw" in features))

    def set_rxfh(self, key: bytes, indirection: list[int]) -> None:
        self.bus.regs.rss_key[:] = list(key)
        self.bus.regs.indir[:] = indirection
        self._configure()

    def set_rules(self, rules: list[SteeringRule]) -> None:
        regs = self.bus.regs
        publish(regs, "n_rules", 0)
        for entry, rule in zip(regs.rules, rules, strict=False):
            entry.src_hi, entry.src = self._address_words(rule.src_ip)
            entry.dst_hi, entry.dst = self._address_words(rule.dst_ip)
            entry.src_port, entry.dst_port = rule.src_port, rule.dst_port
            entry.proto, entry.queue, entry.valid = rule.proto, rule.queue, 1
        publish(regs, "n_rules", len(rules))

    @staticmethod
    def _address_words(address: int) -> tuple[int, int]:
        return ip_words(V4_MAPPED | address if 0 < address < 1 << 32 else address)

    def get_ethtool_stats(self) -> dict[str, int]:
        return items(self.bus.regs.counters)

    def get_queue_stats(self, queue: int) -> dict[str, int]:
        q = self.bus.regs.rxq[queue]
        stats = {
            "rx_packets": q.packets, "rx_bytes": q.bytes, "hds_hit": q.split_hit, "hds_miss": q.split_miss,
            "rx_no_desc": q.drops,
        }  # fmt: skip
        if queue in self._rx:
            stats["rx_alloc_fail"] = self._rx[queue].record.counters.starved
        return stats

    # -- netdev_queue_mgmt_ops ----------------------------------------------------------------

    def queue_mem_alloc(self, qcfg: QueueConfig, queue: int) -> RxRing:
        ring = self.ring_class(self.dev, self.bus, qcfg, queue, r.DESC_BYTES)
        ring.record.tail = address_of(self.bus.regs.rxq[queue]) + r.Q_TAIL
        return ring

    def queue_mem_free(self, mem: RxRing) -> None:
        mem.free()

    def queue_start(self, mem: RxRing, queue: int) -> None:
        q, params = self.bus.regs.rxq[queue], self.dev.ethtool.ring
        mem.start(self._counters.get(queue))
        publish(q, "hds", (r.HDS_ON | params.hds_thresh << 8) if mem.split else 0)
        publish(q, "buf_len", mem.record.buf_len)
        publish(q, "header_len", mem.record.header_len)
        self._queue_ctrl(q, mem.desc, f"receive queue {queue} start")
        self._rx[queue] = mem
        self.dev.set_queue_pool(queue, mem.pool)
        mem.fill(k.softnic_refill)
        self.bus.doorbell()

    def queue_stop(self, queue: int) -> RxRing:
        self._queue_off(self.bus.regs.rxq[queue], f"receive queue {queue} stop")
        self.dev.set_queue_pool(queue, None)
        ring = self._rx.pop(queue)
        self._counters[queue] = ring.counters
        return ring
