"""What a device receives and sends, as a pcapng file: headers in clear, device payload by reference.

As AF_PACKET sees packets whose payload cannot be read: the snap length ends with what is readable. Where
the payload lies is said in the packet's comment, ``dmabuf 3 offset 4096 length 1448``, once for each piece.
"""

from __future__ import annotations

import ctypes
import time
from typing import TYPE_CHECKING, Any, BinaryIO

from netmem.base.errors import MissingError
from netmem.netdev.batch import (
    B_HDR,
    B_HLEN,
    B_KIND,
    B_MORE,
    B_NETMEM,
    B_OFFSET,
    B_POOL,
    B_SIZE,
    KIND_CONT,
    M_ROWS,
    RxBatch,
)
from netmem.netdev.tx import (
    SLOT_BYTES,
    T_HOST,
    T_IO,
    T_SLOTS,
    T_TAIL,
    TX_NETMEM,
    TX_ROWS,
    X_FLAGS,
    X_HLEN,
    X_P2LEN,
    X_PAY,
    X_PAY2,
    X_PLEN,
)

if TYPE_CHECKING:
    from netmem.netdev.device import NetDevice

LINKTYPE_ETHERNET = 1
SNAP = 65535


class Capture:
    """Packets of one device into ``file``, until ``close``. Slow: a Python object for each packet.

    MissingError without the package python-pcapng.
    """

    def __init__(self, dev: NetDevice, file: BinaryIO) -> None:
        try:
            from pcapng import FileWriter, blocks
        except ImportError:
            raise MissingError("captures need the package python-pcapng: pip install python-pcapng") from None
        self._dev, self._file = dev, file
        self._blocks: Any = blocks
        self._section: Any = blocks.SectionHeader(options={"shb_userappl": "netmem"})
        self._section.new_member(
            blocks.InterfaceDescription, link_type=LINKTYPE_ETHERNET, snaplen=SNAP,
            options={"if_name": dev.name},
        )  # fmt: skip
        self._writer: Any = FileWriter(file, self._section)
        self._sent = int(dev.tx.meta[T_TAIL])
        self._offset = time.time_ns() - time.monotonic_ns()
        self.packets = 0

    def _write(self, now: int, data: bytes, length: int, pieces: list[str]) -> None:
        options = {"opt_comment": "; ".join(pieces)} if pieces else {}
        packet = self._section.new_member(self._blocks.EnhancedPacket, options=options)
        stamp = (now + self._offset) // 1000
        packet.timestamp_high, packet.timestamp_low = stamp >> 32, stamp & 0xFFFFFFFF
        packet.packet_data, packet.packet_len = data, length
        self._writer.write_block(packet)
        self.packets += 1

    def received(self, batch: RxBatch, now: int) -> None:
        """The packets of a batch, in order of arrival, before the stack takes them."""
        rows = batch.rows
        for i in range(int(batch.meta[M_ROWS])):
            if rows[i, B_KIND] == KIND_CONT:
                continue
            data = ctypes.string_at(int(rows[i, B_HDR]), int(rows[i, B_HLEN])) if rows[i, B_HDR] else b""
            length, pieces, part, whole = len(data), list[str](), i, True
            while part >= 0:
                size = int(rows[part, B_SIZE])
                if size:
                    text, readable = self._piece(rows[part])
                    whole = whole and bool(readable)
                    data += readable if whole else b""
                    pieces += [] if readable else [text]
                    length += size
                part = int(rows[part, B_MORE])
            self._write(now, data[:SNAP], length, pieces)

    def _piece(self, row: Any) -> tuple[str, bytes]:
        """Where a buffer's payload lies, and its bytes where the pool's memory is ordinary pages."""
        pool = self._dev.pools[int(row[B_POOL])]
        index = (int(row[B_NETMEM]) >> 1) & 0x7FFFFFFF
        at, size = (index << pool.area.shift) + int(row[B_OFFSET]), int(row[B_SIZE])
        if pool.provider is None:
            return "", ctypes.string_at(pool.area.address + at, size)
        return f"dmabuf {pool.binding_id} offset {at} length {size}", b""

    def sent(self, now: int) -> None:
        """The rows that were filled since last asked, before the driver takes them."""
        tx = self._dev.tx
        meta = tx.meta
        tail = int(meta[T_TAIL])
        for number in range(max(self._sent, tail - TX_ROWS), tail):
            row = tx.rows[number % TX_ROWS]
            header = int(meta[T_SLOTS]) + number % TX_ROWS * SLOT_BYTES
            data = ctypes.string_at(header, int(row[X_HLEN]))
            length, pieces = len(data) + int(row[X_PLEN] + row[X_P2LEN]), list[str]()
            for io, size in ((int(row[X_PAY]), int(row[X_PLEN])), (int(row[X_PAY2]), int(row[X_P2LEN]))):
                if size and row[X_FLAGS] & TX_NETMEM:
                    pieces.append(self._reference(io, size))
                elif size:
                    data += ctypes.string_at(int(meta[T_HOST]) + io - int(meta[T_IO]), size)
            self._write(now, data[:SNAP], length, pieces)
        self._sent = tail

    def _reference(self, io: int, size: int) -> str:
        for binding in self._dev.tx_bindings:
            if binding.io <= io < binding.io + binding.size:
                return f"dmabuf {binding.id} offset {io - binding.io} length {size}"
        return f"device memory at {io:#x} length {size}"

    def close(self) -> None:
        """End the capture, and close its file."""
        if self._dev.capture is self:
            self._dev.capture = None
        self._file.close()
