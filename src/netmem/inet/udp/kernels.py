"""UDP's data path: datagrams from batches into sockets' queues, and from there to the application.

``u`` is the socket table, a row of U_WORDS words each. A queued datagram is a head entry and one entry for
each piece of its payload; entries are those of ``tcb``.
"""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import memcpy
from netmem.inet.tcp.entries import entry_free
from netmem.inet.tcp.kernels import entry_new, release_later
from netmem.inet.tcp.receive import TK_FREE, TK_SLOTS, TK_STACK
from netmem.inet.tcp.tcb import (
    CR_AVAIL,
    CR_HOST,
    CR_PLEDGED,
    CR_RESERVE,
    CR_SHIFT,
    CR_WORDS,
    E_KIND,
    E_LEN,
    E_NETMEM,
    E_NEXT,
    E_OFFSET,
    E_POOL,
    E_SEQ,
    EK_FRAG,
    EK_LINEAR,
    G_ADDRS,
    G_COUNTERS,
    G_CREDIT,
    G_ECOUNT,
    G_QUEUE,
    G_RELEASE,
    G_SLOW,
    G_SLOW_AT,
    G_TOKENS,
    RELEASE_ROOM,
    S_NOT_OURS,
    S_UDP_FULL,
    S_UDP_IN,
    S_UDP_NO_SOCKET,
)
from netmem.memory.kernels import set_holder
from netmem.memory.layout import Holder, PoolRecord
from netmem.memory.ref import offset_of
from netmem.netdev.words import (
    B_DST,
    B_DST_HI,
    B_HDR,
    B_HNETMEM,
    B_HOFFSET,
    B_HPOOL,
    B_KIND,
    B_LEN,
    B_LIN,
    B_LINLEN,
    B_MORE,
    B_NETMEM,
    B_OFFSET,
    B_POOL,
    B_PORTS,
    B_SIZE,
    B_SRC,
    B_SRC_HI,
    KIND_UDP,
)

# A row of the socket table.
U_BUCKET = 0  # of the hash by port: row + 1 of the chain's first socket
U_NEXT = 1  # row + 1
U_PORT = 2  # 0: the row is free
U_HEAD = 3
U_TAIL = 4
U_BYTES = 5
U_DGRAMS = 6
U_LIMIT = 7  # most payload bytes to hold
U_DROPPED = 8  # datagrams that found no room
U_IN = 9
U_PEER_PORT = 10  # of a connected socket, 0: any peer
U_PEER_HI = 11
U_PEER = 12
U_TOKENS_FD = 13
U_BUFS = 14  # buffers that its queue holds
U_WORDS = 16
SOCKETS = 256  # rows, and buckets
EK_DGRAM = 3  # head entry: E_SEQ source port, E_NETMEM and E_OFFSET its address, E_POOL pieces

# Words of a datagram as udp_out gives it.
DG_PEER_HI, DG_PEER, DG_PORT, DG_SIZE, DG_LINEAR, DG_FRAGS = range(6)
DG_WORDS = 6
DATAGRAM_LEAST = 1  # bytes that even an empty datagram counts against the limit


@inline_kernel
def is_ours(g, high, low):
    """True for one of the stack's addresses."""
    for n in range(g[G_ADDRS]):  # noqa: SIM110 - a kernel
        if g[G_ADDRS + 1 + 2 * n] == high and g[G_ADDRS + 2 + 2 * n] == low:
            return True
    return False


@inline_kernel
def udp_lookup(u, row):
    """The socket that a datagram is for, or -1: a connected one first."""
    port = row[B_PORTS] & 0xFFFF
    s = u[port % SOCKETS, U_BUCKET] - 1
    found = -1
    while s >= 0:
        if u[s, U_PORT] == port:
            if u[s, U_PEER_PORT] == 0:
                found = s
            elif (
                u[s, U_PEER_PORT] == row[B_PORTS] >> 16
                and u[s, U_PEER] == row[B_SRC]
                and u[s, U_PEER_HI] == row[B_SRC_HI]
            ):
                return s
        s = u[s, U_NEXT] - 1
    return found


@inline_kernel
def queue_piece(g, e, tail, host, length, ref, offset, pool, kind):
    """One piece of payload behind entry ``tail``; the new entry."""
    i = entry_new(g, e, host, length, ref, offset, pool, kind)
    e[tail, E_NEXT] = i
    return i


@kernel
def udp_rx(g, u, e, rows, i):
    """Queue datagram ``i`` on its socket. False: nobody listens there, and the sender should be told."""
    row = rows[i]
    if not is_ours(g, row[B_DST_HI], row[B_DST]):
        g[G_COUNTERS + S_NOT_OURS] += 1
        return True
    s = udp_lookup(u, row)
    if s < 0:
        g[G_COUNTERS + S_UDP_NO_SOCKET] += 1
        return False
    credit = G_CREDIT + CR_WORDS * g[G_QUEUE]
    pieces = 1
    part = i
    while part >= 0:
        pieces += 1
        part = rows[part, B_MORE]
    # As TCP's connections: a socket holds at most what is free beside it.
    free = g[credit + CR_AVAIL] - g[credit + CR_RESERVE] - g[credit + CR_PLEDGED]
    low = u[s, U_BUFS] + pieces - 1 > free
    full = u[s, U_BYTES] + max(row[B_LEN], DATAGRAM_LEAST) > u[s, U_LIMIT]
    host = g[credit + CR_HOST]
    unreadable = g[G_TOKENS] == 0 and host == 0
    if low or full or unreadable or g[G_ECOUNT] < pieces + 1:
        g[G_COUNTERS + S_UDP_FULL] += 1
        u[s, U_DROPPED] += 1
        return True
    head = entry_new(g, e, row[B_PORTS] >> 16, row[B_LEN], row[B_SRC_HI], row[B_SRC], 0, EK_DGRAM)
    tail, n = head, 0
    if row[B_LINLEN] > 0:
        at = row[B_HDR] + row[B_LIN]
        tail = queue_piece(
            g,
            e,
            tail,
            at,
            row[B_LINLEN],
            row[B_HNETMEM],
            row[B_HOFFSET] + row[B_LIN],
            row[B_HPOOL],
            EK_LINEAR,
        )
        row[B_HNETMEM] = 0
        n += 1
    part = i
    while part >= 0:
        piece = rows[part]
        if piece[B_SIZE] > 0:
            at, kind = 0, EK_FRAG
            if g[G_TOKENS] == 0:
                at = host + offset_of(piece[B_NETMEM], g[credit + CR_SHIFT]) + piece[B_OFFSET]
                kind = EK_LINEAR
            tail = queue_piece(
                g, e, tail, at, piece[B_SIZE], piece[B_NETMEM], piece[B_OFFSET], piece[B_POOL], kind
            )
            piece[B_NETMEM] = 0
            n += 1
        part = piece[B_MORE]
    e[head, E_POOL] = n
    g[credit + CR_AVAIL] -= n
    u[s, U_BUFS] += n
    if u[s, U_TAIL] != 0:
        e[u[s, U_TAIL], E_NEXT] = head
    else:
        u[s, U_HEAD] = head
    u[s, U_TAIL] = tail
    u[s, U_BYTES] += max(row[B_LEN], DATAGRAM_LEAST)
    u[s, U_DGRAMS] += 1
    u[s, U_IN] += 1
    g[G_COUNTERS + S_UDP_IN] += 1
    return True


@kernel
def udp_batch(g, u, e, rows):
    """Take the datagrams off the list of what the fast path left; what stays is for Python. How many."""
    left = 0
    for n in range(g[G_SLOW]):
        i = g[G_SLOW_AT + n]
        if rows[i, B_KIND] != KIND_UDP or not udp_rx(g, u, e, rows, i):
            g[G_SLOW_AT + left] = i
            left += 1
    g[G_SLOW] = left
    return left


@kernel
def udp_head(e, u, s, want):
    """Of the next datagram: 1 pool handle of its frags (0 without), 2 its frags, 3 its linear bytes."""
    i = e[u[s, U_HEAD], E_NEXT]
    handle, frags, linear = 0, 0, 0
    for _ in range(e[u[s, U_HEAD], E_POOL]):
        if e[i, E_KIND] == EK_FRAG:
            handle = e[i, E_POOL]
            frags += 1
        else:
            linear += e[i, E_LEN]
        i = e[i, E_NEXT]
    if want == 1:
        return handle
    return frags if want == 2 else linear


@kernel
def udp_out(g, u, e, s, tok, pool_at, handle, binding, dgrams, frags, linear, room):
    """Hand out datagrams: rows of ``dgrams`` and of struct dmabuf_cmsg, linear bytes to ``linear``.

    Ends early where frags of another pool come next, or where frags, tokens or ``room`` do not suffice.
    """
    pool = PoolRecord.at(pool_at)
    n = used = 0
    copied = 0
    while n < dgrams.shape[0] and u[s, U_HEAD] != 0:
        head = u[s, U_HEAD]
        first = udp_head(e, u, s, 1)
        count = udp_head(e, u, s, 2)
        bytes_ = udp_head(e, u, s, 3)
        if first != 0 and first != handle:
            break
        if g[G_RELEASE] + e[head, E_POOL] > RELEASE_ROOM:
            break
        if used + count > frags.shape[0] or tok[TK_FREE] < count or copied + bytes_ > room:
            break
        d = dgrams[n]
        d[DG_PEER_HI], d[DG_PEER], d[DG_PORT] = e[head, E_NETMEM], e[head, E_OFFSET], e[head, E_SEQ]
        d[DG_SIZE], d[DG_LINEAR], d[DG_FRAGS] = e[head, E_LEN], bytes_, count
        i = e[head, E_NEXT]
        for _ in range(e[head, E_POOL]):
            following = e[i, E_NEXT]
            if e[i, E_KIND] == EK_FRAG:
                ref = e[i, E_NETMEM]
                tok[TK_FREE] -= 1
                token = tok[tok[TK_STACK] + tok[TK_FREE]]
                at = TK_SLOTS + 2 * (token - 1)
                tok[at], tok[at + 1] = ref, handle
                set_holder(pool, ref, Holder.USER)
                frags[used, 0] = offset_of(ref, pool.shift) + e[i, E_OFFSET]
                frags[used, 1] = e[i, E_LEN] | token << 32
                frags[used, 2] = binding
                used += 1
            else:
                memcpy(linear + copied, e[i, E_SEQ], e[i, E_LEN])
                copied += e[i, E_LEN]
                release_later(g, e[i, E_NETMEM], e[i, E_POOL])
            entry_free(g, e, i)
            i = following
        u[s, U_BYTES] -= max(e[head, E_LEN], DATAGRAM_LEAST)
        u[s, U_BUFS] -= e[head, E_POOL]
        u[s, U_DGRAMS] -= 1
        entry_free(g, e, head)
        u[s, U_HEAD] = i
        if i == 0:
            u[s, U_TAIL] = 0
        n += 1
    return n


@kernel
def udp_drop(g, u, e, s, limit):
    """Forget up to ``limit`` queued datagrams of a socket; how many pieces were noted for release."""
    dropped = 0
    while u[s, U_HEAD] != 0 and dropped < limit:
        head = u[s, U_HEAD]
        i = e[head, E_NEXT]
        for _ in range(e[head, E_POOL]):
            following = e[i, E_NEXT]
            release_later(g, e[i, E_NETMEM], e[i, E_POOL])
            entry_free(g, e, i)
            dropped += 1
            i = following
        entry_free(g, e, head)
        u[s, U_HEAD] = i
    if u[s, U_HEAD] == 0:
        u[s, U_TAIL] = u[s, U_BYTES] = u[s, U_BUFS] = u[s, U_DGRAMS] = 0
    return dropped
