"""`netmem check`: does a driver keep the seven requirements?"""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console
from rich.markup import escape

from netmem.base.errors import MissingError
from netmem.cli.show import WIDTH, table
from netmem.contract import report
from netmem.contract.requirements import BY_ID, REQUIREMENTS
from netmem.contract.run import LIMIT_S, CannotRun, run

COLOURS = {report.PASS: "green", report.FAIL: "bold red", report.BLOCKED: "yellow"}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("driver", metavar="MODULE:CLASS")
@click.option("--only", multiple=True, type=click.Choice([r.id for r in REQUIREMENTS]),
              help="Check this requirement only (may be repeated).")
@click.option("--format", "kind", type=click.Choice(["text", *report.FORMATS]), default="text",
              show_default=True, help="How to write the report on stdout.")
@click.option("--limit", type=click.FloatRange(1), default=LIMIT_S, show_default=True, metavar="SECONDS",
              help="Time for each check.")
@click.option("--sanitize", is_flag=True,
              help="Trap double puts, use after return, missing syncs and the like as well.")
@click.option("-v", "--verbose", is_flag=True, help="Each check by itself, and the trace of those that fail.")
def command(
    driver: str, only: tuple[str, ...], kind: str, limit: float, sanitize: bool, verbose: bool
) -> None:
    """Check a driver, requirement by requirement, on the device model that has its device ids.

    \b
    netmem check netmem.drivers.softnic:SoftnicDriver

    Exit status 0 all pass, 1 a requirement failed, 2 the driver could not be checked.
    """
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
    sys.exit(any(verdict.outcome != report.PASS for verdict in found))


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


def _cells(outcome: str, by: str, evidence: str) -> list[str]:
    text = f"{outcome} by {by}" if by else outcome
    return [f"[{COLOURS[outcome]}]{text}[/]", escape(evidence)]
