"""Wires around wires, with the wire's own interface: trace, and fault injection.

``TraceWire`` passes frames on by reference; ``FaultyWire`` copies them, for it holds some back.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from netmem.base.arena import Bytes
from netmem.base.clock import FAR
from netmem.hw.faults import FRAME_ROOM, Faults, PlainFrames
from netmem.hw.wire import FQ_FRAMES, Frame, FrameQueue, FrameRow, Wire


def summary(frame: FrameRow) -> str:
    """A frame's metadata in a few words."""
    text = f"{frame.header_len + frame.payload_len + frame.payload2_len} bytes"
    if frame.gso_size:
        text += f", segments of {frame.gso_size}"
    if frame.flags:
        text += ", checksum " + ("good" if frame.flags & Frame.CSUM_OK else "to be made")
    return text


class WatchedWire:
    """Shows what passes: ``see(direction, frame)`` with "in" or "out" for each frame."""

    tap = 0

    def __init__(self, wire: Wire, see: Callable[[str, FrameRow], None]) -> None:
        self._wire, self._see = wire, see
        self.rx, self.tx = wire.rx, wire.tx
        self._seen = [0, 0]

    def exchange(self, now: int) -> bool:
        self._look(1, "out", self.tx)
        moved = self._wire.exchange(now)
        self._look(0, "in", self.rx)
        return moved

    def _look(self, n: int, direction: str, queue: FrameQueue) -> None:
        tail = queue.record.tail
        for at in range(max(self._seen[n], queue.record.head), tail):
            self._see(direction, queue.row(at))
        self._seen[n] = tail

    def filenos(self) -> list[int]:
        return self._wire.filenos()

    def close(self) -> None:
        """Unplug the wire within."""
        self._wire.close()


class TraceWire(WatchedWire):
    """Says what passes: ``say(direction, text)`` with "in" or "out" for each frame."""

    def __init__(self, wire: Wire, say: Callable[[str, str], None]) -> None:
        super().__init__(wire, lambda direction, frame: say(direction, summary(frame)))


WAITING = 4 * FQ_FRAMES  # frames that are held back, before no more are taken


class _Way:
    """Frames in one direction: from one queue, through faults, to another."""

    def __init__(self, source: FrameQueue, target: FrameQueue) -> None:
        self.source, self.target = source, target
        self.waiting: list[tuple[int, int, bytes]] = []  # due, order, frame
        self._slots: Bytes = np.zeros((FQ_FRAMES, FRAME_ROOM), np.uint8)
        self._next = 0

    def hand_over(self, now: int) -> bool:
        """What is due goes to the target, as long as it has room."""
        moved = False
        while self.waiting and self.waiting[0][0] <= now and self.target.room():
            _, _, frame = heapq.heappop(self.waiting)
            slot = self._slots[self._next % FQ_FRAMES]
            slot[: len(frame)] = np.frombuffer(frame, np.uint8)
            self.target.offer(slot.ctypes.data, len(frame))
            self._next += 1
            moved = True
        return moved


class FaultyWire:
    """Loses, duplicates, damages and delays frames of the wire within, by a seed (``Faults``).

    Probabilities (``chances``, which may change) are for each frame as it goes over an Ethernet. ``late``: ns
    that a reordered frame takes longer.
    """

    tap = 0

    def __init__(
        self, wire: Wire, seed: int = 0, *, loss: float = 0, duplicate: float = 0, reorder: float = 0,
        damage: float = 0, late: int = 2_000_000,
    ) -> None:  # fmt: skip
        self._wire, self._late = wire, late
        self.chances = Faults(seed, loss=loss, duplicate=duplicate, reorder=reorder, damage=damage)
        self.counts = self.chances.counts
        self.rx, self.tx = FrameQueue(), FrameQueue()
        self._ways = (_Way(wire.rx, self.rx), _Way(self.tx, wire.tx))
        self._order = 0
        self._plain = PlainFrames()

    def exchange(self, now: int) -> bool:
        inward, outward = self._ways
        moved = self._take(outward, now) | outward.hand_over(now)
        moved |= self._wire.exchange(now)
        return self._take(inward, now) | inward.hand_over(now) | moved

    def timer(self) -> int:
        """When a frame that was held back is due (ns); far away without one."""
        return min((way.waiting[0][0] for way in self._ways if way.waiting), default=FAR)

    def _take(self, way: _Way, now: int) -> bool:
        queue, moved = way.source, False
        while len(queue) and len(way.waiting) < WAITING:
            for frame in self._plain.of(queue.row(queue.record.head)):
                for copy in self.chances.copies(frame):
                    due = now + (self._late if self.chances.carried() else 0)
                    heapq.heappush(way.waiting, (due, self._order, copy))
                    self._order += 1
            queue.record.head += 1
            moved = True
        return moved

    def filenos(self) -> list[int]:
        return self._wire.filenos()

    def close(self) -> None:
        """Unplug the wire within."""
        self._wire.close()
