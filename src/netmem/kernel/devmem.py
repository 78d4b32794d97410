"""TCP sockets of the kernel's that receive into bound memory and send from it (devmem TCP).

Calls, names and results are those of ``netmem.inet.socket.TcpSocket``. One libc call each, on a message whose
buffers are made once. Control messages of devmem TCP are all of one size, and are read as one array; a run of
tokens goes back as one range.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import mmap
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from netmem.base.errors import ETOOSMALL, NetmemError, errno_name
from netmem.base.frags import FRAG, NO_FRAGS, DevmemMessage
from netmem.base.reader import Reader
from netmem.kernel.gather import KernelGatherer, Memory

# include/uapi/asm-generic/socket.h, include/linux/socket.h
SO_DEVMEM_LINEAR, SO_DEVMEM_DMABUF, SO_DEVMEM_DONTNEED = 78, 79, 80
SCM_DEVMEM_DMABUF, SO_ZEROCOPY, SO_EE_ORIGIN_ZEROCOPY = SO_DEVMEM_DMABUF, 60, 5
MSG_SOCK_DEVMEM, MSG_ZEROCOPY = 0x2000000, 0x4000000
MOST_RANGES, MOST_TOKENS = 128, 1024  # of one SO_DEVMEM_DONTNEED (net/core/sock.c)
MOST_FRAGS = 2048
LINEAR_MOST = 4 << 20  # bytes that a call may bring at most: address space, touched by linear data only
CMSG = np.dtype([("len", "<u8"), ("level", "<i4"), ("type", "<i4"), ("frag", FRAG)])
NO_TOKENS = np.zeros(0, np.int64)
RUN = struct.Struct("=II")
CONTROL = struct.Struct("=QiiI4x")  # struct cmsghdr with one number, padded
CONTROL_LEN = 20
RANGE = np.dtype([("token_start", "<u4"), ("token_count", "<u4")])

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.recvmsg.restype = LIBC.sendmsg.restype = ctypes.c_ssize_t


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


class TxBound(Protocol):
    """A binding to send from."""

    id: int


class KernelSocket:
    """A connection of the kernel's TCP whose payload lies in bound memory. ``sock``: the socket itself.

    ``memories``: what was bound, by dmabuf_id, for readers.
    """

    def __init__(
        self, sock: socket.socket, peer: tuple[str, int] | None = None, *, max_frags: int = MOST_FRAGS,
        memories: Mapping[int, Memory] | None = None,
    ) -> None:  # fmt: skip
        self.sock, self.memories = sock, memories if memories is not None else {}
        sock.setblocking(True)  # the kernel waits, as long as SO_RCVTIMEO says
        self.peer = peer or sock.getpeername()[:2]  # of an accepted one that was reset there is none
        self.timeout: float | None = None
        self._waits: dict[int, float | None] = {socket.SO_RCVTIMEO: None, socket.SO_SNDTIMEO: None}
        self._buffer = mmap.mmap(-1, LINEAR_MOST)
        self._linear = memoryview(self._buffer)
        self._most = max_frags * CMSG.itemsize
        control = (ctypes.c_char * self._most)()
        self._control = memoryview(control).cast("B")
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._iov = Iovec(base, LINEAR_MOST)
        self._message = Msghdr(
            iov=ctypes.pointer(self._iov), iovlen=1, control=ctypes.addressof(control), controllen=self._most
        )
        self._at = ctypes.byref(self._message)
        self._ready: deque[DevmemMessage] = deque()
        self._zerocopy, self._calls, self._over = False, 0, 0
        self._watch: Callable[[], None] | None = None

    # -- receive ------------------------------------------------------------------------------

    def recvmsg_devmem(
        self, bufsize: int = LINEAR_MOST, *, max_frags: int = MOST_FRAGS, timeout: float | None = None
    ) -> DevmemMessage:
        """recvmsg(..., MSG_SOCK_DEVMEM): what has arrived, payload by reference.

        As ``TcpSocket.recvmsg_devmem``; at most 4 MiB at a time. ``copied`` is set for bytes that came by a
        queue without bound memory: the kernel says nothing of them in a control message. Errors: what the
        kernel says, ETOOSMALL without room for a control message, ETIMEDOUT.
        """
        if self._ready:
            return self._ready.popleft()
        self._set_wait(socket.SO_RCVTIMEO, timeout)
        message, fd = self._message, self.sock.fileno()
        self._iov.len = min(bufsize, LINEAR_MOST)
        room = min(max_frags * CMSG.itemsize, self._most)
        while True:
            message.controllen = room
            n = LIBC.recvmsg(fd, self._at, MSG_SOCK_DEVMEM)
            if n >= 0:
                return self._sorted(n, message.controllen)
            code = ctypes.get_errno()
            if code == errno.EAGAIN:
                self._timed_out("data")
            if code != errno.EINTR:
                raise NetmemError(code, f"recvmsg from {self.peer[0]}:{self.peer[1]}: {_text(code)}")

    def _sorted(self, n: int, used: int) -> DevmemMessage:
        """The message of a call, and for later those that begin at the next linear data behind frags."""
        if not used:
            return DevmemMessage(bytes(self._linear[:n]), NO_FRAGS, n > 0, n)
        found = np.frombuffer(bytes(self._control[:used]), CMSG)
        kinds = found["type"]
        if kinds.min() == SO_DEVMEM_DMABUF:
            return DevmemMessage(b"", found["frag"], False, n)
        linear, at = kinds == SO_DEVMEM_LINEAR, 0
        # A message begins where linear data follows frags, or is the first of all.
        begins = [0, *(np.flatnonzero(linear[1:] & ~linear[:-1]) + 1).tolist(), len(found)]
        for first, last in itertools.pairwise(begins):
            part, flat = found["frag"][first:last], linear[first:last]
            size = int(part["frag_size"][flat].sum())
            self._ready.append(DevmemMessage(bytes(self._linear[at : at + size]), part[~flat]))
            at += size
        return self._ready.popleft()

    def watch(self, call: Callable[[], None] | None) -> None:
        """Have ``call`` called when payload is put here while another is looked at (zcrx); None: no more."""
        self._watch = call

    def tell(self) -> None:
        """Call who watches."""
        if self._watch is not None:
            self._watch()

    def wait_fd(self) -> int:
        """A descriptor that becomes readable when ``readable`` may have become true."""
        return self.sock.fileno()

    def has_ready(self) -> bool:
        """True for messages of an earlier call that wait to be handed out: polling tells nothing of them."""
        return bool(self._ready)

    def readable(self) -> bool:
        """True when recvmsg_devmem would not wait: there is payload, the end, or an error."""
        if self._ready:
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    def devmem_dontneed(self, tokens: npt.ArrayLike) -> int:
        """SO_DEVMEM_DONTNEED: give frags back; how many tokens were freed. Unknown ones are skipped.

        ``tokens``: one or an array of them, or (first, count) ranges, an array of shape (n, 2).
        """
        wanted = np.asarray(tokens)
        if wanted.ndim == 2:
            if wanted.shape[1] != 2:
                raise NetmemError(errno.EINVAL, f"ranges are (first, count), not {wanted.shape[1]} numbers")
            wanted = np.concatenate([NO_TOKENS, *(np.arange(at, at + n) for at, n in wanted.tolist())])
        elif wanted.ndim != 1:
            wanted = wanted.reshape(-1)
        number = len(wanted)
        if not number:
            return 0
        first = int(wanted[0])
        # What a receive brought is one run nearly always; as bytes it is compared soonest.
        run = np.arange(first, first + number, dtype=wanted.dtype)
        if number <= MOST_TOKENS and wanted.tobytes() == run.tobytes():
            return self._dontneed(RUN.pack(first, number))
        freed, pieces = 0, ranges(wanted.astype(np.int64))
        for begin in range(0, len(pieces), MOST_RANGES):
            part = pieces[begin : begin + MOST_RANGES]
            # Of more tokens than that the kernel looks at the first only.
            for group in np.split(part, _cuts(part["token_count"])):
                freed += self._dontneed(group.tobytes())
        return freed

    def _dontneed(self, group: bytes) -> int:
        """One call for ranges (struct dmabuf_token)."""
        n = LIBC.setsockopt(self.sock.fileno(), socket.SOL_SOCKET, SO_DEVMEM_DONTNEED, group, len(group))
        if n < 0:
            code = ctypes.get_errno()
            raise NetmemError(code, f"SO_DEVMEM_DONTNEED: {_text(code)}")
        return int(n)

    # -- send, and the rest ---------------------------------------------------------------------

    def sendmsg_devmem(
        self, frags: npt.ArrayLike, binding: TxBound | int, *, timeout: float | None = None
    ) -> int:
        """sendmsg(..., MSG_ZEROCOPY) with SCM_DEVMEM_DMABUF: send straight from device memory.

        As ``TcpSocket.sendmsg_devmem``: ``frags`` are FRAGs or (offset, size) pairs in the memory of
        ``binding`` (what ``bind_tx`` made, or its id); how many bytes were taken. Errors: EINVAL for an
        unknown id, or a binding for receiving; ENODEV where the connection does not leave by the binding's
        device; EFAULT beyond the memory; ETIMEDOUT.
        """
        pieces = _pieces(frags)
        if not pieces:
            return 0
        number = binding if isinstance(binding, int) else binding.id
        if not self._zerocopy:
            self.sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
            self._zerocopy = True
        self._set_wait(socket.SO_SNDTIMEO, timeout)
        iov = (Iovec * len(pieces))(
            *(Iovec(*piece) for piece in pieces)
        )  # the base of each is its offset in the dma-buf
        packed = CONTROL.pack(CONTROL_LEN, socket.SOL_SOCKET, SCM_DEVMEM_DMABUF, number)
        control = ctypes.create_string_buffer(packed, len(packed))
        message = Msghdr(iov=iov, iovlen=len(pieces), control=ctypes.addressof(control),
                         controllen=len(packed))  # fmt: skip
        while True:
            n = LIBC.sendmsg(self.sock.fileno(), ctypes.byref(message), MSG_ZEROCOPY | socket.MSG_NOSIGNAL)
            if n >= 0:
                self._calls += 1
                return int(n)
            code = ctypes.get_errno()
            if code == errno.EAGAIN:
                self._timed_out("room to send")
            if code != errno.EINTR:
                raise NetmemError(code, f"sendmsg to {self.peer[0]}:{self.peer[1]}: {_text(code)}")

    def zerocopy_completions(self) -> list[tuple[int, int]]:
        """Calls of sendmsg_devmem that are over since last asked, as ranges (first, last); never waits.

        What MSG_ERRQUEUE tells as SO_EE_ORIGIN_ZEROCOPY.
        """
        found: list[tuple[int, int]] = []
        while True:
            try:
                _, control, _, _ = self.sock.recvmsg(0, 256, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            for _, _, data in control:
                code, origin, first, last = struct.unpack_from("=IBxxxII", data)
                if origin == SO_EE_ORIGIN_ZEROCOPY and not code:
                    found.append((first, last))
                    self._over += last - first + 1

    def zerocopy_done(self) -> bool:
        """True when every call of sendmsg_devmem is known to be over."""
        return self._over >= self._calls

    def wait_zerocopy(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """Until every call of sendmsg_devmem is over; what ``zerocopy_completions`` has then. ETIMEDOUT."""
        limit = self.timeout if timeout is None else timeout
        end = None if limit is None else time.monotonic() + limit
        found, poll = self.zerocopy_completions(), select.poll()
        poll.register(self.sock, 0)  # POLLERR is always told
        while not self.zerocopy_done():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                self._timed_out("acknowledgement")
            poll.poll(None if left is None else left * 1e3)
            more = self.zerocopy_completions()
            if not more and not self.zerocopy_done():
                self._check_error()
            found += more
        return found

    def _check_error(self) -> None:
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise NetmemError(code, f"the connection to {self.peer[0]}:{self.peer[1]}: {_text(code)}")

    def send(self, data: bytes | bytearray | memoryview, *, timeout: float | None = None) -> int:
        """Send by copy; how many bytes were taken. ETIMEDOUT."""
        self._set_wait(socket.SO_SNDTIMEO, timeout)
        try:
            return self.sock.send(data)
        except BlockingIOError:
            self._timed_out("room to send")

    def send_now(self, data: memoryview) -> int:
        """Send by copy what there is room for, without waiting; how many bytes."""
        try:
            return self.sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def gatherer(self) -> KernelGatherer:
        """What readers copy by."""
        return KernelGatherer(self.memories)

    def reader(self) -> Reader:
        """Reads exact amounts, arrays and messages, into memory of the application's own; ``base/reader.py``.

        Arrays are copies: the memory is the NIC's again at once. EOPNOTSUPP for payload in memory that
        was bound by somebody else than the device that this socket is of.
        """
        return Reader(self, self.gatherer())

    def recv(self, size: int, *, timeout: float | None = None) -> bytes:
        """recv(): bytes that came by copy. EFAULT for payload in bound memory."""
        self._set_wait(socket.SO_RCVTIMEO, timeout)
        try:
            return self.sock.recv(size)
        except BlockingIOError:
            self._timed_out("data")

    def sendall(self, data: bytes | bytearray | memoryview, *, timeout: float | None = None) -> None:
        """All of ``data``, by copy; each step within ``timeout``."""
        view = memoryview(data).cast("B")
        self._set_wait(socket.SO_SNDTIMEO, timeout)
        while len(view):
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                self._timed_out("room to send")

    def shutdown(self) -> None:
        """No more will be sent."""
        self.sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Close the socket with a reset (SO_LINGER 0)."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the socket: the kernel takes back all tokens that are still out."""
        self.sock.close()

    def _set_wait(self, option: int, timeout: float | None) -> None:
        """How long the kernel waits from now on: SO_RCVTIMEO or SO_SNDTIMEO, where that changes."""
        limit = self.timeout if timeout is None else timeout
        if self._waits[option] != limit:
            micro = 0 if limit is None else max(1, int(limit * 1e6))  # 0 is for ever
            value = struct.pack("=qq", *divmod(micro, 1_000_000))
            self.sock.setsockopt(socket.SOL_SOCKET, option, value)
            self._waits[option] = limit

    def _timed_out(self, what: str) -> NoReturn:
        text = f"no {what} within the time set: {self.peer[0]}:{self.peer[1]}"
        raise NetmemError(errno.ETIMEDOUT, text)

    def __enter__(self) -> KernelSocket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _pieces(frags: npt.ArrayLike) -> list[tuple[int, int]]:
    """FRAGs or (offset, size) pairs as pairs. EINVAL for anything else."""
    array = np.asarray(frags)
    if array.dtype == FRAG:
        return list(zip(array["frag_offset"].tolist(), array["frag_size"].tolist(), strict=True))
    pairs = array.reshape(-1, 2) if array.size and array.shape[-1] == 2 else array.reshape(-1)
    if pairs.ndim != 2 and array.size:
        raise NetmemError(errno.EINVAL, "pieces are FRAGs, or (offset, size) pairs")
    if array.size and array.min() < 0:
        raise NetmemError(errno.EINVAL, "an offset or a size is negative")
    return [(int(at), int(size)) for at, size in pairs.tolist()] if array.size else []


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
    """A listening socket of the kernel's: ``accept`` hands out KernelSockets. EADDRINUSE and the like.

    ``device``: take connections that come by it only.
    """

    def __init__(
        self, port: int, *, backlog: int = 128, device: str = "",
        memories: Mapping[int, Memory] | None = None,
    ) -> None:  # fmt: skip
        self._memories = memories
        self.sock = socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog
        )
        if device:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        self.port = int(self.sock.getsockname()[1])

    def accept(self, *, timeout: float | None = None) -> KernelSocket:
        """The next connection. ETIMEDOUT."""
        end = None if timeout is None else time.monotonic() + timeout
        self.sock.settimeout(None if end is None else max(end - time.monotonic(), 0.001))
        try:
            sock, address = self.sock.accept()
            return self.made(sock, address[:2])
        except TimeoutError:
            raise NetmemError(
                errno.ETIMEDOUT, f"no connection to port {self.port} within {timeout:g} s"
            ) from None

    def made(self, sock: socket.socket, peer: tuple[str, int]) -> KernelSocket:
        """What an accepted connection becomes."""
        return KernelSocket(sock, peer, memories=self._memories)

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> KernelListener:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
