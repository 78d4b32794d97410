"""R2: header split is the user's to turn on and off, and the driver does as told."""

from __future__ import annotations

from netmem.base.ethtool import TcpDataSplit
from netmem.contract.report import Violation
from netmem.contract.rig import QUEUES, MakeDriver, Rig, payload
from netmem.testing import frames

HEADERS, SIZE = 54, 1000


def check_r2_data_split(make_driver: MakeDriver, memory: str = "none") -> str:
    """Split on, off and on again: headers and payload of a TCP frame land apart, or in one buffer."""
    if "tcp_data_split" not in getattr(make_driver, "supported_ring_params", ("tcp_data_split",)):
        raise Violation("R2", "supported_ring_params lacks tcp_data_split")
    with Rig(make_driver, alone=True) as rig:
        on, off = TcpDataSplit.ENABLED, TcpDataSplit.DISABLED
        for value in (on, off, on, TcpDataSplit.UNKNOWN):
            rig.split(value)
            for queue in range(QUEUES):
                rig.lead(queue)
                _looks_at_frame(rig, queue, value)
                if value == on:  # and stays on when the queue is restarted
                    rig.dev.queues.restart(rig.dev.rx_queues[queue])
                    _looks_at_frame(rig, queue, value)
        hits = [rig.dev.driver.get_queue_stats(queue)["hds_hit"] for queue in range(QUEUES)]
    if min(hits) < 2:
        raise Violation("R2", f"hds_hit counts {min(hits)} of at least 2 frames that were split")
    return f"on: {HEADERS} + {SIZE} bytes; off: all in one buffer; {QUEUES} queues, {sum(hits)} hits"


def _looks_at_frame(rig: Rig, queue: int, value: TcpDataSplit) -> None:
    rows = rig.rows(frames.tcp(payload(SIZE)))
    name = f"with split {value.name.lower()}, queue {queue},"
    if len(rows) != 1:
        raise Violation("R2", f"{name} one frame came as {len(rows)} descriptors")
    got = rows[0].header_len, rows[0].size
    on, off = TcpDataSplit.ENABLED, TcpDataSplit.DISABLED
    wanted = {on: (HEADERS, SIZE), off: (HEADERS + SIZE, 0)}.get(value, got)
    if got != wanted:
        text = f"{name} a frame came as {got[0]} + {got[1]} bytes, not as {wanted[0]} + {wanted[1]}"
        raise Violation("R2", text)


def check_r2_threshold(make_driver: MakeDriver, memory: str = "none") -> str:
    """hds-thresh is refused, or kept: shorter frames are not split."""
    with Rig(make_driver, alone=True, rx_queues=1) as rig:
        if "hds_thresh" not in rig.dev.driver.supported_ring_params:
            return "no threshold, and none claimed"
        for threshold in (SIZE, 2 * HEADERS):
            rig.split(TcpDataSplit.ENABLED, hds_thresh=threshold)
            for length in (threshold // 2 + HEADERS, threshold - 1, threshold, threshold + 1, 2 * threshold):
                size = min(length, 1500) - HEADERS
                (row,) = rig.rows(frames.tcp(payload(size)))
                if (row.header_len == HEADERS) != (size + HEADERS > threshold) and size > 0:
                    raise Violation(
                        "R2", f"threshold {threshold}: a frame of {HEADERS + size} bytes came with "
                        f"{row.header_len} header bytes"
                    )  # fmt: skip
    return f"thresholds {SIZE} and {2 * HEADERS}, to the byte: shorter frames stay whole"
