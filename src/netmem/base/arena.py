"""Arenas: the memory of one object's records, in a named memfd.

A memfd's name shows in /proc/PID/fd, so a running process can be inspected without a socket left behind, and
the memory goes with the process. Fields are signed, because unsigned arithmetic differs between compiled and
uncompiled runs.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from netmem.base.memfd import memfd
from netmem.base.record import Items, Record, dtype

R = TypeVar("R", bound=Record)

Words = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
PAGE_SIZE = 4096


class Region:
    """A mapping of (part of) a memory file descriptor into this process.

    ``bytes`` is the memory as uint8, ``address`` its first byte's host address. The mapping ends
    when the last array over it is gone.
    """

    def __init__(self, fd: int, size: int, offset: int = 0, *, writable: bool = True) -> None:
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=prot, offset=offset)
        self.bytes: Bytes = np.frombuffer(self._map, np.uint8)
        self.address: int = self.bytes.ctypes.data
        self.size = size

    def words(self) -> Words:
        """The same memory as int64 words."""
        return self.bytes.view(np.int64)

    def record(self, layout: type[R], offset: int = 0) -> R:
        """A record in this memory, which it keeps."""
        return layout.from_buffer(self._map, offset)

    def array(self, layout: type[R], offset: int, count: int) -> Items[R]:
        """``count`` records in this memory, which they keep."""
        return (layout * count).from_buffer(self._map, offset)

    def table(self, layout: type[Record], offset: int, count: int) -> npt.NDArray[Any]:
        """``count`` records as a structured array, which is for whole tables at once; it keeps the memory."""
        return self.bytes[offset : offset + count * ctypes.sizeof(layout)].view(dtype(layout))


class Arena(Region):
    """At least ``size`` bytes, all zero, in a memfd named after what they hold."""

    def __init__(self, name: str, size: int) -> None:
        size = -(-size // PAGE_SIZE) * PAGE_SIZE
        self.name = name
        self.fd = memfd(name, size)
        super().__init__(self.fd, size)

    def close(self) -> None:
        """Close the descriptor; arrays that are still held stay valid."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _finalizing() and getattr(self, "fd", -1) >= 0:
            self.close()
