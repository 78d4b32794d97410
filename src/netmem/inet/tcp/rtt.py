"""Round trips, and the retransmission timeout that follows from them (kernels): RFC 6298."""

from __future__ import annotations

from netmem.base.clock import MS
from netmem.base.jit import kernel
from netmem.inet.tcp.tcb import StackRecord, Tcb

RTO_MIN = 200 * MS
RTO_MAX = 60_000 * MS


@kernel
def arm(stack: StackRecord, at: int) -> None:
    """Remember that a timer runs out at ``at``."""
    if at < stack.timer:
        stack.timer = at


@kernel
def update_rtt(tcb: Tcb, rtt: int) -> None:
    """RFC 6298, section 2: smooth a measured round trip of ``rtt`` ns, and set the timeout."""
    if rtt > RTO_MAX:
        return
    if tcb.srtt == 0:
        tcb.srtt, tcb.rttvar = max(rtt, 1), rtt // 2
    else:
        tcb.rttvar += (abs(tcb.srtt - rtt) - tcb.rttvar) // 4
        tcb.srtt = max(1, tcb.srtt + (rtt - tcb.srtt) // 8)
    tcb.rto = min(max(tcb.srtt + max(4 * tcb.rttvar, MS), RTO_MIN), RTO_MAX)
