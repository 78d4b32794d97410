"""Exactly so much of a stream, in memory of the application's own: arrays, messages, lines.

A reader gathers frags end to end, with one kernel for a whole receive, and gives their tokens back as it
goes: what is read may be larger than the memory that it comes through. It owns the stream from its
first call on, since ``readuntil`` reads ahead. The application's mapping does the reading: driver and
stack see none of it.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from netmem.base.arena import Region
from netmem.base.errors import NetmemError
from netmem.inet.tokens import DevmemMessage
from netmem.memory.calls import gather
from netmem.memory.provider import AreaProvider
from netmem.netdev.device import NetDevice

MAX_FRAGS = 1024  # of a receive
Writable = bytearray | memoryview | npt.NDArray[Any]
NOT_WRITABLE = "the destination must be writable and contiguous (C order)"
LINE = 64 << 10  # bytes that readuntil reads ahead, and finds its separator in


class Gatherer:
    """Copies what was received to the application's memory, in order."""

    def __init__(self, dev: NetDevice) -> None:
        self._dev = dev
        self._mapped: dict[int, tuple[AreaProvider, Region]] = {}  # by dmabuf_id

    def _memory(self, binding: int) -> tuple[AreaProvider, Region]:
        found = self._mapped.get(binding)
        if found is None:
            with self._dev.lock:
                pools = [pool for pool in self._dev.pools.values() if pool.record.binding == binding]
            provider = pools[0].provider if pools else None
            if not isinstance(provider, AreaProvider):
                raise NetmemError(
                    errno.EOPNOTSUPP, f"the memory of binding {binding} cannot be mapped to be read"
                )
            found = self._mapped[binding] = provider, Region(provider.fd, provider.size, writable=False)
        return found

    def put(self, message: DevmemMessage, to: int) -> int:
        """A message's bytes to host address ``to``; how many. Its tokens are not given back."""
        done = len(message.linear)
        if done:
            ctypes.memmove(to, message.linear, done)
        if len(message.frags):
            # Rows of FRAG: offset, size | token << 32, dmabuf_id.
            rows = message.frags.view(np.int64).reshape(-1, 3)
            provider, region = self._memory(rows.item(0, 2) & 0xFFFFFFFF)
            with provider.cpu_access():
                done += gather(region.address, rows, len(rows), to + done)
        return done


def writable_bytes(destination: Writable) -> npt.NDArray[np.uint8]:
    """Memory to read into, as bytes. EINVAL for what is read-only or not contiguous."""
    if not isinstance(destination, np.ndarray):
        view = memoryview(destination)
        if view.readonly or not view.c_contiguous:
            raise NetmemError(errno.EINVAL, NOT_WRITABLE)
        return np.frombuffer(view.cast("B") if view.nbytes else b"", np.uint8)
    if not destination.flags.writeable or not destination.flags.c_contiguous:
        raise NetmemError(errno.EINVAL, NOT_WRITABLE)
    return destination.reshape(-1).view(np.uint8)


def new_array(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array to read into. EINVAL for dtypes that hold references."""
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise NetmemError(errno.EINVAL, f"dtype {kind} holds Python objects, which no stream carries")
    return np.empty(shape, kind)


def length_of(prefix: str, head: bytes, limit: int) -> int:
    """The length that a message begins with. EMSGSIZE beyond ``limit``."""
    (size,) = struct.unpack(prefix, head)
    if not 0 <= size <= limit:
        raise NetmemError(errno.EMSGSIZE, f"a message of {size} bytes; at most {limit} are allowed")
    return int(size)


class _Ahead:
    """What ``readuntil`` read and nobody took yet."""

    def __init__(self) -> None:
        self.data = bytearray()

    def take(self, out: npt.NDArray[np.uint8]) -> int:
        """Move bytes to ``out``; how many."""
        n = min(len(self.data), len(out))
        if n:
            out[:n] = np.frombuffer(bytes(self.data[:n]), np.uint8)
            del self.data[:n]
        return n

    def put_back(self, data: bytes) -> None:
        """Bytes that were taken, and are not kept: they come first again."""
        self.data[:0] = data

    def rest(self) -> bytes:
        """All that is left, at the end of the stream."""
        data = bytes(self.data)
        self.data.clear()
        return data

    def line(self, separator: bytes, looked: int) -> tuple[bytes | None, int]:
        """The bytes up to and with a separator, None without one; where to look on from."""
        if not separator:
            raise NetmemError(errno.EINVAL, "an empty separator is found nowhere")
        end = self.data.find(separator, max(0, looked - len(separator) + 1))
        if end < 0:
            if len(self.data) >= LINE:
                raise NetmemError(errno.EMSGSIZE, f"no {separator!r} in {LINE} bytes")
            return None, len(self.data)
        end += len(separator)
        found = bytes(self.data[:end])
        del self.data[:end]
        return found, 0


class Source(Protocol):
    """What a reader reads from: a TcpSocket."""

    def recvmsg_devmem(
        self, bufsize: int = ..., *, max_frags: int = ..., timeout: float | None = None
    ) -> DevmemMessage: ...

    def devmem_dontneed(self, tokens: npt.ArrayLike) -> int: ...


class AsyncSource(Protocol):
    """The same, of asyncio: an AsyncConnection."""

    async def recvmsg_devmem(
        self, bufsize: int = ..., *, max_frags: int = ..., timeout: float | None = None
    ) -> DevmemMessage: ...

    def devmem_dontneed(self, tokens: npt.ArrayLike) -> int: ...


def is_end(message: DevmemMessage) -> bool:
    """True for the message that says that nothing more comes."""
    return not len(message.linear) and not len(message.frags)


def cut_short(got: bytes, wanted: int | None) -> EOFError:
    """The error that says that the stream ended early."""
    from asyncio import IncompleteReadError  # asyncio is loaded for those only who need it

    return IncompleteReadError(got, wanted)


class Reader:
    """Reads a blocking socket's stream. Errors: those of ``TcpSocket``; IncompleteReadError (an EOFError)
    when the stream ends early. ``timeout``: for each step, in seconds.
    """

    def __init__(self, sock: Source, dev: NetDevice) -> None:
        self.sock = sock
        self._gatherer, self._ahead = Gatherer(dev), _Ahead()

    def read_into(self, destination: Writable, *, timeout: float | None = None) -> None:
        """Fill ``destination``, any writable contiguous buffer."""
        out = writable_bytes(destination)
        done = self._ahead.take(out)
        try:
            while done < len(out):
                message = self.sock.recvmsg_devmem(len(out) - done, max_frags=MAX_FRAGS, timeout=timeout)
                if is_end(message):
                    raise cut_short(bytes(out[:done]), len(out))
                try:
                    done += self._gatherer.put(message, out.ctypes.data + done)
                finally:
                    self.sock.devmem_dontneed(message.frags["frag_token"])
        except EOFError:
            raise
        except BaseException:  # out of time, or cancelled: nothing is lost, and can be read again
            self._ahead.put_back(bytes(out[:done]))
            raise

    def read_array(
        self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.uint8, *, timeout: float | None = None
    ) -> npt.NDArray[Any]:
        """A new array of so many items, in C order."""
        array = new_array(shape, dtype)
        self.read_into(array, timeout=timeout)
        return array

    def readexactly(self, n: int, *, timeout: float | None = None) -> bytes:
        """``n`` bytes."""
        data = bytearray(n)
        self.read_into(data, timeout=timeout)
        return bytes(data)

    def readuntil(self, separator: bytes = b"\n", *, timeout: float | None = None) -> bytes:
        """Bytes up to and with ``separator``. EMSGSIZE without one in 64 KiB."""
        looked = 0
        while True:
            found, looked = self._ahead.line(separator, looked)
            if found is not None:
                return found
            message = self.sock.recvmsg_devmem(LINE - looked, max_frags=MAX_FRAGS, timeout=timeout)
            if is_end(message):
                raise cut_short(self._ahead.rest(), None)
            try:
                _append(self._ahead.data, self._gatherer, message)
            finally:
                self.sock.devmem_dontneed(message.frags["frag_token"])

    def read_message(
        self, prefix: str = "!I", *, limit: int = 64 << 20, timeout: float | None = None
    ) -> npt.NDArray[np.uint8]:
        """A message behind its length, which ``struct`` reads as ``prefix``. EMSGSIZE over ``limit``."""
        head = self.readexactly(struct.calcsize(prefix), timeout=timeout)
        size = length_of(prefix, head, limit)
        try:
            return self.read_array(size, timeout=timeout)
        except EOFError:
            raise
        except BaseException:
            self._ahead.put_back(head)
            raise


class AsyncReader:
    """The same for asyncio; see ``Reader``. One task reads at a time."""

    def __init__(self, connection: AsyncSource, dev: NetDevice) -> None:
        self.connection = connection
        self._gatherer, self._ahead = Gatherer(dev), _Ahead()

    async def read_into(self, destination: Writable, *, timeout: float | None = None) -> None:
        """``Reader.read_into``."""
        out = writable_bytes(destination)
        done, receive = self._ahead.take(out), self.connection.recvmsg_devmem
        try:
            while done < len(out):
                message = await receive(len(out) - done, max_frags=MAX_FRAGS, timeout=timeout)
                if is_end(message):
                    raise cut_short(bytes(out[:done]), len(out))
                try:
                    done += self._gatherer.put(message, out.ctypes.data + done)
                finally:
                    self.connection.devmem_dontneed(message.frags["frag_token"])
        except EOFError:
            raise
        except BaseException:
            self._ahead.put_back(bytes(out[:done]))
            raise

    async def read_array(
        self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.uint8, *, timeout: float | None = None
    ) -> npt.NDArray[Any]:
        """``Reader.read_array``."""
        array = new_array(shape, dtype)
        await self.read_into(array, timeout=timeout)
        return array

    async def readexactly(self, n: int, *, timeout: float | None = None) -> bytes:
        """``Reader.readexactly``."""
        data = bytearray(n)
        await self.read_into(data, timeout=timeout)
        return bytes(data)

    async def readuntil(self, separator: bytes = b"\n", *, timeout: float | None = None) -> bytes:
        """``Reader.readuntil``."""
        looked = 0
        while True:
            found, looked = self._ahead.line(separator, looked)
            if found is not None:
                return found
            message = await self.connection.recvmsg_devmem(
                LINE - looked, max_frags=MAX_FRAGS, timeout=timeout
            )
            if is_end(message):
                raise cut_short(self._ahead.rest(), None)
            try:
                _append(self._ahead.data, self._gatherer, message)
            finally:
                self.connection.devmem_dontneed(message.frags["frag_token"])

    async def read_message(
        self, prefix: str = "!I", *, limit: int = 64 << 20, timeout: float | None = None
    ) -> npt.NDArray[np.uint8]:
        """``Reader.read_message``."""
        head = await self.readexactly(struct.calcsize(prefix), timeout=timeout)
        size = length_of(prefix, head, limit)
        try:
            return await self.read_array(size, timeout=timeout)
        except EOFError:
            raise
        except BaseException:
            self._ahead.put_back(head)
            raise


def _append(data: bytearray, gatherer: Gatherer, message: DevmemMessage) -> None:
    part = np.empty(message.size, np.uint8)
    gatherer.put(message, part.ctypes.data)
    data += part.tobytes()
