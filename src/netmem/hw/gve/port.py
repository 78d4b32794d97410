"""What all parts of one gve use: its wire, the guest's memory, interrupts, and what is counted."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from netmem.base.arena import Bytes
from netmem.hw.faults import FRAME_ROOM
from netmem.hw.gve import descriptors as desc
from netmem.hw.gve.faults import GveFaults
from netmem.hw.vfio_user.dma import DmaFault, DmaTable
from netmem.hw.wire import FQ_FRAMES, Wire

FAULTS_KEPT = 16


@dataclass(frozen=True)
class GveConfig:
    """What a port is: sizes in bytes and entries, ``link_speed`` in bit/s."""

    mac: bytes = b"\x42\x01\x0a\x00\x00\x02"
    queues: int = 4
    mtu: int = 1500
    max_mtu: int = 9000
    ring: int = 1024
    min_ring: int = 32
    max_ring: int = 4096
    packet_buffer: int = 4096
    header_buffer: int = 256
    max_rules: int = 128
    link_speed: int = 100_000_000_000
    faults: GveFaults = field(default_factory=GveFaults)


class NotifyBlock:
    """An interrupt of the driver's: fires when it is enabled and something happened, then masks itself."""

    def __init__(self, signal: Callable[[], None]) -> None:
        self._signal = signal
        self.armed = self.pending = False

    def event(self) -> None:
        """Something happened; ``fire`` tells it when this step is over."""
        self.pending = True

    def fire(self) -> None:
        """Interrupt, if there is a reason and the driver wants to know."""
        if self.armed and self.pending:
            self.armed = self.pending = False
            self._signal()

    def doorbell(self, value: int) -> None:
        """What the driver writes (GVE_ITR_* of gve_dqo.h)."""
        if value & desc.IrqDoorbell.CLEAR_PBA:
            self.pending = False
        self.armed = bool(value & desc.IrqDoorbell.ENABLE)
        self.fire()


class Port:
    """One port of the device model, as its queues and commands see it.

    ``counters``: what happened; ``faults``: what is to go wrong; ``dma_faults``: accesses of the driver's
    making that were stopped, in words. ``signal``: raises an interrupt vector in the guest.
    """

    def __init__(self, wire: Wire, config: GveConfig) -> None:
        self.wire, self.config, self.faults = wire, config, config.faults
        self.vectors = 2 * config.queues + 1
        self.dma = DmaTable()
        self.signal: Callable[[int], None] = lambda vector: None
        self.counters: Counter[str] = Counter()
        self.dma_faults: deque[str] = deque(maxlen=FAULTS_KEPT)
        self._slots: Bytes = np.zeros(FQ_FRAMES * FRAME_ROOM, np.uint8)
        self._base: int = self._slots.ctypes.data

    def interrupt(self, vector: int) -> None:
        """Raise an interrupt vector, and count it."""
        self.counters["interrupts"] += 1
        self.signal(vector)

    def dma_fault(self, fault: DmaFault, where: str) -> None:
        """An access of the driver's making went wrong: it is told, and nothing was touched."""
        self.counters["dma_faults"] += 1
        self.dma_faults.append(f"{where}: {fault.strerror}")

    def slot(self, number: int) -> int:
        """Memory of FRAME_ROOM bytes for the frame of that number on the wire."""
        return self._base + number % FQ_FRAMES * FRAME_ROOM
