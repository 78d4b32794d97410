"""What the software NIC keeps for itself."""

from __future__ import annotations

import ctypes
from typing import Annotated

from netmem.base.record import Items, Record, i64
from netmem.hw.softnic.regs import MAX_QUEUES, OPEN_BUFFERS

HASH_BYTES = 36  # two IPv6 addresses and two ports
MAX_MAPS = 256
COPIES = 2048  # copies, and completions, that a copy engine can be left with in one go
COPIES_LEAST = 64  # with room for fewer no more work is begun


class DmaMap(Record):
    """A DMA mapping."""

    io: i64
    length: i64
    host: i64
    direction: i64  # DmaDirection
    far: i64  # address for the copy engine, where ``host`` is its staging; 0: ``host`` is the memory itself


class OpenBuffer(Record):
    """The part of a packet buffer that is left for more of a flow."""

    flow: i64  # its hash + 1, 0: none
    io: i64  # I/O address of the next byte
    room: i64  # bytes


class QueueWork(Record):
    """Where the device is in a queue's ring."""

    ring: i64  # host address of the ring, 0: not running
    mask: i64
    head: i64
    dry: i64  # tail + 1 at which the queue was found dry, 0: it was not
    fetch: i64  # descriptors (transmit), packet buffers (receive) taken from the ring
    open: Annotated[Items[OpenBuffer], OpenBuffer * OPEN_BUFFERS]


class CopyQueue(Record):
    """What a copy engine has to do in one go, and what is told when that is done."""

    copies: i64
    to: Annotated[Items[int], ctypes.c_int64 * COPIES]  # addresses
    source: Annotated[Items[int], ctypes.c_int64 * COPIES]
    size: Annotated[Items[int], ctypes.c_int64 * COPIES]  # bytes
    told: i64
    tell_at: Annotated[Items[int], ctypes.c_int64 * COPIES]  # addresses of descriptors' status words
    tell: Annotated[Items[int], ctypes.c_int64 * COPIES]  # ... and what is written there
    frames: i64  # frames that go onto the wire
    taken: i64  # frames of the wire, counted from the first ever, that are read no more


class NicState(Record):
    """The device."""

    bar: i64  # address of its Bar
    rx: i64  # addresses of the wire's FrameQueueRecords
    tx: i64
    rx_head: i64  # frames looked at; those of which the copy engine still reads are not taken yet
    near: i64  # host memory that the copy engine reads where it is, up to ``near_end``; 0: none
    near_end: i64
    tap: i64  # address of the TapRecord of a wire that leaves reading to the NIC, 0
    maps_used: i64
    last_map: i64
    paused_at: i64  # when the wire was first held for the frame at its head, 0: it is not
    tx_done: i64  # frames whose descriptors were completed
    land_queue: i64  # queue + 1 that the next frame is expected on, 0: nothing is expected
    land_header: i64  # ... its header bytes, and its flow's hash
    land_hash: i64
    land_map: i64  # the mapping that they lie in
    land_room: i64  # bytes of it that are read behind what the flow brought before
    landed: i64  # frames that were read straight into their buffers, and those that were guessed wrong
    mislanded: i64
    generation: i64  # of the configuration that the device follows
    pending: i64  # 1: the driver is to be told of packets; when it last was, ns, and rx_frames at that time
    last_irq: i64
    told: i64
    gather_ns: i64  # between interrupts, as it adapted to the traffic
    irq_fd: i64
    irq_count: i64  # what is written there: 1
    irq_at: i64  # struct iovec: the word before, 8 bytes
    irq_len: i64
    maps: Annotated[Items[DmaMap], DmaMap * MAX_MAPS]
    rxq: Annotated[Items[QueueWork], QueueWork * MAX_QUEUES]
    txq: Annotated[Items[QueueWork], QueueWork * MAX_QUEUES]
    filling: i64  # the queue of copies that is filled, 0 or 1
    flying: i64  # 1: a copy engine works on the other
    queues: Annotated[Items[CopyQueue], CopyQueue * 2]
    toeplitz: Annotated[Items[int], ctypes.c_int64 * (HASH_BYTES * 256)]  # each value of each input byte
