"""`netmem demo`: the same file into each kind of memory, with each NIC."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console, JustifyMethod
from rich.table import Table

from netmem.base import cuda
from netmem.base.dmabuf import EXPORTERS, export
from netmem.base.errors import MissingError, NetmemError
from netmem.cli.options import SIZE
from netmem.drivers.igb import driver as igb
from netmem.drivers.softnic import driver as softnic
from netmem.hw.process import python_argv
from netmem.hw.qemu.find import Qemu, find_qemu
from netmem.lab.guest.demo import is_fetched, receive
from netmem.lab.receiver import Receiver, Setup, hashing_sink

LIMIT_S = 120.0


def setups(qemu: Qemu | None) -> list[Setup]:
    """Every NIC and kind of memory that this machine offers."""
    found = []
    for nic in ("softnic", "igb") if qemu else ("softnic",):
        path = qemu.path if qemu else None
        for memory, exporter in memory_types() + ([("bar", "auto")] if nic == "igb" else []):
            if nic == "igb" and exporter == "system-heap":
                continue  # QEMU cannot open a dma-buf, but for the memfd that a udmabuf is made of
            found.append(
                Setup(nic=nic, bus=f"qemu:{path}" if path else "qemu", memory=memory, exporter=exporter)
            )
    return found + gpu_memory()


def memory_types() -> list[tuple[str, str]]:
    """Every (memory, exporter) that needs no particular NIC."""
    found = [("none", "auto"), ("pages", "auto")]
    for exporter in EXPORTERS[1:]:
        try:
            fd, _, _ = export(64 << 20, exporter)
        except OSError:
            continue
        os.close(fd)
        found.append(("dmabuf", exporter))
    return found


def gpu_memory() -> list[Setup]:
    """Memory of every GPU, which the software NIC alone reaches."""
    if not cuda.available():
        return []
    return [Setup(memory=f"cuda:{gpu.ordinal}", rx_page_size=64 << 10) for gpu in cuda.gpus()]


def _write_file(path: Path, size: int) -> str:
    """Write ``size`` random bytes, always the same; their SHA-256."""
    rng, digest = np.random.default_rng(2026), hashlib.sha256()
    with path.open("wb") as file:
        for at in range(0, size, 1 << 24):
            block = rng.bytes(min(1 << 24, size - at))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def run_one(setup: Setup, path: Path, size: int) -> dict[str, Any]:
    """Receive the file once; the receiver's summary plus ``sha256``, ``outstanding`` and ``error``."""
    receiver = Receiver(setup, ("127.0.0.1", 0))
    sender = None
    digest = hashlib.sha256()
    error = ""
    try:
        argv = python_argv("netmem.lab.sender", "127.0.0.1", str(receiver.port), str(path))
        sender = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        sink, digest = hashing_sink(receiver.provider)
        connection = None
        for _ in range(int(LIMIT_S * 2e6)):
            if not receiver.wait(LIMIT_S):
                error = f"nothing arrived for {LIMIT_S:g} s"
                break
            if connection is None:
                connection = receiver.accept(1, sink)
                continue
            for one in receiver.ready():
                receiver.receive(one)
            if connection.done:
                error = connection.error
                break
        summary = receiver.summary()
    finally:
        receiver.close()
        if sender is not None:
            try:
                sender.wait(10)
            except subprocess.TimeoutExpired:
                sender.kill()
                sender.wait()
    summary.update(sha256=digest.hexdigest(), outstanding=receiver.outstanding, error=error)
    if not error and summary["bytes"] != size:
        summary["error"] = f"{summary['bytes']} of {size} bytes arrived"
    return summary


def _find(path: str | None) -> tuple[Qemu | None, str]:
    """QEMU, or why there is none; a path that the user named must do."""
    try:
        return find_qemu(path), ""
    except MissingError as error:
        if path:
            raise
        return None, error.strerror or str(error)


COLUMNS: tuple[tuple[str, JustifyMethod], ...] = (
    ("NIC", "left"),
    ("memory", "left"),
    ("reads", "left"),
    ("Gbit/s", "right"),
    ("split", "right"),
    ("miss", "right"),
    ("frags/MiB", "right"),
    ("out", "right"),
    ("SHA-256", "left"),
)


def _table(size: int) -> Table:
    title = f"{size / (1 << 20):g} MiB over TCP into each kind of memory"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name, justify in COLUMNS:
        table.add_column(name, justify=justify)
    return table


def _row(table: Table, nic: str, memory: str, s: dict[str, Any], wanted: str) -> list[str]:
    """Add what one run brought; what was wrong with it, at most one line."""
    right = s["sha256"] == wanted
    table.add_row(
        nic,
        memory,
        "yes" if s.get("driver_can_read") else "no",
        f"{s['goodput_gbit']:.2f}",
        str(s["hds_hit"]),
        str(s.get("hds_miss", "")),
        str(s.get("frags_per_mib", "")),
        str(s["outstanding"]),
        "ok" if right else "WRONG",
    )
    if not s["error"] and right and not s["outstanding"]:
        return []
    why = s["error"] or ("wrong SHA-256" if not right else f"{s['outstanding']} netmems missing")
    return [f"{nic}, {memory}: {why}"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--size", type=SIZE, default="256M", show_default=True, help="Bytes of the file to send.")
@click.option("--qemu", metavar="PATH", help="The QEMU to use for igb; by default the one on PATH.")
@click.option("--guest/--no-guest", "with_guest", default=True, show_default=True,
              help="A row of the kernel's own devmem TCP, if what it needs was fetched.")  # fmt: skip
def command(size: int, qemu: str | None, with_guest: bool) -> None:
    """Receive one file into each kind of memory that this machine has, with each NIC, and compare.

    A separate process sends the file over an ordinary kernel TCP socket. The application works out
    the SHA-256 through the memory's own file descriptor. reads: whether the driver can look at payload;
    split, miss: packets whose headers the NIC split off, or could not; out: netmems that never came back.
    Exit status 1 when anything does not match.
    """
    found, missing = _find(qemu)
    gve = with_guest and is_fetched()
    console = Console(width=None if sys.stdout.isatty() else 80)
    table, failures = _table(size), []
    with tempfile.TemporaryDirectory(prefix="netmem-demo-") as folder:
        path = Path(folder) / "file"
        try:
            wanted = _write_file(path, size)
        except OSError as error:
            text = f"cannot write {size} bytes to {folder}: {error.strerror}"
            raise NetmemError(error.errno or 5, text) from None
        for setup in setups(found):
            name = f"{setup.memory}/{setup.exporter}" if setup.memory == "dmabuf" else setup.memory
            with console.status(f"{setup.nic}: receiving into {name}"):
                s = run_one(setup, path, size)
            failures += _row(table, setup.nic, name, s, wanted)
        if gve:
            with console.status("gve: the kernel receives in a guest"):
                s = receive(path, lambda text: None)
            series = ".".join(s["release"].split(".")[:2])
            failures += _row(table, f"gve, {series}", "dmabuf/udmabuf", s, wanted)
    console.print(table)
    for module in (softnic, igb) if found else (softnic,):
        console.print(f"The driver is the same in each of its rows: {module.__name__}")
    if gve:
        console.print("gve's row is the kernel's own driver and devmem TCP, in a guest (`netmem guest`).")
    elif with_guest:
        console.print("No row for gve: `netmem guest fetch --tests` fetches the kernel and what it needs.")
    if missing:
        console.print(f"No rows for igb: {missing}", soft_wrap=True)
    for failure in failures:
        print(f"netmem: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)
