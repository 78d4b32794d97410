"""`netmem guest`: the kernel's own devmem TCP and zcrx, in a Linux guest whose NICs are ours."""

from __future__ import annotations

import errno
import os
import re
import select
import shlex
import sys
import termios
import time
import tty
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from netmem.base.text import printable
from netmem.cli.options import SIZE
from netmem.cli.tables import WIDTH, table
from netmem.hw.gve.faults import GveFaults
from netmem.lab.guest import tests
from netmem.lab.guest.machine import LOCAL4, REMOTE4, Guest, GuestConfig, GuestError
from netmem.lab.guest.prepare import Prepared, prepare

FAILED, TIMED_OUT = 125, 124  # of the guest itself, as docker and timeout have it
WIRE_FAULTS = {"loss": "loss", "duplicate": "duplicate", "dup": "duplicate", "reorder": "reorder",
               "damage": "damage", "corrupt": "damage"}  # fmt: skip
MINIMUM_MIB = 256
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


def _say(text: str) -> None:
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
        click.option("--timeout", type=click.FloatRange(1), default=600.0, show_default=True,
                     metavar="SECONDS", help="End the guest after so long."),
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


def _config(o: dict[str, Any], open_files: ExitStack, **more: Any) -> GuestConfig:
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


def _wire(text: str, mtu: int, ends: ExitStack) -> dict[str, Any]:
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


def _prepare(o: dict[str, Any], **more: Any) -> Prepared:
    return prepare(_say, kernel=o["kernel"], qemu=o["qemu"], accel=o["accel"], **more)


def _failed(error: GuestError) -> None:
    """Say how a guest failed, with the last lines of its console, and exit."""
    for line in error.console:
        print(f"  {line}", file=sys.stderr)
    print(f"netmem: {error}", file=sys.stderr)
    sys.exit(TIMED_OUT if error.errno == errno.ETIMEDOUT else FAILED)


def _report(guest: Guest) -> bool:
    """Say what the kernel and the device complained of; True when anything."""
    faults = guest.dma_faults()
    for text in [*guest.complaints, *(f"stopped: {one}" for one in faults), *guest.failures]:
        _say(text)
    return bool(guest.complaints or faults)


def _begin(guest: Guest, config: GuestConfig, forwards: tuple[tuple[int, int], ...]) -> None:
    for name, value in config.faults.items():
        if name not in WIRE_FAULTS.values():
            guest.fault(name, value)
    guest.wait_ready()
    for port, guest_port in forwards:
        real = guest.forward("127.0.0.1", port, guest_port)
        _say(f"127.0.0.1:{real} leads to the guest's port {guest_port}")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def command() -> None:
    """Boot Linux with Google's gve NIC, whose device we are, and run the kernel's own devmem TCP in it.

    Emulated by QEMU with nothing special in the machine and without root. What is missing is fetched from
    Debian's packages once. Two ports are back to back: eth0, and eth1 in the network namespace `peer`.
    """


@command.command("run", context_settings={"ignore_unknown_options": False})
@machine_options
@click.option("--forward", "forwards", type=Forward(), multiple=True, metavar="PORT[:GUEST_PORT]",
              help="With --wire user: a port of this host's loopback that leads into the guest.")  # fmt: skip
@click.option("--wire", default="pair", show_default=True, metavar="pair|user|tap:NAME",
              help="Two ports back to back, a gateway to this host, or its kernel (root).")  # fmt: skip
@click.option("--share", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
              help="A folder that the guest sees read-only at /share.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="Where to put what the guest leaves in /out.")  # fmt: skip
@click.option("--selftests", is_flag=True, help="With the kernel's selftests, at /usr/src/kernel.")
@click.argument("words", nargs=-1, required=True, metavar="[--] COMMAND...")
def run(words: tuple[str, ...], **o: Any) -> None:
    """Boot a guest, run COMMAND in it, and exit with its status.

    One word is a line for bash; several are a program and its arguments. 124: the time was over; 125: the
    guest failed.
    """
    line = words[0] if len(words) == 1 else shlex.join(words)
    with ExitStack() as ends:
        wire = _wire(o["wire"], o["mtu"], ends)
        if o["forwards"] and wire["wire"] != "user":
            raise click.UsageError("--forward needs --wire user")
        prepared = _prepare(o, tests=o["selftests"])
        share = prepared.images.share(o["share"], ends) if o["share"] else None
        config = _config(o, ends, share=share, out=o["out"] is not None, **wire)
        end = time.monotonic() + o["timeout"]
        try:
            with prepared.start(config, o["modules"]) as guest:
                if o["gdb"]:
                    _say(f"gdb: target remote 127.0.0.1:{o['gdb']}")
                _begin(guest, config, o["forwards"])
                guest.start(line, _writer(sys.stdout.fileno()), _writer(sys.stderr.fileno()))
                status = guest.finish(end - time.monotonic())
                _report(guest)
                guest.end()
                if o["out"] is not None:
                    o["out"].mkdir(parents=True, exist_ok=True)
                    guest.unpack_out(o["out"])
        except GuestError as error:
            _failed(error)
    sys.exit(status)


def _writer(fd: int) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return write


@command.command("shell")
@machine_options
@click.option("--forward", "forwards", type=Forward(), multiple=True, metavar="PORT[:GUEST_PORT]",
              help="With --wire user: a port of this host's loopback that leads into the guest.")  # fmt: skip
@click.option("--wire", default="pair", show_default=True, metavar="pair|user|tap:NAME")
@click.option("--share", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
              help="A folder that the guest sees read-only at /share.")  # fmt: skip
@click.option("--selftests", is_flag=True, help="With the kernel's selftests, at /usr/src/kernel.")
def shell(**o: Any) -> None:
    """Boot a guest with an interactive bash: Python, ethtool, iproute2, socat, iperf3, with --selftests ynl.

    Leave it with `exit`.
    """
    with ExitStack() as ends:
        wire = _wire(o["wire"], o["mtu"], ends)
        prepared = _prepare(o, tests=o["selftests"])
        share = prepared.images.share(o["share"], ends) if o["share"] else None
        config = _config(o, ends, share=share, shell=True, **wire)
        try:
            with prepared.start(config, o["modules"]) as guest:
                _begin(guest, config, o["forwards"])
                _say("`exit` ends it; the other port is eth1 in `ip netns exec peer`")
                status = _interact(guest)
                _report(guest)
        except GuestError as error:
            _failed(error)
    sys.exit(status)


def _interact(guest: Guest) -> int:
    """The terminal is the guest's until its shell ends; the shell's status."""
    sock, stdin = guest.terminal(), sys.stdin.fileno()
    terminal = os.isatty(stdin)
    before = termios.tcgetattr(stdin) if terminal else []
    write = _writer(sys.stdout.fileno())
    inputs = [stdin]
    try:
        if terminal:
            tty.setraw(stdin)
        while guest.status() is None:
            ready, _, _ = select.select([sock.fileno(), *inputs], [], [], 0.2)
            if sock.fileno() in ready and (data := sock.recv(1 << 16)):
                write(data)
            if stdin in ready:
                data = os.read(stdin, 4096)
                sock.sendall(data or b"\x04")  # the end of a pipe is Ctrl-D
                if not data:
                    inputs.clear()
            guest.look()
    finally:
        if terminal:
            termios.tcsetattr(stdin, termios.TCSADRAIN, before)
    return guest.status() or 0


@command.command("test")
@machine_options
@click.option("--format", "form", type=click.Choice(["text", "json", "junit", "ktap", "markdown"]),
              default="text", show_default=True)  # fmt: skip
@click.argument("what", nargs=-1, metavar="[devmem|zcrx|faults|all|SELFTEST.py]...")
def test(what: tuple[str, ...], form: str, **o: Any) -> None:
    """Run the kernel's own selftests, of the same version's source; devmem and zcrx if nothing is said.

    Exit status 1 when a test fails, the kernel complains, DMA was stopped, or a page pool never drains.
    """
    names = tuple(dict.fromkeys(name for one in what or ("devmem", "zcrx") for name in tests.suites(one)))
    with ExitStack() as ends:
        prepared = _prepare(o, tests=True)
        config = _config(o, ends)
        for name in names:
            if name not in (*tests.PROGRAMS, tests.FAULTS) and not prepared.has_selftest(name):
                raise click.UsageError(f"Linux {prepared.version} has no selftest {name}")

        def start() -> Guest:
            guest = prepared.start(config, o["modules"])
            _begin(guest, config, ())
            return guest

        def done(one: tests.Result) -> None:
            if form == "text":
                _say(f"{one.suite} {one.test}: {one.outcome}" + (f" ({one.note})" if one.note else ""))

        runner = tests.Runner(start, done)
        runner.run(names)
    about = {
        "kernel": runner.release,
        "qemu": prepared.qemu.version,
        "accel": "kvm" if prepared.kvm else "tcg",
    }
    failed = any(one.failed for one in runner.results)
    if form == "json":
        print(tests.as_json(runner.results, about))
    elif form == "junit":
        print(tests.as_junit(runner.results, about))
    elif form == "ktap":
        print(tests.as_ktap(runner.results))
    elif form == "markdown":
        print(tests.as_markdown(runner.results, about))
    else:
        _print_results(runner, about)
    sys.exit(1 if failed else 0)


def _print_results(runner: tests.Runner, about: dict[str, str]) -> None:
    from rich.console import Console

    rows: list[list[object]] = []
    for one in runner.results:
        outcome = "FAIL" if one.failed else one.outcome
        rows.append([one.suite.rpartition("/")[2], one.test, outcome, f"{one.seconds:.1f}", one.note[:60]])
    console = Console(width=WIDTH, highlight=False)
    console.print(table("<selftest|<test|<result|seconds|<note", rows))
    for one in runner.results:
        for text in one.complaints:
            print(f"the kernel says: {text}")
    print(tests.summary(runner.results, about))


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

    store = Store(_say)
    if source is not None:
        print(f"{store.read_bundle(source)} packages are here now")
        return
    if update:
        renew(store)
    version = choose_version(store, kernel)
    names = all_sets(version, tests=with_tests, headers=headers)
    if to is not None:
        supply(store, names)
        store.write_bundle(to, names)
        print(f"{to}: {to.stat().st_size / 1e6:.0f} MB")
        return
    supply(store, names)
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

    driver_source(_say, kernel, folder)
    print(f"{folder}: change it, then `netmem guest build-module {folder}`")


@command.command("build-module")
@click.option("--kernel", default="", metavar="VERSION", help="The kernel that it is for.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def build_module(kernel: str, folder: Path) -> None:
    """Build the module in FOLDER against a kernel's headers, with that kernel's compiler, without root."""
    from netmem.lab.guest.prepare import build_module as build

    made = build(_say, kernel, folder)
    for path in made:
        print(path)


if __name__ == "__main__":
    command()
