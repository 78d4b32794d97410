"""What the verbs of `netmem guest` have in common: options, and how a guest begins and fails."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from netmem.base.text import printable
from netmem.cli.options import SIZE
from netmem.hw.gve.faults import GveFaults
from netmem.lab.guest.config import LOCAL4, REMOTE4, GuestConfig, GuestError
from netmem.lab.guest.machine import BOOT_S, Guest
from netmem.lab.guest.prepare import Prepared, prepare

FAILED, TIMED_OUT = 125, 124  # of the guest itself, as docker and timeout have it
WIRE_FAULTS = {"loss": "loss", "duplicate": "duplicate", "dup": "duplicate", "reorder": "reorder",
               "damage": "damage", "corrupt": "damage"}  # fmt: skip
MINIMUM_MIB = 256


def say(text: str) -> None:
    print(f"netmem guest: {printable(text)}", file=sys.stderr, flush=True)


class Faults(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """loss=2%,reorder=1%,seed=7: chances of the wire, or of the device."""

    name = "faults"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, float]:
        if isinstance(value, dict):
            return value
        device = {one.name for one in fields(GveFaults)}
        found: dict[str, float] = {}
        for part in value.split(","):
            name, equal, text = part.strip().partition("=")
            name = WIRE_FAULTS.get(name, name.replace("-", "_"))
            match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
            if not equal or not match or name not in {*WIRE_FAULTS.values(), *device}:
                names = ", ".join(sorted({*WIRE_FAULTS.values(), *device}))
                self.fail(f"{part!r} is no fault: NAME=CHANCE, such as loss=2%, of {names}", param, ctx)
            number = float(match[1]) / (100 if match[2] else 1)
            if name not in ("seed", "late_ms") and number > 1:
                self.fail(f"{part!r} is no chance: 0 to 1, or 0% to 100%", param, ctx)
            found[name] = number
        return found


class Forward(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """PORT of this host's loopback, or PORT:GUEST_PORT."""

    name = "port"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", value)
        ports = [int(one) for one in (match[1], match[2] or match[1])] if match else [1 << 16]
        if max(ports) > 65535:
            self.fail(f"{value!r} is not PORT or PORT:GUEST_PORT", param, ctx)
        return ports[0], ports[1]


def machine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What every verb that boots a guest takes."""
    for option in (
        click.option("--verbose", "-v", is_flag=True, help="Show the guest kernel's messages as they come."),
        click.option("--accel", type=click.Choice(["auto", "tcg", "kvm"]), default="auto", show_default=True,
                     help="Emulation, or KVM where it works; auto tries once."),
        click.option("--qemu", metavar="PATH", help="The QEMU to use, 10.1 or later; by default one on PATH, "
                     "else Debian's, which is fetched."),
        click.option("--append", default="", metavar="WORDS", help="More of the kernel's command line."),
        click.option("--gdb", type=click.IntRange(1, 65535), metavar="PORT",
                     help="Let gdb attach to the kernel at this port of the loopback."),
        click.option("--capture", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
                     help="Write what passes at eth0 to a pcapng file."),
        click.option("--fault", type=Faults(), default={}, metavar="NAME=CHANCE,...",
                     help="What goes wrong on the wire or in the device: loss=2%,reorder=1%,seed=7."),
        click.option("--bounce", is_flag=True, help="swiotlb=force: who forgets a sync sees no data."),
        click.option("--iommu", is_flag=True,
                     help="An IOMMU before the NIC: DMA outside of a live mapping is stopped and reported."),
        click.option("--memory", type=SIZE, default="1G", show_default=True, help="The guest's memory."),
        click.option("--mtu", type=click.IntRange(68, 9000), default=1500, show_default=True),
        click.option("--queues", type=click.IntRange(1, 16), default=4, show_default=True,
                     help="Receive and transmit queues of each port."),
        click.option("--module", "modules", multiple=True, metavar="FILE.ko",
                     type=click.Path(exists=True, dir_okay=False, path_type=Path),
                     help="A module to load; a gve.ko takes the place of the kernel's."),
        click.option("--kernel", default="", metavar="PATH|VERSION",
                     help="An image with its modules, a build tree, or a version of Debian's, such as 7.2."),
    ):  # fmt: skip
        function = option(function)
    return function


def surroundings(function: Callable[..., Any]) -> Callable[..., Any]:
    """--wire, --forward, --share, --selftests: of the verbs in which the user is at work."""
    for option in (
        click.option("--selftests", is_flag=True, help="With the kernel's selftests, at /usr/src/kernel."),
        click.option("--share", type=click.Path(exists=True, file_okay=False, path_type=Path),
                     metavar="FOLDER", help="A folder that the guest sees read-only at /share."),
        click.option("--forward", "forwards", type=Forward(), multiple=True, metavar="PORT[:GUEST_PORT]",
                     help="With --wire user: a port of this host's loopback that leads into the guest."),
        click.option("--wire", default="pair", show_default=True, metavar="pair|user|tap:NAME",
                     help="Two ports back to back, a gateway to this host, or its kernel (root)."),
    ):  # fmt: skip
        function = option(function)
    return function


def timeout_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--timeout."""
    return click.option(
        "--timeout", type=click.FloatRange(1), default=600.0, show_default=True, metavar="SECONDS",
        help="End the guest after so long.",
    )(function)  # fmt: skip


def config_of(o: dict[str, Any], open_files: ExitStack, **more: Any) -> GuestConfig:
    """A guest's configuration from the options. Usage errors for what cannot be."""
    memory = int(o["memory"]) >> 20
    if memory < MINIMUM_MIB:
        raise click.UsageError(f"--memory: a guest needs {MINIMUM_MIB} MiB")
    if o["iommu"] and o["bounce"]:
        raise click.UsageError("--iommu and --bounce exclude each other")
    capture = -1
    if o["capture"] is not None:
        capture = os.open(o["capture"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        open_files.callback(os.close, capture)
    faults = dict(o["fault"])
    seed = int(faults.pop("seed", 0))
    return GuestConfig(
        queues=o["queues"], mtu=o["mtu"], memory=memory, iommu=o["iommu"], bounce=o["bounce"],
        gdb=o["gdb"] or 0, verbose=o["verbose"], append=o["append"], faults=faults, seed=seed,
        capture=capture, **more,
    )  # fmt: skip


def wire_of(text: str, mtu: int, ends: ExitStack) -> dict[str, Any]:
    """What --wire means: keyword arguments of GuestConfig."""
    if text in ("pair", "user"):
        return {"wire": text}
    kind, _, name = text.partition(":")
    if kind != "tap" or not name:
        raise click.UsageError(f"--wire {text}: say pair, user or tap:NAME")
    from netmem.hw.tap.wire import configure_tap, open_tap

    fd = open_tap(name)
    ends.callback(os.close, fd)
    (host, *_) = configure_tap(name, [f"{LOCAL4}/24"], mtu=mtu)
    return {"wire": "tap", "tap": fd, "remote4": host or REMOTE4}


def prepared_for(o: dict[str, Any], **more: Any) -> Prepared:
    return prepare(say, kernel=o["kernel"], qemu=o["qemu"], accel=o["accel"], **more)


def failed(error: GuestError) -> None:
    """Say how a guest failed, with the last lines of its console, and exit."""
    for line in error.console:
        print(f"  {line}", file=sys.stderr)
    print(f"netmem: {printable(str(error))}", file=sys.stderr)
    sys.exit(TIMED_OUT if error.errno == errno.ETIMEDOUT else FAILED)


def report(guest: Guest, faults: list[str]) -> bool:
    """Say what the kernel and the device complained of; True when anything."""
    for text in [*guest.complaints, *(f"stopped: {one}" for one in faults), *guest.failures]:
        say(text)
    return bool(guest.complaints or faults)


def begin(
    guest: Guest, config: GuestConfig, forwards: tuple[tuple[int, int], ...] = (), limit: float = BOOT_S
) -> None:
    """Provoke the device's faults, wait for the guest, forward ports."""
    for name, value in config.faults.items():
        if name not in WIRE_FAULTS.values():
            guest.fault(name, value)
    # A kernel of Debian's is up in seconds; one of the user's may be full of checks.
    guest.wait_ready(limit if guest.kernel.own else min(limit, BOOT_S))
    for port, guest_port in forwards:
        real = guest.forward("127.0.0.1", port, guest_port)
        say(f"127.0.0.1:{real} leads to the guest's port {guest_port}")
