"""Descriptors and memory as the software NIC reaches them: rings, mappings, buffers left open (kernels)."""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load_acquire
from netmem.base.record import address_of
from netmem.hw.softnic.regs import OPEN_BUFFERS, Q_BUF_TAIL, Q_TAIL, QueueRegs, RxDesc, Rxs, TxDesc
from netmem.hw.softnic.state import NicState, OpenBuffer, QueueWork
from netmem.hw.wire import FrameRow

OPEN_LEAST = 32  # posted buffers, below which none is left open


@inline_kernel
def rx_desc(work: QueueWork, i: int) -> RxDesc:
    """Receive descriptor ``i``."""
    return RxDesc.nth(work.ring, i & work.mask)


@inline_kernel
def tx_desc(work: QueueWork, i: int) -> TxDesc:
    """Transmit descriptor ``i``."""
    return TxDesc.nth(work.ring, i & work.mask)


@inline_kernel
def buffers_to(q: QueueRegs) -> int:
    """How many packet buffers the driver has posted to a receive queue so far."""
    return load_acquire(address_of(q) + Q_BUF_TAIL)


@inline_kernel
def open_buffer(work: QueueWork, flow: int) -> OpenBuffer:
    """The buffer that may have been left open for a flow's hash."""
    return work.open[flow & (OPEN_BUFFERS - 1)]


@inline_kernel
def behind(q: QueueRegs, work: QueueWork, frame: FrameRow, size: int) -> int:
    """How many of a packet's ``size`` payload bytes go behind what its flow brought before."""
    left = open_buffer(work, frame.hash)
    return min(left.room, size) if q.merge != 0 and left.flow == frame.hash + 1 else 0


@inline_kernel
def posted_to(q: QueueRegs) -> int:
    """How many descriptors the driver has posted to a queue so far."""
    return load_acquire(address_of(q) + Q_TAIL)


@kernel
def translate(nic: NicState, io: int, n: int, direction: int) -> int:
    """Host address of ``n`` bytes at an I/O address, 0 when nobody mapped them so."""
    last = nic.last_map
    for i in range(-1, nic.maps_used):
        m = last if i < 0 else i
        if m >= nic.maps_used:
            continue
        mapped = nic.maps[m]
        if mapped.io <= io and io + n <= mapped.io + mapped.length:
            if mapped.direction != 0 and mapped.direction != direction:
                return 0
            nic.last_map = m
            return mapped.host + io - mapped.io
    return 0


@kernel
def host_address(nic_at: int, io: int, n: int, direction: int) -> int:
    """``translate``, for Python."""
    return translate(NicState.at(nic_at), io, n, direction)


@inline_kernel
def keep_open(
    q: QueueRegs, work: QueueWork, frame: FrameRow, need: int, status: int, own: int, follow: int
) -> int:
    """Note where more of a frame's flow would go, after ``own`` bytes in ``need`` buffers; Rxs.OPEN or 0.

    While few buffers are posted none is kept: who has little memory needs it for all flows.
    """
    left = open_buffer(work, frame.hash)
    if own == 0:
        left.io += follow
        left.room -= follow
        return 0
    last = work.fetch + need - 1
    used = own - (need - 1) * q.buf_len
    room = q.buf_len - used
    left.flow = left.room = 0
    if q.merge == 0 or status & Rxs.SPH == 0 or room == 0 or buffers_to(q) - last <= OPEN_LEAST:
        return 0
    left.flow, left.io, left.room = frame.hash + 1, rx_desc(work, last).packet + used, room
    return int(Rxs.OPEN)
