"""The softnic driver's hot paths: clean the receive ring, refill it, fill the transmit ring."""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import fence, load_acquire, store_release
from netmem.base.record import address_of
from netmem.hw.softnic.regs import RXD_STATUS, TXD_STATUS, Bar, RxDesc, Rxs, Txc, TxDesc
from netmem.memory.kernels import pp_fault, pp_io_address
from netmem.memory.layout import PoolRecord
from netmem.netdev.batch import BatchRecord, Rx, row_of
from netmem.netdev.kernels import gro_receive, rx_count, rx_fill_slot, rx_row
from netmem.netdev.ring import Refill, RxRingRecord, TxRingRecord, slot_of
from netmem.netdev.tx import SLOT_BYTES, TX_ROWS, Tx, TxQueueRecord, tx_row


@inline_kernel
def rx_desc(ring: RxRingRecord, i: int) -> RxDesc:
    """Descriptor ``i``."""
    return RxDesc.nth(ring.desc, i & ring.mask)


@inline_kernel
def rx_status(ring: RxRingRecord, i: int) -> int:
    """The status of descriptor ``i``, before anything else of it is read."""
    return load_acquire(address_of(rx_desc(ring, i)) + RXD_STATUS)


@inline_kernel
def status_of(word: int) -> int:
    """Rx bits of a descriptor's status."""
    status = 0
    if word & Rxs.SPH:
        status |= Rx.SPLIT
    if word & Rxs.L3_OK:
        status |= Rx.L3_OK
    if word & Rxs.L4_OK:
        status |= Rx.L4_OK
    if word & Rxs.L3_BAD:
        status |= Rx.L3_BAD
    if word & Rxs.L4_BAD:
        status |= Rx.L4_BAD
    return status


@kernel
def softnic_rx(ring_at: int, batch_at: int, budget: int) -> int:
    """Clean up to ``budget`` packets from the ring into the batch; returns descriptors cleaned."""
    ring, batch = RxRingRecord.at(ring_at), BatchRecord.at(batch_at)
    at, tail = ring.next_to_clean, ring.next_to_use
    first = at
    n = batch.used
    packets = 0
    while packets < budget:
        # The device writes a packet's descriptors in order: take it only when its last is there.
        last = at
        word = 0
        while last < tail:
            word = rx_status(ring, last)
            if word & Rxs.DD == 0 or word & Rxs.EOP:
                break
            last += 1
        if last >= tail or word & Rxs.DD == 0 or n + last - at >= batch.room:
            break
        head = row_of(batch, n)
        head_row = n
        total = 0
        for i in range(at, last + 1):
            desc, row = rx_desc(ring, i), row_of(batch, n)
            word = desc.status
            hlen, size = (word >> 16) & 0xFFFF, (word >> 32) & 0xFFFF
            rx_row(ring, row, i, i == at, n + 1 if i < last else -1, hlen, size)
            total += hlen + size
            if i == at:
                row.gso_size = desc.hash >> 32
                row.status = status_of(word)
            if word & Rxs.FAULT:
                batch.counters.rx_fault += 1
                pp_fault(PoolRecord.at(ring.pool), slot_of(ring, i).netmem)
            n += 1
        rx_count(ring, head.status & Rx.SPLIT != 0, total)
        gro_receive(batch, head_row)
        packets += 1
        at = last + 1
    batch.used = n
    ring.next_to_clean = at
    PoolRecord.at(ring.pool).posted -= at - first
    return at - first


@kernel
def softnic_refill(ring_at: int) -> int:
    """Post buffers until the ring is full; Refill tells which pool must be refilled first."""
    ring = RxRingRecord.at(ring_at)
    pool, header_pool = PoolRecord.at(ring.pool), PoolRecord.at(ring.header_pool)
    tail, stop = ring.next_to_use, ring.next_to_clean + ring.mask + 1
    first = tail
    short = int(Refill.DONE)
    while tail < stop:
        short = rx_fill_slot(ring, tail, stop)
        if short != Refill.DONE:
            break
        slot, desc = slot_of(ring, tail), rx_desc(ring, tail)
        desc.packet = pp_io_address(pool, slot.netmem) + slot.offset
        desc.header = 0
        if ring.header_len != 0:
            desc.header = pp_io_address(header_pool, slot.header_netmem) + slot.header_offset
        desc.hash = 0
        desc.status = 0
        tail += 1
    if tail != first:
        pool.posted += tail - first
        ring.next_to_use = tail
        store_release(ring.tail, tail)
    return short


@kernel
def softnic_pending(ring_at: int) -> bool:
    """True when a descriptor waits to be cleaned."""
    ring = RxRingRecord.at(ring_at)
    at = ring.next_to_clean
    return at < ring.next_to_use and rx_status(ring, at) & Rxs.DD != 0


@inline_kernel
def sleeps(bar: Bar) -> int:
    """1 when the device waits for a doorbell; what was written before is seen by then."""
    fence()
    return 1 if bar.db_armed != 0 else 0


@kernel
def softnic_post(ring_at: int) -> int:
    """1 when the device must be told of buffers: one that has some needs no telling."""
    bar = Bar.at(RxRingRecord.at(ring_at).regs)
    fence()
    return sleeps(bar) if bar.held != 0 else 0


@inline_kernel
def tx_desc(ring: TxRingRecord, i: int) -> TxDesc:
    """Descriptor ``i``."""
    return TxDesc.nth(ring.desc, i & ring.mask)


@kernel
def softnic_xmit(ring_at: int) -> int:
    """Clean what was sent and post what waits; returns descriptors posted."""
    ring = TxRingRecord.at(ring_at)
    queue = TxQueueRecord.at(ring.queue)
    while queue.completed < queue.sent:
        end = ring.next_to_clean + tx_row(queue, queue.completed).descriptors
        if load_acquire(address_of(tx_desc(ring, end - 1)) + TXD_STATUS) == 0:
            break
        ring.next_to_clean = end
        queue.completed += 1
    at = ring.next_to_use
    first = at
    while queue.sent < queue.filled and at - ring.next_to_clean + 3 <= ring.mask + 1:
        row = tx_row(queue, queue.sent)
        count = 1 + (row.payload_len > 0) + (row.payload2_len > 0)
        flags = 0
        if row.flags & Tx.CSUM:
            flags |= Txc.CSUM
        if row.gso_size > 0:
            flags |= Txc.TSO
        header = queue.io + (queue.sent & (TX_ROWS - 1)) * SLOT_BYTES
        for i in range(count):
            desc = tx_desc(ring, at + i)
            if i == 0:
                desc.address, size = header, row.header_len
            elif i == 1 and row.payload_len > 0:
                desc.address, size = row.payload, row.payload_len
            else:
                desc.address, size = row.payload2, row.payload2_len
            if i == count - 1:
                flags |= Txc.EOP
            desc.length = size | flags << 32
            desc.meta = row.gso_size << 16 | row.header_len
            desc.status = 0
        row.descriptors = count
        queue.packets += 1
        queue.bytes += row.header_len + row.payload_len + row.payload2_len
        at += count
        queue.sent += 1
    if at != first:
        ring.next_to_use = at
        store_release(ring.tail, at)
    return at - first


@kernel
def softnic_start_xmit(ring_at: int) -> int:
    """``softnic_xmit``; 1 when the device must be told."""
    ring = TxRingRecord.at(ring_at)
    queue = TxQueueRecord.at(ring.queue)
    if queue.filled == queue.completed or softnic_xmit(ring_at) == 0:
        return 0
    return sleeps(Bar.at(ring.regs))
