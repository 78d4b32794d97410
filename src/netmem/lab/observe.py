"""What a running process's devices, pools and sockets are doing, seen from outside through /proc."""

from __future__ import annotations

from typing import Any

import numpy as np

from netmem.base.arena import Words, offsets
from netmem.base.board import arena_words, boards
from netmem.base.formats import endpoint, ip_number
from netmem.inet.tcp import receive as rx
from netmem.inet.tcp import tcb as T
from netmem.memory.page_pool import accounts
from netmem.netdev import ring
from netmem.netdev.batch import M_COUNTERS, NETDEV_COUNTERS

RING_COUNTERS = {
    name: at for name, at in offsets(vars(ring), "S_").items() if ring.S_PACKETS <= at < ring.S_DRIVER
}


def observe(pid: int | None = None) -> list[dict[str, Any]]:
    """Every net device of this user's processes (or of one), as plain numbers and names.

    Each has its process id, device and ring settings, ``queues`` (with provider, counters and pool
    accounts), ``pools`` that have no queue any more but netmems out, ``sockets`` with the tokens that
    the application holds, and counters. Nothing in the other process stops or answers for it, so
    numbers that belong together may be a moment apart.
    """
    found = []
    for owner, board in boards(pid):
        if board["name"] == "gateway" and pid is None:
            continue  # the far end of a software NIC's cable, in the NIC's own process
        try:
            found.append(_device(owner, board))
        except (OSError, ValueError, IndexError):
            continue  # it is closing: a descriptor that the board names is another file by now
    return found


def _words(pid: int, fd: int) -> Words:
    return arena_words(pid, fd).copy()


def _device(pid: int, board: dict[str, Any]) -> dict[str, Any]:
    pools = {
        pool["id"]: {**pool, **accounts(_words(pid, pool["words"]), _words(pid, pool["area"]))}
        for pool in board["pools"]
    }
    for pool in pools.values():
        del pool["words"], pool["area"]
    queues = []
    for queue in board["queues"]:
        counters = {}
        if queue["ring"] >= 0:
            words = _words(pid, queue["ring"])
            counters = {name: int(words[at]) for name, at in RING_COUNTERS.items()}
        queues.append(
            {"id": queue["id"], "provider": queue["provider"], **counters, "pool": pools.get(queue["pool"])}
        )
    in_use = {queue["pool"] for queue in board["queues"]}
    batch = _words(pid, board["batch"])
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
        "counters": {name: int(batch[M_COUNTERS + at]) for name, at in NETDEV_COUNTERS.items()},
    }
    if board["stack"]:
        words = _words(pid, board["stack"]["globals"])
        device["tcp"] = {name: int(words[T.G_COUNTERS + at]) for name, at in T.TCP_COUNTERS.items()}
        table = arena_words(pid, board["stack"]["table"])
        rows = table[: int(words[T.G_ROWS]) * T.TCB_WORDS].reshape(-1, T.TCB_WORDS)
        device["sockets"] = [_socket(pid, row) for row in rows[np.flatnonzero(rows[:, T.STATE])]]
    return device


def _socket(pid: int, row: Words) -> dict[str, Any]:
    tokens = 0
    if row[T.TOKENS_FD]:
        try:
            table = arena_words(pid, int(row[T.TOKENS_FD]))
            tokens = int(table[rx.TK_CAPACITY] - table[rx.TK_FREE])
        except (OSError, ValueError, IndexError):
            pass  # closed since
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
        "tokens": tokens,
    }
