"""TCP sockets of the kernel's that receive into bound memory and send from it (devmem TCP).

Calls, names and results are those of ``netmem.inet.socket.TcpSocket``. One libc call each, on a message whose
buffers are made once: control messages of devmem TCP are all of one size, and are read as one array.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import select
import socket
import time
from collections import deque

import numpy as np
import numpy.typing as npt

from netmem.base.errors import ETOOSMALL, NetmemError, errno_name
from netmem.base.frags import FRAG, NO_FRAGS, DevmemMessage

# include/uapi/asm-generic/socket.h, include/linux/socket.h
SO_DEVMEM_LINEAR, SO_DEVMEM_DMABUF, SO_DEVMEM_DONTNEED = 78, 79, 80
MSG_SOCK_DEVMEM, MSG_CTRUNC = 0x2000000, 8
MOST_RANGES, MOST_TOKENS = 128, 1024  # of one SO_DEVMEM_DONTNEED (net/core/sock.c)
LINEAR_MOST = 4 << 20  # bytes that a call may bring at most: address space, touched by linear data only
CMSG = np.dtype([("len", "<u8"), ("level", "<i4"), ("type", "<i4"), ("frag", FRAG)])
RANGE = np.dtype([("token_start", "<u4"), ("token_count", "<u4")])

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.recvmsg.restype = ctypes.c_ssize_t


class Iovec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class Msghdr(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p), ("namelen", ctypes.c_uint32), ("iov", ctypes.POINTER(Iovec)),
        ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )  # fmt: skip


class KernelSocket:
    """A connection of the kernel's TCP whose payload lies in bound memory. ``sock``: the socket itself."""

    def __init__(self, sock: socket.socket, *, max_frags: int = 1024) -> None:
        self.sock = sock
        sock.setblocking(False)
        self.peer = sock.getpeername()[:2]
        self.timeout: float | None = None
        self._linear = np.empty(LINEAR_MOST, np.uint8)
        self._control = np.zeros(max_frags, CMSG)
        self._iov = Iovec(self._linear.ctypes.data, LINEAR_MOST)
        self._message = Msghdr(iov=ctypes.pointer(self._iov), iovlen=1, control=self._control.ctypes.data)
        self._at = ctypes.byref(self._message)
        self._ready: deque[DevmemMessage] = deque()

    # -- receive ------------------------------------------------------------------------------

    def recvmsg_devmem(
        self, bufsize: int = LINEAR_MOST, *, max_frags: int = 1024, timeout: float | None = None
    ) -> DevmemMessage:
        """recvmsg(..., MSG_SOCK_DEVMEM): what has arrived, payload by reference.

        As ``TcpSocket.recvmsg_devmem``; at most 4 MiB at a time. ``copied`` is set for bytes that came by a
        queue without bound memory: the kernel says nothing of them in a control message. Errors: what the
        kernel says, ETOOSMALL without room for a control message, ETIMEDOUT.
        """
        if self._ready:
            return self._ready.popleft()
        self._iov.len = min(bufsize, LINEAR_MOST)
        room = min(max_frags, len(self._control)) * CMSG.itemsize
        fd, message = self.sock.fileno(), self._message
        while True:
            message.controllen = room
            n = LIBC.recvmsg(fd, self._at, MSG_SOCK_DEVMEM | socket.MSG_DONTWAIT)
            if n >= 0:
                return self._sorted(n, message.controllen // CMSG.itemsize)
            code = ctypes.get_errno()
            if code not in (errno.EAGAIN, errno.EINTR):
                raise NetmemError(code, f"recvmsg from {self.peer[0]}:{self.peer[1]}: {_text(code)}")
            self._wait(select.POLLIN, timeout, "data")

    def _sorted(self, n: int, number: int) -> DevmemMessage:
        """The message of a call, and for later those that begin at the next linear data behind frags."""
        found = self._control[:number]
        linear = found["type"] == SO_DEVMEM_LINEAR
        if not linear.any():
            if not number:
                return DevmemMessage(self._linear[:n].tobytes(), NO_FRAGS, n > 0)
            return DevmemMessage(b"", found["frag"].copy())
        at = 0
        # A message begins where linear data follows frags, or is the first of all.
        begins = [0, *(np.flatnonzero(linear[1:] & ~linear[:-1]) + 1).tolist(), number]
        for first, last in itertools.pairwise(begins):
            part, flat = found["frag"][first:last], linear[first:last]
            size = int(part["frag_size"][flat].sum())
            self._ready.append(DevmemMessage(self._linear[at : at + size].tobytes(), part[~flat].copy()))
            at += size
        return self._ready.popleft()

    def devmem_dontneed(self, tokens: npt.ArrayLike) -> int:
        """SO_DEVMEM_DONTNEED: give frags back; how many tokens were freed. Unknown ones are skipped."""
        wanted = np.atleast_1d(np.asarray(tokens)).astype(np.int64)
        if not wanted.size:
            return 0
        freed, pieces = 0, ranges(wanted)
        for first in range(0, len(pieces), MOST_RANGES):
            part = pieces[first : first + MOST_RANGES]
            # Of more tokens than that the kernel looks at the first only.
            for group in np.split(part, _cuts(part["token_count"])):
                freed += self._dontneed(group)
        return freed

    def _dontneed(self, group: npt.NDArray[np.void]) -> int:
        data = group.tobytes()
        n = LIBC.setsockopt(self.sock.fileno(), socket.SOL_SOCKET, SO_DEVMEM_DONTNEED, data, len(data))
        if n < 0:
            code = ctypes.get_errno()
            raise NetmemError(code, f"SO_DEVMEM_DONTNEED: {_text(code)}")
        return int(n)

    # -- send, and the rest ---------------------------------------------------------------------

    def sendall(self, data: bytes | bytearray | memoryview, *, timeout: float | None = None) -> None:
        """All of ``data``, by copy; each step within ``timeout``."""
        view = memoryview(data).cast("B")
        while len(view):
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, timeout, "room to send")

    def shutdown(self) -> None:
        """No more will be sent."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket: the kernel takes back all tokens that are still out."""
        self.sock.close()

    def _wait(self, events: int, timeout: float | None, what: str) -> None:
        limit = self.timeout if timeout is None else timeout
        poll = select.poll()
        poll.register(self.sock.fileno(), events)
        if not poll.poll(None if limit is None else max(0, limit) * 1000):
            text = f"no {what} within {limit:g} s: {self.peer[0]}:{self.peer[1]}"
            raise NetmemError(errno.ETIMEDOUT, text)

    def __enter__(self) -> KernelSocket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def ranges(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    """Tokens as runs (struct dmabuf_token), none of more than the kernel takes at once."""
    starts = np.flatnonzero(np.diff(tokens) != 1) + 1
    starts = np.concatenate(([0], starts))
    counts = np.diff(np.concatenate((starts, [len(tokens)])))
    if counts.max() > MOST_TOKENS:
        cut = [np.arange(s, s + n, MOST_TOKENS) for s, n in zip(starts, counts, strict=True)]
        starts = np.concatenate(cut)
        counts = np.diff(np.concatenate((starts, [len(tokens)])))
    found = np.empty(len(starts), RANGE)
    found["token_start"], found["token_count"] = tokens[starts], counts
    return found


def _cuts(counts: npt.NDArray[np.uint32]) -> list[int]:
    """Where to cut ranges, so that each part has no more tokens than the kernel looks at."""
    cuts, total = [], 0
    for place, count in enumerate(counts.tolist()):
        if total + count > MOST_TOKENS:
            cuts.append(place)
            total = 0
        total += count
    return cuts


def _text(code: int) -> str:
    if code == ETOOSMALL:
        return "there is no room for a control message"
    return os.strerror(code) or errno_name(code)


class KernelListener:
    """A listening socket of the kernel's: ``accept`` hands out KernelSockets. EADDRINUSE and the like."""

    def __init__(self, port: int, *, backlog: int = 128) -> None:
        self.sock = socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog
        )
        self.port = int(self.sock.getsockname()[1])

    def accept(self, *, timeout: float | None = None) -> KernelSocket:
        """The next connection. ETIMEDOUT."""
        end = None if timeout is None else time.monotonic() + timeout
        self.sock.settimeout(None if end is None else max(end - time.monotonic(), 0.001))
        try:
            return KernelSocket(self.sock.accept()[0])
        except TimeoutError:
            raise NetmemError(
                errno.ETIMEDOUT, f"no connection to port {self.port} within {timeout:g} s"
            ) from None

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> KernelListener:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
