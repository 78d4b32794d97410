"""TCP's opening of connections from outside: listeners, SYNs, cookies, and what belongs to nobody.

What the state machine (``machine``) goes on from.
"""

from __future__ import annotations

import ctypes
import errno

from netmem.base.clock import MS
from netmem.base.errors import NetmemError
from netmem.base.formats import (
    ACK,
    FIN,
    OPT_END,
    OPT_MSS,
    OPT_NOP,
    OPT_SACK_OK,
    OPT_WSCALE,
    RST,
    SYN,
    TCP_HLEN,
    is_ip4,
)
from netmem.inet.tcp import cookies
from netmem.inet.tcp import output as o
from netmem.inet.tcp import tcb as T
from netmem.inet.tcp import window as w
from netmem.inet.tcp.answer import answer
from netmem.inet.tcp.connections import MSS_DEFAULT, Listener
from netmem.inet.tcp.cookies import Offer
from netmem.inet.tcp.timers import Timed
from netmem.netdev.batch import RxBatch
from netmem.netdev.words import (
    B_ACK,
    B_HDR,
    B_L4,
    B_LEN,
    B_LIN,
    B_PORTS,
    B_SEQ,
    B_TFLAGS,
    B_TS,
    B_TSECR,
    B_TSVAL,
    B_WND,
)

MSS_LEAST = 48
REUSE_GAP = 128_000
HALF_OPEN_PART = 4  # half-open connections of a listener: at most such a part of the table


class Opening(Timed):
    """Connections, and how others open them."""

    floor: int | None = None  # of the initial sequence number of a connection that ends a TIME-WAIT

    def listen(self, port: int, backlog: int) -> Listener:
        """OPEN, passive. EADDRINUSE when the port has a listener."""
        if port in self.listeners:
            raise NetmemError(errno.EADDRINUSE, f"port {port} is in use")
        backlog = max(1, backlog)
        most = min(backlog, max(1, self.config.connections // HALF_OPEN_PART))
        listener = Listener(self._next_listener, port, backlog, most)
        self._next_listener += 1
        self.listeners[port] = listener
        return listener

    def unlisten(self, listener: Listener) -> None:
        """CLOSE of a listener: connections nobody accepted are reset."""
        if not listener.closed:
            listener.closed = True
            del self.listeners[listener.port]
            waiting = [*listener.half_open, *listener.ready]
            listener.half_open.clear()
            listener.ready.clear()
            for c in waiting:
                self.abort(c)

    def no_connection(self, laddr: int, raddr: int, batch: RxBatch, i: int) -> int:
        """A segment for no connection (3.10.7.1 and 2): a row for it to go on with, or -1."""
        b = batch.rows.data
        flags = b[i, B_TFLAGS]
        listener = self.listeners.get(b[i, B_PORTS] & 0xFFFF)
        if flags & RST:
            return -1
        if listener is not None and flags & (SYN | ACK) == ACK and self.cookies.expected(self.now):
            irs = (b[i, B_SEQ] - 1) & T.MASK32
            mss = self._cookie_mss(laddr, raddr, b, i, irs)
            # What is no cookie may be the second segment of a peer whose first was lost: no reset.
            return self._cookie_back(listener, laddr, raddr, b, i, mss, irs) if mss else -1
        if listener is None or flags & ACK or not flags & SYN:
            self.count(T.S_NO_SOCKET)
            self.reset_for(batch, i)
        elif flags & FIN:
            self.count(T.S_SYN_DROPPED)
        else:
            self._passive_open(listener, laddr, raddr, batch, i)
        return -1

    def reset_for(self, batch: RxBatch, i: int) -> None:
        """RST for a segment that belongs to nobody (RFC 9293, 3.10.7.1)."""
        b = batch.rows.data
        length = b[i, B_LEN] + bool(b[i, B_TFLAGS] & SYN) + bool(b[i, B_TFLAGS] & FIN)
        if b[i, B_TFLAGS] & ACK:
            sent = self._answer(batch, i, b[i, B_ACK], 0, RST)
        else:
            sent = self._answer(batch, i, 0, (b[i, B_SEQ] + length) & T.MASK32, RST | ACK)
        if sent:
            self.count(T.S_OUT_RST)

    def _answer(
        self, batch: RxBatch, i: int, seq: int, ack: int, flags: int, *,
        window: int = 0, mss: int = 0, scale: int = -1, sack: bool = False, stamp: int = -1, echo: int = 0,
    ) -> bool:  # fmt: skip
        """A segment of no connection, back to whoever sent packet ``i``."""
        tx = self.dev.tx
        return bool(
            answer(
                self.g, tx.meta, tx.rows, batch.rows, i, self.ip.mac, seq, ack, flags,
                window, mss, scale, sack, stamp, echo,
            )
        )  # fmt: skip

    def _cookie(self, laddr: int, raddr: int, batch: RxBatch, i: int) -> None:
        """The backlog is full: answer a SYN with a cookie, and remember nothing (RFC 4987, 3.6)."""
        b = batch.rows.data
        offer = self._offer(b, i)
        seq, stamp = b[i, B_SEQ], -1
        iss = self.cookies.make(offer, laddr, raddr, b[i, B_PORTS], seq, self.now)
        if offer.stamp:
            stamp = cookies.stamp(offer, (self.now // MS + self.gv[T.G_TS_BASE]) & T.MASK32)
        room = self.ip.mtu(raddr) - (40 if is_ip4(raddr) else 60)
        told = offer if offer.stamp else cookies.offered(offer.mss, None)  # the rest travels in the timestamp
        sent = self._answer(
            batch, i, iss, (seq + 1) & T.MASK32, SYN | ACK, window=min(cookies.WINDOW, self.config.rcvbuf),
            mss=min(self.config.mss or room, room), scale=self.scale if told.scale >= 0 else -1,
            sack=told.sack, stamp=stamp, echo=b[i, B_TSVAL],
        )  # fmt: skip
        if sent:
            self.count(T.S_COOKIES_OUT)

    def _cookie_mss(self, laddr: int, raddr: int, b: memoryview, i: int, irs: int) -> int:
        """The MSS of the cookie that an ACK brings back to a SYN with number ``irs``, 0 when it is none."""
        cookie = (b[i, B_ACK] - 1) & T.MASK32
        mss = self.cookies.mss(cookie, laddr, raddr, b[i, B_PORTS], irs, self.now)
        if not mss:
            self.count(T.S_COOKIES_BAD)
        return mss

    def cookie_instead(self, c: int, laddr: int, raddr: int, b: memoryview, i: int) -> int:
        """The row to go on with, or -1, for a segment to a half-open connection.

        Another than ``c`` when its ACK brings back a cookie: the network had doubled the SYN, one copy was
        answered with a cookie, the other, when the backlog had room again, with a connection of other
        numbers. The peer goes on with what it had first.
        """
        ack, v = b[i, B_ACK], self.v
        if b[i, B_TFLAGS] & (SYN | ACK | RST) != ACK or not self.cookies.expected(self.now):
            return c
        if T.seq_lt(v[c, T.SND_UNA], ack) and T.seq_le(ack, v[c, T.SND_NXT]):
            return c
        listener = next((one for one in self.listeners.values() if c in one.half_open), None)
        irs = v[c, T.IRS]
        mss = self._cookie_mss(laddr, raddr, b, i, irs) if listener is not None else 0
        if listener is None or not mss:
            return c
        self.closed(c, 0)
        return self._cookie_back(listener, laddr, raddr, b, i, mss, irs)

    def _cookie_back(
        self, listener: Listener, laddr: int, raddr: int, b: memoryview, i: int, mss: int, irs: int
    ) -> int:
        """An ACK of a cookie makes the connection that its SYN asked for, half open; its row, or -1."""
        if len(listener.ready) >= listener.backlog:
            self.count(T.S_BACKLOG_FULL)
            return -1
        try:
            c = self.new_row(laddr, raddr, b[i, B_PORTS], self.gv[T.G_QUEUE])
        except NetmemError:
            return -1
        v = self.v
        self.cookies.use((b[i, B_ACK] - 1) & T.MASK32, raddr, b[i, B_PORTS], self.gv[T.G_NOW])
        self.set_initial_sequence(c, (b[i, B_ACK] - 1) & T.MASK32)
        v[c, T.SND_NXT], v[c, T.SND_WL2] = b[i, B_ACK], b[i, B_ACK]
        offer = cookies.offered(mss, b[i, B_TSECR] if b[i, B_TS] else None)
        self._take_offer(c, offer, b, i, irs)
        v[c, T.RCV_ADV] = (v[c, T.RCV_NXT] + min(cookies.WINDOW, v[c, T.RCV_BUF])) & T.MASK32
        self._half_open(listener, c)
        self.count(T.S_COOKIES_IN)
        return c

    def _half_open(self, listener: Listener, c: int) -> None:
        self.v[c, T.LISTENER] = listener.id
        self.enter(c, T.SYN_RECEIVED)
        listener.half_open.append(c)

    def _passive_open(
        self, listener: Listener, laddr: int, raddr: int, batch: RxBatch, i: int
    ) -> None:
        """A SYN for a listener (3.10.7.2)."""
        b = batch.rows.data
        if len(listener.ready) >= listener.backlog:
            self.count(T.S_BACKLOG_FULL)
            return
        if len(listener.half_open) >= listener.most_half_open or not self.has_row():
            self._cookie(laddr, raddr, batch, i)
            return
        try:
            c = self.new_row(laddr, raddr, b[i, B_PORTS], self.gv[T.G_QUEUE])
        except NetmemError:
            return
        v = self.v
        if self.floor is not None:  # beyond what the old connection sent (RFC 1122, 4.2.2.13)
            if T.seq_lt(v[c, T.ISS], self.floor + REUSE_GAP):
                self.set_initial_sequence(c, (self.floor + REUSE_GAP) & T.MASK32)
            self.floor = None
        self.read_syn(c, b, i)
        self._half_open(listener, c)
        self.count(T.S_PASSIVE)
        self._send_syn(c)

    def _offer(self, b: memoryview, i: int) -> Offer:
        """The options of a SYN (3.7.1, RFC 7323, RFC 2018)."""
        mss, scale, sack_ok = MSS_DEFAULT, -1, False
        tcp = b[i, B_HDR] + b[i, B_L4] + TCP_HLEN
        options = ctypes.string_at(tcp, max(0, b[i, B_LIN] - b[i, B_L4] - TCP_HLEN))
        at = 0
        while at < len(options) and options[at] != OPT_END:
            if options[at] == OPT_NOP:
                at += 1
                continue
            size = options[at + 1] if at + 1 < len(options) else 0
            if size < 2 or at + size > len(options):
                self.count(T.S_BAD_OPTIONS)
                break
            if options[at] == OPT_MSS and size == 4:
                mss = max(64, int.from_bytes(options[at + 2 : at + 4], "big"))
            elif options[at] == OPT_WSCALE and size == 3:
                scale = min(options[at + 2], 14)
            elif options[at] == OPT_SACK_OK and size == 2:
                sack_ok = True
            at += size
        return Offer(mss, scale, sack_ok, bool(b[i, B_TS]))

    def read_syn(self, c: int, b: memoryview, i: int) -> None:
        """Take the peer's initial sequence number and options."""
        v = self.v
        v[c, T.SND_WL1], v[c, T.SND_WL2] = b[i, B_SEQ], b[i, B_ACK]
        v[c, T.SND_WND] = v[c, T.MAX_SND_WND] = b[i, B_WND]
        self._take_offer(c, self._offer(b, i), b, i, b[i, B_SEQ])
        self.first_window(c)

    def _take_offer(self, c: int, offer: Offer, b: memoryview, i: int, irs: int) -> None:
        """Agree on what a peer whose SYN had sequence number ``irs`` offered."""
        v = self.v
        v[c, T.IRS] = irs
        v[c, T.RCV_NXT] = v[c, T.RCV_ADV] = (irs + 1) & T.MASK32
        if not offer.sack:
            self.clear_flag(c, T.CF_SACK)
        if offer.scale < 0:
            self.clear_flag(c, T.CF_WSCALE)
            v[c, T.RCV_SCALE] = 0
            v[c, T.RCV_BUF] = min(v[c, T.RCV_BUF], 0xFFFF)
        v[c, T.SND_SCALE] = max(offer.scale, 0)
        if offer.stamp:
            v[c, T.TS_RECENT], v[c, T.TS_RECENT_AT] = b[i, B_TSVAL], self.now
        else:
            self.clear_flag(c, T.CF_TS)
            v[c, T.RCV_MSS] = v[c, T.ADV_MSS]
        v[c, T.MSS] = max(min(offer.mss, self._room(c)) - (12 if offer.stamp else 0), MSS_LEAST)
        v[c, T.CWND] = o.INITIAL_WINDOW * v[c, T.MSS]

    def first_window(self, c: int) -> None:
        """What a SYN or SYN-ACK may advertise, out of what the pool has left; nothing is pledged yet.

        Connections that are half open leave each other their part.
        """
        v = self.v
        half_open = sum(len(listener.half_open) for listener in self.listeners.values())
        buffers = int(w.room(self.g, self.t, c)) // (1 + half_open)
        window = min(0xFFFF, v[c, T.RCV_BUF], buffers * v[c, T.PER])
        v[c, T.RCV_ADV] = (v[c, T.RCV_NXT] + window) & T.MASK32
