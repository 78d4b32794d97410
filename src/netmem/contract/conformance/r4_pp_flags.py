"""R4: DMA_MAP and DMA_SYNC_DEV always, ALLOW_UNREADABLE_NETMEM if and only if split is on; the pool maps."""

from __future__ import annotations

from netmem.base.ethtool import TcpDataSplit
from netmem.contract.report import Violation
from netmem.contract.rig import MakeDriver, Rig, payload
from netmem.memory.layout import PP_FLAG_ALLOW_UNREADABLE_NETMEM
from netmem.memory.page_pool import PagePool
from netmem.testing import frames

FULL = 1446  # bytes of payload of a frame of 1500


def check_r4_pp_flags(make_driver: MakeDriver, memory: str = "none") -> str:
    """Every pool that the driver makes with split on, off and unknown; and who asked the bus to map."""
    seen = 0
    with Rig(make_driver, alone=True) as rig:
        on, off = TcpDataSplit.ENABLED, TcpDataSplit.DISABLED
        for value in (TcpDataSplit.UNKNOWN, on, off, on):
            rig.split(value)
            rig.inspect()
            pools = rig.payload_pools()
            if len(pools) != len(rig.dev.rx_queues):
                raise Violation("R1", f"{len(pools)} payload pools for {len(rig.dev.rx_queues)} queues")
            seen += len(pools)
            for pool in rig.header_pools():
                if pool.params.flags & PP_FLAG_ALLOW_UNREADABLE_NETMEM:
                    rig.note("R4", "a pool beside the payload pools, for headers, allows unreadable netmem")
            for queue, pool in enumerate(pools):
                _looks_at_length(rig, queue, pool)
    return f"{seen} payload pools looked at, with split unknown, on and off"


def _looks_at_length(rig: Rig, queue: int, pool: PagePool) -> None:
    """What the device writes to a buffer is what the pool syncs (max_len)."""
    rig.lead(queue)
    sizes = [row.size for row in rig.rows(frames.tcp(payload(FULL))) if row.netmem]
    if sizes and max(sizes) > pool.params.max_len:
        text = f"{max(sizes)} bytes came in a buffer of queue {queue}, whose pool syncs {pool.params.max_len}"
        rig.note("R4", text)
