"""Exactly so much of a stream: arrays, messages, lines.

A reader gathers frags end to end, with one kernel for a whole receive, and gives their tokens back as it
goes: what is read may be larger than the memory that it comes through. Arrays that lie end to end already
are views (``views``). It owns the stream from its first call on, since ``readuntil`` reads ahead. The
application's mapping does the reading: driver and stack see none of it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from netmem.base.errors import NetmemError
from netmem.base.frags import DevmemMessage
from netmem.base.place import Place, Writable

MAX_FRAGS = 1024  # of a receive
LEAST = 16 << 10  # bytes of a view: less is copied sooner than held
LINE = 64 << 10  # bytes that readuntil reads ahead, and finds its separator in


Shape = int | Sequence[int]


def dimensions(shape: Shape) -> tuple[int, ...]:
    """A shape, as a tuple."""
    return (shape,) if isinstance(shape, int) else tuple(shape)


def size_of(shape: Shape, kind: np.dtype[Any]) -> int:
    """Bytes of an array. EINVAL for dtypes that hold references, and shapes that no array has."""
    if kind.hasobject:
        raise NetmemError(errno.EINVAL, f"dtype {kind} holds Python objects, which no stream carries")
    items = 1
    for n in dimensions(shape):
        if n < 0:
            raise NetmemError(errno.EINVAL, f"shape {shape}: no array has a negative dimension")
        items *= n
    return items * kind.itemsize


def length_of(prefix: str, head: bytes, limit: int) -> int:
    """The length that a message begins with. EMSGSIZE beyond ``limit``."""
    (size,) = struct.unpack(prefix, head)
    if not 0 <= size <= limit:
        raise NetmemError(errno.EMSGSIZE, f"a message of {size} bytes; at most {limit} are allowed")
    return int(size)


class Run(Protocol):
    """Frags that lie end to end: the beginning of an array that needs no copy. ``size``: bytes so far."""

    size: int

    def add(self, message: DevmemMessage) -> bool:
        """Take a message's frags too. False: they lie elsewhere, or must be copied for another reason."""

    def array(self) -> Any:
        """What was taken so far, as bytes of the place, which keep it."""


class Gathering(Protocol):
    """Brings payload from where it was received to where arrays lie, ``place``."""

    @property
    def place(self) -> Place: ...

    def put(self, message: DevmemMessage, to: int) -> int:
        """Copy a message's bytes to address ``to``; how many. EOPNOTSUPP for memory that cannot be read."""

    def run(self, align: int) -> Run | None:
        """For an array that may be a view, of that alignment; None where it is to be copied."""

    def made(self, view: bool) -> None:
        """An array was made."""


class Filling:
    """So many bytes of a stream: in memory of the application's own, or where they lie.

    ``out``: where to, memory of the gatherer's place; None: a new array, or a view of ``align`` bytes'
    alignment where that can be had.
    """

    def __init__(self, gatherer: Gathering, size: int, out: Any = None, align: int = 1) -> None:
        self._gatherer, self.size, self.done, self._place = gatherer, size, 0, gatherer.place
        self.out, self._news = out, out is None and size >= LEAST
        self._run = gatherer.run(align) if self._news else None
        if out is None and self._run is None:
            self.out = self._place.empty(size)

    @property
    def left(self) -> int:
        """Bytes to come."""
        return self.size - self.done

    def begin(self, data: bytes | bytearray) -> None:
        """Bytes that were read before."""
        if data:
            self._place.store(self._place.address(self._copied()), data)
            self.done = len(data)

    def add(self, message: DevmemMessage) -> None:
        """A message's bytes; its tokens can be given back then."""
        if self.out is None and self._run is not None and self._run.add(message):
            self.done = self._run.size
            return
        self.done += self._gatherer.put(message, self._place.address(self._copied()) + self.done)

    def _copied(self) -> Any:
        """From here on all is copied, and so is what was not so far."""
        if self.out is None:
            self.out = self._place.empty(self.size)
            if self.done and self._run is not None:
                self._place.move(self._place.address(self.out), self._run.array(), self.done)
            self._run = None  # lets go of it
        return self.out

    def taken(self) -> bytes:
        """What came so far."""
        return self._place.load(self._all(), self.done)

    def array(self) -> Any:
        """All of it, as bytes of the place."""
        if self._news:
            self._gatherer.made(self.out is None)
        return self._all()

    def _all(self) -> Any:
        if self.out is not None:
            return self.out
        assert self._run is not None
        return self._run.array()


class _Ahead:
    """What ``readuntil`` read and nobody took yet."""

    def __init__(self) -> None:
        self.data = bytearray()

    def take(self, size: int) -> bytes:
        """The first bytes, at most so many; they are gone from here."""
        taken = bytes(self.data[:size])
        del self.data[:size]
        return taken

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


class _Reading:
    """What blocking readers and those of asyncio have in common."""

    def __init__(self, host: Gathering, there: Gathering | None = None) -> None:
        self._host, self._ahead = host, _Ahead()
        self._gatherer = there or host
        self._place = self._gatherer.place

    def _filling(self, size: int, out: Any = None, align: int = 1) -> Filling:
        """A read of ``size`` bytes starts; what was read ahead comes first."""
        return self._begun(Filling(self._gatherer, size, out, align))

    def _array(self, size: int, kind: np.dtype[Any], copy: bool) -> Filling:
        """A read of an array starts."""
        return self._filling(size, self._place.empty(size) if copy else None, kind.alignment)

    def _bytes(self, size: int) -> Filling:
        """A read of ``size`` bytes for this process starts."""
        return self._begun(Filling(self._host, size))

    def _begun(self, filling: Filling) -> Filling:
        filling.begin(self._ahead.take(filling.size))
        return filling

    def _broken(self, filling: Filling) -> None:
        """Out of time, or cancelled: nothing is lost, and can be read again."""
        self._ahead.put_back(filling.taken())

    def _append(self, message: DevmemMessage) -> None:
        part = np.empty(message.size, np.uint8)
        self._host.put(message, part.ctypes.data)
        self._ahead.data += part.tobytes()


class Reader(_Reading):
    """Reads a blocking socket's stream. Errors: those of ``TcpSocket``; IncompleteReadError (an EOFError)
    when the stream ends early. ``timeout``: for each step, in seconds.
    """

    def __init__(self, sock: Source, host: Gathering, there: Gathering | None = None) -> None:
        super().__init__(host, there)
        self.sock = sock

    def _fill(self, filling: Filling, timeout: float | None) -> Any:
        try:
            while filling.left:
                message = self.sock.recvmsg_devmem(filling.left, max_frags=MAX_FRAGS, timeout=timeout)
                if is_end(message):
                    raise cut_short(filling.taken(), filling.size)
                try:
                    filling.add(message)
                finally:
                    self.sock.devmem_dontneed(message.frags["frag_token"])
        except EOFError:
            raise
        except BaseException:
            self._broken(filling)
            raise
        return filling.array()

    def read_into(self, destination: Writable, *, timeout: float | None = None) -> None:
        """Fill ``destination``: any writable contiguous buffer or array, or a tensor by DLPack."""
        out, size = self._place.writable(destination)
        self._fill(self._filling(size, out), timeout)

    def read_array(
        self,
        shape: Shape,
        dtype: npt.DTypeLike = np.uint8,
        *,
        copy: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """An array of so many items, in C order, writable.

        A view of the memory that it was received into, where it lies there end to end; a copy otherwise, or
        with ``copy``. A view keeps that memory from receiving more until the last array over it is gone, also
        when the socket is closed; views keep at most a quarter of a memory.
        """
        kind = np.dtype(dtype)
        size = size_of(shape, kind)
        return self._place.shaped(self._fill(self._array(size, kind, copy), timeout), kind, dimensions(shape))

    def readexactly(self, n: int, *, timeout: float | None = None) -> bytes:
        """``n`` bytes."""
        return bytes(self._fill(self._bytes(n), timeout))

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
                self._append(message)
            finally:
                self.sock.devmem_dontneed(message.frags["frag_token"])

    def read_message(self, prefix: str = "!I", *, limit: int = 64 << 20, timeout: float | None = None) -> Any:
        """A message behind its length, which ``struct`` reads as ``prefix``. EMSGSIZE over ``limit``.

        An array, as ``read_array`` has it.
        """
        head = self.readexactly(struct.calcsize(prefix), timeout=timeout)
        size = length_of(prefix, head, limit)
        try:
            return self.read_array(size, timeout=timeout)
        except EOFError:
            raise
        except BaseException:
            self._ahead.put_back(head)
            raise


class AsyncReader(_Reading):
    """The same for asyncio; see ``Reader``. One task reads at a time."""

    def __init__(self, connection: AsyncSource, host: Gathering, there: Gathering | None = None) -> None:
        super().__init__(host, there)
        self.connection = connection

    async def _fill(self, filling: Filling, timeout: float | None) -> Any:
        receive = self.connection.recvmsg_devmem
        try:
            while filling.left:
                message = await receive(filling.left, max_frags=MAX_FRAGS, timeout=timeout)
                if is_end(message):
                    raise cut_short(filling.taken(), filling.size)
                try:
                    filling.add(message)
                finally:
                    self.connection.devmem_dontneed(message.frags["frag_token"])
        except EOFError:
            raise
        except BaseException:
            self._broken(filling)
            raise
        return filling.array()

    async def read_into(self, destination: Writable, *, timeout: float | None = None) -> None:
        """``Reader.read_into``."""
        out, size = self._place.writable(destination)
        await self._fill(self._filling(size, out), timeout)

    async def read_array(
        self,
        shape: Shape,
        dtype: npt.DTypeLike = np.uint8,
        *,
        copy: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """``Reader.read_array``."""
        kind = np.dtype(dtype)
        size = size_of(shape, kind)
        found = await self._fill(self._array(size, kind, copy), timeout)
        return self._place.shaped(found, kind, dimensions(shape))

    async def readexactly(self, n: int, *, timeout: float | None = None) -> bytes:
        """``Reader.readexactly``."""
        return bytes(await self._fill(self._bytes(n), timeout))

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
                self._append(message)
            finally:
                self.connection.devmem_dontneed(message.frags["frag_token"])

    async def read_message(
        self, prefix: str = "!I", *, limit: int = 64 << 20, timeout: float | None = None
    ) -> Any:
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
