"""From receive queue to application: frags by token, copies of readable data, tokens back (kernels).

A socket's token arena ``tok`` has a header, two words for each token (netmem, pool; once returned 0 and
the netmem with its sign changed), and a stack of free tokens. Tokens are numbered from 1
(SCM_DEVMEM_DMABUF, SO_DEVMEM_DONTNEED).
"""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import memcpy
from netmem.inet.tcp.entries import entry_free
from netmem.inet.tcp.tcb import (
    CF_ACK_NOW,
    CR_AVAIL,
    CR_POOL,
    CR_WORDS,
    E_KIND,
    E_LEN,
    E_NETMEM,
    E_NEXT,
    E_OFFSET,
    E_POOL,
    EK_FRAG,
    ESTABLISHED,
    FLAGS,
    G_CREDIT,
    QUEUE,
    RQ_BUFS,
    RQ_BYTES,
    RQ_HEAD,
    RQ_TAIL,
    STATE,
    USER,
)
from netmem.inet.tcp.window import note_starved, trim, was_read, window_update_due
from netmem.memory.kernels import pp_available, pp_host_address, pp_put, set_holder
from netmem.memory.layout import Holder, PoolRecord
from netmem.memory.ref import offset_of
from netmem.memory.shadow import netmem_of

TK_FREE = 0  # free tokens
TK_CAPACITY = 1
TK_STACK = 2  # word offset of the stack
TK_DUE = 3  # out: a window update should be sent
TK_SLOTS = 8


@inline_kernel
def pop_entry(g, t, e, c):
    """Take the first entry off the receive queue."""
    i = t[c, RQ_HEAD]
    t[c, RQ_HEAD] = e[i, E_NEXT]
    if e[i, E_NEXT] == 0:
        t[c, RQ_TAIL] = 0
    t[c, RQ_BUFS] -= 1
    entry_free(g, e, i)


@kernel
def frags_out(g, t, e, c, tok, pool_at, handle, binding, out, limit):
    """Hand out frags of one pool, up to ``limit`` bytes, as rows of struct dmabuf_cmsg.

    A frag that the limit cuts keeps its rest in the queue, with a reference and token of its own.
    """
    pool = PoolRecord.at(pool_at)
    n, asked = 0, limit
    while n < out.shape[0] and limit > 0:
        i = t[c, RQ_HEAD]
        if i == 0 or e[i, E_KIND] != EK_FRAG or e[i, E_POOL] != handle or tok[TK_FREE] == 0:
            break
        ref, offset, size = e[i, E_NETMEM], e[i, E_OFFSET], e[i, E_LEN]
        free = tok[TK_FREE] - 1
        token = tok[tok[TK_STACK] + free]
        tok[TK_FREE] = free
        at = TK_SLOTS + 2 * (token - 1)
        tok[at], tok[at + 1] = ref, handle
        set_holder(pool, ref, Holder.USER)
        t[c, USER] += 1
        start = offset_of(ref, pool.shift) + offset
        take = min(size, limit)
        out[n, 0] = start
        out[n, 1] = take | token << 32
        out[n, 2] = binding
        n += 1
        t[c, RQ_BYTES] -= take
        limit -= take
        if take < size:
            netmem_of(pool, ref).pp_ref_count += 1
            e[i, E_OFFSET] += take
            e[i, E_LEN] -= take
        else:
            pop_entry(g, t, e, c)
    was_read(g, t, c, asked - limit)
    return n


@kernel
def copy_out(g, t, e, c, tok, pool_at, handle, dst, limit, linear_only):
    """Copy readable data of one pool to the application; returns bytes copied."""
    pool = PoolRecord.at(pool_at)
    done = 0
    while done < limit:
        i = t[c, RQ_HEAD]
        if i == 0 or e[i, E_POOL] != handle:
            break
        if linear_only and e[i, E_KIND] == EK_FRAG:
            break
        ref = e[i, E_NETMEM]
        take = min(e[i, E_LEN], limit - done)
        memcpy(dst + done, pp_host_address(pool, ref, e[i, E_OFFSET]), take)
        done += take
        t[c, RQ_BYTES] -= take
        if take < e[i, E_LEN]:
            e[i, E_OFFSET] += take
            e[i, E_LEN] -= take
        else:
            pop_entry(g, t, e, c)
            pp_put(pool, ref, False)
    was_read(g, t, c, done)
    note_window(g, t, c, tok, pool_at, handle)
    return done


@kernel
def note_window(g, t, c, tok, pool_at, handle):
    """Work out the pool's room anew, and whether the peer should be told.

    Only the payload pool of the connection's queue counts: buffers may come back to a pool that the
    queue has no more, or to the header pool.
    """
    tok[TK_DUE] = 0
    if t[c, STATE] < ESTABLISHED:
        return
    credit = G_CREDIT + CR_WORDS * t[c, QUEUE]
    if g[credit + CR_POOL] == handle:
        g[credit + CR_AVAIL] = pp_available(PoolRecord.at(pool_at))
        trim(g, t, t[c, QUEUE])
    note_starved(g, t, c)
    if window_update_due(g, t, c):
        t[c, FLAGS] |= CF_ACK_NOW
        tok[TK_DUE] = 1


@kernel
def tokens_back(g, t, c, tok, tokens, n, pool_at, handle):
    """SO_DEVMEM_DONTNEED for tokens of one pool; returns how many were freed.

    Unknown and repeated tokens are skipped, and so are tokens of other pools: ``tokens`` keeps
    those, compacted to its front, and their number stands in the token arena at TK_DUE + 1.
    """
    pool = PoolRecord.at(pool_at)
    freed = 0
    other = 0
    capacity = tok[TK_CAPACITY]
    for k in range(n):
        token = tokens[k]
        if token < 1 or token > capacity:
            continue
        at = TK_SLOTS + 2 * (token - 1)
        ref = tok[at]
        if ref == 0:
            continue
        if tok[at + 1] != handle:
            tokens[other] = token
            other += 1
            continue
        tok[at], tok[at + 1] = 0, -ref
        tok[tok[TK_STACK] + tok[TK_FREE]] = token
        tok[TK_FREE] += 1
        pp_put(pool, ref, False)
        freed += 1
    tok[TK_DUE + 1] = other
    if c >= 0:
        t[c, USER] -= freed
        note_window(g, t, c, tok, pool_at, handle)
    return freed


@kernel
def tokens_repeated(tok, tokens):
    """A netmem of which a token was returned before, or stands twice among ``tokens``; 0 without."""
    found = 0
    for token in tokens:
        if 1 <= token <= tok[TK_CAPACITY]:
            at = TK_SLOTS + 2 * (token - 1)
            if tok[at] < 0 or (tok[at] == 0 and tok[at + 1] < 0):
                found = -tok[at] if tok[at] < 0 else -tok[at + 1]
            else:
                tok[at] = -tok[at]  # seen
    for token in tokens:
        if 1 <= token <= tok[TK_CAPACITY]:
            at = TK_SLOTS + 2 * (token - 1)
            tok[at] = abs(tok[at])
    return found
