"""How fast to go (kernels): slow start, and CUBIC (RFC 5681, 9438)."""

from __future__ import annotations

from netmem.base.jit import kernel
from netmem.inet.tcp.tcb import StackRecord, Tcb, seq_diff

CWND_MAX = 1 << 30
BETA, CUBIC_C = 0.7, 0.4  # RFC 9438, 4.6 and 5
ALPHA = 3 * (1 - BETA) / (1 + BETA)


@kernel
def cubic_grow(stack: StackRecord, tcb: Tcb, acked: int) -> None:
    """New data was acknowledged: slow start, or RFC 9438, section 4."""
    cwnd, mss = tcb.cwnd, tcb.mss
    if cwnd < tcb.ssthresh:
        tcb.cwnd = min(cwnd + acked, CWND_MAX)
        return
    if tcb.cubic_epoch == 0:
        tcb.cubic_epoch, tcb.cubic_west = stack.now, cwnd
        if cwnd < tcb.cubic_wmax:
            segments = (tcb.cubic_wmax - cwnd) / mss
            tcb.cubic_k = int((segments / CUBIC_C) ** (1 / 3) * 1e9)
        else:
            tcb.cubic_k, tcb.cubic_wmax = 0, cwnd
    since = (stack.now - tcb.cubic_epoch - tcb.cubic_k) / 1e9
    now = CUBIC_C * since * since * since * mss + tcb.cubic_wmax
    then = since + tcb.srtt / 1e9
    target = CUBIC_C * then * then * then * mss + tcb.cubic_wmax
    alpha = 1.0 if tcb.cubic_west >= tcb.cubic_wmax else ALPHA
    tcb.cubic_west += max(1, int(alpha * mss * acked / cwnd))
    if now < tcb.cubic_west:  # as friendly to Reno as Reno (4.3)
        cwnd = max(cwnd, tcb.cubic_west)
    else:
        target = min(max(target, float(cwnd)), 1.5 * cwnd)
        cwnd += int((target - cwnd) * acked / cwnd)
    tcb.cwnd = min(cwnd, CWND_MAX)


@kernel
def cubic_reduce(tcb: Tcb) -> None:
    """A loss: RFC 9438, sections 4.6 and 4.7. Sets SSTHRESH."""
    flight = seq_diff(tcb.snd_nxt, tcb.snd_una)
    cwnd = min(tcb.cwnd, max(flight, 2 * tcb.mss))
    tcb.cubic_wmax = int(cwnd * (1 + BETA) / 2) if cwnd < tcb.cubic_wmax else cwnd
    tcb.cubic_epoch = 0
    tcb.ssthresh = max(int(cwnd * BETA), 2 * tcb.mss)
