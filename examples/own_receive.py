"""A receive kernel of one's own, in the small driver; docs/receive-kernel.md goes through it.

Check it:  netmem check own_receive:OwnReceive      (in this folder)
"""

from tiny_driver import TinyDriver

from netmem.base.headers import IP_MAX
from netmem.base.jit import kernel
from netmem.drivers.softnic.kernels import rx_status, sizes, status_of
from netmem.hw.softnic.regs import Rxs
from netmem.memory.layout import PoolRecord
from netmem.netdev.batch import BatchRecord, row_of
from netmem.netdev.kernels import (
    gro_receive,
    rx_count,
    rx_header,
    rx_no_header,
    rx_no_payload,
    rx_payload,
    rx_row,
    rx_unsplit,
)
from netmem.netdev.ring import RxRingRecord


@kernel
def own_rx(ring_at: int, batch_at: int, budget: int) -> int:
    """Clean up to ``budget`` descriptors into the batch; how many."""
    ring, batch = RxRingRecord.at(ring_at), BatchRecord.at(batch_at)
    at, taken, n = ring.next_to_clean, ring.buf_clean, batch.used
    most = IP_MAX // ring.buf_len + 3  # rows that one packet may need
    while at - ring.next_to_clean < budget and at < ring.next_to_use and n + most <= batch.room:
        word = rx_status(ring, at)  # before anything else of the descriptor
        if word & Rxs.DD == 0:
            break  # the device is not done with it
        head, row = n, row_of(batch, n)
        rx_row(ring, row, -1)
        row.status = status_of(word)  # in netdev's words
        hlen, size, _ = sizes(word)
        left = min(size, (ring.buf_use - taken) * ring.buf_len)  # whatever the device says
        if ring.header_len != 0:
            rx_header(ring, row, at, hlen)  # the only bytes that may be looked at
            part = min(left, ring.buf_len)
            if part > 0:
                rx_payload(ring, row, taken, part)  # a reference; synced through the pool
            else:
                rx_no_payload(row)
        else:
            part = min(left, ring.buf_len)
            rx_unsplit(ring, row, taken, part)  # no split: pages, and the frame begins there
        while part > 0:
            left, taken = left - part, taken + 1
            part = min(left, ring.buf_len)
            if part > 0:
                n += 1
                row.more = n
                row = row_of(batch, n)
                rx_row(ring, row, -1)
                rx_no_header(row)
                rx_payload(ring, row, taken, part)
        rx_count(ring, word & Rxs.SPH != 0, hlen + size)
        gro_receive(batch, head)
        at, n = at + 1, n + 1
    PoolRecord.at(ring.pool).posted -= taken - ring.buf_clean
    done = at - ring.next_to_clean
    ring.next_to_clean, ring.buf_clean, batch.used = at, taken, n
    return done


class OwnReceive(TinyDriver):
    """The small driver, with that kernel."""

    name = "own"

    def napi_poll(self, queue, budget, batch):
        return self.rx[queue].poll(own_rx, batch, budget) if queue in self.rx else 0
