"""Goodput over a TAP interface, in a network namespace of its own: netmem, the kernel's sockets, PyTCP."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from netmem.base.errors import MissingError
from netmem.bench.figures import Figure, kernel_receiver, transfer
from netmem.hw.process import python_argv

ADDRESS = "10.20.0.2"
PYTCP_BYTES = 20_000_000
SENDER = ("cubic",)  # on both: bbr, where it is the default, paces by what it measured over another path


def goodput(rounds: int, size: int) -> dict[str, tuple[Figure, Figure]]:
    """Gbit/s and CPU seconds per GB of each receiver, in turn, with the same sender.

    PyTCP is measured once, when PYTCP_PYTHON names a Python that has it. MissingError without root or ip.
    """
    if os.geteuid() or not shutil.which("ip"):
        raise MissingError("a TAP interface in a network namespace needs root and the command ip (iproute2)")
    namespace = f"nmbench{os.getpid()}"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    try:
        subprocess.run(["ip", "-n", namespace, "link", "set", "lo", "up"], check=True)
        return _measure(("ip", "netns", "exec", namespace), rounds, size)
    finally:
        subprocess.run(["ip", "netns", "del", namespace], check=True)


def _measure(inside: tuple[str, ...], rounds: int, size: int) -> dict[str, tuple[Figure, Figure]]:
    ours = python_argv(
        "netmem.cli.entry", "recv", "--wire", "tap:nm0", "--address", f"{ADDRESS}/24", "--memory", "dmabuf",
        "--exporter", "memfd", "--json", "--count", "1",
    )  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {"netmem": [], "kernel": []}
    for _ in range(rounds):
        found["netmem"].append(transfer(ours, size, address=ADDRESS, inside=inside, congestion=SENDER))
        found["kernel"].append(transfer(kernel_receiver(), size, inside=inside, congestion=SENDER))
    other = os.environ.get("PYTCP_PYTHON")
    if other:
        script = str(Path(__file__).parent / "pytcp_receiver.py")
        found["pytcp"] = [transfer([other, script, "tap7"], PYTCP_BYTES, address=ADDRESS, inside=inside)]
        subprocess.run([*inside, "ip", "link", "del", "tap7"], check=False)
    return {
        name: (Figure(tuple(g for g, _ in rows)), Figure(tuple(c for _, c in rows)))
        for name, rows in found.items()
    }
