"""A small driver for the software NIC that keeps the seven requirements. docs/drivers.md goes through it.

Check it:  netmem check tiny_driver:TinyDriver      (in this folder)
"""

import errno

from netmem.base.dma import DmaDirection
from netmem.base.errors import NetmemError
from netmem.base.record import address_of, publish
from netmem.drivers.softnic import kernels
from netmem.hw.softnic import regs as r
from netmem.netdev.driver import NetmemTx
from netmem.netdev.kernels import rx_return
from netmem.netdev.ring import TxRingRecord
from netmem.netdev.rx import DescriptorRing, RxRing

WAIT = 5_000_000_000


class TinyDriver:
    # What it is for, and what it can do.
    name = "tiny"
    device_ids = ((0x1AF4, 0x6E6D),)
    supported_ring_params = frozenset({"rx_pending", "tcp_data_split"})
    queue_mgmt_ops = True
    supports_rx_page_size = False
    netmem_tx = NetmemTx.NONE
    hw_features = frozenset()
    hds_thresh_max = 0
    max_mtu = 1500
    max_rx_queues = 4

    def __init__(self, bus):
        self.bus, self.dev, self.rx, self.counters = bus, None, {}, {}

    # Registers are a record in shared memory; a write must be seen before the doorbell rings.
    def configure(self):
        publish(self.bus.regs, "generation", self.bus.regs.generation + 1)
        self.bus.doorbell()

    # The device: one transmit queue, and the memory that the stack's headers and send buffers are in.
    def open(self, dev):
        self.dev = dev
        self.set_mtu(dev.mtu)
        self.tx_io = self.bus.dma_map(dev.tx.fd, 0, dev.tx.size, DmaDirection.TO_DEVICE, peer=True)
        dev.tx.record.io = self.tx_io
        self.tx = DescriptorRing(self.bus, "tiny:tx", 1024, 32)
        q = self.bus.regs.txq[0]
        self.tx_ring = TxRingRecord(desc=self.tx.region.address, mask=self.tx.size - 1, queue=dev.tx.at)
        self.tx_ring.tail = address_of(q) + r.Q_TAIL
        self.run_queue(q, self.tx)
        publish(self.bus.regs, "ctrl", r.CTRL_ENABLE)

    def stop(self):
        publish(self.bus.regs, "ctrl", 0)
        self.halt_queue(self.bus.regs.txq[0])
        self.tx.close()
        self.bus.dma_unmap(self.tx_io)

    def close(self):
        self.bus.close()

    def run_queue(self, q, ring):
        q.ring, q.size, q.tail, q.buf_tail = ring.io, ring.size, 0, 0
        publish(q, "ctrl", 1)
        self.configure()
        self.bus.wait(lambda: q.state == r.QueueState.RUNNING, "the queue's start", WAIT)

    def halt_queue(self, q):
        publish(q, "ctrl", 0)
        self.configure()
        self.bus.wait(lambda: q.state == r.QueueState.STOPPED, "the queue's stop", WAIT)

    # The four queue operations. RxRing makes header and payload pool apart, with the right flags (R1, R4).
    def queue_mem_alloc(self, qcfg, queue):
        ring = RxRing(self.dev, self.bus, qcfg, queue, 32)
        ring.record.tail = address_of(self.bus.regs.rxq[queue]) + r.Q_TAIL
        return ring

    def queue_mem_free(self, ring):
        ring.free()

    def queue_start(self, ring, queue):
        q = self.bus.regs.rxq[queue]
        ring.start(self.counters.get(queue))
        q.hds = r.HDS_ON if ring.split else 0  # as the user said (R2)
        q.buf_len, q.header_len = ring.record.buf_len, ring.record.header_len
        self.run_queue(q, ring.desc)
        self.rx[queue] = ring
        self.dev.set_queue_pool(queue, ring.pool)
        self.post(ring)

    def queue_stop(self, queue):
        self.halt_queue(self.bus.regs.rxq[queue])
        self.dev.set_queue_pool(queue, None)
        ring = self.rx.pop(queue)
        self.counters[queue] = ring.counters  # which survive the memory
        return ring

    # The data path. Payload is a reference from descriptor to stack (R3); the kernel syncs it through the
    # pool (R6) and looks at header buffers only (R5); what the stack left is posted again (R7).
    def napi_poll(self, queue, budget, batch):
        return self.rx[queue].poll(kernels.softnic_rx, batch, budget) if queue in self.rx else 0

    def rx_refill(self, queue, batch):
        if queue in self.rx:
            rx_return(self.rx[queue].at, batch.at)
            self.post(self.rx[queue])

    def post(self, ring):
        ring.fill(kernels.softnic_refill)
        self.bus.doorbell()

    def xmit(self):
        if kernels.softnic_xmit(address_of(self.tx_ring)):
            self.bus.doorbell()

    def has_work(self):
        return any(kernels.softnic_pending(ring.at) for ring in self.rx.values())

    # Settings: rings of any size that RxRing can make, flows spread by the RSS table, no exact-match rules.
    def set_ringparam(self, params): ...
    def validate_qcfg(self, qcfg, queue): ...
    def set_features(self, features): ...
    def set_mtu(self, mtu):
        publish(self.bus.regs, "mtu", mtu)

    def set_rxfh(self, key, indirection):
        self.bus.regs.rss_key[:] = list(key)
        self.bus.regs.indir[:] = indirection
        self.configure()

    def set_rules(self, rules):
        if rules:
            raise NetmemError(errno.EOPNOTSUPP, "tiny has no exact-match rules")

    # What it says of itself.
    def dma_device(self):
        return self.bus

    def mac_address(self):
        return self.bus.regs.mac

    def link_up(self):
        return True

    def get_ethtool_stats(self):
        return {}

    def get_queue_stats(self, queue):
        q = self.bus.regs.rxq[queue]
        return {"rx_packets": q.packets, "hds_hit": q.split_hit, "hds_miss": q.split_miss}

    def irq_arm(self):
        self.bus.irq_arm()

    def irq_ack(self):
        self.bus.irq_ack()

    def irq_fd(self):
        return self.bus.irq_fd

    def filenos(self):
        return self.bus.filenos()

    def is_alive(self):
        return self.bus.is_alive()
