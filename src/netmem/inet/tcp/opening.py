"""TCP's opening of connections from outside: listeners, SYNs, cookies, and what belongs to nobody."""

from __future__ import annotations

import errno
import hashlib

from netmem.base.address import is_ip4
from netmem.base.clock import MS
from netmem.base.errors import NetmemError
from netmem.base.headers import ACK, FIN, RST, SYN
from netmem.base.record import address_of
from netmem.inet.tcp import cookies
from netmem.inet.tcp.answer import Answer, answer
from netmem.inet.tcp.connections import Connections, Listener
from netmem.inet.tcp.control import Control
from netmem.inet.tcp.cookies import SynCookies
from netmem.inet.tcp.handshake import offer_of, read_syn, take_offer
from netmem.inet.tcp.tcb import MASK32, TcpState, seq_le, seq_lt
from netmem.netdev.batch import RxBatch, RxRow

REUSE_GAP = 128_000
HALF_OPEN_PART = 4  # half-open connections of a listener: at most such a part of the table


class PassiveOpen:
    """How others open connections."""

    def __init__(self, conns: Connections, control: Control) -> None:
        self.conns, self.control = conns, control
        # Of the initial sequence number of a connection that ends a TIME-WAIT.
        self.floor: int | None = None
        self._cookies = SynCookies(hashlib.blake2b(conns.secret, digest_size=16).digest())
        self._next_listener = 1
        self._asked: dict[int, int] = {}  # rows whose SYN waits for an answer: their generation

    def listen(self, port: int, backlog: int) -> Listener:
        """OPEN, passive. EADDRINUSE when the port has a listener."""
        if port in self.conns.listeners:
            raise NetmemError(errno.EADDRINUSE, f"port {port} is in use")
        backlog = max(1, backlog)
        most = min(backlog, max(1, self.conns.config.connections // HALF_OPEN_PART))
        listener = Listener(self._next_listener, port, backlog, most)
        self._next_listener += 1
        self.conns.listeners[port] = listener
        return listener

    def unlisten(self, listener: Listener) -> None:
        """CLOSE of a listener: connections nobody accepted are reset."""
        if not listener.closed:
            listener.closed = True
            del self.conns.listeners[listener.port]
            waiting = [*listener.half_open, *listener.ready]
            listener.half_open.clear()
            listener.ready.clear()
            for c in waiting:
                self.control.abort(c)

    def no_connection(self, laddr: int, raddr: int, batch: RxBatch, i: int) -> int:
        """A segment for no connection (3.10.7.1 and 2): a row for it to go on with, or -1."""
        row = batch.row(i)
        flags = row.tcp_flags
        listener = self.conns.listeners.get(row.ports & 0xFFFF)
        if flags & RST:
            return -1
        if listener is not None and flags & (SYN | ACK) == ACK and self._cookies.expected(self.conns.now):
            irs = (row.seq - 1) & MASK32
            mss = self._cookie_mss(laddr, raddr, row, irs)
            # What is no cookie may be the second segment of a peer whose first was lost: no reset.
            return self._cookie_back(listener, laddr, raddr, row, mss, irs) if mss else -1
        if listener is None or flags & ACK or not flags & SYN:
            self.conns.stats.no_socket += 1
            self.reset_for(batch, i)
        elif flags & FIN:
            self.conns.stats.syn_dropped += 1
        else:
            self._passive_open(listener, laddr, raddr, batch, i)
        return -1

    def reset_for(self, batch: RxBatch, i: int) -> None:
        """RST for a segment that belongs to nobody (RFC 9293, 3.10.7.1)."""
        row = batch.row(i)
        length = row.len + bool(row.tcp_flags & SYN) + bool(row.tcp_flags & FIN)
        if row.tcp_flags & ACK:
            sent = self._answer(batch, i, Answer(seq=row.ack, flags=RST))
        else:
            sent = self._answer(batch, i, Answer(ack=(row.seq + length) & MASK32, flags=RST | ACK))
        if sent:
            self.conns.stats.out_rst += 1

    def _answer(self, batch: RxBatch, i: int, said: Answer) -> bool:
        """A segment of no connection, back to whoever sent packet ``i``."""
        said.mac = self.conns.ip.mac
        return answer(self.conns.at, batch.at, i, address_of(said))

    def _send_cookie(self, laddr: int, raddr: int, batch: RxBatch, i: int) -> None:
        """The backlog is full: answer a SYN with a cookie, and remember nothing (RFC 4987, 3.6)."""
        row, config = batch.row(i), self.conns.config
        offer = offer_of(self.conns, row)
        seq, stamp = row.seq, -1
        iss = self._cookies.make(offer, laddr, raddr, row.ports, seq, self.conns.now)
        if offer.stamp:
            stamp = cookies.stamp(offer, (self.conns.now // MS + self.conns.record.ts_base) & MASK32)
        room = self.conns.ip.mtu(raddr) - (40 if is_ip4(raddr) else 60)
        told = offer if offer.stamp else cookies.offered(offer.mss, None)  # the rest travels in the timestamp
        said = Answer(
            seq=iss, ack=(seq + 1) & MASK32, flags=SYN | ACK, window=min(cookies.WINDOW, config.rcvbuf),
            mss=min(config.mss or room, room), scale=self.conns.scale if told.scale >= 0 else -1,
            sack=told.sack, stamp=stamp, echo=row.tsval,
        )  # fmt: skip
        if self._answer(batch, i, said):
            self.conns.stats.cookies_out += 1

    def _cookie_mss(self, laddr: int, raddr: int, row: RxRow, irs: int) -> int:
        """The MSS of the cookie that an ACK brings back to a SYN with number ``irs``, 0 when it is none."""
        cookie = (row.ack - 1) & MASK32
        mss = self._cookies.mss(cookie, laddr, raddr, row.ports, irs, self.conns.now)
        if not mss:
            self.conns.stats.cookies_bad += 1
        return mss

    def cookie_instead(self, c: int, laddr: int, raddr: int, row: RxRow) -> int:
        """The row to go on with, or -1, for a segment to a half-open connection.

        Another than ``c`` when its ACK brings back a cookie: the network had doubled the SYN, one copy was
        answered with a cookie, the other, when the backlog had room again, with a connection of other
        numbers. The peer goes on with what it had first.
        """
        ack, tcb = row.ack, self.conns.tcbs[c]
        if row.tcp_flags & (SYN | ACK | RST) != ACK or not self._cookies.expected(self.conns.now):
            return c
        if seq_lt(tcb.snd_una, ack) and seq_le(ack, tcb.snd_nxt):
            return c
        listener = next((one for one in self.conns.listeners.values() if c in one.half_open), None)
        irs = tcb.irs
        mss = self._cookie_mss(laddr, raddr, row, irs) if listener is not None else 0
        if listener is None or not mss:
            return c
        self.control.closed(c, 0)
        return self._cookie_back(listener, laddr, raddr, row, mss, irs)

    def _cookie_back(self, listener: Listener, laddr: int, raddr: int, row: RxRow, mss: int, irs: int) -> int:
        """An ACK of a cookie makes the connection that its SYN asked for, half open; its row, or -1."""
        if len(listener.ready) >= listener.backlog:
            self.conns.stats.backlog_full += 1
            return -1
        try:
            c = self.conns.new_row(laddr, raddr, row.ports, self.conns.record.queue)
        except NetmemError:
            return -1
        tcb = self.conns.tcbs[c]
        self._cookies.use((row.ack - 1) & MASK32, raddr, row.ports, self.conns.now)
        self.conns.set_initial_sequence(c, (row.ack - 1) & MASK32)
        tcb.snd_nxt, tcb.snd_wl2 = row.ack, row.ack
        offer = cookies.offered(mss, row.tsecr if row.has_timestamp else None)
        take_offer(self.conns, c, offer, row, irs)
        tcb.rcv_adv = (tcb.rcv_nxt + min(cookies.WINDOW, tcb.rcv_buf)) & MASK32
        self._half_open(listener, c)
        self.conns.stats.cookies_in += 1
        return c

    def _half_open(self, listener: Listener, c: int) -> None:
        self.conns.tcbs[c].listener = listener.id
        self.control.enter(c, TcpState.SYN_RECEIVED)
        listener.half_open.append(c)

    def _passive_open(self, listener: Listener, laddr: int, raddr: int, batch: RxBatch, i: int) -> None:
        """A SYN for a listener (3.10.7.2)."""
        row = batch.row(i)
        if len(listener.ready) >= listener.backlog:
            self.conns.stats.backlog_full += 1
            return
        if len(listener.half_open) >= listener.most_half_open or not self.conns.has_row():
            self._send_cookie(laddr, raddr, batch, i)
            return
        try:
            c = self.conns.new_row(laddr, raddr, row.ports, self.conns.record.queue)
        except NetmemError:
            return
        tcb = self.conns.tcbs[c]
        if self.floor is not None:  # beyond what the old connection sent (RFC 1122, 4.2.2.13)
            if seq_lt(tcb.iss, self.floor + REUSE_GAP):
                self.conns.set_initial_sequence(c, (self.floor + REUSE_GAP) & MASK32)
            self.floor = None
        read_syn(self.conns, c, row)
        self._half_open(listener, c)
        self.conns.stats.passive += 1
        if listener.ask is None:
            self.control.send_syn(c)
        else:
            self._asked[c] = self.conns.generations[c]
            listener.ask(c)

    def is_asked(self, c: int) -> bool:
        """Whether a row's SYN waits for ``answer_syn``."""
        return self._asked.get(c) == self.conns.generations[c]

    def answer_syn(self, c: int, admit: bool) -> None:
        """Answer a SYN that a listener asked about: with SYN-ACK, or RST (ECONNREFUSED at the peer)."""
        self._asked.pop(c, None)
        if admit:
            self.control.send_syn(c)
        else:
            self.conns.template(c)
            self.control.abort(c)
