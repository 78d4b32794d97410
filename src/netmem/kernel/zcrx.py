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
AREA_MASK, PAGE_SHIFT = (1 << 48) - 1, 12
ENTRIES, COMPLETIONS = 64, 8192
MOST_REFILLS = 32768
REFILL = np.dtype([("off", "<u8"), ("len", "<u4"), ("pad", "<u4")])
UNREAD_LEAST, UNREAD_MOST = 64 << 10, 8 << 20
GATHER_LEAST, GATHER_MOST = 64, 256  # completions
NO_TOKENS = np.zeros(0, np.uint32)
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
        self._number = self._last = 0
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
        self._offsets = self._rqes["off"].view(np.int64)

    # -- sockets ----------------------------------------------------------------------------------

    def attach(self, sock: ZcrxSocket) -> int:
        """Begin to receive on a socket; its number."""
        self._number += 1
        self._sockets[self._number] = sock
        return self._number

    def unread_most(self) -> int:
        """Bytes that a socket may have received and not read: what is more waits in its TCP's window."""
        share = self.size // (8 * max(len(self._sockets), 1))  # a page may have a segment only, or less
        return min(max(share, UNREAD_LEAST), UNREAD_MOST)

    def receive(self, number: int, size: int) -> None:
        """One request for the next ``size`` bytes of a socket, as they come (multishot)."""
        fd = self._sockets[number].sock.fileno()
        self.ring.submit(SQE.pack(RECV_ZC, 0, RECV_MULTISHOT, fd, 0, 0, size, 0, number, 0, 0, self.id, 0, 0))

    def wait(self, timeout: float | None) -> bool:
        """Until something came for any socket, and hand it to them; False when ``timeout`` seconds passed."""
        # Of a flow that runs as many are taken at a time as came the last time: Python's cost is by the call.
        least = min(self._last, GATHER_MOST) if self._last >= GATHER_LEAST else 1
        self._last = 0
        if not self.ring.wait(timeout, least):
            return False
        found = self.ring.completions()
        self._last = len(found)
        if self._number == 1:  # there has been one socket only
            self._came(1, found)
            return True
        numbers = found["user_data"]
        for number in np.unique(numbers).tolist():
            self._came(number, found[numbers == number])
        return True

    def _came(self, number: int, cqes: npt.NDArray[Any]) -> None:
        """Of one socket. Only the last completion of a request may be without payload: the next is asked for
        behind it.
        """
        sock, res, more = self._sockets.get(number), int(cqes["res"][-1]), int(cqes["flags"][-1]) & CQE_F_MORE
        payload = cqes if res > 0 else cqes[:-1]
        made = np.empty((len(payload), 3), np.uint64)  # FRAG, in words
        offsets, sizes = made[:, 0], made[:, 1]
        np.bitwise_and(payload["off"], np.uint64(AREA_MASK), out=offsets)
        np.right_shift(offsets, np.uint64(PAGE_SHIFT), out=sizes)
        np.left_shift(sizes, np.uint64(32), out=sizes)
        np.bitwise_or(sizes, payload["res"].astype(np.uint64), out=sizes)
        made[:, 2] = self.id
        if sock is None:  # it was closed meanwhile
            self.refill(offsets.astype(np.int64) >> PAGE_SHIFT)
            return
        if len(payload):
            sock.put(made.view(FRAG)[:, 0])
        if not more:
            sock.ended(-min(res, 0))

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
            offsets = (now << PAGE_SHIFT) | self._area
            first = tail % len(self._rqes)
            straight = min(len(now), len(self._rqes) - first)
            self._offsets[first : first + straight] = offsets[:straight]
            if straight < len(now):
                self._offsets[: len(now) - straight] = offsets[straight:]
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
        self._came: deque[tuple[npt.NDArray[Any], int]] = deque()  # frags, and how many bytes they are
        self._out: deque[npt.NDArray[np.uint32]] = deque()  # tokens of messages that the application has
        self._held = np.zeros(zcrx.pages, np.int32)  # ... and references that are counted by page
        self._parts = np.zeros(zcrx.pages, np.int32)  # ... of which so many are pieces of one
        self._pieces = 0  # of all pages
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
        self._came.append((frags, size))
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
            return DevmemMessage(b"", NO_FRAGS, False, 0)
        frags, size = self._came.popleft()
        if size > bufsize or len(frags) > max_frags:
            frags = self._cut(frags, max(bufsize, 1), max(max_frags, 1))
            size = int(frags["frag_size"].sum())
        self._out.append(frags["frag_token"])
        self._unread -= size
        self._ask()
        return DevmemMessage(b"", frags, False, size)

    def _cut(self, frags: npt.NDArray[Any], bufsize: int, max_frags: int) -> npt.NDArray[Any]:
        """No more than was asked for; the rest comes first the next time. A frag that is too large by itself
        comes in pieces.
        """
        ends = np.cumsum(frags["frag_size"], dtype=np.int64)
        whole = min(int(np.searchsorted(ends, bufsize, side="right")), max_frags)
        if whole == len(frags):
            return frags
        rest = frags[whole:]
        if whole:
            self._later(rest)
            return frags[:whole]
        part, rest = rest[:1].copy(), rest.copy()
        part["frag_size"] = bufsize
        rest["frag_offset"][0] += bufsize
        rest["frag_size"][0] -= bufsize
        self._parts[part["frag_token"][0]] += 1
        self._pieces += 1
        self._later(rest)
        return part

    def _later(self, frags: npt.NDArray[Any]) -> None:
        self._came.appendleft((frags, int(frags["frag_size"].sum())))

    def devmem_dontneed(self, tokens: npt.ArrayLike) -> int:
        """``KernelSocket.devmem_dontneed``, over the refill ring: no system call."""
        wanted = np.asarray(tokens)
        if wanted.ndim == 2:
            wanted = np.concatenate(
                [np.zeros(0, np.int64), *(np.arange(a, a + n) for a, n in wanted.tolist())]
            )
        elif wanted.ndim != 1:
            wanted = wanted.reshape(-1)
        if not len(wanted):
            return 0
        # Messages are given back as they came nearly always; as bytes it is compared soonest.
        first = self._out[0] if self._out and not self._pieces else NO_TOKENS
        if wanted.dtype == first.dtype and wanted.tobytes() == first.tobytes():
            self._zcrx.refill(self._out.popleft().astype(np.int64))
            return len(wanted)
        self._count()
        wanted = wanted.astype(np.int64)
        wanted = wanted[(wanted >= 0) & (wanted < len(self._held))]
        give = np.minimum(np.bincount(wanted, minlength=len(self._held)), self._held)
        return self._give(give)

    def _count(self) -> None:
        """Count what was handed out page by page: it comes back in another way."""
        while self._out:
            np.add.at(self._held, self._out.popleft(), 1)

    def _give(self, give: npt.NDArray[np.int64]) -> int:
        """Give up so many references of each page."""
        self._held -= give.astype(np.int32)
        pieces = np.minimum(give, self._parts)
        self._parts -= pieces.astype(np.int32)
        self._pieces -= int(pieces.sum())
        give = give - pieces
        pages = np.flatnonzero(give)
        self._zcrx.refill(np.repeat(pages, give[pages]))
        return int(give.sum() + pieces.sum())

    def close(self) -> None:
        """Close the socket; the queue's memory gets back what it held, and what nobody has read."""
        if self.sock.fileno() < 0:
            return
        self._zcrx.detach(self._id)
        unread = [frags["frag_token"].astype(np.int64) for frags, _ in self._came]
        self._came.clear()
        self._count()
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
