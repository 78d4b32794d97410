"""What ethtool sets by ioctl, where netlink came later or never: flow rules, the RSS table, feature flags.

Numbers and layouts: include/uapi/linux/ethtool.h, sockios.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from netmem.base.errors import NetmemError

SIOCETHTOOL = 0x8946
GDRVINFO, GFLAGS, SFLAGS = 0x03, 0x25, 0x26
DRVINFO_BYTES = 196  # struct ethtool_drvinfo: driver, version and firmware are three texts of 32 bytes
GRXCLSRLCNT, GRXCLSRULE, GRXCLSRLALL, SRXCLSRLDEL, SRXCLSRLINS = 0x2E, 0x2F, 0x30, 0x31, 0x32
GRXFHINDIR, SRXFHINDIR = 0x38, 0x39
ETH_FLAG_NTUPLE = 1 << 27
FLOW_TYPES = {("tcp", 4): 1, ("udp", 4): 2, ("tcp", 6): 5, ("udp", 6): 6}  # TCP_V4_FLOW and the like
RX_CLS_LOC_SPECIAL, RX_CLS_LOC_ANY = 1 << 31, 0xFFFFFFFF
RXNFC_BYTES, SPEC = 192, 16  # struct ethtool_rxnfc; where struct ethtool_rx_flow_spec begins in it
MASK, COOKIE, LOCATION = SPEC + 76, SPEC + 152, SPEC + 160
RULE_COUNT, RULE_LOCATIONS = 184, 188
PORT_AT = {4: 4 + 10, 6: 4 + 34}  # of the destination port in a flow spec
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Rule:
    """A flow rule: packets of ``proto`` and IP ``version`` to ``dst_port`` go to ``queue``."""

    proto: str
    version: int
    dst_port: int
    queue: int


class EthtoolIoctl:
    """ethtool's ioctls on one device. Errors: the driver's errno; EPERM without CAP_NET_ADMIN; ENODEV."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def rxfh_indir(self) -> npt.NDArray[np.uint32]:
        """The RSS table: a queue for each entry. Empty without one. EOPNOTSUPP."""
        head = bytearray(struct.pack("=II", GRXFHINDIR, 0))
        self._call(head, "read the RSS table")
        (size,) = struct.unpack_from("=I", head, 4)
        if not size:
            return np.zeros(0, np.uint32)
        request = bytearray(struct.pack("=II", GRXFHINDIR, size)) + bytearray(4 * size)
        self._call(request, "read the RSS table")
        return np.frombuffer(bytes(request), np.uint32)[2:]

    def set_rxfh_indir(self, table: npt.NDArray[np.uint32]) -> None:
        """Set the RSS table, of as many entries as it has; an empty one: the driver's default."""
        head = struct.pack("=II", SRXFHINDIR, len(table))
        self._call(bytearray(head + table.astype(np.uint32).tobytes()), "set the RSS table")

    def drvinfo(self) -> dict[str, str]:
        """``ethtool -i``: driver, version, firmware."""
        request = bytearray(struct.pack("=I", GDRVINFO).ljust(DRVINFO_BYTES, b"\0"))
        self._call(request, "read what driver it is")
        words = (bytes(request[at : at + 32]).partition(b"\0")[0] for at in (4, 36, 68))
        return dict(
            zip(
                ("driver", "version", "firmware"),
                (word.decode(errors="replace") for word in words),
                strict=True,
            )
        )

    def ntuple(self) -> bool:
        """Whether flow rules are on (the feature ntuple-filters)."""
        request = bytearray(struct.pack("=II", GFLAGS, 0))
        self._call(request, "read the feature flags")
        return bool(struct.unpack_from("=I", request, 4)[0] & ETH_FLAG_NTUPLE)

    def set_ntuple(self, on: bool) -> None:
        """Turn flow rules on or off. EOPNOTSUPP where they cannot be."""
        request = bytearray(struct.pack("=II", GFLAGS, 0))
        self._call(request, "read the feature flags")
        (flags,) = struct.unpack_from("=I", request, 4)
        flags = flags | ETH_FLAG_NTUPLE if on else flags & ~ETH_FLAG_NTUPLE
        self._call(bytearray(struct.pack("=II", SFLAGS, flags)), "turn ntuple-filters on")
        if self.ntuple() != on:
            word = "on" if on else "off"
            raise NetmemError(errno.EOPNOTSUPP, f"{self.name}: ntuple-filters cannot be turned {word}")

    def add_rule(self, rule: Rule) -> int:
        """Add a flow rule at a free place; its location. EOPNOTSUPP, ENOSPC, EINVAL: what the driver says."""
        any_place, used, places = self.rules()
        if any_place:
            location = RX_CLS_LOC_ANY
        else:
            free = next((at for at in range(places - 1, -1, -1) if at not in used), None)
            if free is None:
                raise NetmemError(errno.ENOSPC, f"{self.name} has no room for another flow rule")
            location = free
        request = bytearray(RXNFC_BYTES)
        struct.pack_into("=I", request, 0, SRXCLSRLINS)
        struct.pack_into("=I", request, SPEC, FLOW_TYPES[rule.proto, rule.version])
        struct.pack_into("!H", request, SPEC + PORT_AT[rule.version], rule.dst_port)
        struct.pack_into("!H", request, MASK - 4 + PORT_AT[rule.version], 0xFFFF)
        struct.pack_into("=QI", request, COOKIE, rule.queue, location)
        self._call(request, f"add a flow rule for port {rule.dst_port}")
        return int(struct.unpack_from("=I", request, LOCATION)[0])

    def rules(self) -> tuple[bool, list[int], int]:
        """Whether the driver places rules itself, the locations in use, and how many there can be."""
        request = bytearray(RXNFC_BYTES)
        struct.pack_into("=I", request, 0, GRXCLSRLCNT)
        self._call(request, "count flow rules")
        (data,) = struct.unpack_from("=Q", request, 8)
        (count,) = struct.unpack_from("=I", request, RULE_COUNT)
        request = bytearray(RXNFC_BYTES + 4 * count)
        struct.pack_into("=I", request, 0, GRXCLSRLALL)
        struct.pack_into("=I", request, RULE_COUNT, count)
        if count:
            self._call(request, "list flow rules")
            (places,) = struct.unpack_from("=Q", request, 8)
            used = list(struct.unpack_from(f"={count}I", request, RULE_LOCATIONS))
        else:
            with contextlib.suppress(NetmemError):
                self._call(request, "list flow rules")
            places, used = struct.unpack_from("=Q", request, 8)[0], []
        return bool(data & RX_CLS_LOC_SPECIAL), used, int(places & 0xFFFFFFFF)

    def rule(self, location: int) -> Rule | None:
        """The rule at a location, as far as it is one of ours: of a destination port; None for any other."""
        request = bytearray(RXNFC_BYTES)
        struct.pack_into("=I", request, 0, GRXCLSRULE)
        struct.pack_into("=I", request, LOCATION, location)
        try:
            self._call(request, f"read flow rule {location}")
        except NetmemError as error:
            if error.errno in (errno.EPERM, errno.ENODEV):
                raise
            return None  # there is none (drivers differ in what they say)
        (kind,) = struct.unpack_from("=I", request, SPEC)
        (queue,) = struct.unpack_from("=Q", request, COOKIE)
        for (proto, version), number in FLOW_TYPES.items():
            if number == kind & 0xFFFF:
                (port,) = struct.unpack_from("!H", request, SPEC + PORT_AT[version])
                return Rule(proto, version, port, int(queue))
        return None

    def delete_rule(self, location: int) -> None:
        """Delete the rule at a location."""
        request = bytearray(RXNFC_BYTES)
        struct.pack_into("=I", request, 0, SRXCLSRLDEL)
        struct.pack_into("=I", request, LOCATION, location)
        self._call(request, f"delete flow rule {location}")

    def _call(self, data: bytearray, what: str) -> None:
        buffer = (ctypes.c_char * len(data)).from_buffer(data)
        ifreq = struct.pack("=16sQ16x", self.name.encode(), ctypes.addressof(buffer))
        if LIBC.ioctl(self._socket.fileno(), ctypes.c_ulong(SIOCETHTOOL), ifreq):
            self._fail(ctypes.get_errno(), what)
        del buffer

    def _fail(self, code: int, what: str) -> NoReturn:
        cure = " (CAP_NET_ADMIN is needed)" if code == errno.EPERM else ""
        raise NetmemError(code, f"{self.name}: cannot {what}: {os.strerror(code)}{cure}")

    def close(self) -> None:
        self._socket.close()
