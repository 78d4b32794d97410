"""UDP's hot paths: a datagram to its socket's queue, and from there to the application (kernels).

A datagram is a chain of entries: its head, then its pieces. Sockets are found by port, then by peer.
"""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import memcpy
from netmem.base.record import Record, Word, i64
from netmem.inet.tcp.entries import entry_free
from netmem.inet.tcp.queue import entry_new, release_later
from netmem.inet.tcp.receive import TokenTable, token_take
from netmem.inet.tcp.tcb import RELEASE_ROOM, EntryKind, StackRecord
from netmem.inet.udp.table import (
    SOCKETS,
    DatagramRow,
    Receive,
    UdpSocketRecord,
    datagram_of,
    piece_of,
    socket_of,
)
from netmem.memory.layout import PoolRecord
from netmem.memory.ref import offset_of
from netmem.netdev.batch import BatchRecord, Kind, RxRow, Shared, row_of

DATAGRAM_LEAST = 1  # bytes that even an empty datagram counts against the limit


class Cmsg(Record):
    """struct dmabuf_cmsg, as words."""

    offset: i64
    size_token: i64  # size | token << 32
    binding: i64  # dmabuf_id, flags 0


@inline_kernel
def is_ours(stack: StackRecord, high: int, low: int) -> bool:
    """True for one of the stack's addresses."""
    for n in range(stack.addresses_used):
        address = stack.addresses[n]
        if address.hi == high and address.lo == low:
            return True
    return False


@inline_kernel
def udp_lookup(stack: StackRecord, row: RxRow) -> int:
    """The socket that a datagram is for, or -1: a connected one first."""
    port = row.ports & 0xFFFF
    s = socket_of(stack, port % SOCKETS).bucket - 1
    found = -1
    while s >= 0:
        sock = socket_of(stack, s)
        if sock.port == port:
            if sock.peer_port == 0:
                found = s
            elif sock.peer_port == row.ports >> 16 and sock.peer == row.src and sock.peer_hi == row.src_hi:
                return s
        s = sock.next - 1
    return found


@inline_kernel
def queue_piece(stack: StackRecord, tail: int, host: int, row: RxRow, linear: bool, kind: int) -> int:
    """The row's linear part, or its buffer, behind entry ``tail``; the new entry."""
    if linear:
        offset = row.header_offset + row.linear
        i = entry_new(stack, host, row.linear_len, row.header_netmem, offset, row.header_pool, kind)
        row.header_netmem = 0
    else:
        i = entry_new(stack, host, row.size, row.netmem, row.offset, row.pool, kind)
        row.netmem = 0
    piece_of(stack, tail).next = i
    return i


@inline_kernel
def weigh(batch: BatchRecord, i: int, last: int) -> tuple[int, int, int]:
    """Entries that datagram ``i`` takes, and buffers behind netmem ``last``; the netmem of its last piece.

    What lies behind the piece before it, in the same netmem, takes no buffer.
    """
    pieces, buffers, part = 1, 1 if row_of(batch, i).linear_len > 0 else 0, i
    while part >= 0:
        piece = row_of(batch, part)
        pieces += 1
        if piece.size > 0:
            if piece.shared != Shared.BEHIND or piece.netmem != last:
                buffers += 1
            last = piece.netmem
        part = piece.more
    return pieces, buffers, last


@kernel
def udp_rx(stack: StackRecord, batch: BatchRecord, i: int) -> bool:
    """Queue datagram ``i`` on its socket. False: nobody listens there, and the sender should be told."""
    row = row_of(batch, i)
    if not is_ours(stack, row.dst_hi, row.dst):
        stack.counters.not_ours += 1
        return True
    s = udp_lookup(stack, row)
    if s < 0:
        stack.counters.udp_no_socket += 1
        return False
    sock = socket_of(stack, s)
    account = stack.accounts[stack.queue]
    pieces, buffers, last = weigh(batch, i, sock.last)
    # As TCP's connections: a socket holds at most what is free beside it.
    free = account.available - account.reserve - account.pledged
    low = sock.buffers + buffers > free
    full = sock.bytes + max(row.len, DATAGRAM_LEAST) > sock.limit
    unreadable = stack.by_token == 0 and account.host == 0
    if low or full or unreadable or stack.free_entries < pieces + 1:
        stack.counters.udp_full += 1
        sock.dropped += 1
        return True
    head = entry_new(stack, row.ports >> 16, row.len, row.src_hi, row.src, 0, int(EntryKind.DGRAM))
    tail, n = head, 0
    if row.linear_len > 0:
        tail = queue_piece(stack, tail, row.header + row.linear, row, True, int(EntryKind.LINEAR))
        n += 1
    part = i
    while part >= 0:
        piece = row_of(batch, part)
        if piece.size > 0:
            host, kind = 0, int(EntryKind.FRAG)
            if stack.by_token == 0:
                host = account.host + offset_of(piece.netmem, account.shift) + piece.offset
                kind = int(EntryKind.LINEAR)
            tail = queue_piece(stack, tail, host, piece, False, kind)
            n += 1
        part = piece.more
    datagram_of(stack, head).pieces, datagram_of(stack, head).buffers = n, buffers
    account.available -= buffers
    sock.buffers += buffers
    sock.last = last
    if sock.tail != 0:
        datagram_of(stack, sock.tail).next = head
    else:
        sock.head = head
    sock.tail = tail
    sock.bytes += max(row.len, DATAGRAM_LEAST)
    sock.datagrams += 1
    sock.received += 1
    stack.counters.udp_in += 1
    return True


@kernel
def udp_batch(stack: StackRecord, batch: BatchRecord) -> int:
    """Take the datagrams off the list of what the fast path left; what stays is for Python. How many."""
    left = 0
    for n in range(stack.slow):
        i = Word.nth(stack.slow_list, n).value
        if row_of(batch, i).kind != Kind.UDP or not udp_rx(stack, batch, i):
            Word.nth(stack.slow_list, left).value = i
            left += 1
    stack.slow = left
    return left


@inline_kernel
def in_frags(stack: StackRecord, head: int) -> tuple[int, int, int]:
    """Of a datagram: handle of its frags' pool (0 without), its frags, its linear bytes."""
    datagram = datagram_of(stack, head)
    i = datagram.next
    handle, frags, linear = 0, 0, 0
    for _ in range(datagram.pieces):
        piece = piece_of(stack, i)
        if piece.kind == EntryKind.FRAG:
            handle = piece.pool
            frags += 1
        else:
            linear += piece.len
        i = piece.next
    return handle, frags, linear


@kernel
def udp_pool(stack_at: int, s: int) -> int:
    """Handle of the pool of the next datagram's frags, 0 without."""
    stack = StackRecord.at(stack_at)
    return in_frags(stack, socket_of(stack, s).head)[0]


@inline_kernel
def pop_datagram(stack: StackRecord, sock: UdpSocketRecord, i: int) -> None:
    """The first datagram is gone, ``i`` is what follows it."""
    datagram = datagram_of(stack, sock.head)
    sock.bytes -= max(datagram.len, DATAGRAM_LEAST)
    sock.buffers -= datagram.buffers
    sock.datagrams -= 1
    entry_free(stack, sock.head)
    sock.head = i
    if i == 0:
        sock.tail = sock.last = 0


@kernel
def udp_out(stack_at: int, s: int, table_at: int, pool_at: int, into_at: int) -> int:
    """Hand out datagrams to a ``Receive``, frags of one pool only; how many.

    Ends early where frags of another pool come next, or where frags, tokens or room do not suffice.
    """
    stack, table, pool = StackRecord.at(stack_at), TokenTable.at(table_at), PoolRecord.at(pool_at)
    sock, into = socket_of(stack, s), Receive.at(into_at)
    n = used = copied = 0
    while n < into.rows_room and sock.head != 0:
        datagram = datagram_of(stack, sock.head)
        handle, frags, linear = in_frags(stack, sock.head)
        if handle != 0 and handle != pool.handle:
            break
        if stack.releases + datagram.pieces > RELEASE_ROOM:
            break
        if used + frags > into.frags_room or table.free < frags or copied + linear > into.linear_room:
            break
        row = DatagramRow.nth(into.rows, n)
        row.peer_hi, row.peer_lo, row.port = datagram.peer_hi, datagram.peer, datagram.port
        row.size, row.linear, row.frags = datagram.len, linear, frags
        i = datagram.next
        for _ in range(datagram.pieces):
            piece = piece_of(stack, i)
            following = piece.next
            if piece.kind == EntryKind.FRAG:
                cmsg = Cmsg.nth(into.frags, used)
                token = token_take(table, pool, piece.netmem, int(Shared.NO))
                cmsg.offset = offset_of(piece.netmem, pool.shift) + piece.offset
                cmsg.size_token = piece.len | token << 32
                cmsg.binding = pool.binding
                used += 1
            else:
                memcpy(into.linear + copied, piece.host, piece.len)
                copied += piece.len
                release_later(stack, piece.netmem, piece.pool)
            entry_free(stack, i)
            i = following
        pop_datagram(stack, sock, i)
        n += 1
    return n


@kernel
def udp_drop(stack_at: int, s: int, limit: int) -> int:
    """Forget queued datagrams of a socket, ``limit`` pieces or few more; how many were noted for release."""
    stack = StackRecord.at(stack_at)
    sock = socket_of(stack, s)
    dropped = 0
    while sock.head != 0 and dropped < limit:
        datagram = datagram_of(stack, sock.head)
        i = datagram.next
        for _ in range(datagram.pieces):
            piece = piece_of(stack, i)
            following = piece.next
            release_later(stack, piece.netmem, piece.pool)
            entry_free(stack, i)
            dropped += 1
            i = following
        pop_datagram(stack, sock, i)
    return dropped
