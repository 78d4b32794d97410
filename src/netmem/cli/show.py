"""`netmem show`: what running receivers do, from outside, and what the running kernel tells of itself."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from netmem.base.errors import MissingError, NetmemError
from netmem.base.extras import need
from netmem.base.history import level, trouble
from netmem.base.schema import document
from netmem.cli.options import usage
from netmem.cli.show_kernel import render_kernel
from netmem.cli.tables import WIDTH, head_of, table


def _memory(provider: dict[str, Any] | None) -> str:
    if provider is None:
        return "pages, unbound"
    text = f"{provider['memory']}, {provider['size'] >> 20} MiB"
    return f"{text}, binding {provider['binding']}" if provider["binding"] else text


def render(device: dict[str, Any]) -> RenderableType:
    """One device for people."""
    head = head_of(device)
    queues, pools = [], []
    for queue in device["queues"]:
        pool = queue["pool"]
        queues.append([
            queue["id"], _memory(queue["provider"]), queue.get("buf_len", 0), queue.get("packets", 0),
            queue.get("bytes", 0), queue.get("hds_hit", 0), queue.get("hds_miss", 0), queue.get("starved", 0),
        ])  # fmt: skip
        if pool:
            pools.append([pool["id"], queue["id"], *_pool(pool)])
    pools += [[pool["id"], "gone", *_pool(pool)] for pool in device["retired_pools"]]
    parts: list[RenderableType] = [
        head,
        table("queue|<memory|buffer|packets|bytes|split|not split|starved", queues),
        table("pool|queue|free|posted|out|fast|slow|empty|cached|ring|full|freed", pools),
    ]
    if device["sockets"]:
        parts.append(
            table(
                "<peer|port|<state|q|in|out|unread|disorder|window|pledged|held|tokens",
                [
                    ["" if s[name] is None else s[name] for name in SOCKET]
                    for s in device["sockets"]
                ],
            )
        )  # fmt: skip
        if any(one["peer"].startswith(f"{GATEWAY}:") for one in device["sockets"]):
            parts.append(Text(f"{GATEWAY} is the gateway: recv, and Device.client(), say who is behind it"))
    else:
        parts.append(Text("no connections"))
    if refused := trouble(device):
        parts.append(Text("refused: " + ", ".join(f"{name} {n}" for name, n in refused.items())))
    return Group(*parts)


GATEWAY = "10.0.2.2"  # of the user wire
SOCKET = (
    "peer", "port", "state", "queue", "bytes_in", "bytes_out", "queued", "out_of_order", "window", "pledged",
    "buffers", "tokens",
)  # fmt: skip


def _pool(pool: dict[str, Any]) -> list[object]:
    names = ("posted", "outstanding", "alloc_fast", "alloc_slow", "alloc_empty", "recycle_cached",
             "recycle_ring", "recycle_ring_full", "recycle_released_refcnt")  # fmt: skip
    return [f"{level(pool):.0%}", *(pool[name] for name in names)]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("pid", type=click.IntRange(1), required=False)
@click.option(
    "--kernel", is_flag=True, help="The running kernel's devices instead: queues, NAPI, page pools."
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout (with --watch: one a line)."
)
@click.option("--watch", is_flag=True, help="Live, with histories: q ends, / filters sockets, p pauses.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1),
    default=1.0,
    show_default=True,
    help="Seconds between refreshes.",
)
def command(pid: int | None, kernel: bool, as_json: bool, watch: bool, interval: float) -> None:
    """Show devices, queues, page pools and sockets of running receivers, or of process PID.

    The numbers are read from the other process's memory through /proc: it does not answer, and is not
    disturbed. Exit status 1 when there is nothing to show.

    With --kernel: what the running kernel says of the devices of this network namespace over netlink. No
    privileges are needed.
    """
    if kernel:
        if pid is not None:
            raise click.UsageError("--kernel shows the kernel's devices: a process has none")
        _show_kernel(as_json, interval if watch else 0.0)
        return
    need("lab", "show")
    from netmem.lab.observe import observe  # not needed for the kernel's

    devices = observe(pid)
    if not devices:
        where = "no netmem receiver runs"
        if pid:
            where = f"process {pid} has no netmem device, or is another user's"
        print(f"netmem: {where}", file=sys.stderr)
        sys.exit(1)
    if watch and not as_json and sys.stdout.isatty():
        try:
            from netmem.cli.watch import watch as live
        except ImportError:
            raise MissingError("--watch on a terminal needs Textual: pip install 'pynetmem[lab]'") from None
        if ended := live(lambda: observe(pid), interval):
            print(f"netmem: {ended}", file=sys.stderr)
        return
    shown(lambda: observe(pid), "show", _all, as_json, interval if watch else 0.0)


def _show_kernel(as_json: bool, interval: float) -> None:
    from netmem.kernel.look import kernel_devices  # pyroute2 takes its time

    try:
        shown(kernel_devices, "show-kernel", render_kernel, as_json, interval)
    except NetmemError as error:
        raise usage(error) from None


def shown(
    look: Callable[[], list[dict[str, Any]]],
    schema: str,
    draw: Callable[[list[dict[str, Any]]], RenderableType],
    as_json: bool,
    interval: float,
) -> None:
    """Devices once, or every ``interval`` seconds while there are any."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    with contextlib.ExitStack() as stack:
        live = None
        if interval and not as_json:
            live = stack.enter_context(Live(console=console, auto_refresh=False))
        while devices := look():
            if as_json:
                print(json.dumps(document(schema, {"devices": devices})), flush=True)
            elif live:
                live.update(draw(devices), refresh=True)
            else:
                console.print(draw(devices))
            if not interval:
                return
            time.sleep(interval)


def _all(devices: list[dict[str, Any]]) -> RenderableType:
    parts: list[RenderableType] = []
    for device in devices:
        try:
            parts += [render(device), Text("")]
        except (LookupError, TypeError, ValueError, AttributeError):
            parts.append(Text(f"process {device['pid']} says of itself what cannot be shown"))
    return Group(*parts)
