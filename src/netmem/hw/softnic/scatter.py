"""Frames from a TAP interface straight into posted buffers, where queue and header length can be guessed.

A flow that sends much sends again: the frame after one of 64 KiB is expected on the same queue, with
headers as long. It is read with its payload going to that queue's next buffers, and only then looked at. A
wrong guess costs a copy; a frame that nothing was guessed for costs one too. Flows are told apart by hash.
"""

from __future__ import annotations

from netmem.base.dma import DmaDirection
from netmem.base.headers import IP_MAX
from netmem.base.jit import kernel
from netmem.base.native import memcpy, readv, store_release
from netmem.base.record import address_of, clear
from netmem.hw.softnic.copies import first_frame, no_room, to_memory
from netmem.hw.softnic.kernels import nic_done, nic_header, nic_rx
from netmem.hw.softnic.look import look
from netmem.hw.softnic.regs import HDS_ON, Bar, Rxs
from netmem.hw.softnic.ring import buffers_to, open_buffer, posted_to, rx_desc, translate
from netmem.hw.softnic.state import NicState
from netmem.hw.tap.kernels import (
    IOV_MAX,
    SLOT_BYTES,
    SLOTS,
    VNET_BYTES,
    ZEROS,
    Iovec,
    TapRecord,
    iovec,
    next_slot,
    tap_row,
    tap_rx,
)
from netmem.hw.wire import FQ_TAIL, FrameQueueRecord, FrameRow, frame_of


@kernel
def landing(nic: NicState, tap: TapRecord) -> int:
    """Point the read vector at the places that the expected frame would go to; how many, 0: do not.

    The first is behind what its flow brought before, where that buffer has room; the others are new buffers.
    """
    queue = nic.land_queue - 1
    if queue < 0:
        return 0
    q, work = Bar.at(nic.bar).rxq[queue], nic.rxq[queue]
    at = work.fetch
    buflen = q.buf_len
    count = (IP_MAX + buflen - 1) // buflen
    left = open_buffer(work, nic.land_hash)
    if work.ring == 0 or q.hds != HDS_ON or q.merge == 0 or q.header_len < nic.land_header:
        return 0
    if count + 4 > IOV_MAX or 2 * count > work.mask + 1:
        return 0
    if posted_to(q) == work.head or buffers_to(q) - at < count:
        return 0
    if translate(nic, rx_desc(work, work.head).header, nic.land_header, DmaDirection.FROM_DEVICE) == 0:
        return 0
    first, nic.land_room, open_map = 2, 0, -1
    if left.flow == nic.land_hash + 1 and left.room > 0:
        host = translate(nic, left.io, left.room, DmaDirection.FROM_DEVICE)
        if host == 0:
            return 0
        iovec(tap, first, host, left.room)
        open_map = nic.last_map
        first, nic.land_room = first + 1, left.room
    for i in range(count):
        host = translate(nic, rx_desc(work, at + i).packet, buflen, DmaDirection.FROM_DEVICE)
        if host == 0 or (i > 0 and nic.last_map != nic.land_map):
            return 0
        nic.land_map = nic.last_map
        iovec(tap, first + i, host, buflen)
    return first + count - 2 if open_map in (-1, nic.land_map) else 0


@kernel
def collect(tap: TapRecord, slot: int, header: int, size: int) -> None:
    """A wrong guess: payload from the buffers it was read to behind its headers."""
    at, i = slot + header, 2
    while size > 0:
        piece = Iovec.nth(tap.iov, i)
        take, host = min(size, piece.len), piece.base
        memcpy(at, host, take)
        for done in range(0, take, ZEROS):  # it may be somebody else's memory: leave nothing there
            memcpy(host + done, tap.zeros, min(ZEROS, take - done))
        at, size, i = at + take, size - take, i + 1


@kernel
def expect(nic: NicState, frame: FrameRow) -> None:
    """After a frame: what the next one is guessed to be."""
    if frame.seen != 0 and frame.gso_size > 0 and frame.l4 != 0:
        nic.land_queue, nic.land_header, nic.land_hash = frame.queue + 1, frame.split, frame.hash
    else:
        nic.land_queue = 0


@kernel
def scatter_step(nic_at: int, now: int, budget: int) -> int:
    """Take up to ``budget`` frames from the interface; packets delivered or dropped."""
    nic = NicState.at(nic_at)
    bar, tap, queue = Bar.at(nic.bar), TapRecord.at(nic.tap), FrameQueueRecord.at(nic.rx)
    handled = 0
    for _ in range(budget):
        if first_frame(nic, queue) < queue.tail:
            handled += nic_rx(nic, now)
            if queue.tail - queue.head >= SLOTS >> 1:
                break  # the wire is held
        frame = frame_of(queue, queue.tail)
        count = 0
        if no_room(nic):
            break
        if queue.head == queue.tail:
            count = landing(nic, tap)
        if count == 0:
            if not tap_rx(tap, frame):
                break
            queue.tail += 1
            handled += nic_rx(nic, now)
            expect(nic, frame)
            continue
        slot, header = next_slot(tap), nic.land_header
        iovec(tap, 0, tap.vnet, VNET_BYTES)
        iovec(tap, 1, slot, header)
        iovec(tap, 2 + count, slot + header + IP_MAX, SLOT_BYTES - header - IP_MAX)
        size = readv(tap.fd, tap.iov, 3 + count) - VNET_BYTES
        if size <= 0:
            break
        tap_row(tap, frame, slot, size, min(size, header))
        if frame.payload_len > 0 and frame.flags != 0 and frame.gso_size > 0:
            look(nic, frame)
            fits = header - frame.l3 + frame.gso_size <= bar.mtu and frame.payload_len + header <= IP_MAX
            same = frame.queue == nic.land_queue - 1 and frame.hash == nic.land_hash
            if frame.l4 != 0 and frame.split == header and same and fits:
                nic_landed(nic, tap, frame)
                nic.landed += 1
                handled += 1
                continue
        if frame.payload_len > 0:
            collect(tap, slot, header, frame.payload_len)
            nic.mislanded += 1
        gso, flags = frame.gso_size, frame.flags
        clear(frame)
        frame.header, frame.header_len, frame.gso_size, frame.flags = slot, size, gso, flags
        queue.tail += 1
        handled += nic_rx(nic, now)
        expect(nic, frame)
    store_release(address_of(queue) + FQ_TAIL, queue.tail)
    return handled


@kernel
def nic_landed(nic: NicState, tap: TapRecord, frame: FrameRow) -> None:
    """The payload lies where it belongs: its headers, and the descriptors."""
    bar = Bar.at(nic.bar)
    q, work = bar.rxq[frame.queue], nic.rxq[frame.queue]
    size = frame.payload_len
    host = translate(nic, rx_desc(work, work.head).header, frame.split, DmaDirection.FROM_DEVICE)
    nic_header(frame, host, size, True)
    q.split_hit += 1
    segments = (size + frame.gso_size - 1) // frame.gso_size
    bar.counters.rx_frames += segments
    bar.counters.rx_bytes += segments * frame.split + size
    buflen, follow = q.buf_len, min(nic.land_room, size)
    need = (size - follow + buflen - 1) // buflen
    left, i = size, 2
    while left > 0:
        piece = Iovec.nth(tap.iov, i)
        to_memory(nic, nic.land_map, piece.base, min(left, piece.len))
        left, i = left - piece.len, i + 1
    nic_done(nic, frame, need, frame.split, frame.status | Rxs.SPH, size, follow)
