"""`netmem check --live DEVICE`: the driver of a device of this kernel, as it runs."""

from __future__ import annotations

import os
import sys
import time

import click

from netmem.base.errors import NetmemError
from netmem.cli.verdicts import progress, write
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

    def say(text: str) -> None:
        print(f"netmem: {text}", file=sys.stderr)

    results: list[Result] = []
    with progress() as show:
        try:
            for result in run(name, peer, only, lambda check: show(f"{check.requirement} {check.name}"), say):
                results.append(result)
        except NetmemError as error:
            if not results:
                raise
            say(error.strerror or str(error))  # what was found is told all the same
    return results
