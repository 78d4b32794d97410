"""The sanitiser: traps what a driver or an application does wrong with netmem, and says who did.

Off unless ``enable`` is called, or NETMEM_SANITIZE is set, before the memory is made. What is
trapped is raised as SanitizerError by the call that did it, or by the poll in which a kernel did.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any

from netmem.base.errors import NetmemError
from netmem.memory import calls
from netmem.memory import shadow as sh
from netmem.memory.layout import AreaRecord, Holder, NetmemRecord, PoolRecord
from netmem.memory.ref import area_id_of, index_of, ref_of
from netmem.memory.shadow import Event, Trap

ON: bool = bool(os.environ.get("NETMEM_SANITIZE"))
"""True while memory that is made gets a shadow."""

TRAPS: dict[int, tuple[str, str]] = {
    Trap.DOUBLE_PUT: ("double put", "R7"),
    Trap.WRONG_POOL: ("wrong pool", "R3"),
    Trap.USE_AFTER_RETURN: ("use after return", "R7"),
    Trap.SYNC_MISSING: ("sync missing", "R6"),
    Trap.SYNC_DIRECTION: ("sync in the wrong direction", "R6"),
    Trap.WRITE_AFTER_UNMAP: ("write by the NIC after unmap", "R4"),
    Trap.NEGATIVE_COUNT: ("negative reference count", "R7"),
    Trap.TOKEN_TWICE: ("token returned twice", ""),
    Trap.PLEDGES: ("more buffers pledged than there are", ""),
}
"""What is trapped, and which requirement a driver breaks by it ("": the application's fault)."""

EVENTS: dict[int, str] = {
    Holder.FREE: "returned to the provider",
    Holder.CACHE: "put into the cache",
    Holder.RING: "put into the ring",
    Holder.DRIVER: "allocated",
    Holder.NIC: "posted to the NIC",
    Holder.BATCH: "received",
    Holder.USER: "handed to the application",
    Event.PUT: "put",
    Event.UNREF: "a reference dropped",
    Event.REF: "a reference taken",
    Event.FRAGMENT: "a fragment cut",
    Event.SYNC_CPU: "synced for the CPU",
    Event.SYNC_DEV: "synced for the device",
    Event.UNMAP: "unmapped",
    Event.NIC_WRITE: "written by the NIC",
    Event.DELIVER: "handed to the stack",
    Event.TOKEN: "its token returned",
}
# Rooms that act for somebody else: who called them is to blame. Drivers are not among them.
OURS = tuple(f"netmem.{room}" for room in ("base", "memory", "hw", "netdev", "inet", "lab", "contract.rig"))

shadowed: dict[int, AreaRecord] = {}  # each area that has a shadow, by its id
_numbers: dict[tuple[CodeType, int] | str, int] = {}
_texts: list[str] = ["?"]
_collected: list[SanitizerError] | None = None


class SanitizerError(NetmemError):
    """EINVAL: something was trapped; ``str()`` names the netmem, both events and where they came from.

    ``trap``: one of the names in TRAPS. ``requirement``: which one a driver broke, or "".
    """

    def __init__(self, trap: int, text: str) -> None:
        self.trap, self.requirement = TRAPS[trap]
        super().__init__(errno.EINVAL, f"sanitizer: {self.trap}: {text}")


def enable(on: bool = True) -> None:
    """Give all memory that is made from now on a shadow, or none."""
    global ON
    ON = on


def _number(key: tuple[CodeType, int] | str, text: Callable[[], str]) -> int:
    found = _numbers.get(key)
    if found is None:
        found = _numbers[key] = len(_texts)
        _texts.append(text())
    return found


def number(who: str) -> int:
    """The number of somebody to blame, for ``site`` of an area that kernels work on."""
    return _numbers.get(who) or _number(who, lambda: who)


def called(area: AreaRecord) -> None:
    """From now on the nearest caller outside of netmem's own rooms is to blame."""
    area.site = _caller()


@functools.cache
def _is_ours(module: str) -> bool:
    return module.startswith(OURS)


def _caller() -> int:
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    code, line = frame.f_code, frame.f_lineno
    return _number((code, line), lambda: f"{os.path.basename(code.co_filename)}:{line} in {code.co_name}")


@contextlib.contextmanager
def collecting() -> Iterator[list[SanitizerError]]:
    """Meanwhile what is trapped is collected instead of raised."""
    global _collected
    before, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = before


def check(areas: Iterable[AreaRecord]) -> None:
    """Raise the first thing trapped since the last look, as SanitizerError; the rest it only counts."""
    for area in areas:
        if not area.shadow:
            continue
        shadow = sh.ShadowRecord.at(area.shadow)
        told, trapped = shadow.told, shadow.trapped
        if trapped == told:
            continue
        shadow.told = trapped
        found = [
            _describe(shadow.log[n % sh.LOG_ENTRIES])
            for n in range(told, min(trapped, told + sh.LOG_ENTRIES))
        ]
        if trapped > told + 1 and _collected is None:
            found[0] = found[0][0], f"{found[0][1]}; and {trapped - told - 1} more"
        for trap, text in found:
            _report(SanitizerError(trap, text))


def _report(error: SanitizerError) -> None:
    if _collected is None:
        raise error
    _collected.append(error)


def token_twice(ref: int) -> None:
    """Raise: the caller, an application, returned a token of ``ref`` twice."""
    entry = sh.TrapRecord(trap=Trap.TOKEN_TWICE, netmem=ref)
    entry.event.kind, entry.event.site = Event.TOKEN, _caller()
    _report(SanitizerError(*_describe(entry)))


def _history(ref: int) -> sh.History | None:
    """The last events of a netmem, None when nothing is known of it."""
    area = shadowed.get(area_id_of(ref))
    if area is None or index_of(ref) >= area.count:
        return None
    return sh.History.nth(area.shadow + sh.SHADOW_BYTES, index_of(ref))


def newest(history: sh.History) -> list[sh.EventRecord]:
    """The events of a history, the newest first."""
    count = history.count
    return [history.events[(count - 1 - i) % sh.EVENTS] for i in range(min(count, sh.EVENTS))]


def _describe(entry: sh.TrapRecord) -> tuple[int, str]:
    """What was trapped, and its description."""
    ref = entry.netmem
    what = "net_iov" if ref & 1 else "page"
    parts = [f"netmem {ref:#x} ({what} {index_of(ref)} of area {area_id_of(ref)}) {_event(entry.event)}"]
    if entry.size:
        parts[0] += f", bytes {entry.offset} to {entry.offset + entry.size - 1}"
    now = entry.event.time
    # Another area's netmem: who trapped did not know its events.
    before = entry.before if entry.before.count else _history(ref)
    for event in newest(before) if before is not None else ():
        ago = f", {(now - event.time) / 1e6:.3f} ms earlier" if 0 < event.time < now else ""
        parts.append(f"{'before' if len(parts) == 1 else 'before that'}: {_event(event)}{ago}")
    if len(parts) == 1:
        parts.append("before: nothing is known of it")
    return entry.trap, "; ".join(parts)


def _event(event: sh.EventRecord) -> str:
    where = f" (pool {event.pool})" if event.pool else ""
    return f"{EVENTS.get(event.kind, f'event {event.kind}')}{where} by {_texts[event.site]}"


def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a page pool that notes its caller first, and raises what was trapped."""

    def call(pool: Any, *args: Any, **kwargs: Any) -> Any:
        area = pool.area.record
        called(area)
        try:
            result = method(pool, *args, **kwargs)
        except NetmemError as error:
            _prefer_trap(area, error)
            raise
        check((area,))
        return result

    call.__name__, call.__doc__, call.__wrapped__ = method.__name__, method.__doc__, method  # type: ignore[attr-defined]
    return call


def _prefer_trap(area: AreaRecord, error: NetmemError) -> None:
    """The report says more than the refusal that came of it."""
    if not isinstance(error, SanitizerError):
        try:
            check((area,))
        except SanitizerError as trapped:
            raise trapped from error


class DmaWatch:
    """Looks at what is unmapped and synced beside a pool, ``at`` its address, and its area."""

    def __init__(self, at: int, pool: PoolRecord, area: AreaRecord) -> None:
        self._at, self._pool, self._area = at, pool, area

    def __call__(self, call: str, io: int, length: int) -> None:
        """Before a DMA call: ``unmap``, ``sync_for_cpu`` or ``sync_for_device`` of an I/O range."""
        start, shift, count = self._pool.dma, self._pool.shift, self._pool.count
        if not start <= io < start + (count << shift):
            return
        called(self._area)
        first, last = (io - start) >> shift, (io + max(length, 1) - 1 - start) >> shift
        for index in range(first, min(last, count - 1) + 1):
            offset = max(io - start - (index << shift), 0)
            size = min(io + length - start, (index + 1) << shift) - (index << shift) - offset
            netmem = NetmemRecord.nth(self._pool.netmems, index)
            ref = ref_of(self._pool.tag, index)
            if netmem.pool == self._pool.id and self._traps(call, netmem.holder, ref, offset, size):
                return  # one report for each call

    def _traps(self, call: str, holder: int, ref: int, offset: int, size: int) -> bool:
        if call == "sync_for_cpu":
            calls.note_synced(self._at, ref, offset, size)
        elif call == "unmap" and holder == Holder.NIC:
            calls.trap(self._at, Trap.WRITE_AFTER_UNMAP, ref, Event.UNMAP, 0, 0)
            return True
        elif call == "sync_for_device" and holder >= Holder.NIC:
            if not calls.any_synced(self._at, ref, offset, size):
                calls.trap(self._at, Trap.SYNC_DIRECTION, ref, Event.SYNC_DEV, offset, size)
                return True
        return False
