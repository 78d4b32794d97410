"""TCP's timers: what happens when one runs out (net/ipv4/tcp_timer.c)."""

from __future__ import annotations

import errno

import numpy as np

from netmem.base.arena import Words
from netmem.base.clock import MS
from netmem.inet.tcp import calls
from netmem.inet.tcp.connections import Connections
from netmem.inet.tcp.control import Control
from netmem.inet.tcp.rtt import RTO_MAX
from netmem.inet.tcp.tcb import Flag, TcpState

SYN_RETRIES, DATA_RETRIES = 5, 12


class TcpTimers:
    """Every timer of every connection."""

    def __init__(self, conns: Connections, control: Control) -> None:
        self.conns, self.control = conns, control
        self._due: Words = np.zeros(256, np.int64)

    def run(self) -> None:
        """Everything that has run out by now."""
        if self.conns.now < self.conns.record.timer:
            return
        n = calls.timers_due(self.conns.at, self._due)
        for c in self._due[:n].tolist():
            tcb = self.conns.tcbs[c]
            for name, expire in (
                ("rto", self._retransmission_timeout),
                ("delack", self._delayed_ack),
                ("persist", self._persist),
                ("wait", self._wait_over),
                ("reo", self._reordering_timeout),
                ("pto", self._loss_probe),
                ("keep", self._keepalive),
                ("xmit", self._transmit),
            ):
                at = getattr(tcb.timers, name)
                if tcb.state and at and at <= self.conns.now:
                    setattr(tcb.timers, name, 0)
                    expire(c)

    def _retransmission_timeout(self, c: int) -> None:
        """RFC 6298, section 5, and RFC 5681's answer to it."""
        tcb = self.conns.tcbs[c]
        handshake = tcb.state in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED)
        tcb.user_retries += 1
        if tcb.user_retries > (SYN_RETRIES if handshake else DATA_RETRIES) or self._stuck(c):
            self.conns.stats.timeouts += 1
            asked = handshake and not self.conns.flag(c, Flag.MAC)
            self.control.closed(c, errno.EHOSTUNREACH if asked else errno.ETIMEDOUT)
            return
        self.conns.stats.rto += 1
        self.conns.template(c)  # the neighbour may have another MAC by now
        # A SYN that waits for its neighbour was not sent: the neighbour is asked again, at the same pace.
        tcb.backoff += not handshake or self.conns.flag(c, Flag.MAC)
        tcb.rtt_syn = 0
        if handshake:
            self.control.send_syn(c)
            return
        calls.timed_out(self.conns.at, c)
        self.control.output(c)

    def _reordering_timeout(self, c: int) -> None:
        """RFC 8985, 6.3: what was overtaken for too long is lost."""
        calls.overtaken(self.conns.at, c)
        self.control.output(c)

    def _loss_probe(self, c: int) -> None:
        """RFC 8985, 7.3: the peer has been silent for two round trips."""
        calls.loss_probe(self.conns.at, c)

    def set_keepalive(self, c: int, idle: int, interval: int, count: int) -> None:
        """Probe a silent peer after ``idle`` ns, every ``interval`` ns, ``count`` times; 0: never."""
        tcb = self.conns.tcbs[c]
        tcb.keep_idle, tcb.keep_interval, tcb.keep_count = idle, interval, count
        tcb.keep_probes = 0
        if idle:
            self.conns.set_flag(c, Flag.KEEPALIVE)
            self.conns.timer(c, "keep", idle)
        else:
            self.conns.clear_flag(c, Flag.KEEPALIVE)
            tcb.timers.keep = 0

    def _keepalive(self, c: int) -> None:
        """RFC 9293, 3.8.4: nothing was heard for a while; is the peer still there?"""
        tcb = self.conns.tcbs[c]
        if tcb.state < TcpState.ESTABLISHED or tcb.state == TcpState.TIME_WAIT:
            self.conns.timer(c, "keep", tcb.keep_idle)
            return
        silent = self.conns.now - tcb.last_in
        if silent < tcb.keep_idle:
            tcb.keep_probes = 0
            self.conns.timer(c, "keep", tcb.keep_idle - silent)
            return
        limit = tcb.user_timeout
        if tcb.keep_probes >= tcb.keep_count or (limit and silent >= limit and tcb.keep_probes):
            self.conns.stats.timeouts += 1
            self.control.closed(c, errno.ETIMEDOUT)
            return
        tcb.keep_probes += 1
        self.conns.stats.keepalives += 1
        self._probe(c)
        self.conns.timer(c, "keep", tcb.keep_interval)

    def _probe(self, c: int) -> None:
        calls.probe(self.conns.at, c)

    def _stuck(self, c: int) -> bool:
        """True when the user timeout (RFC 5482) has passed without progress."""
        tcb = self.conns.tcbs[c]
        limit = tcb.user_timeout
        return bool(limit) and self.conns.now - tcb.stuck_at >= limit

    def _delayed_ack(self, c: int) -> None:
        self.conns.stats.delayed_acks += 1
        self.conns.set_flag(c, Flag.ACK_NOW)
        self.control.output(c)

    def _transmit(self, c: int) -> None:
        """There was no transmit row for what the connection had to send."""
        if self.conns.flag(c, Flag.ABORTED):
            self.control.abort(c)
        elif self.conns.state(c) in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED):
            self.control.send_syn(c)
        else:
            self.control.output(c)

    def _persist(self, c: int) -> None:
        """RFC 9293, 3.8.6.1: probe a closed window, ever more rarely, as long as the peer answers.

        A window too small for a whole segment gets the part that fits (3.8.6.2.1, the override).
        """
        tcb = self.conns.tcbs[c]
        if tcb.snd_wnd:
            if calls.send(self.conns.at, c, True) < 0:
                self.conns.timer(c, "persist", MS)
            return
        tcb.user_retries += 1
        if tcb.user_retries > DATA_RETRIES or self._stuck(c):
            self.conns.stats.timeouts += 1
            self.control.closed(c, errno.ETIMEDOUT)
            return
        self._probe(c)
        tcb.backoff = min(tcb.backoff + 1, 10)
        self.conns.timer(c, "persist", min(tcb.rto << min(tcb.backoff, 8), RTO_MAX))

    def _wait_over(self, c: int) -> None:
        """2 MSL passed, or the peer of an orphan never closed."""
        if self.conns.flag(c, Flag.ORPHAN):
            self.conns.free_row(c)
        else:
            self.control.closed(c, 0)
