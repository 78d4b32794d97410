"""Frames of a guest's wire as a pcapng file, each as an Ethernet carries it."""

from __future__ import annotations

import os
import time
from typing import Any

from netmem.base.errors import MissingError
from netmem.hw.faults import PlainFrames
from netmem.hw.wire import FrameRow, Wire
from netmem.hw.wrap import WatchedWire

LINKTYPE_ETHERNET = 1


class CaptureWire(WatchedWire):
    """Writes what passes to the descriptor ``fd``, which is its own from here.

    Payload is in clear: it is the guest's own wire. MissingError without the package python-pcapng.
    """

    def __init__(self, wire: Wire, fd: int) -> None:
        super().__init__(wire, self._frame)
        try:
            from pcapng import FileWriter, blocks
        except ImportError:
            raise MissingError("captures need the package python-pcapng: pip install python-pcapng") from None
        self._blocks: Any = blocks
        self._plain = PlainFrames()
        self._file = os.fdopen(fd, "wb")
        self._section: Any = blocks.SectionHeader(options={"shb_userappl": "netmem guest"})
        self._section.new_member(
            blocks.InterfaceDescription,
            link_type=LINKTYPE_ETHERNET,
            snaplen=65535,
            options={"if_name": "eth0"},
        )
        self._writer: Any = FileWriter(self._file, self._section)

    def _frame(self, direction: str, frame: FrameRow) -> None:
        stamp = time.time_ns() // 1000
        for data in self._plain.of(frame):
            packet = self._section.new_member(
                self._blocks.EnhancedPacket, options={"epb_flags": 1 if direction == "in" else 2}
            )
            packet.timestamp_high, packet.timestamp_low = stamp >> 32, stamp & 0xFFFFFFFF
            packet.packet_data, packet.packet_len = data, len(data)
            self._writer.write_block(packet)

    def close(self) -> None:
        super().close()
        self._file.close()
