"""Entries: the small records that queues of a stack are chained from, all out of one table (kernels)."""

from __future__ import annotations

from netmem.base.jit import inline_kernel
from netmem.inet.tcp.tcb import StackRecord, entry_of


@inline_kernel
def entry_take(stack: StackRecord, seq: int, length: int) -> int:
    """An entry with ``seq`` and ``len`` set and no other behind it; 0 when there is none left."""
    if stack.free_entries == 0:
        stack.counters.entries_empty += 1
        return 0
    i = stack.free_entry
    if i == 0:
        stack.entries_used += 1
        i = stack.entries_used
    entry = entry_of(stack, i)
    stack.free_entry = entry.next  # 0 of one that was never used
    stack.free_entries -= 1
    entry.next, entry.seq, entry.len = 0, seq, length
    return i


@inline_kernel
def entry_free(stack: StackRecord, i: int) -> None:
    """Give an entry back."""
    entry_of(stack, i).next = stack.free_entry
    stack.free_entry = i
    stack.free_entries += 1
