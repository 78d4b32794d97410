"""asyncio over the kernel's devmem sockets: the calls of ``netmem.inet.aio``, on the loop's own selector."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable

import numpy.typing as npt

from netmem.base.errors import NetmemError
from netmem.base.frags import DevmemMessage
from netmem.base.reader import AsyncReader
from netmem.kernel.devmem import MOST_FRAGS, KernelListener, KernelSocket, TxBound

CHUNK = 1 << 20


async def ready(
    fd: int, *, write: bool, timeout: float | None, what: str, sock: KernelSocket | None = None
) -> None:
    """Until a descriptor can be read from, or written to, or ``sock`` was given something. ETIMEDOUT."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    add: Callable[..., None] = loop.add_writer if write else loop.add_reader
    remove = loop.remove_writer if write else loop.remove_reader

    def now() -> None:
        if not done.done():
            done.set_result(None)

    add(fd, now)
    if sock is not None:
        sock.watch(now)
    try:
        await asyncio.wait_for(done, timeout)
    except TimeoutError:
        raise NetmemError(errno.ETIMEDOUT, f"no {what} within {timeout:g} s") from None
    finally:
        remove(fd)
        if sock is not None:
            sock.watch(None)


async def accept(listener: KernelListener, *, timeout: float | None = None) -> AsyncKernelConnection:
    """The next connection. ETIMEDOUT."""
    await ready(listener.sock.fileno(), write=False, timeout=timeout, what=f"connection to {listener.port}")
    return AsyncKernelConnection(listener.accept(timeout=1.0))


class AsyncKernelConnection:
    """A KernelSocket for await. ``async for`` gives messages, whose tokens are the caller's to give back."""

    def __init__(self, sock: KernelSocket) -> None:
        self.sock = sock

    @property
    def peer(self) -> tuple[str, int]:
        """Address and port of the other end."""
        return self.sock.peer

    async def __aiter__(self) -> AsyncIterator[DevmemMessage]:
        while (message := await self.recvmsg_devmem()).size:
            yield message

    async def _readable(self, timeout: float | None) -> None:
        sock = self.sock
        while not sock.readable():
            fd = os.dup(sock.wait_fd())  # a ring has one for all its sockets, and a loop knows each but once
            try:
                await ready(fd, write=False, timeout=timeout, what="data", sock=sock)
            finally:
                os.close(fd)

    async def recvmsg_devmem(
        self, bufsize: int = CHUNK, *, max_frags: int = MOST_FRAGS, timeout: float | None = None
    ) -> DevmemMessage:
        """``KernelSocket.recvmsg_devmem``."""
        await self._readable(timeout)
        return self.sock.recvmsg_devmem(bufsize, max_frags=max_frags)

    def devmem_dontneed(self, tokens: npt.ArrayLike) -> int:
        """``KernelSocket.devmem_dontneed``; never waits."""
        return self.sock.devmem_dontneed(tokens)

    def reader(self) -> AsyncReader:
        """``KernelSocket.reader``, for await."""
        return AsyncReader(self, self.sock.gatherer())

    async def recv(self, size: int, *, timeout: float | None = None) -> bytes:
        """``KernelSocket.recv``."""
        await self._readable(timeout)
        return self.sock.recv(size)

    async def sendall(self, data: bytes | bytearray | memoryview, *, timeout: float | None = None) -> None:
        """All of ``data``, by copy; each step within ``timeout``."""
        view, fd = memoryview(data).cast("B"), self.sock.sock.fileno()
        while len(view):
            await ready(fd, write=True, timeout=timeout, what="room to send")
            view = view[self.sock.send_now(view) :]

    async def sendmsg_devmem(
        self, frags: npt.ArrayLike, binding: TxBound | int, *, timeout: float | None = None
    ) -> int:
        """``KernelSocket.sendmsg_devmem``."""
        await ready(self.sock.sock.fileno(), write=True, timeout=timeout, what="room to send")
        return self.sock.sendmsg_devmem(frags, binding, timeout=1.0)

    def shutdown(self) -> None:
        """No more will be sent."""
        self.sock.shutdown()

    def close(self) -> None:
        """``KernelSocket.close``."""
        self.sock.close()

    async def __aenter__(self) -> AsyncKernelConnection:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
