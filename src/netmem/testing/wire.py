"""Wires for tests: plain frames in and out, and a link that loses, reorders and duplicates."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections import deque

import numpy as np

from netmem.base.arena import Bytes, Words
from netmem.hw.softnic import kernels as k
from netmem.hw.softnic.look import look
from netmem.hw.softnic.regs import BAR_WORDS
from netmem.hw.softnic.state import D_WORDS
from netmem.hw.wire import F_SEEN, F_TOTAL, FQ_FRAMES, FQ_HEAD, FrameQueue

SLOT = 1 << 17


class PacketWire:
    """A wire that carries frames as bytes: ``inject`` towards the NIC, ``sent`` what it sent.

    Frames that the NIC leaves to segmentation and checksum offload are cut and completed here.
    """

    def __init__(self) -> None:
        self.rx, self.tx = FrameQueue(), FrameQueue()
        self.sent: deque[bytes] = deque()
        self._waiting: deque[tuple[bytes, int, int]] = deque()
        self._slots: Bytes = np.zeros((FQ_FRAMES, SLOT), np.uint8)
        self._next = 0
        self._d: Words = np.zeros(D_WORDS, np.int64)
        self._bar: Words = np.zeros(BAR_WORDS, np.int64)
        self._out: Bytes = np.zeros(SLOT, np.uint8)

    def inject(self, frame: bytes, *, flags: int = 0, gso: int = 0) -> None:
        """Put a frame on the wire; it waits its turn when many are there already."""
        self._waiting.append((frame, flags, gso))

    def exchange(self, now: int) -> bool:
        moved = False
        while self._waiting and self.rx.room():
            frame, flags, gso = self._waiting.popleft()
            slot = self._slots[self._next % FQ_FRAMES]
            slot[: len(frame)] = np.frombuffer(frame, np.uint8)
            self.rx.offer(slot.ctypes.data, len(frame), flags=flags, gso=gso)
            self._next += 1
            moved = True
        while len(self.tx):
            row = self.tx.rows[int(self.tx.state[FQ_HEAD]) % FQ_FRAMES]
            if not row[F_SEEN]:
                look(self._d, self._bar, row)
            done = index = 0
            while True:
                length, payload = k.frame_render(row, self._out.ctypes.data, index, done)
                self.sent.append(self._out[:length].tobytes())
                done, index = done + int(payload), index + 1
                if done >= row[F_TOTAL]:
                    break
            self.tx.state[FQ_HEAD] += 1
            moved = True
        return moved

    def filenos(self) -> list[int]:
        return []

    def close(self) -> None:
        """Nothing to unplug."""


class StreamPackets:
    """The far end of a stream cable, as packets: ``inject`` towards the NIC, ``sent`` what it sent.

    Each frame has its length before it, four bytes in network order (QEMU's ``-netdev stream``).
    """

    def __init__(self, cable: socket.socket) -> None:
        self._cable = cable
        cable.setblocking(False)
        self.sent: deque[bytes] = deque()
        self._out, self._in = bytearray(), bytearray()

    def inject(self, frame: bytes) -> None:
        """Put a frame on the wire; it goes with the next ``exchange``."""
        self._out += struct.pack("!I", len(frame)) + frame

    def exchange(self, now: int) -> bool:
        """Send what waits, as far as the cable has room, and take what came; True when any moved."""
        moved = False
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._out:
                del self._out[: self._cable.send(self._out)]
                moved = True
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while data := self._cable.recv(1 << 18):
                self._in += data
                moved = True
        while len(self._in) >= 4 and len(self._in) >= (end := 4 + int.from_bytes(self._in[:4], "big")):
            self.sent.append(bytes(self._in[4:end]))
            del self._in[:end]
        return moved


class FaultyLink:
    """Two packet wires joined by a link with seeded faults. Probabilities from 0 to 1.

    ``move`` carries what was sent since the last call; ``counts`` says what the link did.
    """

    def __init__(
        self, seed: int = 0, *, loss: float = 0, duplicate: float = 0, reorder: float = 0, damage: float = 0
    ) -> None:
        self.ends: tuple[PacketWire | StreamPackets, PacketWire] = (PacketWire(), PacketWire())
        self._random = random.Random(seed)
        self._faults = (loss, duplicate, reorder, damage)
        self.counts = {"carried": 0, "lost": 0, "duplicated": 0, "reordered": 0, "damaged": 0}

    def move(self) -> bool:
        """Carry frames both ways; True when there were any."""
        moved = False
        first, second = self.ends
        for here, there in ((first, second), (second, first)):
            batch: list[bytes] = []
            while here.sent:
                moved = True
                self._carry(here.sent.popleft(), batch)
            for frame in batch:
                there.inject(frame)
        return moved

    def _carry(self, frame: bytes, batch: list[bytes]) -> None:
        loss, duplicate, reorder, damage = self._faults
        chance = self._random.random
        if chance() < loss:
            self.counts["lost"] += 1
            return
        if chance() < damage:
            self.counts["damaged"] += 1
            at = self._random.randrange(14, len(frame))
            frame = frame[:at] + bytes([frame[at] ^ 1 << self._random.randrange(8)]) + frame[at + 1 :]
        self.counts["carried"] += 1
        if batch and chance() < reorder:
            self.counts["reordered"] += 1
            batch.insert(self._random.randrange(len(batch)), frame)
        else:
            batch.append(frame)
        if chance() < duplicate:
            self.counts["duplicated"] += 1
            batch.append(frame)
