"""`netmem check MODULE:CLASS`: a driver written in Python, on its device model."""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from netmem.base.errors import MissingError
from netmem.cli.tables import WIDTH, table
from netmem.contract import report
from netmem.contract.requirements import BY_ID
from netmem.contract.run import CannotRun, run

COLOURS = {report.PASS: "green", report.FAIL: "bold red", report.BLOCKED: "yellow"}


def check_driver(
    driver: str, only: tuple[str, ...], kind: str, limit: float, sanitize: bool, verbose: bool
) -> int:
    """Check a driver written in Python on its device model, print the report, and return the exit status."""
    start = time.monotonic()
    live = sys.stderr.isatty()

    def progress(text: str) -> None:
        print(f"\r\033[K{text} ...", end="", file=sys.stderr, flush=True) if live else None

    try:
        results = run(driver, only=only, limit=limit, sanitize=sanitize, progress=progress)
    except (CannotRun, MissingError) as error:
        raise click.UsageError(str(error)) from None
    finally:
        if live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    found = report.verdicts(results)
    if kind != "text":
        print(report.FORMATS[kind](driver, found, report.warnings_of(results)))
    else:
        _text(driver, found, report.warnings_of(results), verbose, time.monotonic() - start)
    return int(any(verdict.outcome != report.PASS for verdict in found))


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
    console.print(table("<|<requirement|<verdict|<evidence|s", rows))
    if verbose:
        for verdict in found:
            for r in verdict.results:
                if r.outcome != report.PASS and r.trace:
                    console.print(f"\n{r.requirement} {r.check} ({r.memory}):\n{escape(r.trace.rstrip())}")
    for warning in warnings:
        console.print(f"\n[yellow]warning[/]: {escape(warning)}", soft_wrap=True)
    kinds = (report.PASS, report.FAIL, report.BLOCKED)
    counts = ", ".join(f"{sum(v.outcome == kind for v in found)} {kind}" for kind in kinds)
    console.print(f"\n{driver}: {counts}, {seconds:.1f} s", soft_wrap=True)


def _cells(outcome: str, by: str, evidence: str) -> list[object]:
    text = f"{outcome} by {by}" if by else outcome
    return [Text(text, COLOURS[outcome]), evidence]
