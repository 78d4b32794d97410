"""The gateway behind the `user` wire: kernel TCP sockets on this host, TCP over frames to the NIC.

A connection accepted on the host becomes one to the stack behind the NIC, and back. Bytes go from
the kernel socket straight into the send buffer of our TCP.
"""

from __future__ import annotations

import errno
import functools
import resource
import select
import socket
import struct
import time
from collections import OrderedDict
from dataclasses import dataclass

from netmem.base.clock import FAR
from netmem.base.errors import NetmemError
from netmem.inet.listener import TcpListener
from netmem.lab.bridge import RESET, Bridge
from netmem.lab.local import LocalHost
from netmem.lab.turns import Turns

ET = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
SPECIAL = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
BACKLOG = 4096
ENDED, CLIENTS = 1024, 8192  # that are remembered
NO_RESET = struct.pack("ii", 0, 0)  # SO_LINGER: close with FIN
LAST_LOOKS = 16  # at what ended together with the device: the last bytes are one, the end is another
RESERVE = 64  # descriptors that no connection gets: kernels are loaded from files when they are first used


def _keep_reserve(sock: socket.socket) -> socket.socket:
    """The socket, or EMFILE (and the socket closed) when it is one of the last descriptors."""
    if sock.fileno() >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVE:
        sock.close()
        raise NetmemError(errno.EMFILE, "out of descriptors")
    return sock


@dataclass(frozen=True)
class _Call:
    """A SYN to a host address, and the kernel's connection for it."""

    listener: TcpListener
    row: int
    generation: int
    kernel: socket.socket


class Gateway:
    """Forwards from host ports to the stack behind the NIC, over one end of a cable."""

    _epoll: select.epoll
    _turns: Turns

    def __init__(self, host: LocalHost, guest: str) -> None:
        self.host, self.guest = host, guest
        self._listeners: dict[int, tuple[socket.socket, int]] = {}
        self._bridges: dict[int, Bridge] = {}
        self._resting: list[int] = []
        self._outward: list[tuple[TcpListener, str, int]] = []
        self._calls: dict[int, _Call] = {}  # by descriptor: the kernel is connecting
        self._answered: dict[int, _Call] = {}  # by row: the stack's handshake goes on
        self._buffer = bytearray(256 << 10)
        self._rows: dict[int, int] = {}  # row of our stack: descriptor of the bridge
        self._busy: set[int] = set()  # descriptors of bridges that may have something to do
        host.stack.activity()
        self._clients: OrderedDict[int, tuple[str, int]] = OrderedDict()  # of this host, by our port
        self._ended: OrderedDict[int, int] = OrderedDict()  # bytes handed over by bridges that are gone

    def watch(self, epoll: select.epoll) -> None:
        """Register what there will be to wait for with ``epoll``; before the first ``forward``."""
        self._epoll, self._turns = epoll, Turns(epoll, ET)

    def forward(self, address: str, port: int, guest_port: int) -> int:
        """Listen on ``address``:``port`` of this host (0: any free port) and return the port.

        ``guest_port`` 0: the same. EADDRINUSE, EACCES, EADDRNOTAVAIL as the kernel says, naming the address.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise NetmemError(
                error.errno or errno.EIO, f"cannot listen on {address}:{port}: {error.strerror}"
            ) from None
        made = int(listener.getsockname()[1])
        self._listeners[listener.fileno()] = (listener, guest_port or made)
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        return made

    def outward(self, address: str, port: int) -> None:
        """Have connections of the stack behind the NIC to the gateway's ``port`` lead to a host address.

        A SYN is answered as that address answers. EADDRINUSE when the port leads somewhere else already.
        """
        if any((there, number) == (address, port) for _, there, number in self._outward):
            return
        listener = self.host.stack.listen(port, backlog=BACKLOG)
        listener.ask(functools.partial(self._dial, listener, address, port))
        self._outward.append((listener, address, port))

    def _reach(self, address: str, port: int) -> tuple[socket.socket, int]:
        """A socket of the kernel's that connects, and how that began: 0 or an errno. EMFILE."""
        kernel = _keep_reserve(
            socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        )
        kernel.setblocking(False)
        kernel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return kernel, kernel.connect_ex((address, port))

    def _dial(self, listener: TcpListener, address: str, port: int, row: int, generation: int) -> None:
        """The kernel connects for a SYN."""
        try:
            kernel, failed = self._reach(address, port)
        except OSError:
            listener.answer(row, generation, False)
            return
        call = _Call(listener, row, generation, kernel)
        if failed == errno.EINPROGRESS:
            self._calls[kernel.fileno()] = call
            self._epoll.register(kernel.fileno(), select.EPOLLOUT)
        else:
            self._answer(call, failed)

    def _answer(self, call: _Call, failed: int) -> None:
        """The kernel's connection is made, or refused: so is the stack's."""
        if not call.listener.answer(call.row, call.generation, not failed) or failed:
            call.kernel.close()
            return
        if (before := self._answered.get(call.row)) is not None:
            before.kernel.close()  # of who had the row, and gave up
        self._answered[call.row] = call

    def _forget_calls(self) -> None:
        """Let go of the kernel's connections whose peers gave up, before or after they were answered."""
        generations = self.host.stack.conns.generations
        for calls in (self._answered, self._calls):
            for key, call in list(calls.items()):
                if generations[call.row] != call.generation:
                    del calls[key]
                    call.kernel.close()  # which ends its registration too

    def _connect(self, listener: TcpListener, address: str, port: int) -> None:
        """A connection of the stack is there: it goes on over the kernel's that was made for it."""
        try:
            ours = listener.accept(timeout=0)
        except OSError:
            return  # out of descriptors: reset
        call = self._answered.pop(ours.row, None)
        if call is not None and call.generation == self.host.stack.conns.generations[ours.row]:
            self._add(Bridge(call.kernel, ours, active=True))
            return
        if call is not None:
            call.kernel.close()
        try:  # its SYN was answered with a cookie: the kernel connects now
            kernel, failed = self._reach(address, port)
        except OSError:
            ours.abort()
            return
        if failed not in (0, errno.EINPROGRESS):
            ours.abort()
            kernel.close()
            return
        bridge = Bridge(kernel, ours, active=True)
        bridge.readable = bridge.writable = failed == 0
        self._add(bridge)

    def _add(self, bridge: Bridge) -> None:
        fd = bridge.kernel.fileno()
        self._bridges[fd] = bridge
        self._rows[bridge.ours.row] = fd
        self._busy.add(fd)
        self._turns.add(fd)

    def events(self, ready: list[tuple[int, int]]) -> None:
        """Take note of what epoll reported."""
        for fd, event in ready:
            if fd in self._listeners:
                self._accept(*self._listeners[fd])
            elif fd in self._calls:
                self._epoll.unregister(fd)
                call = self._calls.pop(fd)
                self._answer(call, call.kernel.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            elif fd in self._bridges:
                bridge = self._bridges[fd]
                if event & (select.EPOLLIN | SPECIAL):
                    bridge.readable = True
                    bridge.thorough = bridge.thorough or bool(event & SPECIAL)
                if event & (select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP):
                    bridge.writable = True
                self._busy.add(fd)

    def _accept(self, listener: socket.socket, guest_port: int) -> None:
        try:
            kernel, client = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                # Out of descriptors: the listener waits in its backlog until a bridge ends.
                self._epoll.unregister(listener.fileno())
                self._resting.append(listener.fileno())
            return
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        try:
            _keep_reserve(kernel)
            ours = self.host.stack.connect_nowait(self.guest, guest_port)
        except OSError:  # no row, or no descriptor, is left
            kernel.close()
            return
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_RESET)
        kernel.setblocking(False)
        kernel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._add(Bridge(kernel, ours, active=False))
        self._clients[ours.port] = client[:2]
        if len(self._clients) > CLIENTS:
            self._clients.popitem(last=False)

    def pump(self, now: int) -> bool:
        """Move bytes over the bridges at which something happened; True when any moved."""
        moved = False
        if self._answered or self._calls:
            self._forget_calls()
        for listener, address, port in self._outward:
            while listener.pending():
                self._connect(listener, address, port)
                moved = True
        for row in self.host.stack.activity():
            fd = self._rows.get(row, -1)
            if fd >= 0:
                self._busy.add(fd)
        apart = self._turns.apart
        if due := self._turns.is_due(now):
            self.events(self._turns.heard(now))  # in each turn: there may be no other time to hear of them
        for fd in self._busy - apart:
            moved |= self._serve(fd, self._bridges[fd], now)
        if due and (waited := self._busy & apart):
            start = time.monotonic_ns()
            for fd in waited:
                moved |= self._serve(fd, self._bridges[fd], now)
            self._turns.took(start, time.monotonic_ns())
        return moved

    def _serve(self, fd: int, bridge: Bridge, now: int) -> bool:
        """Move what one bridge has, and end it when it is done; True when anything moved."""
        try:
            went = bridge.pump(self._buffer)
            if not bridge.finished():
                self._turns.note(fd, bridge.moved, now)
                if not bridge.again:
                    self._busy.discard(fd)  # until an event, or a change of our side
                return went
            handed = bridge.taken
            bridge.close()
        except OSError:
            handed = bridge.handed()
            bridge.reset()
        self._busy.discard(fd)
        self._turns.forget(fd)
        del self._bridges[fd]
        if self._rows.get(bridge.ours.row) == fd:
            del self._rows[bridge.ours.row]
        self._ended[bridge.ours.peer[1]] = handed
        if len(self._ended) > ENDED:
            self._ended.popitem(last=False)
        while self._resting:
            self._epoll.register(self._resting.pop(), select.EPOLLIN)
        return True

    def pending(self) -> bool:
        """True when something happened to connections of ours that ``pump`` has not looked at."""
        return self.host.stack.conns.record.active > 0

    def timer(self) -> int:
        """When there is something to do next, whatever arrives."""
        return min(int(self.host.stack.conns.record.timer), self._turns.timer())

    def handed(self, port: int) -> tuple[int, bool]:
        """Bytes of the stack's connection from ``port`` that the far end's host has acknowledged.

        And whether there will be no more: the connection is over.
        """
        for bridge in self._bridges.values():
            if bridge.ours.peer[1] == port:
                return bridge.handed(), False
        return self._ended.get(port, 0), True

    def client(self, port: int) -> tuple[str, int] | None:
        """Who connected to a forwarded port of the host: the stack sees our address and ``port``."""
        return self._clients.get(port)

    def held(self) -> tuple[int, int]:
        """Bytes on their way on connections that the stack closed, and bytes the kernel took, of all."""
        bridges = self._bridges.values()
        return sum(bridge.left() for bridge in bridges), sum(bridge.taken for bridge in bridges)

    def close(self) -> None:
        """Stop listening; connections that the stack had closed end in FIN, the others in RST.

        Whoever cares about what is on its way waits for ``held`` first.
        """
        for _ in range(LAST_LOOKS):
            if not self.pump(FAR):  # everyone's turn
                break
        for bridge in self._bridges.values():
            if bridge.out_done:
                bridge.close()
            else:
                bridge.reset()
        for listener, _ in self._listeners.values():
            listener.close()
        for call in [*self._calls.values(), *self._answered.values()]:
            call.kernel.close()
        self._turns.close()
        self._bridges.clear()
        self._listeners.clear()
