"""`netmem report DEVICE`: one file that says what a NIC can do, for whoever does not have it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from netmem import __version__
from netmem.base.errors import NetmemError
from netmem.base.schema import document
from netmem.cli.check_live import examine
from netmem.cli.options import usage
from netmem.cli.verdicts import status_of, write
from netmem.contract.live.peer import default_peer
from netmem.contract.report import verdicts
from netmem.kernel.report import describe, nameless

ISSUES = "an issue of the project"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("device")
@click.option("--peer", metavar="netns:NAME|ssh:HOST",
              help="Who is at the other end: then the driver is checked as it runs (root).")  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="- is standard output.  [default: netmem-report-DRIVER.json]")  # fmt: skip
def command(device: str, peer: str | None, output: Path | None) -> None:
    """Say in one file what a NIC of this machine can do of netmem.

    The kernel, driver, firmware, settings, and for each queue what a binding would get and why; with --peer
    what `netmem check --live` finds. It has no addresses, no host name and no serial number.

    Exit status 1 when a check fails, 2 when it could not be made.
    """
    peer = peer or default_peer(dict(os.environ))
    try:
        body: dict[str, Any] = {"netmem": __version__, **describe(device)}
    except NetmemError as error:
        raise usage(error) from None
    results, why = [], ""
    if peer:
        try:
            results = examine(device, peer, ())
        except NetmemError as error:
            why = error.strerror or str(error)
    body["check"] = [{**asdict(one), "evidence": nameless(one.evidence), "trace": ""} for one in results]
    body["check_error"] = nameless(why.replace(peer, "peer")) if why else None
    status = 2 if why else status_of(verdicts(results))
    if str(output) == "-":
        print(json.dumps(document("report", body), indent=1))
        sys.exit(status)
    path = output or Path(f"netmem-report-{body['nic']['driver']}.json")
    try:
        path.write_text(json.dumps(document("report", body), indent=1) + "\n")
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None
    if results:
        write(f"kernel:{device}", results, "text")
    if why:
        print(f"netmem: its driver was not checked: {why}", file=sys.stderr)
    print(_summary(body))
    print(f"{path} has all of it, and no addresses: read it, and attach it to {ISSUES}")
    sys.exit(status)


def _summary(body: dict[str, Any]) -> str:
    nic = body["nic"]
    firmware = f", firmware {nic['firmware']}" if nic.get("firmware") else ""
    asked = body["explain"]
    able = [one["queue"] for one in asked if one["refused"] is None]
    if able:
        text = f"{len(able)} of {len(asked)} queues: nothing known refuses memory"
    else:
        first = next((rule for one in asked for rule in one["rules"] if rule["verdict"] == "refused"), None)
        text = (
            f"no queue takes memory: {first['errno']}, {first['rule']}"
            if first
            else "it has no receive queues"
        )
    return f"Linux {body['kernel']}, {nic['driver']}{firmware}: {text}"
