"""TCP received through io_uring's zero-copy receive (zcrx), with the calls of devmem sockets.

A queue's memory belongs to a ring. Each completion is a piece of payload in it; what the application is done
with goes back over the refill ring, page by page. A ring belongs to the thread that made it, and so do its
sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import struct
import time
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from netmem.base.errors import NetmemError
from netmem.base.frags import FRAG, NO_FRAGS, DevmemMessage
from netmem.kernel.devmem import LINEAR_MOST, MOST_FRAGS, KernelListener, KernelSocket
from netmem.kernel.gather import Memory
from netmem.kernel.io_uring import CQE_F_MORE, Ring, words
from netmem.kernel.netdev_family import NetdevFamily

REGISTER_ZCRX_IFQ = 32
RECV_ZC, RECV_MULTISHOT = 58, 1 << 1
AREA_DMABUF, REGION_USER = 1, 1
AREA_SHIFT, PAGE_SHIFT = 48, 12
ENTRIES, COMPLETIONS = 64, 8192
MOST_REFILLS = 32768
REFILL = np.dtype([("off", "<u8"), ("len", "<u4"), ("pad", "<u4")])
UNREAD_LEAST, UNREAD_MOST = 64 << 10, 1 << 20
LET_GO_S = 5.0  # for the kernel to give a queue back after the ring was closed
AREA = struct.Struct("=QQQII16x")  # struct io_uring_zcrx_area_reg
REGION = struct.Struct("=QQIIQ32x")  # struct io_uring_region_desc
IFQ = struct.Struct("=IIIIQQ32xIIQ16x")  # struct io_uring_zcrx_ifq_reg
OFFSETS_AT, ID_AT, TOKEN_AT = 32, 64, 16
SQE = struct.Struct("=BBHiQQIIQHHIQQ")


class Zcrx:
    """A dma-buf as the memory of receive queue ``queue`` (struct io_uring_zcrx_ifq_reg). ``id``: of the zcrx.

    Errors: the kernel's, which come without text: those of bind-rx's rules from "the queue is not leased" on;
    EPERM without CAP_NET_ADMIN; EINVAL, EOPNOTSUPP on kernels that know no dma-buf areas (before 6.16).
    """

    def __init__(self, ifindex: int, queue: int, memory: Memory) -> None:
        self.ifindex, self.queues, self.memory, self.size = ifindex, [queue], memory, memory.size
        self.ring = Ring(ENTRIES, COMPLETIONS)
        try:
            self._register(ifindex, queue, memory)
        except BaseException:
            self.ring.close()
            raise
        self._sockets: dict[int, ZcrxSocket] = {}
        self._number = 0
        self._late: deque[npt.NDArray[np.int64]] = deque()  # pages that the refill ring had no room for

    def _register(self, ifindex: int, queue: int, memory: Memory) -> None:
        self.pages = memory.size >> PAGE_SHIFT
        entries = min(1 << (self.pages - 1).bit_length(), MOST_REFILLS)
        size = mmap.PAGESIZE + entries * REFILL.itemsize
        self._region = mmap.mmap(-1, size, mmap.MAP_SHARED)
        at = ctypes.addressof(ctypes.c_char.from_buffer(self._region))
        area = ctypes.create_string_buffer(AREA.pack(0, memory.size, 0, AREA_DMABUF, memory.fd), AREA.size)
        region = ctypes.create_string_buffer(REGION.pack(at, size, REGION_USER, 0, 0), REGION.size)
        request = ctypes.create_string_buffer(
            IFQ.pack(ifindex, queue, entries, 0, ctypes.addressof(area), ctypes.addressof(region), 0, 0, 0),
            IFQ.size,
        )
        code = self.ring.register(REGISTER_ZCRX_IFQ, request)
        if code:
            raise NetmemError(code, f"zero-copy receive on queue {queue} is refused: {os.strerror(code)}")
        head, tail, rqes = struct.unpack_from("=III", request, OFFSETS_AT)
        (entries,) = struct.unpack_from("=I", request, 8)
        (self.id,) = struct.unpack_from("=I", request, ID_AT)
        (self._area,) = struct.unpack_from("=Q", area, TOKEN_AT)
        self._head, self._tail = words(self._region, head), words(self._region, tail)
        self._rqes = np.frombuffer(self._region, REFILL, entries, rqes)

    # -- sockets ----------------------------------------------------------------------------------

    def attach(self, sock: ZcrxSocket) -> int:
        """Begin to receive on a socket; its number."""
        self._number += 1
        self._sockets[self._number] = sock
        return self._number

    def unread_most(self) -> int:
        """Bytes that a socket may have received and not read: what is more waits in its TCP's window."""
        share = self.size // (2 * max(len(self._sockets), 1))
        return min(max(share, UNREAD_LEAST), UNREAD_MOST)

    def receive(self, number: int, size: int) -> None:
        """One request for the next ``size`` bytes of a socket, as they come (multishot)."""
        fd = self._sockets[number].sock.fileno()
        self.ring.submit(SQE.pack(RECV_ZC, 0, RECV_MULTISHOT, fd, 0, 0, size, 0, number, 0, 0, self.id, 0, 0))

    def wait(self, timeout: float | None) -> bool:
        """Until something came for any socket, and hand it to them; False when ``timeout`` seconds passed."""
        if not self.ring.wait(timeout):
            return False
        found = self.ring.completions()
        numbers = found["user_data"]
        for number in [int(numbers[0])] if (numbers == numbers[0]).all() else np.unique(numbers).tolist():
            self._came(number, found[numbers == number])
        return True

    def _came(self, number: int, cqes: npt.NDArray[Any]) -> None:
        sock = self._sockets.get(number)
        payload = cqes[cqes["res"] > 0]
        frags = np.zeros(len(payload), FRAG)
        frags["frag_offset"] = payload["off"] & ((1 << AREA_SHIFT) - 1)
        frags["frag_size"], frags["dmabuf_id"] = payload["res"], self.id
        frags["frag_token"] = frags["frag_offset"] >> PAGE_SHIFT
        if sock is None:  # it was closed meanwhile
            self.refill(frags["frag_token"].astype(np.int64))
            return
        if len(frags):
            sock.put(frags)
        last = cqes[-1]
        if not last["flags"] & CQE_F_MORE:
            sock.ended(-min(int(last["res"]), 0))

    def detach(self, number: int) -> None:
        """No more of a socket's is received."""
        if self._sockets.pop(number, None) is not None and self.ring.fd >= 0:
            self.ring.cancel(number)

    # -- memory -----------------------------------------------------------------------------------

    def refill(self, pages: npt.NDArray[np.int64]) -> None:
        """Give references to pages back, as many as there are in the list."""
        if len(pages):
            self._late.append(pages)
        while self._late:
            pages = self._late.popleft()
            tail = int(self._tail[0])
            room = len(self._rqes) - ((tail - int(self._head[0])) & 0xFFFFFFFF)
            now = pages[:room]
            places = (tail + np.arange(len(now))) % len(self._rqes)
            self._rqes["off"][places] = now.astype(np.uint64) << np.uint64(PAGE_SHIFT) | np.uint64(self._area)
            self._tail[0] = (tail + len(now)) & 0xFFFFFFFF
            if len(now) < len(pages):
                self._late.appendleft(pages[room:])
                return

    def close(self) -> None:
        """End it; returns when the queue has ordinary pages again, which the kernel does on its own time."""
        for number, sock in list(self._sockets.items()):
            with contextlib.suppress(NetmemError):
                self.detach(number)
            sock.ended(errno.EBADF)
        self.ring.close()
        end = time.monotonic() + LET_GO_S
        with NetdevFamily() as family:
            while time.monotonic() < end and any(
                "io_uring" in one
                for one in family.queue_get()
                if one["ifindex"] == self.ifindex and one["type"] == 0 and one["id"] in self.queues
            ):
                time.sleep(0.02)

    def __enter__(self) -> Zcrx:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class ZcrxSocket(KernelSocket):
    """A connection whose payload comes through a ring; the calls of ``KernelSocket``.

    Tokens are numbers of pages: one that occurs twice is to be given back twice.
    """

    def __init__(self, zcrx: Zcrx, sock: socket.socket, peer: tuple[str, int] | None = None) -> None:
        super().__init__(sock, peer, memories={zcrx.id: zcrx.memory})
        self._zcrx = zcrx
        self._came: deque[npt.NDArray[Any]] = deque()
        self._held = np.zeros(zcrx.pages, np.int32)  # references that the application has
        self._parts = np.zeros(zcrx.pages, np.int32)  # ... of which so many are pieces of one
        self._code: int | None = None
        self._unread = self._asked = 0  # bytes that wait here, and that the request is still for
        self._asking = False
        self._id = zcrx.attach(self)
        self._ask()

    def _ask(self) -> None:
        """Have more received, unless enough is unread: a request that goes on for ever would let a socket
        that nobody reads take all memory."""
        most = self._zcrx.unread_most()
        if not self._asking and self._code is None and self._unread <= most // 2:
            self._asked, self._asking = most - self._unread, True
            self._zcrx.receive(self._id, self._asked)

    def put(self, frags: npt.NDArray[Any]) -> None:
        """For the ring: payload came."""
        size = int(frags["frag_size"].sum())
        self._unread, self._asked = self._unread + size, self._asked - size
        self._came.append(frags)
        self.tell()

    def ended(self, code: int) -> None:
        """For the ring: the request is over; the errno, or 0."""
        self._asking = False
        if code not in (0, errno.ENOSPC) or (not code and self._asked > 0):
            self._code = code  # an error, or the end: less came than was asked for
            self.tell()
        else:
            self._ask()  # the kernel had no room for completions, or all that was asked for has come

    def wait_fd(self) -> int:
        """KernelSocket.wait_fd: the ring's, which is everybody's."""
        return self._zcrx.ring.event_fd

    def has_ready(self) -> bool:
        """True for payload that came and was not handed out yet, the end, or an error."""
        return bool(self._came) or self._code is not None

    def readable(self) -> bool:
        """True when recvmsg_devmem would not wait."""
        if not self.has_ready():
            self._zcrx.wait(0)
        return self.has_ready()

    def recvmsg_devmem(
        self, bufsize: int = LINEAR_MOST, *, max_frags: int = MOST_FRAGS, timeout: float | None = None
    ) -> DevmemMessage:
        """``KernelSocket.recvmsg_devmem``. ENOMEM when a segment came that the NIC had not split."""
        limit = self.timeout if timeout is None else timeout
        end = None if limit is None else time.monotonic() + limit
        while not self.has_ready():
            left = None if end is None else max(end - time.monotonic(), 0.0)
            if not self._zcrx.wait(left) and left is not None and time.monotonic() >= (end or 0.0):
                self._timed_out("data")
        if not self._came:
            if self._code:
                raise NetmemError(
                    self._code, f"from {self.peer[0]}:{self.peer[1]}: {os.strerror(self._code)}"
                )
            return DevmemMessage(b"", NO_FRAGS)
        frags = self._cut(self._came.popleft(), max(bufsize, 1), max(max_frags, 1))
        np.add.at(self._held, frags["frag_token"], 1)
        self._unread -= int(frags["frag_size"].sum())
        self._ask()
        return DevmemMessage(b"", frags)

    def _cut(self, frags: npt.NDArray[Any], bufsize: int, max_frags: int) -> npt.NDArray[Any]:
        """No more than was asked for; the rest comes first the next time."""
        if len(frags) > max_frags:
            self._came.appendleft(frags[max_frags:])
            frags = frags[:max_frags]
        ends = np.cumsum(frags["frag_size"], dtype=np.int64)
        if int(ends[-1]) <= bufsize:
            return frags
        whole = int(np.searchsorted(ends, bufsize, side="right"))
        rest = frags[whole:].copy()
        frags = frags[: whole + 1].copy()
        part = bufsize - (int(ends[whole - 1]) if whole else 0)
        if part:  # a piece of this one now, and the other piece later
            rest["frag_offset"][0] += part
            rest["frag_size"][0] -= part
            frags["frag_size"][-1] = part
            self._parts[frags["frag_token"][-1]] += 1
        else:
            frags = frags[:-1]
        self._came.appendleft(rest)
        return frags

    def devmem_dontneed(self, tokens: npt.ArrayLike) -> int:
        """``KernelSocket.devmem_dontneed``, over the refill ring: no system call."""
        wanted = np.asarray(tokens)
        if wanted.ndim == 2:
            wanted = np.concatenate(
                [np.zeros(0, np.int64), *(np.arange(a, a + n) for a, n in wanted.tolist())]
            )
        wanted = wanted.reshape(-1).astype(np.int64)
        wanted = wanted[(wanted >= 0) & (wanted < len(self._held))]
        if not len(wanted):
            return 0
        give = np.minimum(np.bincount(wanted, minlength=len(self._held)), self._held)
        return self._give(give)

    def _give(self, give: npt.NDArray[np.int64]) -> int:
        """Give up so many references of each page."""
        self._held -= give.astype(np.int32)
        pieces = np.minimum(give, self._parts)
        self._parts -= pieces.astype(np.int32)
        give = give - pieces
        pages = np.flatnonzero(give)
        self._zcrx.refill(np.repeat(pages, give[pages]))
        return int(give.sum() + pieces.sum())

    def close(self) -> None:
        """Close the socket; the queue's memory gets back what it held, and what nobody has read."""
        if self.sock.fileno() < 0:
            return
        self._zcrx.detach(self._id)
        unread = [frags["frag_token"].astype(np.int64) for frags in self._came]
        self._came.clear()
        for tokens in unread:
            self._held += np.bincount(tokens, minlength=len(self._held)).astype(np.int32)
        self._give(self._held.astype(np.int64))
        if self._zcrx.ring.fd >= 0:
            self._zcrx.wait(0)  # what was under way when it was detached goes back, too
        super().close()


class ZcrxListener(KernelListener):
    """A listening socket whose connections are received through a ring."""

    def __init__(self, zcrx: Zcrx, port: int, *, backlog: int = 128, device: str = "") -> None:
        super().__init__(port, backlog=backlog, device=device)
        self._zcrx = zcrx

    def made(self, sock: socket.socket, peer: tuple[str, int]) -> KernelSocket:
        """KernelListener.made."""
        return ZcrxSocket(self._zcrx, sock, peer)
