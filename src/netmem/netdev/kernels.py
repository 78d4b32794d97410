"""What drivers call for each packet: generic receive offload (net/core/gro.c), rows and ring slots."""

from __future__ import annotations

from netmem.base.headers import ACK, PSH
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import monotonic_ns
from netmem.base.record import Word
from netmem.memory import shadow
from netmem.memory.kernels import (
    pp_alloc_buffer,
    pp_host_address,
    pp_posted,
    pp_put,
    pp_sync_for_cpu,
    set_holder,
)
from netmem.memory.layout import Holder, PoolRecord
from netmem.memory.shadow import netmem_of
from netmem.netdev.batch import FLOWS, BatchRecord, Kind, RxRow, Shared, row_of
from netmem.netdev.parse import parse
from netmem.netdev.ring import OpenBuffer, Refill, RxRingRecord, Slot, slot_of

GRO_MAX = 1 << 20  # payload bytes of a merged packet


@inline_kernel
def continues(to: RxRow, row: RxRow) -> bool:
    """True when a segment is the next one of a merged packet's flow, and differs in nothing else."""
    return (
        to.ports == row.ports
        and to.src == row.src
        and to.dst == row.dst
        and to.src_hi == row.src_hi
        and to.dst_hi == row.dst_hi
        and (to.seq + to.len) & 0xFFFFFFFF == row.seq
        and to.ack == row.ack
        and to.window == row.window
        and to.has_timestamp == row.has_timestamp
        and (to.has_timestamp == 0 or (to.tsval == row.tsval and to.tsecr == row.tsecr))
        and to.len + row.len <= GRO_MAX
    )


@inline_kernel
def gro_receive(batch: BatchRecord, i: int) -> None:
    """napi_gro_receive(): parse packet ``i``, and merge it when it continues one of this batch."""
    row = row_of(batch, i)
    kind = parse(batch, row)
    row.kind = kind
    if batch.stamps != 0:
        row.stamp = monotonic_ns()
    batch.packets += 1
    if kind == Kind.DROP:
        return
    if kind == Kind.TCP:
        flow = (row.ports ^ (row.ports >> 16) ^ row.src) & (FLOWS - 1)
        head = batch.flows[flow] - 1
        row.last = i
        if row.tcp_flags & ~PSH == ACK and row.len > 0 and row.sack == 0:
            if head >= 0:
                to = row_of(batch, head)
                if continues(to, row):
                    row.kind = Kind.MERGED
                    row_of(batch, to.last).next = i
                    to.last = i
                    to.len += row.len
                    to.tcp_flags |= row.tcp_flags
                    batch.counters.gro_merged += 1
                    return
            batch.flows[flow] = i + 1
        else:
            batch.flows[flow] = 0  # whatever else it is, nothing is merged across it
    Word.nth(batch.heads, batch.head_count).value = i
    batch.head_count += 1


@inline_kernel
def rx_row(ring: RxRingRecord, row: RxRow, more: int) -> None:
    """Begin a row; ``more``: that of the packet's next buffer, -1 without one.

    ``rx_payload`` or ``rx_no_payload``, and ``rx_header`` or ``rx_no_header``, fill in the rest.
    """
    row.queue, row.pool, row.header_pool = ring.queue, ring.pool_handle, ring.header_pool_handle
    row.kind, row.more = Kind.CONT, more
    row.gso_size, row.shared = 0, Shared.NO


@inline_kernel
def rx_payload(ring: RxRingRecord, row: RxRow, i: int, size: int) -> None:
    """The row's payload: ``size`` bytes in the buffer of slot ``i``."""
    slot, pool = slot_of(ring, i), PoolRecord.at(ring.pool)
    netmem, offset = slot.netmem, slot.offset
    set_holder(pool, netmem, Holder.BATCH)
    if size > 0:
        pp_sync_for_cpu(pool, netmem, offset, size)
    row.slot, row.netmem, row.offset, row.size = i, netmem, offset, size


@inline_kernel
def rx_no_payload(row: RxRow) -> None:
    """The row is all header."""
    row.slot = -1
    row.netmem = row.offset = row.size = 0


@inline_kernel
def rx_header(ring: RxRingRecord, row: RxRow, i: int, hlen: int) -> None:
    """The packet's headers: ``hlen`` bytes in the header buffer of slot ``i``."""
    slot, pool = slot_of(ring, i), PoolRecord.at(ring.header_pool)
    pp_sync_for_cpu(pool, slot.header_netmem, slot.header_offset, hlen)
    row.header = pp_host_address(pool, slot.header_netmem, slot.header_offset)
    row.header_len = hlen
    row.header_slot, row.header_netmem, row.header_offset = i, slot.header_netmem, slot.header_offset


@inline_kernel
def rx_no_header(row: RxRow) -> None:
    """The row continues a packet."""
    row.header_slot = -1
    row.header = row.header_len = row.header_netmem = row.header_offset = 0


@inline_kernel
def rx_unsplit(ring: RxRingRecord, row: RxRow, i: int, size: int) -> None:
    """Without header split: the pool is of readable pages, and the frame starts in slot ``i``'s buffer."""
    rx_payload(ring, row, i, size)
    row.header, row.header_len = pp_host_address(PoolRecord.at(ring.pool), row.netmem, row.offset), size
    row.header_netmem, row.header_offset, row.header_pool = row.netmem, row.offset, ring.pool_handle
    row.header_slot = -1
    row.netmem = row.size = 0


@inline_kernel
def rx_close(ring: RxRingRecord, left: OpenBuffer) -> None:
    """The device is done with a buffer that it left open: the ring's reference goes."""
    if left.netmem != 0:
        pp_put(PoolRecord.at(ring.pool), left.netmem, False)  # to the ring: its turn comes as its neighbours'
    left.netmem = left.room = 0


@inline_kernel
def rx_leave_open(ring: RxRingRecord, row: RxRow, left: OpenBuffer) -> None:
    """The row's buffer is not full: besides the row the ring holds it from now on, and no slot."""
    row.shared = Shared.FIRST
    slot_of(ring, row.slot).netmem = 0  # as if it was taken
    netmem_of(PoolRecord.at(ring.pool), row.netmem).pp_ref_count += 1
    left.netmem, left.offset = row.netmem, row.offset + row.size
    left.room = ring.buf_len - row.size


@inline_kernel
def rx_behind(ring: RxRingRecord, row: RxRow, left: OpenBuffer, size: int) -> None:
    """``size`` bytes of the row's packet lie behind what its flow brought before."""
    pool = PoolRecord.at(ring.pool)
    size = min(size, left.room)
    row.slot, row.shared = -1, Shared.BEHIND
    row.netmem, row.offset, row.size = left.netmem, left.offset, size
    netmem_of(pool, left.netmem).pp_ref_count += 1
    left.offset += size
    left.room -= size
    set_holder(pool, row.netmem, Holder.BATCH)
    pp_sync_for_cpu(pool, row.netmem, row.offset, size)
    if left.room == 0:
        rx_close(ring, left)


@inline_kernel
def rx_count(ring: RxRingRecord, split: bool, size: int) -> None:
    """Count a packet of ``size`` bytes on its queue, and whether its headers were split off."""
    counters = ring.counters
    counters.packets += 1
    counters.bytes += size
    if ring.header_len != 0:
        if split:
            counters.hds_hit += 1
        else:
            counters.hds_miss += 1


@kernel
def rx_return(ring_at: int, batch_at: int) -> None:
    """Note which buffers the stack took; the rest is posted again from the slot it is in."""
    ring, batch = RxRingRecord.at(ring_at), BatchRecord.at(batch_at)
    split = ring.header_len != 0
    for n in range(batch.used):
        row = row_of(batch, n)
        if row.header_slot >= 0 and row.header_netmem == 0:
            slot_of(ring, row.header_slot).header_netmem = 0
        if row.shared != Shared.NO:
            if row.netmem != 0:
                pp_put(PoolRecord.at(ring.pool), row.netmem, True)
        elif row.slot >= 0 and row.netmem == 0 and (split or row.header_netmem == 0):
            slot_of(ring, row.slot).netmem = 0
    batch.used = 0


@inline_kernel
def rx_fill_payload(ring: RxRingRecord, i: int, stop: int) -> int:
    """See that slot ``i`` has its payload buffer; Refill.DONE, or that the pool must be refilled first."""
    slot, pool = slot_of(ring, i), PoolRecord.at(ring.pool)
    if slot.netmem == 0:
        netmem, offset = pp_alloc_buffer(pool, ring.buf_len)
        if netmem == 0 and not rx_borrow(ring, i, stop, slot):
            return Refill.PAYLOAD
        if netmem != 0:
            slot.netmem, slot.offset = netmem, offset
    set_holder(pool, slot.netmem, Holder.NIC)
    pp_posted(pool, slot.netmem, slot.offset, ring.buf_len)
    return Refill.DONE


@inline_kernel
def rx_fill_header(ring: RxRingRecord, i: int) -> int:
    """The same of its header buffer, where the ring has some."""
    if ring.header_len == 0:
        return Refill.DONE
    slot, pool = slot_of(ring, i), PoolRecord.at(ring.header_pool)
    if slot.header_netmem == 0:
        netmem, offset = pp_alloc_buffer(pool, ring.header_len)
        if netmem == 0:
            return Refill.HEADER
        slot.header_netmem, slot.header_offset = netmem, offset
        set_holder(pool, netmem, Holder.NIC)
    pp_posted(pool, slot.header_netmem, slot.header_offset, ring.header_len)
    return Refill.DONE


@kernel
def rx_borrow(ring: RxRingRecord, i: int, stop: int, slot: Slot) -> bool:
    """With the pool dry, move an unused buffer from a later slot here. False: there is none."""
    for j in range(stop - 1, i, -1):
        other = slot_of(ring, j)
        if other.netmem != 0:
            slot.netmem, slot.offset = other.netmem, other.offset
            other.netmem = 0
            return True
    return False


@kernel
def rx_check(batch_at: int, handle: int, pool_at: int) -> None:
    """The sanitiser's look at a batch that a driver hands up: the buffers of one pool."""
    batch, pool = BatchRecord.at(batch_at), PoolRecord.at(pool_at)
    for i in range(batch.used):
        row = row_of(batch, i)
        if row.pool == handle and row.netmem != 0:
            shadow.delivered(pool, row.netmem, row.offset, row.size)
        if row.header_pool == handle and row.header_netmem != 0:
            shadow.delivered(pool, row.header_netmem, row.header_offset, row.header_len)
