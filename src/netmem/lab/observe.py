"""What a running process's devices, pools and sockets are doing, seen from outside through /proc."""

from __future__ import annotations

import contextlib
import ctypes
import logging
from typing import Any

import numpy as np

from netmem.base.address import endpoint, ip_number
from netmem.base.arena import Words
from netmem.base.board import arena_words, boards, layout, record_in, table_in
from netmem.base.record import items
from netmem.inet.tcp.receive import TokenTable
from netmem.inet.tcp.tcb import MASK32, StackRecord, Tcb, TcpState
from netmem.inet.udp.table import SOCKETS, UdpSocketRecord
from netmem.memory.accounts import accounts
from netmem.memory.layout import AreaRecord, NetmemRecord, PoolRecord
from netmem.netdev.batch import BatchRecord
from netmem.netdev.ring import RxRingRecord

OURS = "selftest"  # devices that nobody uses: they compile and load what others need
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
        if board.get("name") == OURS or (board.get("name") == "gateway" and pid is None):
            continue  # of a self-test; the far end of a software NIC's cable, in the NIC's own process
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
            counters = {"buf_len": ring.buf_len, **items(ring.counters)}
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
        "retired_pools": [pool for pool in pools.values() if pool["id"] not in in_use and pool["provider"]],
        "sockets": [],
        "counters": items(batch.counters),
        "batches": list(batch.sizes),  # by the bits of their packets
        "waits": [],
    }
    if board["stack"]:
        stack = record_in(arena_words(pid, board["stack"]["globals"]), StackRecord)
        device["tcp"] = items(stack.counters)
        device["waits"] = list(stack.waits)
        tcbs = table_in(arena_words(pid, board["stack"]["table"]), Tcb, 0, stack.rows)
        device["sockets"] = [_socket(pid, tcb) for tcb in tcbs[tcbs["state"] != TcpState.CLOSED]]
        udp = table_in(arena_words(pid, board["stack"]["udp"]), UdpSocketRecord, 0, SOCKETS)
        device["sockets"] += [_udp(pid, sock) for sock in udp[udp["port"] != 0]]
    return device


def _tokens(pid: int, fd: int) -> int:
    """Tokens that the application has of a socket."""
    if fd:
        with contextlib.suppress(OSError, ValueError, IndexError):  # closed since
            table = record_in(arena_words(pid, fd), TokenTable)
            return table.capacity - table.free
    return 0


def _udp(pid: int, sock: np.void) -> dict[str, Any]:
    port = int(sock["peer_port"])
    peer = endpoint(ip_number(int(sock["peer_hi"]), int(sock["peer"])), port) if port else ""
    return {
        "peer": peer, "port": int(sock["port"]), "state": "UDP", "queue": None,
        "bytes_in": None, "bytes_out": None, "queued": int(sock["bytes"]), "out_of_order": 0,
        "window": None, "pledged": 0, "buffers": int(sock["buffers"]),
        "tokens": _tokens(pid, int(sock["tokens_fd"])), "datagrams": int(sock["received"]),
        "dropped": int(sock["dropped"]),
    }  # fmt: skip


def _socket(pid: int, tcb: np.void) -> dict[str, Any]:
    ports = int(tcb["ports"])
    return {
        "peer": endpoint(ip_number(int(tcb["raddr_hi"]), int(tcb["raddr"])), ports >> 16),
        "port": ports & 0xFFFF,
        "state": TcpState(tcb["state"]).title,
        "queue": int(tcb["queue"]),
        "bytes_in": int(tcb["bytes_in"]),
        "bytes_out": int(tcb["bytes_out"]),
        "queued": int(tcb["rq_bytes"]),
        "out_of_order": int(tcb["oq_bytes"]),
        "window": int(tcb["rcv_adv"] - tcb["rcv_nxt"]) & MASK32,
        "pledged": int(tcb["pledged"]),
        "buffers": int(tcb["rq_bufs"] + tcb["oq_bufs"]),
        "tokens": _tokens(pid, int(tcb["tokens_fd"])),
    }
