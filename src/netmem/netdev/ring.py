"""What all drivers' descriptor rings have in common, and what is in their slots."""

from __future__ import annotations

import enum
from typing import Annotated

from netmem.base.jit import inline_kernel
from netmem.base.record import Items, Record, i64

HEADER_BYTES = 256  # of a header buffer
DMA_ALIGN = 64
OPEN_BUFFERS = 4  # of a ring: as many buffers may wait for more of a flow


class Refill(enum.IntEnum):
    """How filling a ring ended: done, or which pool must be refilled first."""

    DONE = 0
    PAYLOAD = 1
    HEADER = 2


class Slot(Record):
    """A payload and a header buffer of a receive ring, by the index of each; netmem 0: none."""

    netmem: i64
    offset: i64
    header_netmem: i64
    header_offset: i64


class OpenBuffer(Record):
    """A buffer that its device has not filled: more of a flow may follow. The ring holds a reference."""

    netmem: i64  # 0: none
    offset: i64  # of the next byte
    room: i64  # bytes


class QueueCounters(Record):
    """What a receive queue saw; they go on when it gets new memory."""

    packets: i64
    bytes: i64
    hds_hit: i64  # headers split off
    hds_miss: i64
    starved: i64  # refills that ended for want of memory


class RxRingRecord(Record):
    """A receive ring: the device moves its head, we move the tail. ``mask`` makes slots of indexes."""

    desc: i64  # host address of the descriptors
    mask: i64
    next_to_clean: i64
    next_to_use: i64
    buf_clean: i64  # the same of payload buffers, where the device takes them by an index of their own
    buf_use: i64
    slots: i64  # address of Slot 0
    queue: i64
    pool: i64  # addresses of the payload and the header pool's PoolRecord
    header_pool: i64
    pool_handle: i64  # as received buffers name them
    header_pool_handle: i64
    buf_len: i64  # bytes of a payload buffer
    header_len: i64  # bytes of a header buffer, 0: no header split
    tail: i64  # the driver's own: where its device's tail is, or what it was told
    regs: i64  # the driver's own: where its device's registers are
    counters: Annotated[QueueCounters, QueueCounters]
    open: Annotated[Items[OpenBuffer], OpenBuffer * OPEN_BUFFERS]


class TxRingRecord(Record):
    """A transmit ring."""

    desc: i64  # host address of the descriptors
    mask: i64
    next_to_clean: i64
    next_to_use: i64
    tail: i64  # the driver's own
    regs: i64  # the driver's own
    queue: i64  # address of the TxQueueRecord whose rows it takes


@inline_kernel
def slot_of(ring: RxRingRecord, i: int) -> Slot:
    """The slot behind descriptor ``i``."""
    return Slot.nth(ring.slots, i & ring.mask)
