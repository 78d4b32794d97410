"""How verdicts on a driver are printed, whoever came to them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from netmem.cli.tables import WIDTH, table
from netmem.contract import report
from netmem.contract.requirements import BY_ID

COLOURS = {
    report.PASS: "green", report.FAIL: "bold red", report.CRASH: "bold magenta", report.BLOCKED: "yellow",
    report.UNKNOWN: "yellow",
}  # fmt: skip


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """What is done now, on one line of a terminal that is clean afterwards; nothing elsewhere."""
    shown = sys.stderr.isatty()

    def show(text: str) -> None:
        if shown:
            print(f"\r\033[K{text} ...", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def write(
    driver: str, results: list[report.Result], kind: str, *, verbose: bool = False, seconds: float = 0.0
) -> int:
    """Print what became of ``driver`` in a form, and return the exit status: 1 when something fails."""
    found, warnings = report.verdicts(results), report.warnings_of(results)
    if kind != "text":
        print(report.FORMATS[kind](driver, found, warnings))
    else:
        _text(driver, found, warnings, verbose, seconds)
    return status_of(found)


def status_of(found: list[report.Verdict]) -> int:
    """The exit status: 1 when something fails."""
    return int(any(verdict.outcome in (report.FAIL, report.CRASH, report.BLOCKED) for verdict in found))


def _text(
    driver: str, found: list[report.Verdict], warnings: list[str], verbose: bool, seconds: float
) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    rows: list[list[object]] = []
    for verdict in found:
        title = BY_ID[verdict.requirement].title
        rows.append([verdict.requirement, title, *_cells(verdict.outcome, verdict.by, verdict.evidence),
                     f"{verdict.seconds:.1f}"])  # fmt: skip
        for r in verdict.results if verbose else ():
            cells = _cells(r.outcome, r.by, r.evidence)
            rows.append(["", f"  {r.check} ({r.memory})", *cells, f"{r.seconds:.1f}"])
    console.print(table("<|<requirement|<verdict|<evidence|s", rows, gives="evidence"))
    if verbose:
        for verdict in found:
            for r in verdict.results:
                if r.outcome != report.PASS and r.trace:
                    console.print(f"\n{r.requirement} {r.check} ({r.memory}):\n{escape(r.trace.rstrip())}")
    for verdict in found:
        for r in verdict.results:
            if r.outcome == report.UNKNOWN:
                console.print(f"not seen: {r.requirement} {r.check}: {escape(r.evidence)}", soft_wrap=True)
    for warning in warnings:
        console.print(f"\n[yellow]warning[/]: {escape(warning)}", soft_wrap=True)
    if crash := report.crash_of([r for verdict in found for r in verdict.results]):
        console.print(f"\n{escape(crash)}", soft_wrap=True)
    kinds = (report.PASS, report.FAIL, report.CRASH, report.BLOCKED, report.UNKNOWN)
    number = {kind: sum(verdict.outcome == kind for verdict in found) for kind in kinds}
    always = (report.PASS, report.FAIL, report.BLOCKED)
    counts = ", ".join(f"{n} {kind}" for kind, n in number.items() if n or kind in always)
    console.print(f"\n{driver}: {counts}, {seconds:.1f} s", soft_wrap=True)


def _cells(outcome: str, by: str, evidence: str) -> list[object]:
    text = f"{outcome} by {by}" if by else outcome
    return [Text(text, COLOURS[outcome]), evidence]
