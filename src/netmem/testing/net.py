"""Two hosts on a cable or a faulty link, with time that moves only when told to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from netmem.base.clock import MS, ManualClock
from netmem.base.ethtool import TcpDataSplit
from netmem.hw.wire import Wire, cable
from netmem.inet.listener import TcpListener
from netmem.inet.socket import TcpSocket
from netmem.inet.tcp.connections import TcpConfig
from netmem.lab.device import steer
from netmem.lab.leaks import leaks
from netmem.lab.local import LocalHost
from netmem.lab.qemu import QemuHost
from netmem.memory import sanitizer
from netmem.memory.page_pool import PagePool
from netmem.memory.provider import AreaProvider
from netmem.netdev.binding import Binding
from netmem.netdev.driver import Driver
from netmem.testing.frames import OURS, THEIRS
from netmem.testing.wire import FaultyLink, PacketWire, StreamPackets

PORT = 5001


class Network:
    """``ours`` (10.0.2.15, two queues) and, unless ``alone``, ``theirs`` (10.0.2.2).

    ``nic`` is what ``ours`` has: softnic, or igb, an 82576 on QEMU; ``theirs`` is always a softnic.
    ``driver`` makes the driver under test from its bus. With ``alone`` the test itself feeds and reads
    ``wire`` (``inject``, ``sent``). ``close`` checks that every netmem came back (AssertionError).
    """

    def __init__(
        self,
        *,
        nic: str = "softnic",
        alone: bool = False,
        link: FaultyLink | None = None,
        mtu: int = 1500,
        rx_queues: int = 2,
        bounce: bool = False,
        config: TcpConfig | None = None,
        peer_config: TcpConfig | None = None,
        driver: Callable[[Any], Driver] | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.nic, self.link = nic, link
        self.wire: PacketWire | StreamPackets = PacketWire()
        options: dict[str, Any] = {
            "rx_queues": rx_queues, "mtu": mtu, "bounce": bounce, "clock": self.clock, "config": config,
        }  # fmt: skip
        if driver is not None:
            options["driver"] = driver
        self.ours: LocalHost | QemuHost
        second: Wire
        if nic == "igb":
            self.link = link = link or FaultyLink()  # without faults: it only carries
            self.ours = QemuHost(OURS, **options)
            self.wire = StreamPackets(self.ours.cable)
            second = link.ends[1]
            link.ends = (self.wire, second)
        else:
            first: Wire
            if alone:
                assert isinstance(self.wire, PacketWire)
                first = self.wire
            elif link is not None:
                assert isinstance(link.ends[0], PacketWire)
                first, second = link.ends[0], link.ends[1]
            else:
                first, second = cable()
            self.ours = LocalHost(first, OURS, **options)
        self.theirs: LocalHost | None = None
        if not alone:
            self.theirs = LocalHost(second, THEIRS, mtu=mtu, clock=self.clock, config=peer_config)
        self.provider: AreaProvider | None = None
        self.binding: Binding | None = None
        self._pools: set[PagePool] = set()

    @property
    def peer(self) -> LocalHost:
        """The other host."""
        assert self.theirs is not None
        return self.theirs

    def bind(self, provider: AreaProvider | None, queue: int = 1, port: int = PORT) -> None:
        """Turn header split on, bind ``provider`` (if any) to ``queue`` and steer ``port`` there."""
        dev = self.ours.dev
        dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        if provider is not None:
            self.provider, self.binding = provider, dev.bind_rx([queue], provider)
        self.steer(port, queue)

    def steer(self, port: int, queue: int) -> None:
        """Send TCP to ``port`` to ``queue``; with a NIC that has no rules, all TCP."""
        steer(self.ours.dev, port, queue)

    def settle(self) -> None:
        """The NIC does all that there is to do; no time passes and nobody polls."""
        self.wire.exchange(self.clock.now())
        self.ours.settle(self.clock.now())
        self.wire.exchange(self.clock.now())

    def run(self, rounds: int = 10, ns: int = MS // 10) -> None:
        """Let everything work for ``rounds`` rounds of ``ns`` nanoseconds."""
        for _ in range(rounds):
            now = self.clock.advance(ns)
            self.ours.step(now)
            if self.theirs is not None:
                self.theirs.step(now)
            if self.nic == "igb":
                self.wire.exchange(now)
            if self.link is not None and self.theirs is not None:
                self.link.move(now)
            if self.nic == "igb":
                self.wire.exchange(now)
            self._pools.update(self.ours.dev.pools.values())

    def until(self, ready: Callable[[], object], rounds: int = 20_000, ns: int = MS // 10) -> None:
        """Run until ``ready()``; AssertionError after ``rounds``."""
        for _ in range(rounds):
            if ready():
                return
            self.run(1, ns)
        raise AssertionError(f"not ready after {rounds} rounds")

    def connect(self, port: int = PORT) -> tuple[TcpSocket, TcpSocket, TcpListener]:
        """A connection from the peer: (our socket, the peer's, our listener)."""
        stack, tcp = self.ours.stack, self.ours.stack.tcp
        existing = port in stack.conns.listeners
        listener = (
            TcpListener(stack.poller, tcp, stack.zerocopy, stack.conns.listeners[port])
            if existing
            else self.ours.stack.listen(port)
        )
        theirs = self.peer.stack.connect_nowait(OURS, port)
        self.until(listener.pending, 100_000)
        ours = listener.accept(timeout=0)
        self.until(lambda: theirs.state() == 4)
        return ours, theirs, listener

    def close(self) -> None:
        """Close everything and check the accounts."""
        self._pools.update(self.ours.dev.pools.values())
        rows = [row for row in leaks(os.getpid()) if row["holder"] != "ring slot"]
        held = ", ".join(f"{row['holder']} {row['who']} {row['count']}".replace("  ", " ") for row in rows)
        self.ours.close()
        if self.theirs is not None:
            self.theirs.close()
        missing = {pool.id: pool.inflight() for pool in self._pools if pool.inflight()}
        text = f"netmems that never came back, by pool: {missing}; before closing: {held or 'nobody'}"
        if missing:
            raise AssertionError(text)
        sanitizer.check([pool.area.record for pool in self._pools])
        if self.provider is not None:
            area = self.provider.area
            if area.free != area.count:
                raise AssertionError(f"{area.count - area.free} netmems of the provider are missing")
            self.provider.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self.close()
            return
        self.ours.bus.unplug()  # a failed test: let go without more checks
