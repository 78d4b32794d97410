"""Areas: runs of equal pieces of memory, with the per-piece record that pool and ledger share."""

from __future__ import annotations

import itertools
import weakref

import numpy as np

from netmem.base.arena import Arena, Words
from netmem.memory import layout as ly
from netmem.memory import sanitizer
from netmem.memory.shadow import shadow_words

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
    which kind of reference the pieces get. ``arena`` holds reference count, state and time of each.
    """

    def __init__(
        self, name: str, count: int, shift: int, *, net_iov: bool, address: int = 0, nid: int = -1
    ) -> None:
        self.id = next(_ids) & 0xFFFF
        while self.id == 0 or self.id in _areas:
            self.id = next(_ids) & 0xFFFF
        self.name, self.count, self.shift = name, count, shift
        self.net_iov, self.address = net_iov, address
        stack = ly.A_REC + ly.REC_WORDS * count
        shadow = stack + count
        self.arena = Arena(f"area:{self.id}:{name}", shadow + (shadow_words(count) if sanitizer.ON else 0))
        a = self.arena.a
        a[ly.A_ID], a[ly.A_COUNT], a[ly.A_SHIFT] = self.id, count, shift
        a[ly.A_TAG] = self.id << 32 | int(net_iov)
        a[ly.A_NID] = nid
        a[ly.A_STACK] = stack
        a[ly.A_SHADOW] = shadow if sanitizer.ON else 0
        a[stack : stack + count] = np.arange(count - 1, -1, -1)
        a[ly.A_FREE] = count
        _areas[self.id] = self
        if sanitizer.ON:
            sanitizer.shadows[self.id] = a

    @property
    def a(self) -> Words:
        """The arena's words."""
        return self.arena.a

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return self.count << self.shift

    @property
    def free(self) -> int:
        """Netmems that no pool holds."""
        return int(self.a[ly.A_FREE])

    def records(self) -> Words:
        """The per-netmem records, shape (count, 4): reference count, state, time, unused."""
        return self.a[ly.A_REC : ly.A_REC + ly.REC_WORDS * self.count].reshape(-1, ly.REC_WORDS)

    def take(self, n: int) -> Words:
        """Up to ``n`` free netmems as references, the lowest index first from a fresh area."""
        free = int(self.a[ly.A_FREE])
        n = min(n, free)
        at = int(self.a[ly.A_STACK]) + free
        index = self.a[at - n : at][::-1].copy()
        self.a[ly.A_FREE] = free - n
        return self.a[ly.A_TAG] + (index << 1)

    def give(self, refs: Words) -> None:
        """Put netmems back on the free stack."""
        index = (refs >> 1) & 0x7FFFFFFF
        at = int(self.a[ly.A_STACK] + self.a[ly.A_FREE])
        self.a[at : at + len(index)] = index
        self.a[ly.A_FREE] += len(index)

    def close(self) -> None:
        """Forget the area; references to it resolve to nothing."""
        _areas.pop(self.id, None)
        sanitizer.shadows.pop(self.id, None)
        self.arena.close()
