"""`netmem recv`: receive TCP connections into a kind of memory, and write or count them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from netmem.base.address import host_port
from netmem.base.errors import NetmemError
from netmem.base.extras import need
from netmem.base.schema import document
from netmem.base.transfer import Connection, FileSink
from netmem.cli.options import ADDRESS, bus_of, memory_options, nic_options, usage, wire_options
from netmem.cli.signals import Interrupted, endings

if TYPE_CHECKING:
    from netmem.kernel.receiver import KernelReceiver
    from netmem.lab.receiver import Receiver

PROGRESS_S = 0.5


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--listen",
    "address",
    type=ADDRESS,
    default="127.0.0.1:5001",
    show_default=True,
    help="Where TCP clients of this host connect; port 0 takes a free one. On a TAP wire, "
    "and with a device of the kernel's, only the port counts.",
)
@click.option("--allow-remote", is_flag=True, help="Let --listen name an address other than loopback.")
@nic_options(kernel=True)
@wire_options
@memory_options
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write what arrives; {n} stands for the connection's number. "
    "Without it, payload is counted and given back unread.",
)
@click.option(
    "--queue",
    "bound",
    type=click.IntRange(0),
    multiple=True,
    help="With --nic kernel:DEVICE: the receive queue to bind; may be given again.  [default: the last]",
)
@click.option(
    "--api",
    type=click.Choice(["devmem", "zcrx"]),
    default="devmem",
    show_default=True,
    help="With --nic kernel:DEVICE: devmem TCP, or io_uring's zero-copy receive.",
)
@click.option("--count", type=click.IntRange(1), help="End after this many connections.")
@click.option(
    "--tcp-data-split",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="Header split. Bound memory needs it on.",
)
@click.option(
    "--hds-thresh",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Split only frames longer than this. Bound memory needs 0.",
)
@click.option(
    "--rx-gro-hw",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="Segments that the sender's NIC would cut arrive as one packet (softnic).",
)
@click.option(
    "--rx-usecs",
    type=click.IntRange(0, 4095),
    help="The NIC gathers packets for so long between interrupts. [default: as traffic has it]",
)
@click.option("--mtu", type=int, default=1500, show_default=True, help="Longest IP packet, up to 9000.")
@click.option(
    "--queues",
    type=click.IntRange(1, 16),
    default=2,
    show_default=True,
    help="Receive queues; memory is bound to all but queue 0 (to it, if it is the only one).",
)
@click.option(
    "--capture", metavar="FILE", help="Write packets as pcapng: headers in clear, payload by reference."
)
@click.option(
    "--report", default="", metavar="FILE",
    help="At the end, write a page of what happened over time: rates, pool level, windows, tokens, batches, "
    "waits, drops.",
)  # fmt: skip
@click.option(
    "--sanitize", is_flag=True, help="Trap double puts, use after return, missing syncs and the like; slower."
)
@click.option("--json", "as_json", is_flag=True, help="Events and summary as JSON lines on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(
    address: tuple[str, int],
    allow_remote: bool,
    output: str | None,
    count: int | None,
    as_json: bool,
    quiet: bool,
    sanitize: bool,
    **options: Any,
) -> None:
    """Receive TCP into memory that the driver never maps.

    \b
    netmem recv --memory dmabuf -o copy.bin --count 1
    nc -N 127.0.0.1 5001 < file          # in another terminal: any TCP client will do

    Ends after --count connections, or at Ctrl-C, with a summary. Exit status 1 when a connection failed or
    netmem is missing at the end; 130 (SIGTERM: 143, SIGHUP: 129) when a signal cut a transfer short or came
    before --count was reached. A file is called FILE.partial until everything came.
    """
    if output and "{n}" not in output and count is not None and count > 1:
        raise click.UsageError(
            f"-o {output}: {count} connections would overwrite each other; put {{n}} into the name"
        )
    _check_output("-o", output)
    _check_output("--capture", options["capture"])
    _check_output("--report", options["report"])
    try:
        if options["nic"].startswith("kernel:"):
            receiver: Receiver | KernelReceiver = _of_the_kernel(address[1], **options)
        else:
            receiver = _of_ours(address, allow_remote, sanitize, **options)
    except NetmemError as error:
        raise usage(error) from None
    session = _Session(receiver, output, count, as_json, quiet or as_json, options["report"])
    sys.exit(session.run())


def _of_ours(address: tuple[str, int], allow_remote: bool, sanitize: bool, **options: Any) -> Receiver:
    need("lab", "recv")
    from netmem.lab.receiver import Receiver, Setup
    from netmem.memory import sanitizer

    if sanitize:
        sanitizer.enable()
    if options.pop("bound"):
        raise click.UsageError("--queue is for --nic kernel:DEVICE; --queues says how many our NICs have")
    if options.pop("api") != "devmem":
        raise click.UsageError("--api zcrx is for --nic kernel:DEVICE")
    capture, qemu = options.pop("capture"), options.pop("qemu")
    options["bus"] = bus_of(qemu, options["bus"])
    switches = {name: options.pop(name) == "on" for name in ("tcp_data_split", "rx_gro_hw")}
    setup = Setup(drop_privileges=True, **switches, **options)
    receiver = Receiver(setup, address, allow_remote=allow_remote)
    if capture:
        receiver.capture(capture)
    return receiver


OURS_ONLY = {
    "capture": "--capture", "mtu": "--mtu", "queues": "--queues", "wire": "--wire", "bus": "--bus",
    "addresses": "--address", "gateways": "--gateway", "qemu": "--qemu", "rx_usecs": "--rx-usecs",
    "rx_gro_hw": "--rx-gro-hw", "hds_thresh": "--hds-thresh", "tcp_data_split": "--tcp-data-split",
    "sanitize": "--sanitize", "report": "--report",
}  # fmt: skip


def _of_the_kernel(port: int, **options: Any) -> KernelReceiver:
    need("kernel", "recv --nic kernel:DEVICE")
    from netmem.kernel.receiver import KernelReceiver, KernelSetup

    context = click.get_current_context()
    given = click.core.ParameterSource.COMMANDLINE
    for name, text in OURS_ONLY.items():
        if context.get_parameter_source(name) == given:
            raise click.UsageError(f"{text} is for our own NICs: what the kernel's needs is set by itself")
    if options["memory"] != "dmabuf" or options["exporter"] == "memfd":
        raise click.UsageError("the kernel binds dma-bufs: --memory dmabuf, of udmabuf or the system-heap")
    names = ("nic", "memory", "memory_size", "exporter", "api")
    setup = {name: options[name] for name in names}
    if context.get_parameter_source("rx_page_size") == given:
        if options["api"] == "zcrx":
            raise click.UsageError("--rx-page-size is for --api devmem: zcrx has the kernel's pages")
        setup["rx_page_size"] = options["rx_page_size"]
    return KernelReceiver(KernelSetup(port=port, queues=options["bound"], **setup))


def _check_output(option: str, output: str | None) -> None:
    """Refuse a file that cannot be written before anything is started."""
    if not output:
        return
    folder = os.path.dirname(output) or "."
    if not os.path.isdir(folder):
        raise click.UsageError(f"{option} {output}: there is no folder {folder}")
    if os.path.isdir(output):
        raise click.UsageError(f"{option} {output} is a folder")


class _Session:
    """One run of `netmem recv`."""

    def __init__(
        self, receiver: Receiver | KernelReceiver, output: str | None, count: int | None, as_json: bool,
        quiet: bool, page: str,
    ) -> None:  # fmt: skip
        self.page = page
        self.receiver, self.output, self.count = receiver, output, count
        self.as_json, self.quiet = as_json, quiet
        self.stopped: signal.Signals | None = None
        self._at_output = False  # a signal then does not wait for a reader of what we write
        self._files: dict[int, FileSink] = {}
        self.taken = 0
        self._shown = 0.0
        self.failed = 0
        self._shown_bytes = 0
        self._live = sys.stderr.isatty()

    def run(self) -> int:
        """Until --count connections ended or a signal came; the exit status."""
        before = {s: signal.signal(s, self._stop) for s in endings()}
        try:
            self._announce()
            try:
                status = self._loop()
            except Interrupted:
                status = self._cut_short(busy=True)
        finally:
            try:
                summary = self.receiver.summary()
            finally:
                self.receiver.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.receiver.reported:
            self._say(f"netmem: report in {self.page}")
        summary["outstanding"] = self.receiver.outstanding
        summary["interrupted"] = self.stopped is not None
        self._report(summary)
        if summary["outstanding"]:
            self._say(f"netmem: {summary['outstanding']} netmems never came back")
            status = 1
        return status

    def _stop(self, number: int, frame: object) -> None:
        """The first signal ends it in good order, the second as by default."""
        self.stopped = signal.Signals(number)
        for each in endings():
            signal.signal(each, signal.SIG_DFL)
        if self._at_output:
            raise Interrupted(number)

    @contextlib.contextmanager
    def _output(self) -> Iterator[None]:
        """Around whatever may wait for somebody who reads what we write."""
        if self.stopped is not None:
            raise Interrupted(self.stopped)
        self._at_output = True
        try:
            yield
        finally:
            self._at_output = False

    def _write(self, file: FileSink, data: memoryview) -> None:
        with self._output():
            file.write(data)

    def _say(self, text: str) -> None:
        if self._live and self._shown:
            print("\r\033[K", end="", file=sys.stderr)
        print(text, file=sys.stderr, flush=True)

    def _announce(self) -> None:
        r = self.receiver
        kind = r.setup.memory
        if kind == "dmabuf":
            kind += f" ({r.exporter()[0]})"
        reason = r.exporter()[1]
        if self.as_json:
            event = {"event": "listening", "address": r.address, "port": r.port, "memory": kind}
            print(json.dumps(document("recv", {**event, "fallback": reason or None})), flush=True)
            return
        if reason:
            self._say(f"netmem: no better exporter: {reason}")
        self._say(f"netmem: listening on {r.address}:{r.port}, memory {kind}; Ctrl-C ends")

    def _loop(self) -> int:
        r = self.receiver
        while self.stopped is None:
            if self.count is not None and self.taken >= self.count and not r.connections:
                break
            r.wait(PROGRESS_S / 2)
            while r.pending() and (self.count is None or self.taken < self.count):
                self.taken += 1
                self._accept(self.taken)
            for connection in r.ready():
                if not connection.sock.readable():
                    continue
                r.receive(connection)
                if connection.done:
                    self.failed += bool(connection.error)
                    self._ended(connection)
            self._progress()
            self._warn()
            r.check_alive()
        return self._cut_short() if self.stopped is not None else 1 if self.failed else 0

    def _cut_short(self, *, busy: bool = False) -> int:
        """A signal ended it: what is still open is a failure; the exit status. ``busy``: something was."""
        assert self.stopped is not None
        r, cut = self.receiver, busy or bool(self.receiver.connections)
        for connection in list(r.connections):
            r.refuse(connection, f"cut short by {self.stopped.name} after {connection.bytes} bytes")
            self.failed += 1
            self._ended(connection)
        if cut or (self.count is not None and self.taken < self.count):
            return 128 + self.stopped
        return 1 if self.failed else 0

    def _accept(self, number: int) -> None:
        r = self.receiver
        if self.output is None:
            r.accept(number, r.sink(None))
            return
        try:
            with self._output():
                file = FileSink(self.output.replace("{n}", str(number)))
        except OSError as error:
            refused = r.accept(number, r.sink(None))
            r.refuse(refused, f"{error.filename}: {error.strerror}")
            self.failed += 1
            self._ended(refused)
            return
        self._files[number] = file
        r.accept(number, r.sink(functools.partial(self._write, file)), file.close)

    def _warn(self) -> None:
        warnings, self.receiver.warnings = self.receiver.warnings, []
        for text in warnings:
            if self.as_json:
                print(json.dumps(document("recv", {"event": "warning", "text": text})), flush=True)
            self._say(f"netmem: {text}")

    def _ended(self, connection: Connection) -> None:
        peer, client = host_port(*connection.sock.peer), self.receiver.client(connection)
        if client is None:
            peer += " (the gateway, which does not say for whom)"
        elif client != connection.sock.peer:
            peer = host_port(*client)
        file = self._files.pop(connection.number, None)
        partial = file.now if file is not None and connection.error and file.now != file.path else None
        if self.as_json:
            event = {"event": "closed", "connection": connection.number, "bytes": connection.bytes}
            event |= {
                "peer": host_port(*connection.sock.peer),
                "client": host_port(*client) if client else None,
            }
            event |= {"error": connection.error or None, "partial": partial, **connection.flow.plain()}
            print(json.dumps(document("recv", event)), flush=True)
        if connection.error:
            kept = f"; {partial} has what came" if partial else ""
            self._say(f"netmem: connection {connection.number} from {peer}: {connection.error}{kept}")
        elif not self.as_json:
            self._say(f"netmem: connection {connection.number} from {peer}: {connection.bytes} bytes")

    def _progress(self) -> None:
        now = time.monotonic()
        if self.quiet or now - self._shown < PROGRESS_S or not self.receiver.connections:
            return
        total = self.receiver.totals.bytes
        rate = (total - self._shown_bytes) / max(now - self._shown, 1e-9) if self._shown else 0.0
        self._shown, self._shown_bytes = now, total
        level = self.receiver.level()
        free = f"pool {level:.0%} free  " if level is not None else ""
        line = (
            f"{total / 1e6:,.0f} MB  {rate * 8 / 1e9:.2f} Gbit/s  {free}{len(self.receiver.connections)} open"
        )
        if self._live:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _report(self, s: dict[str, Any]) -> None:
        if self.as_json:
            print(json.dumps(document("recv", {"event": "summary", **s})), flush=True)
            return
        memory = s["memory"] + (f" ({s['exporter']})" if s["exporter"] else "")
        readable = "yes" if s["driver_can_read"] else "no"
        told = (
            f"{s['bytes']} bytes in {s['seconds']:.3f} s, {s['goodput_gbit']} Gbit/s, "
            f"{s['connections']} connection(s), {s['failed']} failed\n"
        )
        if "queues" in s:
            queues = ", ".join(map(str, s["queues"]))
            return self._say(
                f"{told}memory {memory}, bound to queue {queues}; {s['frags']} frags, "
                f"{s['frags_per_mib']:g} in a MiB, {s['linear_bytes']} bytes by copy, "
                f"{s['copied_bytes']} of them by another queue; all settings undone"
            )
        self._say(
            f"{told}memory {memory}, driver can read it: {readable}; header split {s['hds_hit']} hits, "
            f"{s['hds_miss']} misses; {s['linear_bytes']} linear bytes, "
            f"{s['frags']} frags, {s['frags_per_mib']:g} in a MiB\n"
            f"netmems: {s['alloc_fast']} fast and {s['alloc_slow']} slow allocations, "
            f"{s['recycled']} recycled, {s['outstanding']} outstanding"
            + ("\nsanitizer: nothing trapped" if s["sanitized"] else "")
        )
