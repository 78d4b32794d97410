"""Listening TCP sockets (net/ipv4/inet_connection_sock.c: inet_csk_accept)."""

from __future__ import annotations

import errno
from collections.abc import Callable

from netmem.base.errors import NetmemError
from netmem.inet.poller import Poller
from netmem.inet.socket import TcpSocket
from netmem.inet.tcp.connections import Listener
from netmem.inet.tcp.machine import Tcp
from netmem.inet.tcp.tcb import TcpState
from netmem.inet.zerocopy import Zerocopy


class TcpListener:
    """A listening socket."""

    def __init__(self, poller: Poller, tcp: Tcp, zerocopy: Zerocopy, listener: Listener) -> None:
        self._poller, self._tcp, self._zerocopy, self._listener = poller, tcp, zerocopy, listener
        self.port = listener.port

    def accept(self, timeout: float | None = None) -> TcpSocket:
        """The next connection (its ``peer`` says from where). TimeoutError; ENODEV; EBADF."""
        ready = self._listener.ready
        with self._poller.lock:
            if self._listener.closed:
                raise NetmemError(errno.EBADF, "the listener is closed")
            self._poller.wait(
                lambda: bool(ready) or self._listener.closed or self._poller.gone is not None,
                timeout,
                f"a connection to port {self.port}",
            )
            if ready:
                return TcpSocket(
                    self._poller, self._tcp, self._zerocopy, ready.popleft()
                )  # closing empties it
            if self._poller.gone is not None:
                raise self._poller.gone
            raise NetmemError(errno.EBADF, "the listener is closed")

    def ask(self, asked: Callable[[int, int], None]) -> None:
        """Have SYNs wait for ``answer``: ``asked`` is told of each by row and generation. Not of cookies."""
        generations = self._tcp.conns.generations
        self._listener.ask = lambda c: asked(c, generations[c])

    def answer(self, row: int, generation: int, admit: bool) -> bool:
        """Let a SYN in that was asked about, or refuse it; False when its peer has given up."""
        with self._poller:  # it is sent now
            conns = self._tcp.conns
            if conns.generations[row] != generation or conns.state(row) != TcpState.SYN_RECEIVED:
                return False
            self._tcp.passive.answer_syn(row, admit)
            self._poller.changed()
            conns.dev.xmit()
            return True

    @property
    def closed(self) -> bool:
        """True once ``close`` was called."""
        return self._listener.closed

    def pending(self) -> int:
        """Connections that wait to be accepted."""
        return len(self._listener.ready)

    def close(self) -> None:
        """Stop listening; connections nobody accepted are reset."""
        with self._poller.lock:
            if not self._poller.closed:
                self._tcp.passive.unlisten(self._listener)
                self._poller.changed()
                if self._tcp.conns.dev.running:
                    self._tcp.conns.dev.xmit()

    def __enter__(self) -> TcpListener:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
