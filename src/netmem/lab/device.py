"""One call opens a working device: a NIC in its own process, driver, net device and stack."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from netmem.base.board import boards
from netmem.base.errors import NetmemError
from netmem.base.ethtool import SteeringRule
from netmem.base.headers import PROTO_TCP
from netmem.base.privileges import CAP_DAC_OVERRIDE, drop_capabilities
from netmem.drivers.igb import IgbDriver
from netmem.drivers.softnic import SoftnicDriver
from netmem.hw.process import python_argv, raise_file_limit
from netmem.hw.qemu.bus import QemuBus
from netmem.hw.qemu.find import find_qemu
from netmem.hw.softnic.bus import ProcessBus
from netmem.hw.tap.wire import configure_tap, open_tap
from netmem.hw.vfio.bus import VfioBus, group_of
from netmem.inet.listener import TcpListener
from netmem.inet.socket import TcpSocket
from netmem.inet.stack import Stack
from netmem.inet.tcp.connections import TcpConfig
from netmem.inet.tcp.tcb import TcpState
from netmem.inet.udp import UdpSocket
from netmem.lab import qemu as lab_qemu
from netmem.lab import report
from netmem.lab.compiling import ensure_compiled
from netmem.lab.local import MAC_BASE, both, open_netdev
from netmem.lab.selftest import warm_up
from netmem.lab.vfio import DEFAULT_ADDRESS, Vfio, open_vfio, vfio_of
from netmem.memory.provider import MemoryProvider
from netmem.memory.providers.bar import BarProvider
from netmem.netdev.binding import Binding, TxBinding
from netmem.netdev.device import NetDevice
from netmem.netdev.ethtool import Ethtool

NETWORK, ADDRESS, GATEWAY = "10.0.2.0/24", "10.0.2.15", "10.0.2.2"
NicBus = ProcessBus | QemuBus | VfioBus
NICS: dict[str, type[SoftnicDriver] | type[IgbDriver]] = {"softnic": SoftnicDriver, "igb": IgbDriver}
MAX_QUEUES = 16
LINGER_S, LINGER_MOST_S = 5.0, 60.0  # for the last bytes: without progress, and in all
SEND_BUFFER = 4 << 20  # of the gateway, per connection: deep enough to keep both processes busy


@dataclass(frozen=True)
class Tap:
    """A wire to an interface of this host. ``addresses``: ours, ADDRESS/LENGTH; ``gateways``: our routers."""

    name: str
    addresses: Sequence[str] = (DEFAULT_ADDRESS,)
    gateways: Sequence[str] = ()


def wire_of(wire: str, addresses: Sequence[str] = (), gateways: Sequence[str] = ()) -> Tap | None:
    """The TAP that ``tap:NAME`` names, None for ``user``. EINVAL for what is neither."""
    kind, _, name = wire.partition(":")
    if kind not in ("user", "tap") or (kind == "user") == bool(name):
        raise NetmemError(errno.EINVAL, f"unknown wire {wire!r}: user, or tap:NAME")
    if kind == "tap":
        return Tap(name, tuple(addresses) or (DEFAULT_ADDRESS,), tuple(gateways))
    if addresses or gateways:
        raise NetmemError(errno.EINVAL, "the user wire has addresses of its own: choose some on a TAP wire")
    return None


def network_of(
    wire: str, bus: str, addresses: Sequence[str] = (), gateways: Sequence[str] = ()
) -> dict[str, Any]:
    """What ``open_device`` takes for --wire and --bus, with the stack's addresses there. EINVAL."""
    vfio = vfio_of(bus, addresses, gateways)
    if vfio is not None:
        return {"wire": wire, "bus": vfio}
    return {"wire": wire_of(wire, addresses, gateways) or "user", "bus": bus}


def steer(dev: NetDevice, port: int, queue: int, proto: int = PROTO_TCP) -> int | None:
    """Send TCP (or UDP) to local ``port`` to a receive queue; see ``Device.steer``. EBUSY."""
    try:
        return dev.ethtool.add_rule(SteeringRule(queue=queue, dst_port=port, proto=proto))
    except NetmemError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    table = dev.ethtool.indirection
    if table is not None and table != [queue]:
        text = f"{dev.driver.name} has no rules for single ports, and its table sends all flows to queue"
        raise NetmemError(errno.EBUSY, f"{text} {', '.join(map(str, table))} already: steer all ports there")
    dev.ethtool.set_rxfh_indir([queue])
    return None


def _host_address(address: str, allow_remote: bool) -> str:
    host = "127.0.0.1" if address == "localhost" else address
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        raise NetmemError(errno.EINVAL, f"{address!r} is not an IP address") from None
    if not parsed.is_loopback and not allow_remote:
        text = f"{address} is not a loopback address; allow_remote lets it speak with other machines"
        raise NetmemError(errno.EACCES, text)
    return host


class Device:
    """An open device. ``dev`` is the net device, ``stack`` the stack on it. Close it when done.

    ``pid`` is the NIC's process: our own, or QEMU; this one for a NIC of this machine's. ``hosts``: this
    host's addresses on a `tap` wire.
    """

    def __init__(self, bus: NicBus, dev: NetDevice, stack: Stack, hosts: list[str] | None = None) -> None:
        self.bus, self.dev, self.stack = bus, dev, stack
        self.hosts = hosts or []
        self._recording = False
        self._direct = hosts is not None  # no gateway is between the stack and its network
        match bus:
            case QemuBus():
                self.pid = bus.machine.process.pid
            case ProcessBus():
                self.pid = bus.child.pid
            case _:
                self.pid = os.getpid()

    @property
    def ethtool(self) -> Ethtool:
        """Ring, channel, RSS and steering settings."""
        return self.dev.ethtool

    def bind_rx(self, queues: list[int], provider: MemoryProvider) -> Binding:
        """Give receive queues a memory provider (netlink bind-rx)."""
        return self.dev.bind_rx(queues, provider)

    def bar_memory(self, size: int, *, rx_page_size: int = 4096) -> BarProvider:
        """Memory of a second PCI device on the NIC's bus, ``size`` bytes (a power of two).

        EOPNOTSUPP for a NIC that is no PCI device; EINVAL, ERANGE for sizes.
        """
        if not isinstance(self.bus, QemuBus):
            raise NetmemError(
                errno.EOPNOTSUPP, f"{self.dev.driver.name} has no other PCI devices beside it; igb has"
            )
        return lab_qemu.bar_memory(self.bus, size, rx_page_size=rx_page_size)

    def steer(self, port: int, queue: int, *, proto: int = PROTO_TCP) -> int | None:
        """Send TCP (``proto`` 17: UDP) to local ``port`` to a receive queue; returns the rule's id.

        A NIC without exact-match rules sends all flows there, by its RSS table: None. EBUSY when that
        table leads them to another queue already.
        """
        return steer(self.dev, port, queue, proto)

    def forward(self, address: str, port: int, guest_port: int = 0, *, allow_remote: bool = False) -> int:
        """Have this host's ``address``:``port`` lead to ``guest_port`` of the stack; the host's port.

        ``port`` 0: a free one; ``guest_port`` 0: the same port. EACCES for an address other than loopback
        unless ``allow_remote``; EADDRINUSE and the like.
        """
        host = _host_address(address, allow_remote)
        if isinstance(self.bus, QemuBus):
            return lab_qemu.forward(self.bus, host, port, ADDRESS, guest_port)
        if not isinstance(self.bus, ProcessBus) or self._direct:
            raise NetmemError(errno.EOPNOTSUPP, "the stack has addresses of its own: nothing is forwarded")
        request = {"op": "forward", "address": host, "port": port, "guest_port": guest_port}
        return int(self.bus.child.call(request))

    def reach(self, address: str, port: int, *, allow_remote: bool = False) -> tuple[str, int]:
        """Where the stack connects to, to get to ``address``:``port``: itself, or the gateway for it.

        On the user wire the gateway leads to this host's address. EACCES for another than loopback unless
        ``allow_remote``; EINVAL.
        """
        if self._direct:
            return address, port
        host = _host_address(address, allow_remote)
        if isinstance(self.bus, QemuBus):  # slirp's gateway is this host's loopback
            return (GATEWAY if ipaddress.ip_address(host).is_loopback else host), port
        assert isinstance(self.bus, ProcessBus)
        self.bus.child.call({"op": "outward", "address": host, "port": port})
        return GATEWAY, port

    def client(self, sock: TcpSocket) -> tuple[str, int] | None:
        """Who connected to a forwarded port of this host: address and port.

        ``sock.peer`` is the gateway then. Without a gateway it is ``sock.peer``; None where the gateway does
        not say (QEMU's), or has forgotten: it remembers the last 8,192.
        """
        if self._direct:
            return sock.peer
        if not isinstance(self.bus, ProcessBus):
            return None
        found = self.bus.child.call({"op": "client", "port": sock.peer[1]})
        return (str(found[0]), int(found[1])) if found else None

    def dma_faults(self) -> list[str]:
        """Accesses that an IOMMU stopped, of a NIC that has one before it."""
        return self.bus.dma_faults() if isinstance(self.bus, VfioBus) else []

    def bind_tx(self, provider: MemoryProvider) -> TxBinding:
        """Let sockets send straight from a provider's memory (netlink bind-tx)."""
        return self.dev.bind_tx(provider)

    def udp_socket(self, port: int = 0) -> UdpSocket:
        """A UDP socket of the stack behind the NIC. EOPNOTSUPP on the user wire, which carries TCP only."""
        if not self._direct:
            text = "the user wire carries TCP only: for UDP open the device on a TAP (wire='tap:NAME')"
            raise NetmemError(errno.EOPNOTSUPP, text)
        return self.stack.udp_socket(port)

    def listen(self, port: int, *, backlog: int = 128) -> TcpListener:
        """A listening socket of the stack behind the NIC."""
        return self.stack.listen(port, backlog=backlog)

    def connect(self, host: str, port: int, *, timeout: float | None = 30.0) -> TcpSocket:
        """A connection from the stack behind the NIC."""
        return self.stack.connect(host, port, timeout=timeout)

    def handed(self, sock: TcpSocket) -> tuple[int, bool]:
        """Bytes sent on a connection that the far end has acknowledged, and whether there will be no more.

        On the software NIC's user wire that is this host's kernel, beyond the gateway.
        """
        if not isinstance(self.bus, ProcessBus) or self._direct:
            return sock.acknowledged(), sock.state() == TcpState.CLOSED
        handed, over = self.bus.child.call({"op": "handed", "port": sock.port})
        return int(handed), bool(over)

    def watched(self) -> None:
        """A report is written: count how long frags wait, and tell the report when this ends."""
        self._recording = True
        self.stack.conns.record.timed = 1
        report.look()

    def _linger(self, seconds: float) -> None:
        """Wait until what closed connections sent has reached whom it is for, as long as it moves."""
        self.stack.linger(seconds, LINGER_MOST_S)
        if not isinstance(self.bus, ProcessBus) or self._direct:
            return
        end = time.monotonic() + LINGER_MOST_S
        seen, until = -1, 0.0
        with contextlib.suppress(OSError):  # the NIC is gone
            while (now := time.monotonic()) < end:
                left, taken = self.bus.child.call({"op": "held"})
                if not left:
                    return
                if left - taken != seen:
                    seen, until = left - taken, now + seconds
                if now >= until:
                    return
                time.sleep(0.02)

    def close(self, linger: float = LINGER_S) -> None:
        """Close stack, device and NIC; nothing is left behind.

        What connections sent before they were closed is handed over first, as long as somebody takes it: at
        most ``linger`` seconds without progress, a minute in all. Connections that are open are reset.
        """
        try:
            self._linger(linger)
        finally:
            try:
                try:
                    if self._recording:  # while there is something to look at
                        self._recording = False
                        report.end()
                finally:
                    self.stack.close()
            finally:
                self.dev.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            self.close()
        except OSError:
            if kind is None:  # what it is closed for comes first: an error, or a signal
                raise


def open_device(
    nic: str = "softnic",
    *,
    queues: int = 2,
    mtu: int = 1500,
    bounce: bool = False,
    config: TcpConfig | None = None,
    wire: str | Tap = "user",
    bus: str | Vfio = "qemu",
    drop_privileges: bool = False,
) -> Device:
    """Start a NIC with ``queues`` receive queues and open it; the service thread runs.

    ``nic``: softnic, or igb, an 82576 that QEMU emulates, or of this machine.
    ``wire``: ``user``, or a ``Tap``, an interface of this host, made and brought up here (root); ``tap:NAME``
    is one with the default address. On the user wire the stack has addresses 10.0.2.15 and fd00::f, and a
    gateway offers host ports (``Device.forward``); on a TAP it has the addresses and routers of the ``Tap``.
    On either, segments that the sender's NIC would cut arrive as one packet (rx-gro-hw, which
    ``ethtool.set_features`` turns off). ``bounce``: a bus on which page memory must be synced.
    ``bus``: of an igb, ``qemu`` (``qemu:PATH``, if it is not on PATH), or a ``Vfio``, a PCI function of this
    machine that vfio-pci has (``vfio:0000:03:00.0``), whose cable is the wire. ``drop_privileges``: once
    what needs them is open, this thread, and all that it starts from then on, gives up all capabilities but
    CAP_DAC_OVERRIDE (files are written whoever they belong to); the NIC's process of a softnic has none in
    any case. Reports: ``lab/report.py``.

    Errors: EOPNOTSUPP on other machines than x86-64; EINVAL for arguments that no device can have; EPERM for
    a TAP without CAP_NET_ADMIN; ENODEV when the NIC's process does not start, MissingError (ENODEV) without a
    QEMU that has the NIC.
    """
    _check_machine()
    _check_arguments(nic, queues, mtu)
    with contextlib.ExitStack() as undo:
        recording = report.begin()
        if recording:
            undo.callback(report.end)
        device = _open(nic, queues, mtu, bounce, config, wire, bus, drop_privileges)
        undo.pop_all()
    if recording:
        device.watched()
    return device


def _open(
    nic: str, queues: int, mtu: int, bounce: bool, config: TcpConfig | None, wire: str | Tap, bus: str | Vfio,
    drop_privileges: bool,
) -> Device:  # fmt: skip
    tap = wire_of(wire) if isinstance(wire, str) else wire
    vfio = vfio_of(bus) if isinstance(bus, str) else bus
    qemu = bus.partition(":")[2] or None if isinstance(bus, str) else None
    if vfio is not None:
        if nic != "igb" or tap is not None:
            text = "a bus vfio: is of nic igb, and has no other wire than its own cable"
            raise NetmemError(errno.EINVAL, text)
        group_of(vfio.function.lower())  # before a compilation that may take a minute
    if nic == "igb" and vfio is None:
        find_qemu(qemu)  # before a compilation that may take a minute
    ensure_compiled()
    if nic == "igb":
        warm_up()
    wanted = _Wanted(nic, queues, mtu, bounce, qemu, *_free_name(), drop_privileges)
    if tap is not None:
        return _open_on_tap(wanted, tap, config)
    if vfio is not None:
        return _open_on_vfio(wanted, vfio, config)
    raise_file_limit()
    wanted.drop_privileges()
    made: ProcessBus | QemuBus
    if nic == "igb":
        made = lab_qemu.start_user(
            qemu, network=NETWORK, gateway=GATEWAY, number=wanted.number, guest=ADDRESS, bounce=bounce
        )
    else:
        made = _start_softnic(mtu, bounce, wanted.number)
    return _on(made, wanted.open(made), both(ADDRESS), (), config)


def _check_machine() -> None:
    if platform.machine() != "x86_64":
        text = (
            f"NICs of our own were tried on x86-64 only, not on {platform.machine()}: their process and this "
            "one share rings. check, convert, explain and show --kernel work here"
        )
        raise NetmemError(errno.EOPNOTSUPP, text)


def _check_arguments(nic: str, queues: int, mtu: int) -> None:
    if nic not in NICS:
        raise NetmemError(errno.EINVAL, f"unknown NIC {nic!r}; one of {', '.join(NICS)}")
    if not 1 <= queues <= MAX_QUEUES:
        raise NetmemError(errno.EINVAL, f"{queues} receive queues: 1 to {MAX_QUEUES} are possible")
    if not 576 <= mtu <= NICS[nic].max_mtu:
        raise NetmemError(errno.EINVAL, f"mtu {mtu}: 576 to {NICS[nic].max_mtu} are possible")


@dataclass(frozen=True)
class _Wanted:
    """A device to be opened, whatever its wire is."""

    nic: str
    queues: int
    mtu: int
    bounce: bool
    qemu: str | None
    name: str
    number: int
    drop: bool

    def open(self, bus: ProcessBus | QemuBus) -> NetDevice:
        """The net device over a started NIC."""
        if isinstance(bus, QemuBus):
            return lab_qemu.open_igb(bus, rx_queues=self.queues, mtu=self.mtu, name=self.name)
        return open_netdev(
            SoftnicDriver(bus), rx_queues=self.queues, mtu=self.mtu, name=self.name, features=("rx_gro_hw",)
        )

    def drop_privileges(self) -> None:
        """Now that what needs them is open."""
        if self.drop:
            drop_capabilities([CAP_DAC_OVERRIDE])


def _on(
    bus: NicBus, dev: NetDevice, addresses: Sequence[str], gateways: Sequence[str],
    config: TcpConfig | None, hosts: list[str] | None = None,
) -> Device:  # fmt: skip
    """A stack on a net device, served; the NIC ends when that fails."""
    try:
        stack = Stack(dev, addresses, gateways=gateways, config=config)
    except BaseException:
        dev.close()
        raise
    stack.serve()
    return Device(bus, dev, stack, hosts)


def _open_on_vfio(wanted: _Wanted, vfio: Vfio, config: TcpConfig | None) -> Device:
    bus, dev = open_vfio(
        vfio, rx_queues=wanted.queues, mtu=wanted.mtu, name=wanted.name, bounce=wanted.bounce
    )
    with contextlib.suppress(ValueError):  # memory that is mapped later is pinned as well
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    wanted.drop_privileges()
    return _on(bus, dev, vfio.addresses, vfio.gateways, config, [])


def _open_on_tap(wanted: _Wanted, tap: Tap, config: TcpConfig | None) -> Device:
    bus: ProcessBus | QemuBus
    # The 82576 knows nothing of 64 KiB frames, nor of checksums that are still to be made.
    fd = open_tap(tap.name, offload=wanted.nic != "igb")
    try:
        hosts = configure_tap(tap.name, tap.addresses, mtu=wanted.mtu)
        wanted.drop_privileges()
        if wanted.nic == "igb":
            bus = lab_qemu.start_tap(wanted.qemu, fd, wanted.number, bounce=wanted.bounce)
        else:
            bus = _start_softnic(wanted.mtu, wanted.bounce, wanted.number, fd)
        dev = wanted.open(bus)
    finally:
        os.close(fd)
    return _on(bus, dev, tap.addresses, tap.gateways, config, hosts)


def _free_name() -> tuple[str, int]:
    """A name that no open device of this process has, and the number that its MAC address ends in."""
    used = {board["name"] for _, board in boards(os.getpid())}
    n = next(n for n in range(1 << 16) if f"nm{n}" not in used)
    return f"nm{n}", n << 8 | 15


def _start_softnic(mtu: int, bounce: bool, number: int, tap_fd: int = -1) -> ProcessBus:
    argv = python_argv(
        "netmem.lab.nic_main",
        *("--mac", str(MAC_BASE | number), "--mtu", str(mtu), "--rx-queues", str(MAX_QUEUES)),
        *("--gateway", GATEWAY, "--guest", ADDRESS, "--sndbuf", str(SEND_BUFFER)),
        *("--tap-fd", str(tap_fd)),
    )
    return ProcessBus(argv, [tap_fd] if tap_fd >= 0 else [], bounce=bounce, meanwhile=warm_up)
