"""`netmem send`: send a file over TCP straight from a kind of memory."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import click

from netmem.base.address import host_port
from netmem.base.errors import NetmemError
from netmem.base.schema import document
from netmem.cli.options import ADDRESS, bus_of, memory_options, nic_options, usage, wire_options
from netmem.cli.signals import Interrupted
from netmem.inet.socket import TcpSocket
from netmem.inet.tcp.connections import TcpConfig
from netmem.inet.tcp.tcb import TcpState
from netmem.lab.device import Device, network_of, open_device
from netmem.lab.receiver import make_memory
from netmem.memory.provider import AreaProvider, check_size
from netmem.netdev.binding import TxBinding

CHUNK = 1 << 20
SEND_BUFFER = 4 << 20


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.argument("address", type=ADDRESS, metavar="HOST:PORT")
@click.option("--allow-remote", is_flag=True, help="Let HOST be an address other than loopback.")
@nic_options()
@wire_options
@memory_options
@click.option("--mtu", type=int, default=1500, show_default=True, help="Longest IP packet, up to 9000.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the reader may take nothing before the transfer has failed.",
)
@click.option("--json", "as_json", is_flag=True, help="The summary as a JSON line on stdout.")
def command(**words: Any) -> None:
    """Send FILE to a TCP server, straight from memory that the driver never maps.

    \b
    nc -l 5002 > copy.bin &
    netmem send --memory dmabuf FILE 127.0.0.1:5002

    The file is written into the memory piece by piece; a piece is written anew when the NIC is done with
    it. With --memory none the bytes are copied into the socket's buffer, as send() does.

    Done means that the reader has everything: the connection is closed in this direction, and the reader has
    closed the other. Otherwise the exit status is 1 (130 after SIGINT, 143 after SIGTERM), and one line says
    how many bytes the reader's host has.
    """
    words["bus"] = bus_of(words.pop("qemu"), words["bus"])
    job = _Job(**words)
    try:
        if job.memory != "none":
            check_size(job.memory_size, job.rx_page_size)
        summary = _run(job)
    except NetmemError as error:
        raise usage(_named(error, job.address)) from None
    if job.as_json:
        print(json.dumps(document("send", summary)), flush=True)
    else:
        print(
            f"netmem: {summary['bytes']} bytes to {job.address[0]}:{job.address[1]} in "
            f"{summary['seconds']:.3f} s, {summary['goodput_gbit']} Gbit/s, from {job.memory} memory in "
            f"{summary['calls']} sends; {summary['retrans']} segments sent again",
            file=sys.stderr,
        )


@dataclass(frozen=True, kw_only=True)
class _Job:
    """The words of the command."""

    file: str
    address: tuple[str, int]
    allow_remote: bool
    nic: str
    wire: str
    bus: str
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]
    memory: str
    memory_size: int
    rx_page_size: int
    exporter: str
    mtu: int
    timeout: float
    as_json: bool


def _run(job: _Job) -> dict[str, Any]:
    """Open a device, send, and close all; the summary."""
    with open_device(
        job.nic,
        mtu=job.mtu,
        **network_of(job.wire, job.bus, job.addresses, job.gateways),
        config=TcpConfig(sndbuf=SEND_BUFFER),
        drop_privileges=True,
    ) as device:
        provider = make_memory(device, job.nic, job.memory, job.memory_size, job.rx_page_size, job.exporter)
        try:
            binding = device.bind_tx(provider) if provider is not None else None
            target = device.reach(*job.address, allow_remote=job.allow_remote)
            summary = _send(device, job, target, provider, binding)
            summary["memory"] = job.memory
            if binding is not None:
                binding.close()
                summary["in_flight"] = binding.in_flight
        finally:
            if provider is not None:
                provider.close()
    return summary


def _named(error: NetmemError, address: tuple[str, int]) -> NetmemError:
    """The error as one of the address that the user named: on the user wire the gateway stands for it."""
    if isinstance(error, _CutShort):
        error.strerror = f"{host_port(*address)} {error.strerror}"
    elif error.errno == errno.ECONNREFUSED:
        error.strerror = f"{host_port(*address)} refused the connection: does anybody listen there?"
    return error


class _CutShort(NetmemError):
    """A transfer that did not come to its end; ``handed``: bytes that the reader's host has."""

    def __init__(self, error: OSError, handed: int, size: int) -> None:
        self.handed = handed
        why = {
            errno.ECONNRESET: "reset the connection",
            errno.ETIMEDOUT: "took nothing more in time",
            errno.ECONNREFUSED: "refused the connection",
        }.get(error.errno or 0, str(error.strerror or error))
        super().__init__(error.errno or errno.EIO, f"{why}; it has {handed} of {size} bytes")


def _send(
    device: Device,
    job: _Job,
    target: tuple[str, int],
    provider: AreaProvider | None,
    binding: TxBinding | None,
) -> dict[str, Any]:
    chunk, timeout = min(CHUNK, job.memory_size // 2), job.timeout
    with open(job.file, "rb", buffering=0) as source, device.connect(*target, timeout=timeout) as sock:
        size = os.fstat(source.fileno()).st_size
        start = time.monotonic()
        sock.timeout = timeout
        try:
            if provider is None or binding is None:
                total, calls = _by_copy(source, sock, chunk)
            else:
                total, calls = _from_memory(source, sock, provider, binding, chunk)
            sock.shutdown()
            _until_read(device, sock, total, timeout)
            sock.wait_zerocopy(timeout)  # the NIC is done with the memory too
        except (OSError, Interrupted) as error:
            handed, _ = _handed(device, sock)
            sock.abort()
            if isinstance(error, Interrupted):
                error.detail = f"{target[0]}:{target[1]} has {handed} of {size} bytes"
                raise
            raise _CutShort(error, handed, size) from None
        seconds = time.monotonic() - start
    return {
        "bytes": total, "seconds": round(seconds, 6), "calls": calls,
        "goodput_gbit": round(total * 8 / seconds / 1e9, 3),
        "retrans": device.stack.conns.counters()["retrans"],
    }  # fmt: skip


def _handed(device: Device, sock: TcpSocket) -> tuple[int, bool]:
    """Bytes that the far end has, as far as that can still be told, and whether there will be no more."""
    try:
        return device.handed(sock)
    except OSError:
        return sock.acknowledged(), sock.state() == TcpState.CLOSED


def _until_read(device: Device, sock: TcpSocket, total: int, timeout: float) -> None:
    """Until the reader has closed its end, and its host has all ``total`` bytes.

    TimeoutError when it takes nothing for ``timeout`` seconds; ECONNRESET when it never will.
    """
    seen, until, closed = -1, 0.0, False
    while True:
        now, (handed, over) = time.monotonic(), _handed(device, sock)
        if closed and handed >= total:
            return
        if closed and over:
            raise NetmemError(errno.ECONNRESET, "the reader reset the connection")
        if handed != seen:
            seen, until = handed, now + timeout
        if now >= until:
            raise TimeoutError(errno.ETIMEDOUT, f"the reader did not close its end in {timeout:g} s")
        if closed:  # early: it may still read
            sock.check_error()
            time.sleep(min(until - now, 0.02))
            continue
        try:
            closed = not sock.recv(CHUNK, timeout=min(until - now, 0.25))  # what it says is not for us
        except NetmemError:
            raise
        except TimeoutError:
            continue


def _by_copy(source: Any, sock: TcpSocket, chunk: int) -> tuple[int, int]:
    """The file through the socket's send buffer."""
    total = calls = 0
    while data := source.read(chunk):
        sock.sendall(data)
        total += len(data)
        calls += 1
    return total, calls


def _from_memory(
    source: Any, sock: TcpSocket, provider: AreaProvider, binding: TxBinding, chunk: int
) -> tuple[int, int]:
    """The file through the memory: each part is filled again when all sends from it are over."""
    view = provider.map(writable=True) if provider.mappable else None
    parts = provider.size // chunk
    last_call = [-1] * parts  # by part: the last call that sent from it
    done = total = calls = part = 0
    while True:
        while last_call[part] >= done:
            for _, last in sock.zerocopy_completions() or sock.wait_zerocopy(sock.timeout):
                done = last + 1
        at = part * chunk
        if view is None:
            data = source.read(chunk)
            provider.write(at, data)
            size = len(data)
        else:
            with provider.cpu_access(write=True):
                size = os.readv(source.fileno(), [view[at : at + chunk].data])
        if not size:
            return total, calls
        left, start = size, at
        while left:
            taken = sock.sendmsg_devmem([(start, left)], binding)
            last_call[part] = calls
            calls += 1
            start, left = start + taken, left - taken
        total += size
        part = (part + 1) % parts
