"""What Python calls of TCP's kernels: ``at`` is the address of a StackRecord, ``c`` a connection's number."""

from __future__ import annotations

from netmem.base.arena import Words
from netmem.base.jit import kernel
from netmem.base.record import Word
from netmem.inet.tcp import (
    fastpath,
    output,
    queue,
    recovery,
    rtt,
    sack,
    scoreboard,
    segment,
    spans,
    table,
    window,
)
from netmem.inet.tcp.entries import entry_free
from netmem.inet.tcp.tcb import Flag, StackRecord, account_of, entry_of, seq_diff, tcb_of
from netmem.netdev.batch import BatchRecord

# -- the table ------------------------------------------------------------------------------------


@kernel
def lookup(at: int, raddr_hi: int, raddr: int, laddr_hi: int, laddr: int, ports: int) -> int:
    """The number of a connection, or -1."""
    return table.lookup(StackRecord.at(at), raddr_hi, raddr, laddr_hi, laddr, ports)


@kernel
def begin(at: int, c: int) -> None:
    """A connection's block was filled in: it can be found from now on."""
    stack = StackRecord.at(at)
    window.demand_start(stack, tcb_of(stack, c))
    table.hash_insert(stack, tcb_of(stack, c))
    stack.rows = max(stack.rows, c + 1)


@kernel
def end(at: int, c: int) -> None:
    """A connection is not to be found any more, and has nothing in flight and no buffers pledged."""
    stack = StackRecord.at(at)
    tcb = tcb_of(stack, c)
    forget_sent(at, c)
    window.pledge(stack, tcb, 0)
    table.hash_remove(stack, tcb)


@kernel
def forget_sent(at: int, c: int) -> None:
    """Nothing is in flight any more; device memory that was, is over when the NIC reads it no more."""
    stack = StackRecord.at(at)
    tcb = tcb_of(stack, c)
    scoreboard.tq_clear(stack, tcb)
    spans.spans_acked(stack, tcb, True)


@kernel
def drop_queued(at: int, c: int, limit: int) -> bool:
    """Note up to ``limit`` queued pieces of a connection for release. False: there are more."""
    stack = StackRecord.at(at)
    tcb = tcb_of(stack, c)
    dropped = 0
    while (tcb.rq_head != 0 or tcb.oq_head != 0) and dropped < limit:
        i = tcb.rq_head if tcb.rq_head != 0 else tcb.oq_head
        entry = entry_of(stack, i)
        if tcb.rq_head != 0:
            tcb.rq_head = entry.next
        else:
            tcb.oq_head = entry.next
        queue.release_later(stack, entry.netmem, entry.pool)
        entry_free(stack, i)
        dropped += 1
    if tcb.rq_head != 0 or tcb.oq_head != 0:
        return False
    account_of(stack, tcb).ooo -= tcb.oq_bufs
    tcb.rq_tail = tcb.rq_bytes = tcb.rq_bufs = 0
    tcb.oq_tail = tcb.oq_bytes = tcb.oq_bufs = 0
    return True


@kernel
def touch(at: int, c: int) -> None:
    """Put a connection on the list of those that this batch concerned."""
    stack = StackRecord.at(at)
    table.touch(stack, tcb_of(stack, c))


@kernel
def note_active(at: int, c: int) -> None:
    """table.note_active."""
    stack = StackRecord.at(at)
    table.note_active(stack, tcb_of(stack, c))


@kernel
def take_active(at: int, out: Words) -> int:
    """The numbers of the connections noted so, into ``out``; how many."""
    stack = StackRecord.at(at)
    n = min(stack.active, out.shape[0])
    for i in range(n):
        c = Word.nth(stack.active_list, stack.active - 1 - i).value
        out[i] = c
        tcb_of(stack, c).active = 0
    stack.active -= n
    return n


# -- a batch --------------------------------------------------------------------------------------


@kernel
def data_in(at: int, c: int, batch_at: int, i: int) -> int:
    """Payload of packet ``i`` for a connection, as far as it is in sequence; bytes that RCV.NXT moved on."""
    stack = StackRecord.at(at)
    tcb = tcb_of(stack, c)
    before = tcb.rcv_nxt
    queue.tcp_data(stack, tcb, BatchRecord.at(batch_at), i)
    gained = seq_diff(tcb.rcv_nxt, before)
    fastpath.received(stack, tcb, gained)
    return gained


@kernel
def flush(at: int) -> None:
    """output.tcp_flush."""
    output.tcp_flush(StackRecord.at(at))


@kernel
def window_updates(at: int) -> int:
    """output.window_updates."""
    return output.window_updates(StackRecord.at(at))


# -- acknowledgements -----------------------------------------------------------------------------


@kernel
def duplicate_in(at: int, c: int, seq: int, length: int) -> None:
    """A duplicate arrived: the next acknowledgement says so."""
    sack.dsack_note(tcb_of(StackRecord.at(at), c), seq, length)


@kernel
def advance_una(at: int, c: int, ack: int, echo: int) -> None:
    """recovery.advance_una."""
    stack = StackRecord.at(at)
    recovery.advance_una(stack, tcb_of(stack, c), ack, echo)


@kernel
def sack_in(at: int, c: int, option: int, size: int, ack: int, echo: int) -> bool:
    """recovery.sack_in, of the option at a host address."""
    stack = StackRecord.at(at)
    return recovery.sack_in(stack, tcb_of(stack, c), option, size, ack, echo)


@kernel
def after_ack(at: int, c: int, ack: int, advanced: bool, duplicate: bool) -> None:
    """recovery.after_ack."""
    stack = StackRecord.at(at)
    recovery.after_ack(stack, tcb_of(stack, c), ack, advanced, duplicate)


@kernel
def round_trip(at: int, c: int, ns: int) -> None:
    """rtt.update_rtt."""
    rtt.update_rtt(tcb_of(StackRecord.at(at), c), ns)


# -- sending --------------------------------------------------------------------------------------


@kernel
def header(at: int, c: int, seq: int, flags: int) -> int:
    """A segment without payload; its row's number, or -1."""
    stack = StackRecord.at(at)
    return segment.tcp_header(stack, tcb_of(stack, c), seq, flags, 0)


@kernel
def send(at: int, c: int, force: bool) -> int:
    """output.tcp_output."""
    stack = StackRecord.at(at)
    return output.tcp_output(stack, tcb_of(stack, c), force)


@kernel
def acknowledge(at: int, c: int) -> int:
    """output.tcp_ack."""
    stack = StackRecord.at(at)
    return output.tcp_ack(stack, tcb_of(stack, c))


@kernel
def write(at: int, c: int, src: int, length: int) -> int:
    """Copy bytes of the application into the send buffer; how many had room."""
    stack = StackRecord.at(at)
    return output.write_send_buffer(stack, tcb_of(stack, c), src, length)


@kernel
def send_buffer_unused(at: int, c: int) -> bool:
    """output.send_buffer_unused."""
    stack = StackRecord.at(at)
    return output.send_buffer_unused(stack, tcb_of(stack, c))


@kernel
def idle_send_buffer(at: int, first: int) -> int:
    """The next connection from ``first`` on with a send buffer that nobody uses; -1 without."""
    stack = StackRecord.at(at)
    for c in range(first, stack.rows):
        tcb = tcb_of(stack, c)
        if tcb.sb_size > 0 and output.send_buffer_unused(stack, tcb):
            return c
    return -1


@kernel
def add_span(at: int, c: int, io: int, length: int, call: int) -> int:
    """spans.add_span."""
    stack = StackRecord.at(at)
    return spans.add_span(stack, tcb_of(stack, c), io, length, call)


@kernel
def note_sent(at: int, call: int, mark: int) -> bool:
    """spans.note_sent."""
    return spans.note_sent(StackRecord.at(at), call, mark)


@kernel
def spans_done(at: int, out: Words) -> int:
    """spans.spans_done."""
    return spans.spans_done(StackRecord.at(at), out)


# -- timers ---------------------------------------------------------------------------------------


@kernel
def timers_due(at: int, out: Words) -> int:
    """output.tcp_timers."""
    return output.tcp_timers(StackRecord.at(at), out)


@kernel
def timed_out(at: int, c: int) -> None:
    """recovery.timed_out."""
    stack = StackRecord.at(at)
    recovery.timed_out(stack, tcb_of(stack, c))


@kernel
def overtaken(at: int, c: int) -> None:
    """RFC 8985, 6.3: what was overtaken for too long is lost."""
    stack = StackRecord.at(at)
    tcb = tcb_of(stack, c)
    if recovery.rack_detect(stack, tcb) and tcb.flags & (Flag.RECOVERY | Flag.LOSS) == 0:
        recovery.enter_recovery(stack, tcb)


@kernel
def loss_probe(at: int, c: int) -> None:
    """output.loss_probe."""
    stack = StackRecord.at(at)
    output.loss_probe(stack, tcb_of(stack, c))


@kernel
def probe(at: int, c: int) -> int:
    """output.tcp_probe."""
    stack = StackRecord.at(at)
    return output.tcp_probe(stack, tcb_of(stack, c))


@kernel
def all_lost(at: int, c: int) -> None:
    """recovery.all_lost."""
    stack = StackRecord.at(at)
    recovery.all_lost(stack, tcb_of(stack, c))


# -- the pool -------------------------------------------------------------------------------------


@kernel
def room(at: int, c: int) -> int:
    """window.room."""
    stack = StackRecord.at(at)
    return window.room(stack, tcb_of(stack, c))


@kernel
def pledge(at: int, c: int, buffers: int) -> None:
    """window.pledge."""
    stack = StackRecord.at(at)
    window.pledge(stack, tcb_of(stack, c), buffers)


@kernel
def pledge_anew(at: int, c: int) -> None:
    """window.pledge_anew."""
    stack = StackRecord.at(at)
    window.pledge_anew(stack, tcb_of(stack, c))


@kernel
def note_starved(at: int, c: int) -> None:
    """window.note_starved."""
    stack = StackRecord.at(at)
    window.note_starved(stack, tcb_of(stack, c))


@kernel
def pledges_wrong(at: int, queues: int) -> int:
    """The first of so many queues whose pledges do not add up, or are more than there is; -1 without."""
    stack = StackRecord.at(at)
    for number in range(queues):
        account = stack.accounts[number]
        each = window.pledged_by(stack, number)
        if each != account.pledged or account.pledged > max(account.available, 0):
            return number
    return -1


@kernel
def trim(at: int, queue: int) -> None:
    """window.trim."""
    window.trim(StackRecord.at(at), queue)
