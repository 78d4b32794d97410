"""`netmem leaks`: who holds which netmems of running receivers, and for how long."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import click
from rich.console import Console

from netmem.base.extras import need
from netmem.base.schema import document
from netmem.cli.tables import WIDTH, table


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("pid", type=click.IntRange(1), required=False)
@click.option(
    "--older",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="Only holders whose oldest netmem changed hands at least this long ago.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option(
    "--kernel",
    is_flag=True,
    help="The running kernel's page pools instead: those that do not drain, and sockets that may be why.",
)
def command(pid: int | None, older: float, as_json: bool, kernel: bool) -> None:
    """Show who holds netmems of running receivers, or of process PID, and for how long.

    The kernel shows how many netmems are out; this shows the holder: a ring slot, a received batch, a
    socket's queue, out-of-order data, a token of the application's, the driver; and how many free buffers
    (of rx-buf-len) each connection's window was pledged. Exit status 1 when there is no receiver to look at.

    With --kernel: pools of bound memory with netmems out, and pools that were destroyed with some
    out (--older counts from there); processes with dma-bufs, and with TCP sockets whose packets came by a
    bound queue. Root sees those of all processes. Exit status 1 when a destroyed pool does not drain.
    """
    if kernel:
        if pid is not None:
            raise click.UsageError("--kernel looks at all processes: leave PID out")
        sys.exit(_kernel(older, as_json))
    need("lab", "leaks")
    from netmem.lab.leaks import leaks
    from netmem.lab.observe import observe

    devices = observe(pid)
    if not devices:
        print(f"netmem: {f'process {pid} has no netmem device' if pid else 'no netmem receiver runs'}",
              file=sys.stderr)  # fmt: skip
        sys.exit(1)
    rows = [row for row in leaks(pid) if not older or (row["oldest"] or 0.0) >= older]
    if not older:
        for device in devices:
            with contextlib.suppress(LookupError, TypeError, AttributeError):  # it says what it likes
                rows += _pledges(device)
    if as_json:
        print(json.dumps(document("leaks", {"netmems": rows})))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    columns = "process|<device|<memory|<holder|<whose|netmems|bytes|oldest s|youngest s"
    names = ("pid", "device", "memory", "holder", "who", "count", "bytes", "oldest", "youngest")
    console.print(table(columns, [[_cell(row[name]) for name in names] for row in rows]))


def _kernel(older: float, as_json: bool) -> int:
    need("kernel", "leaks --kernel")
    from netmem.kernel.leaks import look

    found = look(older)
    stuck = [pool for pool in found.pools if pool["state"] == "destroyed"]
    if as_json:
        body = {"pools": found.pools, "holders": found.holders, "blind": found.blind}
        print(json.dumps(document("leaks-kernel", body)))
        return bool(stuck)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    if not found.pools:
        print("No page pool was destroyed with netmems out, and none of bound memory has any out.")
        return 0
    names = ("device", "pool", "state", "binding", "inflight", "bytes", "seconds")
    rows = [[_cell(pool[name]) for name in names] for pool in found.pools]
    console.print(table("<device|pool|<state|binding|netmems|bytes|destroyed s ago", rows))
    columns = ("pid", "process", "fd", "what", "queue", "bytes")
    rows = [[_cell(row[name]) for name in columns] for row in found.holders]
    console.print(table("process|<name|fd|<what may hold them|queue|bytes", rows))
    if found.blind:
        print(f"netmem: {found.blind} processes are not ours to look at: as root all are", file=sys.stderr)
    return bool(stuck)


def _pledges(device: dict[str, Any]) -> list[dict[str, Any]]:
    """Free buffers that connections were pledged: nobody holds them, but they are spoken for."""
    memory = {
        queue["id"]: queue["provider"]["memory"] if queue["provider"] else "pages, unbound"
        for queue in device["queues"]
    }
    return [
        {
            "pid": device["pid"], "device": device["name"], "memory": memory.get(sock["queue"], ""),
            "holder": "pledged, free", "who": sock["peer"], "count": sock["pledged"],
            "bytes": None, "oldest": None, "youngest": None,
        }
        for sock in device["sockets"]
        if sock["pledged"]
    ]  # fmt: skip


def _cell(value: object) -> object:
    """A number of seconds in short, and nothing for an unknown one."""
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else value
