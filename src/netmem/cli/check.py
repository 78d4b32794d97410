"""`netmem check`: does a driver keep the seven requirements? One written in Python, or C sources."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from netmem.base.extras import need
from netmem.contract.requirements import REQUIREMENTS

RUN_TIME = ("junit", "ktap")
SOURCES = ("sarif", "html", "markdown", "github", "checkpatch")
ADVICE = ("A1", "A2", "A3", "A4", "A5", "A6", "A7")  # of C sources
IDS = (*(r.id for r in REQUIREMENTS), *ADVICE)


def _ids(given: tuple[str, ...]) -> tuple[str, ...]:
    """R5,r6 -> ("R5", "R6")"""
    asked = [one.strip().upper() for text in given for one in text.split(",") if one.strip()]
    for one in asked:
        if one not in IDS:
            raise click.BadParameter(f"{one} is none of {', '.join(IDS)}")
    return tuple(asked)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("what", metavar="PATH... | MODULE:CLASS", nargs=-1)
@click.option(
    "--only",
    "--rule",
    multiple=True,
    metavar="R1,A3,...",
    callback=lambda context, option, given: _ids(given),
    help="Check these requirements only, and give this advice (may be repeated).",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["text", "json", *RUN_TIME, *SOURCES]),
    default="text",
    show_default=True,
    help="How to write the report on stdout.",
)
@click.option("-v", "--verbose", is_flag=True, help="Every check, or every place looked at.")
@click.option(
    "--limit",
    type=click.FloatRange(1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for each check of a driver in Python.",
)
@click.option(
    "--sanitize", is_flag=True, help="Trap double puts, use after return, missing syncs and the like as well."
)
@click.option("--list", is_flag=True, help="Only name the drivers that would be checked.")
@click.option(
    "--diff",
    metavar="OLD..NEW|OLD",
    help="Only what a change in a git tree made better or worse; OLD alone: what is in the working tree now.",
)
@click.option(
    "--patch",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="The same for a patch to the tree as it is.",
)
@click.option(
    "--baseline",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="A JSON report of before: only what got worse fails.",
)
@click.option("--no-cache", is_flag=True, help="Judge anew even what was judged before.")
@click.option("--live", metavar="DEVICE", help="The driver of a device of this kernel, as it runs (root).")
@click.option("--peer", metavar="netns:NAME|ssh:HOST", help="With --live: who is at the device's other end.")
def command(
    what: tuple[str, ...], kind: str, limit: float, sanitize: bool, live: str | None, peer: str | None,
    **words: Any,
) -> None:  # fmt: skip
    """Check drivers, requirement by requirement.

    \b
    netmem check drivers/net/ethernet/vendor/driver        C sources: a folder, files, a whole tree
    netmem check netmem.drivers.softnic:SoftnicDriver      a driver in Python, on its device model
    netmem check --live eth0 --peer netns:peer             a driver of this kernel, as it runs

    R1 to R7 are the kernel document's requirements, TX1 and TX2 those on transmit. Blocked: it cannot be
    judged, because another one is broken. Unknown: a running driver does not show it; it fails nothing.

    Exit status 0 nothing fails, 1 something does, 2 it could not be checked.
    """
    if live is not None:
        if what or kind in SOURCES or sanitize or words["diff"] or words["patch"] or words["baseline"]:
            raise click.UsageError(
                "--live takes --peer, --only, --verbose, and the formats text, json, junit, ktap"
            )
        need("kernel", "checking a running driver")
        from netmem.cli.check_live import check_live

        sys.exit(check_live(live, peer, words["only"], kind, words["verbose"]))
    if peer:
        raise click.UsageError("--peer goes with --live")
    if not what:
        raise click.UsageError("say what to check: a path of C sources, or MODULE:CLASS")
    if len(what) == 1 and ":" in what[0] and not Path(what[0]).exists():
        if kind in SOURCES or words["diff"] or words["patch"] or words["baseline"]:
            raise click.UsageError(f"{what[0]} is a driver in Python: formats are text, json, junit, ktap")
        if set(words["only"]) & set(ADVICE):
            raise click.UsageError("advice (A1 and on) is for C sources")
        need("lab", "checking a driver in Python")
        from netmem.cli.check_runtime import check_driver

        sys.exit(check_driver(what[0], words["only"], kind, limit, sanitize, words["verbose"]))
    if kind in RUN_TIME:
        raise click.UsageError(
            f"--format {kind} is for drivers in Python; C sources: text, json, {', '.join(SOURCES)}"
        )
    from netmem.cli.check_sources import Options, check_sources, is_driver

    paths = [Path(one) for one in what]
    for path in paths:
        if not path.exists() and (words["diff"] or words["patch"] or not is_driver(path)):
            raise click.UsageError(f"{path} does not exist")
    sys.exit(check_sources(paths, Options(kind=kind, **words)))
