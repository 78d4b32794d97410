"""What two peers agree on with their SYNs: options, first sequence numbers, the first window."""

from __future__ import annotations

import ctypes

from netmem.base.headers import TcpHdr, TcpOpt
from netmem.inet.tcp import calls
from netmem.inet.tcp import output as o
from netmem.inet.tcp.connections import MSS_DEFAULT, Connections
from netmem.inet.tcp.cookies import Offer
from netmem.inet.tcp.tcb import MASK32, Flag
from netmem.netdev.batch import RxRow

MSS_LEAST = 48


def offer_of(conns: Connections, row: RxRow) -> Offer:
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
            conns.stats.bad_options += 1
            break
        if options[at] == TcpOpt.MSS and size == 4:
            mss = max(64, int.from_bytes(options[at + 2 : at + 4], "big"))
        elif options[at] == TcpOpt.WSCALE and size == 3:
            scale = min(options[at + 2], 14)
        elif options[at] == TcpOpt.SACK_OK and size == 2:
            sack_ok = True
        at += size
    return Offer(mss, scale, sack_ok, bool(row.has_timestamp))


def read_syn(conns: Connections, c: int, row: RxRow) -> None:
    """Take the peer's initial sequence number and options."""
    tcb = conns.tcbs[c]
    tcb.snd_wl1, tcb.snd_wl2 = row.seq, row.ack
    tcb.snd_wnd = tcb.max_snd_wnd = row.window
    take_offer(conns, c, offer_of(conns, row), row, row.seq)
    first_window(conns, c)


def take_offer(conns: Connections, c: int, offer: Offer, row: RxRow, irs: int) -> None:
    """Agree on what a peer whose SYN had sequence number ``irs`` offered."""
    tcb = conns.tcbs[c]
    tcb.irs = irs
    tcb.rcv_nxt = tcb.rcv_adv = (irs + 1) & MASK32
    if not offer.sack:
        conns.clear_flag(c, Flag.SACK)
    if offer.scale < 0:
        conns.clear_flag(c, Flag.WSCALE)
        tcb.rcv_scale = 0
        tcb.rcv_buf = min(tcb.rcv_buf, 0xFFFF)
    tcb.snd_scale = max(offer.scale, 0)
    if offer.stamp:
        tcb.ts_recent, tcb.ts_recent_at = row.tsval, conns.now
    else:
        conns.clear_flag(c, Flag.TS)
        tcb.rcv_mss = tcb.adv_mss
    tcb.mss = max(min(offer.mss, conns.room(c)) - (12 if offer.stamp else 0), MSS_LEAST)
    tcb.cwnd = o.INITIAL_WINDOW * tcb.mss


def first_window(conns: Connections, c: int) -> None:
    """What a SYN or SYN-ACK may advertise, out of what the pool has left; nothing is pledged yet.

    Connections that are half open leave each other their part.
    """
    tcb = conns.tcbs[c]
    half_open = sum(len(listener.half_open) for listener in conns.listeners.values())
    buffers = calls.room(conns.at, c) // (1 + half_open)
    window = min(0xFFFF, tcb.rcv_buf, buffers * tcb.per_buffer)
    tcb.rcv_adv = (tcb.rcv_nxt + window) & MASK32
