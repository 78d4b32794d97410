"""`netmem guest check`: a gve driver, as it runs in a guest."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Any

import click

from netmem.base.errors import NetmemError
from netmem.cli.guest_options import config_of, failed, machine_options, prepared_for, timeout_option
from netmem.cli.verdicts import progress, write
from netmem.contract.live.guest import run
from netmem.contract.requirements import REQUIREMENTS
from netmem.lab.guest.config import GuestConfig, GuestError
from netmem.lab.guest.machine import Guest


@click.command("check")
@machine_options
@timeout_option
@click.option("--only", multiple=True, type=click.Choice([r.id for r in REQUIREMENTS]),
              help="Check this requirement only (may be repeated).")  # fmt: skip
@click.option("--format", "kind", type=click.Choice(["text", "json", "junit", "ktap"]), default="text",
              show_default=True)  # fmt: skip
def check(only: tuple[str, ...], kind: str, **o: Any) -> None:
    """Check a running gve driver, the kernel's or yours (--module), requirement by requirement.

    As `netmem check --live`, in two guests: one with an IOMMU, where every DMA is seen, and one whose DMA
    bounces, where a missing sync is. One to two minutes under emulation. Exit status 0 nothing fails, 1
    something does, 2 it could not be checked, 124 the time was over.
    """
    start = time.monotonic()
    with ExitStack() as ends:
        if o["iommu"] or o["bounce"]:
            raise click.UsageError("both --iommu and --bounce are had by themselves here")
        prepared = prepared_for(o)
        config = config_of(o, ends)

        def started(how: GuestConfig) -> Guest:
            return prepared.start(how, o["modules"])

        try:
            with progress() as show:
                results = run(started, config, only=only, limit=o["timeout"], progress=show)
        except GuestError as error:
            failed(error)
        except NetmemError as error:
            raise click.UsageError(error.strerror or str(error)) from None
    seconds = time.monotonic() - start
    sys.exit(write("gve", results, kind, verbose=o["verbose"], seconds=seconds))
