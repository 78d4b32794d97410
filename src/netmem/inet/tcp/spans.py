"""Spans: bytes of a stream that lie in device memory, until the NIC reads them no more (kernels).

A connection's spans are a chain in stream order. What was acknowledged or given up goes to the stack's chain,
and is over when no transmit row before its mark is left.
"""

from __future__ import annotations

from netmem.base.arena import Words
from netmem.base.jit import kernel
from netmem.inet.tcp.entries import entry_free, entry_take
from netmem.inet.tcp.tcb import StackRecord, Tcb, span_of
from netmem.netdev.tx import TxQueueRecord


@kernel
def span_at(stack: StackRecord, tcb: Tcb, offset: int) -> int:
    """The span that stream offset ``offset`` lies in or comes before, 0: neither."""
    i = tcb.sp_next
    if i == 0 or offset < span_of(stack, i).start:
        i = tcb.sp_head
    while i != 0 and span_of(stack, i).start + span_of(stack, i).len <= offset:
        i = span_of(stack, i).next
    return i


@kernel
def piece(stack: StackRecord, tcb: Tcb, offset: int, length: int) -> int:
    """How much of ``length`` bytes at a stream offset one transmit row can name: never both memories."""
    if tcb.sp_head == 0:
        return length
    i = span_at(stack, tcb, offset)
    if i == 0:
        return length
    span = span_of(stack, i)
    if offset < span.start:
        return min(length, span.start - offset)
    end = span.start + span.len
    if span.next != 0:
        following = span_of(stack, span.next)
        if following.start == end:
            end += following.len
    return min(length, end - offset)


@kernel
def add_span(stack: StackRecord, tcb: Tcb, io: int, length: int, call: int) -> int:
    """``length`` bytes at an I/O address of device memory go behind what is to be sent.

    1: as a span of its own; 0: they lengthen the last one; -1: no entry is left.
    """
    tail = tcb.sp_tail
    if tail != 0:
        last = span_of(stack, tail)
        if last.call == call and last.io + last.len == io and last.start + last.len == tcb.sb_tail:
            last.len += length
            tcb.sb_tail += length
            return 0
    i = entry_take(stack, 0, length)
    if i == 0:
        return -1
    span = span_of(stack, i)
    span.start, span.io, span.call, span.mark = tcb.sb_tail, io, call, 0
    if tail != 0:
        span_of(stack, tail).next = i
    else:
        tcb.sp_head = i
    tcb.sp_tail = i
    tcb.sb_tail += length
    return 1


@kernel
def until_sent(stack: StackRecord, i: int, mark: int) -> None:
    """Keep span ``i`` until no transmit row before ``mark`` is left (``spans_done``)."""
    span = span_of(stack, i)
    span.next, span.mark = 0, mark
    if stack.zc_tail != 0:
        span_of(stack, stack.zc_tail).next = i
    else:
        stack.zc_head = i
    stack.zc_tail = i


@kernel
def spans_acked(stack: StackRecord, tcb: Tcb, everything: bool) -> None:
    """Spans that were acknowledged go to the chain of what the NIC may still read."""
    mark = TxQueueRecord.at(stack.tx).filled
    i = tcb.sp_head
    while i != 0 and (everything or span_of(stack, i).start + span_of(stack, i).len <= tcb.sb_head):
        following = span_of(stack, i).next
        if tcb.sp_next == i:
            tcb.sp_next = following
        until_sent(stack, i, mark)
        i = following
    tcb.sp_head = i
    if i == 0:
        tcb.sp_tail = tcb.sp_next = 0


@kernel
def note_sent(stack: StackRecord, call: int, mark: int) -> bool:
    """A datagram from device memory is over when the transmit row before ``mark`` is. False: no entry."""
    i = entry_take(stack, 0, 0)
    if i == 0:
        return False
    span_of(stack, i).call = call
    until_sent(stack, i, mark)
    return True


@kernel
def spans_done(stack: StackRecord, out: Words) -> int:
    """Spans that no transmit row names any more: the numbers of their calls into ``out``; how many."""
    completed = TxQueueRecord.at(stack.tx).completed
    n = 0
    i = stack.zc_head
    while i != 0 and n < out.shape[0] and span_of(stack, i).mark <= completed:
        following = span_of(stack, i).next
        out[n] = span_of(stack, i).call
        n += 1
        entry_free(stack, i)
        i = following
    stack.zc_head = i
    if i == 0:
        stack.zc_tail = 0
    return n
