"""TCP sockets with devmem receive (net/ipv4/tcp.c: tcp_recvmsg_dmabuf; sock.c: SO_DEVMEM_DONTNEED)."""

from __future__ import annotations

import errno

import numpy as np
import numpy.typing as npt

from netmem.base.address import ip_text
from netmem.base.clock import SEC
from netmem.base.errors import ETOOSMALL, NetmemError
from netmem.base.frags import FRAG, NO_FRAGS, DevmemMessage
from netmem.base.reader import Reader
from netmem.inet.poller import Poller
from netmem.inet.tcp import calls
from netmem.inet.tcp import receive as rx
from netmem.inet.tcp.connections import ENDS
from netmem.inet.tcp.machine import Tcp
from netmem.inet.tcp.tcb import MASK32, EntryKind, Flag, TcpState
from netmem.inet.tokens import Tokens, blame_caller, pool_of
from netmem.inet.views import gatherers
from netmem.inet.zerocopy import Completions, Zerocopy, as_ranges
from netmem.memory import sanitizer
from netmem.memory.page_pool import PagePool
from netmem.netdev.binding import TxBinding

OVER = (  # nothing more comes
    TcpState.CLOSED, TcpState.CLOSE_WAIT, TcpState.CLOSING, TcpState.LAST_ACK, TcpState.TIME_WAIT
)  # fmt: skip


class TcpSocket:
    """A connected TCP socket. Calls block up to their ``timeout`` in seconds (None: for ever).

    Errors: TimeoutError; ECONNRESET and the like as the peer did; ENODEV when the NIC is gone; what
    had arrived before stays readable. EBADF after close.
    """

    def __init__(self, poller: Poller, tcp: Tcp, zerocopy: Zerocopy, c: int) -> None:
        self._poller, self._zerocopy, self._c = poller, zerocopy, c
        self._lock = poller.lock
        self._tcp, self._conns = tcp, tcp.conns
        self._dev = self._conns.dev
        self._generation = self._conns.generations[c]
        self._last: dict[str, int] = {}  # statistics, when the row was left
        self._tcb = self._conns.tcbs[c]
        self.peer = (ip_text(self._conns.remote(c)), self._tcb.ports >> 16)
        self.port = self._tcb.ports & 0xFFFF
        try:
            self._tokens = Tokens(self._conns, c)
        except OSError as error:
            self._closed = True
            self._tcp.control.abort(c)
            text = f"no memory for a socket's tokens: {error.strerror}"
            raise NetmemError(error.errno or errno.ENOMEM, text) from None
        self._tcb.tokens_fd = self._tokens.fd
        self._closed = False
        self._completions = Completions()
        self.timeout: float | None = None

    # -- receiving ----------------------------------------------------------------------------

    @property
    def row(self) -> int:
        """Number of the connection in the stack's table, as in ``Stack.activity``."""
        return self._c

    def _has_row(self) -> bool:
        """True while the row of the table is this socket's: after ``close`` another may get it."""
        return not self._poller.closed and self._conns.generations[self._c] == self._generation

    def at_end(self) -> bool:
        """True when nothing more will come: FIN was received, or the connection is over."""
        return self.state() in OVER

    def readable(self) -> bool:
        """True when a receive call would not wait: data, end of stream, or an error."""
        return self._closed or bool(self.queued()) or self.at_end()

    def _wait_readable(self, timeout: float | None) -> bool:
        """True when data is there, False at the end of the stream; raises the socket's error."""
        if not self._tcb.rq_bytes:
            if not self.at_end():
                try:
                    self._poller.wait(
                        self.readable,
                        timeout if timeout is not None else self.timeout,
                        f"data from {self.peer[0]}:{self.peer[1]}",
                    )
                except TimeoutError as error:
                    why = self._conns.why_nothing_comes(self._c)
                    raise TimeoutError(error.errno, f"{error.strerror}{why}") from None
            self._check_open()
            if not self._tcb.rq_bytes:
                self._raise_error()
                return False
        return True

    def _check_open(self) -> None:
        if self._closed:
            raise NetmemError(errno.EBADF, "the socket is closed")

    def _raise_error(self) -> None:
        """Report a pending error once, as SO_ERROR does."""
        error = self._tcb.error
        if error:
            if error == errno.ENODEV and self._poller.gone is not None:
                raise self._poller.gone
            self._tcb.error = 0
            what = ENDS.get(error, "failed")
            raise NetmemError(error, f"{self.peer[0]}:{self.peer[1]} {what}")

    def _head(self) -> tuple[int, int]:
        """Kind and pool handle of what is next in the receive queue; (-1, -1) when it is empty."""
        if not (i := self._tcb.rq_head):
            return -1, -1
        entry = self._conns.entries[i]
        return entry.kind, entry.pool

    def recvmsg_devmem(
        self, bufsize: int = 1 << 30, *, max_frags: int = 256, timeout: float | None = None
    ) -> DevmemMessage:
        """recvmsg(..., MSG_SOCK_DEVMEM): what has arrived, payload by reference.

        Returns linear bytes (data that came with its headers, or is readable anyway) and frags as
        an array of FRAG, at most ``max_frags`` of them and ``bufsize`` bytes together. Linear bytes
        stand before the frags in the stream; a call ends early rather than mix them up. Both empty:
        end of the stream. Each frag's memory is the application's until ``devmem_dontneed`` of its
        token. ETOOSMALL when ``max_frags`` is 0 and a frag is next.
        """
        with self._lock:
            if self._closed:
                self._check_open()
            out = np.empty((max_frags if max_frags > 0 else 0, 3), np.int64)
            if sanitizer.ON:
                blame_caller(self._dev, self._tcb.queue)
            if n := rx.receive_frags(self._tokens.at, out, bufsize):
                return DevmemMessage(b"", np.ndarray(n, FRAG, out))
            if not self._tcb.rq_bytes and not self._wait_readable(timeout):
                return DevmemMessage(b"", NO_FRAGS)
            if self._tokens.record.free < max_frags:  # before anything is taken: it may fail
                self._tokens.reserve(max_frags)
                self._tcb.tokens_fd = self._tokens.fd
            linear, copied = b"", False
            kind, handle = self._head()
            if kind != EntryKind.FRAG:
                copied = kind == EntryKind.COPY  # readable data ends the call: never mixed with frags
                linear = self._copy(bufsize, linear_only=True)
                bufsize -= len(linear)
                kind, handle = self._head()
                if copied or kind != EntryKind.FRAG or bufsize <= 0 or max_frags < 1:
                    return DevmemMessage(linear, NO_FRAGS, copied)
            if max_frags < 1:
                raise NetmemError(ETOOSMALL, "no room for a control message, and a frag is next")
            pool = pool_of(self._dev, handle)
            n = rx.frags_out(self._conns.at, self._c, self._tokens.at, pool.at, out, bufsize)
            return DevmemMessage(linear, np.ndarray(n, FRAG, out))

    def reader(self, device: str = "") -> Reader:
        """Reads exact amounts, arrays and messages, into memory of the application's own; ``base/reader.py``.

        ``device``: where arrays are to be, this host's memory or a GPU's, "cuda:0".
        """
        return Reader(self, *gatherers(self._dev, self._poller.later, device))

    def devmem_dontneed(self, tokens: npt.ArrayLike) -> int:
        """SO_DEVMEM_DONTNEED: give frags back; returns how many tokens were freed.

        ``tokens``: one token or an array of them, or an array of shape (n, 2) of (first, count) ranges.
        Unknown or repeated ones are skipped. All of them are looked at: where the kernel stops after 1024
        tokens or 128 ranges, this goes on.
        """
        with self._lock:
            if self._closed:
                self._check_open()
            freed = self._tokens.dontneed(self._conns, self._c if self._has_row() else -1, tokens)
            self._poller.given_back()
            if self._tokens.record.due:
                self._window_update()
        return freed

    def _window_update(self) -> None:
        self._tokens.record.due = 0
        self._conns.stats.window_updates += 1
        self.push()

    def _copy(self, limit: int, *, linear_only: bool) -> bytes:
        size = min(limit, self._tcb.rq_bytes)
        buffer = bytearray(size)
        return bytes(buffer[: self._copy_into(memoryview(buffer), linear_only=linear_only)])

    def _copy_into(self, buffer: memoryview, *, linear_only: bool = False) -> int:
        done = 0
        array = np.frombuffer(buffer, np.uint8)
        while done < len(array):
            kind, handle = self._head()
            if handle < 0 or (linear_only and kind == EntryKind.FRAG):
                break
            pool = pool_of(self._dev, handle)
            if pool.is_unreadable():
                if done:
                    break
                raise NetmemError(errno.EFAULT, "the payload is unreadable: use recvmsg_devmem")
            to, room = array.ctypes.data + done, len(array) - done
            got = rx.copy_out(self._conns.at, self._c, self._tokens.at, pool.at, to, room, linear_only)
            if pool.record.released:
                pool.flush()
            done += int(got)
            if not got:
                break
        if self._tokens.record.due:
            self._window_update()
        return done

    def recv_into(self, buffer: bytearray | memoryview, *, timeout: float | None = None) -> int:
        """recv() into a buffer: bytes received, 0 at the end. EFAULT for unreadable payload."""
        view = memoryview(buffer).cast("B")
        with self._poller.lock:
            self._check_open()
            if not len(view) or not self._wait_readable(timeout):
                return 0
            return self._copy_into(view)

    def recv(self, size: int, *, timeout: float | None = None) -> bytes:
        """recv(): up to ``size`` bytes, empty at the end. EFAULT for unreadable payload."""
        with self._poller.lock:
            self._check_open()
            if size <= 0 or not self._wait_readable(timeout):
                return b""
            return self._copy(size, linear_only=False)

    # -- sending ------------------------------------------------------------------------------

    def send(self, data: bytes | bytearray | memoryview, *, timeout: float | None = None) -> int:
        """send(): bytes taken, at least one. EPIPE after shutdown, the socket's error otherwise."""
        view = np.frombuffer(memoryview(data).cast("B"), np.uint8)
        with self._poller.lock:
            self._check_open()
            if not len(view):
                return 0
            self._wait_room(timeout)
            n = calls.write(self._conns.at, self._c, view.ctypes.data, len(view))
            self.push()
            return n

    def _wait_room(self, timeout: float | None) -> None:
        """Until the send buffer has room; EPIPE after shutdown, the socket's error otherwise."""
        if not self.can_send():
            self._fail_send()
        self._tcp.send_buffer(self._c)
        while not self.room():
            self._poller.wait(
                lambda: self._closed or self.writable(),
                timeout if timeout is not None else self.timeout,
                f"room to send to {self.peer[0]}:{self.peer[1]}",
            )
            self._check_open()
            if not self.can_send():
                self._fail_send()
            self._tcp.send_buffer(self._c)  # once empty, it may have gone to another connection

    def sendmsg_devmem(
        self, frags: npt.ArrayLike, binding: TxBinding | int, *, timeout: float | None = None
    ) -> int:
        """sendmsg(..., MSG_ZEROCOPY) with SCM_DEVMEM_DMABUF: send straight from device memory.

        ``frags``: an array of FRAG, or (offset, size) pairs, in the memory of ``binding`` (what ``bind_tx``
        made, or its id). Returns the bytes taken, which may be fewer than all, as far as the send buffer's
        size goes; waits for room for at least one. Calls are numbered from 0: the memory may be written
        anew when ``zerocopy_completions`` has named the call. Errors: EINVAL for an unknown id or a binding
        for receiving; ENODEV for another device's; EFAULT beyond the memory; ENOBUFS; EPIPE and the
        socket's error as ``send``.
        """
        zerocopy = self._zerocopy
        with self._poller.lock:
            self._check_open()
            bound = zerocopy.check(binding)
            ranges = as_ranges(frags, bound.size)
            if not ranges:
                return 0
            self._wait_room(timeout)
            taken = zerocopy.send(self._c, bound, ranges, self.room(), self._completions)
            self.push()
            return taken

    def zerocopy_completions(self) -> list[tuple[int, int]]:
        """Calls of sendmsg_devmem that are over since last asked, as ranges (first, last); never waits.

        What MSG_ERRQUEUE tells as SO_EE_ORIGIN_ZEROCOPY. The peer has acknowledged the bytes, or never
        will, and the NIC reads them no more.
        """
        with self._poller.lock:
            return self._completions.take()

    def writable(self) -> bool:
        """True when a send call would not wait: there is room, or an error to tell of."""
        if self._closed or not self.can_send():
            return True
        return not self._tcb.sb_size or self.room() > 0

    def zerocopy_done(self) -> bool:
        """True when every call of sendmsg_devmem is over."""
        return not self._completions.pending

    def wait_zerocopy(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """Until every call of sendmsg_devmem is over; what ``zerocopy_completions`` has then."""
        what = f"{self.peer[0]}:{self.peer[1]}'s acknowledgement"
        self._poller.wait(self.zerocopy_done, timeout, what)
        return self.zerocopy_completions()

    def push(self) -> None:
        """Send what windows allow now, without waiting for the next poll."""
        self._poller.stamp()
        self._tcp.control.output(self._c)
        self._dev.xmit()

    def can_send(self) -> bool:
        """True while data may be sent: connected, and not shut down."""
        if self._closed or self.state() not in (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT):
            return False
        return not self._tcb.flags & Flag.FIN_QUEUED

    def room(self) -> int:
        """Free bytes of the send buffer; 0 while there is none: ``writable`` tells whether a call waits."""
        return self._tcb.sb_size - (self._tcb.sb_tail - self._tcb.sb_head)

    def _fail_send(self) -> None:
        self._raise_error()
        raise NetmemError(errno.EPIPE, f"the connection to {self.peer[0]}:{self.peer[1]} is closed")

    def send_window(self) -> memoryview:
        """The next contiguous free part of the send buffer, to be filled and then committed.

        Lets a caller receive from elsewhere straight into the send buffer. May be empty. Whoever has
        nothing to put there commits 0 bytes.
        """
        with self._poller.lock:
            self._check_open()
            if not self.can_send():
                self._fail_send()
            tcp, c = self._tcp, self._c
            tcp.send_buffer(c)
            tx = self._dev.tx
            at = self._tcb.sb_tail % self._tcb.sb_size
            start = self._tcb.sb_offset + at
            size = min(self.room(), self._tcb.sb_size - at)
            self._conns.set_flag(c, Flag.FILLING)
            return tx.region.bytes[start : start + size].data

    def commit(self, n: int) -> None:
        """``n`` bytes of ``send_window`` were filled: send them; the view is not to be written any more."""
        with self._poller.lock:
            self._check_open()
            self._conns.clear_flag(self._c, Flag.FILLING)
            if n:
                self._tcb.sb_tail += n
                self.push()

    def sendall(self, data: bytes | bytearray | memoryview, *, timeout: float | None = None) -> None:
        """sendall(): all of ``data`` into the send buffer, each step within ``timeout``."""
        view = memoryview(data).cast("B")
        while len(view):
            view = view[self.send(view, timeout=timeout) :]

    # -- options ------------------------------------------------------------------------------

    def set_keepalive(self, idle: float | None, *, interval: float = 75.0, count: int = 9) -> None:
        """SO_KEEPALIVE: probe a peer that was silent for ``idle`` seconds; None: never.

        ``interval`` seconds between probes (TCP_KEEPINTVL), of which ``count`` may go unanswered
        (TCP_KEEPCNT) before the connection ends with ETIMEDOUT.
        """
        with self._poller:
            self._check_open()
            self._tcp.timers.set_keepalive(self._c, int((idle or 0) * SEC), int(interval * SEC), count)

    def set_user_timeout(self, seconds: float | None) -> None:
        """TCP_USER_TIMEOUT (RFC 5482): how long sent data may stay unacknowledged; None: the default."""
        with self._poller.lock:
            self._check_open()
            self._tcb.user_timeout = int((seconds or 0) * SEC)

    def set_nodelay(self, on: bool = True) -> None:
        """TCP_NODELAY: send short segments at once."""
        with self._poller.lock:
            self._check_open()
            (self._conns.set_flag if on else self._conns.clear_flag)(self._c, Flag.NODELAY)
            self.push()

    # -- state and end ------------------------------------------------------------------------

    def wait_connected(self, timeout: float | None) -> None:
        """Until the handshake is over; raises what went wrong."""
        with self._poller.lock:
            self._dev.xmit()
        self._poller.wait(
            lambda: self._tcb.state not in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED),
            timeout,
            f"the connection to {self.peer[0]}:{self.peer[1]}",
        )
        self._raise_error()

    def shutdown(self) -> None:
        """shutdown(SHUT_WR): FIN after what was sent; receiving goes on."""
        with self._poller:
            self._check_open()
            self._tcp.shutdown(self._c)
            self._dev.xmit()

    def state(self) -> int:
        """The connection's state, a TcpState (RFC 9293, 3.3.2); CLOSED once it is gone."""
        return self._tcb.state if self._has_row() else TcpState.CLOSED

    def queued(self) -> int:
        """Payload bytes that can be received without waiting."""
        return self._tcb.rq_bytes if not self._closed and self._has_row() else 0

    def drained(self) -> bool:
        """True when the peer has acknowledged all that was sent, or nothing more can be."""
        tcb = self._tcb
        return self.state() == TcpState.CLOSED or (tcb.sb_head == tcb.sb_tail and tcb.snd_una == tcb.snd_nxt)

    def acknowledged(self) -> int:
        """Payload bytes that were sent and that the peer has acknowledged."""
        return self.statistics()["acknowledged"]

    def check_error(self) -> None:
        """Raise the socket's error, if there is one (SO_ERROR); it is told once."""
        with self._poller.lock:
            self._check_open()
            self._raise_error()

    def wait_drained(self, timeout: float | None = None) -> None:
        """Until the peer has acknowledged all that was sent (SO_LINGER's wait)."""
        self._poller.wait(self.drained, timeout, f"{self.peer[0]}:{self.peer[1]}'s acknowledgement")

    def close(self) -> None:
        """close(): FIN (RST with data unread); queued payload and all tokens are given back."""
        self._end(abort=False)

    def abort(self) -> None:
        """Close with RST at once."""
        self._end(abort=True)

    def _end(self, *, abort: bool) -> None:
        with self._poller:
            if self._closed:
                return
            self._last = {**self.statistics(), "queued": 0, "tokens": 0}
            self._closed = True
            self._poller.changed()
            tokens = self._tokens.all()
            if len(tokens):
                self._tokens.give_back(self._conns, self._c if self._has_row() else -1, tokens)
                self._poller.given_back()
            self._tokens.close()
            if self._has_row():
                self._tcb.tokens_fd = 0
                if abort:
                    self._tcp.control.abort(self._c)
                else:
                    self._tcp.close(self._c)
                if self._dev.running:
                    self._dev.xmit()

    def statistics(self) -> dict[str, int]:
        """Bytes in, out and acknowledged, queued, tokens held, windows, round trip in ns.

        After ``close`` what it was then.
        """
        if self._closed or not self._has_row():
            return self._last
        return {
            "bytes_in": self._tcb.bytes_in,
            "bytes_out": self._tcb.bytes_out,
            "acknowledged": self._tcb.sb_head,
            "queued": self._tcb.rq_bytes,
            "tokens": self._tokens.held(),
            "window": (self._tcb.rcv_adv - self._tcb.rcv_nxt) & MASK32,
            "peer_window": self._tcb.snd_wnd,
            "cwnd": self._tcb.cwnd,
            "srtt_ns": self._tcb.srtt,
        }

    def pool(self) -> PagePool | None:
        """The payload pool of the queue that the flow arrives on."""
        return self._dev.rx_queues[self._tcb.queue].pool

    def __enter__(self) -> TcpSocket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
