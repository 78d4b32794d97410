"""What a running process's devices, pools and sockets are doing, seen from outside through /proc."""

from __future__ import annotations

import contextlib
import ctypes
import logging
from typing import Any

import numpy as np

from netmem.base.arena import Words
from netmem.base.board import arena_words, boards, layout, record_in, table_in
from netmem.base.formats import endpoint, ip_number
from netmem.base.record import items
from netmem.inet.tcp import receive as rx
from netmem.inet.tcp import tcb as T
from netmem.inet.udp import kernels as uk
from netmem.memory.layout import AreaRecord, NetmemRecord, PoolRecord
from netmem.memory.page_pool import accounts
from netmem.netdev.batch import BatchRecord
from netmem.netdev.ring import RxRingRecord

log = logging.getLogger("netmem.observe")


def observe(pid: int | None = None) -> list[dict[str, Any]]:
    """Every net device of this user's processes (or of one), as plain numbers and names.

    Each has its process id, device and ring settings, ``queues`` (with provider, counters and pool
    accounts), ``pools`` that have no queue any more but netmems out, ``sockets`` with the tokens that
    the application holds, and counters. Nothing in the other process stops or answers for it, so
    numbers that belong together may be a moment apart.
    """
    found = []
    for owner, board in boards(pid):
        if board.get("name") == "gateway" and pid is None:
            continue  # the far end of a software NIC's cable, in the NIC's own process
        if board.get("layout") != layout():
            log.warning("process %d runs another version of netmem: it cannot be looked at", owner)
            continue
        try:
            found.append(_device(owner, board))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
            continue  # it is closing: a descriptor that the board names is another file by now
    return found


def _accounts(pool: Words, area: Words) -> dict[str, int]:
    head = record_in(area, AreaRecord)
    netmems = table_in(area, NetmemRecord, ctypes.sizeof(AreaRecord), head.count)
    return accounts(record_in(pool, PoolRecord), head, netmems)


def _device(pid: int, board: dict[str, Any]) -> dict[str, Any]:
    pools = {
        pool["id"]: {**pool, **_accounts(arena_words(pid, pool["words"]), arena_words(pid, pool["area"]))}
        for pool in board["pools"]
    }
    for pool in pools.values():
        del pool["words"], pool["area"]
    queues = []
    for queue in board["queues"]:
        counters = {}
        if queue["ring"] >= 0:
            ring = record_in(arena_words(pid, queue["ring"]), RxRingRecord)
            counters = items(ring.counters)
        queues.append(
            {"id": queue["id"], "provider": queue["provider"], **counters, "pool": pools.get(queue["pool"])}
        )
    in_use = {queue["pool"] for queue in board["queues"]}
    batch = record_in(arena_words(pid, board["batch"]), BatchRecord)
    device = {
        "pid": pid,
        **{name: board[name] for name in ("name", "driver", "mtu", "running", "present", "link", "ring")},
        "mac": board["mac"].to_bytes(6, "big").hex(":"),
        "addresses": board["stack"].get("addresses"),
        "queues": queues,
        "retired_pools": [
            pool for pool in pools.values() if pool["id"] not in in_use and pool["provider"]
        ],
        "sockets": [],
        "counters": items(batch.counters),
    }
    if board["stack"]:
        words = arena_words(pid, board["stack"]["globals"])
        device["tcp"] = {name: int(words[T.G_COUNTERS + at]) for name, at in T.TCP_COUNTERS.items()}
        table = arena_words(pid, board["stack"]["table"])
        rows = table[: int(words[T.G_ROWS]) * T.TCB_WORDS].reshape(-1, T.TCB_WORDS)
        device["sockets"] = [_socket(pid, row) for row in rows[np.flatnonzero(rows[:, T.STATE])]]
        udp = arena_words(pid, board["stack"]["udp"])[: uk.SOCKETS * uk.U_WORDS].reshape(-1, uk.U_WORDS)
        device["sockets"] += [_udp(pid, row) for row in udp[np.flatnonzero(udp[:, uk.U_PORT])]]
    return device


def _tokens(pid: int, fd: int) -> int:
    """Tokens that the application has of a socket."""
    if fd:
        with contextlib.suppress(OSError, ValueError, IndexError):  # closed since
            table = arena_words(pid, fd)
            return int(table[rx.TK_CAPACITY] - table[rx.TK_FREE])
    return 0


def _udp(pid: int, row: Words) -> dict[str, Any]:
    peer = ""
    if row[uk.U_PEER_PORT]:
        peer = endpoint(ip_number(int(row[uk.U_PEER_HI]), int(row[uk.U_PEER])), int(row[uk.U_PEER_PORT]))
    return {
        "peer": peer, "port": int(row[uk.U_PORT]), "state": "UDP", "queue": None,
        "bytes_in": None, "bytes_out": None, "queued": int(row[uk.U_BYTES]), "out_of_order": 0,
        "window": None, "pledged": 0, "buffers": int(row[uk.U_BUFS]),
        "tokens": _tokens(pid, int(row[uk.U_TOKENS_FD])), "datagrams": int(row[uk.U_IN]),
        "dropped": int(row[uk.U_DROPPED]),
    }  # fmt: skip


def _socket(pid: int, row: Words) -> dict[str, Any]:
    return {
        "peer": endpoint(ip_number(int(row[T.RADDR_HI]), int(row[T.RADDR])), int(row[T.PORTS]) >> 16),
        "port": int(row[T.PORTS]) & 0xFFFF,
        "state": T.STATE_NAMES[int(row[T.STATE])],
        "queue": int(row[T.QUEUE]),
        "bytes_in": int(row[T.BYTES_IN]),
        "bytes_out": int(row[T.BYTES_OUT]),
        "queued": int(row[T.RQ_BYTES]),
        "out_of_order": int(row[T.OQ_BYTES]),
        "window": int(row[T.RCV_ADV] - row[T.RCV_NXT]) & T.MASK32,
        "pledged": int(row[T.PLEDGED]),
        "buffers": int(row[T.RQ_BUFS] + row[T.OQ_BUFS]),
        "tokens": _tokens(pid, int(row[T.TOKENS_FD])),
    }
