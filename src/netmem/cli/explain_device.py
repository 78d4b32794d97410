"""`netmem explain DEVICE`: why memory cannot be bound to a receive queue, and what would cure it."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from netmem.base.errors import NetmemError
from netmem.base.extras import need
from netmem.base.schema import document
from netmem.cli.tables import WIDTH, table
from netmem.kernel.explain import Explanation, Finding, Tried, attempt, explain, outcome
from netmem.kernel.rules import Ask, Verdict
from netmem.kernel.state import DeviceState, KernelState, device_names, device_state, kernel_state

STYLES = {Verdict.HOLDS: "green", Verdict.REFUSES: "bold red", Verdict.UNKNOWN: "yellow"}
AGREES = {True: "as predicted", False: "NOT as predicted", None: "which could not be known"}


def explain_device(where: str | None, rx_page_size: int, tries: bool, pid: int | None, as_json: bool) -> bool:
    """Print it; true when something refuses."""
    if where is not None:
        return _one(where, pid, rx_page_size, tries, as_json)
    if tries or pid is not None:
        raise click.UsageError("--try and --pid need DEVICE:QUEUE")
    return _all(rx_page_size, as_json)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def _split(where: str) -> tuple[str, int | None]:
    name, colon, queue = where.rpartition(":")
    if not colon:
        return where, None
    if not queue.isdecimal():
        raise click.UsageError(f"{where}: what follows the colon is the number of a queue, as in eth0:3")
    return name, int(queue)


def _find(name: str, pid: int | None) -> tuple[KernelState, DeviceState]:
    """A device of the kernel's, or one of a running receiver."""
    if pid is not None:
        need("lab", "explain --pid")
        found = _own(name, pid)
        if found is None:
            raise NetmemError(errno.ENODEV, f"process {pid} has no device {name}")
        return found
    kernel = kernel_state()
    try:
        return kernel, device_state(name, kernel)
    except NetmemError as error:
        found = _own(name, None) if error.errno == errno.ENODEV else None
        if found is None:
            raise
        return found


def _own(name: str, pid: int | None) -> tuple[KernelState, DeviceState] | None:
    """A receiver's device, where all of netmem is installed: the kernel's need less."""
    with contextlib.suppress(ImportError):
        need("lab", "explain")
        from netmem.lab.own import own_device

        return own_device(name, pid)
    return None


def _all(rx_page_size: int, as_json: bool) -> bool:
    kernel, found = kernel_state(), []
    for name in device_names():
        with contextlib.suppress(NetmemError):  # gone since it was listed
            found.append(explain(Ask(kernel, device_state(name, kernel), 0, rx_page_size)))
    if as_json:
        print(json.dumps(_document(kernel, [(one, None) for one in found])))
    else:
        rows: list[list[object]] = [
            [one.ask.device.name, one.ask.device.driver, *_verdict(one)] for one in found
        ]
        _console().print(table("<device|<driver|<queue 0|<why", rows))
    return all(one.refused for one in found)


def _verdict(one: Explanation) -> tuple[str, str]:
    """The errno, or that it would be accepted; and why."""
    refused = one.refused
    if refused:
        return refused.rule.error, f"{refused.why} (rule: {refused.rule.text})"
    return "accepted", f"as far as one can know: {len(one.unknown)} of {len(one.findings)} rules are unknown"


def _one(where: str, pid: int | None, rx_page_size: int, tries: bool, as_json: bool) -> bool:
    name, queue = _split(where)
    kernel, device = _find(name, pid)
    if tries and (queue is None or device.own):
        raise click.UsageError("--try needs DEVICE:QUEUE of the kernel's: it restarts that queue")
    queues = [queue] if queue is not None else list(range(max(device.rx_queues, 1)))
    found = [explain(Ask(kernel, device, index, rx_page_size)) for index in queues]
    tried = attempt(found[0].ask) if tries else None
    if as_json:
        print(json.dumps(_document(kernel, [(one, tried) for one in found])))
    else:
        _print(kernel, device, found, tried)
    return any(one.refused for one in found) or (tried is not None and tried.agrees(found[0]) is not True)


def _document(kernel: KernelState, found: list[tuple[Explanation, Tried | None]]) -> dict[str, Any]:
    devices: dict[str, dict[str, Any]] = {}
    for one, tried in found:
        device = one.ask.device
        entry = devices.setdefault(device.name, {"name": device.name, "driver": device.driver, "queues": []})
        plain = one.plain()
        if tried is not None:
            plain["tried"] = {
                "errno": None if not tried.errno else outcome(tried), "text": tried.text,
                "memory": tried.memory or None, "agrees": tried.agrees(one),
            }  # fmt: skip
        entry["queues"].append(plain)
    return document("explain", {"kernel": kernel.release, "devices": list(devices.values())})


def _print(kernel: KernelState, device: DeviceState, found: list[Explanation], tried: Tried | None) -> None:
    console = _console()
    state = "up" if device.up else "down"
    what = kernel.release if device.own else f"Linux {kernel.release}"
    queues = f"{device.rx_queues} receive queue{'s' if device.rx_queues != 1 else ''}"
    console.print(Text(f"{device.name}: {device.driver}, {state}, {queues}; {what}", style="bold"))
    for group in _alike(found):
        _print_queues(console, group)
    if tried is not None:
        text = f"tried: {outcome(tried)}{f' ({tried.text})' if tried.text else ''}"
        if not tried.memory and tried.errno == errno.EBADF:
            text += ", since nothing here exports a dma-buf: all that comes before it was accepted"
        agrees = tried.agrees(found[0])
        console.print(Text(f"{text}; {AGREES[agrees]}", style="bold red" if agrees is False else "bold"))


def _alike(found: list[Explanation]) -> list[list[Explanation]]:
    """Queues of which the same is to be said, together."""
    groups: dict[tuple[Finding, ...], list[Explanation]] = {}
    for one in found:
        groups.setdefault(one.findings, []).append(one)
    return list(groups.values())


def _print_queues(console: Console, group: list[Explanation]) -> None:
    numbers = ", ".join(str(one.ask.queue) for one in group)
    one = group[0]
    verdict, why = _verdict(one)
    style = STYLES[Verdict.REFUSES if one.refused else Verdict.HOLDS]
    console.print(Text(f"\nqueue{'s' if len(group) > 1 else ''} {numbers}: {verdict}: {why}", style=style))
    console.print(_table(one.findings))
    # What refuses comes before what only may.
    known = sorted(one.findings, key=lambda finding: finding.verdict is not Verdict.REFUSES)
    cures = [finding.cure for finding in known if finding.cure]
    if cures:
        console.print(Text("what would help, in this order:"))
        for number, cure in enumerate(cures, 1):
            console.print(Text(f"  {number}. {cure}"))
    told = [f for f in one.around if f.verdict is not Verdict.HOLDS]
    if told:
        console.print(Text("settings that are, or may be, refused as things stand:"))
        console.print(_table(told))


def _table(findings: Any) -> Any:
    rows = [
        [
            Text(one.verdict.value, style=STYLES[one.verdict]),
            one.rule.error if one.verdict is not Verdict.HOLDS else "",
            one.rule.text,
            one.why,
        ]
        for one in findings
    ]
    return table("<|<errno|<rule|<what is known", rows)
