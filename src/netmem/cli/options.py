"""Options that several verbs share, and the types of their values."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Any

import click

from netmem.base.errors import MissingError, NetmemError

NICS = ("softnic", "igb")

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Size(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Bytes: 4096, 64K, 64M, 2G (also KiB, MiB, GiB)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)([kKmMgG]?)(i?[bB])?", value)
        if not match:
            self.fail(f"{value!r} is not a size: say 4096, 64K, 64M or 2G", param, ctx)
        return int(match[1]) * _UNITS[match[2].lower()]


class Address(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """HOST:PORT, or [IPv6]:PORT."""

    name = "host:port"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            self.fail(f"{value!r} is not HOST:PORT, such as 127.0.0.1:5001", param, ctx)
        return host.strip("[]"), int(port)


class Memory(click.Choice):  # type: ignore[type-arg, unused-ignore]
    """One of the kinds of memory, or a GPU's: cuda:N."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if re.fullmatch(r"cuda:\d{1,3}", str(value)):
            return str(value)
        return str(super().convert(value, param, ctx))


class Nic(click.Choice):  # type: ignore[type-arg, unused-ignore]
    """One of our NICs, or a device of the kernel's: kernel:DEVICE."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if re.fullmatch(r"kernel:[^\s/:]{1,15}", str(value)):
            return str(value)
        return str(super().convert(value, param, ctx))


SIZE, ADDRESS, MEMORY = Size(), Address(), Memory(("none", "pages", "dmabuf", "bar", "cuda:N"))


def _rx_page_size(ctx: click.Context, param: click.Parameter, value: int | None) -> int:
    if value is not None:
        return value
    return 64 << 10 if ctx.params["memory"].startswith("cuda:") else 4 << 10


def memory_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--memory, --memory-size, --rx-page-size, --exporter."""
    for option in (
        click.option(
            "--exporter",
            type=click.Choice(["auto", "udmabuf", "system-heap", "memfd"]),
            default="auto",
            show_default=True,
            help="Where dmabuf memory comes from; auto takes the first that works and says which.",
        ),
        click.option(
            "--rx-page-size",
            type=SIZE,
            callback=_rx_page_size,
            help="Bytes of one netmem, a power of two from 4K to 2M.  [default: 4K; 64K of cuda:N]",
        ),
        click.option(
            "--memory-size",
            type=SIZE,
            default="64M",
            show_default=True,
            help="Bytes of bound memory, a multiple of the rx page size.",
        ),
        click.option(
            "--memory",
            type=MEMORY,
            default="dmabuf",
            show_default=True,
            is_eager=True,  # rx-page-size depends on it
            help="Memory for payload: none leaves the queues unbound, pages is readable by the "
            "driver, dmabuf is known to it by file descriptor only, bar is another PCI device's (igb), "
            "cuda:0 that of the first GPU (softnic).",
        ),
    ):
        function = option(function)
    return function


def nic_options(*, kernel: bool = False) -> Callable[..., Any]:
    """--nic, --qemu. ``kernel``: a device of the kernel's will do, too."""
    more = " kernel:DEVICE is a network interface of this machine, set up and put back." if kernel else ""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        nic = click.option(
            "--nic",
            type=Nic((*NICS, "kernel:DEVICE")) if kernel else click.Choice(NICS),
            default="softnic",
            show_default=True,
            help=f"softnic is our own NIC in software, igb Intel's 82576 as QEMU emulates it.{more}",
        )
        qemu = click.option("--qemu", metavar="PATH", help="The QEMU to use; by default the one on PATH.")
        return nic(qemu(function))

    return add


def wire_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--wire, --bus, --address, --gateway."""
    for option in (
        click.option("--gateway", "gateways", multiple=True, metavar="ADDRESS",
                     help="Router of the stack on a TAP wire or a --bus vfio; once for each family."),
        click.option("--address", "addresses", multiple=True, metavar="ADDRESS/LENGTH",
                     help="The stack's address there, IPv4 or IPv6; may be given again.  "
                     "[default: 10.20.0.2/24]"),
        click.option("--bus", metavar="qemu|vfio:FUNCTION", default="qemu", show_default=True,
                     help="Where an igb is: QEMU's, or a PCI function of this machine that vfio-pci has, "
                     "such as vfio:0000:03:00.0."),
        click.option("--wire", metavar="user|tap:NAME", default="user", show_default=True,
                     help="What the NIC is plugged into: a gateway to ports of this host, or a TAP "
                     "interface that is made for it (root)."),
    ):  # fmt: skip
        function = option(function)
    return function


def bus_of(qemu: str | None, bus: str) -> str:
    """--qemu and --bus in one."""
    if qemu and bus != "qemu":
        raise click.UsageError("--qemu and --bus exclude each other")
    return f"qemu:{qemu}" if qemu else bus


OPTIONS = {  # what the API's errors call what are options here
    "allow_remote lets it": "--allow-remote lets it",
    "nic softnic does": "use --nic softnic",
    "of nic igb,": "igb's (--nic igb),",
    "exporter memfd does it": "use --exporter memfd",
    "or name one that is elsewhere": "or say --qemu PATH",
}


def in_options(error: NetmemError) -> str:
    """An error of the API in the words of the command line."""
    text = str(error)
    for words, option in OPTIONS.items():
        text = text.replace(words, option)
    return text


def usage(error: NetmemError) -> Exception:
    """A refusal that the user's arguments caused, as a usage error (exit status 2)."""
    users = (
        errno.EINVAL, errno.ERANGE, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.EAFNOSUPPORT
    )  # fmt: skip
    if isinstance(error, MissingError) or error.errno in users:
        return click.UsageError(in_options(error))
    return error
