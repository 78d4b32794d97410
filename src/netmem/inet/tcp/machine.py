"""TCP's state machine: every segment that header prediction left, every call, every timer.

In the order of RFC 9293, section 3.10: what a call does, what an arriving segment does, what a
timer does. Fed by exactly three kinds of event: packet, call, timer.
"""

from __future__ import annotations

import ctypes
import errno
import logging

from netmem.base.address import endpoint, ip_number, ip_words
from netmem.base.clock import MS, SEC
from netmem.base.errors import NetmemError
from netmem.base.headers import ACK, FIN, RST, SYN
from netmem.inet.icmp import IcmpError
from netmem.inet.tcp import calls
from netmem.inet.tcp.connections import Connections, Listener
from netmem.inet.tcp.control import Control
from netmem.inet.tcp.handshake import MSS_LEAST, first_window, read_syn
from netmem.inet.tcp.opening import PassiveOpen
from netmem.inet.tcp.tcb import MASK32, RELEASE_ROOM, Flag, TcpState, seq_diff, seq_le, seq_lt
from netmem.inet.tcp.timers import TcpTimers
from netmem.netdev.batch import RxBatch, RxRow
from netmem.netdev.tx import BUFFER_LEAST

CHALLENGE_NS = 500 * MS
PAWS_NS = 24 * 86400 * SEC
RECLAIM_NS = 25 * MS


log = logging.getLogger("netmem.tcp")


class Tcp:
    """RFC 9293 over the table of connections: calls, arriving segments, timers."""

    def __init__(self, conns: Connections) -> None:
        self.conns = conns
        self.control = Control(conns)
        self.timers = TcpTimers(conns, self.control)
        self.passive = PassiveOpen(conns, self.control)
        self._reclaim_at = 0  # when idle send buffers are looked for next, ns
        self._ports = 32768 + int.from_bytes(conns.secret[4:6], "big") % 16384

    # -- calls --------------------------------------------------------------------------------

    def listen(self, port: int, backlog: int) -> Listener:
        """OPEN, passive. EADDRINUSE when the port has a listener."""
        return self.passive.listen(port, backlog)

    def connect(self, raddr: int, rport: int, queue: int = 0) -> int:
        """OPEN, active: sends SYN; EADDRNOTAVAIL when no port is left, ENETUNREACH without a way."""
        laddr = self.conns.ip.source_for(raddr)
        for _ in range(16384):
            self._ports = 32768 + (self._ports - 32768 + 1) % 28232
            ports = rport << 16 | self._ports
            if self.conns.lookup(laddr, raddr, ports) < 0:
                break
        else:
            raise NetmemError(errno.EADDRNOTAVAIL, "no local port is left")
        c = self.conns.new_row(laddr, raddr, ports, queue)
        self.control.enter(c, TcpState.SYN_SENT)
        self.conns.stats.active += 1
        first_window(self.conns, c)
        self.control.send_syn(c)
        return c

    def send_buffer(self, c: int) -> None:
        """Give a connection its send buffer, or a bigger one in place of one that is empty.

        Where memory is short, those that have nothing to send give theirs up: a thousand idle connections
        do not make small what the busy one has. ENOBUFS when transmit memory is used up all the same.
        """
        tcb, tx, wanted = self.conns.tcbs[c], self.conns.dev.tx, self.conns.config.sndbuf
        if tcb.sb_size >= wanted or (tcb.sb_size and not calls.send_buffer_unused(self.conns.at, c)):
            return
        size = tx.fair_size(wanted)
        if size < wanted and self.conns.record.now >= self._reclaim_at:
            self._reclaim_send_buffers(c)
            size = tx.fair_size(wanted)
        if size <= tcb.sb_size:
            return
        offset = tx.alloc_buffer(size)
        while offset is None and size > max(BUFFER_LEAST, 2 * tcb.sb_size):
            size >>= 1
            offset = tx.alloc_buffer(size)
        if offset is None and not tcb.sb_size:
            self._reclaim_send_buffers(c)
            offset = tx.alloc_buffer(size)
        if offset is not None:
            self.conns.release_send_buffer(c)
            tcb.sb_offset, tcb.sb_size = offset, size
        elif not tcb.sb_size:
            raise NetmemError(errno.ENOBUFS, "no transmit memory is left for a send buffer")

    def _reclaim_send_buffers(self, but: int) -> None:
        """Connections that have nothing to send give their buffers back."""
        self._reclaim_at = self.conns.record.now + RECLAIM_NS
        c = -1
        while (c := calls.idle_send_buffer(self.conns.at, c + 1)) >= 0:
            if c != but:
                self.conns.release_send_buffer(c)

    def shutdown(self, c: int) -> None:
        """CLOSE of our direction: FIN behind the last byte."""
        state = self.conns.state(c)
        moves: dict[int, TcpState] = {
            TcpState.ESTABLISHED: TcpState.FIN_WAIT_1,
            TcpState.CLOSE_WAIT: TcpState.LAST_ACK,
        }
        if state in moves:
            self.control.enter(c, moves[state])
            self.conns.set_flag(c, Flag.FIN_QUEUED)
            self.control.output(c)
        elif state == TcpState.SYN_RECEIVED:
            self.conns.set_flag(c, Flag.FIN_QUEUED)  # the FIN waits until our SYN is acknowledged
        elif state == TcpState.SYN_SENT:
            self.control.closed(c, 0)

    def close(self, c: int) -> None:
        """The application is done: what it did not read is given back, and answered by RST."""
        tcb = self.conns.tcbs[c]
        unread = tcb.rq_bytes > 0
        self.conns.set_flag(c, Flag.ORPHAN)
        if self.conns.state(c) == TcpState.CLOSED:
            self.conns.free_row(c)
            return
        if unread and self.conns.state(c) != TcpState.TIME_WAIT:
            self.control.abort(c)
            return
        self.conns.release_queues(c)
        calls.pledge_anew(self.conns.at, c)
        self.shutdown(c)
        if tcb.state == TcpState.FIN_WAIT_2:
            self.conns.timer(c, "wait", self.conns.config.fin_wait_ns)

    # -- a segment arrives --------------------------------------------------------------------

    def segment(self, batch: RxBatch, i: int) -> None:
        """RFC 9293, 3.10.7, for packet ``i`` of a batch."""
        row = batch.row(i)
        laddr, raddr = ip_number(row.dst_hi, row.dst), ip_number(row.src_hi, row.src)
        if laddr not in self.conns.ip.ours:
            self.conns.stats.not_ours += 1
            return
        if self.conns.ip.is_martian(raddr):
            self.conns.stats.martian += 1
            return
        self.conns.stats.in_slow += 1
        if self.conns.record.releases > RELEASE_ROOM // 4:
            self.conns.put_released()
        self.passive.floor = None
        c = self.conns.lookup(laddr, raddr, row.ports)
        if c >= 0 and self.conns.state(c) == TcpState.TIME_WAIT and self._reuse(c, row):
            c = -1
        if c >= 0 and self.conns.state(c) == TcpState.SYN_RECEIVED:
            c = self.passive.cookie_instead(c, laddr, raddr, row)
            if c < 0:
                return
        if c < 0 or self.conns.state(c) == TcpState.CLOSED:
            c = self.passive.no_connection(laddr, raddr, batch, i)
            if c < 0:
                return
        if self.conns.tcbs[c].queue != self.conns.record.queue:
            self._move_queue(c)
        if self.conns.state(c) == TcpState.SYN_SENT:
            self._in_syn_sent(c, batch, i)
        else:
            self._in_other(c, batch, i)
        if self.conns.state(c) >= TcpState.ESTABLISHED:
            self.conns.touch(c)

    def _move_queue(self, c: int) -> None:
        """The flow arrives on another queue now: what it holds is that one's from now on."""
        tcb, record = self.conns.tcbs[c], self.conns.record
        calls.pledge(self.conns.at, c, 0)
        queues = self.conns.dev.rx_queues
        if queues[tcb.queue].mp_params is not None and not record.by_token:
            self.conns.stats.left_queue += 1
            log.warning(
                "%s: the flow from %s to port %d left queue %d, whose memory is bound, for queue %d: its "
                "payload is copied; steer the port",
                self.conns.dev.name, endpoint(self.conns.remote(c), tcb.ports >> 16),
                tcb.ports & 0xFFFF, tcb.queue, record.queue,
            )  # fmt: skip
        for sign in (-1, 1):
            record.accounts[tcb.queue].ooo += sign * tcb.oq_bufs
            tcb.queue = record.queue

    def _reuse(self, c: int, row: RxRow) -> bool:
        """RFC 6191: a new SYN beyond the old connection's numbers ends TIME-WAIT."""
        if row.tcp_flags & (SYN | ACK | RST) != SYN or not self.conns.flag(c, Flag.ORPHAN):
            return False
        tcb = self.conns.tcbs[c]
        newer = seq_lt(tcb.rcv_nxt, row.seq)
        if self.conns.flag(c, Flag.TS) and row.has_timestamp:
            newer = newer or seq_lt(tcb.ts_recent, row.tsval)
        if newer:
            self.passive.floor = tcb.snd_nxt
            self.control.enter(c, TcpState.CLOSED)
            self.conns.free_row(c)
            self.conns.stats.time_wait_reused += 1
        return bool(newer)

    def _in_syn_sent(self, c: int, batch: RxBatch, i: int) -> None:
        """3.10.7.3."""
        row, tcb = batch.row(i), self.conns.tcbs[c]
        flags = row.tcp_flags
        if flags & ACK and not (seq_lt(tcb.iss, row.ack) and seq_le(row.ack, tcb.snd_nxt)):
            if not flags & RST:
                self.passive.reset_for(batch, i)
            return
        if flags & RST:
            if flags & ACK:
                self.conns.stats.resets_in += 1
                self.control.closed(c, errno.ECONNREFUSED)
            return
        if not flags & SYN:
            return
        read_syn(self.conns, c, row)
        if flags & ACK:
            tcb.timers.rto = tcb.backoff = tcb.user_retries = 0
            tcb.snd_una = row.ack
            self._first_round_trip(c)
            self.control.enter(c, TcpState.ESTABLISHED)
            self.conns.set_flag(c, Flag.ACK_NOW)
        else:  # simultaneous open
            self.control.enter(c, TcpState.SYN_RECEIVED)
            tcb.timers.rto = 0
            self.control.send_syn(c)

    def _in_other(self, c: int, batch: RxBatch, i: int) -> None:
        """3.10.7.4: sequence number, RST, SYN, ACK, data, FIN, in that order."""
        conns, row = self.conns, batch.row(i)
        tcb, flags, seq = conns.tcbs[c], row.tcp_flags, row.seq
        tcb.last_in = conns.now
        tcb.keep_probes = 0
        if self._is_old(c, row):
            conns.stats.paws += 1
            if row.len:
                calls.duplicate_in(conns.at, c, seq, row.len)
            conns.set_flag(c, Flag.ACK_NOW)
            return
        if not self._acceptable(c, seq, row.len + bool(flags & SYN) + bool(flags & FIN)):
            self._unacceptable(c, batch, i)
            return
        if flags & RST:
            if seq == tcb.rcv_nxt:
                conns.stats.resets_in += 1
                refused = tcb.state == TcpState.SYN_RECEIVED
                self.control.closed(c, errno.ECONNREFUSED if refused else errno.ECONNRESET)
            else:
                self._challenge(c)
            return
        if flags & SYN:
            self._challenge(c)
            return
        if not flags & ACK:
            return
        if conns.flag(c, Flag.TS) and row.has_timestamp and seq_le(seq, tcb.last_ack_sent):
            tcb.ts_recent, tcb.ts_recent_at = row.tsval, conns.now
        if not self._acknowledgement(c, batch, i) or not self._data(c, batch, i):
            return
        if flags & FIN:
            tcb.fin_seq = (seq + row.len) & MASK32
            conns.set_flag(c, Flag.FIN_SEEN)
        if conns.flag(c, Flag.FIN_SEEN) and tcb.rcv_nxt == tcb.fin_seq:
            self._fin(c)

    def _unacceptable(self, c: int, batch: RxBatch, i: int) -> None:
        """First check: outside the window. Answered by an ACK, unless it is a RST."""
        conns, row = self.conns, batch.row(i)
        tcb, flags, seq = conns.tcbs[c], row.tcp_flags, row.seq
        if flags & SYN and tcb.state == TcpState.SYN_RECEIVED and seq == tcb.irs:
            if not self.passive.is_asked(c):
                self.control.send_syn(c)  # our SYN-ACK was lost
        elif not flags & RST:
            if seq_lt(seq, tcb.rcv_nxt):
                conns.stats.dup_dropped += 1
                if row.len:
                    calls.duplicate_in(conns.at, c, seq, row.len)
            else:
                conns.stats.beyond_window += 1
            conns.set_flag(c, Flag.ACK_NOW)
            if seq == tcb.rcv_nxt and flags & ACK and not flags & SYN:
                self._acknowledgement(c, batch, i)  # window closed: its ACK still counts
            elif tcb.state == TcpState.TIME_WAIT:
                conns.timer(c, "wait", conns.config.time_wait_ns)

    def _data(self, c: int, batch: RxBatch, i: int) -> bool:
        """Seventh: the segment text. False: the connection is over, nobody is there to take it."""
        conns, row = self.conns, batch.row(i)
        tcb = conns.tcbs[c]
        if not row.len or tcb.state not in (
            TcpState.ESTABLISHED, TcpState.FIN_WAIT_1, TcpState.FIN_WAIT_2
        ):  # fmt: skip
            return True
        if conns.flag(c, Flag.ORPHAN):
            self.control.abort(c)
            return False
        queued = tcb.oq_bufs
        gained = calls.data_in(conns.at, c, batch.at, i)
        if tcb.oq_bufs or queued or gained < row.len:
            # RFC 5681, 4.2: at once for a gap and for what fills one, not once a batch, so
            # that the peer sees as many duplicates as segments arrived behind the gap.
            calls.acknowledge(conns.at, c)
        return True

    def _is_old(self, c: int, row: RxRow) -> bool:
        """Protection against wrapped sequence numbers (RFC 7323, 5): the timestamp is an older one.

        After 24 days of silence the one that is known means nothing any more (5.5).
        """
        tcb = self.conns.tcbs[c]
        if not self.conns.flag(c, Flag.TS) or not row.has_timestamp or row.tcp_flags & RST:
            return False
        if self.conns.now - tcb.ts_recent_at > PAWS_NS:
            return False
        return bool(seq_lt(row.tsval, tcb.ts_recent))

    def _acceptable(self, c: int, seq: int, length: int) -> bool:
        """3.4, table 6."""
        tcb = self.conns.tcbs[c]
        nxt, edge = tcb.rcv_nxt, tcb.rcv_adv
        if nxt == edge:
            return length == 0 and seq == nxt
        if length == 0:
            return bool(seq_le(nxt, seq) and seq_lt(seq, edge))
        end = (seq + length - 1) & MASK32
        return bool(seq_lt(seq, edge) and seq_le(nxt, end))

    def _challenge(self, c: int) -> None:
        """RFC 5961: answer what might be forged with an ACK, but not more often than twice a second (7)."""
        tcb = self.conns.tcbs[c]
        if not tcb.challenged_at or self.conns.now - tcb.challenged_at >= CHALLENGE_NS:
            tcb.challenged_at = self.conns.now
            self.conns.stats.challenge_ack += 1
            self.conns.set_flag(c, Flag.ACK_NOW)

    def _acknowledgement(self, c: int, batch: RxBatch, i: int) -> bool:
        """The ACK field, and the SACK option with it. False: nothing further of this segment counts."""
        row, tcb = batch.row(i), self.conns.tcbs[c]
        ack = row.ack
        if tcb.state == TcpState.SYN_RECEIVED:
            if not (seq_lt(tcb.snd_una, ack) and seq_le(ack, tcb.snd_nxt)):
                self.passive.reset_for(batch, i)
                return False
            self._established(c, row)
        una = tcb.snd_una
        if seq_lt(tcb.snd_nxt, ack) or seq_diff(una, ack) > tcb.max_snd_wnd:
            self.conns.stats.bad_ack += 1  # RFC 5961, section 5
            self._challenge(c)
            return False
        wnd = row.window << tcb.snd_scale
        if tcb.timers.persist or not wnd:
            tcb.user_retries = 0  # a probe was answered, or what is sent again into a closed window
        advanced = bool(seq_lt(una, ack))
        echo = row.tsecr if self.conns.flag(c, Flag.TS) and row.has_timestamp else -1
        if advanced:
            calls.advance_una(self.conns.at, c, ack, echo)
        elif ack == una and row.len == 0 and not row.tcp_flags & FIN and wnd == tcb.snd_wnd:
            if tcb.tq_head and not self.conns.flag(c, Flag.SACK):
                tcb.dupacks += 1
        duplicate = False
        if row.sack and self.conns.flag(c, Flag.SACK):
            option = row.header + row.sack
            size = ctypes.c_uint8.from_address(option + 1).value
            duplicate = calls.sack_in(self.conns.at, c, option, size, ack, echo)
        if tcb.tq_head or self.conns.flag(c, Flag.RECOVERY | Flag.LOSS) or tcb.tlp_end >= 0:
            calls.after_ack(self.conns.at, c, tcb.snd_una, advanced, duplicate)
        if seq_lt(tcb.snd_wl1, row.seq) or (tcb.snd_wl1 == row.seq and seq_le(tcb.snd_wl2, ack)):
            tcb.snd_wnd, tcb.snd_wl1, tcb.snd_wl2 = wnd, row.seq, ack
            tcb.max_snd_wnd = max(tcb.max_snd_wnd, wnd)
            if wnd and tcb.timers.persist:
                tcb.timers.persist = tcb.backoff = 0
        return self._fin_acked(c)

    def _fin_acked(self, c: int) -> bool:
        """State changes when our FIN is acknowledged."""
        tcb = self.conns.tcbs[c]
        if self.conns.flag(c, Flag.FIN_SENT) and tcb.snd_una == tcb.snd_nxt:
            state = tcb.state
            if state == TcpState.FIN_WAIT_1:
                self.control.enter(c, TcpState.FIN_WAIT_2)
                if self.conns.flag(c, Flag.ORPHAN):
                    self.conns.timer(c, "wait", self.conns.config.fin_wait_ns)
            elif state == TcpState.CLOSING:
                self._time_wait(c)
            elif state == TcpState.LAST_ACK:
                self.control.closed(c, 0)
                return False
        return True

    def _established(self, c: int, row: RxRow) -> None:
        tcb = self.conns.tcbs[c]
        self.control.enter(
            c, TcpState.FIN_WAIT_1 if self.conns.flag(c, Flag.FIN_QUEUED) else TcpState.ESTABLISHED
        )
        tcb.timers.rto = tcb.backoff = tcb.user_retries = 0
        tcb.snd_wnd = tcb.max_snd_wnd = row.window << tcb.snd_scale
        tcb.snd_wl1, tcb.snd_wl2 = row.seq, row.ack
        tcb.snd_una = (tcb.iss + 1) & MASK32
        self._first_round_trip(c)
        calls.pledge_anew(self.conns.at, c)
        calls.note_starved(self.conns.at, c)  # the SYN-ACK may have said that there is no window
        for listener in self.conns.listeners.values():
            if listener.id == tcb.listener:
                listener.half_open.remove(c)
                listener.ready.append(c)

    def _first_round_trip(self, c: int) -> None:
        """Our SYN was acknowledged: the first measure, unless it was sent more than once (RFC 6298)."""
        tcb = self.conns.tcbs[c]
        tcb.timers.rto = 0
        if tcb.rtt_syn:
            calls.round_trip(self.conns.at, c, self.conns.now - tcb.rtt_syn)
            tcb.min_rtt = max(self.conns.now - tcb.rtt_syn, 1)
        tcb.rtt_syn = 0

    def _fin(self, c: int) -> None:
        """The peer's FIN is next in sequence."""
        tcb = self.conns.tcbs[c]
        state = tcb.state
        if state in (TcpState.CLOSE_WAIT, TcpState.CLOSING, TcpState.LAST_ACK, TcpState.TIME_WAIT):
            return
        tcb.rcv_nxt = (tcb.rcv_nxt + 1) & MASK32
        if seq_lt(tcb.rcv_adv, tcb.rcv_nxt):
            tcb.rcv_adv = tcb.rcv_nxt
        self.conns.set_flag(c, Flag.ACK_NOW)
        if state == TcpState.ESTABLISHED:
            self.control.enter(c, TcpState.CLOSE_WAIT)
        elif state == TcpState.FIN_WAIT_1:
            self.control.enter(c, TcpState.CLOSING)
        else:
            self._time_wait(c)

    def _time_wait(self, c: int) -> None:
        tcb = self.conns.tcbs[c]
        self.control.enter(c, TcpState.TIME_WAIT)
        tcb.timers.rto = tcb.timers.persist = tcb.timers.pto = tcb.timers.reo = tcb.timers.keep = 0
        self.conns.timer(c, "wait", self.conns.config.time_wait_ns)

    # -- the network below ------------------------------------------------------------------------

    def neighbour_up(self, address: int) -> None:
        """A neighbour's MAC became known or changed: update templates, send what waited for it."""
        high, low = ip_words(address)
        for c in range(self.conns.record.rows):
            tcb = self.conns.tcbs[c]
            if tcb.state and tcb.next_hop == low and tcb.next_hop_hi == high:
                waited = not self.conns.flag(c, Flag.MAC) and not self.passive.is_asked(c)
                self.conns.template(c)
                if waited and tcb.state in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED):
                    tcb.user_retries = tcb.timers.rto = 0  # its time begins now
                    self.control.send_syn(c)

    def icmp_error(self, error: IcmpError) -> None:
        """An ICMP error quotes a segment of ours (RFC 5927: it counts only if that is in flight)."""
        c = self.conns.lookup(error.source, error.target, error.ports)
        if c < 0 or self.conns.state(c) == TcpState.CLOSED:
            return
        tcb = self.conns.tcbs[c]
        handshake = tcb.state in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED)
        inside = seq_le(tcb.snd_una, error.seq) and seq_lt(error.seq, tcb.snd_nxt)
        if not inside:
            return
        if error.mtu:
            self._path_mtu(c, error)
        elif handshake and error.unreachable:
            self.control.closed(c, errno.EHOSTUNREACH)
        # On an established connection it is a soft error (RFC 5461): retransmissions decide.

    def _path_mtu(self, c: int, error: IcmpError) -> None:
        """RFC 1191 and 8201: smaller segments from now on, and what was too big once more."""
        tcb = self.conns.tcbs[c]
        if error.mtu >= tcb.path_mtu:
            return
        before = tcb.path_mtu
        tcb.path_mtu = error.mtu
        mss = max(self.conns.room(c) - (12 if self.conns.flag(c, Flag.TS) else 0), MSS_LEAST)
        if error.mtu < before and mss < tcb.mss:
            self.conns.stats.pmtu += 1
            self.conns.ip.note_mtu(error)
            tcb.mss = mss
            tcb.cwnd = max(tcb.cwnd, 2 * mss)
            calls.all_lost(self.conns.at, c)
            self.control.output(c)
