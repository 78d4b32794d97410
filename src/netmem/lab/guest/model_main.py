"""The device models' process: gve ports by vfio-user, and the wire between them or to the host.

Its control socket takes faults, link changes and resets while the guest runs, and gives statistics.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import select
import signal
import socket
import time
from typing import Any

from netmem.base import jit
from netmem.base.errors import NetmemError
from netmem.base.privileges import drop_capabilities
from netmem.hw.gve import Gve, GveConfig
from netmem.hw.gve.faults import GveFaults
from netmem.hw.process import Control, close_all, raise_file_limit
from netmem.hw.tap import TapWire
from netmem.hw.vfio_user import Function, Server
from netmem.hw.wire import Wire, cable
from netmem.hw.wrap import FaultyWire
from netmem.lab.guest.capture import CaptureWire
from netmem.lab.nic_main import UserEnd
from netmem.lab.selftest import compile_frames, selftest

MESSAGES = 16  # reads of one connection, before frames are moved again
ROUNDS = 64  # of moving frames, before messages are looked at again
IDLE_S = 1.0
WIRE_FAULTS = ("loss", "duplicate", "reorder", "damage")


class Models:
    """Ports, wire and main loop."""

    def __init__(self, control: Control, config: dict[str, Any]) -> None:
        self.control = control
        wires, self.end, self.faulty = self._wires(config)
        self.seed = config["seed"]
        self.nics: list[Gve] = []
        self.listeners: dict[int, tuple[socket.socket, Gve]] = {}
        self.servers: dict[int, Server] = {}
        self.epoll = select.epoll()
        for number, (fd, wire) in enumerate(zip(config["sockets"], wires, strict=True)):
            nic = Gve(wire, GveConfig(
                mac=bytes.fromhex(config["macs"][number]), queues=config["queues"], mtu=config["mtu"],
                max_mtu=max(config["mtu"], 9000), faults=GveFaults(seed=config["seed"] + number),
            ))  # fmt: skip
            self.nics.append(nic)
            self.listeners[fd] = socket.socket(fileno=fd), nic
            self.epoll.register(fd, select.EPOLLIN)
            for other in wire.filenos():
                self.epoll.register(other, select.EPOLLIN)
        if self.end is not None:
            self.end.register(self.epoll)
        self.epoll.register(control.sock.fileno(), select.EPOLLIN)

    def _wires(self, config: dict[str, Any]) -> tuple[list[Wire], UserEnd | None, FaultyWire | None]:
        """The ports' wires; what is behind the user wire; the wire that loses frames, where one does."""
        wires, end, faulty = list[Wire](), None, None
        if config["wire"] == "pair":
            wires += cable()
        elif config["wire"] == "user":
            end = UserEnd(argparse.Namespace(
                sndbuf=4 << 20, gateway=config["gateway"], mtu=config["mtu"], guest=config["guest"]
            ))  # fmt: skip
            wires.append(end.wire)
        else:
            wires.append(TapWire(config["tap"], scatter=False))
        if any(config["faults"].get(name) for name in WIRE_FAULTS):
            chances = {name: config["faults"].get(name, 0) for name in WIRE_FAULTS}
            wires[0] = faulty = FaultyWire(wires[0], config["seed"], **chances)
        if config["capture"] >= 0:
            wires[0] = CaptureWire(wires[0], config["capture"])
        return wires, end, faulty

    def work(self) -> bool:
        """One round of frames; True when anything moved."""
        now = time.monotonic_ns()
        moved = self.end.before(now) if self.end else False
        for nic in self.nics:
            moved |= nic.step(now)
        return (self.end.after(now) if self.end else False) or moved

    def run(self) -> None:
        """Until the control socket closes, or the machine is gone."""
        while self.servers or self.listeners:
            busy = False
            for _ in range(ROUNDS):
                if not self.work():
                    break
                busy = True
            for fd, event in self.epoll.poll(0 if busy else self._timeout()):
                if fd in self.servers:
                    self._messages(fd)
                elif fd in self.listeners:
                    self._accept(fd)
                elif fd == self.control.sock.fileno():
                    try:
                        while (request := self.control.receive()) is not None:
                            self._request(*request)
                    except EOFError:
                        return
                elif self.end is not None:
                    self.end.events([(fd, event)])

    def _timeout(self) -> float:
        now = time.monotonic_ns()
        due = [nic.timer(now) for nic in self.nics]
        if self.end is not None:
            due.append(self.end.timer())
        if self.faulty is not None:
            due.append(self.faulty.timer())
        return max(0.0, min((min(due) - now) / 1e9, IDLE_S))

    def _accept(self, fd: int) -> None:
        """Take the machine's connection."""
        listener, nic = self.listeners[fd]
        sock, _ = listener.accept()
        self.epoll.unregister(fd)
        del self.listeners[fd]
        path = str(listener.getsockname())
        listener.close()
        with contextlib.suppress(OSError):
            os.unlink(path)
            os.rmdir(os.path.dirname(path))  # fails as long as other ports wait
        self.servers[sock.fileno()] = Server(sock, Function(nic))
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def _messages(self, fd: int) -> None:
        try:
            for _ in range(MESSAGES):
                if not self.servers[fd].receive():
                    break
        except EOFError:
            self.epoll.unregister(fd)
            self.servers.pop(fd).close()
        except NetmemError as error:
            self.control.say(event="complaint", text=str(error))
            self.epoll.unregister(fd)
            self.servers.pop(fd).close()

    def _request(self, request: dict[str, Any], fds: list[int]) -> None:
        close_all(fds)
        number = request.get("id")
        result: object = None
        try:
            nic = self.nics[int(request.get("nic", 0))]
            match request:
                case {"op": "fault", "name": str(name), "value": value}:
                    self._fault(nic, name, float(value))
                case {"op": "fail", "command": str(command), "status": str(status)}:
                    nic.port.faults.fail(command, status)
                case {"op": "link", "up": bool(up)}:
                    nic.set_link(up)
                case {"op": "reset"}:
                    nic.request_reset()
                case {"op": "statistics"}:
                    result = self.statistics()
                case {"op": "forward", "address": str(host), "port": int(p), "guest_port": int(guest)}:
                    if self.end is None:
                        raise NetmemError(errno.EOPNOTSUPP, "ports are forwarded on the user wire only")
                    result = self.end.gateway.forward(host, p, guest)
                case {"op": "outward", "address": str(host), "port": int(p)}:
                    if self.end is None:
                        raise NetmemError(errno.EOPNOTSUPP, "only the user wire leads to this host")
                    self.end.gateway.outward(host, p)
                case _:
                    raise NetmemError(errno.EINVAL, f"unknown request {request.get('op')!r}")
            self.control.say(id=number, result=result)
        except OSError as error:
            why = error.strerror or str(error)
            self.control.say(id=number, errno=error.errno or errno.EINVAL, message=why)
        except (IndexError, ValueError) as error:
            self.control.say(id=number, errno=errno.EINVAL, message=str(error))

    def _fault(self, nic: Gve, name: str, value: float) -> None:
        if name not in WIRE_FAULTS:
            nic.port.faults.set(name, value)
            return
        if not 0 <= value <= 1:
            raise NetmemError(errno.EINVAL, f"{name}={value} is no chance between 0 and 1")
        if self.faulty is None:
            nic = self.nics[0]
            nic.port.wire = self.faulty = FaultyWire(nic.port.wire, self.seed)
        setattr(self.faulty.chances, name, value)

    def statistics(self) -> list[dict[str, Any]]:
        """What each port counted, and the accesses that were stopped."""
        found = []
        for nic in self.nics:
            found.append({
                "counters": nic.statistics(), "dma_faults": list(nic.port.dma_faults),
                "maps": nic.port.dma.maps, "unmaps": nic.port.dma.unmaps, "driver": nic.driver_version,
                "refused": [entry for entry in nic.admin.log if entry[1] != 1][-8:],
                "wire": dict(self.faulty.counts) if self.faulty else {},
            })  # fmt: skip
        return found

    def close(self) -> None:
        """Let go of the guest's memory and of the wire."""
        for server in self.servers.values():
            server.close()
        for listener, _ in self.listeners.values():
            listener.close()
        for nic in self.nics:
            nic.port.wire.close()
        if self.end is not None:
            self.end.close()


def main() -> None:
    """Entry point of ``python -m netmem.lab.guest.model_main``; started by ``Guest`` only."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--config", required=True)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_file_limit()
    drop_capabilities()
    control = Control(args.control_fd)
    try:
        models = Models(control, json.loads(args.config))
    except OSError as error:
        control.say(errno=error.errno or errno.EIO, message=error.strerror or str(error))
        return
    if not jit.is_warm():
        control.say(event="compiling")
        selftest()
    compile_frames()
    control.say(event="ready", pid=os.getpid())
    try:
        models.run()
    finally:
        models.close()


if __name__ == "__main__":
    main()
