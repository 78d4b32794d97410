"""The kernel's generic netlink family ``ethtool``, as far as pyroute2 lacks it: header split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket
from pyroute2.netlink.generic.ethtool import (
    ETHTOOL_MSG_RINGS_GET,
    ETHTOOL_MSG_RINGS_SET,
    ethtool_rings_msg,
)

from netmem.base.errors import NetmemError

FAMILY, VERSION = "ethtool", 1
PREFIX = "ETHTOOL_A_RINGS_"


class rings(ethtool_rings_msg):  # type: ignore[misc]
    """With the threshold of header split, which pyroute2 0.9 does not know."""

    nla_map = (
        *ethtool_rings_msg.nla_map,
        ("ETHTOOL_A_RINGS_HDS_THRESH", "uint32"),
        ("ETHTOOL_A_RINGS_HDS_THRESH_MAX", "uint32"),
    )


class EthtoolFamily:
    """A socket for the family; OSError where the kernel does not have it."""

    def __init__(self) -> None:
        self._socket = GenericNetlinkSocket(ext_ack=True)
        try:
            self._socket.bind(FAMILY, rings)
        except NetlinkError as error:
            self._socket.close()
            text = "this kernel has no netlink family ethtool: Linux 5.6 has it"
            raise NetmemError(error.code, text) from None

    def rings_get(self, ifindex: int) -> dict[str, Any]:
        """rx, tx, rx_buf_len, tcp_data_split (1 disabled, 2 enabled), hds_thresh: what the driver tells.

        The kernel's errno: EOPNOTSUPP when the driver tells nothing of its rings.
        """
        (answer,) = self._request(ETHTOOL_MSG_RINGS_GET, ifindex, (), 0)
        return {
            name.removeprefix(PREFIX).lower(): value
            for name, value in answer["attrs"]
            if name != "ETHTOOL_A_RINGS_HEADER"
        }

    def rings_set(self, ifindex: int, **settings: int) -> None:
        """Set what ``rings_get`` returns. The kernel's errno: EOPNOTSUPP for what the driver lacks."""
        attributes = [(PREFIX + name.upper(), value) for name, value in settings.items()]
        self._request(ETHTOOL_MSG_RINGS_SET, ifindex, attributes, NLM_F_ACK)

    def _request(self, cmd: int, ifindex: int, settings: Iterable[tuple[str, int]], flags: int) -> list[Any]:
        request = rings()
        request["cmd"], request["version"] = cmd, VERSION
        request["attrs"] = [
            ("ETHTOOL_A_RINGS_HEADER", {"attrs": [("ETHTOOL_A_HEADER_DEV_INDEX", ifindex)]}),
            *settings,
        ]
        try:
            return list(
                self._socket.nlm_request(request, msg_type=self._socket.prid, msg_flags=NLM_F_REQUEST | flags)
            )
        except NetlinkError as error:
            what = "rings_get" if cmd == ETHTOOL_MSG_RINGS_GET else "rings_set"
            raise NetmemError(error.code, f"ethtool {what}: {error.args[-1]}") from None

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> EthtoolFamily:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
