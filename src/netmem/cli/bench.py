"""`netmem bench`: every figure of docs/benchmarks.md, in one run."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click

from netmem.base import cuda
from netmem.base.commit import commit_at_hand
from netmem.base.errors import MissingError
from netmem.bench import echo, figures, gpu, igb, lint, tap
from netmem.cli.options import SIZE
from netmem.hw.qemu.find import find_qemu
from netmem.lab.compiling import ensure_compiled

PACKETS = 400_000
TAP_TIMES = 4
STAGES = ["pool", "receive", "goodput-1500", "goodput-9000", "arrays", "echo", "tap", "igb", "lint", "gpu"]
ECHOES = 3000
TITLE = """# Benchmarks

Made by `netmem bench` (`make bench`), each section as it was measured. Medians (lowest to highest) of
alternating rounds.
"""
TARGETS = {
    "page pool, inside a kernel, bulks of 64": "at most 2",
    "page pool, inside a kernel, one by one": "at most 3",
    "page pool, from Python at bulk 64": "at most 12",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--output",
    metavar="FILE",
    help="Write each section to a Markdown file as it is measured; the file's others stay.",
)
@click.option("--size", type=SIZE, default="2G", show_default=True, help="Bytes of each goodput transfer.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Alternating rounds; medians are quoted.",
)
@click.option(
    "--packets",
    type=click.IntRange(1000),
    default=PACKETS,
    show_default=True,
    help="Packets of each round through igb.",
)
@click.option("--only", multiple=True, type=click.Choice(STAGES), help="This stage only (may be repeated).")
@click.option(
    "--short",
    is_flag=True,
    help="Every stage for seconds: to see that none is broken. The figures mean little.",
)
@click.option(
    "--tree",
    default="build/linux",
    show_default=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="A Linux tree to check (make check-tree gets one).",
)
def command(
    output: str | None, size: int, rounds: int, packets: int, only: tuple[str, ...], short: bool, tree: Path
) -> None:
    """Measure pool, receive path and goodput, side by side with what else there is.

    Goodput: the same sender program against `netmem recv` into unreadable memory, and against a
    kernel socket with recv_into and one copy, in turn. Nothing is written to disk. Exit status 1 when a
    stage failed; the others are measured all the same.
    """
    if short:
        size, rounds, packets = 64 << 20, 1, 40_000
    ensure_compiled()
    stages: dict[str, Callable[[], list[str]]] = {
        "pool": lambda: _pool(rounds),
        "receive": lambda: _receive(rounds),
        "goodput-1500": lambda: _goodput(1500, rounds, size),
        "goodput-9000": lambda: _goodput(9000, rounds, size),
        "arrays": lambda: _arrays(rounds, size),
        "echo": lambda: _echo(rounds),
        "tap": lambda: _tap(rounds, size),
        "igb": lambda: _packets(rounds, packets),
        "lint": lambda: _lint(tree),
        "gpu": lambda: _gpu(rounds, size),
    }
    path = Path(output) if output else None
    failed = []
    for name in only or [one for one in STAGES if one != "gpu" or cuda.available()]:
        _progress(name)
        try:
            section = [*stages[name](), _where(rounds, size), ""]
            if os.environ.get("CI") and any(line.startswith("Not measured") for line in section):
                raise RuntimeError("CI installs what this stage needs")
        except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
            failed.append(name)
            print(f"netmem: {name}: {error}", file=sys.stderr)
            continue
        print("\n".join(section), flush=True)
        if path is not None:
            path.write_text(replaced(path.read_text() if path.exists() else TITLE, section))
    if failed:
        print(f"netmem: not measured: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def replaced(text: str, section: list[str]) -> str:
    """A report with a section in the place of the one with the same heading, or before the notes."""
    head, *parts = text.split("\n## ")
    made = "\n".join(section).removeprefix("## ").rstrip() + "\n"
    name = made.splitlines()[0]
    names = [part.splitlines()[0] for part in parts]
    if name in names:
        parts[names.index(name)] = made
    else:
        parts.insert(names.index("Notes") if "Notes" in names else len(parts), made)
    return "\n## ".join([head.rstrip() + "\n", *(part.rstrip() + "\n" for part in parts)])


def _progress(what: str) -> None:
    print(f"netmem: measuring {what} ...", file=sys.stderr, flush=True)


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _where(rounds: int, size: int) -> str:
    """Of a section: the commit, the day and the machine that it was measured at."""
    return (
        f"Measured at commit {commit_at_hand()}, {datetime.date.today().isoformat()}, {rounds} rounds of "
        f"{size >> 20} MiB where bytes are sent; {_cpu_name()}, {os.cpu_count()} CPUs, "
        f"Linux {platform.release()}, Python {platform.python_version()}."
    )


def _pool(rounds: int) -> list[str]:
    rows = ["## Page pool: allocation and put", ""]
    rows += ["| what | ns per netmem | to reach |", "| --- | ---: | ---: |"]
    for name, figure in figures.pool(rounds).items():
        text = figure.text() if figure is not None else "not installed (libdpdk-dev)"
        rows.append(f"| {name} | {text} | {TARGETS.get(name, '')} |")
    return [*rows, ""]


def _receive(rounds: int) -> list[str]:
    rows = [
        "## Receive path: from completed descriptor through `recvmsg_devmem` back to the pool",
        "",
        "NIC and wire excluded; one core; 1448-byte segments into unreadable memory.",
        "",
        "| budget | ns per packet | to reach | with the sanitiser | adds (at most 200) |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for budget, limit in ((64, 100), (256, 60)):
        plain, watched = figures.receive(budget, rounds), figures.sanitized(budget, rounds)
        adds = watched.median - plain.median
        rows.append(f"| {budget} | {plain.text()} | at most {limit} | {watched.text()} | {adds:.0f} |")
    return [*rows, ""]


def _goodput(mtu: int, rounds: int, size: int) -> list[str]:
    found = figures.goodput(mtu, rounds, size)
    medians = {name: rate.median for name, (rate, _) in found.items()}
    rows = [
        f"## Goodput at MTU {mtu}",
        "",
        "| receiver | Gbit/s | CPU seconds per GB |",
        "| --- | ---: | ---: |",
    ]
    names = {
        "netmem": "`netmem recv` into unreadable memory, rx-gro-hw on",
        "cut": "the same, rx-gro-hw off",
        "kernel": "kernel socket, `recv_into` and one copy",
    }
    for key, name in names.items():
        rate, cpu = found[key]
        rows.append(f"| {name} | {rate.text(2)} | {cpu.text(2)} |")
    text = f"Ratio of the medians: {medians['netmem'] / medians['kernel']:.2f} (to reach: 0.9)"
    if mtu == 1500:
        text += f"; with rx-gro-hw off {medians['cut'] / medians['kernel']:.2f} (to reach: 0.55)"
    return [*rows, "", f"{text}.", ""]


def _arrays(rounds: int, size: int) -> list[str]:
    found = figures.arrays(rounds, size)
    rows = [
        "## `read_array` of 1 MiB arrays", "", "| receiver | Gbit/s | CPU seconds per GB |",
        "| --- | ---: | ---: |",
    ]  # fmt: skip
    names = {
        "arrays 65536": "`reader().read_array`, pages of 64 KiB: views",
        "recv 65536": "`netmem recv`, which counts only",
        "arrays 4096": "`reader().read_array`, pages of 4 KiB: copies",
        "recv 4096": "`netmem recv`, which counts only",
    }
    for key, name in names.items():
        rate, cpu = found[key]
        rows.append(f"| {name} | {rate.text(2)} | {cpu.text(2)} |")
    views, copies = (
        found[f"arrays {page}"][0].median / found[f"recv {page}"][0].median for page in (65536, 4096)
    )
    return [*rows, "", f"Ratios of the medians: {views:.2f} (to reach: 0.8), {copies:.2f} with copies.", ""]


def _echo(rounds: int) -> list[str]:
    found: dict[str, list[tuple[float, float]]] = {"netmem": [], "kernel": []}
    for _ in range(rounds):
        found["netmem"].append(echo.softnic(ECHOES))
        found["kernel"].append(echo.loopback(ECHOES))
    rows = ["## Echo of 1 KiB", "", "| | median, us | 99th percentile, us |", "| --- | ---: | ---: |"]
    medians = {}
    for key, name in (("netmem", "softnic, user wire"), ("kernel", "kernel socket, loopback")):
        median, late = (figures.Figure(tuple(one[i] for one in found[key])) for i in (0, 1))
        medians[key] = median.median
        rows.append(f"| {name} | {median.text()} | {late.text()} |")
    times = medians["netmem"] / medians["kernel"]
    return [*rows, "", f"Times loopback: {times:.1f} (to reach: at most 4).", ""]


def _tap(rounds: int, size: int) -> list[str]:
    rows = ["## Goodput from the kernel's TCP over a TAP interface, MTU 1500, segmentation offload", ""]
    try:
        found = tap.goodput(rounds, TAP_TIMES * size)
    except MissingError as error:
        return [*rows, f"Not measured: {error.strerror}", ""]
    ratio = found["netmem"][0].median / found["kernel"][0].median
    names = {
        "netmem": "`netmem recv --wire tap` into unreadable memory",
        "kernel": "kernel socket over loopback, `recv_into` and one copy",
        "pytcp": "PyTCP on the same TAP (20 MB)",
    }
    rows += ["| receiver | Gbit/s | CPU seconds per GB |", "| --- | ---: | ---: |"]
    for key, name in names.items():
        if key in found:
            rate, cpu = found[key]
            rows.append(f"| {name} | {rate.text(3 if key == 'pytcp' else 2)} | {cpu.text(2)} |")
    rows += ["", f"{TAP_TIMES} times as many bytes as elsewhere, so that the processes' start counts less."]
    rows += [f"Ratio of the medians to the kernel socket: {ratio:.2f} (to reach: 0.75)."]
    times = found["netmem"][1].median / found["kernel"][1].median
    rows += [f"CPU seconds per GB: {times:.1f} times the kernel socket's (to reach: at most 2)."]
    if "pytcp" in found:
        times = found["netmem"][0].median / found["pytcp"][0].median
        rows.append(f"Times PyTCP: {times:.0f} (to reach: 100).")
    else:
        rows.append("PyTCP: not measured; it wants a Python 3.13 with pmd-pytcp, named by PYTCP_PYTHON.")
    return [*rows, ""]


def _packets(rounds: int, packets: int) -> list[str]:
    rows = ["## Packets through igb: 1514-byte frames over the `stream` wire into unreadable memory", ""]
    try:
        version = find_qemu().version
        found = igb.packet_rate(rounds, packets)
    except MissingError as error:
        return [*rows, f"Not measured: {error.strerror}", ""]
    ratio = found.stack.median / found.ceiling.median
    return [
        *rows,
        f"QEMU {version[0]}.{version[1]}; {packets:,} packets a round. The ceiling is a loop that only "
        f"recycles descriptors, and sends as many small frames back: one for {1 / found.acks:.0f} packets.",
        "",
        "| receiver | packets/s |",
        "| --- | ---: |",
        f"| driver, pool, TCP, socket and back | {found.stack.text(0)} |",
        f"| ceiling of the device model | {found.ceiling.text(0)} |",
        "",
        f"Ratio of the medians: {ratio:.2f} (to reach: 0.65).",
        "",
    ]


def _gpu(rounds: int, size: int) -> list[str]:
    rows = [f"## Into GPU memory: {cuda.Gpu(0).name}", "", "| receiver | Gbit/s | CPU seconds per GB |"]
    rows.append("| --- | ---: | ---: |")
    found = gpu.goodput(rounds, size)
    names = {
        "netmem": "`netmem recv --memory cuda:0`, pages of 64 KiB",
        "pages": "the same, pages of 4 KiB",
        "host": "`netmem recv` into unreadable memory of the host",
        "kernel": "kernel socket, `recv_into` pinned memory and one copy to the GPU",
    }
    for key, name in names.items():
        rate, cpu = found[key]
        rows.append(f"| {name} | {rate.text(2)} | {cpu.text(2)} |")
    ratio = found["netmem"][0].median / found["kernel"][0].median
    rows += ["", f"Ratio of the medians: {ratio:.2f} (to reach: 1).", ""]
    gathered = gpu.gather()
    whole = gathered.pop("copy").median
    rows += ["| gathered by the GPU from | GB/s | of a copy from device to device | to reach |"]
    rows.append("| --- | ---: | ---: | ---: |")
    for name, limit in (("1448", ""), ("4096", "0.80"), ("65536", "0.95")):
        rate = gathered[name]
        rows.append(f"| pieces of {name} bytes | {rate.text()} | {rate.median / whole:.2f} | {limit} |")
    return [*rows, ""]


def _lint(tree: Path) -> list[str]:
    rows = ["## Checking C drivers", ""]
    if not (tree / "drivers/net").is_dir():
        return [*rows, f"Not measured: no Linux tree at {tree} (`make check-tree` gets one).", ""]
    found = lint.lint(tree)
    rows += [
        f"All of drivers/net: {found.files} C files, {found.megabytes:.0f} MB, {found.drivers} network "
        f"drivers.",
        "",
        "| what | figure | to reach |",
        "| --- | ---: | ---: |",
        f"| first run | {found.cold:.1f} s | under 30 s |",
        f"| second run, from the cache | {found.cached:.1f} s | under 5 s |",
        f"| memory of the largest process | {found.memory_kib / 1024:.0f} MiB | under 1024 MiB |",
        f"| drivers/net/ethernet, R6: {found.r6_drivers} drivers fail | {found.r6_seconds:.1f} s | |",
    ]
    if found.cocci_seconds is not None:
        names = ", ".join(Path(name).name for name in found.cocci_files)
        what = f"the same as a semantic patch (Coccinelle): {len(found.cocci_files)} files ({names})"
        rows.append(f"| {what} | {found.cocci_seconds:.1f} s | |")
    else:
        rows.append("| the same as a semantic patch | Coccinelle is not installed | |")
    return [*rows, ""]
