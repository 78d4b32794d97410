"""A live check in a guest, where the NIC is ours as well: every DMA is seen, and the kernel may die of it.

Two guests: one with an IOMMU before the NIC, whose device model tells what it was stopped from reaching; one
whose DMA bounces, which shows what was not synced.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from netmem.base.errors import NetmemError
from netmem.base.kernel_log import COMPLAINT
from netmem.contract.live.run import blame, wanted
from netmem.contract.report import BLOCKED, ELSEWHERE, FAIL, Result
from netmem.lab.guest.config import GuestConfig, GuestError
from netmem.lab.guest.machine import Guest

COMMAND = 'exec python3 -m netmem.contract.live.run "$NETIF" "$REMOTE_TYPE:$REMOTE_ARGS" '
SYNC = "R6"
LIMIT_S = 300.0
Start = Callable[[GuestConfig], Guest]


def run(
    start: Start, config: GuestConfig, *, only: tuple[str, ...] = (), limit: float = LIMIT_S,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Result]:  # fmt: skip
    """Check the gve driver of a guest's kernel; ``start`` makes a guest that is not up yet.

    GuestError for a guest that does not come up; EIO when the check itself does not begin.
    """
    results: list[Result] = []
    chosen = tuple(sorted({check.requirement for check in wanted(only)}))
    others = tuple(one for one in chosen if one != SYNC)
    if others:
        results += _in(start(replace(config, iommu=True)), others, limit, progress)
    if SYNC in chosen:
        results += _in(start(replace(config, bounce=True)), (SYNC,), limit, progress)
    return results


def _in(guest: Guest, only: tuple[str, ...], limit: float, progress: Callable[[str], None]) -> list[Result]:
    """Results from one guest, however it ends."""
    results: list[Result] = []
    running = ""
    lines = b""

    def take(data: bytes) -> None:
        nonlocal lines, running
        *whole, lines = (lines + data).split(b"\n")
        for line in whole:
            found: dict[str, Any] = json.loads(line)
            if "begin" in found:
                running = found["begin"]
                progress(running)
            else:
                results.append(Result(**found))
                running = ""

    errors = bytearray()
    with guest:
        guest.wait_ready()
        try:
            guest.start(COMMAND + ",".join(only), take, errors.extend)
            status = guest.finish(limit)
        except GuestError as error:
            return results + _died(only, results, running, [*guest.console], error)
        said = (errors.decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
        if status and not results:
            raise NetmemError(errno.EIO, f"the check did not run in the guest: {said}")
        if status:  # it did not come to its end
            results += _not_run(only, results, "", f"the check ended in the guest: {said}")
        results += _stopped(guest.dma_faults())
        with contextlib.suppress(GuestError):  # all is known that there is to know
            guest.end()
    return results


def _not_run(only: tuple[str, ...], results: list[Result], by: str, text: str) -> list[Result]:
    """For the checks that did not come to an end: blocked by a requirement, or failed."""
    done = {result.check for result in results}
    return [
        Result(check.requirement, check.name, check.memory, BLOCKED if by else FAIL, text, by=by)
        for check in wanted(only)
        if check.name not in done and check.requirement != by
    ]


def _died(
    only: tuple[str, ...], results: list[Result], running: str, console: list[str], why: GuestError
) -> list[Result]:
    """What to say of checks that a guest did not come to an end with: it died, or took too long."""
    by_name = {check.name: check.requirement for check in wanted(only)}
    tail = [re.sub(r"^\[ *[\d.]+\](\[ *\w+\])? *", "", line) for line in console[-200:]]
    words = next((line for line in tail if COMPLAINT.search(line) and blame(line)), "")
    where = next((line for line in tail if line.startswith("RIP: ")), "")
    if not words and (why.errno == errno.ETIMEDOUT or not running):
        raise why  # it says nothing of the driver
    if words:
        guilty, text = blame(words), f"the guest's kernel died in {running}: {words}"
        text += f" ({where.partition(' Code')[0]})" if where else ""
    else:
        guilty, text = by_name.get(running, "R5"), f"in {running}: {why.strerror}"
    found = _not_run(only, results, guilty, text)
    return [*found, Result(guilty, ELSEWHERE, "any", FAIL, text, attributed=True)]


def _stopped(faults: list[str]) -> list[Result]:
    """DMA that the driver had the device do outside of live mappings: reading is of what is sent."""
    by: dict[str, list[str]] = {}
    for fault in faults:
        by.setdefault("TX1" if "DMA read" in fault else "R4", []).append(fault)
    return [
        Result(
            requirement,
            "every_access_is_mapped",
            "any",
            FAIL,
            f"{found[0]} ({len(found)} in all)",
            attributed=True,
        )
        for requirement, found in by.items()
    ]
