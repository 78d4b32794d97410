"""What was received and not read yet: payload in sequence, and payload beyond a gap (kernels).

Both are chains of entries that name buffers; payload is not touched, but for short pieces of readable memory,
which are copied behind each other.
"""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import memcpy
from netmem.inet.tcp.entries import entry_free, entry_take
from netmem.inet.tcp.sack import dsack_note, sack_note
from netmem.inet.tcp.tcb import (
    MASK32,
    RELEASE_ROOM,
    Account,
    Entry,
    EntryKind,
    Release,
    StackRecord,
    Tcb,
    account_of,
    entry_of,
    seq_diff,
    seq_le,
    tcb_of,
)
from netmem.inet.tcp.window import may_take, took
from netmem.memory.layout import PoolRecord
from netmem.memory.ref import offset_of
from netmem.memory.shadow import netmem_of
from netmem.netdev.batch import BatchRecord, RxRow, Shared, row_of
from netmem.netdev.ring import DMA_ALIGN, HEADER_BYTES

OOO_SHARE, OOO_LEAST = 8, 4
STALE_NS = 1_000_000_000  # a sender has tried again by then, several times
MERGE_MOST = 512  # bytes: what is longer is not worth a copy


@kernel
def release_later(stack: StackRecord, netmem: int, pool: int) -> None:
    """Note a netmem for Python to put back."""
    release = Release.nth(stack.release_list, stack.releases)
    release.netmem, release.pool = netmem, pool
    stack.releases += 1


@inline_kernel
def entry_new(stack: StackRecord, seq: int, length: int, ref: int, offset: int, pool: int, kind: int) -> int:
    """A receive entry, 0 when there is none left."""
    i = entry_take(stack, seq, length)
    if i != 0:
        entry = entry_of(stack, i)
        entry.netmem, entry.offset, entry.pool, entry.kind = ref, offset, pool, kind
    return i


@inline_kernel
def append(stack: StackRecord, tcb: Tcb, i: int) -> None:
    """Entry ``i`` to the end of the receive queue; RCV.NXT moves on."""
    if tcb.rq_tail != 0:
        entry_of(stack, tcb.rq_tail).next = i
    else:
        tcb.rq_head = i
    tcb.rq_tail = i
    length = entry_of(stack, i).len
    tcb.rq_bytes += length
    tcb.rq_bufs += 1
    tcb.bytes_in += length
    tcb.rcv_nxt = (tcb.rcv_nxt + length) & MASK32


@inline_kernel
def buffer_end(account: Account, pool: int, offset: int) -> int:
    """Where the buffer of an offset in a netmem ends; 0: memory that cannot be written here."""
    if pool == account.pool and account.host != 0:
        size = account.buf_len
    elif pool == account.header_pool and account.header_host != 0:
        size = HEADER_BYTES
    else:
        return 0
    stride = (size + DMA_ALIGN - 1) // DMA_ALIGN * DMA_ALIGN
    return offset // stride * stride + size


@inline_kernel
def host_of(account: Account, netmem: int, offset: int, pool: int) -> int:
    """Host address of a place in the queue's payload or header memory, which must be readable."""
    if pool == account.pool:
        return account.host + offset_of(netmem, account.shift) + offset
    return account.header_host + offset_of(netmem, account.header_shift) + offset


@inline_kernel
def lengthen(tcb: Tcb, last: Entry, length: int) -> None:
    """The last piece of the receive queue has ``length`` bytes more; RCV.NXT moves on."""
    last.len += length
    tcb.rq_bytes += length
    tcb.bytes_in += length
    tcb.rcv_nxt = (tcb.rcv_nxt + length) & MASK32


@kernel
def merge(stack: StackRecord, tcb: Tcb, length: int, netmem: int, offset: int, pool: int, kind: int) -> bool:
    """Copy a short piece behind the last one of the receive queue, if that one's buffer has room.

    So a peer that sends a byte at a time takes a buffer for many of them, where memory is readable.
    """
    if tcb.rq_tail == 0:
        return False
    last = entry_of(stack, tcb.rq_tail)
    if last.kind != kind or last.shared != Shared.NO:
        return False
    account = account_of(stack, tcb)
    end = last.offset + last.len
    if end + length > buffer_end(account, last.pool, last.offset) or buffer_end(account, pool, offset) == 0:
        return False
    memcpy(host_of(account, last.netmem, end, last.pool), host_of(account, netmem, offset, pool), length)
    lengthen(tcb, last, length)
    stack.counters.merged += 1
    return True


@inline_kernel
def coalesce(stack: StackRecord, tcb: Tcb, length: int, ref: int, offset: int, pool: int) -> bool:
    """Payload that lies behind the last piece of the receive queue, in its buffer: that one gets longer."""
    if tcb.rq_tail == 0:
        return False
    last, account = entry_of(stack, tcb.rq_tail), account_of(stack, tcb)
    if last.netmem != ref or last.pool != pool or last.offset + last.len != offset or pool != account.pool:
        return False
    netmem_of(PoolRecord.at(account.pool_at), ref).pp_ref_count -= 1  # the last piece has one
    lengthen(tcb, last, length)
    stack.counters.coalesced += 1
    return True


@inline_kernel
def deliver(
    stack: StackRecord, tcb: Tcb, seq: int, length: int, row: RxRow, from_header: bool, kind: int
) -> bool:
    """One piece of payload for a connection, of a row's header buffer or its own. True: it was taken."""
    ref, offset, pool, shared = row.netmem, row.offset, row.pool, row.shared
    if from_header:
        ref, offset, pool = row.header_netmem, row.header_offset + row.linear, row.header_pool
        shared = int(Shared.NO)
    skip = seq_diff(tcb.rcv_nxt, seq)
    if skip >= length:
        stack.counters.dup_dropped += 1
        dsack_note(tcb, seq, length)
        return False
    if skip > 0:
        dsack_note(tcb, seq, skip)
        seq, offset, length = (seq + skip) & MASK32, offset + skip, length - skip
    over = seq_diff((seq + length) & MASK32, tcb.rcv_adv)
    if over > 0:
        length -= over
        if length <= 0:
            return False
    if length <= MERGE_MOST and seq == tcb.rcv_nxt and merge(stack, tcb, length, ref, offset, pool, kind):
        return False
    if shared == Shared.BEHIND and seq == tcb.rcv_nxt and coalesce(stack, tcb, length, ref, offset, pool):
        return True
    # What is pledged is there for whoever fills his buffers; everybody else is looked at. That it lies behind
    # another piece does not count: that one may be gone, or somebody else's.
    if (tcb.pledged <= 0 or 2 * length < tcb.per_segment) and not may_take(stack, tcb, length):
        if seq != tcb.rcv_nxt or tcb.oq_head == 0:
            stack.counters.over_share += 1
            return False
        prune_highest(stack, tcb)  # what fills the gap is worth more than what waits behind it
    i = entry_new(stack, seq, length, ref, offset, pool, kind)
    if i == 0:
        return False
    if seq == tcb.rcv_nxt:
        append(stack, tcb, i)
    elif not insert_out_of_order(stack, tcb, i):
        return False
    entry = entry_of(stack, i)
    entry.shared, entry.came = shared, stack.now >> 10
    if pool == account_of(stack, tcb).pool:
        took(stack, tcb)
    return True


@inline_kernel
def ooo_share(account: Account) -> int:
    """Most out-of-order buffers of one connection: some times what all leave of the room but an eighth.

    That eighth is for whoever has next to nothing, so that nobody can fill all of it.
    """
    have, held = account.ooo_most, account.ooo
    return max(OOO_SHARE * (have - have // 8 - held), OOO_LEAST if held < have else 0)


@inline_kernel
def end_of(entry: Entry) -> int:
    """The sequence number behind an entry."""
    return (entry.seq + entry.len) & MASK32


@kernel
def insert_out_of_order(stack: StackRecord, tcb: Tcb, i: int) -> bool:
    """Entry ``i`` into the out-of-order queue, cut to the gap it falls into."""
    entry = entry_of(stack, i)
    seq, end, length = entry.seq, end_of(entry), entry.len
    before, after = 0, tcb.oq_head
    tail = tcb.oq_tail
    if tail != 0 and seq_le(end_of(entry_of(stack, tail)), seq):
        before, after = tail, 0
    while after != 0 and seq_le(entry_of(stack, after).seq, seq):
        before, after = after, entry_of(stack, after).next
    if before != 0:
        over = seq_diff(end_of(entry_of(stack, before)), seq)
        if over > 0:
            entry.seq = (seq + over) & MASK32
            entry.offset += over
            entry.len -= over
    if after != 0:
        over = seq_diff(end, entry_of(stack, after).seq)
        if over > 0:
            entry.len -= over
    account = account_of(stack, tcb)
    share = ooo_share(account)
    if entry.len <= 0 or (after == 0 and tcb.oq_bufs >= share):
        if entry.len <= 0:
            stack.counters.dup_dropped += 1
            dsack_note(tcb, seq, length)
        else:
            stack.counters.ooo_pruned += 1
            prune_stale(stack)
        entry_free(stack, i)
        return False
    entry.next = after
    if before != 0:
        entry_of(stack, before).next = i
    else:
        tcb.oq_head = i
    if after == 0:
        tcb.oq_tail = i
    tcb.oq_bytes += entry.len
    tcb.oq_bufs += 1
    account.ooo += 1
    stack.counters.ooo_queued += 1
    sack_note(tcb, entry.seq)
    if tcb.oq_bufs > share:
        prune_highest(stack, tcb)
    return True


@kernel
def prune_highest(stack: StackRecord, tcb: Tcb) -> None:
    """Drop the highest out-of-order entry: the peer sends it again, the gap matters more."""
    before, last = 0, tcb.oq_head
    while entry_of(stack, last).next != 0:
        before, last = last, entry_of(stack, last).next
    if before != 0:
        entry_of(stack, before).next = 0
    else:
        tcb.oq_head = 0
    tcb.oq_tail = before
    entry = entry_of(stack, last)
    tcb.oq_bytes -= entry.len
    tcb.oq_bufs -= 1
    account_of(stack, tcb).ooo -= 1
    release_later(stack, entry.netmem, entry.pool)
    entry_free(stack, last)
    stack.counters.ooo_pruned += 1


@kernel
def prune_stale(stack: StackRecord) -> None:
    """There is no room for out-of-order data: whoever has waited long for what fills a gap gives up most."""
    if stack.now < stack.prune_at:
        return
    stack.prune_at = stack.now + STALE_NS // 8
    for c in range(stack.rows):
        tcb = tcb_of(stack, c)
        if tcb.oq_bufs > OOO_LEAST and stack.now - tcb.data_at >= STALE_NS:
            while tcb.oq_bufs > OOO_LEAST and stack.releases < RELEASE_ROOM // 2:
                prune_highest(stack, tcb)


@kernel
def drain_out_of_order(stack: StackRecord, tcb: Tcb) -> None:
    """Move entries that have become contiguous to the receive queue."""
    i = tcb.oq_head
    while i != 0 and seq_le(entry_of(stack, i).seq, tcb.rcv_nxt):
        entry = entry_of(stack, i)
        following = entry.next
        tcb.oq_bytes -= entry.len
        tcb.oq_bufs -= 1
        account_of(stack, tcb).ooo -= 1
        skip = seq_diff(tcb.rcv_nxt, entry.seq)
        if skip >= entry.len:
            release_later(stack, entry.netmem, entry.pool)
            entry_free(stack, i)
        else:
            entry.offset += skip
            entry.len -= skip
            entry.seq = (entry.seq + skip) & MASK32
            entry.next = 0
            append(stack, tcb, i)
        i = following
    tcb.oq_head = i
    if i == 0:
        tcb.oq_tail = 0


@inline_kernel
def tcp_data(stack: StackRecord, tcb: Tcb, batch: BatchRecord, i: int) -> None:
    """Queue the payload of packet ``i`` and all merged into it, as far as the connection's share goes.

    A buffer that is taken is taken from the row too (netmem 0); the rest stays the driver's.
    """
    account = account_of(stack, tcb)
    if account.available < account.reserve >> 1:
        stack.counters.pool_low += 1
        return
    kind = linear = int(EntryKind.COPY)
    if stack.by_token != 0:
        kind, linear = int(EntryKind.FRAG), int(EntryKind.LINEAR)
    while i >= 0:
        row = row_of(batch, i)
        seq = row.seq
        if row.linear_len > 0:
            if deliver(stack, tcb, seq, row.linear_len, row, True, linear):
                row.header_netmem = 0
            seq = (seq + row.linear_len) & MASK32
        part = i
        while part >= 0:
            piece = row_of(batch, part)
            if piece.size > 0:
                if deliver(stack, tcb, seq, piece.size, piece, False, kind):
                    piece.netmem = 0
                seq = (seq + piece.size) & MASK32
            part = piece.more
        i = row.next
    if tcb.oq_head != 0:
        drain_out_of_order(stack, tcb)
