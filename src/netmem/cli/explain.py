"""`netmem explain`: why memory cannot be bound to a receive queue; what a requirement asks of a driver."""

from __future__ import annotations

import json
import sys
import textwrap

import click

from netmem.base.errors import NetmemError
from netmem.base.extras import need
from netmem.base.schema import document
from netmem.cli.check import ADVICE
from netmem.cli.options import usage
from netmem.contract.examples import DOCUMENT, EXAMPLES
from netmem.contract.requirements import BY_ID, Requirement

PROSE = 100  # characters of a line


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("where", metavar="[DEVICE[:QUEUE] | R1...R7 | TX1 | TX2 | A1...A7]", required=False)
@click.option(
    "--rx-page-size", type=click.IntRange(0), default=0, help="Bytes of a netmem that are asked for."
)
@click.option(
    "--try", "tries", is_flag=True, help="Bind a small dma-buf, unbind it, and compare. Needs a queue."
)
@click.option("--pid", type=click.IntRange(1), help="A device of this process, of a running receiver.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(where: str | None, rx_page_size: int, tries: bool, pid: int | None, as_json: bool) -> None:
    """Explain what the kernel would say to memory bound to a receive queue of DEVICE (devmem TCP, bind-rx).

    Every rule is looked at in the kernel's order, on what can be read without privileges: what holds, what
    refuses with which errno and why, what cures it, and what nobody tells. Nothing is changed, unless --try
    asks for it: then the queue is restarted with the memory, and once more without.

    Without DEVICE: all devices, a line each. A device of a running `netmem recv` is explained likewise.

    With R5, say: what the requirement asks of a driver, and why, code that keeps it and code that does not;
    with A5, what the advice is about.

    Exit status 0 when nothing known refuses (without DEVICE: not everywhere), 1 when something does, or when
    the kernel refused what --try asked for.
    """
    if where is not None and where.upper() in BY_ID:
        if tries or pid is not None or rx_page_size:
            raise click.UsageError(f"{where.upper()} is a requirement: only --json goes with it")
        _requirement(BY_ID[where.upper()], as_json)
        return
    if where is not None and where.upper() in ADVICE:
        _advice(where.upper(), as_json)
        return
    need("kernel", "explaining a device")
    from netmem.cli.explain_device import explain_device

    try:
        bad = explain_device(where, rx_page_size, tries, pid, as_json)
    except NetmemError as error:
        raise usage(error) from None
    sys.exit(int(bad))


def _advice(id_: str, as_json: bool) -> None:
    from netmem.contract.lint.rules.advice import BY_ID as RULES

    one = RULES[id_]
    if as_json:
        print(json.dumps(document("advice", {"id": one.id, "title": one.title, "text": one.text})))
        return
    click.secho(f"{one.id}: {one.title}\n", bold=True)
    click.echo(f"{_filled(one.text)}\n\nAdvice of `netmem check` on C sources: it decides nothing.")


def _requirement(one: Requirement, as_json: bool) -> None:
    example = EXAMPLES[one.id]
    if as_json:
        made = {
            "id": one.id, "title": one.title, "text": one.text, "why": example.why, "good": example.good,
            "bad": example.bad, "kernel": list(one.kernel), "document": example.document,
            "checked": {"running": one.run_time, "sources": one.source},
        }  # fmt: skip
        print(json.dumps(document("requirement", made)))
        return
    click.secho(f"{one.id}: {one.title}\n", bold=True)
    click.echo(f"{_filled(one.text)}\n\n{_filled('Why: ' + example.why)}\n")
    for word, colour, code in (("keeps it", "green", example.good), ("does not", "red", example.bad)):
        click.secho(f"This {word}:", fg=colour)
        click.echo(textwrap.indent(code.expandtabs(8), "    ") + "\n")
    for what, said in (
        ("In the kernel", ", ".join(one.kernel)), ("Its document", f"{DOCUMENT}, {example.document}"),
        ("Checked in C sources by", one.source), ("Checked in a driver that runs", one.run_time),
    ):  # fmt: skip
        click.echo(_filled(f"{what}: {said}"))


def _filled(text: str) -> str:
    return textwrap.fill(text, PROSE)
