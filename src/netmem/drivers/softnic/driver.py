"""The softnic driver: what each operation of netdev does to the software NIC.

The page pools map, sync and recycle; this driver never looks at payload.
"""

from __future__ import annotations

import errno
from typing import ClassVar

from netmem.base.address import ip_words
from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.base.ethtool import SteeringRule
from netmem.base.headers import V4_MAPPED
from netmem.base.record import address_of, items, publish
from netmem.drivers.base import WAIT_NS, RingDriver
from netmem.drivers.softnic import kernels as k
from netmem.hw.bus import WordBus
from netmem.hw.softnic import regs as r
from netmem.hw.softnic.regs import QueueRegs, QueueState
from netmem.netdev.driver import CoalesceParams, Netdev, QueueConfig, RingParams
from netmem.netdev.ring import TxRingRecord
from netmem.netdev.rx import DescriptorRing, RxRing

USECS_MAX = 10_000


class SoftnicDriver(RingDriver):
    """netmem.netdev.driver.Driver for the software NIC, on any bus that has one."""

    bus: WordBus
    desc_bytes: ClassVar[int] = r.DESC_BYTES
    rx_kernel = staticmethod(k.softnic_rx)
    refill_kernel = staticmethod(k.softnic_refill)
    pending_kernel = staticmethod(k.softnic_pending)
    post_kernel = staticmethod(k.softnic_post)
    xmit_kernel = staticmethod(k.softnic_start_xmit)

    name: ClassVar[str] = "softnic"
    device_ids: ClassVar[tuple[tuple[int, int], ...]] = ((0x1AF4, 0x6E6D),)
    supported_ring_params: ClassVar[frozenset[str]] = frozenset(
        {"rx_pending", "rx_buf_len", "tcp_data_split", "hds_thresh"}
    )
    hw_features: ClassVar[frozenset[str]] = frozenset({"rx_gro_hw"})
    hds_thresh_max: ClassVar[int] = 9000
    max_mtu: ClassVar[int] = 9000

    def __init__(self, bus: WordBus) -> None:
        super().__init__(bus)
        if bus.regs.magic != r.MAGIC:
            raise NetmemError(errno.ENODEV, "there is no software NIC on this bus")
        self.max_rx_queues = bus.regs.rx_queues
        self._tx_ring = TxRingRecord()
        self._merges = False

    def _configure(self) -> None:
        """Make the device read its configuration again."""
        publish(self.bus.regs, "generation", self.bus.regs.generation + 1)
        self.bus.doorbell()

    # -- ndo_open, ndo_stop -------------------------------------------------------------------

    def open(self, dev: Netdev) -> None:
        self._dev = dev
        self.set_mtu(dev.mtu)
        tx, q = self.open_tx(dev, self._tx_ring), self.bus.regs.txq[0]
        self._tx_ring.tail, self._tx_ring.regs = address_of(q) + r.Q_TAIL, address_of(self.bus.regs)
        self._queue_ctrl(q, tx, "its transmit queue start")
        publish(self.bus.regs, "ctrl", r.CTRL_ENABLE)

    def stop(self) -> None:
        publish(self.bus.regs, "ctrl", 0)
        self._queue_off(self.bus.regs.txq[0], "its transmit queue stop")
        self.close_tx()

    def _queue_ctrl(self, q: QueueRegs, ring: DescriptorRing, what: str) -> None:
        publish(q, "ring", ring.io)
        publish(q, "size", ring.size)
        publish(q, "tail", 0)
        publish(q, "buf_tail", 0)
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

    def mac_address(self) -> int:
        return self.bus.regs.mac

    def link_up(self) -> bool:
        return bool(self.bus.regs.status & r.STATUS_LINK)

    def set_mtu(self, mtu: int) -> None:
        publish(self.bus.regs, "mtu", mtu)

    # -- NAPI and transmit --------------------------------------------------------------------

    def post(self, ring: RxRing, queue: int) -> None:
        if self.post_kernel(ring.at):
            self.bus.doorbell()

    def tx_notify(self) -> None:
        self.bus.doorbell()

    # -- ethtool ------------------------------------------------------------------------------

    def set_ringparam(self, params: RingParams) -> None:
        """EINVAL for sizes that the rings cannot have; takes effect when queues restart."""
        if params.rx_pending & (params.rx_pending - 1) or not 8 <= params.rx_pending <= 4096:
            raise NetmemError(errno.EINVAL, f"rx {params.rx_pending}: a power of two from 8 to 4096")
        if params.rx_buf_len and not 256 <= params.rx_buf_len <= r.BUF_LEN_MAX:
            raise NetmemError(errno.EINVAL, f"rx-buf-len {params.rx_buf_len}: 256 to {r.BUF_LEN_MAX}")

    def get_coalesce(self) -> CoalesceParams:
        regs = self.bus.regs
        return CoalesceParams(rx_usecs=regs.itr_ns // 1000, use_adaptive_rx=regs.adaptive != 0)

    def set_coalesce(self, params: CoalesceParams) -> None:
        """EINVAL for more than 10 ms."""
        if params.rx_usecs > USECS_MAX:
            raise NetmemError(errno.EINVAL, f"rx-usecs {params.rx_usecs}: at most {USECS_MAX}")
        publish(self.bus.regs, "adaptive", int(params.use_adaptive_rx))
        publish(self.bus.regs, "itr_ns", params.rx_usecs * 1000)

    def set_features(self, features: frozenset[str]) -> None:
        """rx_gro_hw: a segmented frame of the wire becomes one packet, a flow's payload lies end to end."""
        self._merges = "rx_gro_hw" in features
        for queue in range(self.max_rx_queues):
            publish(self.bus.regs.rxq[queue], "merge", int(self._merges))

    def rx_buf_len(self) -> int:
        return r.BUF_LEN_MAX if self._merges else super().rx_buf_len()

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
        ring = super().queue_mem_alloc(qcfg, queue)
        ring.record.tail = address_of(self.bus.regs.rxq[queue]) + r.Q_TAIL
        ring.record.regs = address_of(self.bus.regs)
        return ring

    def queue_start(self, mem: RxRing, queue: int) -> None:
        q = self.bus.regs.rxq[queue]
        mem.start(self._counters.get(queue))
        publish(q, "hds", (r.HDS_ON | mem.params.hds_thresh << 8) if mem.split else 0)
        publish(q, "buf_len", mem.record.buf_len)
        publish(q, "header_len", mem.record.header_len)
        self._queue_ctrl(q, mem.desc, f"receive queue {queue} start")
        self.queue_started(mem, queue)
        self.bus.doorbell()

    def queue_stop(self, queue: int) -> RxRing:
        self._queue_off(self.bus.regs.rxq[queue], f"receive queue {queue} stop")
        return self.queue_stopped(queue)
