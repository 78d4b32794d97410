"""NICs inside this process, moved on step by step: for tests, simulation and gateways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from netmem.base.clock import Clock
from netmem.base.dma import DmaDirection
from netmem.drivers.softnic import SoftnicDriver
from netmem.hw.softnic.bus import LocalBus
from netmem.hw.softnic.model import SoftNic
from netmem.hw.softnic.ring import host_address
from netmem.hw.wire import Wire, cable
from netmem.inet.stack import Stack
from netmem.inet.tcp.connections import TcpConfig
from netmem.netdev.device import NetDevice
from netmem.netdev.driver import Driver

MAC_BASE = 0x026E6D000000  # locally administered


def both(address: str) -> list[str]:
    """The addresses of a host of the lab: an IPv4 address, and the IPv6 one with the same last number."""
    return [f"{address}/24", f"fd00::{int(address.rsplit('.', 1)[1]):x}/64"]


def open_netdev(
    driver: Driver, *, rx_queues: int, mtu: int, name: str, features: tuple[str, ...] = ()
) -> NetDevice:
    """A net device over ``driver``, up, with ``features`` on; closed, and its bus, when that fails."""
    try:
        dev = NetDevice(driver, name, rx_queues=rx_queues, mtu=mtu)
    except BaseException:
        driver.close()
        raise
    try:
        dev.ethtool.set_features(**dict.fromkeys(features, True))
        dev.open()
    except BaseException:
        dev.close()
        raise
    return dev


class LocalHost:
    """A software NIC in this process with driver, device and stack; ``step`` moves all of them."""

    def __init__(
        self,
        wire: Wire,
        address: str,
        *,
        rx_queues: int = 1,
        mtu: int = 1500,
        bounce: bool = False,
        clock: Clock | None = None,
        config: TcpConfig | None = None,
        driver: Callable[[Any], Driver] = SoftnicDriver,
    ) -> None:
        self.bus = LocalBus(bounce=bounce)
        mac = MAC_BASE | int(address.rsplit(".", 1)[1])
        self.nic = SoftNic(self.bus.bar_fd, self.bus.irq_fd, wire, rx_queues=16, tx_queues=1, mac=mac)
        self.bus.attach(self.nic)
        self.driver = driver(self.bus)
        self.dev = open_netdev(self.driver, rx_queues=rx_queues, mtu=mtu, name="nm0")
        self.stack = Stack(self.dev, both(address), clock=clock, config=config)

    def step(self, now: int) -> bool:
        """The NIC works, the stack polls, the NIC takes what the stack sent."""
        worked = self.bus.step(now)
        worked |= self.stack.poll(now)
        worked |= self.bus.step(now)
        return worked

    def sends_from(self, most: int) -> tuple[int, int]:
        """Where the NIC reads what is sent: address and bytes, of up to ``most`` of them."""
        tx = self.dev.tx
        size = min(tx.size, most)
        return host_address(self.nic.at, tx.record.io, size, DmaDirection.TO_DEVICE), size

    def settle(self, now: int) -> None:
        """The NIC does all that there is to do."""
        self.bus.step(now)

    def close(self) -> None:
        """Stack, device and NIC, in that order."""
        self.stack.close()
        self.bus.step(self.dev.now)  # let the last resets out
        self.dev.close()


def pair(
    clock: Clock | None = None, *, config: TcpConfig | None = None, mtu: int = 1500, rx_queues: int = 2
) -> tuple[LocalHost, LocalHost]:
    """Two hosts, 10.0.2.15 (the one under test) and 10.0.2.2, with a cable between them."""
    ours, theirs = cable()
    under_test = LocalHost(ours, "10.0.2.15", rx_queues=rx_queues, mtu=mtu, clock=clock, config=config)
    return under_test, LocalHost(theirs, "10.0.2.2", mtu=mtu, clock=clock, config=config)
