"""asyncio over a stack: the NIC's interrupt is a file descriptor, timers are one call_later.

``AsyncStack(stack)`` polls from the event loop, so no thread is needed; blocking calls go on working from
other threads. ``async for message in connection`` gives what arrives, as ``recvmsg_devmem`` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from netmem.base.clock import SEC
from netmem.base.errors import NetmemError
from netmem.base.frags import DevmemMessage
from netmem.base.reader import AsyncReader
from netmem.inet.listener import TcpListener
from netmem.inet.socket import TcpSocket
from netmem.inet.tcp.tcb import TcpState
from netmem.inet.udp import UdpMessage, UdpSocket
from netmem.inet.views import gatherers

if TYPE_CHECKING:
    from netmem.inet.stack import Stack
    from netmem.netdev.binding import TxBinding

log = logging.getLogger("netmem.aio")

Handler = Callable[["AsyncConnection"], Awaitable[object]]


class AsyncStack:
    """Drives a stack from the running event loop; use as ``async with``.

    Its service thread, if it has one, steps aside while the loop polls.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._fds: list[int] = []
        self._over = False  # the stack was closed: nothing is waited for any more

    async def __aenter__(self) -> AsyncStack:
        self._loop = asyncio.get_running_loop()
        driver = self.stack.dev.driver
        self._fds = [driver.irq_fd(), *driver.filenos()]
        for fd in self._fds:
            self._loop.add_reader(fd, self._work)
        self.stack.poller.closing.append(self._stack_closes)
        self.stack.poller.lead(True)
        self._work()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._let_go()
        if not self.stack.closed:
            self.stack.poller.closing.remove(self._stack_closes)
            self.stack.poller.lead(False)
        for _, future in self._waiters:
            future.cancel()
        self._waiters.clear()

    def _let_go(self) -> None:
        """Watch the NIC no more."""
        assert self._loop is not None
        self._over = True
        for fd in self._fds:
            self._loop.remove_reader(fd)
        self._fds = []
        if self._timer is not None:
            self._timer.cancel()

    def _stack_closes(self) -> None:
        """Called by ``Stack.close``, in whichever thread: before descriptors go, end what waits."""
        loop = self._loop
        assert loop is not None

        def end() -> None:
            if not self._over:
                self._let_go()
            self._fail(NetmemError(errno.EBADF, "the stack was closed"))

        with contextlib.suppress(RuntimeError):  # no loop runs here
            if asyncio.get_running_loop() is loop:
                end()
                return
        done = threading.Event()

        def end_there() -> None:
            end()
            done.set()

        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end_there)
            done.wait(1.0)

    def _work(self) -> None:
        """Poll until nothing moves, wake whoever got what it waits for, and arm interrupt and timer."""
        assert self._loop is not None
        poller = self.stack.poller
        if self._over:
            return
        try:
            poller.irq_taken()
            rounds = 0
            while poller.poll() and rounds < 16:
                rounds += 1
            poller.check_device()
        except OSError as error:
            self._fail(error)
            return
        with poller.lock:
            poller.changed()  # calls that block in other threads
        self._wake()
        if self._timer is not None:
            self._timer.cancel()
        if rounds >= 16 or poller.arm():  # more waits: let others run, then go on
            self._timer = self._loop.call_later(0, self._work)
            return
        self._timer = self._loop.call_later(max(poller.next_timer(), 0) / SEC, self._work)

    def _wake(self) -> None:
        rest = []
        for ready, future in self._waiters:
            if future.done():
                continue
            if ready():
                future.set_result(None)
            else:
                rest.append((ready, future))
        self._waiters = rest

    def _fail(self, error: OSError) -> None:
        for _, future in self._waiters:
            if not future.done():
                future.set_exception(error)
        self._waiters.clear()

    async def wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Until ``ready()``; TimeoutError naming ``what`` after ``timeout`` seconds (None: for ever)."""
        assert self._loop is not None
        if ready():
            return
        if self._over:
            raise NetmemError(errno.EBADF, "the stack was closed")
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append((ready, future))
        self._loop.call_soon(self._work)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            raise TimeoutError(errno.ETIMEDOUT, f"{what} did not happen in {timeout:g} s") from None

    async def connect(self, host: str, port: int, *, timeout: float | None = 30.0) -> AsyncConnection:
        """A connection to ``host``:``port``; errors as ``Stack.connect``."""
        sock = self.stack.connect_nowait(host, port)
        self.stack.dev.xmit()
        try:
            await self.wait(
                lambda: sock.state() not in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED), timeout,
                f"the connection to {host}:{port}",
            )  # fmt: skip
            sock.wait_connected(0)
        except BaseException:
            sock.abort()
            raise
        return AsyncConnection(self, sock)

    async def serve(
        self, port: int, handler: Handler, *, backlog: int = 1024, limit: int | None = None,
        failed: Callable[[AsyncConnection], object] | None = None,
    ) -> None:  # fmt: skip
        """Accept connections on ``port`` and run ``handler(connection)`` for each, as a task of its own.

        Ends after ``limit`` connections and their handlers, or when cancelled. A connection is closed when
        its handler returns. What a handler raises is kept as its connection's ``error``, logged, and ends
        nobody else; ``failed(connection)`` is called with it, if given.
        """
        listener = self.stack.listen(port, backlog=backlog)
        taken = 0
        try:
            async with asyncio.TaskGroup() as tasks:
                while limit is None or taken < limit:
                    connection = await self.accept(listener)
                    taken += 1
                    tasks.create_task(self._handle(connection, handler, failed))
        finally:
            listener.close()

    async def accept(self, listener: TcpListener, *, timeout: float | None = None) -> AsyncConnection:
        """The next connection of a listener. EBADF when it was closed, ENODEV when the NIC is gone."""
        what = f"a connection to port {listener.port}"

        def ready() -> bool:
            return bool(listener.pending()) or listener.closed or self.stack.gone is not None

        await self.wait(ready, timeout, what)
        return AsyncConnection(self, listener.accept(timeout=0))

    async def _handle(
        self, connection: AsyncConnection, handler: Handler,
        failed: Callable[[AsyncConnection], object] | None,
    ) -> None:  # fmt: skip
        with contextlib.closing(connection):
            try:
                await handler(connection)
            except Exception as error:
                connection.error = error
                log.warning("the handler of %s:%d raised %r", *connection.peer, error)
                if failed is not None:
                    failed(connection)

    def udp_socket(self, port: int = 0) -> AsyncUdpSocket:
        """A UDP socket on ``port``."""
        return AsyncUdpSocket(self, self.stack.udp_socket(port))


class AsyncConnection:
    """A TCP connection for ``async for`` and await; ``sock`` is the socket below.

    ``error``: what its handler raised (``AsyncStack.serve``).
    """

    def __init__(self, stack: AsyncStack, sock: TcpSocket) -> None:
        self._stack, self.sock = stack, sock
        self.error: Exception | None = None

    @property
    def peer(self) -> tuple[str, int]:
        """Address and port of the peer."""
        return self.sock.peer

    async def __aiter__(self) -> AsyncIterator[DevmemMessage]:
        """What arrives, until the end of the stream; tokens are given back by ``devmem_dontneed``."""
        while (message := await self.recvmsg_devmem()).size:
            yield message

    async def _readable(self, timeout: float | None) -> None:
        host, port = self.sock.peer
        await self._stack.wait(self.sock.readable, timeout, f"data from {host}:{port}")

    async def recvmsg_devmem(
        self, bufsize: int = 1 << 30, *, max_frags: int = 256, timeout: float | None = None
    ) -> DevmemMessage:
        """``TcpSocket.recvmsg_devmem``."""
        await self._readable(timeout)
        return self.sock.recvmsg_devmem(bufsize, max_frags=max_frags)

    def devmem_dontneed(self, tokens: npt.ArrayLike) -> int:
        """``TcpSocket.devmem_dontneed``; never waits."""
        return self.sock.devmem_dontneed(tokens)

    def reader(self, device: str = "") -> AsyncReader:
        """``TcpSocket.reader``, for await."""
        stack = self._stack.stack
        return AsyncReader(self, *gatherers(stack.dev, stack.poller.later, device))

    async def recv(self, size: int, *, timeout: float | None = None) -> bytes:
        """``TcpSocket.recv``."""
        await self._readable(timeout)
        return self.sock.recv(size)

    async def _writable(self, timeout: float | None) -> None:
        sock = self.sock
        host, port = sock.peer
        await self._stack.wait(sock.writable, timeout, f"room to send to {host}:{port}")

    async def sendall(self, data: bytes | bytearray | memoryview, *, timeout: float | None = None) -> None:
        """``TcpSocket.sendall``."""
        view = memoryview(data).cast("B")
        while len(view):
            await self._writable(timeout)
            view = view[self.sock.send(view) :]

    async def sendmsg_devmem(
        self, frags: npt.ArrayLike, binding: TxBinding | int, *, timeout: float | None = None
    ) -> int:
        """``TcpSocket.sendmsg_devmem``."""
        await self._writable(timeout)
        return self.sock.sendmsg_devmem(frags, binding)

    async def wait_zerocopy(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """``TcpSocket.wait_zerocopy``."""
        host, port = self.sock.peer
        await self._stack.wait(self.sock.zerocopy_done, timeout, f"{host}:{port}'s acknowledgement")
        return self.sock.zerocopy_completions()

    async def drain(self, timeout: float | None = None) -> None:
        """Until the peer has acknowledged all that was sent."""
        host, port = self.sock.peer
        await self._stack.wait(self.sock.drained, timeout, f"{host}:{port}'s acknowledgement")

    def shutdown(self) -> None:
        """``TcpSocket.shutdown``."""
        self.sock.shutdown()

    def close(self) -> None:
        """``TcpSocket.close``."""
        self.sock.close()

    async def __aenter__(self) -> AsyncConnection:
        return self

    async def __aexit__(self, *exc: Any) -> None:
        self.close()


class AsyncUdpSocket:
    """A UDP socket for ``async for`` and await; ``sock`` is the socket below, for everything else."""

    def __init__(self, stack: AsyncStack, sock: UdpSocket) -> None:
        self._stack, self.sock = stack, sock

    async def recvmsg_devmem(self, *, max_frags: int = 64, timeout: float | None = None) -> UdpMessage:
        """``UdpSocket.recvmsg_devmem``."""
        await self._stack.wait(self.sock.readable, timeout, f"a datagram to port {self.sock.port}")
        return self.sock.recvmsg_devmem(max_frags=max_frags)

    async def __aiter__(self) -> AsyncIterator[UdpMessage]:
        while True:
            yield await self.recvmsg_devmem()

    def close(self) -> None:
        """``UdpSocket.close``."""
        self.sock.close()
