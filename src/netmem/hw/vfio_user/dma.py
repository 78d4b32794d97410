"""A guest's memory as a device sees it: I/O virtual addresses, and what lies behind them.

A client maps ranges of files: all of the guest's RAM at once, or with an IOMMU a range for each mapping of
the guest's driver. Every access is checked against what is mapped at that moment.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from netmem.base.errors import NetmemError

MAX_MAPS = 65535  # QEMU takes a server that offers more for broken
FAULTS_KEPT = 16
SPACE = 1 << 64


class DmaFault(NetmemError):
    """EFAULT: a device reached for an address that is not mapped, or not mapped for what it wanted.

    ``iova`` is the first such byte's address, ``size`` what was left of the access, ``write`` the direction.
    """

    def __init__(self, iova: int, size: int, write: bool, why: str) -> None:
        self.iova, self.size, self.write = iova, size, write
        kind = "write" if write else "read"
        super().__init__(errno.EFAULT, f"DMA {kind} of {size} bytes at {iova:#x}: {why}")


class _Range(NamedTuple):
    """``size`` bytes from ``start`` lie at ``host`` in our memory; 0 for a range without any."""

    start: int
    end: int
    host: int
    readable: bool
    writable: bool


class _File:
    """A file that ranges are of, mapped once and whole."""

    def __init__(self, fd: int, size: int) -> None:
        self._map = mmap.mmap(fd, size)
        self._view = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._view)

    def close(self) -> None:
        del self._view
        self._map.close()


class DmaTable:
    """Which I/O virtual addresses are mapped, and to what.

    ``faults`` are the last accesses that were stopped, ``fault_count`` how many there were; ``maps`` and
    ``unmaps`` count what the client did.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ranges: list[_Range] = []
        self._last: _Range | None = None
        self._files: dict[tuple[int, int, int], _File] = {}
        self.faults: deque[DmaFault] = deque(maxlen=FAULTS_KEPT)
        self.fault_count = 0
        self.maps = self.unmaps = 0

    def __len__(self) -> int:
        return len(self._ranges)

    def map(self, iova: int, size: int, fd: int = -1, offset: int = 0, *, read: bool, write: bool) -> None:
        """Map a range; ``fd`` stays the caller's, -1 for a range that has no memory (a ROM).

        EINVAL for a range that is empty, wraps, or lies beyond the file's end; EEXIST where something is
        mapped; ENOSPC when the table is full; the kernel's errno for a descriptor that cannot be mapped.
        """
        if not 0 < size <= SPACE - iova:
            raise NetmemError(errno.EINVAL, f"DMA range {iova:#x} of {size:#x} bytes is none")
        at = bisect_left(self._starts, iova)
        if (at < len(self._ranges) and self._ranges[at].start < iova + size) or (
            at and self._ranges[at - 1].end > iova
        ):
            raise NetmemError(errno.EEXIST, f"DMA range {iova:#x} of {size:#x} bytes overlaps another")
        if len(self._ranges) >= MAX_MAPS:
            raise NetmemError(errno.ENOSPC, f"{MAX_MAPS} DMA ranges are mapped already")
        host = self._file(fd, offset, size).address + offset if fd >= 0 else 0
        self._starts.insert(at, iova)
        self._ranges.insert(at, _Range(iova, iova + size, host, read and host != 0, write and host != 0))
        self.maps += 1

    def _file(self, fd: int, offset: int, size: int) -> _File:
        about = os.fstat(fd)
        over = offset + size - about.st_size
        if over > 0:
            raise NetmemError(errno.EINVAL, f"DMA range ends {over} bytes after its file")
        key = about.st_dev, about.st_ino, about.st_size  # one that grew is mapped once more
        if key not in self._files:
            self._files[key] = _File(fd, about.st_size)
        return self._files[key]

    def unmap(self, iova: int, size: int) -> int:
        """Unmap whatever lies in a range; how many bytes. EINVAL when a mapping reaches out of it."""
        first, last = bisect_left(self._starts, iova), bisect_left(self._starts, iova + size)
        if (first and self._ranges[first - 1].end > iova) or (
            last > first and self._ranges[last - 1].end > iova + size
        ):
            raise NetmemError(errno.EINVAL, f"DMA range {iova:#x} of {size:#x} bytes cuts a mapping in two")
        gone = self._ranges[first:last]
        del self._starts[first:last], self._ranges[first:last]
        self._last = None
        self.unmaps += len(gone)
        return sum(one.end - one.start for one in gone)

    def unmap_all(self) -> int:
        """Unmap everything, and let go of the files; how many bytes."""
        size = sum(one.end - one.start for one in self._ranges)
        self.unmaps += len(self._ranges)
        self._starts.clear()
        self._ranges.clear()
        self._last = None
        for file in self._files.values():
            file.close()
        self._files.clear()
        return size

    # -- accesses -----------------------------------------------------------------------------

    def pieces(self, iova: int, size: int, *, write: bool) -> Iterator[tuple[int, int]]:
        """Where ``size`` bytes lie in our memory: (address, bytes), one behind the other. DmaFault."""
        while size:
            one = self._last
            if one is None or not one.start <= iova < one.end:
                at = bisect_right(self._starts, iova) - 1
                one = self._ranges[at] if at >= 0 else None
                if one is None or iova >= one.end:
                    raise self._fault(iova, size, write, "nothing is mapped there")
                self._last = one
            if not (one.writable if write else one.readable):
                raise self._fault(iova, size, write, "what is mapped there does not allow it")
            part = min(size, one.end - iova)
            yield one.host + iova - one.start, part
            iova, size = iova + part, size - part

    def _fault(self, iova: int, size: int, write: bool, why: str) -> DmaFault:
        fault = DmaFault(iova, size, write, why)
        self.faults.append(fault)
        self.fault_count += 1
        return fault

    def address(self, iova: int, size: int, *, write: bool) -> int:
        """The address of ``size`` bytes that one mapping holds: a ring's entry. DmaFault."""
        one = self._last
        if one is not None and one.start <= iova and iova + size <= one.end:
            if one.writable if write else one.readable:
                return one.host + iova - one.start
        ((address, part),) = [next(self.pieces(iova, size, write=write))]
        if part != size:
            raise self._fault(iova + part, size - part, write, "one entry lies in two mappings")
        return address

    def read(self, iova: int, size: int) -> bytes:
        """``size`` bytes at an I/O virtual address. DmaFault."""
        return b"".join(ctypes.string_at(at, part) for at, part in self.pieces(iova, size, write=False))

    def write(self, iova: int, data: bytes) -> None:
        """Write at an I/O virtual address: all of it or, after a DmaFault, nothing."""
        done = 0
        for at, part in list(self.pieces(iova, len(data), write=True)):
            ctypes.memmove(at, data[done : done + part], part)
            done += part

    def copy_in(self, iova: int, source: int, size: int) -> None:
        """Copy ``size`` bytes from our memory into the guest's: all of it or, after a DmaFault, nothing."""
        for at, part in list(self.pieces(iova, size, write=True)):
            ctypes.memmove(at, source, part)
            source += part

    def copy_out(self, target: int, iova: int, size: int) -> None:
        """Copy ``size`` bytes of the guest's memory into ours. DmaFault."""
        for at, part in self.pieces(iova, size, write=False):
            ctypes.memmove(target, at, part)
            target += part
