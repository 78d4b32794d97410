"""The receiver's side of selective acknowledgements (kernels): RFC 2018, and RFC 2883 for duplicates."""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load_be32, store_be32
from netmem.inet.tcp.tcb import MASK32, Flag, StackRecord, Tcb, entry_of, seq_le, seq_lt

RECENT = 4


@inline_kernel
def sack_note(tcb: Tcb, seq: int) -> None:
    """Data arrived out of order: its block is reported first from now on."""
    if tcb.sack_recent[0] != seq:
        for n in range(RECENT - 1, 0, -1):
            tcb.sack_recent[n] = tcb.sack_recent[n - 1]
        tcb.sack_recent[0] = seq


@inline_kernel
def dsack_note(tcb: Tcb, seq: int, length: int) -> None:
    """A duplicate arrived: the next acknowledgement says so."""
    tcb.dsack_start, tcb.dsack_end = seq, (seq + length) & MASK32


@inline_kernel
def block_of(stack: StackRecord, tcb: Tcb, seq: int) -> tuple[int, int]:
    """The contiguous out-of-order data that ``seq`` lies in, as (left, right); equal when it is gone."""
    i = tcb.oq_head
    while i != 0:
        left = entry_of(stack, i).seq
        right = (left + entry_of(stack, i).len) & MASK32
        i = entry_of(stack, i).next
        while i != 0 and entry_of(stack, i).seq == right:
            right = (right + entry_of(stack, i).len) & MASK32
            i = entry_of(stack, i).next
        if seq_le(left, seq) and seq_lt(seq, right):
            return left, right
    return 0, 0


@kernel
def sack_option(stack: StackRecord, tcb: Tcb, at: int) -> int:
    """Write the SACK option at ``at``: a duplicate first, then blocks, newest first. Its size, or 0."""
    room = 3 if tcb.flags & Flag.TS else 4
    n = 0
    if tcb.dsack_start != tcb.dsack_end:
        store_be32(at + 4, tcb.dsack_start)
        store_be32(at + 8, tcb.dsack_end)
        stack.counters.dsack_out += 1
        n = 1
        # The block that holds the duplicate, if any, comes next by its place among the recent ones.
        if seq_le(tcb.rcv_nxt, tcb.dsack_start):
            sack_note(tcb, tcb.dsack_start)
        tcb.dsack_start = tcb.dsack_end = 0
    first = n
    if tcb.oq_head != 0:
        for k in range(RECENT):
            left, right = block_of(stack, tcb, tcb.sack_recent[k])
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
