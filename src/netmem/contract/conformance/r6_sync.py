"""R6: the pool syncs payload for the CPU, all of it, and nobody else does."""

from __future__ import annotations

from netmem.contract.report import Violation
from netmem.contract.rig import PORT, QUEUE, MakeDriver, Rig, payload
from netmem.inet.socket import TcpSocket

SIZE = 60_000
SMALL = (1, 40, 199)


def _compare(rig: Rig, ours: TcpSocket, theirs: TcpSocket, size: int, seed: int) -> None:
    got, _ = rig.send(theirs, ours, payload(size, seed))
    if got != payload(size, seed):
        fresh = sum(a == b for a, b in zip(got, payload(size, seed), strict=False))
        raise Violation("R6", f"old bytes: {size - fresh} of {size} were never synced for the CPU")


def check_r6_sync(make_driver: MakeDriver, memory: str = "pages") -> str:
    """Over a bus that bounces page mappings: without a sync through the pool old bytes would arrive."""
    with Rig(make_driver, memory, bounce=True) as rig:
        rig.bind()
        ours, theirs, _ = rig.net.connect(PORT)
        _compare(rig, ours, theirs, SIZE, 7)
        for size in SMALL:
            _compare(rig, ours, theirs, size, size)
        pool = rig.dev.rx_queues[QUEUE].pool
        assert pool is not None
        synced = pool.record.counters.sync_cpu + pool.record.counters.sync_cpu_noop
        packets = SIZE // 1460
        if synced < packets:
            raise Violation(
                "R6", f"{synced} calls of page_pool_dma_sync_netmem_for_cpu() for at least {packets} packets"
            )
        copies = pool.record.counters.sync_cpu
        if "rx_buf_len" in rig.dev.driver.supported_ring_params:
            rig.dev.ethtool.set_ringparam(rx_buf_len=1024)  # a full packet takes two of these
            _compare(rig, ours, theirs, SIZE // 2, 8)
    return f"{synced} syncs through the pool, of which {copies} had something to copy"
