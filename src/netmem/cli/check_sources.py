"""`netmem check PATH...`: drivers as C sources."""

from __future__ import annotations

import datetime
import json
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from netmem import __version__
from netmem.base.schema import document
from netmem.base.text import printable
from netmem.cli.tables import WIDTH, table
from netmem.contract.lint import changes, output, tree
from netmem.contract.lint.check import Report, cache_folder, check, find_drivers
from netmem.contract.lint.model import FAIL, NA, PARTIAL, PASS
from netmem.contract.lint.rules import RULES
from netmem.contract.requirements import BY_ID

BOARDS = ("html", "markdown")  # formats that show what was before beside what is
COLOURS = {PASS: "green", PARTIAL: "yellow", FAIL: "bold red", NA: "dim"}
IN_FULL = 3  # as many drivers are shown with their evidence


@dataclass
class Options:
    """As given on the command line."""

    kind: str
    only: tuple[str, ...]
    verbose: bool
    diff: str | None
    patch: str | None
    baseline: str | None
    no_cache: bool
    list: bool


def check_sources(paths: list[Path], options: Options) -> int:
    """Print the report; the exit status."""
    if sum(x is not None for x in (options.diff, options.patch, options.baseline)) > 1:
        raise click.UsageError("--diff, --patch and --baseline exclude each other")
    if options.list:
        return _list(paths, options)
    start = time.monotonic()
    problems: list[str] = []
    live = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if live:
            print(f"\r\033[K{done} of {total} drivers", end="", file=sys.stderr, flush=True)

    cache = cache_folder() if not options.no_cache else None
    try:
        if options.diff or options.patch:
            change = (
                changes.of_git(paths, options.diff)
                if options.diff
                else changes.of_patch(paths, str(options.patch))
            )
            found = change.compare(problems)
            return _change(found, options, problems, bool(change.unjudged))
        before = changes.read_baseline(options.baseline) if options.baseline else []
        reports = check(paths, problems, cache=cache, progress=progress)
    except changes.CannotCompare as error:
        raise click.UsageError(printable(str(error))) from None
    finally:
        if live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    for problem in (*problems, *(p for r in reports for p in r.problems)):
        print(f"netmem: {printable(problem)}", file=sys.stderr)
    if not reports:
        print("netmem: nothing was checked", file=sys.stderr)
        return 2
    if options.only:
        for report in reports:
            report.requirements = {k: v for k, v in report.requirements.items() if k in options.only}
            report.advice = {k: v for k, v in report.advice.items() if k in options.only}
    if options.baseline and options.kind not in BOARDS:
        return _change(changes.against(before, reports), options, problems)
    _print(reports, problems, paths, options, time.monotonic() - start, before)
    if options.baseline:
        return int(any(one.worse for one in changes.against(before, reports)))
    return int(not all(report.passes for report in reports))


def is_driver(path: Path) -> bool:
    """True for the name of one driver of several in a folder, as `--list` has it."""
    return any(tree.find(path.absolute(), []))


def _list(paths: list[Path], options: Options) -> int:
    """The drivers that would be checked, one a line."""
    problems: list[str] = []
    found = find_drivers(paths, problems)
    base = tree.root_of(paths[0].absolute()) or Path.cwd()
    rows = [
        {
            "driver": printable(os.path.relpath(d.name, base)),
            "files": [os.path.relpath(p, base) for p in d.sources],
        }
        for d in found
    ]
    if options.kind == "json":
        print(json.dumps(document("drivers", {"drivers": rows}), indent=1))
    else:
        for row in rows:
            print(f"{row['driver']}  {len(row['files'])} C file{'s' if len(row['files']) != 1 else ''}")
    for problem in problems:
        print(f"netmem: {printable(problem)}", file=sys.stderr)
    return 0 if found else 2


def describe_tree(paths: list[Path]) -> str:
    """Version of the tree that is checked, and the date."""
    root = tree.root_of(paths[0].absolute())
    today = datetime.date.today().isoformat()
    if root is None:
        return f"{', '.join(map(str, paths))}, {today}"
    text = (tree.load(str(root / "Makefile")) or b"").decode("utf-8", "replace")
    numbers = [
        re.search(rf"^{name} *= *(\w*)", text, re.MULTILINE) for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL")
    ]
    version = ".".join(match[1] for match in numbers if match and match[1])
    return f"Linux {version or '(version unknown)'}, {today}"


def _print(
    reports: list[Report], problems: list[str], paths: list[Path], options: Options, seconds: float,
    before: list[Report],
) -> None:  # fmt: skip
    if options.kind == "text":
        _text(reports, options, seconds)
        return
    made = output.body(reports, problems, describe_tree(paths), __version__)
    if before:
        output.add_before(made, before, changes.tree_of(str(options.baseline)))
    if options.kind == "html":
        print(output.as_html(made, tree.root_of(paths[0].absolute()) or Path.cwd()))
        return
    print(
        {
            "json": output.as_json,
            "sarif": output.as_sarif,
            "markdown": output.as_markdown,
            "github": output.as_github,
            "checkpatch": output.as_checkpatch,
        }[options.kind](made)
    )


def _text(reports: list[Report], options: Options, seconds: float) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    if len(reports) <= IN_FULL or options.verbose:
        for report in reports:
            _one(console, report, options.verbose)
    else:
        shown = [
            r for r in reports if r.requirements.get("R1") is None or r.requirements["R1"].verdict != FAIL
        ]
        ids = [rule.id for rule in RULES if not options.only or rule.id in options.only]
        rows: list[list[object]] = [
            [r.driver, *(Text.from_markup(_cell(r, id_)) for id_ in ids)] for r in shown
        ]
        console.print(table("|".join(["<driver", *(f"<{id_}" for id_ in ids)]), rows))
        if len(shown) < len(reports):
            console.print(
                f"\n{len(reports) - len(shown)} more drivers make no page pool: R1 fails, R3 to R7 n/a"
            )
    good = sum(report.passes for report in reports)
    console.print(f"\n{good} of {len(reports)} drivers keep the contract, {seconds:.1f} s", soft_wrap=True)


def _cell(report: Report, id_: str) -> str:
    verdict = report.requirements[id_]
    return f"[{COLOURS[verdict.verdict]}]{verdict.verdict}{'?' if verdict.confidence == 'low' else ''}[/]"


def _one(console: Console, report: Report, verbose: bool) -> None:
    console.print(f"[bold]{escape(report.driver)}[/]", soft_wrap=True)
    for id_, verdict in report.requirements.items():
        console.print(
            f"  {id_} {_cell(report, id_)}  {escape(BY_ID[id_].title)}: {escape(verdict.why)}", soft_wrap=True
        )
        if verdict.confidence == "low":
            console.print(f"       low confidence; to know: {escape(verdict.needs)}", soft_wrap=True)
        for place in verdict.evidence:
            console.print(
                f"       {escape(place.file)}:{place.line}: {escape(place.message)}", soft_wrap=True
            )
        for cure in dict.fromkeys(place.cure for place in verdict.evidence if place.cure):
            console.print(f"       [cyan]mend:[/] {escape(cure)}", soft_wrap=True)
    for id_, places in report.advice.items():
        for place in places:
            console.print(
                f"  {id_} [cyan]advice[/]  {escape(place.file)}:{place.line}: {escape(place.message)}",
                soft_wrap=True,
            )
            console.print(f"       [cyan]mend:[/] {escape(place.cure)}", soft_wrap=True)
    facts = "; ".join(f"{name.replace('_', ' ')}: {_plain(value)}" for name, value in report.facts.items())
    console.print(f"  [dim]{escape(facts)}[/]", soft_wrap=True)
    for place in report.unused_suppressions:
        console.print(
            f"  [yellow]unused[/] {escape(place.file)}:{place.line}: {escape(place.message)}", soft_wrap=True
        )
    for place in report.looked_at if verbose else ():
        console.print(f"  [dim]{escape(place.file)}:{place.line}: {escape(place.message)}[/]", soft_wrap=True)
    console.print()


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _as_driver(one: changes.Change) -> dict[str, Any]:
    """What became worse, as a report has it."""
    verdict = {"verdict": one.after, "why": one.why, "evidence": [vars(place) for place in one.evidence]}
    return {"driver": one.driver, "requirements": {one.requirement: verdict}}


def _change(
    found: list[changes.Change], options: Options, problems: list[str], unjudged: bool = False
) -> int:
    """What became better or worse; status 1 when something became worse, 2 when not all was judged."""
    if options.only:
        found = [one for one in found if one.requirement in options.only]
    worse = [one for one in found if one.worse]
    if options.kind == "json":
        rows = [vars(one) | {"worse": one.worse} for one in found]
        print(json.dumps(document("changes", {"changes": rows}), indent=1, default=vars))
        return 1 if worse else 2 if unjudged else 0
    for problem in problems:
        print(f"netmem: {printable(problem)}", file=sys.stderr)
    if options.kind in ("github", "checkpatch"):
        made = {"drivers": [_as_driver(one) for one in worse]}
        print((output.as_github if options.kind == "github" else output.as_checkpatch)(made))
        return 1 if worse else 2 if unjudged else 0
    if options.kind != "text":
        raise click.UsageError("a change is shown as text, json, github or checkpatch")
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    for one in found:
        colour = "bold red" if one.worse else "green"
        console.print(f"[{colour}]{'worse' if one.worse else 'better'}[/] {escape(one.driver)} "
        f"{one.requirement}: "
                      f"{one.before} -> {one.after}: {escape(one.why)}", soft_wrap=True)  # fmt: skip
        for place in one.evidence:
            console.print(
                f"       {escape(place.file)}:{place.line}: {escape(place.message)}", soft_wrap=True
            )
    console.print(f"{len(worse)} worse, {len(found) - len(worse)} better", soft_wrap=True)
    return 1 if worse else 2 if unjudged else 0
