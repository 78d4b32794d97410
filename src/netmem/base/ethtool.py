"""Settings that our devices and the kernel's have in common, in ethtool's terms."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class TcpDataSplit(enum.IntEnum):
    """ETHTOOL_TCP_DATA_SPLIT_*."""

    UNKNOWN = 0
    DISABLED = 1
    ENABLED = 2


@dataclass(frozen=True, kw_only=True)
class SteeringRule:
    """One exact-match rule (ETHTOOL_SRXCLSRLINS): fields left 0 match anything.

    Addresses are IPv4 addresses of 32 bits, or numbers of 128 bits (``base.address.ip``).
    """

    queue: int
    src_ip: int = 0
    dst_ip: int = 0
    src_port: int = 0
    dst_port: int = 0
    proto: int = 6
