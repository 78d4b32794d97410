"""The `netmem` command: verbs, and what becomes of errors."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from netmem import __version__
from netmem.base.extras import MissingExtraError, need

VERBS = {
    "check": "Check whether a driver keeps the seven requirements of the netmem contract.",
    "convert": "Rewrite a C driver's payload from pages to netmem, as a patch.",
    "leaks": "Show who holds netmems of running receivers, and for how long.",
    "explain": "Say why memory cannot be bound to a receive queue; what a requirement asks of a driver.",
    "show": "Show devices, queues, page pools and sockets of running receivers.",
    "report": "Say in one file what a NIC of this machine can do: to be sent back.",
    "demo": "Receive one file into each kind of memory that this machine has, and compare.",
    "recv": "Receive TCP into memory that the driver never maps, and write or count it.",
    "send": "Send a file straight from memory that the driver never maps.",
    "compile": "Compile everything now, so that no first run has to: for an image of a container.",
    "guest": "Boot Linux with a gve whose device we are: the kernel's own devmem TCP and zcrx.",
    "bench": "Measure pool, receive path and goodput, side by side with what else there is.",
}

NEEDS = {
    "check": "",
    "convert": "",
    "explain": "",
    "recv": "",
    "leaks": "",
    "report": "kernel",
    "show": "kernel",
}  # an extra; all else: lab


class _Verbs(click.Group):
    """Imports a verb's file only when it is called: `netmem --help` starts in a blink."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"netmem.cli.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.command(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done, 1 something failed, 2 wrong usage. `netmem VERB --help` says more.",
)
@click.version_option(__version__, prog_name="netmem")
def cli() -> None:
    """Receive TCP straight into memory that the network driver cannot read.

    A NIC splits headers from payload and writes the payload into the memory you choose: host pages,
    a DMA-buf. Driver, page pool and TCP stack handle it by reference and never map it.
    """


def main() -> None:
    """Run a verb: one line for an error, no traceback for a user's mistake."""
    from netmem.cli.signals import raise_on_signals

    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if verb in VERBS:
        try:
            if extra := NEEDS.get(verb, "lab"):
                need(extra, verb)
            importlib.import_module(f"netmem.cli.{verb}")
        except MissingExtraError as error:
            _end(str(error))
    raise_on_signals()  # an exception in the middle of an import would be lost, or leave half a module
    try:
        cli.main(prog_name="netmem", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        print(f"netmem: {error.format_message()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except MissingExtraError as error:
        _end(str(error))
    except OSError as error:
        if type(error) is BrokenPipeError:  # whoever read our output has gone
            sys.stderr.close()
            sys.exit(1)
        _end(describe(error))


def _end(why: str) -> NoReturn:
    print(f"netmem: {why}", file=sys.stderr)
    sys.exit(1)


def describe(error: OSError) -> str:
    """One line for an operating system's or our own error, with the file it is about."""
    from netmem.base.errors import NetmemError

    if isinstance(error, NetmemError):
        return str(error)
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{error.strerror or error}"
