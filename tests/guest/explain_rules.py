"""explain_rules.py DEVICE:QUEUE...: brings devices into states that the kernel refuses, and compares.

One JSON line for each: what `netmem explain` predicts, and what the kernel answers. The first device is one
that can do it; the others are tried as they come. Runs with netmem's kernel room alone.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import socket
import struct
import sys
import time

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from netmem.base.dmabuf import export
from netmem.base.errors import NetmemError, errno_name
from netmem.kernel.ethtool_family import EthtoolFamily
from netmem.kernel.explain import attempt, explain, outcome
from netmem.kernel.netdev_family import NetdevFamily
from netmem.kernel.rules import BIND_RX, Ask, Verdict
from netmem.kernel.state import device_state, kernel_state

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_BPF, BPF_PROG_LOAD, BPF_PROG_TYPE_XDP, BPF_F_XDP_HAS_FRAGS = 321, 5, 6, 1 << 5
XDP_MODE = {"native": 1 << 2, "generic": 1 << 1}
SOL_XDP, XDP_RX_RING, XDP_UMEM_REG, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING = 283, 2, 4, 5, 6
XDP_COPY = 1 << 1
AF_XDP = 44
OFF, ON = 1, 2
SPLIT = next(rule for rule in BIND_RX if rule.text.startswith("tcp-data-split"))


def xdp_program(flags: int) -> int:
    """A program that passes everything: r0 = XDP_PASS; exit."""
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0))
    words = ctypes.create_string_buffer(b"Apache-2.0\0")
    attr = struct.pack(
        "<IIQQIIQII", BPF_PROG_TYPE_XDP, 2, ctypes.addressof(code), ctypes.addressof(words), 0, 0, 0, 0, flags
    ).ljust(128, b"\0")
    fd = LIBC.syscall(SYS_BPF, BPF_PROG_LOAD, attr, len(attr))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "bpf(BPF_PROG_LOAD)")
    return fd


def xdp_attach(index: int, fd: int, mode: str) -> None:
    nest = {"attrs": [("IFLA_XDP_FD", fd), ("IFLA_XDP_FLAGS", XDP_MODE[mode])]}
    with IPRoute() as route:
        try:
            route.link("set", index=index, xdp=nest)
        except NetlinkError as error:
            raise OSError(error.code, "XDP") from None


@contextlib.contextmanager
def xdp(index: int, mode: str = "generic", flags: int = BPF_F_XDP_HAS_FRAGS):
    fd = xdp_program(flags)
    try:
        xdp_attach(index, fd, mode)
        yield
        xdp_attach(index, -1, mode)
    finally:
        os.close(fd)


def ask(name: str, queue: int, rx_page_size: int = 0) -> Ask:
    """For a queue of a device, as both are now."""
    kernel = kernel_state()
    return Ask(kernel, device_state(name, kernel), queue, rx_page_size)


@contextlib.contextmanager
def af_xdp(name: str, index: int, queue: int):
    """An AF_XDP socket, in copy mode, on a queue; the kernel takes its time to forget it."""
    memory = ctypes.create_string_buffer(64 * 4096 + 4096)
    start = -(-ctypes.addressof(memory) // 4096) * 4096
    with socket.socket(AF_XDP, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(SOL_XDP, XDP_UMEM_REG, struct.pack("=QQIIII", start, 64 * 4096, 4096, 0, 0, 0))
        for ring in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING):
            sock.setsockopt(SOL_XDP, ring, 64)
        address = struct.pack("=HHIII", AF_XDP, XDP_COPY, index, queue, 0)
        if LIBC.bind(sock.fileno(), address, len(address)):
            raise OSError(ctypes.get_errno(), "bind(AF_XDP)")
        yield
    end = time.monotonic() + 10
    while ask(name, queue).device.queue(queue).xsk and time.monotonic() < end:
        time.sleep(0.02)


@contextlib.contextmanager
def bound(index: int, queue: int):
    fd, _, _ = export(1 << 20)
    try:
        with NetdevFamily() as family:
            family.bind_rx(index, [queue], fd)
            yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def unprivileged():
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def down(index: int):
    with IPRoute() as route:
        route.link("set", index=index, state="down")
        try:
            yield
        finally:
            route.link("set", index=index, state="up")


def split(index: int, value: int) -> None:
    with EthtoolFamily() as ethtool:
        ethtool.rings_set(index, tcp_data_split=value)


def tell(what: str, name: str, queue: int, rx_page_size: int = 0) -> None:
    explanation = explain(ask(name, queue, rx_page_size))
    tried = attempt(explanation.ask)
    refused = explanation.refused
    last = explanation.findings[-1].rule
    # Of the driver nothing is ever known, nor whether split was set: here it was.
    asks = [one for one in explanation.unknown if one.rule not in (last, SPLIT)]
    line = {
        "state": what, "device": name, "driver": explanation.ask.device.driver,
        "predicted": refused.rule.error if refused else "unknown" if asks or not explanation.ask.device.up
        else "accepted",
        "rule": refused.rule.text if refused else "", "returned": outcome(tried), "text": tried.text,
        "agrees": tried.agrees(explanation),
    }  # fmt: skip
    print(json.dumps(line), flush=True)


def around(what: str, name: str, rule: str, change) -> None:
    """A setting that is refused while memory is bound."""
    explanation = explain(ask(name, 0))
    (found,) = (one for one in explanation.around if one.rule.text.startswith(rule))
    try:
        change()
        returned, text = "accepted", ""
    except OSError as error:
        returned, text = errno_name(error.errno), error.strerror or ""
    predicted = {Verdict.REFUSES: found.rule.error, Verdict.HOLDS: "accepted"}.get(found.verdict, "unknown")
    agrees = None if found.verdict is Verdict.UNKNOWN else predicted == returned
    line = {"state": what, "device": name, "predicted": predicted, "rule": rule, "returned": returned}
    print(json.dumps({**line, "text": text, "agrees": agrees}), flush=True)


def fewer_channels(name: str) -> None:
    """ETHTOOL_SCHANNELS by ioctl: one receive channel, as many to transmit as before."""
    request = bytearray(struct.pack("=IIIIIIIII", 0x3C, *(0,) * 8))
    buffer = (ctypes.c_char * len(request)).from_buffer(request)
    with socket.socket() as sock:
        for command in (0x3C, 0x3D):
            struct.pack_into("=I", request, 0, command)
            if command == 0x3D:
                struct.pack_into("=I", request, 20, 1)
            ifreq = struct.pack("=16sQ8x", name.encode(), ctypes.addressof(buffer))
            if LIBC.ioctl(sock.fileno(), 0x8946, ifreq):
                raise OSError(ctypes.get_errno(), "ETHTOOL_SCHANNELS")


def capable(name: str, queue: int) -> None:
    """Every state of a device that can do it."""
    index = socket.if_nametoindex(name)
    split(index, OFF)
    tell("tcp-data-split off", name, queue)
    with xdp(index, flags=0):
        around("tcp-data-split on, with XDP for single buffers", name, "tcp-data-split can be turned on",
               lambda: split(index, ON))  # fmt: skip
    split(index, ON)
    tell("tcp-data-split on", name, queue)
    tell("queue 99", name, 99)
    tell("rx-page-size 100", name, queue, 100)
    tell("rx-page-size 5000", name, queue, 5000)
    tell("rx-page-size 16384", name, queue, 16384)
    with down(index):
        tell("device down", name, queue)
    with unprivileged():
        tell("without CAP_NET_ADMIN", name, queue)
    with xdp(index):
        tell("XDP attached", name, queue)
    with af_xdp(name, index, queue):
        tell("AF_XDP socket on the queue", name, queue)
    with bound(index, queue):
        tell("memory bound", name, queue)
        around("tcp-data-split off, memory bound", name, "tcp-data-split can be turned off",
               lambda: split(index, OFF))  # fmt: skip
        around("XDP, memory bound", name, "an XDP program can be attached, as to bound",
               lambda: xdp(index).__enter__())  # fmt: skip
        around("fewer channels, memory bound", name, "channels can be made fewer",
               lambda: fewer_channels(name))  # fmt: skip
    around("XDP for single buffers, tcp-data-split on", name, "an XDP program can be attached, as to header",
           lambda: xdp(index, flags=0).__enter__())  # fmt: skip
    split(index, OFF)


def main() -> None:
    most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))
    first, *others = sys.argv[1:]
    if first != "-":
        name, queue = first.split(":")
        capable(name, int(queue))
    for name in others:
        try:
            tell("as it comes", name, 0)
        except NetmemError as error:
            if error.errno != errno.ENODEV:
                raise
    print("done")


main()
