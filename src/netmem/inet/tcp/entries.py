"""Entries: the small records that queues of a stack are chained from, all out of one arena (kernels)."""

from __future__ import annotations

from netmem.base.jit import inline_kernel
from netmem.inet.tcp.tcb import (
    E_LEN,
    E_NEXT,
    E_SEQ,
    G_COUNTERS,
    G_ECOUNT,
    G_EFREE,
    G_ZC_HEAD,
    G_ZC_TAIL,
    S_ENTRIES_EMPTY,
    Y_MARK,
)


@inline_kernel
def entry_take(g, e, seq, length):
    """An entry with E_SEQ and E_LEN set and no other behind it; 0 when there is none left."""
    i = g[G_EFREE]
    if i == 0:
        g[G_COUNTERS + S_ENTRIES_EMPTY] += 1
        return 0
    g[G_EFREE] = e[i, E_NEXT]
    g[G_ECOUNT] -= 1
    e[i, E_NEXT], e[i, E_SEQ], e[i, E_LEN] = 0, seq, length
    return i


@inline_kernel
def entry_free(g, e, i):
    """Give an entry back."""
    e[i, E_NEXT] = g[G_EFREE]
    g[G_EFREE] = i
    g[G_ECOUNT] += 1


@inline_kernel
def until_sent(g, e, i, mark):
    """Keep entry ``i`` until no transmit row before ``mark`` is left (``spans_done``)."""
    e[i, E_NEXT], e[i, Y_MARK] = 0, mark
    if g[G_ZC_TAIL] != 0:
        e[g[G_ZC_TAIL], E_NEXT] = i
    else:
        g[G_ZC_HEAD] = i
    g[G_ZC_TAIL] = i
