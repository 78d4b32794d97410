"""TCP's sending of control segments, the end of connections, and every timer.

What the state machine (``machine``) stands on.
"""

from __future__ import annotations

import errno

from netmem.base.clock import MS
from netmem.base.headers import ACK, RST, SYN
from netmem.base.record import clear
from netmem.inet.tcp import calls
from netmem.inet.tcp.connections import Connections
from netmem.inet.tcp.rtt import RTO_MAX
from netmem.inet.tcp.tcb import MASK32, Flag, TcpState

SYN_RETRIES, DATA_RETRIES = 5, 12


class Timed(Connections):
    """Connections with their timers."""

    def enter(self, c: int, state: int) -> None:
        """Change a connection's state; ``tcb.TRANSITIONS`` has every change there is."""
        tcb = self.tcbs[c]
        tcb.state = state
        if self.touched is not None:
            self.touched.add(c)
        if tcb.pledged:
            calls.pledge_anew(self.at, c)  # a state that receives nothing more keeps no buffers

    # -- sending ------------------------------------------------------------------------------

    def _segment(self, c: int, seq: int, flags: int) -> int:
        return calls.header(self.at, c, seq, flags)

    def _send_syn(self, c: int) -> None:
        tcb = self.tcbs[c]
        flags = SYN if tcb.state == TcpState.SYN_SENT else SYN | ACK
        if tcb.timers.rto == 0:
            self.timer(c, "rto", tcb.rto << min(tcb.backoff, 6))
        if not self.flag(c, Flag.MAC):
            self.template(c)
            if not self.flag(c, Flag.MAC):
                return  # ARP is on its way; the answer sends it
        self._segment(c, tcb.iss, flags)
        again = tcb.backoff or tcb.snd_nxt != tcb.iss
        tcb.snd_nxt = (tcb.iss + 1) & MASK32
        tcb.rtt_syn = 0 if again else self.now

    def output(self, c: int) -> None:
        """Send what there is for one connection; what does not fit goes with the next poll."""
        if calls.send(self.at, c, False) < 0:
            self.timer(c, "delack", MS)
            self.set_flag(c, Flag.ACK_NOW)

    def closed(self, c: int, error: int) -> None:
        """The connection is over. The row stays while a socket or listener refers to it.

        One that waits to be accepted goes on waiting, as in Linux: whoever accepts it learns of the end.
        """
        tcb = self.tcbs[c]
        listener = next((s for s in self.listeners.values() if s.id == tcb.listener), None)
        if listener is not None and c in listener.half_open:
            listener.half_open.remove(c)
            self.set_flag(c, Flag.ORPHAN)
        self.enter(c, TcpState.CLOSED)
        self.fed(c)
        tcb.error = error
        clear(tcb.timers)
        calls.forget_sent(self.at, c)
        if self.flag(c, Flag.ORPHAN):
            self.free_row(c)

    def abort(self, c: int) -> None:
        """ABORT: RST to the peer, everything given back."""
        if self.state(c) not in (TcpState.CLOSED, TcpState.SYN_SENT, TcpState.TIME_WAIT) and self.flag(
            c, Flag.MAC
        ):
            self._segment(c, self.tcbs[c].snd_nxt, RST | ACK)
            self.stats.out_rst += 1
        self.set_flag(c, Flag.ORPHAN)
        self.closed(c, errno.ECONNABORTED)

    # -- timers -------------------------------------------------------------------------------

    def timers(self) -> None:
        """Everything that has run out by now."""
        if self.now < self.record.timer:
            return
        n = calls.timers_due(self.at, self._due)
        for c in self._due[:n].tolist():
            tcb = self.tcbs[c]
            for name, expire in (
                ("rto", self._retransmission_timeout),
                ("delack", self._delayed_ack),
                ("persist", self._persist),
                ("wait", self._wait_over),
                ("reo", self._reordering_timeout),
                ("pto", self._loss_probe),
                ("keep", self._keepalive),
            ):
                at = getattr(tcb.timers, name)
                if tcb.state and at and at <= self.now:
                    setattr(tcb.timers, name, 0)
                    expire(c)

    def _retransmission_timeout(self, c: int) -> None:
        """RFC 6298, section 5, and RFC 5681's answer to it."""
        tcb = self.tcbs[c]
        handshake = tcb.state in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED)
        tcb.user_retries += 1
        if tcb.user_retries > (SYN_RETRIES if handshake else DATA_RETRIES) or self._stuck(c):
            self.stats.timeouts += 1
            asked = handshake and not self.flag(c, Flag.MAC)
            self.closed(c, errno.EHOSTUNREACH if asked else errno.ETIMEDOUT)
            return
        self.stats.rto += 1
        self.template(c)  # the neighbour may have another MAC by now
        # A SYN that waits for its neighbour was not sent: the neighbour is asked again, at the same pace.
        tcb.backoff += not handshake or self.flag(c, Flag.MAC)
        tcb.rtt_syn = 0
        if handshake:
            self._send_syn(c)
            return
        calls.timed_out(self.at, c)
        self.output(c)

    def _reordering_timeout(self, c: int) -> None:
        """RFC 8985, 6.3: what was overtaken for too long is lost."""
        calls.overtaken(self.at, c)
        self.output(c)

    def _loss_probe(self, c: int) -> None:
        """RFC 8985, 7.3: the peer has been silent for two round trips."""
        calls.loss_probe(self.at, c)

    def set_keepalive(self, c: int, idle: int, interval: int, count: int) -> None:
        """Probe a silent peer after ``idle`` ns, every ``interval`` ns, ``count`` times; 0: never."""
        tcb = self.tcbs[c]
        tcb.keep_idle, tcb.keep_interval, tcb.keep_count = idle, interval, count
        tcb.keep_probes = 0
        if idle:
            self.set_flag(c, Flag.KEEPALIVE)
            self.timer(c, "keep", idle)
        else:
            self.clear_flag(c, Flag.KEEPALIVE)
            tcb.timers.keep = 0

    def _keepalive(self, c: int) -> None:
        """RFC 9293, 3.8.4: nothing was heard for a while; is the peer still there?"""
        tcb = self.tcbs[c]
        if tcb.state < TcpState.ESTABLISHED or tcb.state == TcpState.TIME_WAIT:
            self.timer(c, "keep", tcb.keep_idle)
            return
        silent = self.now - tcb.last_in
        if silent < tcb.keep_idle:
            tcb.keep_probes = 0
            self.timer(c, "keep", tcb.keep_idle - silent)
            return
        limit = tcb.user_timeout
        if tcb.keep_probes >= tcb.keep_count or (limit and silent >= limit and tcb.keep_probes):
            self.stats.timeouts += 1
            self.closed(c, errno.ETIMEDOUT)
            return
        tcb.keep_probes += 1
        self.stats.keepalives += 1
        self._probe(c)
        self.timer(c, "keep", tcb.keep_interval)

    def _probe(self, c: int) -> None:
        calls.probe(self.at, c)

    def _stuck(self, c: int) -> bool:
        """True when the user timeout (RFC 5482) has passed without progress."""
        tcb = self.tcbs[c]
        limit = tcb.user_timeout
        return bool(limit) and self.now - tcb.stuck_at >= limit

    def _delayed_ack(self, c: int) -> None:
        self.stats.delayed_acks += 1
        self.set_flag(c, Flag.ACK_NOW)
        self.output(c)

    def _persist(self, c: int) -> None:
        """RFC 9293, 3.8.6.1: probe a closed window, ever more rarely, as long as the peer answers.

        A window too small for a whole segment gets the part that fits (3.8.6.2.1, the override).
        """
        tcb = self.tcbs[c]
        if tcb.snd_wnd:
            if calls.send(self.at, c, True) < 0:
                self.timer(c, "persist", MS)
            return
        tcb.user_retries += 1
        if tcb.user_retries > DATA_RETRIES or self._stuck(c):
            self.stats.timeouts += 1
            self.closed(c, errno.ETIMEDOUT)
            return
        self._probe(c)
        tcb.backoff = min(tcb.backoff + 1, 10)
        self.timer(c, "persist", min(tcb.rto << min(tcb.backoff, 8), RTO_MAX))

    def _wait_over(self, c: int) -> None:
        """2 MSL passed, or the peer of an orphan never closed."""
        if self.flag(c, Flag.ORPHAN):
            self.free_row(c)
        else:
            self.closed(c, 0)
