"""The transmit side of a device: header slots, rows to send, and memory for send buffers.

One memfd, mapped by the driver for its device once. A packet's headers are written into the slot
of its row; payload is named by I/O address.
"""

from __future__ import annotations

import ctypes
import enum
import os
from collections import deque

from netmem.base.arena import Region
from netmem.base.jit import inline_kernel
from netmem.base.memfd import memfd
from netmem.base.record import Record, clear, i64

TX_ROWS = 512
SPARSE, PINNED = 2 << 30, 64 << 20  # for send buffers: address space, or where all of it is memory
SLOT_BYTES = 256
BUFFER_LEAST = 64 << 10


class Tx(enum.IntEnum):
    """Bits of TxRow.flags."""

    CSUM = 1  # the NIC fills in the TCP checksum
    UDP = 2  # ... which is UDP's
    NETMEM = 4  # payload is device memory (skb_frags_not_readable)


class TxRow(Record):
    """A packet to send; its headers stand in the slot of its row."""

    header_len: i64
    payload: i64  # I/O address
    payload_len: i64
    payload2: i64  # I/O address of a second piece
    payload2_len: i64
    gso_size: i64  # payload bytes of a segment, 0: send as it is
    flags: i64  # Tx bits
    descriptors: i64  # that the driver used for it


class TxQueueRecord(Record):
    """Rows from the stack to the driver; those from ``completed`` to ``filled`` are in use. Counts run on."""

    completed: i64
    sent: i64  # handed to the NIC
    filled: i64
    rows: i64  # address of TxRow 0
    slots: i64  # host address of the header slots
    io: i64  # I/O address of the memory, and so of slot 0
    host: i64  # host address of the memory
    full: i64  # times a sender found no free row
    packets: i64
    bytes: i64


@inline_kernel
def tx_row(queue: TxQueueRecord, n: int) -> TxRow:
    """The ``n``-th row ever."""
    return TxRow.nth(queue.rows, n & (TX_ROWS - 1))


class TxQueue:
    """``record`` and its rows, ``at`` its address, and the memory that they name.

    ``size`` bytes of address space for header slots and send buffers; only what is touched costs
    memory. A power of two, so that it fits a PCI BAR.
    """

    def __init__(self, size: int = SPARSE) -> None:
        self.slots_size = TX_ROWS * SLOT_BYTES
        self.size = size
        self.fd = memfd("tx", self.size)
        self.region = Region(self.fd, self.size)
        self._rows = (TxRow * TX_ROWS)()
        self.record = TxQueueRecord(
            rows=ctypes.addressof(self._rows), slots=self.region.address, host=self.region.address
        )
        self.at = ctypes.addressof(self.record)
        self._free: list[tuple[int, int]] = []
        self._later: deque[tuple[int, int, int]] = deque()  # with the count of rows before which it is in use
        self._next = self.slots_size

    def fair_size(self, wanted: int) -> int:
        """What a send buffer should have of ``wanted`` bytes, so that many more still find room.

        A 256th of what is left at most, a power of two from 64 KiB: some 2,000 buffers at least.
        """
        left = self.size - self._next + sum(have for _, have in self._free)
        share = max(left + sum(one[1] for one in self._later) >> 8, BUFFER_LEAST)
        return wanted if wanted <= share else 1 << share.bit_length() - 1

    def alloc_buffer(self, size: int) -> int | None:
        """Offset of ``size`` bytes for a send buffer, None when the memory is used up."""
        while self._later and self._later[0][2] <= self.record.completed:
            self._free.append(self._later.popleft()[:2])
        offset = self._take(size)
        if offset is None:
            self._merge()
            offset = self._take(size)
        return offset

    def _take(self, size: int) -> int | None:
        for i, (offset, have) in enumerate(self._free):
            if have == size:
                del self._free[i]
                return offset
        if self._next + size <= self.size:
            offset, self._next = self._next, self._next + size
            return offset
        for i, (offset, have) in enumerate(self._free):
            if have > size:
                self._free[i] = (offset + size, have - size)
                return offset
        return None

    def _merge(self) -> None:
        """Make one of free pieces that lie side by side."""
        merged: list[tuple[int, int]] = []
        for offset, have in sorted(self._free):
            if merged and sum(merged[-1]) == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + have)
            else:
                merged.append((offset, have))
        self._free = merged

    def free_buffer(self, offset: int, size: int, mark: int) -> None:
        """Give a send buffer back; it is used again when the rows before count ``mark`` are completed."""
        if mark <= self.record.completed:
            self._free.append((offset, size))
        else:
            self._later.append((offset, size, mark))

    def pending(self) -> int:
        """Rows that wait for the driver."""
        return self.record.filled - self.record.sent

    def row(self, n: int) -> TxRow:
        """The ``n``-th row ever."""
        return self._rows[n % TX_ROWS]

    def close(self) -> None:
        """Close the memory's descriptor: the device is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def is_full(self) -> bool:
        """True when all rows are in use."""
        return self.record.filled - self.record.completed >= TX_ROWS

    def begin(self, headers: bytes) -> TxRow | None:
        """The next row, with ``headers`` in its slot and no payload yet; None when all are in use.

        It goes out when ``record.filled`` counts it.
        """
        if self.is_full():
            return None
        n = self.record.filled
        ctypes.memmove(self.record.slots + n % TX_ROWS * SLOT_BYTES, headers, len(headers))
        row = self.row(n)
        clear(row)
        row.header_len = len(headers)
        return row

    def reset(self) -> None:
        """Forget all rows: the device was stopped."""
        self.record.completed = self.record.sent = self.record.filled
