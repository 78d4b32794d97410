"""The sanitiser: traps what a driver or an application does wrong with netmem, and says who did.

Off unless ``enable`` is called, or NETMEM_SANITIZE is set, before the memory is made. What is
trapped is raised as SanitizerError by the call that did it, or by the poll in which a kernel did.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any

import numpy as np

from netmem.base.arena import Words
from netmem.base.errors import NetmemError
from netmem.memory import layout as ly
from netmem.memory import shadow as sh
from netmem.memory.records import INDEX_MASK, record, state_of

ON: bool = bool(os.environ.get("NETMEM_SANITIZE"))
"""True while memory that is made gets a shadow."""

TRAPS = {
    sh.TRAP_DOUBLE_PUT: ("double put", "R7"),
    sh.TRAP_WRONG_POOL: ("wrong pool", "R3"),
    sh.TRAP_USE_AFTER_RETURN: ("use after return", "R7"),
    sh.TRAP_SYNC_MISSING: ("sync missing", "R6"),
    sh.TRAP_SYNC_DIRECTION: ("sync in the wrong direction", "R6"),
    sh.TRAP_WRITE_AFTER_UNMAP: ("write by the NIC after unmap", "R4"),
    sh.TRAP_NEGATIVE_COUNT: ("negative reference count", "R7"),
    sh.TRAP_TOKEN_TWICE: ("token returned twice", ""),
    sh.TRAP_PLEDGES: ("more buffers pledged than there are", ""),
}
"""What is trapped, and which requirement a driver breaks by it ("": the application's fault)."""

EVENTS = {
    ly.ST_FREE: "returned to the provider",
    ly.ST_CACHE: "put into the cache",
    ly.ST_RING: "put into the ring",
    ly.ST_DRIVER: "allocated",
    ly.ST_NIC: "posted to the NIC",
    ly.ST_BATCH: "received",
    ly.ST_USER: "handed to the application",
    sh.EV_PUT: "put",
    sh.EV_UNREF: "a reference dropped",
    sh.EV_REF: "a reference taken",
    sh.EV_FRAGMENT: "a fragment cut",
    sh.EV_SYNC_CPU: "synced for the CPU",
    sh.EV_SYNC_DEV: "synced for the device",
    sh.EV_UNMAP: "unmapped",
    sh.EV_NIC_WRITE: "written by the NIC",
    sh.EV_DELIVER: "handed to the stack",
    sh.EV_TOKEN: "its token returned",
}
# Rooms that act for somebody else: who called them is to blame. Drivers are not among them.
OURS = tuple(f"netmem.{room}" for room in ("base", "memory", "hw", "netdev", "inet", "lab", "contract.rig"))

shadows: dict[int, Words] = {}  # the words of each area that has a shadow, by its id
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
    """The number of somebody to blame, for A_SITE of an area that kernels work on."""
    return _numbers.get(who) or _number(who, lambda: who)


def called(a: Words) -> None:
    """From now on the nearest caller outside of netmem's own rooms is."""
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith(OURS):
        frame = frame.f_back
    code, line = frame.f_code, frame.f_lineno
    a[ly.A_SITE] = _number(
        (code, line), lambda: f"{os.path.basename(code.co_filename)}:{line} in {code.co_name}"
    )


@contextlib.contextmanager
def collecting() -> Iterator[list[SanitizerError]]:
    """Meanwhile what is trapped is collected instead of raised."""
    global _collected
    before, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = before


def check(areas: Iterable[Words]) -> None:
    """Raise the first thing trapped since the last look, as SanitizerError; the rest it only counts."""
    for a in areas:
        head = int(a[ly.A_SHADOW])
        told, traps = int(a[head + sh.SH_TOLD]), int(a[head + sh.SH_TRAPS])
        if not head or traps == told:
            continue
        a[head + sh.SH_TOLD] = traps
        found = [_read(a, head, n) for n in range(told, min(traps, told + sh.LOG_ENTRIES))]
        if traps > told + 1 and _collected is None:
            found[0] = found[0][0], f"{found[0][1]}; and {traps - told - 1} more"
        for trap, text in found:
            _report(SanitizerError(trap, text))


def _report(error: SanitizerError) -> None:
    if _collected is None:
        raise error
    _collected.append(error)


def _read(a: Words, head: int, n: int) -> tuple[int, str]:
    """The ``n``-th thing trapped in an area, and its description."""
    at = head + sh.SH_LOG + n % sh.LOG_ENTRIES * sh.LOG_WORDS
    entry = a[at : at + sh.LOG_WORDS].copy()
    if not entry[sh.T_BEFORE]:  # another area's netmem
        entry[sh.T_BEFORE : sh.T_BEFORE + 2 * sh.EVENTS] = history(int(entry[sh.T_REF]))
    return int(entry[sh.T_TRAP]), _describe(entry)


def token_twice(ref: int) -> None:
    """Raise: the caller, an application, returned a token of ``ref`` twice."""
    entry = np.zeros(sh.LOG_WORDS, np.int64)
    here = np.zeros(ly.A_REC, np.int64)
    called(here)
    entry[sh.T_REF], entry[sh.T_EVENT] = ref, sh.EV_TOKEN | int(here[ly.A_SITE]) << 32
    entry[sh.T_BEFORE : sh.T_BEFORE + 2 * sh.EVENTS] = history(ref)
    _report(SanitizerError(sh.TRAP_TOKEN_TWICE, _describe(entry)))


def history(ref: int) -> Words:
    """The last events of a netmem: EVENTS pairs of event and time, the newest first."""
    a, index = shadows.get(ref >> 32), (ref >> 1) & INDEX_MASK
    if a is None or index >= a[ly.A_COUNT]:
        return np.zeros(2 * sh.EVENTS, np.int64)
    at = int(a[ly.A_SHADOW]) + sh.SH_REC + (index << sh.SH_SHIFT)
    return a[at : at + 2 * sh.EVENTS]


def _describe(entry: Words) -> str:
    ref = int(entry[sh.T_REF])
    index, area = (ref >> 1) & INDEX_MASK, ref >> 32
    what = "net_iov" if ref & 1 else "page"
    parts = [f"netmem {ref:#x} ({what} {index} of area {area}) {_event(int(entry[sh.T_EVENT]))}"]
    if entry[sh.T_SIZE]:
        parts[0] += f", bytes {entry[sh.T_OFFSET]} to {entry[sh.T_OFFSET] + entry[sh.T_SIZE] - 1}"
    now = int(entry[sh.T_TIME])
    for i in range(sh.EVENTS):
        event, time = (int(word) for word in entry[sh.T_BEFORE + 2 * i : sh.T_BEFORE + 2 * i + 2])
        if event:
            ago = f", {(now - time) / 1e6:.3f} ms earlier" if 0 < time < now else ""
            parts.append(f"{'before' if i == 0 else 'before that'}: {_event(event)}{ago}")
    if len(parts) == 1:
        parts.append("before: nothing is known of it")
    return "; ".join(parts)


def _event(word: int) -> str:
    kind, pool, site = word & 0xFF, (word >> 8) & 0xFFFFFF, word >> 32
    where = f" (pool {pool})" if pool else ""
    return f"{EVENTS.get(kind, f'event {kind}')}{where} by {_texts[site]}"


def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a page pool that notes its caller first, and raises what was trapped."""

    def call(pool: Any, *args: Any, **kwargs: Any) -> Any:
        a = pool.area_a
        called(a)
        try:
            result = method(pool, *args, **kwargs)
        except NetmemError as error:
            _prefer_trap(a, error)
            raise
        check((a,))
        return result

    call.__name__, call.__doc__, call.__wrapped__ = method.__name__, method.__doc__, method  # type: ignore[attr-defined]
    return call


def _prefer_trap(a: Words, error: NetmemError) -> None:
    """The report says more than the refusal that came of it."""
    if not isinstance(error, SanitizerError):
        try:
            check((a,))
        except SanitizerError as trapped:
            raise trapped from error


class DmaWatch:
    """Looks at what is unmapped and synced beside a pool of words ``p`` and area words ``a``."""

    def __init__(self, p: Words, a: Words) -> None:
        self._p, self._a = p, a

    def __call__(self, call: str, io: int, length: int) -> None:
        """Before a DMA call: ``unmap``, ``sync_for_cpu`` or ``sync_for_device`` of an I/O range."""
        p, a = self._p, self._a
        start, shift, count = int(p[ly.P_DMA]), int(p[ly.P_SHIFT]), int(a[ly.A_COUNT])
        if not start <= io < start + (count << shift):
            return
        called(a)
        first, last = (io - start) >> shift, (io + max(length, 1) - 1 - start) >> shift
        for index in range(first, min(last, count - 1) + 1):
            ref = int(p[ly.P_AREA]) | index << 1
            offset = max(io - start - (index << shift), 0)
            size = min(io + length - start, (index + 1) << shift) - (index << shift) - offset
            if a[record(ref) + ly.REC_STATE] >> 8 == p[ly.P_ID] and self._traps(call, ref, offset, size):
                return  # one report for each call

    def _traps(self, call: str, ref: int, offset: int, size: int) -> bool:
        p, a, state = self._p, self._a, state_of(self._a, ref)
        if call == "sync_for_cpu":
            sh.sh_synced(p, ref, offset, size)
        elif call == "unmap" and state == ly.ST_NIC:
            sh.sh_trap(p, a, sh.TRAP_WRITE_AFTER_UNMAP, ref, sh.EV_UNMAP, 0, 0)
            return True
        elif call == "sync_for_device" and state >= ly.ST_NIC and not sh.sh_any_synced(p, ref, offset, size):
            sh.sh_trap(p, a, sh.TRAP_SYNC_DIRECTION, ref, sh.EV_SYNC_DEV, offset, size)
            return True
        return False
