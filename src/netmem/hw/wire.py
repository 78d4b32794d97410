"""What the far side of a NIC is plugged into: frames in, frames out, each with metadata.

The metadata is that of virtio-net's header: whether the checksum is known good or still to be
made, and a segment size for frames larger than the MTU. A frame is up to three pieces of memory by
host address; whoever produces it keeps the memory until the frame was taken.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Iterator
from typing import Annotated, Protocol

from netmem.base.jit import inline_kernel
from netmem.base.record import Items, Record, clear, field_offset, i64

FQ_FRAMES = 256


class Frame(enum.IntEnum):
    """Bits of FrameRow.flags."""

    CSUM_OK = 1  # checksum known good, or the sender's memory is trusted (virtio DATA_VALID)
    NEEDS_CSUM = 2  # checksum still to be filled in (virtio NEEDS_CSUM)


class FrameRow(Record):
    """A frame on its way. Its pieces are host addresses and their bytes."""

    header: i64  # first piece: at least all headers
    header_len: i64
    payload: i64
    payload_len: i64
    payload2: i64
    payload2_len: i64
    flags: i64  # Frame bits
    gso_size: i64  # payload bytes of a segment, 0: one frame
    descriptors: i64  # transmit descriptors behind the frame, 0 when it came from outside
    txq: i64
    # Filled by the receiving NIC when it first looks at the frame.
    seen: i64
    split: i64  # header bytes
    l3: i64  # offset of the IP header, 0: not IP
    l4: i64  # offset of the TCP or UDP header, 0: neither
    queue: i64
    hash: i64
    status: i64  # checksum bits for the descriptor
    total: i64  # payload bytes
    done: i64  # payload bytes delivered
    segments: i64  # segments delivered
    _unused: Annotated[Items[int], ctypes.c_int64 * 4]


class FrameQueueRecord(Record):
    """A ring of frame rows; head and tail run on, on cache lines of their own."""

    head: i64  # frames taken
    rows: i64  # address of FrameRow 0
    _head: Annotated[Items[int], ctypes.c_int64 * 6]
    tail: i64  # frames offered
    _tail: Annotated[Items[int], ctypes.c_int64 * 7]


FQ_HEAD = field_offset(FrameQueueRecord, "head")
FQ_TAIL = field_offset(FrameQueueRecord, "tail")


@inline_kernel
def frame_of(queue: FrameQueueRecord, n: int) -> FrameRow:
    """The ``n``-th frame ever."""
    return FrameRow.nth(queue.rows, n & (FQ_FRAMES - 1))


class FrameQueue:
    """Frames on their way in one direction: ``record``, ``at`` its address, and the rows behind it."""

    def __init__(self) -> None:
        self._rows = (FrameRow * FQ_FRAMES)()
        self.record = FrameQueueRecord(rows=ctypes.addressof(self._rows))
        self.at = ctypes.addressof(self.record)

    def __len__(self) -> int:
        return self.record.tail - self.record.head

    def row(self, n: int) -> FrameRow:
        """The ``n``-th frame ever."""
        return self._rows[n % FQ_FRAMES]

    def waiting(self) -> Iterator[FrameRow]:
        """The frames that were not taken, in order."""
        return (self.row(n) for n in range(self.record.head, self.record.tail))

    def room(self) -> int:
        """Frames that can still be offered."""
        return FQ_FRAMES - len(self)

    def offer(
        self, hdr: int, hlen: int, *, pay: int = 0, plen: int = 0, flags: int = 0, gso: int = 0
    ) -> bool:
        """Add one frame by address; False when the queue is full."""
        if not self.room():
            return False
        frame = self.row(self.record.tail)
        clear(frame)
        frame.header, frame.header_len, frame.payload, frame.payload_len = hdr, hlen, pay, plen
        frame.flags, frame.gso_size = flags, gso
        self.record.tail += 1
        return True


class Wire(Protocol):
    """A NIC takes frames from ``rx`` and offers those it sends on ``tx``."""

    rx: FrameQueue
    tx: FrameQueue
    tap: int
    """Address of the TapRecord of a wire that leaves reading and writing to the NIC (``TapWire``), else 0."""

    def exchange(self, now: int) -> bool:
        """Move frames between the queues and what lies behind them; True when any moved."""

    def filenos(self) -> list[int]:
        """Descriptors whose readiness means that there is something to exchange."""

    def close(self) -> None:
        """Unplug."""


class CableEnd:
    """One end of a cable: what this NIC sends is what the other receives."""

    tap = 0

    def __init__(self, rx: FrameQueue, tx: FrameQueue) -> None:
        self.rx, self.tx = rx, tx

    def exchange(self, now: int) -> bool:
        """Nothing to move: both ends look at the same queues."""
        return False

    def filenos(self) -> list[int]:
        return []

    def close(self) -> None:
        """A cable has nothing to close."""


def cable() -> tuple[CableEnd, CableEnd]:
    """A cable's two ends."""
    there, back = FrameQueue(), FrameQueue()
    return CableEnd(there, back), CableEnd(back, there)
