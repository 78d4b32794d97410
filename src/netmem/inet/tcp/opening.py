"""TCP's opening of connections from outside: listeners, SYNs, cookies, and what belongs to nobody.

What the state machine (``machine``) goes on from.
"""

from __future__ import annotations

import ctypes
import errno

from netmem.base.address import is_ip4
from netmem.base.clock import MS
from netmem.base.errors import NetmemError
from netmem.base.headers import ACK, FIN, RST, SYN, TcpHdr, TcpOpt
from netmem.base.record import address_of
from netmem.inet.tcp import calls, cookies
from netmem.inet.tcp import output as o
from netmem.inet.tcp.answer import Answer, answer
from netmem.inet.tcp.connections import MSS_DEFAULT, Listener
from netmem.inet.tcp.cookies import Offer
from netmem.inet.tcp.tcb import MASK32, Flag, TcpState, seq_le, seq_lt
from netmem.inet.tcp.timers import Timed
from netmem.netdev.batch import RxBatch, RxRow

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
        row = batch.row(i)
        flags = row.tcp_flags
        listener = self.listeners.get(row.ports & 0xFFFF)
        if flags & RST:
            return -1
        if listener is not None and flags & (SYN | ACK) == ACK and self.cookies.expected(self.now):
            irs = (row.seq - 1) & MASK32
            mss = self._cookie_mss(laddr, raddr, row, irs)
            # What is no cookie may be the second segment of a peer whose first was lost: no reset.
            return self._cookie_back(listener, laddr, raddr, row, mss, irs) if mss else -1
        if listener is None or flags & ACK or not flags & SYN:
            self.stats.no_socket += 1
            self.reset_for(batch, i)
        elif flags & FIN:
            self.stats.syn_dropped += 1
        else:
            self._passive_open(listener, laddr, raddr, batch, i)
        return -1

    def reset_for(self, batch: RxBatch, i: int) -> None:
        """RST for a segment that belongs to nobody (RFC 9293, 3.10.7.1)."""
        row = batch.row(i)
        length = row.len + bool(row.tcp_flags & SYN) + bool(row.tcp_flags & FIN)
        if row.tcp_flags & ACK:
            sent = self._answer(batch, i, row.ack, 0, RST)
        else:
            sent = self._answer(batch, i, 0, (row.seq + length) & MASK32, RST | ACK)
        if sent:
            self.stats.out_rst += 1

    def _answer(
        self, batch: RxBatch, i: int, seq: int, ack: int, flags: int, *,
        window: int = 0, mss: int = 0, scale: int = -1, sack: bool = False, stamp: int = -1, echo: int = 0,
    ) -> bool:  # fmt: skip
        """A segment of no connection, back to whoever sent packet ``i``."""
        said = Answer(
            mac=self.ip.mac, seq=seq, ack=ack, flags=flags, window=window, mss=mss, scale=scale, sack=sack,
            stamp=stamp, echo=echo,
        )  # fmt: skip
        return answer(self.at, batch.at, i, address_of(said))

    def _cookie(self, laddr: int, raddr: int, batch: RxBatch, i: int) -> None:
        """The backlog is full: answer a SYN with a cookie, and remember nothing (RFC 4987, 3.6)."""
        row = batch.row(i)
        offer = self._offer(row)
        seq, stamp = row.seq, -1
        iss = self.cookies.make(offer, laddr, raddr, row.ports, seq, self.now)
        if offer.stamp:
            stamp = cookies.stamp(offer, (self.now // MS + self.record.ts_base) & MASK32)
        room = self.ip.mtu(raddr) - (40 if is_ip4(raddr) else 60)
        told = offer if offer.stamp else cookies.offered(offer.mss, None)  # the rest travels in the timestamp
        sent = self._answer(
            batch, i, iss, (seq + 1) & MASK32, SYN | ACK, window=min(cookies.WINDOW, self.config.rcvbuf),
            mss=min(self.config.mss or room, room), scale=self.scale if told.scale >= 0 else -1,
            sack=told.sack, stamp=stamp, echo=row.tsval,
        )  # fmt: skip
        if sent:
            self.stats.cookies_out += 1

    def _cookie_mss(self, laddr: int, raddr: int, row: RxRow, irs: int) -> int:
        """The MSS of the cookie that an ACK brings back to a SYN with number ``irs``, 0 when it is none."""
        cookie = (row.ack - 1) & MASK32
        mss = self.cookies.mss(cookie, laddr, raddr, row.ports, irs, self.now)
        if not mss:
            self.stats.cookies_bad += 1
        return mss

    def cookie_instead(self, c: int, laddr: int, raddr: int, row: RxRow) -> int:
        """The row to go on with, or -1, for a segment to a half-open connection.

        Another than ``c`` when its ACK brings back a cookie: the network had doubled the SYN, one copy was
        answered with a cookie, the other, when the backlog had room again, with a connection of other
        numbers. The peer goes on with what it had first.
        """
        ack, tcb = row.ack, self.tcbs[c]
        if row.tcp_flags & (SYN | ACK | RST) != ACK or not self.cookies.expected(self.now):
            return c
        if seq_lt(tcb.snd_una, ack) and seq_le(ack, tcb.snd_nxt):
            return c
        listener = next((one for one in self.listeners.values() if c in one.half_open), None)
        irs = tcb.irs
        mss = self._cookie_mss(laddr, raddr, row, irs) if listener is not None else 0
        if listener is None or not mss:
            return c
        self.closed(c, 0)
        return self._cookie_back(listener, laddr, raddr, row, mss, irs)

    def _cookie_back(self, listener: Listener, laddr: int, raddr: int, row: RxRow, mss: int, irs: int) -> int:
        """An ACK of a cookie makes the connection that its SYN asked for, half open; its row, or -1."""
        if len(listener.ready) >= listener.backlog:
            self.stats.backlog_full += 1
            return -1
        try:
            c = self.new_row(laddr, raddr, row.ports, self.record.queue)
        except NetmemError:
            return -1
        tcb = self.tcbs[c]
        self.cookies.use((row.ack - 1) & MASK32, raddr, row.ports, self.now)
        self.set_initial_sequence(c, (row.ack - 1) & MASK32)
        tcb.snd_nxt, tcb.snd_wl2 = row.ack, row.ack
        offer = cookies.offered(mss, row.tsecr if row.has_timestamp else None)
        self._take_offer(c, offer, row, irs)
        tcb.rcv_adv = (tcb.rcv_nxt + min(cookies.WINDOW, tcb.rcv_buf)) & MASK32
        self._half_open(listener, c)
        self.stats.cookies_in += 1
        return c

    def _half_open(self, listener: Listener, c: int) -> None:
        self.tcbs[c].listener = listener.id
        self.enter(c, TcpState.SYN_RECEIVED)
        listener.half_open.append(c)

    def _passive_open(self, listener: Listener, laddr: int, raddr: int, batch: RxBatch, i: int) -> None:
        """A SYN for a listener (3.10.7.2)."""
        row = batch.row(i)
        if len(listener.ready) >= listener.backlog:
            self.stats.backlog_full += 1
            return
        if len(listener.half_open) >= listener.most_half_open or not self.has_row():
            self._cookie(laddr, raddr, batch, i)
            return
        try:
            c = self.new_row(laddr, raddr, row.ports, self.record.queue)
        except NetmemError:
            return
        tcb = self.tcbs[c]
        if self.floor is not None:  # beyond what the old connection sent (RFC 1122, 4.2.2.13)
            if seq_lt(tcb.iss, self.floor + REUSE_GAP):
                self.set_initial_sequence(c, (self.floor + REUSE_GAP) & MASK32)
            self.floor = None
        self.read_syn(c, row)
        self._half_open(listener, c)
        self.stats.passive += 1
        self._send_syn(c)

    def _offer(self, row: RxRow) -> Offer:
        """The options of a SYN (3.7.1, RFC 7323, RFC 2018)."""
        mss, scale, sack_ok = MSS_DEFAULT, -1, False
        tcp = row.header + row.l4 + TcpHdr.LEN
        options = ctypes.string_at(tcp, max(0, row.linear - row.l4 - TcpHdr.LEN))
        at = 0
        while at < len(options) and options[at] != TcpOpt.END:
            if options[at] == TcpOpt.NOP:
                at += 1
                continue
            size = options[at + 1] if at + 1 < len(options) else 0
            if size < 2 or at + size > len(options):
                self.stats.bad_options += 1
                break
            if options[at] == TcpOpt.MSS and size == 4:
                mss = max(64, int.from_bytes(options[at + 2 : at + 4], "big"))
            elif options[at] == TcpOpt.WSCALE and size == 3:
                scale = min(options[at + 2], 14)
            elif options[at] == TcpOpt.SACK_OK and size == 2:
                sack_ok = True
            at += size
        return Offer(mss, scale, sack_ok, bool(row.has_timestamp))

    def read_syn(self, c: int, row: RxRow) -> None:
        """Take the peer's initial sequence number and options."""
        tcb = self.tcbs[c]
        tcb.snd_wl1, tcb.snd_wl2 = row.seq, row.ack
        tcb.snd_wnd = tcb.max_snd_wnd = row.window
        self._take_offer(c, self._offer(row), row, row.seq)
        self.first_window(c)

    def _take_offer(self, c: int, offer: Offer, row: RxRow, irs: int) -> None:
        """Agree on what a peer whose SYN had sequence number ``irs`` offered."""
        tcb = self.tcbs[c]
        tcb.irs = irs
        tcb.rcv_nxt = tcb.rcv_adv = (irs + 1) & MASK32
        if not offer.sack:
            self.clear_flag(c, Flag.SACK)
        if offer.scale < 0:
            self.clear_flag(c, Flag.WSCALE)
            tcb.rcv_scale = 0
            tcb.rcv_buf = min(tcb.rcv_buf, 0xFFFF)
        tcb.snd_scale = max(offer.scale, 0)
        if offer.stamp:
            tcb.ts_recent, tcb.ts_recent_at = row.tsval, self.now
        else:
            self.clear_flag(c, Flag.TS)
            tcb.rcv_mss = tcb.adv_mss
        tcb.mss = max(min(offer.mss, self._room(c)) - (12 if offer.stamp else 0), MSS_LEAST)
        tcb.cwnd = o.INITIAL_WINDOW * tcb.mss

    def first_window(self, c: int) -> None:
        """What a SYN or SYN-ACK may advertise, out of what the pool has left; nothing is pledged yet.

        Connections that are half open leave each other their part.
        """
        tcb = self.tcbs[c]
        half_open = sum(len(listener.half_open) for listener in self.listeners.values())
        buffers = calls.room(self.at, c) // (1 + half_open)
        window = min(0xFFFF, tcb.rcv_buf, buffers * tcb.per_buffer)
        tcb.rcv_adv = (tcb.rcv_nxt + window) & MASK32
