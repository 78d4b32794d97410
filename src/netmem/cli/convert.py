"""`netmem convert`: the mechanical part of bringing a C driver to netmem, as a patch."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from netmem.base.text import printable
from netmem.contract.convert import Refused, convert


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the patch and the list of what remains there; otherwise the patch goes to stdout.",
)
def command(path: Path, output: Path | None) -> None:
    """Convert a C driver's payload from pages to netmem, as far as that is mechanical.

    \b
    netmem convert drivers/net/ethernet/vendor/driver -o series/
    git apply series/0001-*.patch

    Types of what holds payload, and page calls with a netmem twin, are rewritten; header buffers are left
    alone. What
    must be done by hand is listed with file, line and reason. Exit status 0 done or nothing to do, 1 refused.
    """
    try:
        made = convert(path)
    except Refused as why:
        print(f"netmem: refused: {printable(str(why))}", file=sys.stderr)
        sys.exit(1)
    if not made.patch:
        name = printable(made.driver)
        print(f"netmem: {name}: payload is netmem already, nothing to convert", file=sys.stderr)
        return
    todo = "".join(printable(f"{one.file}:{one.line}: {one.reason}") + "\n" for one in made.remaining)
    if output is None:
        sys.stdout.write(made.patch)
        sys.stderr.write(todo)
        return
    output.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]|^\.+", "_", Path(made.driver).name.removesuffix(".c")) or "driver"
    patch, left = output / f"0001-{name}-netmem.patch", output / f"{name}-remaining.txt"
    for path, text in ((patch, made.patch), (left, todo)):
        path.unlink(missing_ok=True)  # a link that lies there in its place would be followed
        with open(path, "x", errors="surrogateescape") as file:
            file.write(text)
    print(f"{patch}; {len(made.remaining)} things remain: {left}")
