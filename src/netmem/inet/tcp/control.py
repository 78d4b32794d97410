"""What TCP does to a connection from more than one side: its state, control segments, its end."""

from __future__ import annotations

import errno

from netmem.base.clock import MS
from netmem.base.headers import ACK, RST, SYN
from netmem.base.record import clear
from netmem.inet.tcp import calls
from netmem.inet.tcp.connections import Connections
from netmem.inet.tcp.tcb import MASK32, Flag, TcpState


class Control:
    """Changes the state of connections, sends their control segments, ends them."""

    def __init__(self, conns: Connections) -> None:
        self.conns = conns

    def enter(self, c: int, state: int) -> None:
        """Change a connection's state; ``tcb.TRANSITIONS`` has every change there is."""
        tcb = self.conns.tcbs[c]
        tcb.state = state
        calls.note_active(self.conns.at, c)
        if tcb.pledged:
            calls.pledge_anew(self.conns.at, c)  # a state that receives nothing more keeps no buffers

    def segment(self, c: int, seq: int, flags: int) -> int:
        """Send a segment without payload; 0, or less than 0 when the ring is full."""
        return calls.header(self.conns.at, c, seq, flags)

    def send_syn(self, c: int) -> None:
        """SYN, or SYN-ACK once the peer's SYN is known; waits for the neighbour's MAC."""
        tcb = self.conns.tcbs[c]
        flags = SYN if tcb.state == TcpState.SYN_SENT else SYN | ACK
        if tcb.timers.rto == 0:
            self.conns.timer(c, "rto", tcb.rto << min(tcb.backoff, 6))
        if not self.conns.flag(c, Flag.MAC):
            self.conns.template(c)
            if not self.conns.flag(c, Flag.MAC):
                return  # ARP is on its way; the answer sends it
        if self.segment(c, tcb.iss, flags) < 0:
            self.conns.timer(c, "xmit", MS)
        again = tcb.backoff or tcb.snd_nxt != tcb.iss
        tcb.snd_nxt = (tcb.iss + 1) & MASK32
        tcb.rtt_syn = 0 if again else self.conns.now

    def output(self, c: int) -> None:
        """Send what there is for one connection; what finds no transmit row tries again."""
        if calls.send(self.conns.at, c, False) < 0:
            self.conns.timer(c, "xmit", MS)

    def closed(self, c: int, error: int) -> None:
        """The connection is over. The row stays while a socket or listener refers to it.

        One that waits to be accepted goes on waiting, as in Linux: whoever accepts it learns of the end.
        """
        tcb = self.conns.tcbs[c]
        listener = next((s for s in self.conns.listeners.values() if s.id == tcb.listener), None)
        if listener is not None and c in listener.half_open:
            listener.half_open.remove(c)
            self.conns.set_flag(c, Flag.ORPHAN)
        self.enter(c, TcpState.CLOSED)
        self.conns.fed(c)
        tcb.error = error
        clear(tcb.timers)
        calls.forget_sent(self.conns.at, c)
        if self.conns.flag(c, Flag.ORPHAN):
            self.conns.free_row(c)

    def abort(self, c: int) -> None:
        """ABORT: RST to the peer, everything given back, once there is a transmit row for it."""
        silent = (TcpState.CLOSED, TcpState.SYN_SENT, TcpState.TIME_WAIT)
        if self.conns.state(c) not in silent and self.conns.flag(c, Flag.MAC):
            if self.segment(c, self.conns.tcbs[c].snd_nxt, RST | ACK) < 0:
                self.conns.set_flag(c, Flag.ORPHAN | Flag.ABORTED)
                self.conns.timer(c, "xmit", MS)
                self.conns.release_queues(c)
                return
            self.conns.stats.out_rst += 1
        self.conns.set_flag(c, Flag.ORPHAN)
        self.closed(c, errno.ECONNABORTED)
