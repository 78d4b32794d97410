"""Areas: runs of equal pieces of memory, with the per-piece record that pool and ledger share."""

from __future__ import annotations

import ctypes
import itertools
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from netmem.base.arena import Arena, Words
from netmem.memory import sanitizer
from netmem.memory.layout import AreaRecord, NetmemRecord
from netmem.memory.ref import AREA_MAX, AREA_SHIFT, indexes_of
from netmem.memory.shadow import shadow_bytes

# Area ids are to netmem what page frame numbers are to the kernel: one number space for the
# process, so that netmem_address() needs nothing but the reference. Nothing else lives here.
_ids = itertools.count(1)
_areas: weakref.WeakValueDictionary[int, Area] = weakref.WeakValueDictionary()


def area_of(area_id: int) -> Area | None:
    """The area with this id, or None when it is gone."""
    return _areas.get(area_id)


class Area:
    """``count`` netmems of ``1 << shift`` bytes each (struct net_iov_area, or a run of pages).

    ``address`` is where the memory is mapped in this process, 0 when it is not; ``net_iov`` says
    which kind of reference the pieces get. ``arena`` holds ``record`` and one NetmemRecord for each piece.
    """

    def __init__(
        self, name: str, count: int, shift: int, *, net_iov: bool, address: int = 0, nid: int = -1
    ) -> None:
        self.id = next(_ids) & AREA_MAX
        while self.id == 0 or self.id in _areas:
            self.id = next(_ids) & AREA_MAX
        self.name, self.count, self.shift = name, count, shift
        self.net_iov, self.address = net_iov, address
        netmems = ctypes.sizeof(AreaRecord)
        stack = netmems + count * ctypes.sizeof(NetmemRecord)
        shadow = stack + 8 * count
        extra = shadow_bytes(count) if sanitizer.ON else 0
        self.arena = Arena(f"area:{self.id}:{name}", shadow + extra)
        self.at = self.arena.address
        self.record = self.arena.record(AreaRecord)
        self.record.id, self.record.count, self.record.shift = self.id, count, shift
        self.record.tag = self.id << AREA_SHIFT | int(net_iov)
        self.record.nid = nid
        self.record.netmems, self.record.free_stack = self.at + netmems, self.at + stack
        self.record.shadow = self.at + shadow if sanitizer.ON else 0
        self._stack: Words = self.arena.bytes[stack:shadow].view(np.int64)
        self._stack[:] = np.arange(count - 1, -1, -1)
        self.record.free = count
        _areas[self.id] = self
        if sanitizer.ON:
            sanitizer.shadowed[self.id] = self.record

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return self.count << self.shift

    @property
    def free(self) -> int:
        """Netmems that no pool holds."""
        return self.record.free

    def netmems(self) -> npt.NDArray[Any]:
        """The NetmemRecords as a structured array of shape (count,)."""
        return self.arena.table(NetmemRecord, ctypes.sizeof(AreaRecord), self.count)

    def take(self, n: int) -> Words:
        """Up to ``n`` free netmems as references, the lowest index first from a fresh area."""
        free = self.record.free
        n = min(n, free)
        index = self._stack[free - n : free][::-1].copy()
        self.record.free = free - n
        return self.record.tag + (index << 1)

    def give(self, refs: Words) -> None:
        """Put netmems back on the free stack; what somebody gives twice may find no room."""
        free = self.record.free
        refs = refs[: self.count - free]
        self._stack[free : free + len(refs)] = indexes_of(refs)
        self.record.free = free + len(refs)

    def close(self) -> None:
        """Forget the area; references to it resolve to nothing."""
        _areas.pop(self.id, None)
        sanitizer.shadowed.pop(self.id, None)
        self.arena.close()
