"""A small driver for the software NIC that keeps the seven requirements. docs/drivers.md goes through it.

Check it:  netmem check tiny_driver:TinyDriver      (in this folder)
"""

import errno

from netmem.base.arena import Arena
from netmem.base.errors import NetmemError
from netmem.base.native import publish_word
from netmem.drivers.softnic import kernels
from netmem.hw.softnic import regs as r
from netmem.memory.dma import DmaDirection
from netmem.netdev.driver import NetmemTx
from netmem.netdev.kernels import rx_return
from netmem.netdev.ring import S_BUFLEN, S_DRIVER, S_HDRLEN, S_HDS_HIT, S_HDS_MISS, S_MASK, S_PACKETS, S_RING
from netmem.netdev.rx import DescriptorRing, RxRing
from netmem.netdev.tx import T_IO

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

    # Registers are 64-bit words; a write must be seen before the doorbell rings.
    def address(self, register):
        return self.bus.regs.ctypes.data + 8 * register

    def write(self, register, value):
        publish_word(self.address(register), value)

    def configure(self):
        self.write(r.R_GENERATION, int(self.bus.regs[r.R_GENERATION]) + 1)
        self.bus.doorbell()

    # The device: one transmit queue, and the memory that the stack's headers and send buffers are in.
    def open(self, dev):
        self.dev = dev
        self.write(r.R_MTU, dev.mtu)
        self.tx_io = self.bus.dma_map(dev.tx.fd, 0, dev.tx.size, DmaDirection.TO_DEVICE, peer=True)
        dev.tx.meta[T_IO] = self.tx_io
        self.tx = DescriptorRing(self.bus, "tiny:tx", 1024, 32)
        self.t = Arena("tiny:tx-words", 64)
        self.t.a[S_RING], self.t.a[S_MASK] = self.tx.region.address, self.tx.size - 1
        self.t.a[S_DRIVER] = self.address(r.R_TXQ + r.Q_TAIL)
        self.run_queue(r.R_TXQ, self.tx)
        self.write(r.R_CTRL, r.CTRL_ENABLE)

    def stop(self):
        self.write(r.R_CTRL, 0)
        self.halt_queue(r.R_TXQ)
        self.tx.close()
        self.bus.dma_unmap(self.tx_io)

    def close(self):
        self.bus.close()

    def run_queue(self, q, ring):
        for register, value in ((r.Q_RING, ring.io), (r.Q_SIZE, ring.size), (r.Q_TAIL, 0), (r.Q_CTRL, 1)):
            self.write(q + register, value)
        self.configure()
        self.bus.wait(lambda: self.bus.regs[q + r.Q_STATE] == r.STATE_RUNNING, "the queue's start", WAIT)

    def halt_queue(self, q):
        self.write(q + r.Q_CTRL, 0)
        self.configure()
        self.bus.wait(lambda: self.bus.regs[q + r.Q_STATE] == r.STATE_STOPPED, "the queue's stop", WAIT)

    # The four queue operations. RxRing makes header and payload pool apart, with the right flags (R1, R4).
    def queue_mem_alloc(self, qcfg, queue):
        ring = RxRing(self.dev, self.bus, qcfg, queue, 32)
        ring.q[S_DRIVER] = self.address(self.queue(queue) + r.Q_TAIL)
        return ring

    def queue_mem_free(self, ring):
        ring.free()

    def queue_start(self, ring, queue):
        q = self.queue(queue)
        ring.start(self.counters.get(queue))
        self.write(q + r.Q_HDS, r.HDS_ON if ring.split else 0)  # as the user said (R2)
        self.write(q + r.Q_BUFLEN, ring.qv[S_BUFLEN])
        self.write(q + r.Q_HDRLEN, ring.qv[S_HDRLEN])
        self.run_queue(q, ring.desc)
        self.rx[queue] = ring
        self.dev.set_queue_pool(queue, ring.pool)
        self.post(ring)

    def queue_stop(self, queue):
        self.halt_queue(self.queue(queue))
        self.dev.set_queue_pool(queue, None)
        ring = self.rx.pop(queue)
        self.counters[queue] = ring.counters.copy()  # which survive the memory
        return ring

    def queue(self, queue):
        return r.R_RXQ + r.RXQ_STRIDE * queue

    # The data path. Payload is a reference from descriptor to stack (R3); the kernel syncs it through the
    # pool (R6) and looks at header buffers only (R5); what the stack left is posted again (R7).
    def napi_poll(self, queue, budget, batch):
        return self.rx[queue].poll(kernels.softnic_rx, batch, budget) if queue in self.rx else 0

    def rx_refill(self, queue, batch):
        if queue in self.rx:
            rx_return(self.rx[queue].q, batch.meta, batch.rows)
            self.post(self.rx[queue])

    def post(self, ring):
        ring.fill(kernels.softnic_refill)
        self.bus.doorbell()

    def xmit(self):
        if kernels.softnic_xmit(self.t.a, self.dev.tx.meta, self.dev.tx.rows):
            self.bus.doorbell()

    def has_work(self):
        return any(kernels.softnic_pending(ring.q) for ring in self.rx.values())

    # Settings: rings of any size that RxRing can make, flows spread by the RSS table, no exact-match rules.
    def set_ringparam(self, params): ...
    def validate_qcfg(self, qcfg, queue): ...
    def set_features(self, features): ...
    def set_mtu(self, mtu):
        self.write(r.R_MTU, mtu)

    def set_rxfh(self, key, indirection):
        self.bus.regs[r.R_RSS_KEY : r.R_RSS_KEY + 5].view("u1")[:] = list(key)
        self.bus.regs[r.R_INDIR : r.R_INDIR + r.INDIR_SIZE] = indirection
        self.configure()

    def set_rules(self, rules):
        if rules:
            raise NetmemError(errno.EOPNOTSUPP, "tiny has no exact-match rules")

    # What it says of itself.
    def dma_device(self):
        return self.bus

    def mac_address(self):
        return int(self.bus.regs[r.R_MAC])

    def link_up(self):
        return True

    def get_ethtool_stats(self):
        return {}

    def get_queue_stats(self, queue):
        words = {"rx_packets": S_PACKETS, "hds_hit": S_HDS_HIT, "hds_miss": S_HDS_MISS}
        return {name: self.rx[queue].qv[at] if queue in self.rx else 0 for name, at in words.items()}

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
