"""Who holds which netmems of a running process, and for how long: the kernel only counts them."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from netmem.base.address import endpoint, ip_number
from netmem.base.board import arena_words, boards, layout, record_in, table_in
from netmem.inet.tcp.receive import TokenSlot, TokenTable
from netmem.inet.tcp.tcb import Entry, EntryKind, StackRecord, Tcb
from netmem.inet.udp.table import SOCKETS, UdpSocketRecord
from netmem.memory.layout import AreaRecord, Holder, NetmemRecord
from netmem.memory.ref import ref_of
from netmem.netdev.ring import RxRingRecord

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
    for ring in (queue["ring"] for queue in board["queues"] if queue["ring"] >= 0):
        for left in record_in(arena_words(pid, ring), RxRingRecord).open:  # whoever had parts gave them back
            named.setdefault(left.netmem, (HOLDERS[Holder.NIC], ""))
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
    rows = record_in(arena_words(pid, stack["globals"]), StackRecord).rows
    words = arena_words(pid, stack["entries"])
    entries = table_in(words, Entry, 0, words.nbytes // ctypes.sizeof(Entry))
    for tcb in table_in(arena_words(pid, stack["table"]), Tcb, 0, rows):
        who = endpoint(ip_number(int(tcb["raddr_hi"]), int(tcb["raddr"])), int(tcb["ports"]) >> 16)
        if tcb["state"] or tcb["rq_head"]:
            for head, holder in (("oq_head", "out-of-order queue"), ("rq_head", "socket queue")):
                for ref in _chain(entries, int(tcb[head])):
                    named[ref] = (holder, who)
        if tcb["tokens_fd"]:  # last: of a frag that was cut, the application's part counts
            for ref in _tokens(pid, int(tcb["tokens_fd"])):
                named[ref] = ("user token", who)
    udp = table_in(arena_words(pid, stack["udp"]), UdpSocketRecord, 0, SOCKETS)
    for sock in udp[udp["port"] != 0]:
        who = f"UDP port {int(sock['port'])}"
        for ref in _chain(entries, int(sock["head"])):
            named[ref] = ("socket queue", who)
        if sock["tokens_fd"]:
            for ref in _tokens(pid, int(sock["tokens_fd"])):
                named[ref] = ("user token", who)
    return named


def _chain(entries: npt.NDArray[Any], at: int) -> Iterator[int]:
    """netmems of a chain of entries, each once, however garbled it is by changes under way.

    The head of a datagram has an address in that place.
    """
    for _ in range(len(entries)):
        if not 0 < at < len(entries):
            return
        entry = entries[at]
        if entry["netmem"] and entry["kind"] != EntryKind.DGRAM:
            yield int(entry["netmem"])
        at = int(entry["next"])


def _tokens(pid: int, fd: int) -> list[int]:
    words = arena_words(pid, fd)
    table = record_in(words, TokenTable)
    refs = table_in(words, TokenSlot, ctypes.sizeof(TokenTable), table.capacity)["netmem"]
    return [int(ref) for ref in refs[refs != 0]]
