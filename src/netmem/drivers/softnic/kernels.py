"""The softnic driver's hot paths: clean the receive ring, refill it, fill the transmit ring."""

from __future__ import annotations

from netmem.base.headers import IP_MAX, EthHdr
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import fence, load_acquire, store_release
from netmem.base.record import address_of
from netmem.hw.softnic.regs import (
    OPEN_BUFFERS,
    Q_BUF_TAIL,
    Q_TAIL,
    RXD_BEHIND_SHIFT,
    RXD_BYTES_MASK,
    RXD_BYTES_SHIFT,
    RXD_HEADER_MASK,
    RXD_HEADER_SHIFT,
    RXD_STATUS,
    TXD_STATUS,
    Bar,
    RxDesc,
    Rxs,
    Txc,
    TxDesc,
)
from netmem.memory.kernels import pp_fault, pp_io_address
from netmem.memory.layout import PoolRecord
from netmem.netdev.batch import BatchRecord, Rx, row_of
from netmem.netdev.kernels import (
    gro_receive,
    rx_behind,
    rx_close,
    rx_count,
    rx_fill_header,
    rx_fill_payload,
    rx_header,
    rx_leave_open,
    rx_no_header,
    rx_no_payload,
    rx_payload,
    rx_row,
    rx_unsplit,
)
from netmem.netdev.ring import Refill, RxRingRecord, TxRingRecord, slot_of
from netmem.netdev.tx import SLOT_BYTES, TX_ROWS, Tx, TxQueueRecord, tx_row

PACKET_MAX = IP_MAX + int(EthHdr.LEN) + 4  # a VLAN tag


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


@inline_kernel
def sizes(word: int) -> tuple[int, int, int]:
    """Bytes that a status tells of: in the header buffer, in packet buffers, in the buffer left open."""
    behind = (word >> RXD_BEHIND_SHIFT) & RXD_BYTES_MASK
    return (word >> RXD_HEADER_SHIFT) & RXD_HEADER_MASK, (word >> RXD_BYTES_SHIFT) & RXD_BYTES_MASK, behind


@inline_kernel
def softnic_packet(ring: RxRingRecord, batch: BatchRecord, n: int, i: int, word: int) -> int:
    """The packet of descriptor ``i``, whose status is ``word``, as rows from ``n`` on; the next free row."""
    desc, row = rx_desc(ring, i), row_of(batch, n)
    hlen, size, behind = sizes(word)
    left, taken = ring.open[desc.hash & (OPEN_BUFFERS - 1)], ring.buf_clean
    size = min(size, PACKET_MAX, (ring.buf_use - taken) * ring.buf_len)  # whatever the device says
    rx_row(ring, row, -1)
    row.status, row.gso_size = status_of(word), desc.hash >> 32
    if ring.header_len == 0 and size > 0:
        rx_unsplit(ring, row, taken, min(size, ring.buf_len))
        size -= min(size, ring.buf_len)
        taken += 1
    else:
        if ring.header_len != 0:
            rx_header(ring, row, i, hlen)
        else:
            rx_no_header(row)
        if behind > 0 and left.netmem != 0:
            rx_behind(ring, row, left, behind)
        elif size > 0:
            rx_payload(ring, row, taken, min(size, ring.buf_len))
            size -= row.size
            taken += 1
        else:
            rx_no_payload(row)
    while size > 0:
        n += 1
        row.more = n
        row = row_of(batch, n)
        rx_row(ring, row, -1)
        rx_no_header(row)
        rx_payload(ring, row, taken, min(size, ring.buf_len))
        size -= row.size
        taken += 1
    if taken != ring.buf_clean:
        rx_close(ring, left)
        if word & Rxs.OPEN:
            rx_leave_open(ring, row, left)
        PoolRecord.at(ring.pool).posted -= taken - ring.buf_clean
        ring.buf_clean = taken
    return n + 1


@kernel
def softnic_rx(ring_at: int, batch_at: int, budget: int) -> int:
    """Clean up to ``budget`` packets from the ring into the batch; returns descriptors cleaned."""
    ring, batch = RxRingRecord.at(ring_at), BatchRecord.at(batch_at)
    at, tail = ring.next_to_clean, ring.next_to_use
    first = at
    n = batch.used
    most = PACKET_MAX // ring.buf_len + 3  # rows of a packet
    while at - first < budget and at < tail and n + most <= batch.room:
        word = rx_status(ring, at)
        if word & Rxs.DD == 0:
            break
        head = n
        n = softnic_packet(ring, batch, n, at, word)
        if word & Rxs.FAULT:
            batch.counters.rx_fault += 1
            pp_fault(PoolRecord.at(ring.pool), slot_of(ring, ring.buf_clean).netmem)
        hlen, size, behind = sizes(word)
        rx_count(ring, word & Rxs.SPH != 0, hlen + size + behind)
        gro_receive(batch, head)
        at += 1
    batch.used = n
    ring.next_to_clean = at
    return at - first


@kernel
def softnic_refill(ring_at: int) -> int:
    """Post buffers until the ring is full; Refill tells which pool must be refilled first."""
    ring = RxRingRecord.at(ring_at)
    pool, header_pool = PoolRecord.at(ring.pool), PoolRecord.at(ring.header_pool)
    tail, stop = ring.buf_use, ring.buf_clean + ring.mask + 1
    short = int(Refill.DONE)
    while tail < stop:
        short = rx_fill_payload(ring, tail, stop)
        if short != Refill.DONE:
            break
        slot = slot_of(ring, tail)
        rx_desc(ring, tail).packet = pp_io_address(pool, slot.netmem) + slot.offset
        tail += 1
    if tail != ring.buf_use:
        pool.posted += tail - ring.buf_use
        ring.buf_use = tail
        store_release(ring.tail + Q_BUF_TAIL - Q_TAIL, tail)
    tail, stop = ring.next_to_use, ring.next_to_clean + ring.mask + 1
    while tail < stop:
        if rx_fill_header(ring, tail) != Refill.DONE:
            short = int(Refill.HEADER)
            break
        slot, desc = slot_of(ring, tail), rx_desc(ring, tail)
        desc.header = 0
        if ring.header_len != 0:
            desc.header = pp_io_address(header_pool, slot.header_netmem) + slot.header_offset
        desc.hash = 0
        desc.status = 0
        tail += 1
    if tail != ring.next_to_use:
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
