"""Wires around wires, with the wire's own interface: trace, and fault injection.

``TraceWire`` passes frames on by reference; ``FaultyWire`` copies them, for it holds some back.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import numpy as np

from netmem.base.arena import Bytes, Words
from netmem.hw.softnic.kernels import frame_render
from netmem.hw.softnic.look import look
from netmem.hw.softnic.regs import BAR_WORDS
from netmem.hw.softnic.state import D_WORDS
from netmem.hw.wire import (
    F_FLAGS,
    F_GSO,
    F_HLEN,
    F_NDESC,
    F_P2LEN,
    F_PLEN,
    F_SEEN,
    F_TOTAL,
    F_TXQ,
    FQ_FRAMES,
    FQ_HEAD,
    FQ_TAIL,
    FrameQueue,
    Wire,
)

SLOT = 1 << 17


def summary(row: Words) -> str:
    """A frame's metadata in a few words."""
    size = int(row[F_HLEN] + row[F_PLEN] + row[F_P2LEN])
    text = f"{size} bytes"
    if row[F_GSO]:
        text += f", segments of {int(row[F_GSO])}"
    if row[F_FLAGS]:
        text += ", checksum " + ("good" if row[F_FLAGS] & 1 else "to be made")
    return text


class TraceWire:
    """Says what passes: ``say(direction, text)`` with "in" or "out" for each frame."""

    def __init__(self, wire: Wire, say: Callable[[str, str], None]) -> None:
        self._wire, self._say = wire, say
        self.rx, self.tx = wire.rx, wire.tx
        self._seen = [0, 0]

    def exchange(self, now: int) -> bool:
        self._look(1, "out", self.tx)
        moved = self._wire.exchange(now)
        self._look(0, "in", self.rx)
        return moved

    def _look(self, n: int, direction: str, queue: FrameQueue) -> None:
        tail = int(queue.state[FQ_TAIL])
        for at in range(max(self._seen[n], int(queue.state[FQ_HEAD])), tail):
            self._say(direction, summary(queue.rows[at % FQ_FRAMES]))
        self._seen[n] = tail

    def filenos(self) -> list[int]:
        return self._wire.filenos()

    def close(self) -> None:
        """Unplug the wire within."""
        self._wire.close()


class _Way:
    """Frames in one direction: from one queue, through faults, to another."""

    def __init__(self, source: FrameQueue, target: FrameQueue) -> None:
        self.source, self.target = source, target
        self.waiting: list[tuple[int, int, bytes, int, int]] = []
        self.slots: Bytes = np.zeros((FQ_FRAMES, SLOT), np.uint8)
        self.next = 0

    def hand_over(self, now: int) -> bool:
        """What is due goes to the target, as long as it has room."""
        moved = False
        while self.waiting and self.waiting[0][0] <= now and self.target.room():
            _, _, frame, flags, gso = heapq.heappop(self.waiting)
            slot = self.slots[self.next % FQ_FRAMES]
            slot[: len(frame)] = np.frombuffer(frame, np.uint8)
            self.target.offer(slot.ctypes.data, len(frame), flags=flags, gso=gso)
            self.next += 1
            moved = True
        return moved


class FaultyWire:
    """Loses, duplicates, damages and delays frames of the wire within, by a seed.

    Probabilities are for each frame as it goes over an Ethernet: what was left to segmentation and checksum
    offload is cut and completed here. ``late``: ns that a reordered frame takes longer.
    """

    def __init__(
        self, wire: Wire, seed: int = 0, *, loss: float = 0, duplicate: float = 0, reorder: float = 0,
        damage: float = 0, late: int = 2_000_000,
    ) -> None:  # fmt: skip
        self._wire, self._random = wire, random.Random(seed)
        self._faults, self._late = (loss, duplicate, reorder, damage), late
        self.rx, self.tx = FrameQueue(), FrameQueue()
        self._ways = (_Way(wire.rx, self.rx), _Way(self.tx, wire.tx))
        self._order = 0
        self._d: Words = np.zeros(D_WORDS, np.int64)
        self._bar: Words = np.zeros(BAR_WORDS, np.int64)
        self._out: Bytes = np.zeros(SLOT, np.uint8)
        self.counts = {"carried": 0, "lost": 0, "duplicated": 0, "reordered": 0, "damaged": 0}

    def exchange(self, now: int) -> bool:
        inward, outward = self._ways
        moved = self._take(outward, now) | outward.hand_over(now)
        moved |= self._wire.exchange(now)
        return self._take(inward, now) | inward.hand_over(now) | moved

    def _take(self, way: _Way, now: int) -> bool:
        queue, moved = way.source, False
        while len(queue):
            row = queue.rows[int(queue.state[FQ_HEAD]) % FQ_FRAMES]
            for frame in self._frames(row):
                self._carry(way, frame, now)
            queue.state[FQ_HEAD] += 1
            moved = True
        return moved

    def _frames(self, row: Words) -> list[bytes]:
        """A frame as plain bytes, cut and summed as an Ethernet carries it."""
        row = row.copy()
        row[F_NDESC] = row[F_TXQ] = row[F_SEEN] = 0
        if row[F_HLEN] < 14:
            return []
        look(self._d, self._bar, row)
        frames, done, index = list[bytes](), 0, 0
        while True:
            length, payload = frame_render(row, self._out.ctypes.data, index, done)
            frames.append(self._out[:length].tobytes())
            done, index = done + int(payload), index + 1
            if done >= row[F_TOTAL]:
                return frames

    def _carry(self, way: _Way, frame: bytes, now: int) -> None:
        loss, duplicate, reorder, damage = self._faults
        chance = self._random.random
        if chance() < loss:
            self.counts["lost"] += 1
            return
        if chance() < damage:
            self.counts["damaged"] += 1
            at = self._random.randrange(14, len(frame))
            frame = frame[:at] + bytes([frame[at] ^ 1 << self._random.randrange(8)]) + frame[at + 1 :]
        for _ in range(2 if chance() < duplicate else 1):
            due = now
            if chance() < reorder:
                self.counts["reordered"] += 1
                due += self._late
            self.counts["carried"] += 1
            heapq.heappush(way.waiting, (due, self._order, frame, 0, 0))
            self._order += 1

    def due(self) -> int | None:
        """When the next frame that was held back is due."""
        times = [way.waiting[0][0] for way in self._ways if way.waiting]
        return min(times, default=None)

    def filenos(self) -> list[int]:
        return self._wire.filenos()

    def close(self) -> None:
        """Unplug the wire within."""
        self._wire.close()
