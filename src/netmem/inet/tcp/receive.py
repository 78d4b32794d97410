"""From receive queue to application: frags by token, copies of readable data, tokens back (kernels).

Tokens are numbered from 1 (SCM_DEVMEM_DMABUF, SO_DEVMEM_DONTNEED); a socket's table has a slot for each.
"""

from __future__ import annotations

import enum

from netmem.base.arena import Words
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load_u32, memcpy, monotonic_ns
from netmem.base.record import Record, Word, i64
from netmem.inet.tcp.entries import entry_free
from netmem.inet.tcp.tcb import (
    MASK32,
    WAITS,
    EntryKind,
    Flag,
    StackRecord,
    Tcb,
    TcpState,
    account_of,
    entry_of,
    tcb_of,
)
from netmem.inet.tcp.window import note_starved, trim, was_read, window_update_due
from netmem.memory.kernels import pp_available, pp_host_address, pp_put, set_holder
from netmem.memory.layout import Holder, PoolRecord
from netmem.memory.ref import offset_of
from netmem.memory.shadow import netmem_of
from netmem.netdev.batch import Shared


class TokenTable(Record):
    """A socket's tokens."""

    capacity: i64
    free: i64  # tokens
    stack: i64  # address: a word for each token, the free ones first
    slots: i64  # address of the TokenSlot of token 1
    owner: i64  # address of the StackRecord, and number of the connection, -1: a UDP socket's
    connection: i64
    due: i64  # out: a window update should be sent
    left: i64  # out: tokens of other pools, which were not freed
    last: i64  # netmem of the last token that was given out


class TokenSlot(Record):
    """A token. Of one that was returned ``pool`` says which netmem it stood for, with its sign changed."""

    netmem: i64  # 0: returned, or never given out
    pool: i64  # handle
    buffers: i64  # that it counts for: 0 where it lies behind the token before it, in the same buffer


@inline_kernel
def slot_of(table: TokenTable, token: int) -> TokenSlot:
    """The slot of a token."""
    return TokenSlot.nth(table.slots, token - 1)


@inline_kernel
def token_take(table: TokenTable, pool: PoolRecord, netmem: int, shared: int) -> int:
    """A free token, which stands for a netmem from now on. ``shared``: batch.Shared of what lies in it."""
    table.free -= 1
    token = Word.nth(table.stack, table.free).value
    slot = slot_of(table, token)
    slot.netmem, slot.pool = netmem, pool.handle
    slot.buffers = 0 if shared == Shared.BEHIND and netmem == table.last else 1
    table.last = netmem
    set_holder(pool, netmem, Holder.USER)
    return token


@inline_kernel
def token_free(table: TokenTable, slot: TokenSlot, token: int, pool: PoolRecord) -> int:
    """A token comes back: the netmem that it stands for is put. The buffers that it counted for."""
    netmem = slot.netmem
    slot.netmem, slot.pool = 0, -netmem
    Word.nth(table.stack, table.free).value = token
    table.free += 1
    pp_put(pool, netmem, False)
    return slot.buffers


@inline_kernel
def pop_entry(stack: StackRecord, tcb: Tcb) -> None:
    """Take the first entry off the receive queue."""
    i = tcb.rq_head
    tcb.rq_head = entry_of(stack, i).next
    if tcb.rq_head == 0:
        tcb.rq_tail = 0
    tcb.rq_bufs -= 1
    entry_free(stack, i)


@inline_kernel
def note_wait(stack: StackRecord, came: int, now: int) -> None:
    """Count how long a piece waited for the application."""
    waited, bits = (now - came) & MASK32, 0
    while waited > 0 and bits < WAITS - 1:
        waited, bits = waited >> 1, bits + 1
    stack.waits[bits] += 1


@kernel
def receive_frags(table_at: int, out: Words, limit: int) -> int:
    """``frags_out`` where it is plain: frags of the connection's own pool are next. 0: it is not."""
    table = TokenTable.at(table_at)
    stack = StackRecord.at(table.owner)
    tcb = tcb_of(stack, table.connection)
    if tcb.rq_head == 0 or table.free < out.shape[0]:
        return 0
    entry, account = entry_of(stack, tcb.rq_head), account_of(stack, tcb)
    if entry.kind != EntryKind.FRAG or entry.pool != account.pool:
        return 0
    return frags_out(table.owner, table.connection, table_at, account.pool_at, out, limit)


@kernel
def frags_out(stack_at: int, c: int, table_at: int, pool_at: int, out: Words, limit: int) -> int:
    """Hand out frags of one pool, up to ``limit`` bytes, as rows of struct dmabuf_cmsg.

    A frag that the limit cuts keeps its rest in the queue, with a reference and token of its own.
    """
    stack, table, pool = StackRecord.at(stack_at), TokenTable.at(table_at), PoolRecord.at(pool_at)
    tcb = tcb_of(stack, c)
    n, asked = 0, limit
    now = monotonic_ns() >> 10 if stack.timed != 0 else 0
    while n < out.shape[0] and limit > 0 and tcb.rq_head != 0:
        entry = entry_of(stack, tcb.rq_head)
        if entry.kind != EntryKind.FRAG or entry.pool != pool.handle or table.free == 0:
            break
        token = token_take(table, pool, entry.netmem, entry.shared)
        tcb.user += slot_of(table, token).buffers
        take = min(entry.len, limit)
        out[n, 0] = offset_of(entry.netmem, pool.shift) + entry.offset
        out[n, 1] = take | token << 32
        out[n, 2] = pool.binding
        n += 1
        tcb.rq_bytes -= take
        limit -= take
        if stack.timed != 0:
            note_wait(stack, entry.came, now)
        if take < entry.len:
            netmem_of(pool, entry.netmem).pp_ref_count += 1
            entry.offset += take
            entry.len -= take
        else:
            pop_entry(stack, tcb)
    was_read(stack, tcb, asked - limit)
    return n


@kernel
def copy_out(
    stack_at: int, c: int, table_at: int, pool_at: int, dst: int, limit: int, linear_only: bool
) -> int:
    """Copy readable data of one pool to the application; returns bytes copied."""
    stack, pool = StackRecord.at(stack_at), PoolRecord.at(pool_at)
    tcb = tcb_of(stack, c)
    done = 0
    while done < limit and tcb.rq_head != 0:
        entry = entry_of(stack, tcb.rq_head)
        if entry.pool != pool.handle or (linear_only and entry.kind == EntryKind.FRAG):
            break
        take = min(entry.len, limit - done)
        memcpy(dst + done, pp_host_address(pool, entry.netmem, entry.offset), take)
        done += take
        tcb.rq_bytes -= take
        if take < entry.len:
            entry.offset += take
            entry.len -= take
        else:
            netmem = entry.netmem
            pop_entry(stack, tcb)
            pp_put(pool, netmem, False)
    was_read(stack, tcb, done)
    note_window(stack, tcb, TokenTable.at(table_at), pool)
    return done


@kernel
def note_window(stack: StackRecord, tcb: Tcb, table: TokenTable, pool: PoolRecord) -> None:
    """Work out the pool's room anew, and whether the peer should be told.

    Only the payload pool of the connection's queue counts: buffers may come back to a pool that the
    queue has no more, or to the header pool.
    """
    table.due = 0
    if tcb.state < TcpState.ESTABLISHED:
        return
    account = account_of(stack, tcb)
    if account.pool == pool.handle:
        account.available = pp_available(pool)
        trim(stack, tcb.queue)
    note_starved(stack, tcb)
    if window_update_due(stack, tcb):
        tcb.flags |= Flag.ACK_NOW
        table.due = 1


@kernel
def tokens_back(stack_at: int, c: int, table_at: int, tokens: Words, n: int, pool_at: int) -> int:
    """SO_DEVMEM_DONTNEED for ``tokens[:n]`` of one pool; returns how many were freed.

    Unknown and repeated tokens are skipped, and so are tokens of other pools: ``tokens`` keeps those,
    compacted to its front, and TokenTable.left has their number. ``c`` -1: no connection's window opens.
    """
    stack, table, pool = StackRecord.at(stack_at), TokenTable.at(table_at), PoolRecord.at(pool_at)
    freed = buffers = other = 0
    for k in range(n):
        token = int(tokens[k])
        if token < 1 or token > table.capacity:
            continue
        slot = slot_of(table, token)
        if slot.netmem == 0:
            continue
        if slot.pool != pool.handle:
            tokens[other] = token
            other += 1
            continue
        buffers += token_free(table, slot, token, pool)
        freed += 1
    table.left = other
    if c >= 0:
        tcb = tcb_of(stack, c)
        tcb.user -= buffers
        note_window(stack, tcb, table, pool)
    return freed


class Returned(enum.IntEnum):
    """Bits of what ``return_tokens`` returns, above the number of tokens freed."""

    RELEASED = 1 << 32  # the pool has netmems for its provider
    OTHERS = 1 << 33  # there are tokens of other pools, which were not freed


@kernel
def return_tokens(table_at: int, tokens: Words) -> int:
    """``tokens_back`` for an array of int64 or uint32, of any stride; tokens freed, and bits of Returned."""
    return tokens_at(table_at, tokens.ctypes.data, tokens.shape[0], tokens.strides[0], tokens.itemsize)


@kernel
def tokens_at(table_at: int, at: int, n: int, stride: int, size: int) -> int:
    """``return_tokens`` for ``n`` tokens of ``size`` bytes that begin at an address."""
    table = TokenTable.at(table_at)
    stack = StackRecord.at(table.owner)
    tcb = tcb_of(stack, table.connection)
    account = account_of(stack, tcb)
    pool = PoolRecord.at(account.pool_at)  # gone, perhaps: a token of it keeps it
    freed = buffers = bits = 0
    table.due = 0
    for _ in range(n):
        token = Word.at(at).value if size == 8 else load_u32(at)
        at += stride
        if token < 1 or token > table.capacity:
            continue
        slot = slot_of(table, token)
        if slot.netmem == 0:
            continue
        if slot.pool != account.pool:
            bits = int(Returned.OTHERS)
            continue
        buffers += token_free(table, slot, token, pool)
        freed += 1
    if freed == 0:
        return bits
    tcb.user -= buffers
    note_window(stack, tcb, table, pool)
    if pool.released > 0:
        bits |= Returned.RELEASED
    return freed | bits


@kernel
def tokens_repeated(table_at: int, tokens: Words) -> int:
    """A netmem of which a token was returned before, or stands twice among ``tokens``; 0 without."""
    table = TokenTable.at(table_at)
    found = 0
    for k in range(len(tokens)):
        if 1 <= tokens[k] <= table.capacity:
            slot = slot_of(table, int(tokens[k]))
            if slot.netmem < 0:
                found = -slot.netmem
            elif slot.netmem == 0 and slot.pool < 0:
                found = -slot.pool
            else:
                slot.netmem = -slot.netmem  # seen
    for k in range(len(tokens)):
        if 1 <= tokens[k] <= table.capacity:
            slot = slot_of(table, int(tokens[k]))
            slot.netmem = abs(slot.netmem)
    return found
