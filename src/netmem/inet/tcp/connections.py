"""The connections of a TCP: table, hash, receive entries, header templates, and their accounts.

What the state machine (``machine``) works on; kernels share all of it (net/ipv4/inet_hashtables.c).
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from netmem.base.address import ip_bytes, ip_number, ip_words, is_ip4
from netmem.base.arena import Arena, Words
from netmem.base.clock import FAR, MS, SEC
from netmem.base.errors import NetmemError
from netmem.base.headers import IP_DF, PROTO_TCP, EtherType, EthHdr
from netmem.base.record import clear, items
from netmem.inet.ip import Ip
from netmem.inet.tcp import calls
from netmem.inet.tcp.tcb import (
    LIST_ROOM,
    MASK32,
    MAX_QUEUES,
    RELEASE_ROOM,
    Entry,
    Flag,
    Release,
    StackRecord,
    Tcb,
    TcpState,
)
from netmem.inet.tcp.window import MEASURE
from netmem.memory.sanitizer import SanitizerError
from netmem.memory.shadow import Trap
from netmem.netdev.device import NetDevice

INITIAL_RTO = 1 * SEC
MSS_DEFAULT = 536
ENDS = {  # what a peer did, by the error that its connection ended with
    errno.ECONNRESET: "reset the connection",
    errno.ECONNREFUSED: "refused the connection",
    errno.ETIMEDOUT: "stopped answering",
    errno.ECONNABORTED: "was cut off: the connection was aborted here",
}


@dataclass
class Listener:
    """A port that accepts: connections half open, and those ready to be accepted.

    Beyond ``most_half_open`` a SYN is answered with a cookie. With ``ask`` it is told of each other SYN, by
    the connection's row, and the SYN waits for ``PassiveOpen.answer_syn``.
    """

    id: int
    port: int
    backlog: int
    most_half_open: int
    half_open: list[int] = field(default_factory=list)
    ready: deque[int] = field(default_factory=deque)
    closed: bool = False
    ask: Callable[[int], None] | None = None


@dataclass(frozen=True, kw_only=True)
class TcpConfig:
    """Sizes and times of a TCP. ``rcvbuf``, ``sndbuf``: most bytes held for a connection.

    ``secret``: what initial sequence numbers and ports come from, 16 bytes; random unless given.
    """

    connections: int = 1024
    entries: int = 1 << 17
    rcvbuf: int = 4 << 20
    sndbuf: int = 256 << 10
    delack_ns: int = 40 * MS
    time_wait_ns: int = 60 * SEC
    fin_wait_ns: int = 60 * SEC
    mss: int | None = None
    secret: bytes | None = None


class Connections:
    """The connections of one stack, over the addresses and neighbours of ``ip``."""

    def __init__(self, dev: NetDevice, ip: Ip, config: TcpConfig) -> None:
        self.dev, self.ip, self.config = dev, ip, config
        buckets = 1 << (2 * config.connections - 1).bit_length()
        at, places = ctypes.sizeof(StackRecord), []
        for size in (
            8 * LIST_ROOM,
            8 * LIST_ROOM,
            ctypes.sizeof(Release) * RELEASE_ROOM,
            8 * buckets,
            8 * config.connections,
        ):
            places.append(at)
            at += size
        self.arena = Arena("tcp:globals", at)
        self.table = Arena("tcp:connections", config.connections * ctypes.sizeof(Tcb))
        self.entry_arena = Arena("tcp:entries", (config.entries + 1) * ctypes.sizeof(Entry))
        self.at = self.arena.address
        self.tcbs = self.table.array(Tcb, 0, config.connections)
        self.entries = self.entry_arena.array(Entry, 0, config.entries + 1)
        self._blocks = self.table.table(Tcb, 0, config.connections)
        record = self.record = self.arena.record(StackRecord)
        ip.record = record
        self.stats = record.counters
        record.tcbs, record.entries, record.tx = self.table.address, self.entry_arena.address, dev.tx.at
        record.touched_list, record.slow_list, record.release_list, record.buckets, record.active_list = (
            self.at + place for place in places
        )
        self._left = self.arena.bytes[places[1] :][: 8 * LIST_ROOM].view(np.int64)
        self._releases = self.arena.table(Release, places[2], RELEASE_ROOM)
        record.bucket_mask, record.delack_ns = buckets - 1, config.delack_ns
        record.timer = FAR
        record.free_entries = config.entries
        self.free = list(range(config.connections - 1, -1, -1))
        record.active = -1
        self._active: Words = np.zeros(config.connections, np.int64)
        self.generations = [0] * config.connections  # times each row was given back: a handle is both
        self.listeners: dict[int, Listener] = {}
        self.secret = config.secret or os.urandom(16)
        record.ts_base = int.from_bytes(self.secret[:4], "big")
        self.scale = min(max(0, (config.rcvbuf >> 16).bit_length()), 14)  # Rcv.Wind.Shift that we offer

    # -- small things -------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """The time of the poll at hand, ns."""
        return self.record.now

    def counters(self) -> dict[str, int]:
        """All counters by name."""
        return items(self.stats)

    def activity(self) -> list[int]:
        """Rows that something happened to since the last such call; the first has none."""
        if self.record.active < 0:
            self.record.active = 0
        n = calls.take_active(self.at, self._active) if self.record.active else 0
        active: list[int] = self._active[:n].tolist()
        return active

    def left(self) -> list[int]:
        """Rows of the packets of the batch at hand that kernels left."""
        rows: list[int] = self._left[: self.record.slow].tolist()
        return rows

    def state(self, c: int) -> int:
        """State of a connection, a TcpState."""
        return self.tcbs[c].state

    def flag(self, c: int, flag: int) -> bool:
        """True when a connection has a Flag."""
        return bool(self.tcbs[c].flags & flag)

    def set_flag(self, c: int, flag: int) -> None:
        """Set a Flag."""
        self.tcbs[c].flags |= flag

    def clear_flag(self, c: int, flag: int) -> None:
        """Clear Flags."""
        self.tcbs[c].flags &= ~flag

    def timer(self, c: int, name: str, delay: int) -> None:
        """Start a timer, a field of ``Timers``, to run out in ``delay`` ns."""
        at = self.now + delay
        setattr(self.tcbs[c].timers, name, at)
        self.record.timer = min(self.record.timer, at)

    def touch(self, c: int) -> None:
        """Have output called for a connection at the end of the batch."""
        calls.touch(self.at, c)

    def initial_sequence(self, laddr: int, raddr: int, ports: int) -> int:
        """RFC 6528: a keyed hash of the four-tuple plus a clock of 4 us."""
        tuple_ = laddr.to_bytes(16, "big") + raddr.to_bytes(16, "big") + struct.pack("!I", ports)
        digest = hashlib.blake2b(tuple_, key=self.secret, digest_size=4).digest()
        return (int.from_bytes(digest, "big") + self.now // 4000) & MASK32

    def lookup(self, laddr: int, raddr: int, ports: int) -> int:
        """The row of a connection, or -1."""
        return calls.lookup(self.at, *ip_words(raddr), *ip_words(laddr), ports)

    def remote(self, c: int) -> int:
        """The peer's address."""
        tcb = self.tcbs[c]
        return ip_number(tcb.raddr_hi, tcb.raddr)

    def local(self, c: int) -> int:
        """Our address of a connection."""
        tcb = self.tcbs[c]
        return ip_number(tcb.laddr_hi, tcb.laddr)

    def room(self, c: int) -> int:
        """Bytes of a packet without IP and TCP headers, at the path's MTU."""
        tcb = self.tcbs[c]
        return tcb.path_mtu - (tcb.template_len - EthHdr.LEN)

    # -- rows ---------------------------------------------------------------------------------

    def has_row(self) -> bool:
        """True when there is a row for one more connection."""
        return bool(self.free) or self._evict_time_wait()

    def new_row(self, laddr: int, raddr: int, ports: int, queue: int) -> int:
        """A fresh row in the hash table. ENOBUFS when the table is full of live connections."""
        if not self.has_row():
            self.stats.table_full += 1
            raise NetmemError(errno.ENOBUFS, f"all {self.config.connections} connections are in use")
        c = self.free.pop()
        tcb = self.tcbs[c]
        self._clear(tcb)
        tcb.queue, tcb.rto = queue, INITIAL_RTO
        tcb.flags = Flag.TS | Flag.WSCALE | Flag.SACK
        self.set_addresses(c, laddr, raddr, ports)
        room = self.dev.mtu - (tcb.template_len - EthHdr.LEN)
        mss = min(self.config.mss or room, room)
        tcb.adv_mss, tcb.rcv_mss, tcb.mss = mss, mss - 12, MSS_DEFAULT
        tcb.rack_mult, tcb.tlp_end = 1, -1
        tcb.last_in = tcb.stuck_at = self.now
        tcb.rcv_buf = self.config.rcvbuf
        tcb.rcv_scale = self.scale
        tcb.ssthresh = 1 << 30
        buflen = max(1, self.record.accounts[queue].buf_len)
        tcb.per_buffer = tcb.per_segment = max(64, (mss - 12) // -(-(mss - 12) // buflen))
        tcb.took_buffers = MEASURE - 2  # as if so many had been measured
        tcb.took_from = -tcb.took_buffers * tcb.per_segment
        tcb.used_at = tcb.data_at = self.now
        self.set_initial_sequence(c, self.initial_sequence(laddr, raddr, ports))
        calls.begin(self.at, c)
        return c

    @staticmethod
    def _clear(tcb: Tcb) -> None:
        active = tcb.active  # it is on that list still
        clear(tcb)
        tcb.active = active

    def set_initial_sequence(self, c: int, iss: int) -> None:
        """Start sending at a sequence number."""
        tcb = self.tcbs[c]
        tcb.iss = tcb.snd_una = tcb.snd_nxt = tcb.recover = tcb.rack_round = tcb.snd_sml = iss

    def set_addresses(self, c: int, laddr: int, raddr: int, ports: int) -> None:
        """Whom a row speaks to, from which address, and by which hop; writes its header template."""
        tcb = self.tcbs[c]
        tcb.laddr_hi, tcb.laddr = ip_words(laddr)
        tcb.raddr_hi, tcb.raddr = ip_words(raddr)
        tcb.next_hop_hi, tcb.next_hop = ip_words(self.ip.next_hop(raddr))
        tcb.ports, tcb.path_mtu = ports, self.ip.mtu(raddr)
        self.template(c)

    def template(self, c: int) -> None:
        """Write a connection's header template; notes whether the next hop's MAC is known."""
        tcb = self.tcbs[c]
        mac = self.ip.resolve(ip_number(tcb.next_hop_hi, tcb.next_hop))
        laddr, raddr, ports = self.local(c), self.remote(c), tcb.ports
        # A neighbour that the cache forgot keeps its MAC here until it answers with another.
        before = bytes(tcb.template[:6])
        to = mac.to_bytes(6, "big") if mac is not None else before
        frame = to + self.ip.mac.to_bytes(6, "big")
        if is_ip4(raddr):
            frame += EtherType.IPV4.to_bytes(2, "big")
            frame += struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, IP_DF, 64, PROTO_TCP, 0)
        else:
            self.set_flag(c, Flag.V6)
            frame += EtherType.IPV6.to_bytes(2, "big")
            frame += struct.pack("!IHBB", 6 << 28 | tcb.iss & 0xFFFFF, 0, PROTO_TCP, 64)
        frame += ip_bytes(laddr) + ip_bytes(raddr)
        frame += struct.pack("!HHIIBBHHH", ports & 0xFFFF, ports >> 16, 0, 0, 0, 0, 0, 0, 0)
        tcb.template_len = len(frame)
        tcb.template[: len(frame)] = list(frame)
        if mac is not None:
            self.set_flag(c, Flag.MAC)

    def _evict_time_wait(self) -> bool:
        waiting = [
            c for c in range(self.record.rows)
            if self.state(c) == TcpState.TIME_WAIT and self.flag(c, Flag.ORPHAN)
        ]  # fmt: skip
        if waiting:
            self.free_row(min(waiting, key=lambda c: self.tcbs[c].timers.wait))
        return bool(waiting)

    def free_row(self, c: int) -> None:
        """Give a row and all that it holds back."""
        self.release_queues(c)
        self.release_send_buffer(c)
        self.fed(c)
        calls.end(self.at, c)
        self._clear(self.tcbs[c])
        self.generations[c] += 1
        self.free.append(c)

    def fed(self, c: int) -> None:
        """The connection wants no bigger window any more."""
        if self.flag(c, Flag.STARVED):
            self.clear_flag(c, Flag.STARVED)
            self.record.starved -= 1

    def release_send_buffer(self, c: int) -> None:
        """Give a connection's send buffer back, if it has one: nothing of it may be on its way."""
        tcb = self.tcbs[c]
        if tcb.sb_size:
            self.dev.tx.free_buffer(tcb.sb_offset, tcb.sb_size, tcb.sb_mark)
            tcb.sb_size = 0

    def release_queues(self, c: int) -> None:
        """Put what a connection has queued back to its pools."""
        while not calls.drop_queued(self.at, c, RELEASE_ROOM // 4):
            self.put_released()
        self.put_released()

    def put_released(self) -> None:
        """Put back what kernels noted for release."""
        n = self.record.releases
        if n:
            netmems, pools = self._releases["netmem"][:n].copy(), self._releases["pool"][:n].copy()
            self.record.releases = 0
            for pool in np.unique(pools):
                self.dev.pools[int(pool)].put_full_netmem(netmems[pools == pool])

    def held_of(self, c: int) -> tuple[int, int]:
        """Buffers of a connection's pool that applications hold by token, and how many it has."""
        blocks, queue = self._blocks[: self.record.rows], self.tcbs[c].queue
        held = int(blocks["user"][blocks["queue"] == queue].sum())
        return held, self.record.accounts[queue].total

    def why_nothing_comes(self, c: int) -> str:
        """When it is the application that holds the memory: how much of it, and the window that leaves."""
        held, total = self.held_of(c)
        window = (self.tcbs[c].rcv_adv - self.tcbs[c].rcv_nxt) & MASK32
        if not held or window >= self.tcbs[c].rcv_mss:
            return ""
        return (
            f": the application holds {held} of {total} buffers of the pool, and the window is {window} "
            "bytes; give frags back with devmem_dontneed()"
        )

    def check_pledges(self) -> None:
        """For the sanitiser: what is pledged adds up, and is never more than there is. SanitizerError."""
        queue = calls.pledges_wrong(self.at, min(len(self.dev.rx_queues), MAX_QUEUES))
        if queue >= 0:
            account, blocks = self.record.accounts[queue], self._blocks[: self.record.rows]
            each = blocks["pledged"][blocks["queue"] == queue]
            raise SanitizerError(
                Trap.PLEDGES,
                f"pledges of queue {queue}: {account.pledged} in all, {each.sum()} by connection, "
                f"{account.available} buffers available",
            )

    def close_all(self) -> None:
        """Forget everything: the stack goes away."""
        for c in range(self.record.rows):
            if self.tcbs[c].ports:
                self.free_row(c)
        for arena in (self.arena, self.table, self.entry_arena):
            arena.close()
