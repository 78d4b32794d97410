"""Who holds which netmems of a running process, and for how long: the kernel only counts them."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from netmem.base.arena import Words
from netmem.base.board import arena_words, boards, layout, record_in, table_in
from netmem.base.formats import endpoint, ip_number
from netmem.inet.tcp import receive as rx
from netmem.inet.tcp import tcb as T
from netmem.inet.udp import kernels as uk
from netmem.memory.layout import AreaRecord, Holder, NetmemRecord
from netmem.memory.ref import ref_of

HOLDERS: dict[int, str] = {
    Holder.DRIVER: "driver",
    Holder.NIC: "ring slot",
    Holder.BATCH: "received batch",
    Holder.TX: "transmit in flight",
}


def leaks(pid: int | None = None) -> list[dict[str, Any]]:
    """Netmems that neither pool nor free list has, by holder, of this user's processes (or of one).

    Rows: ``pid``, ``device``, ``memory`` (what kind), ``holder`` (ring slot, received batch, socket queue,
    out-of-order queue, user token, driver, transmit in flight), ``who`` (the connection, where there is
    one), ``count``, ``bytes``, and ``oldest`` and ``youngest`` in seconds since the netmem last changed
    hands (None: since before the device's first poll).
    """
    found: list[dict[str, Any]] = []
    for owner, board in boards(pid):
        if board.get("name") == "gateway" and pid is None:
            continue
        if board.get("layout") != layout():
            continue  # another version's: ``observe`` says so
        try:
            found += _device(owner, board)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
            continue  # it is closing
    return found


def _device(pid: int, board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    named = _named(pid, board["stack"]) if board["stack"] else {}
    areas = {pool["area"]: pool for pool in [*board["pools"], *board["tx"]]}
    now = time.monotonic_ns()
    for fd, pool in areas.items():
        words = arena_words(pid, fd)
        area = record_in(words, AreaRecord)
        netmems = table_in(words, NetmemRecord, ctypes.sizeof(AreaRecord), area.count)
        holders = netmems["holder"]
        groups: dict[tuple[str, str], list[int]] = {}
        for index in np.flatnonzero((holders > Holder.RING) & (netmems["pp_ref_count"] > 0)).tolist():
            key = named.get(ref_of(area.tag, index)) or (HOLDERS.get(int(holders[index]), "stack"), "")
            groups.setdefault(key, []).append(index)
        for (holder, who), held in sorted(groups.items()):
            times = netmems["changed"][held]
            ages = ((now - times[times > 0]) / 1e9).round(6).tolist()
            yield {
                "pid": pid,
                "device": board["name"],
                "memory": pool["provider"]["memory"] if pool["provider"] else "pages, unbound",
                "holder": holder,
                "who": who,
                "count": len(held),
                "bytes": len(held) << area.shift,
                "oldest": max(ages, default=None),
                "youngest": min(ages, default=None),
            }


def _named(pid: int, stack: dict[str, Any]) -> dict[int, tuple[str, str]]:
    """netmem -> (holder, connection) for what sockets and applications hold."""
    named: dict[int, tuple[str, str]] = {}
    rows_used = int(arena_words(pid, stack["globals"])[T.G_ROWS])
    table = arena_words(pid, stack["table"])[: rows_used * T.TCB_WORDS].reshape(-1, T.TCB_WORDS)
    entries = arena_words(pid, stack["entries"])
    entries = entries[: len(entries) // T.ENTRY_WORDS * T.ENTRY_WORDS].reshape(-1, T.ENTRY_WORDS)
    for row in table:
        who = endpoint(ip_number(int(row[T.RADDR_HI]), int(row[T.RADDR])), int(row[T.PORTS]) >> 16)
        if row[T.STATE] or row[T.RQ_HEAD]:
            for head, holder in ((T.OQ_HEAD, "out-of-order queue"), (T.RQ_HEAD, "socket queue")):
                for ref in _chain(entries, int(row[head])):
                    named[ref] = (holder, who)
        if row[T.TOKENS_FD]:  # last: of a frag that was cut, the application's part counts
            for ref in _tokens(pid, int(row[T.TOKENS_FD])):
                named[ref] = ("user token", who)
    udp = arena_words(pid, stack["udp"])[: uk.SOCKETS * uk.U_WORDS].reshape(-1, uk.U_WORDS)
    for row in udp[np.flatnonzero(udp[:, uk.U_PORT])]:
        who = f"UDP port {int(row[uk.U_PORT])}"
        for ref in _datagrams(entries, int(row[uk.U_HEAD])):
            named[ref] = ("socket queue", who)
        if row[uk.U_TOKENS_FD]:
            for ref in _tokens(pid, int(row[uk.U_TOKENS_FD])):
                named[ref] = ("user token", who)
    return named


def _datagrams(entries: Words, at: int) -> Iterator[int]:
    """netmems of a chain of datagrams: each has a head entry, whose words are an address."""
    for _ in range(len(entries)):
        if not 0 < at < len(entries):
            return
        if entries[at, T.E_KIND] != uk.EK_DGRAM and entries[at, T.E_NETMEM]:
            yield int(entries[at, T.E_NETMEM])
        at = int(entries[at, T.E_NEXT])


def _chain(entries: Words, at: int) -> Iterator[int]:
    """netmems of a chain of receive entries, each once, however garbled it is by changes under way."""
    for _ in range(len(entries)):
        if not 0 < at < len(entries):
            return
        if entries[at, T.E_NETMEM]:
            yield int(entries[at, T.E_NETMEM])
        at = int(entries[at, T.E_NEXT])


def _tokens(pid: int, fd: int) -> list[int]:
    table = arena_words(pid, fd)
    capacity = int(table[rx.TK_CAPACITY])
    refs = table[rx.TK_SLOTS : rx.TK_SLOTS + 2 * capacity : 2]
    return [int(ref) for ref in refs[refs != 0]]
