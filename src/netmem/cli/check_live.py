"""`netmem check --live DEVICE`: the driver of a device of this kernel, as it runs."""

from __future__ import annotations

import os
import sys
import time

import click

from netmem.base.errors import NetmemError
from netmem.cli.verdicts import write
from netmem.contract.live.checks import Check
from netmem.contract.live.peer import default_peer
from netmem.contract.live.run import run
from netmem.contract.report import Result


def check_live(name: str, peer: str | None, only: tuple[str, ...], kind: str, verbose: bool) -> int:
    """Check the driver below device ``name``, print the report, and return the exit status."""
    start = time.monotonic()
    peer = peer or default_peer(dict(os.environ))
    if not peer:
        raise click.UsageError(
            "--live needs somebody at the other end: --peer netns:NAME or ssh:HOST, with python3 there"
        )
    try:
        results = examine(name, peer, only)
    except NetmemError as error:
        raise click.UsageError(error.strerror or str(error)) from None
    return write(f"kernel:{name}", results, kind, verbose=verbose, seconds=time.monotonic() - start)


def examine(name: str, peer: str, only: tuple[str, ...]) -> list[Result]:
    """All results, with what is done now on a terminal. Errors: those of ``netmem.contract.live.run.run``."""
    shown = sys.stderr.isatty()

    def begin(check: Check) -> None:
        print(
            f"\r\033[K{check.requirement} {check.name} ...", end="", file=sys.stderr, flush=True
        ) if shown else None

    def say(text: str) -> None:
        print(f"netmem: {text}", file=sys.stderr)

    results: list[Result] = []
    try:
        for result in run(name, peer, only, begin, say):
            results.append(result)
    except NetmemError as error:
        if not results:
            raise
        print(f"netmem: {error.strerror}", file=sys.stderr)  # what was found is told all the same
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    return results
