"""What the far side of a NIC is plugged into: frames in, frames out, each with metadata.

The metadata is that of virtio-net's header: whether the checksum is known good or still to be
made, and a segment size for frames larger than the MTU. A frame is up to three pieces of memory by
host address; whoever produces it keeps the memory until the frame was taken.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from netmem.base.arena import Words

# A frame row, FRAME_WORDS words.
FRAME_WORDS = 24
F_HDR = 0  # first piece: at least all headers
F_HLEN = 1
F_PAY = 2
F_PLEN = 3
F_PAY2 = 4
F_P2LEN = 5
F_FLAGS = 6
F_GSO = 7  # payload bytes of a segment, 0: one frame
F_NDESC = 8  # transmit descriptors behind the frame, 0 when it came from outside
F_TXQ = 9
# Filled by the receiving NIC when it first looks at the frame.
F_SEEN = 10
F_SPLIT = 11  # header bytes
F_L3 = 12  # offset of the IP header, 0: not IP
F_L4 = 13  # offset of the TCP or UDP header, 0: neither
F_QUEUE = 14
F_HASH = 15
F_STATUS = 16  # checksum bits for the descriptor
F_TOTAL = 17  # payload bytes
F_DONE = 18  # payload bytes delivered
F_SEGS = 19  # segments delivered

FRAME_CSUM_OK = 1  # checksum known good, or the sender's memory is trusted (virtio DATA_VALID)
FRAME_NEEDS_CSUM = 2  # checksum still to be filled in (virtio NEEDS_CSUM)

# A queue's state words.
FQ_HEAD = 0  # frames taken
FQ_TAIL = 8  # frames offered
FQ_FRAMES = 256


class FrameQueue:
    """Frames on their way in one direction: a ring of rows with free-running head and tail."""

    def __init__(self) -> None:
        self.state: Words = np.zeros(16, np.int64)
        self.rows: Words = np.zeros((FQ_FRAMES, FRAME_WORDS), np.int64)

    def __len__(self) -> int:
        return int(self.state[FQ_TAIL] - self.state[FQ_HEAD])

    def room(self) -> int:
        """Frames that can still be offered."""
        return FQ_FRAMES - len(self)

    def offer(
        self, hdr: int, hlen: int, *, pay: int = 0, plen: int = 0, flags: int = 0, gso: int = 0
    ) -> bool:
        """Add one frame by address; False when the queue is full."""
        if not self.room():
            return False
        row = self.rows[int(self.state[FQ_TAIL]) % FQ_FRAMES]
        row[:] = 0
        row[F_HDR], row[F_HLEN], row[F_PAY], row[F_PLEN] = hdr, hlen, pay, plen
        row[F_FLAGS], row[F_GSO] = flags, gso
        self.state[FQ_TAIL] += 1
        return True


class Wire(Protocol):
    """A NIC takes frames from ``rx`` and offers those it sends on ``tx``."""

    rx: FrameQueue
    tx: FrameQueue
    # A wire with an attribute ``scatter`` (words) leaves reading frames to the NIC: see TapWire.

    def exchange(self, now: int) -> bool:
        """Move frames between the queues and what lies behind them; True when any moved."""

    def filenos(self) -> list[int]:
        """Descriptors whose readiness means that there is something to exchange."""

    def close(self) -> None:
        """Unplug."""


class CableEnd:
    """One end of a cable: what this NIC sends is what the other receives."""

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
