"""What goes wrong with frames on a wire, by a seed; and a frame as an Ethernet carries it."""

from __future__ import annotations

import random

import numpy as np

from netmem.base.arena import Bytes, Words
from netmem.base.formats import ETH_HLEN
from netmem.hw.softnic.kernels import frame_render
from netmem.hw.softnic.look import look
from netmem.hw.softnic.regs import BAR_WORDS
from netmem.hw.softnic.state import D_WORDS
from netmem.hw.wire import F_HLEN, F_SEEN, F_TOTAL

FRAME_ROOM = 1 << 17


class Faults:
    """Probabilities from 0 to 1 for each frame; ``counts`` says what became of them.

    The same seed and the same frames give the same faults.
    """

    def __init__(
        self, seed: int, *, loss: float = 0, duplicate: float = 0, reorder: float = 0, damage: float = 0
    ) -> None:
        self._random = random.Random(seed)
        self.loss, self.duplicate, self.reorder, self.damage = loss, duplicate, reorder, damage
        self.counts = {"carried": 0, "lost": 0, "duplicated": 0, "reordered": 0, "damaged": 0}

    def copies(self, frame: bytes) -> list[bytes]:
        """What arrives of a frame: nothing, it or something like it, or that twice."""
        chance = self._random.random
        if chance() < self.loss:
            self.counts["lost"] += 1
            return []
        if chance() < self.damage and len(frame) > ETH_HLEN:
            self.counts["damaged"] += 1
            at = self._random.randrange(ETH_HLEN, len(frame))
            frame = frame[:at] + bytes([frame[at] ^ 1 << self._random.randrange(8)]) + frame[at + 1 :]
        if chance() < self.duplicate:
            self.counts["duplicated"] += 1
            return [frame, frame]
        return [frame]

    def carried(self) -> bool:
        """Count one that arrives; True when others are to overtake it."""
        self.counts["carried"] += 1
        late = self._random.random() < self.reorder
        self.counts["reordered"] += late
        return late


class PlainFrames:
    """Frames as plain bytes: what was left to segmentation and checksum offload is cut and completed."""

    def __init__(self) -> None:
        self._d: Words = np.zeros(D_WORDS, np.int64)
        self._bar: Words = np.zeros(BAR_WORDS, np.int64)
        self._out: Bytes = np.zeros(FRAME_ROOM, np.uint8)

    def of(self, row: Words) -> list[bytes]:
        """The frames that a frame row stands for; none for one that was taken back."""
        if row[F_HLEN] < ETH_HLEN:
            return []
        row = row.copy()
        if not row[F_SEEN]:
            look(self._d, self._bar, row)
        frames, done = list[bytes](), 0
        while not frames or done < row[F_TOTAL]:
            length, payload = frame_render(row, self._out.ctypes.data, len(frames), done)
            frames.append(self._out[:length].tobytes())
            done += int(payload)
        return frames
