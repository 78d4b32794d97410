"""The softnic driver: what each operation of netdev does to the software NIC.

The page pools map, sync and recycle; this driver never looks at payload.
"""

from __future__ import annotations

import errno
from typing import ClassVar

from netmem.base.arena import Arena, Words, offsets
from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.base.formats import V4_MAPPED, ip_words
from netmem.base.native import publish_word
from netmem.drivers.softnic import kernels as k
from netmem.hw.bus import WordBus
from netmem.hw.softnic import regs as r
from netmem.memory.dma import DmaDevice, DmaDirection
from netmem.netdev.batch import RxBatch
from netmem.netdev.device import NetDevice
from netmem.netdev.driver import NetmemTx, QueueConfig, RingParams, SteeringRule
from netmem.netdev.kernels import rx_return
from netmem.netdev.ring import S_BUFLEN, S_DRIVER, S_HDRLEN, S_MASK, S_RING, S_STARVED
from netmem.netdev.rx import DescriptorRing, RxRing
from netmem.netdev.tx import T_HEAD, T_IO, T_TAIL

DESC_BYTES = 32
TX_RING = 2048
WAIT_NS = 5_000_000_000
COUNTERS = offsets(vars(r), "C_")


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
        if bus.regs[r.R_MAGIC] != r.MAGIC:
            raise NetmemError(errno.ENODEV, "there is no software NIC on this bus")
        self.max_rx_queues = int(bus.regs[r.R_RX_QUEUES])
        self._dev: NetDevice | None = None
        self._rx: dict[int, RxRing] = {}
        self._counters: dict[int, Words] = {}  # of queues that were stopped
        self._tx: DescriptorRing | None = None
        self._t = Arena("softnic:tx", 64)
        self._tx_io: int | None = None

    @property
    def dev(self) -> NetDevice:
        """The net device above."""
        if self._dev is None:
            raise NetmemError(errno.ENETDOWN, "the device is down")
        return self._dev

    def _reg_address(self, at: int) -> int:
        return self.bus.regs.ctypes.data + 8 * at

    def _reg(self, at: int, value: int) -> None:
        publish_word(self._reg_address(at), value)

    def _configure(self) -> None:
        """Make the device read its configuration again."""
        self._reg(r.R_GENERATION, int(self.bus.regs[r.R_GENERATION]) + 1)
        self.bus.doorbell()

    # -- ndo_open, ndo_stop -------------------------------------------------------------------

    def open(self, dev: NetDevice) -> None:
        self._dev = dev
        self.set_mtu(dev.mtu)
        self._tx_io = self.bus.dma_map(dev.tx.fd, 0, dev.tx.size, DmaDirection.TO_DEVICE, peer=True)
        dev.tx.meta[T_IO] = self._tx_io
        self._tx = DescriptorRing(self.bus, "softnic:tx-ring", TX_RING, DESC_BYTES)
        q, t = r.R_TXQ, self._t.a
        t[:] = 0
        t[S_RING], t[S_MASK] = self._tx.region.address, TX_RING - 1
        t[S_DRIVER] = self._reg_address(q + r.Q_TAIL)
        self._queue_ctrl(q, self._tx, "its transmit queue start")
        self._reg(r.R_CTRL, r.CTRL_ENABLE)

    def stop(self) -> None:
        self._reg(r.R_CTRL, 0)
        self._queue_off(r.R_TXQ, "its transmit queue stop")
        if self._tx is not None:
            self._tx.close()
            self._tx = None
        if self._tx_io is not None:
            self.bus.dma_unmap(self._tx_io)
            self._tx_io = None

    def close(self) -> None:
        self._t.close()
        self.bus.close()

    def _queue_ctrl(self, q: int, ring: DescriptorRing, what: str) -> None:
        regs = self.bus.regs
        self._reg(q + r.Q_RING, ring.io)
        self._reg(q + r.Q_SIZE, ring.size)
        self._reg(q + r.Q_TAIL, 0)
        self._reg(q + r.Q_CTRL, 1)
        self._configure()
        self.bus.wait(lambda: regs[q + r.Q_STATE] != r.STATE_STOPPED, what, WAIT_NS)
        if regs[q + r.Q_STATE] != r.STATE_RUNNING:
            self._queue_off(q, what)
            raise NetmemError(errno.EIO, f"the NIC refused {what}")

    def _queue_off(self, q: int, what: str) -> None:
        regs = self.bus.regs
        self._reg(q + r.Q_CTRL, 0)
        if not self.bus.is_alive():
            return  # nobody is left to use the memory
        try:
            self._configure()
            self.bus.wait(lambda: regs[q + r.Q_STATE] == r.STATE_STOPPED, what, WAIT_NS)
        except DeviceGoneError:
            pass

    def dma_device(self) -> DmaDevice | None:
        return self.bus

    def mac_address(self) -> int:
        return int(self.bus.regs[r.R_MAC])

    def link_up(self) -> bool:
        return bool(self.bus.regs[r.R_STATUS] & r.STATUS_LINK)

    def set_mtu(self, mtu: int) -> None:
        self._reg(r.R_MTU, mtu)

    # -- NAPI and transmit --------------------------------------------------------------------

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        ring = self._rx.get(queue)  # without one the queue could not be started again
        return ring.poll(k.softnic_rx, batch, budget) if ring else 0

    def rx_refill(self, queue: int, batch: RxBatch) -> None:
        ring = self._rx.get(queue)
        if ring is None:
            return
        rx_return(ring.q, batch.meta, batch.rows)
        ring.fill(k.softnic_refill)
        if self.bus.regs[r.R_HELD]:  # a device that has buffers needs no telling
            self.bus.doorbell()

    def xmit(self) -> None:
        tx = self.dev.tx
        # Rows that were sent but not completed count too: cleaning them is what frees rows.
        if self._tx is None or tx.mv[T_TAIL] == tx.mv[T_HEAD]:
            return
        if k.softnic_xmit(self._t.a, tx.meta, tx.rows):
            self.bus.doorbell()

    def has_work(self) -> bool:
        return any(k.softnic_pending(ring.q) for ring in self._rx.values())

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
            self._reg(r.R_RXQ + r.RXQ_STRIDE * queue + r.Q_MERGE, int("rx_gro_hw" in features))

    def set_rxfh(self, key: bytes, indirection: list[int]) -> None:
        regs = self.bus.regs
        regs[r.R_RSS_KEY : r.R_RSS_KEY + 5].view("u1")[:] = list(key)
        regs[r.R_INDIR : r.R_INDIR + r.INDIR_SIZE] = indirection
        self._configure()

    def set_rules(self, rules: list[SteeringRule]) -> None:
        regs = self.bus.regs
        self._reg(r.R_NRULES, 0)
        for i, rule in enumerate(rules):
            at = r.R_RULES + i * r.RULE_WORDS
            for word, high, address in (
                (r.RULE_SRC, r.RULE_SRC_HI, rule.src_ip), (r.RULE_DST, r.RULE_DST_HI, rule.dst_ip),
            ):  # fmt: skip
                number = V4_MAPPED | address if 0 < address < 1 << 32 else address
                regs[at + high], regs[at + word] = ip_words(number)
            regs[at + r.RULE_SPORT], regs[at + r.RULE_DPORT] = rule.src_port, rule.dst_port
            regs[at + r.RULE_PROTO], regs[at + r.RULE_QUEUE] = rule.proto, rule.queue
            regs[at + r.RULE_VALID] = 1
        self._reg(r.R_NRULES, len(rules))

    def get_ethtool_stats(self) -> dict[str, int]:
        return {name: int(self.bus.regs[r.R_COUNTERS + at]) for name, at in COUNTERS.items()}

    def get_queue_stats(self, queue: int) -> dict[str, int]:
        q, regs = r.R_RXQ + r.RXQ_STRIDE * queue, self.bus.regs
        names = {
            "rx_packets": r.Q_PACKETS,
            "rx_bytes": r.Q_BYTES,
            "hds_hit": r.Q_SPLIT_HIT,
            "hds_miss": r.Q_SPLIT_MISS,
            "rx_no_desc": r.Q_DROPS,
        }
        stats = {name: int(regs[q + at]) for name, at in names.items()}
        if queue in self._rx:
            stats["rx_alloc_fail"] = self._rx[queue].qv[S_STARVED]
        return stats

    # -- netdev_queue_mgmt_ops ----------------------------------------------------------------

    def queue_mem_alloc(self, qcfg: QueueConfig, queue: int) -> RxRing:
        ring = self.ring_class(self.dev, self.bus, qcfg, queue, DESC_BYTES)
        ring.q[S_DRIVER] = self._reg_address(r.R_RXQ + r.RXQ_STRIDE * queue + r.Q_TAIL)
        return ring

    def queue_mem_free(self, mem: RxRing) -> None:
        mem.free()

    def queue_start(self, mem: RxRing, queue: int) -> None:
        q, params = r.R_RXQ + r.RXQ_STRIDE * queue, self.dev.ethtool.ring
        mem.start(self._counters.get(queue))
        self._reg(q + r.Q_HDS, (r.HDS_ON | params.hds_thresh << 8) if mem.split else 0)
        self._reg(q + r.Q_BUFLEN, mem.qv[S_BUFLEN])
        self._reg(q + r.Q_HDRLEN, mem.qv[S_HDRLEN])
        self._queue_ctrl(q, mem.desc, f"receive queue {queue} start")
        self._rx[queue] = mem
        self.dev.set_queue_pool(queue, mem.pool)
        mem.fill(k.softnic_refill)
        self.bus.doorbell()

    def queue_stop(self, queue: int) -> RxRing:
        self._queue_off(r.R_RXQ + r.RXQ_STRIDE * queue, f"receive queue {queue} stop")
        self.dev.set_queue_pool(queue, None)
        ring = self._rx.pop(queue)
        self._counters[queue] = ring.counters.copy()
        return ring
