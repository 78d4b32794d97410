"""What a device receives and sends, as a pcapng file: headers in clear, device payload by reference.

As AF_PACKET sees packets whose payload cannot be read: the snap length ends with what is readable. Where
the payload lies is said in the packet's comment, ``dmabuf 3 offset 4096 length 1448``, once for each piece.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from netmem.base.errors import MissingError
from netmem.memory.page_pool import PagePool
from netmem.memory.ref import offset_of
from netmem.netdev.batch import Kind, RxBatch, RxRow
from netmem.netdev.binding import TxBinding
from netmem.netdev.tx import SLOT_BYTES, TX_ROWS, Tx, TxQueue

LINKTYPE_ETHERNET = 1
SNAP = 65535
NANOSECONDS = b"\x09"  # if_tsresol
SAME_CLOCK = 1_000_000_000  # ns: a device whose time is further off has the clock of a simulation


class Capture:
    """Packets of one device into ``file``, until ``close``. Slow: a Python object for each packet.

    MissingError without the package python-pcapng.
    """

    def __init__(
        self, name: str, tx: TxQueue, pools: Mapping[int, PagePool], tx_bindings: Sequence[TxBinding],
        file: BinaryIO,
    ) -> None:  # fmt: skip
        try:
            from pcapng import FileWriter, blocks
        except ImportError:
            raise MissingError("captures need the package python-pcapng: pip install python-pcapng") from None
        self._tx, self._pools, self._tx_bindings, self._file = tx, pools, tx_bindings, file
        self._blocks: Any = blocks
        self._section: Any = blocks.SectionHeader(options={"shb_userappl": "netmem"})
        self._section.new_member(
            blocks.InterfaceDescription, link_type=LINKTYPE_ETHERNET, snaplen=SNAP,
            options={"if_name": name, "if_tsresol": NANOSECONDS},
        )  # fmt: skip
        self._writer: Any = FileWriter(file, self._section)
        self._sent = tx.record.filled
        self._offset = time.time_ns() - time.monotonic_ns()
        self.packets = 0

    def _write(self, now: int, data: bytes, length: int, pieces: list[str]) -> None:
        options = {"opt_comment": "; ".join(pieces)} if pieces else {}
        packet = self._section.new_member(self._blocks.EnhancedPacket, options=options)
        stamp = now + self._offset
        packet.timestamp_high, packet.timestamp_low = stamp >> 32, stamp & 0xFFFFFFFF
        packet.packet_data, packet.packet_len = data, length
        self._writer.write_block(packet)
        self.packets += 1

    def received(self, batch: RxBatch, now: int) -> None:
        """The packets of a batch, in order of arrival, before the stack takes them."""
        for i in range(batch.record.used):
            row = batch.row(i)
            if row.kind == Kind.CONT:
                continue
            at = row.stamp if abs(row.stamp - now) < SAME_CLOCK else now
            data = ctypes.string_at(row.header, row.header_len) if row.header else b""
            length, pieces, whole = len(data), list[str](), True
            while True:
                if row.size:
                    text, readable = self._piece(row)
                    whole = whole and bool(readable)
                    data += readable if whole else b""
                    pieces += [] if readable else [text]
                    length += row.size
                if row.more < 0:
                    break
                row = batch.row(row.more)
            self._write(at, data[:SNAP], length, pieces)

    def _piece(self, row: RxRow) -> tuple[str, bytes]:
        """Where a buffer's payload lies, and its bytes where the pool's memory is ordinary pages."""
        pool = self._pools[row.pool]
        at = offset_of(row.netmem, pool.area.shift) + row.offset
        if pool.provider is None:
            return "", ctypes.string_at(pool.area.address + at, row.size)
        return f"dmabuf {pool.binding_id} offset {at} length {row.size}", b""

    def sent(self, now: int) -> None:
        """The rows that were filled since last asked, before the driver takes them."""
        queue = self._tx.record
        for number in range(max(self._sent, queue.filled - TX_ROWS), queue.filled):
            row = self._tx.row(number)
            data = ctypes.string_at(queue.slots + number % TX_ROWS * SLOT_BYTES, row.header_len)
            length, pieces = len(data) + row.payload_len + row.payload2_len, list[str]()
            for io, size in ((row.payload, row.payload_len), (row.payload2, row.payload2_len)):
                if size and row.flags & Tx.NETMEM:
                    pieces.append(self._reference(io, size))
                elif size:
                    data += ctypes.string_at(queue.host + io - queue.io, size)
            at = time.monotonic_ns()
            self._write(at if abs(at - now) < SAME_CLOCK else now, data[:SNAP], length, pieces)
        self._sent = queue.filled

    def _reference(self, io: int, size: int) -> str:
        for binding in self._tx_bindings:
            if binding.io <= io < binding.io + binding.size:
                return f"dmabuf {binding.id} offset {io - binding.io} length {size}"
        return f"device memory at {io:#x} length {size}"

    def close(self) -> None:
        """Close the file; ``NetDevice.stop_capture`` ends a capture."""
        self._file.close()
