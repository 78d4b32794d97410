"""R4: DMA_MAP and DMA_SYNC_DEV always, ALLOW_UNREADABLE_NETMEM if and only if split is on; the pool maps."""

from __future__ import annotations

from netmem.base.ethtool import TcpDataSplit
from netmem.contract.report import Violation
from netmem.contract.rig import MakeDriver, Rig
from netmem.memory.layout import PP_FLAG_ALLOW_UNREADABLE_NETMEM


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
            for pool in set(rig.dev.page_pools) - set(pools):
                if pool.destroyed_at is None and pool.params.flags & PP_FLAG_ALLOW_UNREADABLE_NETMEM:
                    rig.note("R4", "a pool beside the payload pools, for headers, allows unreadable netmem")
    return f"{seen} payload pools looked at, with split unknown, on and off"
