"""TCP's state machine: every segment that header prediction left, every call, every timer.

In the order of RFC 9293, section 3.10: what a call does, what an arriving segment does, what a
timer does. Fed by exactly three kinds of event: packet, call, timer.
"""

from __future__ import annotations

import ctypes
import errno
import logging

from netmem.base.clock import MS, SEC
from netmem.base.errors import NetmemError
from netmem.base.formats import (
    ACK,
    FIN,
    RST,
    SYN,
    endpoint,
    ip_number,
    ip_words,
)
from netmem.inet.icmp import IcmpError
from netmem.inet.tcp import kernels as k
from netmem.inet.tcp import output as o
from netmem.inet.tcp import recovery as rec
from netmem.inet.tcp import sack
from netmem.inet.tcp import tcb as T
from netmem.inet.tcp import window as w
from netmem.inet.tcp.opening import MSS_LEAST, Opening
from netmem.netdev.batch import RxBatch
from netmem.netdev.tx import BUFFER_LEAST
from netmem.netdev.words import (
    B_ACK,
    B_DST,
    B_DST_HI,
    B_HDR,
    B_LEN,
    B_PORTS,
    B_SACK,
    B_SEQ,
    B_SRC,
    B_SRC_HI,
    B_TFLAGS,
    B_TS,
    B_TSECR,
    B_TSVAL,
    B_WND,
)

CHALLENGE_NS = 500 * MS
PAWS_NS = 24 * 86400 * SEC


log = logging.getLogger("netmem.tcp")


class Tcp(Opening):
    """RFC 9293 over the table: calls, arriving segments, timers."""

    # -- calls --------------------------------------------------------------------------------

    def connect(self, raddr: int, rport: int, queue: int = 0) -> int:
        """OPEN, active: sends SYN; EADDRNOTAVAIL when no port is left, ENETUNREACH without a way."""
        laddr = self.ip.source_for(raddr)
        for _ in range(16384):
            self._ports = 32768 + (self._ports - 32768 + 1) % 28232
            ports = rport << 16 | self._ports
            if self.lookup(laddr, raddr, ports) < 0:
                break
        else:
            raise NetmemError(errno.EADDRNOTAVAIL, "no local port is left")
        c = self.new_row(laddr, raddr, ports, queue)
        self.enter(c, T.SYN_SENT)
        self.count(T.S_ACTIVE)
        self.first_window(c)
        self._send_syn(c)
        return c

    def send_buffer(self, c: int) -> None:
        """Give a connection its send buffer. ENOBUFS when transmit memory is used up."""
        v, tx = self.v, self.dev.tx
        if v[c, T.SB_SIZE]:
            return
        size = tx.fair_size(self.config.sndbuf)
        while (offset := tx.alloc_buffer(size)) is None and size > BUFFER_LEAST:
            size >>= 1
        if offset is None:
            raise NetmemError(errno.ENOBUFS, "no transmit memory is left for a send buffer")
        v[c, T.SB_HOST], v[c, T.SB_OFFSET] = tx.region.address + offset, offset
        v[c, T.SB_SIZE] = size

    def shutdown(self, c: int) -> None:
        """CLOSE of our direction: FIN behind the last byte."""
        state = self.state(c)
        moves = {
            T.ESTABLISHED: T.FIN_WAIT_1,
            T.CLOSE_WAIT: T.LAST_ACK,
        }
        if state in moves:
            self.enter(c, moves[state])
            self.set_flag(c, T.CF_FIN_QUEUED)
            self.output(c)
        elif state == T.SYN_RECEIVED:
            self.set_flag(c, T.CF_FIN_QUEUED)  # the FIN waits until our SYN is acknowledged
        elif state == T.SYN_SENT:
            self.closed(c, 0)

    def close(self, c: int) -> None:
        """The application is done: what it did not read is given back, and answered by RST."""
        v = self.v
        unread = v[c, T.RQ_BYTES] > 0
        self.set_flag(c, T.CF_ORPHAN)
        if self.state(c) == T.CLOSED:
            self.free_row(c)
            return
        if unread and self.state(c) != T.TIME_WAIT:
            self.abort(c)
            return
        self.release_queues(c)
        w.pledge_anew(self.g, self.t, c)
        self.shutdown(c)
        if v[c, T.STATE] == T.FIN_WAIT_2:
            self.timer(c, T.WAIT_AT, self.config.fin_wait_ns)

    # -- a segment arrives --------------------------------------------------------------------

    def segment(self, batch: RxBatch, i: int) -> None:
        """RFC 9293, 3.10.7, for packet ``i`` of a batch."""
        b = batch.rows.data
        laddr, raddr = ip_number(b[i, B_DST_HI], b[i, B_DST]), ip_number(b[i, B_SRC_HI], b[i, B_SRC])
        if laddr not in self.ip.ours:
            self.count(T.S_NOT_OURS)
            return
        if self.ip.is_martian(raddr):
            self.count(T.S_MARTIAN)
            return
        self.count(T.S_IN_SLOW)
        if self.gv[T.G_RELEASE] > T.RELEASE_ROOM // 4:
            self.put_released()
        self.floor = None
        c = self.lookup(laddr, raddr, b[i, B_PORTS])
        if c >= 0 and self.state(c) == T.TIME_WAIT and self._reuse(c, b, i):
            c = -1
        if c >= 0 and self.state(c) == T.SYN_RECEIVED:
            c = self.cookie_instead(c, laddr, raddr, b, i)
            if c < 0:
                return
        if c < 0 or self.state(c) == T.CLOSED:
            c = self.no_connection(laddr, raddr, batch, i)
            if c < 0:
                return
        if self.v[c, T.QUEUE] != self.gv[T.G_QUEUE]:
            self._move_queue(c)
        if self.state(c) == T.SYN_SENT:
            self._in_syn_sent(c, batch, i)
        else:
            self._in_other(c, batch, b, i)
        if self.v[c, T.STATE] >= T.ESTABLISHED:
            self.touch(c)

    def _move_queue(self, c: int) -> None:
        """The flow arrives on another queue now: what it holds is that one's from now on."""
        v, gv = self.v, self.gv
        w.pledge(self.g, self.t, c, 0)
        queues = self.dev.rx_queues
        if queues[v[c, T.QUEUE]].mp_params is not None and not gv[T.G_TOKENS]:
            self.count(T.S_LEFT_QUEUE)
            log.warning(
                "%s: the flow from %s to port %d left queue %d, whose memory is bound, for queue %d: its "
                "payload is copied; steer the port",
                self.dev.name, endpoint(self.remote(c), v[c, T.PORTS] >> 16),
                v[c, T.PORTS] & 0xFFFF, v[c, T.QUEUE], gv[T.G_QUEUE],
            )  # fmt: skip
        for sign in (-1, 1):
            credit = T.G_CREDIT + T.CR_WORDS * v[c, T.QUEUE]
            gv[credit + T.CR_OOO_N] += sign * v[c, T.OQ_BUFS]
            v[c, T.QUEUE] = gv[T.G_QUEUE]

    def _reuse(self, c: int, b: memoryview, i: int) -> bool:
        """RFC 6191: a new SYN beyond the old connection's numbers ends TIME-WAIT."""
        if b[i, B_TFLAGS] & (SYN | ACK | RST) != SYN or not self.flag(c, T.CF_ORPHAN):
            return False
        newer = T.seq_lt(self.v[c, T.RCV_NXT], b[i, B_SEQ])
        if self.flag(c, T.CF_TS) and b[i, B_TS]:
            newer = newer or T.seq_lt(self.v[c, T.TS_RECENT], b[i, B_TSVAL])
        if newer:
            self.floor = self.v[c, T.SND_NXT]
            self.enter(c, T.CLOSED)
            self.free_row(c)
            self.count(T.S_TIME_WAIT_REUSED)
        return bool(newer)

    def _in_syn_sent(self, c: int, batch: RxBatch, i: int) -> None:
        """3.10.7.3."""
        b = batch.rows.data
        v, flags = self.v, b[i, B_TFLAGS]
        if flags & ACK and not (
            T.seq_lt(v[c, T.ISS], b[i, B_ACK]) and T.seq_le(b[i, B_ACK], v[c, T.SND_NXT])
        ):
            if not flags & RST:
                self.reset_for(batch, i)
            return
        if flags & RST:
            if flags & ACK:
                self.count(T.S_RESETS_IN)
                self.closed(c, errno.ECONNREFUSED)
            return
        if not flags & SYN:
            return
        self.read_syn(c, b, i)
        if flags & ACK:
            v[c, T.RTO_AT] = v[c, T.BACKOFF] = v[c, T.USER_RETRIES] = 0
            v[c, T.SND_UNA] = b[i, B_ACK]
            self._first_round_trip(c)
            self.enter(c, T.ESTABLISHED)
            self.set_flag(c, T.CF_ACK_NOW)
        else:  # simultaneous open
            self.enter(c, T.SYN_RECEIVED)
            v[c, T.RTO_AT] = 0
            self._send_syn(c)

    def _in_other(self, c: int, batch: RxBatch, b: memoryview, i: int) -> None:
        """3.10.7.4: sequence number, RST, SYN, ACK, data, FIN, in that order."""
        v, flags, seq, length = self.v, b[i, B_TFLAGS], b[i, B_SEQ], b[i, B_LEN]
        v[c, T.LAST_IN] = self.now
        v[c, T.KEEP_PROBES] = 0
        if self._is_old(c, b, i):
            self.count(T.S_PAWS)
            if length:
                sack.dsack_note(self.t, c, seq, length)
            self.set_flag(c, T.CF_ACK_NOW)
            return
        if not self._acceptable(c, seq, length + bool(flags & SYN) + bool(flags & FIN)):
            if flags & SYN and v[c, T.STATE] == T.SYN_RECEIVED and seq == v[c, T.IRS]:
                self._send_syn(c)  # our SYN-ACK was lost
            elif not flags & RST:
                self.count(T.S_DUP_DROPPED if T.seq_lt(seq, v[c, T.RCV_NXT]) else T.S_BEYOND_WINDOW)
                if length and T.seq_lt(seq, v[c, T.RCV_NXT]):
                    sack.dsack_note(self.t, c, seq, length)
                self.set_flag(c, T.CF_ACK_NOW)
                if seq == v[c, T.RCV_NXT] and flags & ACK and not flags & SYN:
                    self._acknowledgement(c, batch, i)  # window closed: its ACK still counts
                elif v[c, T.STATE] == T.TIME_WAIT:
                    self.timer(c, T.WAIT_AT, self.config.time_wait_ns)
            return
        if flags & RST:
            if seq == v[c, T.RCV_NXT]:
                self.count(T.S_RESETS_IN)
                refused = v[c, T.STATE] == T.SYN_RECEIVED
                self.closed(c, errno.ECONNREFUSED if refused else errno.ECONNRESET)
            else:
                self._challenge(c)
            return
        if flags & SYN:
            self._challenge(c)
            return
        if not flags & ACK:
            return
        if self.flag(c, T.CF_TS) and b[i, B_TS] and T.seq_le(seq, v[c, T.LAST_ACK_SENT]):
            v[c, T.TS_RECENT], v[c, T.TS_RECENT_AT] = b[i, B_TSVAL], self.now
        if not self._acknowledgement(c, batch, i):
            return
        if length and v[c, T.STATE] in (T.ESTABLISHED, T.FIN_WAIT_1, T.FIN_WAIT_2):
            if self.flag(c, T.CF_ORPHAN):
                self._segment(c, v[c, T.SND_NXT], RST | ACK)
                self.count(T.S_OUT_RST)
                self.closed(c, errno.ECONNRESET)
                return
            before, queued = v[c, T.RCV_NXT], v[c, T.OQ_BUFS]
            k.tcp_data(self.g, self.t, self.e, batch.rows, i, c)
            gained = T.seq_diff(v[c, T.RCV_NXT], before)
            k.received(self.g, self.t, c, gained)
            if v[c, T.OQ_BUFS] or queued or gained < length:
                # RFC 5681, 4.2: at once for a gap and for what fills one, not once a batch, so
                # that the peer sees as many duplicates as segments arrived behind the gap.
                o.tcp_ack(self.g, self.t, self.e, c, self.dev.tx.meta, self.dev.tx.rows)
        if flags & FIN:
            v[c, T.FIN_SEQ] = (seq + length) & T.MASK32
            self.set_flag(c, T.CF_FIN_SEEN)
        if self.flag(c, T.CF_FIN_SEEN) and v[c, T.RCV_NXT] == v[c, T.FIN_SEQ]:
            self._fin(c)

    def _is_old(self, c: int, b: memoryview, i: int) -> bool:
        """Protection against wrapped sequence numbers (RFC 7323, 5): the timestamp is an older one.

        After 24 days of silence the one that is known means nothing any more (5.5).
        """
        v = self.v
        if not self.flag(c, T.CF_TS) or not b[i, B_TS] or b[i, B_TFLAGS] & RST:
            return False
        if self.now - v[c, T.TS_RECENT_AT] > PAWS_NS:
            return False
        return bool(T.seq_lt(b[i, B_TSVAL], v[c, T.TS_RECENT]))

    def _acceptable(self, c: int, seq: int, length: int) -> bool:
        """3.4, table 6."""
        v = self.v
        nxt, edge = v[c, T.RCV_NXT], v[c, T.RCV_ADV]
        if nxt == edge:
            return length == 0 and seq == nxt
        if length == 0:
            return bool(T.seq_le(nxt, seq) and T.seq_lt(seq, edge))
        end = (seq + length - 1) & T.MASK32
        return bool(T.seq_lt(seq, edge) and T.seq_le(nxt, end))

    def _challenge(self, c: int) -> None:
        """RFC 5961: answer what might be forged with an ACK, but not more often than twice a second (7)."""
        v = self.v
        if not v[c, T.CHALLENGED_AT] or self.now - v[c, T.CHALLENGED_AT] >= CHALLENGE_NS:
            v[c, T.CHALLENGED_AT] = self.now
            self.count(T.S_CHALLENGE_ACK)
            self.set_flag(c, T.CF_ACK_NOW)

    def _acknowledgement(self, c: int, batch: RxBatch, i: int) -> bool:
        """The ACK field, and the SACK option with it. False: nothing further of this segment counts."""
        v, b = self.v, batch.rows.data
        ack = b[i, B_ACK]
        if v[c, T.STATE] == T.SYN_RECEIVED:
            if not (T.seq_lt(v[c, T.SND_UNA], ack) and T.seq_le(ack, v[c, T.SND_NXT])):
                self.reset_for(batch, i)
                return False
            self._established(c, b, i)
        una = v[c, T.SND_UNA]
        if T.seq_lt(v[c, T.SND_NXT], ack) or T.seq_diff(una, ack) > v[c, T.MAX_SND_WND]:
            self.count(T.S_BAD_ACK)  # RFC 5961, section 5
            self._challenge(c)
            return False
        wnd = b[i, B_WND] << v[c, T.SND_SCALE]
        if v[c, T.PERSIST_AT] or not wnd:
            v[c, T.USER_RETRIES] = 0  # a probe was answered, or what is sent again into a closed window
        advanced = bool(T.seq_lt(una, ack))
        echo = b[i, B_TSECR] if self.flag(c, T.CF_TS) and b[i, B_TS] else -1
        if advanced:
            rec.advance_una(self.g, self.t, self.e, c, ack, echo, self.dev.tx.meta)
        elif ack == una and b[i, B_LEN] == 0 and not b[i, B_TFLAGS] & FIN and wnd == v[c, T.SND_WND]:
            if v[c, T.TQ_HEAD] and not self.flag(c, T.CF_SACK):
                v[c, T.DUPACKS] += 1
        duplicate = False
        if b[i, B_SACK] and self.flag(c, T.CF_SACK):
            option = b[i, B_HDR] + b[i, B_SACK]
            size = ctypes.c_uint8.from_address(option + 1).value
            duplicate = bool(rec.sack_in(self.g, self.t, self.e, c, option, size, ack, echo))
        if v[c, T.TQ_HEAD] or self.flag(c, T.CF_RECOVERY | T.CF_LOSS) or v[c, T.TLP_END] >= 0:
            rec.after_ack(self.g, self.t, self.e, c, v[c, T.SND_UNA], advanced, duplicate)
        if T.seq_lt(v[c, T.SND_WL1], b[i, B_SEQ]) or (
            v[c, T.SND_WL1] == b[i, B_SEQ] and T.seq_le(v[c, T.SND_WL2], ack)
        ):
            v[c, T.SND_WND], v[c, T.SND_WL1], v[c, T.SND_WL2] = wnd, b[i, B_SEQ], ack
            v[c, T.MAX_SND_WND] = max(v[c, T.MAX_SND_WND], wnd)
            if wnd and v[c, T.PERSIST_AT]:
                v[c, T.PERSIST_AT] = v[c, T.BACKOFF] = 0
        return self._fin_acked(c)

    def _fin_acked(self, c: int) -> bool:
        """State changes when our FIN is acknowledged."""
        v = self.v
        if self.flag(c, T.CF_FIN_SENT) and v[c, T.SND_UNA] == v[c, T.SND_NXT]:
            state = v[c, T.STATE]
            if state == T.FIN_WAIT_1:
                self.enter(c, T.FIN_WAIT_2)
                if self.flag(c, T.CF_ORPHAN):
                    self.timer(c, T.WAIT_AT, self.config.fin_wait_ns)
            elif state == T.CLOSING:
                self._time_wait(c)
            elif state == T.LAST_ACK:
                self.closed(c, 0)
                return False
        return True

    def _established(self, c: int, b: memoryview, i: int) -> None:
        v = self.v
        self.enter(c, T.FIN_WAIT_1 if self.flag(c, T.CF_FIN_QUEUED) else T.ESTABLISHED)
        v[c, T.RTO_AT] = v[c, T.BACKOFF] = v[c, T.USER_RETRIES] = 0
        v[c, T.SND_WND] = v[c, T.MAX_SND_WND] = b[i, B_WND] << v[c, T.SND_SCALE]
        v[c, T.SND_WL1], v[c, T.SND_WL2] = b[i, B_SEQ], b[i, B_ACK]
        v[c, T.SND_UNA] = (v[c, T.ISS] + 1) & T.MASK32
        self._first_round_trip(c)
        w.pledge_anew(self.g, self.t, c)
        w.note_starved(self.g, self.t, c)  # the SYN-ACK may have said that there is no window
        for listener in self.listeners.values():
            if listener.id == v[c, T.LISTENER]:
                listener.half_open.remove(c)
                listener.ready.append(c)

    def _first_round_trip(self, c: int) -> None:
        """Our SYN was acknowledged: the first measure, unless it was sent more than once (RFC 6298)."""
        v = self.v
        v[c, T.RTO_AT] = 0
        if v[c, T.RTT_SYN]:
            rec.update_rtt(self.t, c, self.now - v[c, T.RTT_SYN])
            v[c, T.MIN_RTT] = max(self.now - v[c, T.RTT_SYN], 1)
        v[c, T.RTT_SYN] = 0

    def _fin(self, c: int) -> None:
        """The peer's FIN is next in sequence."""
        v = self.v
        state = v[c, T.STATE]
        if state in (T.CLOSE_WAIT, T.CLOSING, T.LAST_ACK, T.TIME_WAIT):
            return
        v[c, T.RCV_NXT] = (v[c, T.RCV_NXT] + 1) & T.MASK32
        if T.seq_lt(v[c, T.RCV_ADV], v[c, T.RCV_NXT]):
            v[c, T.RCV_ADV] = v[c, T.RCV_NXT]
        self.set_flag(c, T.CF_ACK_NOW)
        if state == T.ESTABLISHED:
            self.enter(c, T.CLOSE_WAIT)
        elif state == T.FIN_WAIT_1:
            self.enter(c, T.CLOSING)
        else:
            self._time_wait(c)

    def _time_wait(self, c: int) -> None:
        v = self.v
        self.enter(c, T.TIME_WAIT)
        v[c, T.RTO_AT] = v[c, T.PERSIST_AT] = v[c, T.PTO_AT] = v[c, T.REO_AT] = v[c, T.KEEP_AT] = 0
        self.timer(c, T.WAIT_AT, self.config.time_wait_ns)

    # -- the network below ------------------------------------------------------------------------

    def neighbour_up(self, address: int) -> None:
        """A neighbour's MAC became known or changed: update templates, send what waited for it."""
        high, low = ip_words(address)
        v = self.v
        for c in range(self.gv[T.G_ROWS]):
            if v[c, T.STATE] and v[c, T.NEXT_HOP] == low and v[c, T.NEXT_HOP_HI] == high:
                waited = not self.flag(c, T.CF_MAC)
                self.template(c)
                if waited and v[c, T.STATE] in (T.SYN_SENT, T.SYN_RECEIVED):
                    v[c, T.USER_RETRIES] = v[c, T.RTO_AT] = 0  # its time begins now
                    self._send_syn(c)

    def icmp_error(self, error: IcmpError) -> None:
        """An ICMP error quotes a segment of ours (RFC 5927: it counts only if that is in flight)."""
        v = self.v
        c = self.lookup(error.source, error.target, error.ports)
        if c < 0 or v[c, T.STATE] == T.CLOSED:
            return
        handshake = v[c, T.STATE] in (T.SYN_SENT, T.SYN_RECEIVED)
        inside = T.seq_le(v[c, T.SND_UNA], error.seq) and T.seq_lt(error.seq, v[c, T.SND_NXT])
        if not inside:
            return
        if error.mtu:
            self._path_mtu(c, error)
        elif handshake and error.unreachable:
            self.closed(c, errno.EHOSTUNREACH)
        # On an established connection it is a soft error (RFC 5461): retransmissions decide.

    def _path_mtu(self, c: int, error: IcmpError) -> None:
        """RFC 1191 and 8201: smaller segments from now on, and what was too big once more."""
        v = self.v
        if error.mtu >= v[c, T.PATH_MTU]:
            return
        before = v[c, T.PATH_MTU]
        v[c, T.PATH_MTU] = error.mtu
        mss = max(self._room(c) - (12 if self.flag(c, T.CF_TS) else 0), MSS_LEAST)
        if error.mtu < before and mss < v[c, T.MSS]:
            self.count(T.S_PMTU)
            self.ip.note_mtu(error)
            v[c, T.MSS] = mss
            v[c, T.CWND] = max(v[c, T.CWND], 2 * mss)
            rec.all_lost(self.t, self.e, c)
            self.output(c)
