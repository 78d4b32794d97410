"""Header prediction: what is plain of a batch, without Python (kernels).

What is not plain goes on the slow list for the state machine.
"""

from __future__ import annotations

from netmem.base.headers import ACK, PSH
from netmem.base.jit import inline_kernel, kernel
from netmem.base.record import Word
from netmem.inet.tcp.queue import tcp_data
from netmem.inet.tcp.recovery import advance_una
from netmem.inet.tcp.rtt import arm
from netmem.inet.tcp.table import lookup, touch
from netmem.inet.tcp.tcb import Flag, StackRecord, Tcb, TcpState, seq_diff, seq_le, seq_lt, tcb_of
from netmem.inet.tcp.window import came, pressure, reclaim, trim
from netmem.netdev.batch import BatchRecord, Kind, Shared, head_of, row_of


@inline_kernel
def on_loan(stack: StackRecord, batch: BatchRecord) -> None:
    """The batch's payload buffers can still be received into: what the stack leaves is posted again."""
    account = stack.accounts[stack.queue]
    pool = account.pool
    n = 0
    for i in range(batch.used):
        row = row_of(batch, i)
        own = row.netmem != 0 and row.shared != Shared.BEHIND
        if own or (row.header_netmem != 0 and row.header_pool == pool):
            n += 1
    account.available += n
    trim(stack, stack.queue)
    if pressure(account):
        reclaim(stack)


@kernel
def tcp_rx(stack: StackRecord, batch: BatchRecord) -> int:
    """Header prediction for a batch; returns how many packets went on the slow list."""
    stack.touched = 0
    stack.slow = 0
    slow = 0
    number = stack.batch
    on_loan(stack, batch)
    for n in range(batch.head_count):
        i = head_of(batch, n)
        row = row_of(batch, i)
        c = -1
        fast = False
        if row.kind == Kind.TCP:
            stack.counters.in_segs += 1
            c = lookup(stack, row.src_hi, row.src, row.dst_hi, row.dst, row.ports)
            if c >= 0:
                tcb = tcb_of(stack, c)
                if tcb.slow_in != number and tcb.state == TcpState.ESTABLISHED:
                    fast = predict(stack, tcb, batch, i)
        if not fast:
            if c >= 0:
                tcb_of(stack, c).slow_in = number
            Word.nth(stack.slow_list, slow).value = i
            slow += 1
    stack.slow = slow
    return slow


@inline_kernel
def predict(stack: StackRecord, tcb: Tcb, batch: BatchRecord, i: int) -> bool:
    """One packet of an established connection; False: not plain, leave it to the state machine."""
    row = row_of(batch, i)
    length, ack, seq = row.len, row.ack, row.seq
    if row.tcp_flags & ~PSH != ACK or seq != tcb.rcv_nxt or tcb.oq_head != 0:
        return False
    if tcb.flags & (Flag.RECOVERY | Flag.LOSS | Flag.FIN_SEEN | Flag.ABORTED) or tcb.queue != stack.queue:
        return False
    if row.sack != 0 or tcb.sacked != 0 or tcb.tlp_end >= 0 or tcb.dupacks != 0:
        return False
    if seq_lt(ack, tcb.snd_una) or seq_lt(tcb.snd_nxt, ack):
        return False
    if length > seq_diff(tcb.rcv_adv, seq):
        return False
    wnd = row.window << tcb.snd_scale
    if length == 0 and ack == tcb.snd_una and (wnd == tcb.snd_wnd or wnd == 0):
        return False  # a duplicate acknowledgement, or an answer to a probe
    if tcb.flags & Flag.TS:
        if row.has_timestamp == 0 or seq_lt(row.tsval, tcb.ts_recent):
            return False
        if seq_le(seq, tcb.last_ack_sent):
            tcb.ts_recent, tcb.ts_recent_at = row.tsval, stack.now
    tcb.last_in = stack.now
    if ack != tcb.snd_una:
        advance_una(stack, tcb, ack, row.tsecr if row.has_timestamp != 0 else -1)
    if seq_lt(tcb.snd_wl1, seq) or (tcb.snd_wl1 == seq and seq_le(tcb.snd_wl2, ack)):
        tcb.snd_wnd, tcb.snd_wl1, tcb.snd_wl2 = wnd, seq, ack
        tcb.max_snd_wnd = max(tcb.max_snd_wnd, wnd)
        if wnd != 0 and tcb.timers.persist != 0:
            tcb.timers.persist = tcb.backoff = 0
    touch(stack, tcb)
    stack.counters.in_fast += 1
    if length > 0:
        before = tcb.rcv_nxt
        tcp_data(stack, tcb, batch, i)
        received(stack, tcb, seq_diff(tcb.rcv_nxt, before))
    return True


@kernel
def received(stack: StackRecord, tcb: Tcb, length: int) -> None:
    """Data came in: account for it, decide when to acknowledge."""
    if length <= 0:
        tcb.flags |= Flag.ACK_NOW
        return
    tcb.data_at = stack.now
    came(stack, tcb, length)
    tcb.ack_pending += length
    if tcb.ack_pending >= 2 * tcb.rcv_mss:
        tcb.flags |= Flag.ACK_NOW
    elif tcb.timers.delack == 0:
        tcb.timers.delack = stack.now + stack.delack_ns
        arm(stack, tcb.timers.delack)
