"""An 82576 on QEMU, put together: for ``open_device``, and on a ``stream`` wire for tests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Callable
from typing import Any

from netmem.base.clock import MS, Clock
from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.base.memfd import memfd
from netmem.drivers.igb import IgbDriver
from netmem.hw.qemu.bus import QemuBus
from netmem.hw.qemu.find import find_qemu
from netmem.inet.stack import Stack
from netmem.inet.tcp.connections import TcpConfig
from netmem.lab.local import MAC_BASE, both, open_netdev
from netmem.memory.provider import check_size
from netmem.memory.providers.bar import BarProvider
from netmem.netdev.device import NetDevice
from netmem.netdev.driver import Driver

SETTLE_NS = 50 * MS


def qemu_mac(number: int) -> str:
    """The MAC address that ends in ``number``."""
    return (MAC_BASE | number).to_bytes(6, "big").hex(":")


def start_user(
    qemu: str | None, *, network: str, gateway: str, number: int, guest: str, bounce: bool
) -> QemuBus:
    """An 82576 whose cable leads to QEMU's user networking. MissingError without a QEMU that has it."""
    netdev = f"user,net={network},host={gateway},dhcpstart={guest},restrict=off,ipv6=off"
    return QemuBus(find_qemu(qemu), f"igb,mac={qemu_mac(number)}", netdev, bounce=bounce)


def start_stream(qemu: str | None, number: int, *, bounce: bool) -> tuple[QemuBus, socket.socket]:
    """An 82576 whose cable is a Unix stream socket, and the cable's other end.

    Each frame has its length before it, four bytes in network order.
    """
    ours, theirs = socket.socketpair()
    try:
        netdev = f"stream,server=off,addr.type=fd,addr.str={theirs.fileno()}"
        bus = QemuBus(
            find_qemu(qemu), f"igb,mac={qemu_mac(number)}", netdev, [theirs.fileno()], bounce=bounce
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return bus, ours


def start_tap(qemu: str | None, fd: int, number: int, *, bounce: bool) -> QemuBus:
    """An 82576 whose cable is a TAP interface, by its descriptor."""
    netdev = f"tap,fd={fd}"
    return QemuBus(find_qemu(qemu), f"igb,mac={qemu_mac(number)}", netdev, [fd], bounce=bounce)


def forced_link(bus: QemuBus) -> IgbDriver:
    """The igb driver without negotiation, which takes the emulated PHY half a second."""
    return IgbDriver(bus, autoneg=False)


def open_igb(
    bus: QemuBus,
    *,
    rx_queues: int,
    mtu: int,
    name: str = "nm0",
    driver: Callable[[Any], Driver] = forced_link,
) -> NetDevice:
    """Driver and net device on ``bus``, up and with a link; the bus is closed when that fails."""
    try:
        made = driver(bus)
    except BaseException:
        bus.close()
        raise
    return open_netdev(made, rx_queues=rx_queues, mtu=mtu, name=name)


def forward(bus: QemuBus, address: str, port: int, guest: str, guest_port: int) -> int:
    """Have this host's ``address``:``port`` (0: any free one) lead to ``guest_port`` (0: the same); the port.

    EADDRINUSE, EACCES, EADDRNOTAVAIL as the kernel says; EAFNOSUPPORT for IPv6.
    """
    if ":" in address:
        raise NetmemError(errno.EAFNOSUPPORT, f"{address}: QEMU's user networking forwards from IPv4 only")
    for _ in range(10):
        with socket.socket() as probe:  # QEMU says only that it could not; the kernel says why
            try:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))  # and never listens: no client must end up here
            except OSError as error:
                text = f"cannot listen on {address}:{port}: {error.strerror}"
                raise NetmemError(error.errno or errno.EIO, text) from None
            wanted = int(probe.getsockname()[1])
        rule = f"hostfwd_add n0 tcp:{address}:{wanted}-{guest}:{guest_port or wanted}"
        said = str(bus.machine.qmp("human-monitor-command", command_line=rule)).strip()
        if not said:
            return wanted
        if port:
            break
    raise NetmemError(errno.EADDRINUSE, f"cannot listen on {address}:{wanted}: {said}")


def bar_memory(bus: QemuBus, size: int, *, rx_page_size: int = 4096) -> BarProvider:
    """Plug in a second PCI device with ``size`` bytes of memory, as a provider.

    EINVAL, ERANGE for sizes: the size of a BAR is a power of two.
    """
    check_size(size, rx_page_size)
    fd = memfd("bar", size)
    try:
        address = bus.add_memory_device(fd, size)
        return BarProvider(
            fd, size, address, rx_page_size=rx_page_size, release=lambda: bus.remove_memory_device(address)
        )
    except BaseException:
        os.close(fd)
        raise


class QemuHost:
    """An 82576 on the stream wire with driver, device and stack, as ``LocalHost`` is for the software NIC.

    ``cable`` is the wire's far end. ``step`` and ``settle`` wait for what QEMU was given to do.
    """

    def __init__(
        self,
        address: str,
        *,
        qemu: str | None = None,
        rx_queues: int = 1,
        mtu: int = 1500,
        bounce: bool = False,
        clock: Clock | None = None,
        config: TcpConfig | None = None,
        driver: Callable[[Any], Driver] = forced_link,
    ) -> None:
        self.bus, self.cable = start_stream(qemu, int(address.rsplit(".", 1)[1]), bounce=bounce)
        try:
            self.dev = open_igb(self.bus, rx_queues=rx_queues, mtu=mtu, driver=driver)
        except BaseException:
            self.cable.close()
            raise
        self.driver = self.dev.driver
        self.stack = Stack(self.dev, both(address), clock=clock, config=config)

    def step(self, now: int) -> bool:
        """The NIC works, the stack polls, the NIC takes what the stack sent."""
        self.settle(now)
        worked = self.stack.poll(now)
        self.settle(now)
        return worked

    def settle(self, now: int) -> None:
        """Until QEMU has done what it was asked and taken what lies in the cable.

        It takes nothing while the NIC has no buffers: then this ends after 50 ms.
        """
        deadline = time.monotonic_ns() + SETTLE_NS
        with contextlib.suppress(DeviceGoneError):
            waited = self._in_cable() > 0
            self.bus.settle()
            while self._in_cable() and time.monotonic_ns() < deadline:
                self.bus.settle()
            if waited:
                self.bus.settle()  # what it has read it may still be working on

    def _in_cable(self) -> int:
        """Bytes sent towards QEMU that it has not read."""
        if self.cable.fileno() < 0:
            return 0
        return int(struct.unpack("i", fcntl.ioctl(self.cable, termios.TIOCOUTQ, bytes(4)))[0])

    def close(self) -> None:
        """Stack, device and QEMU, in that order."""
        self.stack.close()
        self.settle(self.dev.now)  # let the last resets out
        self.dev.close()
        self.cable.close()
