"""TCP's fast path: lookup, header prediction, receive queues, acknowledgements, windows.

``g`` is the stack arena, ``t`` the connection table, ``e`` the receive entries, ``meta`` and
``rows`` a received batch. What is not plain goes on the slow list for the state machine.
"""

from __future__ import annotations

from netmem.base.formats import ACK, PSH
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import memcpy
from netmem.base.record import Word
from netmem.inet.tcp.entries import entry_free, entry_take
from netmem.inet.tcp.recovery import advance_una, arm
from netmem.inet.tcp.sack import dsack_note, sack_note
from netmem.inet.tcp.tcb import (
    MASK32,
    RELEASE_ROOM,
    Account,
    Entry,
    EntryKind,
    Flag,
    Release,
    StackRecord,
    Tcb,
    TcpState,
    account_of,
    entry_of,
    number_of,
    seq_diff,
    seq_le,
    seq_lt,
    tcb_of,
)
from netmem.inet.tcp.window import came, may_take, pressure, reclaim, took, trim
from netmem.memory.ref import offset_of
from netmem.netdev.batch import BatchRecord, Kind, head_of, row_of
from netmem.netdev.ring import DMA_ALIGN, HEADER_BYTES

OOO_SHARE, OOO_LEAST = 8, 4
STALE_NS = 1_000_000_000  # a sender has tried again by then, several times
MERGE_MOST = 512  # bytes: what is longer is not worth a copy


@inline_kernel
def fold32(high: int, low: int) -> int:
    """An address as 32 bits, none of which is lost when products with small numbers are added up."""
    return (high ^ (high >> 32) ^ low ^ (low >> 32)) & MASK32


@inline_kernel
def flow_hash(raddr_hi: int, raddr: int, laddr_hi: int, laddr: int, ports: int) -> int:
    """Bucket number before masking, of a connection's four-tuple."""
    x = (fold32(raddr_hi, raddr) * 0x1E3779B1) ^ (fold32(laddr_hi, laddr) * 0x05EBCA6B)
    x = (x ^ (ports * 0x02B2AE35)) & 0xFFFFFFFFFFFF  # products are below 2**63
    return x ^ (x >> 17)


@inline_kernel
def bucket_of(stack: StackRecord, hash_: int) -> Word:
    """The bucket of a hash: 1 more than the number of its first block, 0 without one."""
    return Word.nth(stack.buckets, hash_ & stack.bucket_mask)


@inline_kernel
def lookup(stack: StackRecord, raddr_hi: int, raddr: int, laddr_hi: int, laddr: int, ports: int) -> int:
    """The number of a connection, or -1."""
    c = bucket_of(stack, flow_hash(raddr_hi, raddr, laddr_hi, laddr, ports)).value - 1
    while c >= 0:
        tcb = tcb_of(stack, c)
        if (
            tcb.ports == ports
            and tcb.raddr == raddr
            and tcb.laddr == laddr
            and tcb.raddr_hi == raddr_hi
            and tcb.laddr_hi == laddr_hi
        ):
            return c
        c = tcb.next - 1
    return -1


@inline_kernel
def tcb_bucket(stack: StackRecord, tcb: Tcb) -> Word:
    """Where a block's chain starts."""
    hash_ = flow_hash(tcb.raddr_hi, tcb.raddr, tcb.laddr_hi, tcb.laddr, tcb.ports)
    return bucket_of(stack, hash_)


@kernel
def hash_insert(stack: StackRecord, tcb: Tcb) -> None:
    """Put a block into the hash table."""
    bucket = tcb_bucket(stack, tcb)
    tcb.next = bucket.value
    bucket.value = number_of(stack, tcb) + 1


@kernel
def hash_remove(stack: StackRecord, tcb: Tcb) -> None:
    """Take a block out of the hash table."""
    bucket, wanted = tcb_bucket(stack, tcb), number_of(stack, tcb) + 1
    if bucket.value == wanted:
        bucket.value = tcb.next
        return
    other = bucket.value - 1
    while other >= 0:
        before = tcb_of(stack, other)
        if before.next == wanted:
            before.next = tcb.next
            return
        other = before.next - 1


@inline_kernel
def touch(stack: StackRecord, tcb: Tcb) -> None:
    """Put a connection on the list of those that this batch concerned."""
    if tcb.touched != stack.batch:
        tcb.touched = stack.batch
        Word.nth(stack.touched_list, stack.touched).value = number_of(stack, tcb)
        stack.touched += 1


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


@kernel
def merge(stack: StackRecord, tcb: Tcb, length: int, netmem: int, offset: int, pool: int, kind: int) -> bool:
    """Copy a short piece behind the last one of the receive queue, if that one's buffer has room.

    So a peer that sends a byte at a time takes a buffer for many of them, where memory is readable.
    """
    if tcb.rq_tail == 0:
        return False
    last = entry_of(stack, tcb.rq_tail)
    if last.kind != kind:
        return False
    account = account_of(stack, tcb)
    end = last.offset + last.len
    if end + length > buffer_end(account, last.pool, last.offset) or buffer_end(account, pool, offset) == 0:
        return False
    memcpy(
        host_of(account, last.netmem, end, last.pool), host_of(account, netmem, offset, pool), length
    )
    last.len += length
    tcb.rq_bytes += length
    tcb.bytes_in += length
    tcb.rcv_nxt = (tcb.rcv_nxt + length) & MASK32
    stack.counters.merged += 1
    return True


@inline_kernel
def deliver(stack: StackRecord, tcb: Tcb, seq: int, length: int, ref: int, offset: int, pool: int, kind: int) -> bool:
    """One piece of payload for a connection. True when its buffer was taken."""
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
    # What is pledged is there for whoever fills his buffers; everybody else is looked at.
    if (tcb.pledged <= 0 or 2 * length < tcb.per_buffer) and not may_take(stack, tcb, length):
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
    if pool == account_of(stack, tcb).pool:
        took(stack, tcb, 1)
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
            if deliver(
                stack, tcb, seq, row.linear_len, row.header_netmem, row.header_offset + row.linear,
                row.header_pool, linear,
            ):  # fmt: skip
                row.header_netmem = 0
            seq = (seq + row.linear_len) & MASK32
        part = i
        while part >= 0:
            piece = row_of(batch, part)
            if piece.size > 0:
                if deliver(stack, tcb, seq, piece.size, piece.netmem, piece.offset, piece.pool, kind):
                    piece.netmem = 0
                seq = (seq + piece.size) & MASK32
            part = piece.more
        i = row.next
    if tcb.oq_head != 0:
        drain_out_of_order(stack, tcb)


@inline_kernel
def on_loan(stack: StackRecord, batch: BatchRecord) -> None:
    """The batch's payload buffers can still be received into: what the stack leaves is posted again."""
    account = stack.accounts[stack.queue]
    pool = account.pool
    n = 0
    for i in range(batch.used):
        row = row_of(batch, i)
        if row.netmem != 0 or (row.header_netmem != 0 and row.header_pool == pool):
            n += 1
    account.available += n
    trim(stack, stack.queue)
    if pressure(account):
        reclaim(stack)


@kernel
def tcp_rx(stack: StackRecord, batch: BatchRecord) -> int:
    """Header prediction for a batch; returns how many packets went on the slow list."""
    stack.touched = 0
    stack.slow = 0
    slow = 0
    number = stack.batch
    on_loan(stack, batch)
    for n in range(batch.head_count):
        i = head_of(batch, n)
        row = row_of(batch, i)
        c = -1
        fast = False
        if row.kind == Kind.TCP:
            stack.counters.in_segs += 1
            c = lookup(stack, row.src_hi, row.src, row.dst_hi, row.dst, row.ports)
            if c >= 0:
                tcb = tcb_of(stack, c)
                if tcb.slow_in != number and tcb.state == TcpState.ESTABLISHED:
                    fast = predict(stack, tcb, batch, i)
        if not fast:
            if c >= 0:
                tcb_of(stack, c).slow_in = number
            Word.nth(stack.slow_list, slow).value = i
            slow += 1
    stack.slow = slow
    return slow


@inline_kernel
def predict(stack: StackRecord, tcb: Tcb, batch: BatchRecord, i: int) -> bool:
    """One packet of an established connection; False: not plain, leave it to the state machine."""
    row = row_of(batch, i)
    length, ack, seq = row.len, row.ack, row.seq
    if row.tcp_flags & ~PSH != ACK or seq != tcb.rcv_nxt or tcb.oq_head != 0:
        return False
    if tcb.flags & (Flag.RECOVERY | Flag.LOSS | Flag.FIN_SEEN) or tcb.queue != stack.queue:
        return False
    if row.sack != 0 or tcb.sacked != 0 or tcb.tlp_end >= 0 or tcb.dupacks != 0:
        return False
    if seq_lt(ack, tcb.snd_una) or seq_lt(tcb.snd_nxt, ack):
        return False
    if length > seq_diff(tcb.rcv_adv, seq):
        return False
    wnd = row.window << tcb.snd_scale
    if length == 0 and ack == tcb.snd_una and (wnd == tcb.snd_wnd or wnd == 0):
        return False  # a duplicate acknowledgement, or an answer to a probe
    if tcb.flags & Flag.TS:
        if row.has_timestamp == 0 or seq_lt(row.tsval, tcb.ts_recent):
            return False
        if seq_le(seq, tcb.last_ack_sent):
            tcb.ts_recent, tcb.ts_recent_at = row.tsval, stack.now
    tcb.last_in = stack.now
    if ack != tcb.snd_una:
        advance_una(stack, tcb, ack, row.tsecr if row.has_timestamp != 0 else -1)
    if seq_lt(tcb.snd_wl1, seq) or (tcb.snd_wl1 == seq and seq_le(tcb.snd_wl2, ack)):
        tcb.snd_wnd, tcb.snd_wl1, tcb.snd_wl2 = wnd, seq, ack
        tcb.max_snd_wnd = max(tcb.max_snd_wnd, wnd)
        if wnd != 0 and tcb.timers.persist != 0:
            tcb.timers.persist = tcb.backoff = 0
    touch(stack, tcb)
    stack.counters.in_fast += 1
    if length > 0:
        before = tcb.rcv_nxt
        tcp_data(stack, tcb, batch, i)
        received(stack, tcb, seq_diff(tcb.rcv_nxt, before))
    return True


@kernel
def received(stack: StackRecord, tcb: Tcb, length: int) -> None:
    """Data came in: account for it, decide when to acknowledge."""
    if length <= 0:
        tcb.flags |= Flag.ACK_NOW
        return
    tcb.data_at = stack.now
    came(stack, tcb, length)
    tcb.ack_pending += length
    if tcb.ack_pending >= 2 * tcb.rcv_mss:
        tcb.flags |= Flag.ACK_NOW
    elif tcb.timers.delack == 0:
        tcb.timers.delack = stack.now + stack.delack_ns
        arm(stack, tcb.timers.delack)
