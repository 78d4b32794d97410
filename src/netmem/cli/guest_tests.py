"""`netmem guest test` and `netmem guest bench`."""

from __future__ import annotations

import json
import re
import statistics
import sys
from contextlib import ExitStack
from typing import Any

import click
from rich.console import Console

from netmem.base.schema import document
from netmem.base.text import printable
from netmem.cli.guest_options import (
    begin,
    config_of,
    failed,
    machine_options,
    prepared_for,
    report,
    say,
    timeout_option,
)
from netmem.cli.options import SIZE
from netmem.cli.tables import WIDTH, table
from netmem.lab.guest import tests
from netmem.lab.guest.config import GuestError
from netmem.lab.guest.machine import Guest
from netmem.lab.guest.scripts import program

WAYS = {
    "recv": "recv, ordinary memory", "devmem": "devmem TCP, udmabuf", "python": "the same, from Python",
    "zcrx": "io_uring zcrx", "zcrx_python": "the same, from Python",
}  # fmt: skip


@click.command("test")
@machine_options
@timeout_option
@click.option("--format", "form", type=click.Choice(["text", "json", "junit", "ktap", "markdown"]),
              default="text", show_default=True)  # fmt: skip
@click.argument("what", nargs=-1, metavar="[devmem|zcrx|faults|all|SELFTEST.py]...")
def test(what: tuple[str, ...], form: str, **o: Any) -> None:
    """Run the kernel's own selftests, of the same version's source; devmem and zcrx if nothing is said.

    Exit status 1 when a test fails, the kernel complains, DMA was stopped, or a page pool never drains.
    """
    names = tuple(dict.fromkeys(name for one in what or ("devmem", "zcrx") for name in tests.suites(one)))
    with ExitStack() as ends:
        prepared = prepared_for(o, tests=True)
        config = config_of(o, ends)
        for name in names:
            if name not in (*tests.PROGRAMS, tests.FAULTS) and not prepared.has_selftest(name):
                raise click.UsageError(f"Linux {prepared.version} has no selftest {name}")

        def start() -> Guest:
            guest = prepared.start(config, o["modules"])
            try:
                begin(guest, config, limit=o["timeout"])
            except BaseException:
                guest.close()
                raise
            return guest

        def done(one: tests.Result) -> None:
            if form == "text":
                say(f"{one.suite} {one.test}: {one.outcome}" + (f" ({one.note})" if one.note else ""))

        runner = tests.Runner(start, done, o["timeout"])
        runner.run(names)
    about = {
        "kernel": runner.release,
        "qemu": prepared.qemu.version,
        "accel": "kvm" if prepared.kvm else "tcg",
    }
    failed = any(one.failed for one in runner.results)
    if form == "json":
        print(tests.as_json(runner.results, about))
    elif form == "junit":
        print(tests.as_junit(runner.results, about))
    elif form == "ktap":
        print(tests.as_ktap(runner.results))
    elif form == "markdown":
        print(tests.as_markdown(runner.results, about))
    else:
        _print_results(runner, about)
    sys.exit(1 if failed else 0)


def _print_results(runner: tests.Runner, about: dict[str, str]) -> None:
    rows: list[list[object]] = []
    for one in runner.results:
        outcome = "FAIL" if one.failed else one.outcome
        rows.append([one.suite.rpartition("/")[2], one.test, outcome, f"{one.seconds:.1f}", one.note[:60]])
    console = Console(width=WIDTH, highlight=False)
    console.print(table("<selftest|<test|<result|seconds|<note", rows))
    for one in runner.results:
        for text in one.complaints:
            print(f"the kernel says: {text}")
    print(tests.summary(runner.results, about))


@click.command("bench")
@machine_options
@timeout_option
@click.option("--size", type=SIZE, default="256M", show_default=True, help="Bytes received each time.")
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def bench(size: int, rounds: int, as_json: bool, **o: Any) -> None:
    """Receive the same bytes by recv into ordinary memory, by devmem into a udmabuf, and by io_uring zcrx.

    In C, and from Python as well (netmem.kernel), with the same buffers.

    One guest, one sender, one queue, medians of the rounds; nobody looks at the payload. Under emulation only
    the ratios mean something, and not for hardware.
    """
    with ExitStack() as ends:
        prepared = prepared_for(o, tests=True)
        config = config_of(o, ends)
        try:
            with prepared.start(config, o["modules"]) as guest:
                begin(guest, config, limit=o["timeout"])
                script = f"MEGABYTES={max(1, size // 1_000_000)} ROUNDS={rounds}\n" + program("bench")
                done = guest.run(script, o["timeout"])
                release, complained = guest.release, report(guest, guest.dma_faults())
                guest.end()
        except GuestError as error:
            failed(error)
    if done.status:
        said = printable(done.stderr.decode(errors="replace").strip()[-200:])
        print(f"netmem: the benchmark failed: {said}", file=sys.stderr)
        sys.exit(1)
    ways: dict[str, list[tuple[int, int, float]]] = {way: [] for way in WAYS}
    for match in re.finditer(r"^(\w+) (\d{1,18}) (\d{1,18}) (\d{1,9}\.\d{1,9})$", done.text, re.MULTILINE):
        ways.setdefault(match[1], []).append((int(match[2]), int(match[3]), float(match[4]) or 1e-9))
    if any(len(ways[way]) != rounds for way in WAYS):
        print("netmem: the benchmark failed: a result is missing", file=sys.stderr)
        sys.exit(1)
    about = f"Linux {release}, gve on QEMU {prepared.qemu.version} ({'kvm' if prepared.kvm else 'tcg'})"
    results = [_result(way, runs) for way, runs in ways.items() if way in WAYS]
    if as_json:
        print(json.dumps(document("guest-bench", {"about": about, "results": results})))
    else:
        base = next(one["mb_s"] for one in results if one["way"] == "recv")
        rows: list[list[object]] = [
            [WAYS[one["way"]], one["bytes"], one["linear"], f"{one['mb_s']:.0f}", f"{one['mb_s'] / base:.2f}"]
            for one in results
        ]
        Console(width=WIDTH, highlight=False).print(table("<receive by|bytes|linear|MB/s|of recv", rows))
        print(f"{about}, medians of {rounds}. An emulated machine: these are no speeds of hardware.")
    sys.exit(1 if complained else 0)


def _result(way: str, runs: list[tuple[int, int, float]]) -> dict[str, Any]:
    """One way of receiving: its median."""
    seconds = [one[2] for one in runs]
    size = runs[0][0] + runs[0][1]
    return {
        "way": way, "bytes": size, "linear": max(one[1] for one in runs), "seconds": seconds,
        "mb_s": round(size / statistics.median(seconds) / 1e6, 1),
    }  # fmt: skip
