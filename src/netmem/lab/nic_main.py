"""The software NIC's process: device model, cable, and the gateway at the cable's other end."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import select
import signal
import time

from netmem.base import jit
from netmem.base.clock import FAR, MS
from netmem.base.errors import NetmemError
from netmem.base.privileges import drop_capabilities
from netmem.hw.process import Control, close_all, raise_file_limit
from netmem.hw.softnic.model import SoftNic
from netmem.hw.tap import TapWire
from netmem.hw.wire import cable
from netmem.inet.tcp.connections import TcpConfig
from netmem.lab.gateway import Gateway
from netmem.lab.local import LocalHost
from netmem.lab.selftest import selftest, warm_up
from netmem.netdev.tx import PINNED

IDLE_MS = 1000
SPIN_NS = 50_000  # that it looks for more before it sleeps: waking it costs who sends as much
RUN_NS = 1_000_000  # of work without a look at anything but rings and wire
ITR_NS = 100_000  # interrupt moderation, until the driver says otherwise


class UserEnd:
    """The far end of the `user` wire: a second NIC and stack on a cable, behind which the gateway is."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.wire, theirs = cable()
        config = TcpConfig(connections=4096, sndbuf=args.sndbuf, time_wait_ns=MS)
        self.host = LocalHost(theirs, args.gateway, mtu=args.mtu, config=config)
        self.host.dev.name = "gateway"
        self.gateway = Gateway(self.host, args.guest)

    def before(self, now: int) -> bool:
        """From the host's sockets onto the cable."""
        moved = self.gateway.pump(now)
        return self.host.bus.step(now) or moved

    def after(self, now: int) -> bool:
        """From the cable into the gateway's stack."""
        moved = self.host.bus.step(now)
        return self.host.stack.poll(now) or moved or self.gateway.pending()

    def timer(self) -> int:
        """When there is something to do next, whatever arrives."""
        return self.gateway.timer()

    def register(self, epoll: select.epoll) -> None:
        """What to wake up for."""
        self.gateway.watch(epoll)

    def events(self, ready: list[tuple[int, int]]) -> None:
        """What woke us up."""
        self.gateway.events(ready)

    def close(self) -> None:
        self.gateway.close()
        self.host.close()


class TapEnd:
    """The far end of the `tap` wire is this host's kernel."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.wire = TapWire(args.tap_fd)

    def before(self, now: int) -> bool:
        return False  # the NIC's own step reads and writes the interface

    after = before

    def timer(self) -> int:
        return FAR

    def register(self, epoll: select.epoll) -> None:
        epoll.register(self.wire.fd, select.EPOLLIN)

    def events(self, ready: list[tuple[int, int]]) -> None:
        """Frames wait: the next round takes them."""

    def close(self) -> None:
        """The NIC closes its wire."""


class NicProcess:
    """Everything in this process, and its main loop."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.control = Control(args.control_fd)
        self.doorbell_fd = args.doorbell_fd
        self.end: UserEnd | TapEnd = UserEnd(args) if args.tap_fd < 0 else TapEnd(args)
        self.nic = SoftNic(
            args.bar_fd, args.irq_fd, self.end.wire, rx_queues=args.rx_queues, tx_queues=1, mac=args.mac
        )
        if isinstance(self.end, UserEnd):
            self.nic.sent_from(*self.end.host.sends_from(PINNED))
        self.nic.bar.itr_ns, self.nic.bar.adaptive = ITR_NS, 1
        self.epoll = select.epoll()
        self.end.register(self.epoll)
        self.epoll.register(self.control.sock.fileno(), select.EPOLLIN)
        self.epoll.register(self.doorbell_fd, select.EPOLLIN)

    def work(self) -> bool:
        """One round of everything; True when anything moved."""
        if self.nic.wire.tap:
            return self.nic.run(0, RUN_NS)  # to look longer costs more than it brings: TCP sends in bursts
        now = time.monotonic_ns()
        moved = self.end.before(now)
        moved |= self.nic.step(now)  # into the driver's buffers; its acknowledgements, onto the wire
        return self.end.after(now) or moved

    def run(self) -> None:
        """Until the control socket closes."""
        busy_at, spin = 0, 0 if self.nic.wire.tap else SPIN_NS
        while True:
            ready = self.epoll.poll(0)
            if not self._events(ready):
                return
            if self.work() or ready:
                busy_at = time.monotonic_ns()
            elif time.monotonic_ns() - busy_at < spin:
                os.sched_yield()
            else:
                # Ask for a doorbell, then look once more: what came in between must not be missed.
                self.nic.interrupt(time.monotonic_ns())  # moderation ends where work does
                self.nic.arm_doorbell()
                if not (self.nic.step(time.monotonic_ns()) if self.nic.wire.tap else self.work()):
                    if not self._events(self.epoll.poll(self._timeout())):
                        return

    def _timeout(self) -> float:
        """Seconds to sleep: until a timer, or a moment while the wire is held."""
        if self.nic.is_paused():
            return 0.001
        left = self.end.timer() - time.monotonic_ns()
        return max(0.0, min(left / 1e9, IDLE_MS / 1e3))

    def _events(self, ready: list[tuple[int, int]]) -> bool:
        rest = []
        for fd, event in ready:
            if fd == self.doorbell_fd:
                os.eventfd_read(fd)
            elif fd == self.control.sock.fileno():
                try:
                    while (request := self.control.receive()) is not None:
                        self._request(*request)
                except EOFError:
                    return False
            else:
                rest.append((fd, event))
        if rest:
            self.end.events(rest)
        return True

    def _request(self, request: dict[str, object], fds: list[int]) -> None:
        """Answer one request of the driver's side."""
        result: object = None
        number = request.get("id")
        try:
            match request:
                case {"op": "map", "offset": int(at), "length": int(n), "io": int(io), "dir": int(d),
                      "exporter": str(exporter)}:  # fmt: skip
                    self.nic.map(fds[0], at, n, io, d, exporter)
                case {"op": "unmap", "io": int(io)}:
                    self.nic.unmap(io)
                case {"op": "forward", "address": str(host), "port": int(p), "guest_port": int(g)}:
                    if not isinstance(self.end, UserEnd):
                        raise NetmemError(errno.EOPNOTSUPP, "ports are forwarded on the user wire only")
                    result = self.end.gateway.forward(host, p, g)
                case {"op": "outward", "address": str(host), "port": int(p)}:
                    if not isinstance(self.end, UserEnd):
                        raise NetmemError(errno.EOPNOTSUPP, "a TAP wire has no gateway")
                    self.end.gateway.outward(host, p)
                case {"op": "handed", "port": int(p)}:
                    result = self.end.gateway.handed(p) if isinstance(self.end, UserEnd) else None
                case {"op": "client", "port": int(p)}:
                    result = self.end.gateway.client(p) if isinstance(self.end, UserEnd) else None
                case {"op": "held"}:
                    result = self.end.gateway.held() if isinstance(self.end, UserEnd) else [0, 0]
                case _:
                    raise NetmemError(errno.EINVAL, f"unknown request {request.get('op')!r}")
            self.control.say(id=number, result=result)
        except OSError as error:
            message = error.strerror or str(error)
            self.control.say(id=number, errno=error.errno or 5, message=message)
        finally:
            close_all(fds)

    def close(self) -> None:
        with contextlib.suppress(NetmemError):
            self.nic.settle()  # what the far end sends from goes away first
        self.end.close()
        self.nic.close()
        self.epoll.close()


def main() -> None:
    """Entry point of ``python -m netmem.lab.nic_main``; started by ``hw.process.Child`` only."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in (
        "bar-fd",
        "irq-fd",
        "doorbell-fd",
        "control-fd",
        "mac",
        "mtu",
        "rx-queues",
        "sndbuf",
        "tap-fd",
    ):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--guest", required=True)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_file_limit()
    drop_capabilities()  # frames from outside are looked at here: all that is needed are the descriptors
    process = NicProcess(args)
    if not jit.is_warm():
        process.control.say(event="compiling")
        selftest()
    warm_up(tap=args.tap_fd >= 0)
    process.control.say(event="ready", pid=os.getpid())
    try:
        process.run()
    finally:
        process.close()
    os._exit(0)  # at once: who closes the device waits, and to take Python and the compiler apart takes 0.1 s


if __name__ == "__main__":
    main()
