"""TCP's sending of control segments, the end of connections, and every timer.

What the state machine (``machine``) stands on.
"""

from __future__ import annotations

import errno

from netmem.base.clock import MS
from netmem.base.formats import ACK, RST, SYN
from netmem.inet.tcp import output as o
from netmem.inet.tcp import recovery as rec
from netmem.inet.tcp import segment as seg
from netmem.inet.tcp import tcb as T
from netmem.inet.tcp import window as w
from netmem.inet.tcp.connections import Connections

SYN_RETRIES, DATA_RETRIES = 5, 12


class Timed(Connections):
    """Connections with their timers."""

    def enter(self, c: int, state: int) -> None:
        """Change a connection's state; ``tcb.TRANSITIONS`` has every change there is."""
        self.v[c, T.STATE] = state
        if self.touched is not None:
            self.touched.add(c)
        if self.v[c, T.PLEDGED]:
            w.pledge_anew(self.g, self.t, c)  # a state that receives nothing more keeps no buffers

    # -- sending ------------------------------------------------------------------------------

    def _segment(self, c: int, seq: int, flags: int) -> int:
        tx = self.dev.tx
        r: int = seg.tcp_header(self.g, self.t, self.e, c, tx.meta, tx.rows, seq, flags, 0)
        return r

    def _send_syn(self, c: int) -> None:
        v = self.v
        flags = SYN if v[c, T.STATE] == T.SYN_SENT else SYN | ACK
        if v[c, T.RTO_AT] == 0:
            self.timer(c, T.RTO_AT, v[c, T.RTO] << min(v[c, T.BACKOFF], 6))
        if not self.flag(c, T.CF_MAC):
            self.template(c)
            if not self.flag(c, T.CF_MAC):
                return  # ARP is on its way; the answer sends it
        self._segment(c, v[c, T.ISS], flags)
        again = v[c, T.BACKOFF] or v[c, T.SND_NXT] != v[c, T.ISS]
        v[c, T.SND_NXT] = (v[c, T.ISS] + 1) & T.MASK32
        v[c, T.RTT_SYN] = 0 if again else self.now

    def output(self, c: int) -> None:
        """Send what there is for one connection; what does not fit goes with the next poll."""
        tx = self.dev.tx
        if o.tcp_output(self.g, self.t, self.e, c, tx.meta, tx.rows, False) < 0:
            self.timer(c, T.DELACK_AT, MS)
            self.set_flag(c, T.CF_ACK_NOW)

    def closed(self, c: int, error: int) -> None:
        """The connection is over. The row stays while a socket or listener refers to it.

        One that waits to be accepted goes on waiting, as in Linux: whoever accepts it learns of the end.
        """
        v = self.v
        listener = next((s for s in self.listeners.values() if s.id == v[c, T.LISTENER]), None)
        if listener is not None and c in listener.half_open:
            listener.half_open.remove(c)
            self.set_flag(c, T.CF_ORPHAN)
        self.enter(c, T.CLOSED)
        self.fed(c)
        v[c, T.ERROR] = error
        for word in range(T.RTO_AT, T.LAST_TIMER + 1):
            v[c, word] = 0
        rec.tq_clear(self.g, self.t, self.e, c)
        if v[c, T.SP_HEAD]:  # never acknowledged, but over as soon as the NIC reads it no more
            rec.spans_acked(self.g, self.t, self.e, c, self.dev.tx.meta, True)
        if self.flag(c, T.CF_ORPHAN):
            self.free_row(c)

    def abort(self, c: int) -> None:
        """ABORT: RST to the peer, everything given back."""
        if self.state(c) not in (T.CLOSED, T.SYN_SENT, T.TIME_WAIT) and self.flag(c, T.CF_MAC):
            self._segment(c, self.v[c, T.SND_NXT], RST | ACK)
            self.count(T.S_OUT_RST)
        self.set_flag(c, T.CF_ORPHAN)
        self.closed(c, errno.ECONNABORTED)

    # -- timers -------------------------------------------------------------------------------

    def timers(self) -> None:
        """Everything that has run out by now."""
        if self.now < self.gv[T.G_TIMER]:
            return
        n = int(o.tcp_timers(self.g, self.t, self._due))
        for c in self._due[:n].tolist():
            for word, expire in (
                (T.RTO_AT, self._retransmission_timeout),
                (T.DELACK_AT, self._delayed_ack),
                (T.PERSIST_AT, self._persist),
                (T.WAIT_AT, self._wait_over),
                (T.REO_AT, self._reordering_timeout),
                (T.PTO_AT, self._loss_probe),
                (T.KEEP_AT, self._keepalive),
            ):
                at = self.v[c, word]
                if self.v[c, T.STATE] and at and at <= self.now:
                    self.v[c, word] = 0
                    expire(c)

    def _retransmission_timeout(self, c: int) -> None:
        """RFC 6298, section 5, and RFC 5681's answer to it."""
        v = self.v
        handshake = v[c, T.STATE] in (T.SYN_SENT, T.SYN_RECEIVED)
        v[c, T.USER_RETRIES] += 1
        if v[c, T.USER_RETRIES] > (SYN_RETRIES if handshake else DATA_RETRIES) or self._stuck(c):
            self.count(T.S_TIMEOUTS)
            asked = handshake and not self.flag(c, T.CF_MAC)
            self.closed(c, errno.EHOSTUNREACH if asked else errno.ETIMEDOUT)
            return
        self.count(T.S_RTO)
        self.template(c)  # the neighbour may have another MAC by now
        # A SYN that waits for its neighbour was not sent: the neighbour is asked again, at the same pace.
        v[c, T.BACKOFF] += not handshake or self.flag(c, T.CF_MAC)
        v[c, T.RTT_SYN] = 0
        if handshake:
            self._send_syn(c)
            return
        rec.timed_out(self.g, self.t, self.e, c)
        self.output(c)

    def _reordering_timeout(self, c: int) -> None:
        """RFC 8985, 6.3: what was overtaken for too long is lost."""
        if rec.rack_detect(self.g, self.t, self.e, c) and not (
            self.v[c, T.FLAGS] & (T.CF_RECOVERY | T.CF_LOSS)
        ):
            rec.enter_recovery(self.g, self.t, c)
        self.output(c)

    def _loss_probe(self, c: int) -> None:
        """RFC 8985, 7.3: the peer has been silent for two round trips."""
        tx = self.dev.tx
        o.loss_probe(self.g, self.t, self.e, c, tx.meta, tx.rows)

    def set_keepalive(self, c: int, idle: int, interval: int, count: int) -> None:
        """Probe a silent peer after ``idle`` ns, every ``interval`` ns, ``count`` times; 0: never."""
        v = self.v
        v[c, T.KEEP_IDLE], v[c, T.KEEP_INTERVAL], v[c, T.KEEP_COUNT] = idle, interval, count
        v[c, T.KEEP_PROBES] = 0
        if idle:
            self.set_flag(c, T.CF_KEEPALIVE)
            self.timer(c, T.KEEP_AT, idle)
        else:
            self.clear_flag(c, T.CF_KEEPALIVE)
            v[c, T.KEEP_AT] = 0

    def _keepalive(self, c: int) -> None:
        """RFC 9293, 3.8.4: nothing was heard for a while; is the peer still there?"""
        v = self.v
        if v[c, T.STATE] < T.ESTABLISHED or v[c, T.STATE] == T.TIME_WAIT:
            self.timer(c, T.KEEP_AT, v[c, T.KEEP_IDLE])
            return
        silent = self.now - v[c, T.LAST_IN]
        if silent < v[c, T.KEEP_IDLE]:
            v[c, T.KEEP_PROBES] = 0
            self.timer(c, T.KEEP_AT, v[c, T.KEEP_IDLE] - silent)
            return
        limit = v[c, T.USER_TIMEOUT]
        if v[c, T.KEEP_PROBES] >= v[c, T.KEEP_COUNT] or (limit and silent >= limit and v[c, T.KEEP_PROBES]):
            self.count(T.S_TIMEOUTS)
            self.closed(c, errno.ETIMEDOUT)
            return
        v[c, T.KEEP_PROBES] += 1
        self.count(T.S_KEEPALIVES)
        self._probe(c)
        self.timer(c, T.KEEP_AT, v[c, T.KEEP_INTERVAL])

    def _probe(self, c: int) -> None:
        tx = self.dev.tx
        o.tcp_probe(self.g, self.t, self.e, c, tx.meta, tx.rows)

    def _stuck(self, c: int) -> bool:
        """True when the user timeout (RFC 5482) has passed without progress."""
        limit = self.v[c, T.USER_TIMEOUT]
        return bool(limit) and self.now - self.v[c, T.STUCK_AT] >= limit

    def _delayed_ack(self, c: int) -> None:
        self.count(T.S_DELAYED_ACKS)
        self.set_flag(c, T.CF_ACK_NOW)
        self.output(c)

    def _persist(self, c: int) -> None:
        """RFC 9293, 3.8.6.1: probe a closed window, ever more rarely, as long as the peer answers.

        A window too small for a whole segment gets the part that fits (3.8.6.2.1, the override).
        """
        v, tx = self.v, self.dev.tx
        if v[c, T.SND_WND]:
            if o.tcp_output(self.g, self.t, self.e, c, tx.meta, tx.rows, True) < 0:
                self.timer(c, T.PERSIST_AT, MS)
            return
        v[c, T.USER_RETRIES] += 1
        if v[c, T.USER_RETRIES] > DATA_RETRIES or self._stuck(c):
            self.count(T.S_TIMEOUTS)
            self.closed(c, errno.ETIMEDOUT)
            return
        self._probe(c)
        v[c, T.BACKOFF] = min(v[c, T.BACKOFF] + 1, 10)
        self.timer(c, T.PERSIST_AT, min(v[c, T.RTO] << min(v[c, T.BACKOFF], 8), rec.RTO_MAX))

    def _wait_over(self, c: int) -> None:
        """2 MSL passed, or the peer of an orphan never closed."""
        if self.flag(c, T.CF_ORPHAN):
            self.free_row(c)
        else:
            self.closed(c, 0)
