"""The transmit side of a device: header slots, rows to send, and memory for send buffers.

One memfd, mapped by the driver for its device once. A packet's headers are written into the slot
of its row; payload is named by I/O address.
"""

from __future__ import annotations

import os
from collections import deque

import numpy as np

from netmem.base.arena import Region, Words, memfd

TX_ROWS = 512
SLOT_BYTES = 256
BUFFER_LEAST = 64 << 10

X_WORDS = 8
X_HLEN = 0
X_PAY = 1  # I/O address
X_PLEN = 2
X_PAY2 = 3
X_P2LEN = 4
X_GSO = 5  # payload bytes of a segment, 0: send as it is
X_FLAGS = 6
X_NDESC = 7
TX_CSUM = 1  # the NIC fills in the TCP checksum
TX_UDP = 2  # ... which is UDP's
TX_NETMEM = 4  # payload is device memory (skb_frags_not_readable)

T_HEAD = 0  # rows completed
T_SENT = 1  # rows handed to the NIC
T_TAIL = 2  # rows filled
T_SLOTS = 3  # host address of the header slots
T_IO = 4  # I/O address of the memory, and so of slot 0
T_HOST = 5  # host address of the memory
T_FULL = 6  # times a sender found no free row
T_PACKETS = 7
T_BYTES = 8


class TxQueue:
    """Rows from the stack to the driver. Rows between T_HEAD and T_TAIL are in use.

    ``size`` bytes of address space for header slots and send buffers; only what is touched costs
    memory. A power of two, so that it fits a PCI BAR.
    """

    def __init__(self, size: int = 2 << 30) -> None:
        self.slots_size = TX_ROWS * SLOT_BYTES
        self.size = size
        self.fd = memfd("tx", self.size)
        self.region = Region(self.fd, self.size)
        self.rows: Words = np.zeros((TX_ROWS, X_WORDS), np.int64)
        self.meta: Words = np.zeros(16, np.int64)
        self.mv = self.meta.data  # the same words as plain ints
        self.meta[T_SLOTS] = self.meta[T_HOST] = self.region.address
        self._free: list[tuple[int, int]] = []
        self._later: deque[tuple[int, int, int]] = deque()  # with the row before which it is in use
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
        while self._later and self._later[0][2] <= self.mv[T_HEAD]:
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

    def free_buffer(self, offset: int, size: int) -> None:
        """Give a send buffer back; it is used again when no row that waits can name it."""
        self._later.append((offset, size, self.mv[T_TAIL]))

    def pending(self) -> int:
        """Rows that wait for the driver."""
        return int(self.meta[T_TAIL] - self.meta[T_SENT])

    def close(self) -> None:
        """Close the memory's descriptor: the device is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def reset(self) -> None:
        """Forget all rows: the device was stopped."""
        self.meta[T_HEAD] = self.meta[T_SENT] = self.meta[T_TAIL]
