"""What goes wrong with frames on a wire, by a seed; and a frame as an Ethernet carries it."""

from __future__ import annotations

import ctypes
import random

import numpy as np

from netmem.base.arena import Bytes
from netmem.base.headers import EthHdr
from netmem.base.record import address_of
from netmem.hw.softnic.kernels import frame_render
from netmem.hw.softnic.look import look_at
from netmem.hw.softnic.regs import Bar
from netmem.hw.softnic.state import NicState
from netmem.hw.wire import FrameRow

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
        if chance() < self.damage and len(frame) > EthHdr.LEN:
            self.counts["damaged"] += 1
            at = self._random.randrange(EthHdr.LEN, len(frame))
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
        self._bar = Bar()
        self._nic = NicState(bar=address_of(self._bar))
        self._frame = FrameRow()
        self._out: Bytes = np.zeros(FRAME_ROOM, np.uint8)

    def of(self, frame: FrameRow) -> list[bytes]:
        """The frames that a frame row stands for; none for one that was taken back."""
        if frame.header_len < EthHdr.LEN:
            return []
        at, out = address_of(self._frame), self._out.ctypes.data
        ctypes.pointer(self._frame)[0] = frame  # a copy: the frame itself is not looked at yet
        if not frame.seen:
            look_at(address_of(self._nic), at)
        frames, done = list[bytes](), 0
        while not frames or done < self._frame.total:
            length, payload = frame_render(at, out, len(frames), done)
            frames.append(self._out[:length].tobytes())
            done += int(payload)
        return frames
