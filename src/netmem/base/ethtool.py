"""Settings that our devices and the kernel's have in common, in ethtool's terms."""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass

from netmem.base.errors import NetmemError


class TcpDataSplit(enum.IntEnum):
    """ETHTOOL_TCP_DATA_SPLIT_*."""

    UNKNOWN = 0
    DISABLED = 1
    ENABLED = 2

    @classmethod
    def of(cls, value: TcpDataSplit | int | str) -> TcpDataSplit:
        """What ``value`` stands for: ethtool's word ("auto", "off", "on"), or a member. EINVAL; ERANGE."""
        if isinstance(value, str):
            if value not in WORDS:
                raise NetmemError(errno.EINVAL, f"tcp-data-split {value!r}: on, off or auto")
            return cls(WORDS.index(value))
        if int(value) not in (0, 1, 2):
            raise NetmemError(errno.ERANGE, f"tcp-data-split: integer {int(value)} out of range")
        return cls(int(value))


WORDS = ("auto", "off", "on")  # of TcpDataSplit, as ethtool -G takes them


def switch(name: str, value: bool | str) -> bool:
    """What ``value`` stands for: ethtool's word, "on" or "off", or a bool. EINVAL."""
    if isinstance(value, str) and value not in ("on", "off"):
        raise NetmemError(errno.EINVAL, f"{name} {value!r}: on or off")
    return value == "on" if isinstance(value, str) else bool(value)


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
