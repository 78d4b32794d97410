"""What a wake-up does, top to bottom, in one call of compiled code (kernels).

``stack_poll`` polls the receive queues (``netdev.napi``), whose batches come to ``inet_receive``; then it
opens windows and lets the driver send. It comes back early when a queue needs Python, with its Stage, and
at the end with bits of After for what else Python has to do.
"""

from __future__ import annotations

import enum

from netmem.base.jit import inline_kernel, kernel
from netmem.inet.tcp.fastpath import tcp_rx
from netmem.inet.tcp.output import tcp_flush, window_updates
from netmem.inet.tcp.tcb import MAX_QUEUES, StackRecord
from netmem.inet.tcp.window import trim
from netmem.inet.udp.kernels import udp_batch
from netmem.netdev.batch import BatchRecord
from netmem.netdev.napi import NapiRecord, PollRecord, Stage, available, net_rx_action, net_tx_action


class After(enum.IntEnum):
    """What Python has to do after all queues were polled: bits, above the values of Stage."""

    TIMERS = 16  # a timer has run out
    RELEASES = 32  # netmems to put back
    ZEROCOPY = 64  # sends from device memory to look after
    REAP = 128  # it is time to look for pools that came to their end
    XMIT = 256  # rows wait, and the driver was not called
    NOTIFY = 512  # rows were posted: the driver has to tell the device


@kernel
def inet_receive(at: int, batch_at: int, poll_at: int) -> int:
    """A batch: header prediction, datagrams, answers; packets left for Python, on the slow list."""
    poll = PollRecord.at(poll_at)
    napi = NapiRecord.nth(poll.napis, poll.current)
    return take_batch(at, batch_at, napi.queue, available(napi.pool))


@kernel
def take_batch(at: int, batch_at: int, queue: int, free: int) -> int:
    """``inet_receive`` for a queue whose pool can still receive into ``free`` buffers."""
    stack, batch = StackRecord.at(at), BatchRecord.at(batch_at)
    account = stack.accounts[queue]
    stack.batch += 1
    stack.queue = queue
    stack.by_token = account.by_token
    account.available = free
    left = tcp_rx(stack, batch)
    if left > 0:
        left = udp_batch(stack, batch)
    if left == 0 and stack.touched > 0:
        tcp_flush(stack)
    return left


@inline_kernel
def refresh_credits(stack: StackRecord, poll: PollRecord) -> None:
    """What the pools have by now."""
    for i in range(min(poll.count, MAX_QUEUES)):
        napi = NapiRecord.nth(poll.napis, i)
        stack.accounts[i].available = available(napi.pool)
        trim(stack, i)


@kernel
def credits(poll_at: int) -> None:
    """``refresh_credits``, for Python."""
    poll = PollRecord.at(poll_at)
    refresh_credits(StackRecord.at(poll.protocol), poll)


@kernel
def stack_poll(at: int) -> int:
    """All that there is to do, from where the poll was left; a Stage, or bits of After, 0: all is done."""
    stage = net_rx_action(at)
    if stage != Stage.DONE:
        return stage
    poll = PollRecord.at(at)
    stack = StackRecord.at(poll.protocol)
    after = 0
    if poll.total > 0 or stack.starved > 0:
        refresh_credits(stack, poll)  # no buffer is on loan any more, and what was pruned is back
    if stack.starved > 0:
        window_updates(stack)
    if stack.now >= stack.timer:
        after |= After.TIMERS
    if stack.releases > 0:
        after |= After.RELEASES
    if stack.zc_head != 0:
        after |= After.ZEROCOPY
    if stack.now >= stack.reap_at:
        after |= After.REAP
    if poll.running == 0:
        return after
    if after != 0 or poll.stops != 0:
        return after | int(After.XMIT)  # what Python does may add rows
    return int(After.NOTIFY) if net_tx_action(at) != 0 else 0
