"""`netmem convert`: the mechanical part of bringing a C driver to netmem, as a series of patches."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from netmem.base.text import printable
from netmem.contract.convert import Conversion, Refused, convert


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--rename", is_flag=True, help="Also rename fields and locals called page that hold a netmem.")
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the patches and the list of what remains there; otherwise the patches go to stdout.",
)
def command(path: Path, rename: bool, output: Path | None) -> None:
    """Convert a C driver's payload from pages to netmem, as far as that is mechanical.

    \b
    netmem convert drivers/net/ethernet/vendor/driver -o series/
    git am series/*.patch

    PATH is a folder, or a driver of several in a folder as `netmem check --list` names it. Types of what
    holds payload, and page calls with a netmem twin in the tree at hand, are rewritten; header buffers are
    left alone. The result is checked again: what must be done by hand is listed with file, line (after the
    patches) and requirement. Exit status 0 done or nothing to do, 1 refused.
    """
    try:
        made = convert(path, rename=rename)
    except Refused as why:
        print(f"netmem: refused: {printable(str(why))}", file=sys.stderr)
        sys.exit(1)
    if not made.series:
        name = printable(made.driver)
        print(f"netmem: {name}: payload is netmem already, nothing to convert", file=sys.stderr)
        return
    todo = "".join(
        printable(f"{one.file}:{one.line}: {one.rule}: {one.reason}") + "\n" for one in made.remaining
    )
    moved = ", ".join(f"{one.requirement} {one.before} -> {one.after}" for one in made.moved)
    verdicts = f"{moved or 'no verdict moved'}; {len(made.remaining)} things remain"
    if output is None:
        sys.stdout.write("".join(one.text for one in made.series))
        sys.stderr.write(f"{todo}netmem: {verdicts}\n")
        return
    output.mkdir(parents=True, exist_ok=True)
    other = {one.name for one in output.glob("[0-9][0-9][0-9][0-9]-*.patch")} - {
        one.name for one in made.series
    }
    if other:
        print(f"netmem: {printable(str(output))} holds patches of another series ({printable(min(other))}): "
              "take them away, or say another folder", file=sys.stderr)  # fmt: skip
        sys.exit(1)
    for one in made.series:
        _write(output / one.name, one.text)
        print(output / one.name)
    left = output / f"{_name(made)}-remaining.txt"
    _write(left, todo)
    print(f"{verdicts}: {left}")


def _name(made: Conversion) -> str:
    return re.sub(r"[^\w.-]|^\.+", "_", Path(made.driver).name.removesuffix(".c")) or "driver"


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # a link that lies there in its place would be followed
    with open(path, "x", errors="surrogateescape", newline="") as file:
        file.write(text)
