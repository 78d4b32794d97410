"""What is in flight (kernels): RFC 6675's scoreboard.

A chain of entries in sequence order, one for each transmit row, split where a SACK block ends in one (at
whole segments only), and merged when lost.
"""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.inet.tcp.entries import entry_free, entry_take
from netmem.inet.tcp.tcb import MASK32, Flag, Mark, Sent, StackRecord, Tcb, sent_of, seq_diff


@inline_kernel
def pipe(tcb: Tcb) -> int:
    """Bytes that are in the network, as far as one can tell (RFC 6675, section 4)."""
    bytes_ = seq_diff(tcb.snd_nxt, tcb.snd_una) - tcb.sacked - tcb.lost + tcb.retrans
    if tcb.flags & Flag.SACK == 0:
        bytes_ -= tcb.dupacks * tcb.mss
    return max(bytes_, 0)


@inline_kernel
def tq_new(stack: StackRecord, seq: int, length: int, marks: int) -> int:
    """An entry of what is in flight, 0 when there is none left."""
    i = entry_take(stack, seq, length)
    if i != 0:
        sent = sent_of(stack, i)
        sent.time, sent.marks = stack.now, marks
    return i


@inline_kernel
def tq_append(stack: StackRecord, tcb: Tcb, seq: int, length: int, marks: int) -> None:
    """Note that ``length`` sequence numbers were sent for the first time."""
    i = tq_new(stack, seq, length, marks)
    if tcb.tq_tail != 0:
        sent_of(stack, tcb.tq_tail).next = i
    else:
        tcb.tq_head = i
    tcb.tq_tail = i


@kernel
def tq_split(stack: StackRecord, tcb: Tcb, i: int, length: int) -> bool:
    """Cut entry ``i`` after ``length`` sequence numbers. False: there is no entry left for the rest."""
    sent = sent_of(stack, i)
    rest = tq_new(stack, (sent.seq + length) & MASK32, sent.len - length, sent.marks)
    if rest == 0:
        return False
    behind = sent_of(stack, rest)
    behind.time, behind.next = sent.time, sent.next
    sent.next = rest
    sent.len = length
    sent.marks &= ~Mark.FIN
    if tcb.tq_tail == i:
        tcb.tq_tail = rest
    return True


@kernel
def tq_merge(stack: StackRecord, tcb: Tcb, i: int, limit: int) -> None:
    """Make one entry of ``i`` and lost ones behind it, up to ``limit``: small segments go together."""
    sent = sent_of(stack, i)
    while sent.next != 0:
        j = sent.next
        behind = sent_of(stack, j)
        if sent.len + behind.len > limit or sent.marks & Mark.FIN:
            return
        if behind.marks & (Mark.LOST | Mark.RETRANS) != Mark.LOST:
            return
        sent.len += behind.len
        sent.marks |= behind.marks
        sent.next = behind.next
        if tcb.tq_tail == j:
            tcb.tq_tail = i
        entry_free(stack, j)


@inline_kernel
def tq_forget(tcb: Tcb, sent: Sent, length: int) -> None:
    """``length`` bytes of an entry have arrived: they are neither lost nor sent again any more."""
    if sent.marks & Mark.SACKED:
        tcb.sacked -= length
    if sent.marks & Mark.LOST:
        tcb.lost -= length
    if sent.marks & Mark.RETRANS:
        tcb.retrans -= length


@kernel
def tq_clear(stack: StackRecord, tcb: Tcb) -> None:
    """Forget all that is in flight: the connection is over."""
    i = tcb.tq_head
    while i != 0:
        following = sent_of(stack, i).next
        entry_free(stack, i)
        i = following
    tcb.tq_head = tcb.tq_tail = tcb.sacked = tcb.lost = tcb.retrans = 0


@inline_kernel
def mark_lost(tcb: Tcb, sent: Sent) -> None:
    """Take an entry, or what was sent again of it, for lost."""
    if sent.marks & Mark.RETRANS:
        tcb.retrans -= sent.len
        sent.marks &= ~Mark.RETRANS
    elif sent.marks & Mark.LOST == 0:
        tcb.lost += sent.len
        sent.marks |= Mark.LOST
