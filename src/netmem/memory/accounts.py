"""What is known of a page pool, by name: for the pool itself, and for tools that look from outside."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from netmem.base.record import items
from netmem.memory.layout import AreaRecord, PoolRecord
from netmem.memory.ref import index_of


def accounts(pool: PoolRecord, area: AreaRecord, netmems: npt.NDArray[Any]) -> dict[str, int]:
    """What is known of a pool: id, levels and all counters, by name. Copies of the records will do.

    ``inflight``: taken from the provider and not handed back; ``outstanding``: of these, held by
    somebody outside cache and ring; ``available``: buffers that can still be received into, of
    ``buffers`` in an area that ``share`` pools draw on. ``netmems``: the area's.
    """
    inflight = pool.pages_state_hold_cnt - pool.pages_state_release_cnt
    waiting = pool.alloc.count + pool.ring.producer - pool.ring.consumer
    cutting = pool.frag_netmem
    # The netmem being cut into fragments counts as held only when somebody beside the pool has a part.
    idle = int(cutting != 0 and netmems["pp_ref_count"][index_of(cutting)] == 1)
    per = max(pool.buffers_per_netmem, 1)
    return {
        "id": pool.id,
        "inflight": inflight,
        "inflight_mem": inflight << pool.shift,
        "outstanding": inflight - waiting - pool.released - idle,
        "posted": pool.posted,
        "available": (area.free // max(pool.share, 1) + waiting) * per + pool.posted,
        "share": pool.share,
        "buffers": area.count * per,
        **items(pool.stats),
        **items(pool.counters),
    }
