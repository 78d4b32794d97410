"""What `netmem recv --nic kernel:DEVICE` has: a device set up, memory bound, and its connections."""

from __future__ import annotations

import contextlib
import errno
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from netmem.base.errors import NetmemError
from netmem.base.ethtool import TcpDataSplit
from netmem.base.frags import DevmemMessage
from netmem.base.transfer import Connection, Totals
from netmem.kernel.device import PREFIX, KernelDevice
from netmem.kernel.memory import Dmabuf
from netmem.kernel.zcrx import Zcrx

BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class KernelSetup:
    """How to receive: ``queues`` are bound, and flows to ``port`` are led to the first of them."""

    nic: str
    queues: tuple[int, ...] = ()  # none: the device's last
    port: int = 0
    memory: str = "dmabuf"
    memory_size: int = 64 << 20
    exporter: str = "auto"
    rx_page_size: int = 0  # the kernel's
    api: str = "devmem"  # or zcrx: io_uring's zero-copy receive, of one queue


class KernelSink:
    """Where payload goes: nowhere (``write`` None), or through the application's own mapping."""

    def __init__(self, memory: Dmabuf, write: Callable[[memoryview], Any] | None) -> None:
        self._memory, self._write = memory, write
        self._view = memory.map() if write is not None else None

    def message(self, message: DevmemMessage) -> None:
        """Take the payload of a message, in stream order."""
        if self._write is None or self._view is None:
            return
        if message.linear:
            self._write(memoryview(message.linear))
        if len(message.frags):
            pieces = message.frags[["frag_offset", "frag_size"]].tolist()
            with self._memory.cpu_access():
                data = np.concatenate([self._view[at : at + size] for at, size in pieces])
            self._write(data.data)


class KernelReceiver:
    """A device of the kernel's with memory bound to its queues, and a port that is led there.

    ``warnings``: what somebody should be told, once each. Everything that is set is undone by ``close``.
    """

    reported = False  # a report is of our own NICs

    def __init__(self, setup: KernelSetup) -> None:
        self.setup, self.totals, self.copied = setup, Totals(), 0
        self.connections: list[Connection] = []
        self.outstanding: int | None = None
        self.warnings: list[str] = []
        self._by_fd: dict[int, Connection] = {}
        self._poll = select.poll()
        with contextlib.ExitStack() as undo:
            self.device = undo.enter_context(KernelDevice(setup.nic.removeprefix(PREFIX)))
            name, queues = self.device.name, self.device.queues()
            if not queues:
                raise NetmemError(errno.EOPNOTSUPP, f"{name} has no receive queues: `netmem explain {name}`")
            self.bound = list(setup.queues) or queues[-1:]
            if self.device.undone:
                self.warnings.append(f"{name}: undone what was left behind: {', '.join(self.device.undone)}")
            self.provider = undo.enter_context(Dmabuf(setup.memory_size, exporter=setup.exporter))
            self.device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
            if self.device.ethtool.ringparam().get("hds_thresh"):
                self.device.ethtool.set_ringparam(hds_thresh=0)
            self.device.isolate(self.bound)
            self._zcrx = self._bind()
            self.listener = undo.enter_context(self.device.listen(setup.port, backlog=BACKLOG))
            self.device.steer(self.listener.port, self.bound[0])
            self._undo = undo.pop_all()
        self.address, self.port = self.device.name, self.listener.port
        self._poll.register(self.listener.sock, select.POLLIN)
        if self._zcrx is not None:
            self._poll.register(self._zcrx.ring.event_fd, select.POLLIN)

    def _bind(self) -> Zcrx | None:
        if self.setup.api != "zcrx":
            self.device.bind_rx(self.bound, self.provider, rx_page_size=self.setup.rx_page_size)
            return None
        if len(self.bound) > 1:
            raise NetmemError(errno.EINVAL, f"a ring has one queue, not {self.bound}")
        return self.device.bind_zcrx(self.bound[0], self.provider)

    def sink(self, write: Callable[[memoryview], Any] | None) -> KernelSink:
        """For the payload of a connection."""
        return KernelSink(self.provider, write)

    def client(self, connection: Connection) -> tuple[str, int]:
        """Who is at the far end of a connection."""
        return connection.sock.peer

    def exporter(self) -> tuple[str, str]:
        """Where the memory comes from, and why not from elsewhere."""
        return self.provider.exporter_used, ""

    def level(self) -> float | None:
        """Part of the memory that is free: the kernel does not tell."""
        return None

    def wait(self, timeout: float) -> bool:
        """Until something can be accepted or received; False when ``timeout`` seconds passed."""
        return bool(self._poll.poll(0 if self._left() else timeout * 1e3))

    def pending(self) -> bool:
        """True when a connection can be accepted."""
        poll = select.poll()
        poll.register(self.listener.sock, select.POLLIN)
        return bool(poll.poll(0))

    def ready(self) -> list[Connection]:
        """Connections to receive from, by number."""
        if self._zcrx is not None:
            self._zcrx.wait(0)
        found = {self._by_fd[fd].number: self._by_fd[fd] for fd, _ in self._poll.poll(0) if fd in self._by_fd}
        found |= {one.number: one for one in self._left()}
        return [one for _, one in sorted(found.items())]

    def _left(self) -> list[Connection]:
        return [one for one in self.connections if one.sock.has_ready()]

    def check_alive(self) -> None:
        """ENODEV when the device is gone."""
        if not self.connections:
            KernelDevice.index_of(self.device.name)

    def accept(
        self, number: int, sink: Any, close: Callable[[bool], None] = lambda complete: None
    ) -> Connection:
        """Take the next connection; ``close`` is called when it ends, with True when all came."""
        connection = Connection(number, self.listener.accept(timeout=1.0), sink, close)
        self.connections.append(connection)
        if self._zcrx is None:
            self._by_fd[connection.sock.sock.fileno()] = connection
            self._poll.register(connection.sock.sock, select.POLLIN)
        self.totals.connections += 1
        return connection

    def receive(self, connection: Connection) -> None:
        """Take what one connection has; at its end, or on an error, close it."""
        try:
            message = connection.sock.recvmsg_devmem(timeout=1.0)
            connection.sink.message(message)
            if len(message.frags):
                connection.sock.devmem_dontneed(message.frags["frag_token"])
        except OSError as error:
            connection.error = str(error)
            self.totals.failed += 1
            self._finish(connection, abort=True)
            return
        now, totals = time.monotonic(), self.totals
        if not message.size:
            self._finish(connection)
            return
        totals.started, totals.ended = totals.started or now, now
        totals.bytes += message.size
        totals.linear += len(message.linear)
        totals.frags += len(message.frags)
        connection.bytes += message.size
        self.copied += len(message.linear) if message.copied else 0
        if connection.flow.take(message):
            peer, name = f"{connection.sock.peer[0]}:{connection.sock.peer[1]}", self.device.name
            queues, look = ", ".join(map(str, self.bound)), f"ethtool -n {name}; ethtool -x {name}"
            text = f"comes by copy: its flow is not led to queue {queues} ({look})"
            self.warnings.append(f"connection {connection.number} from {peer} {text}")

    def refuse(self, connection: Connection, why: str) -> None:
        """Reset a connection that nothing can be done with."""
        connection.error = why
        self.totals.failed += 1
        self._finish(connection, abort=True)

    def _finish(self, connection: Connection, *, abort: bool = False) -> None:
        self.connections.remove(connection)
        if self._by_fd.pop(connection.sock.sock.fileno(), None) is not None:
            self._poll.unregister(connection.sock.sock)
        self.totals.failed += connection.finish(abort=abort) and not abort

    def summary(self) -> dict[str, Any]:
        """Everything worth reporting, for people and machines; null is what the kernel does not tell."""
        t = self.totals
        return {
            "nic": self.setup.nic,
            "api": self.setup.api,
            "memory": self.setup.memory,
            "exporter": self.exporter()[0] or None,
            "fallback": None,
            "queues": self.bound,
            "driver_can_read": False,
            "sanitized": False,
            "connections": t.connections,
            "failed": t.failed,
            "bytes": t.bytes,
            "linear_bytes": t.linear,
            "copied_bytes": self.copied,
            "frags": t.frags,
            "frags_per_mib": t.frags_per_mib,
            "seconds": round(t.seconds, 6),
            "goodput_gbit": round(t.bytes * 8 / t.seconds / 1e9, 3) if t.seconds else 0.0,
        }

    def close(self) -> None:
        """Close all sockets, unbind, undo all settings. Tokens die with their sockets."""
        for connection in list(self.connections):
            self._finish(connection, abort=True)
        self.outstanding = 0
        self._undo.close()
