"""`netmem check MODULE:CLASS`: a driver written in Python, on its device model."""

from __future__ import annotations

import time

import click

from netmem.base.errors import MissingError
from netmem.cli.verdicts import progress, write
from netmem.contract.run import CannotRun, run


def check_driver(
    driver: str, only: tuple[str, ...], kind: str, limit: float, sanitize: bool, verbose: bool
) -> int:
    """Check a driver written in Python on its device model, print the report, and return the exit status."""
    start = time.monotonic()
    try:
        with progress() as show:
            results = run(driver, only=only, limit=limit, sanitize=sanitize, progress=show)
    except (CannotRun, MissingError) as error:
        raise click.UsageError(str(error)) from None
    return write(driver, results, kind, verbose=verbose, seconds=time.monotonic() - start)
