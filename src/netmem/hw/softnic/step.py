"""The software NIC's rounds of work: frames in, frames out, interrupts (kernels)."""

from __future__ import annotations

import enum

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import (
    fence,
    load_acquire,
    monotonic_ns,
    sched_yield,
    store_release,
    writev,
)
from netmem.base.record import address_of, field_offset
from netmem.hw.softnic.copies import first_frame, is_waiting
from netmem.hw.softnic.kernels import nic_rx, tx_step
from netmem.hw.softnic.regs import Bar
from netmem.hw.softnic.scatter import scatter_step
from netmem.hw.softnic.state import NicState
from netmem.hw.tap.kernels import tap_tx
from netmem.hw.wire import FQ_TAIL, FrameQueueRecord

SCATTER_BUDGET = 32  # frames
FEW, MANY = 2, 16  # segments in the longest time that is gathered for
GATHER_LEAST_NS = 8_000
GENERATION = field_offset(Bar, "generation")
HELD = field_offset(Bar, "held")
IRQ_IOV = field_offset(NicState, "irq_at")


class Step(enum.IntEnum):
    """What a round came to: bits."""

    MOVED = 1
    CONFIGURE = 2  # nothing was done: the driver has changed what only Python looks at
    COPY = 4  # a copy engine has something to do, or is at work


@inline_kernel
def adapt(nic: NicState, bar: Bar, now: int) -> None:
    """Gather for twice as long where ``itr_ns`` would bring many segments, half as long where few."""
    segments = bar.counters.rx_frames - nic.told
    expected = segments * bar.itr_ns // max(now - nic.last_irq, 1)
    nic.told += segments
    if expected >= MANY:
        nic.gather_ns = min(max(2 * nic.gather_ns, GATHER_LEAST_NS), bar.itr_ns)
    elif expected <= FEW:
        nic.gather_ns >>= 1


@inline_kernel
def nic_interrupt(nic: NicState, now: int) -> None:
    """Wake the driver if it waits, for what was delivered since the last time."""
    if nic.pending == 0:
        return
    bar = Bar.at(nic.bar)
    adapt(nic, bar, now)
    nic.pending, nic.last_irq = 0, now
    fence()
    if bar.irq_armed != 0:
        bar.irq_armed = 0
        bar.counters.irq += 1
        writev(nic.irq_fd, address_of(nic) + IRQ_IOV, 1)


@kernel
def interrupt(nic_at: int, now: int) -> None:
    """``nic_interrupt``, for Python."""
    nic_interrupt(NicState.at(nic_at), now)


@kernel
def nic_step(nic_at: int, now: int) -> int:
    """Do what there is to do on rings and wire; bits of Step."""
    nic = NicState.at(nic_at)
    bar = Bar.at(nic.bar)
    if load_acquire(nic.bar + GENERATION) != nic.generation:
        return int(Step.CONFIGURE)
    got = 0
    if nic.tap != 0:
        got = scatter_step(nic_at, now, SCATTER_BUDGET)
    else:
        queue = FrameQueueRecord.at(nic.rx)
        if first_frame(nic, queue) < load_acquire(address_of(queue) + FQ_TAIL):
            got = nic_rx(nic, now)
    held = 1 if nic.paused_at != 0 else 0
    if bar.held != held:
        store_release(nic.bar + HELD, held)
        fence()
    sent = tx_step(nic_at)
    if nic.tap != 0:
        sent += tap_tx(nic.tap, nic.tx)
    if got > 0:
        nic.pending = 1
    if is_waiting(nic):
        return int(Step.MOVED | Step.COPY)  # the driver is told when all is there
    gather = min(nic.gather_ns, bar.itr_ns) if bar.adaptive != 0 else bar.itr_ns
    if nic.pending != 0 and now - nic.last_irq >= gather:
        nic_interrupt(nic, now)
    return int(Step.MOVED) if got + sent > 0 else 0


@kernel
def nic_run(nic_at: int, spin_ns: int, most_ns: int) -> int:
    """Rounds of a NIC whose wire is a TAP, until nothing moved for ``spin_ns``, for at most ``most_ns``.

    The last round's bits of Step: MOVED when there may be more to do.
    """
    start = busy = now = monotonic_ns()
    while now - start < most_ns:
        did = nic_step(nic_at, now)
        if did & (Step.CONFIGURE | Step.COPY):
            return did
        now = monotonic_ns()
        if did:
            busy = now
        elif now - busy >= spin_ns:
            return 0
        else:
            sched_yield()
    return int(Step.MOVED)
