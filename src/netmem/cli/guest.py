"""`netmem guest`: the kernel's own devmem TCP and zcrx, in a Linux guest whose NICs are ours."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import socket
import sys
import termios
import time
import tty
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from netmem.cli.guest_check import check
from netmem.cli.guest_options import (
    begin,
    config_of,
    failed,
    machine_options,
    prepared_for,
    report,
    say,
    surroundings,
    timeout_option,
    wire_of,
)
from netmem.cli.guest_tests import bench, test
from netmem.lab.guest.config import GuestError
from netmem.lab.guest.machine import Guest

TYPED = 1 << 16  # bytes of input that wait for the guest, before no more are read
KCONFIG = """\
# What a kernel needs for `netmem guest`, beside an ordinary x86-64 configuration.
CONFIG_PCI=y
CONFIG_PCI_MSI=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_CONSOLE=y
CONFIG_SERIAL_8250_CONSOLE=y
CONFIG_DEVTMPFS=y
CONFIG_TMPFS=y
CONFIG_EXT4_FS=y
CONFIG_OVERLAY_FS=y
CONFIG_BLK_DEV_INITRD=y
CONFIG_MAGIC_SYSRQ=y
CONFIG_NET_NS=y
CONFIG_NET_VENDOR_GOOGLE=y
CONFIG_GVE=m
CONFIG_DMA_SHARED_BUFFER=y
CONFIG_UDMABUF=y
CONFIG_DMABUF_HEAPS=y
CONFIG_DMABUF_HEAPS_SYSTEM=y
CONFIG_NET_DEVMEM=y
CONFIG_IO_URING_ZCRX=y
CONFIG_PAGE_POOL_STATS=y
# For --iommu.
CONFIG_INTEL_IOMMU=y
# What Debian's kernels have off, and finds more:
CONFIG_DMA_API_DEBUG=y
CONFIG_DEBUG_NET=y
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def command() -> None:
    """Boot Linux with Google's gve NIC, whose device we are, and run the kernel's own devmem TCP in it.

    Emulated by QEMU with nothing special in the machine and without root. What is missing is fetched from
    Debian's packages once. Two ports are back to back: eth0, and eth1 in the network namespace `peer`.
    """


command.add_command(test)
command.add_command(bench)
command.add_command(check)


@command.command("run")
@machine_options
@surroundings
@timeout_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="Where to put what the guest leaves in /out.")  # fmt: skip
@click.argument("words", nargs=-1, required=True, metavar="[--] COMMAND...")
def run(words: tuple[str, ...], **o: Any) -> None:
    """Boot a guest, run COMMAND in it, and exit with its status.

    One word is a line for bash; several are a program and its arguments. 124: the time was over; 125: the
    guest failed.
    """
    line = words[0] if len(words) == 1 else shlex.join(words)
    with ExitStack() as ends:
        wire = wire_of(o["wire"], o["mtu"], ends)
        if o["forwards"] and wire["wire"] != "user":
            raise click.UsageError("--forward needs --wire user")
        if o["out"] is not None:
            o["out"].mkdir(parents=True, exist_ok=True)
            if not os.access(o["out"], os.W_OK | os.X_OK):
                raise click.UsageError(f"--out {o['out']}: nothing can be written there")
        prepared = prepared_for(o, tests=o["selftests"])
        share = prepared.images.share(o["share"], ends) if o["share"] else None
        config = config_of(o, ends, share=share, out=o["out"] is not None, **wire)
        end = time.monotonic() + o["timeout"]
        try:
            with prepared.start(config, o["modules"]) as guest:
                if o["gdb"]:
                    say(f"gdb: target remote 127.0.0.1:{o['gdb']}")
                begin(guest, config, o["forwards"], o["timeout"])
                guest.start(line, _writer(sys.stdout.fileno()), _writer(sys.stderr.fileno()))
                status = guest.finish(end - time.monotonic())
                faults = guest.dma_faults()
                guest.end()
                report(guest, faults)
                if o["out"] is not None:
                    guest.unpack_out(o["out"])
        except GuestError as error:
            failed(error)
    sys.exit(status)


def _writer(fd: int) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return write


@command.command("shell")
@machine_options
@surroundings
def shell(**o: Any) -> None:
    """Boot a guest with an interactive bash: Python, ethtool, iproute2, socat, iperf3, with --selftests ynl.

    Leave it with `exit`.
    """
    with ExitStack() as ends:
        wire = wire_of(o["wire"], o["mtu"], ends)
        prepared = prepared_for(o, tests=o["selftests"])
        share = prepared.images.share(o["share"], ends) if o["share"] else None
        config = config_of(o, ends, share=share, shell=True, **wire)
        try:
            with prepared.start(config, o["modules"]) as guest:
                begin(guest, config, o["forwards"])
                say("`exit` ends it; the other port is eth1 in `ip netns exec peer`")
                status = _interact(guest)
                report(guest, guest.dma_faults())
        except GuestError as error:
            failed(error)
    sys.exit(status)


def _interact(guest: Guest) -> int:
    """The terminal is the guest's until its shell ends; the shell's status."""
    sock, stdin = guest.terminal(), sys.stdin.fileno()
    terminal = os.isatty(stdin)
    before = termios.tcgetattr(stdin) if terminal else []
    write = _writer(sys.stdout.fileno())
    more, pending = True, bytearray()  # of what the user typed
    try:
        if terminal:
            tty.setraw(stdin)
        while guest.status() is None:
            inputs = [sock.fileno(), *([stdin] if more and len(pending) < TYPED else [])]
            ready, able, _ = select.select(inputs, [sock.fileno()] if pending else [], [], 0.2)
            _show(sock, write)
            if stdin in ready:
                data = os.read(stdin, 4096)
                more = bool(data)
                pending += data or b"\x04"  # the end of a pipe is Ctrl-D
            if able:
                with contextlib.suppress(BlockingIOError):
                    del pending[: sock.send(pending)]
            guest.look()
        _show(sock, write)
    finally:
        if terminal:
            termios.tcsetattr(stdin, termios.TCSADRAIN, before)
    return guest.status() or 0


def _show(sock: socket.socket, write: Callable[[bytes], None]) -> None:
    """Pass on what the guest's terminal has said by now."""
    with contextlib.suppress(OSError):
        while data := sock.recv(1 << 16):
            write(data)


@command.command("fetch")
@click.option(
    "--kernel", default="", metavar="VERSION", help="A series or version that Debian has, such as 7.2."
)
@click.option("--tests", "with_tests", is_flag=True, help="What selftests are built of, too.")
@click.option("--headers", is_flag=True, help="What modules are built with, too.")
@click.option(
    "--update", is_flag=True, help="Ask the archive's index for the newest versions, and renew the lock."
)
@click.option("--to", "to", type=click.Path(dir_okay=False, path_type=Path), metavar="BUNDLE",
              help="Write everything to one file, for a machine without a network.")  # fmt: skip
@click.option("--from", "source", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              metavar="BUNDLE", help="Take the packages from such a file.")  # fmt: skip
def fetch(
    kernel: str, with_tests: bool, headers: bool, update: bool, to: Path | None, source: Path | None
) -> None:
    """Fetch what a guest is made of, ahead of time; afterwards no network is needed."""
    from netmem.lab.guest.packages import Store
    from netmem.lab.guest.prepare import all_sets, choose_version, renew, supply

    store = Store(say)
    if source is not None:
        print(f"{store.read_bundle(source)} packages are here now")
        return
    if update:
        renew(store)
    wanted = {"tests": with_tests, "headers": headers, "source": headers}  # a module is built of both
    version = supply(store, choose_version(store, kernel), **wanted)
    if to is not None:
        store.write_bundle(to, all_sets(version, **wanted))
        print(f"{to}: {to.stat().st_size / 1e6:.0f} MB")
        return
    print(f"Linux {version} and all that a guest needs with it are in {store.folder}")


@command.command("kconfig")
def kconfig() -> None:
    """Print the options that a kernel of yours needs, for scripts/kconfig/merge_config.sh."""
    print(KCONFIG, end="")


@command.command("source")
@click.option("--kernel", default="", metavar="VERSION")
@click.argument("driver", type=click.Choice(["gve"]))
@click.argument("folder", type=click.Path(path_type=Path))
def source_(kernel: str, driver: str, folder: Path) -> None:
    """Copy a driver's source, as Debian's kernel has it, to FOLDER: to be changed and built."""
    from netmem.lab.guest.prepare import driver_source

    driver_source(say, kernel, folder)
    chosen = f"--kernel {kernel} " if kernel else ""
    print(f"{folder}: change it, then `netmem guest build-module {chosen}{folder}`")


@command.command("build-module")
@click.option("--kernel", default="", metavar="VERSION", help="The kernel that it is for.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def build_module(kernel: str, folder: Path) -> None:
    """Build the module in FOLDER against a kernel's headers, with that kernel's compiler, without root."""
    from netmem.lab.guest.prepare import build_module as build

    made = build(say, kernel, folder)
    for path in made:
        print(path)


if __name__ == "__main__":
    command()
