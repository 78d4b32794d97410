"""`netmem check MODULE:CLASS`: a driver written in Python, on its device model."""

from __future__ import annotations

import sys
import time

import click

from netmem.base.errors import MissingError
from netmem.cli.verdicts import write
from netmem.contract.run import CannotRun, run


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
    return write(driver, results, kind, verbose=verbose, seconds=time.monotonic() - start)
