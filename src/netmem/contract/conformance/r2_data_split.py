"""R2: header split is the user's to turn on and off, and the driver does as told."""

from __future__ import annotations

from netmem.base.ethtool import TcpDataSplit
from netmem.contract.report import Violation
from netmem.contract.rig import MakeDriver, Rig, payload
from netmem.testing import frames

HEADERS, SIZE = 54, 1000


def check_r2_data_split(make_driver: MakeDriver, memory: str = "none") -> str:
    """Split on, off and on again: headers and payload of a TCP frame land apart, or in one buffer."""
    if "tcp_data_split" not in getattr(make_driver, "supported_ring_params", ("tcp_data_split",)):
        raise Violation("R2", "supported_ring_params lacks tcp_data_split")
    with Rig(make_driver, alone=True, rx_queues=1) as rig:
        on, off = TcpDataSplit.ENABLED, TcpDataSplit.DISABLED
        for value in (on, off, on, TcpDataSplit.UNKNOWN):
            rig.split(value)
            rows = rig.rows(frames.tcp(payload(SIZE)))
            name = value.name.lower()
            if len(rows) != 1:
                raise Violation("R2", f"with split {name} one frame came as {len(rows)} descriptors")
            got = rows[0].header_len, rows[0].size
            wanted = {on: (HEADERS, SIZE), off: (HEADERS + SIZE, 0)}.get(value, got)
            if got != wanted:
                raise Violation(
                    "R2", f"with split {name} a frame came as {got[0]} + {got[1]} bytes, "
                    f"not as {wanted[0]} + {wanted[1]}"
                )  # fmt: skip
        hits = rig.dev.driver.get_queue_stats(0)["hds_hit"]
    if hits < 2:
        raise Violation("R2", f"hds_hit counts {hits} of at least 2 frames that were split")
    return f"on: {HEADERS} + {SIZE} bytes; off: {HEADERS + SIZE} in one buffer; hds_hit {hits}"


def check_r2_threshold(make_driver: MakeDriver, memory: str = "none") -> str:
    """hds-thresh is refused, or kept: shorter frames are not split."""
    with Rig(make_driver, alone=True, rx_queues=1) as rig:
        if "hds_thresh" not in rig.dev.driver.supported_ring_params:
            return "no threshold, and none claimed"
        rig.split(TcpDataSplit.ENABLED, hds_thresh=SIZE)
        short, long = rig.rows(frames.tcp(payload(SIZE // 2)), frames.tcp(payload(SIZE)))
        if short.header_len == HEADERS or long.header_len != HEADERS:
            raise Violation(
                "R2", f"threshold {SIZE}: frames of {HEADERS + SIZE // 2} and {HEADERS + SIZE} bytes "
                f"came with {short.header_len} and {long.header_len} header bytes"
            )  # fmt: skip
    return f"threshold {SIZE}: shorter frames stay whole"
