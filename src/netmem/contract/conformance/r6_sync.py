"""R6: the pool syncs payload for the CPU, all of it, and nobody else does."""

from __future__ import annotations

from netmem.contract.report import Violation
from netmem.contract.rig import PORT, QUEUE, MakeDriver, Rig, payload

SIZE = 60_000


def check_r6_sync(make_driver: MakeDriver, memory: str = "pages") -> str:
    """Over a bus that bounces page mappings: without a sync through the pool old bytes would arrive."""
    with Rig(make_driver, memory, bounce=True) as rig:
        rig.bind()
        ours, theirs, _ = rig.net.connect(PORT)
        got, _ = rig.send(theirs, ours, payload(SIZE))
        if got != payload(SIZE):
            fresh = sum(a == b for a, b in zip(got, payload(SIZE), strict=False))
            raise Violation("R6", f"old bytes: {SIZE - fresh} of {SIZE} were never synced for the CPU")
        pool = rig.dev.rx_queues[QUEUE].pool
        assert pool is not None
        synced = pool.record.counters.sync_cpu + pool.record.counters.sync_cpu_noop
        packets = SIZE // 1460
        if synced < packets:
            raise Violation(
                "R6", f"{synced} calls of page_pool_dma_sync_netmem_for_cpu() for at least {packets} packets"
            )
        copies = pool.record.counters.sync_cpu
    return f"{synced} syncs through the pool, of which {copies} had something to copy"
