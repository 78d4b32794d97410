"""The receiver's side of selective acknowledgements (kernels): RFC 2018, and RFC 2883 for duplicates."""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load_be32, store_be32
from netmem.inet.tcp.tcb import (
    CF_TS,
    DSACK_END,
    DSACK_START,
    E_LEN,
    E_NEXT,
    E_SEQ,
    FLAGS,
    G_COUNTERS,
    MASK32,
    OQ_HEAD,
    RCV_NXT,
    S_DSACK_OUT,
    SACK_RECENT,
    seq_le,
    seq_lt,
)

RECENT = 4


@inline_kernel
def sack_note(t, c, seq):
    """Data arrived out of order: its block is reported first from now on."""
    if t[c, SACK_RECENT] != seq:
        for n in range(RECENT - 1, 0, -1):
            t[c, SACK_RECENT + n] = t[c, SACK_RECENT + n - 1]
        t[c, SACK_RECENT] = seq


@inline_kernel
def dsack_note(t, c, seq, length):
    """A duplicate arrived: the next acknowledgement says so."""
    t[c, DSACK_START], t[c, DSACK_END] = seq, (seq + length) & MASK32


@inline_kernel
def block_of(t, e, c, seq):
    """The contiguous out-of-order data that ``seq`` lies in, as (left, right); equal when it is gone."""
    i = t[c, OQ_HEAD]
    while i != 0:
        left = e[i, E_SEQ]
        right = (left + e[i, E_LEN]) & MASK32
        i = e[i, E_NEXT]
        while i != 0 and e[i, E_SEQ] == right:
            right = (right + e[i, E_LEN]) & MASK32
            i = e[i, E_NEXT]
        if seq_le(left, seq) and seq_lt(seq, right):
            return left, right
    return 0, 0


@kernel
def sack_option(g, t, e, c, at):
    """Write the SACK option at ``at``: a duplicate first, then blocks, newest first. Its size, or 0."""
    room = 3 if t[c, FLAGS] & CF_TS else 4
    n = 0
    if t[c, DSACK_START] != t[c, DSACK_END]:
        store_be32(at + 4, t[c, DSACK_START])
        store_be32(at + 8, t[c, DSACK_END])
        g[G_COUNTERS + S_DSACK_OUT] += 1
        n = 1
        # The block that holds the duplicate, if any, comes next by its place among the recent ones.
        if seq_le(t[c, RCV_NXT], t[c, DSACK_START]):
            sack_note(t, c, t[c, DSACK_START])
        t[c, DSACK_START] = t[c, DSACK_END] = 0
    first = n
    if t[c, OQ_HEAD] != 0:
        for k in range(RECENT):
            left, right = block_of(t, e, c, t[c, SACK_RECENT + k])
            known = left == right
            for b in range(first, n):
                if load_be32(at + 4 + 8 * b) == left:
                    known = True
            if not known and n < room:
                store_be32(at + 4 + 8 * n, left)
                store_be32(at + 8 + 8 * n, right)
                n += 1
    if n == 0:
        return 0
    store_be32(at, 0x01010500 | (2 + 8 * n))
    return 4 + 8 * n
