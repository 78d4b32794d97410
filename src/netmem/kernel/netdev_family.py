"""The kernel's generic netlink family ``netdev``, in pyroute2's terms: queues, NAPI, page pools, bindings.

Commands and attributes are those of Documentation/netlink/specs/netdev.yaml (include/uapi/linux/netdev.h).
A kernel that is older than an attribute does not send it; one that is newer sends more than is named here.
"""

from __future__ import annotations

import enum
import errno
import sys
from collections.abc import Iterable
from typing import Any

from pyroute2.netlink import NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from netmem.base.errors import NetmemError

FAMILY, VERSION = "netdev", 1
SCOPE_QUEUE = 1  # NETDEV_QSTATS_SCOPE_QUEUE


class Cmd(enum.IntEnum):
    """NETDEV_CMD_*."""

    DEV_GET = 1
    PAGE_POOL_GET = 5
    PAGE_POOL_STATS_GET = 9
    QUEUE_GET = 10
    NAPI_GET = 11
    QSTATS_GET = 12
    BIND_RX = 13
    NAPI_SET = 14
    BIND_TX = 15


class QueueType(enum.IntEnum):
    """NETDEV_QUEUE_TYPE_*."""

    RX = 0
    TX = 1


class netdev_queue(genlmsg):
    """NETDEV_A_QUEUE_*."""

    nla_map = (
        ("NETDEV_A_QUEUE_UNSPEC", "none"),
        ("NETDEV_A_QUEUE_ID", "uint32"),
        ("NETDEV_A_QUEUE_IFINDEX", "uint32"),
        ("NETDEV_A_QUEUE_TYPE", "uint32"),
        ("NETDEV_A_QUEUE_NAPI_ID", "uint32"),
        ("NETDEV_A_QUEUE_DMABUF", "uint32"),
        ("NETDEV_A_QUEUE_IO_URING", "cdata"),  # a nest: that it is there says it
        ("NETDEV_A_QUEUE_XSK", "cdata"),
        ("NETDEV_A_QUEUE_LEASE", "cdata"),
    )


class netdev_napi(genlmsg):
    """NETDEV_A_NAPI_*."""

    nla_map = (
        ("NETDEV_A_NAPI_UNSPEC", "none"),
        ("NETDEV_A_NAPI_IFINDEX", "uint32"),
        ("NETDEV_A_NAPI_ID", "uint32"),
        ("NETDEV_A_NAPI_IRQ", "uint32"),
        ("NETDEV_A_NAPI_PID", "uint32"),
        ("NETDEV_A_NAPI_DEFER_HARD_IRQS", "uint32"),
        ("NETDEV_A_NAPI_GRO_FLUSH_TIMEOUT", "cdata"),
        ("NETDEV_A_NAPI_IRQ_SUSPEND_TIMEOUT", "cdata"),
        ("NETDEV_A_NAPI_THREADED", "uint32"),
    )


POOL = (
    ("NETDEV_A_PAGE_POOL_UNSPEC", "none"),
    ("NETDEV_A_PAGE_POOL_ID", "cdata"),
    ("NETDEV_A_PAGE_POOL_IFINDEX", "uint32"),
    ("NETDEV_A_PAGE_POOL_NAPI_ID", "cdata"),
    ("NETDEV_A_PAGE_POOL_INFLIGHT", "cdata"),
    ("NETDEV_A_PAGE_POOL_INFLIGHT_MEM", "cdata"),
    ("NETDEV_A_PAGE_POOL_DETACH_TIME", "cdata"),
    ("NETDEV_A_PAGE_POOL_DMABUF", "uint32"),
    ("NETDEV_A_PAGE_POOL_IO_URING", "cdata"),
)


class netdev_page_pool(genlmsg):
    """NETDEV_A_PAGE_POOL_*."""

    nla_map = POOL


class netdev_page_pool_stats(genlmsg):
    """NETDEV_A_PAGE_POOL_STATS_*: the pool, and its counters from 8 on."""

    nla_map = (
        ("NETDEV_A_PAGE_POOL_STATS_UNSPEC", "none"),
        ("NETDEV_A_PAGE_POOL_STATS_INFO", "info"),
        *((f"NETDEV_A_PAGE_POOL_STATS_UNUSED{i}", "none") for i in range(2, 8)),
        ("NETDEV_A_PAGE_POOL_STATS_ALLOC_FAST", "cdata"),
        ("NETDEV_A_PAGE_POOL_STATS_ALLOC_SLOW", "cdata"),
        ("NETDEV_A_PAGE_POOL_STATS_ALLOC_SLOW_HIGH_ORDER", "cdata"),
        ("NETDEV_A_PAGE_POOL_STATS_ALLOC_EMPTY", "cdata"),
        ("NETDEV_A_PAGE_POOL_STATS_ALLOC_REFILL", "cdata"),
        ("NETDEV_A_PAGE_POOL_STATS_ALLOC_WAIVE", "cdata"),
        ("NETDEV_A_PAGE_POOL_STATS_RECYCLE_CACHED", "cdata"),
        ("NETDEV_A_PAGE_POOL_STATS_RECYCLE_CACHE_FULL", "cdata"),
        ("NETDEV_A_PAGE_POOL_STATS_RECYCLE_RING", "cdata"),
        ("NETDEV_A_PAGE_POOL_STATS_RECYCLE_RING_FULL", "cdata"),
        ("NETDEV_A_PAGE_POOL_STATS_RECYCLE_RELEASED_REFCNT", "cdata"),
    )

    class info(nla):
        """The pool that the counters are of."""

        nla_map = POOL


class netdev_qstats(genlmsg):
    """NETDEV_A_QSTATS_*, as far as every driver has them."""

    nla_map = (
        ("NETDEV_A_QSTATS_UNSPEC", "none"),
        ("NETDEV_A_QSTATS_IFINDEX", "uint32"),
        ("NETDEV_A_QSTATS_QUEUE_TYPE", "uint32"),
        ("NETDEV_A_QSTATS_QUEUE_ID", "uint32"),
        ("NETDEV_A_QSTATS_SCOPE", "uint32"),
        *((f"NETDEV_A_QSTATS_UNUSED{i}", "none") for i in range(5, 8)),
        ("NETDEV_A_QSTATS_RX_PACKETS", "cdata"),
        ("NETDEV_A_QSTATS_RX_BYTES", "cdata"),
        ("NETDEV_A_QSTATS_TX_PACKETS", "cdata"),
        ("NETDEV_A_QSTATS_TX_BYTES", "cdata"),
        ("NETDEV_A_QSTATS_RX_ALLOC_FAIL", "cdata"),
    )


class netdev_dmabuf(genlmsg):
    """NETDEV_A_DMABUF_*."""

    nla_map = (
        ("NETDEV_A_DMABUF_UNSPEC", "none"),
        ("NETDEV_A_DMABUF_IFINDEX", "uint32"),
        ("NETDEV_A_DMABUF_QUEUES", "queue"),  # one for each queue
        ("NETDEV_A_DMABUF_FD", "uint32"),
        ("NETDEV_A_DMABUF_ID", "uint32"),
        ("NETDEV_A_DMABUF_RX_PAGE_SIZE", "uint32"),
    )

    class queue(nla):
        """NETDEV_A_QUEUE_ID and NETDEV_A_QUEUE_TYPE."""

        nla_flags = NLA_F_NESTED
        nla_map = netdev_queue.nla_map[:4]


class NetdevFamily:
    """A socket for the family. Opening: EOPNOTSUPP where the kernel does not have it.

    What is bound through it is unbound when it is closed, or its process ends.
    """

    def __init__(self) -> None:
        self._socket = GenericNetlinkSocket(ext_ack=True)
        try:
            self._socket.bind(FAMILY, netdev_queue)
        except NetlinkError:
            self._socket.close()
            raise NetmemError(
                errno.EOPNOTSUPP,
                f"this kernel has no netlink family {FAMILY}: Linux 6.3 has it, queues and page pools 6.8",
            ) from None

    def dump(
        self, cmd: Cmd, message: type[genlmsg], prefix: str, attributes: Iterable[tuple[str, int]] = ()
    ) -> list[dict[str, Any]]:
        """All objects that a command lists: attributes by name, without ``prefix``, in lower case."""
        request = message()
        request["attrs"] = list(attributes)
        answers = self._request(cmd, request, NLM_F_DUMP)
        return [plain(answer["attrs"], prefix) for answer in answers]

    def _request(self, cmd: Cmd, request: genlmsg, flags: int) -> list[Any]:
        """The answers to a message, but for the acknowledgement. The kernel's errno and text."""
        request["cmd"], request["version"] = int(cmd), VERSION
        self._socket.marshal.msg_map[self._socket.prid] = type(request)
        try:
            answers = self._socket.nlm_request(
                request, msg_type=self._socket.prid, msg_flags=NLM_F_REQUEST | flags
            )
            return list(answers)
        except NetlinkError as error:
            raise NetmemError(error.code, f"netdev {cmd.name.lower()}: {error.args[-1]}") from None

    def bind_rx(self, ifindex: int, queues: Iterable[int], fd: int, rx_page_size: int = 0) -> int:
        """Bind a dma-buf's descriptor to receive queues, until the family is closed; the binding's id.

        Errors are those of netdev_nl_bind_rx_doit; ``netmem.kernel.rules`` has them all.
        """
        request = netdev_dmabuf()
        request["attrs"] = [
            ("NETDEV_A_DMABUF_IFINDEX", ifindex),
            ("NETDEV_A_DMABUF_FD", fd),
            *(("NETDEV_A_DMABUF_QUEUES", _rx_queue(queue)) for queue in queues),
            *([("NETDEV_A_DMABUF_RX_PAGE_SIZE", rx_page_size)] if rx_page_size else []),
        ]
        return self._binding(Cmd.BIND_RX, request)

    def bind_tx(self, ifindex: int, fd: int) -> int:
        """Let sockets send from a dma-buf through a device, until the family is closed; the binding's id.

        Needs no privilege. EOPNOTSUPP from a driver that sends no netmem.
        """
        request = netdev_dmabuf()
        request["attrs"] = [("NETDEV_A_DMABUF_IFINDEX", ifindex), ("NETDEV_A_DMABUF_FD", fd)]
        return self._binding(Cmd.BIND_TX, request)

    def _binding(self, cmd: Cmd, request: genlmsg) -> int:
        for answer in self._request(cmd, request, NLM_F_ACK):
            if found := answer.get_attr("NETDEV_A_DMABUF_ID"):
                return int(found)
        raise NetmemError(errno.EPROTO, f"netdev {cmd.name.lower()}: the kernel did not name the binding")

    def queue_get(self) -> list[dict[str, Any]]:
        """id, ifindex, type (QueueType), napi_id, dmabuf (a binding's id), io_uring, xsk."""
        return self.dump(Cmd.QUEUE_GET, netdev_queue, "NETDEV_A_QUEUE_")

    def napi_get(self) -> list[dict[str, Any]]:
        """ifindex, id, irq, pid, defer_hard_irqs, gro_flush_timeout, irq_suspend_timeout, threaded."""
        return self.dump(Cmd.NAPI_GET, netdev_napi, "NETDEV_A_NAPI_")

    def page_pool_get(self) -> list[dict[str, Any]]:
        """id, ifindex, napi_id, inflight, inflight_mem, detach_time (s since boot), dmabuf, io_uring."""
        return self.dump(Cmd.PAGE_POOL_GET, netdev_page_pool, "NETDEV_A_PAGE_POOL_")

    def page_pool_stats_get(self) -> list[dict[str, Any]]:
        """info (of ``page_pool_get``), and counters. EOPNOTSUPP without CONFIG_PAGE_POOL_STATS."""
        return self.dump(Cmd.PAGE_POOL_STATS_GET, netdev_page_pool_stats, "NETDEV_A_PAGE_POOL_STATS_")

    def qstats_get(self, ifindex: int) -> list[dict[str, Any]]:
        """Of each queue of a device: queue_type, queue_id, and what its driver counts of rx_packets,
        rx_bytes, tx_packets, tx_bytes, rx_alloc_fail. EOPNOTSUPP from a driver that counts nothing by queue.
        """
        wanted = (("NETDEV_A_QSTATS_IFINDEX", ifindex), ("NETDEV_A_QSTATS_SCOPE", SCOPE_QUEUE))
        return self.dump(Cmd.QSTATS_GET, netdev_qstats, "NETDEV_A_QSTATS_", wanted)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> NetdevFamily:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _rx_queue(queue: int) -> dict[str, Any]:
    return {"attrs": [("NETDEV_A_QUEUE_ID", queue), ("NETDEV_A_QUEUE_TYPE", int(QueueType.RX))]}


def plain(attributes: Any, prefix: str) -> dict[str, Any]:
    """Attributes as names and numbers. ``uint`` is of four or eight bytes, as large as it must be."""
    found: dict[str, Any] = {}
    for name, value in attributes:
        if isinstance(value, bytes):
            value = int.from_bytes(value, sys.byteorder) if len(value) in (4, 8) else True
        elif isinstance(value, nla):
            value = plain(value["attrs"], "NETDEV_A_PAGE_POOL_")
        found[name.removeprefix(prefix).lower()] = value
    return found
