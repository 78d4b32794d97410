"""Wires for tests: plain frames in and out, and a link that loses, reorders and duplicates."""

from __future__ import annotations

import contextlib
import heapq
import socket
import struct
from collections import deque

import numpy as np

from netmem.base.arena import Bytes
from netmem.hw.faults import FRAME_ROOM, Faults, PlainFrames
from netmem.hw.wire import FQ_FRAMES, FrameQueue


class PacketWire:
    """A wire that carries frames as bytes: ``inject`` towards the NIC, ``sent`` what it sent.

    Frames that the NIC leaves to segmentation and checksum offload are cut and completed here.
    """

    tap = 0

    def __init__(self) -> None:
        self.rx, self.tx = FrameQueue(), FrameQueue()
        self.sent: deque[bytes] = deque()
        self._waiting: deque[tuple[bytes, int, int]] = deque()
        self._slots: Bytes = np.zeros((FQ_FRAMES, FRAME_ROOM), np.uint8)
        self._next = 0
        self._plain = PlainFrames()

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
            self.sent += self._plain.of(self.tx.row(self.tx.record.head))
            self.tx.record.head += 1
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
    """Two packet wires joined by a link with seeded faults, delay and rate.

    ``loss``, ``duplicate``, ``reorder``, ``damage``: probabilities from 0 to 1 for each frame. ``delay``: ns
    one way; a reordered frame takes ``late`` ns longer. ``rate``: bits a second, 0 for no limit; ``queue``:
    frames that wait for the link at most, beyond which they are lost. ``move`` carries what is due;
    ``counts`` says what the link did. The same seed and the same frames give the same faults.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        loss: float = 0,
        duplicate: float = 0,
        reorder: float = 0,
        damage: float = 0,
        delay: int = 0,
        late: int = 300_000,
        rate: int = 0,
        queue: int = 1000,
    ) -> None:
        self.ends: tuple[PacketWire | StreamPackets, PacketWire] = (PacketWire(), PacketWire())
        self._faults = Faults(seed, loss=loss, duplicate=duplicate, reorder=reorder, damage=damage)
        self._delay, self._late, self._rate, self._queue = delay, late, rate, queue
        self._under_way: list[tuple[int, int, int, bytes]] = []  # due, order, end, frame
        self._order = 0
        self._free_at = [0, 0]
        self._waiting: tuple[deque[int], deque[int]] = (deque(), deque())
        self.counts = self._faults.counts
        self.counts["overrun"] = 0

    def move(self, now: int = 0) -> bool:
        """Take what was sent, hand over what is due by ``now``; True when there was any."""
        moved = False
        for end, here in enumerate(self.ends):
            while here.sent:
                moved = True
                self._carry(here.sent.popleft(), 1 - end, now)
        while self._under_way and self._under_way[0][0] <= now:
            _, _, end, frame = heapq.heappop(self._under_way)
            self.ends[end].inject(frame)
            moved = True
        return moved

    def cut(self) -> None:
        """Nothing arrives any more, in either direction."""
        self._faults.loss = 1.0
        self._under_way.clear()

    def due(self) -> int | None:
        """When the next frame arrives, None when none is under way."""
        return self._under_way[0][0] if self._under_way else None

    def _carry(self, frame: bytes, to: int, now: int) -> None:
        for copy in self._faults.copies(frame):
            at = now + self._delay
            if self._rate:
                waiting = self._waiting[to]
                while waiting and waiting[0] <= now:
                    waiting.popleft()
                if len(waiting) >= self._queue:
                    self.counts["overrun"] += 1
                    continue
                begin = max(now, self._free_at[to])
                self._free_at[to] = begin + len(copy) * 8_000_000_000 // self._rate
                waiting.append(begin)
                at = self._free_at[to] + self._delay
            if self._faults.carried():
                at += self._late
            heapq.heappush(self._under_way, (at, self._order, to, copy))
            self._order += 1
