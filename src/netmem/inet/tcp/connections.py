"""The connections of a TCP: table, hash, receive entries, header templates, and their accounts.

What the state machine (``machine``) works on; kernels share all of it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import struct
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from netmem.base.arena import Arena, Words
from netmem.base.clock import MS, SEC
from netmem.base.errors import NetmemError
from netmem.base.formats import (
    ETH_HLEN,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IP_DF,
    PROTO_TCP,
    ip_bytes,
    ip_number,
    ip_words,
    is_ip4,
)
from netmem.inet.ip import Ip
from netmem.inet.tcp import kernels as k
from netmem.inet.tcp import output as o
from netmem.inet.tcp import recovery as rec
from netmem.inet.tcp import tcb as T
from netmem.inet.tcp import window as w
from netmem.inet.tcp.cookies import SynCookies
from netmem.inet.tcp.entries import entry_free
from netmem.memory.sanitizer import SanitizerError
from netmem.memory.shadow import Trap
from netmem.netdev.device import NetDevice

INITIAL_RTO = 1 * SEC
MSS_DEFAULT = 536


@dataclass
class Listener:
    """A port that accepts: connections half open, and those ready to be accepted.

    Beyond ``most_half_open`` a SYN is answered with a cookie.
    """

    id: int
    port: int
    backlog: int
    most_half_open: int
    half_open: list[int] = field(default_factory=list)
    ready: deque[int] = field(default_factory=deque)
    closed: bool = False


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
        self.arena = Arena("tcp:globals", 8 * (T.G_HASH_AT + buckets))
        self.table = Arena("tcp:connections", 8 * config.connections * T.TCB_WORDS)
        self.entry_arena = Arena("tcp:entries", 8 * (config.entries + 1) * T.ENTRY_WORDS)
        self.g: Words = self.arena.a
        size = config.connections * T.TCB_WORDS
        self.t: Words = self.table.a[:size].reshape(-1, T.TCB_WORDS)
        self.e: Words = self.entry_arena.a[: (config.entries + 1) * T.ENTRY_WORDS].reshape(
            -1, T.ENTRY_WORDS
        )
        self.v = self.t.data  # plain ints, for the state machine
        self.gv = self.g.data
        self.ev = self.e.data
        g = self.g
        g[T.G_BUCKETS], g[T.G_DELACK] = buckets, config.delack_ns
        g[T.G_TIMER] = o.FAR
        self.e[1:-1, T.E_NEXT] = np.arange(2, config.entries + 1)
        g[T.G_EFREE], g[T.G_ECOUNT] = 1, config.entries
        self.free = list(range(config.connections - 1, -1, -1))
        # Rows that something happened to, for whoever serves many and must not look at all of them.
        self.touched: set[int] | None = None
        self.generations = [0] * config.connections  # times each row was given back: a handle is both
        self._due: Words = np.zeros(256, np.int64)
        self.listeners: dict[int, Listener] = {}
        self._secret = config.secret or os.urandom(16)
        g[T.G_TS_BASE] = int.from_bytes(self._secret[:4], "big")
        self._ports = 32768 + int.from_bytes(self._secret[4:6], "big") % 16384
        self._next_listener = 1
        self.cookies = SynCookies(hashlib.blake2b(self._secret, digest_size=16).digest())
        self.scale = min(max(0, (config.rcvbuf >> 16).bit_length()), 14)  # Rcv.Wind.Shift that we offer

    # -- small things -------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """The time of the poll at hand, ns."""
        return self.gv[T.G_NOW]

    def count(self, counter: int, n: int = 1) -> None:
        """Bump a counter of ``tcb``."""
        self.gv[T.G_COUNTERS + counter] += n

    def counters(self) -> dict[str, int]:
        """All counters by name."""
        return {name: self.gv[T.G_COUNTERS + at] for name, at in T.TCP_COUNTERS.items()}

    def state(self, c: int) -> int:
        """State of a connection."""
        return self.v[c, T.STATE]

    def flag(self, c: int, flag: int) -> bool:
        """True when a connection has a CF_* flag."""
        return bool(self.v[c, T.FLAGS] & flag)

    def set_flag(self, c: int, flag: int) -> None:
        """Set a CF_* flag."""
        self.v[c, T.FLAGS] |= flag

    def clear_flag(self, c: int, flag: int) -> None:
        """Clear CF_* flags."""
        self.v[c, T.FLAGS] &= ~flag

    def timer(self, c: int, word: int, delay: int) -> None:
        """Start a timer (a word of the row) to run out in ``delay`` ns."""
        at = self.now + delay
        self.v[c, word] = at
        if at < self.gv[T.G_TIMER]:
            self.gv[T.G_TIMER] = at

    def touch(self, c: int) -> None:
        """Have output called for a connection at the end of the batch."""
        k.touch(self.g, self.t, c)

    def initial_sequence(self, laddr: int, raddr: int, ports: int) -> int:
        """RFC 6528: a keyed hash of the four-tuple plus a clock of 4 us."""
        tuple_ = laddr.to_bytes(16, "big") + raddr.to_bytes(16, "big") + struct.pack("!I", ports)
        digest = hashlib.blake2b(tuple_, key=self._secret, digest_size=4).digest()
        return (int.from_bytes(digest, "big") + self.now // 4000) & T.MASK32

    def lookup(self, laddr: int, raddr: int, ports: int) -> int:
        """The row of a connection, or -1."""
        return int(k.lookup(self.g, self.t, *ip_words(raddr), *ip_words(laddr), ports))

    def remote(self, c: int) -> int:
        """The peer's address."""
        return ip_number(self.v[c, T.RADDR_HI], self.v[c, T.RADDR])

    def local(self, c: int) -> int:
        """Our address of a connection."""
        return ip_number(self.v[c, T.LADDR_HI], self.v[c, T.LADDR])

    def _room(self, c: int) -> int:
        """Bytes of a packet without IP and TCP headers, at the path's MTU."""
        return self.v[c, T.PATH_MTU] - (self.v[c, T.TPL_LEN] - ETH_HLEN)

    # -- rows ---------------------------------------------------------------------------------

    def has_row(self) -> bool:
        """True when there is a row for one more connection."""
        return bool(self.free) or self._evict_time_wait()

    def new_row(self, laddr: int, raddr: int, ports: int, queue: int) -> int:
        """A fresh row in the hash table. ENOBUFS when the table is full of live connections."""
        if not self.has_row():
            self.count(T.S_TABLE_FULL)
            raise NetmemError(errno.ENOBUFS, f"all {self.config.connections} connections are in use")
        c = self.free.pop()
        row = self.t[c]
        row[:] = 0
        row[T.QUEUE], row[T.RTO] = queue, INITIAL_RTO
        row[T.FLAGS] = T.CF_TS | T.CF_WSCALE | T.CF_SACK
        self.set_addresses(c, laddr, raddr, ports)
        room = self.dev.mtu - (self.v[c, T.TPL_LEN] - ETH_HLEN)
        mss = min(self.config.mss or room, room)
        row[T.ADV_MSS], row[T.RCV_MSS], row[T.MSS] = mss, mss - 12, MSS_DEFAULT
        row[T.RACK_MULT], row[T.TLP_END] = 1, -1
        row[T.LAST_IN] = row[T.STUCK_AT] = self.now
        row[T.RCV_BUF] = self.config.rcvbuf
        row[T.RCV_SCALE] = self.scale
        row[T.SSTHRESH] = 1 << 30
        buflen = max(1, self.gv[T.G_CREDIT + T.CR_WORDS * queue + T.CR_BUFLEN])
        row[T.PER] = max(64, (mss - 12) // -(-(mss - 12) // buflen))
        row[T.USED_AT] = row[T.DATA_AT] = self.now
        w.demand_start(self.g, self.t, c)
        self.set_initial_sequence(c, self.initial_sequence(laddr, raddr, ports))
        k.hash_insert(self.g, self.t, c)
        self.gv[T.G_ROWS] = max(self.gv[T.G_ROWS], c + 1)
        return c

    def set_initial_sequence(self, c: int, iss: int) -> None:
        """Start sending at a sequence number."""
        for word in (T.ISS, T.SND_UNA, T.SND_NXT, T.RECOVER, T.RACK_ROUND, T.SND_SML):
            self.v[c, word] = iss

    def set_addresses(self, c: int, laddr: int, raddr: int, ports: int) -> None:
        """Whom a row speaks to, from which address, and by which hop; writes its header template."""
        v = self.v
        v[c, T.LADDR_HI], v[c, T.LADDR] = ip_words(laddr)
        v[c, T.RADDR_HI], v[c, T.RADDR] = ip_words(raddr)
        v[c, T.NEXT_HOP_HI], v[c, T.NEXT_HOP] = ip_words(self.ip.next_hop(raddr))
        v[c, T.PORTS], v[c, T.PATH_MTU] = ports, self.ip.mtu(raddr)
        self.template(c)

    def template(self, c: int) -> None:
        """Write a connection's header template; notes whether the next hop's MAC is known."""
        v = self.v
        mac = self.ip.resolve(ip_number(v[c, T.NEXT_HOP_HI], v[c, T.NEXT_HOP]))
        laddr, raddr, ports = self.local(c), self.remote(c), v[c, T.PORTS]
        # A neighbour that the cache forgot keeps its MAC here until it answers with another.
        before = self.t[c, T.TPL : T.TPL + 1].tobytes()[:6]
        to = mac.to_bytes(6, "big") if mac is not None else before
        frame = to + self.ip.mac.to_bytes(6, "big")
        if is_ip4(raddr):
            frame += ETHERTYPE_IPV4.to_bytes(2, "big")
            frame += struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, IP_DF, 64, PROTO_TCP, 0)
        else:
            self.set_flag(c, T.CF_V6)
            frame += ETHERTYPE_IPV6.to_bytes(2, "big")
            frame += struct.pack("!IHBB", 6 << 28 | v[c, T.ISS] & 0xFFFFF, 0, PROTO_TCP, 64)
        frame += ip_bytes(laddr) + ip_bytes(raddr)
        frame += struct.pack("!HHIIBBHHH", ports & 0xFFFF, ports >> 16, 0, 0, 0, 0, 0, 0, 0)
        v[c, T.TPL_LEN] = len(frame)
        ctypes.memmove(self.t[c, T.TPL :].ctypes.data, frame, len(frame))
        if mac is not None:
            self.set_flag(c, T.CF_MAC)

    def _evict_time_wait(self) -> bool:
        waiting = [
            c for c in range(self.gv[T.G_ROWS])
            if self.v[c, T.STATE] == T.TIME_WAIT and self.flag(c, T.CF_ORPHAN)
        ]
        if waiting:
            self.free_row(min(waiting, key=lambda c: self.v[c, T.WAIT_AT]))
        return bool(waiting)

    def free_row(self, c: int) -> None:
        """Give a row and all that it holds back."""
        v = self.v
        self.release_queues(c)
        rec.tq_clear(self.g, self.t, self.e, c)
        if v[c, T.SP_HEAD]:
            rec.spans_acked(self.g, self.t, self.e, c, self.dev.tx.meta, True)
        self._release_send_buffer(c)
        w.pledge(self.g, self.t, c, 0)
        self.fed(c)
        k.hash_remove(self.g, self.t, c)
        self.t[c] = 0
        self.generations[c] += 1
        self.free.append(c)

    def fed(self, c: int) -> None:
        """The connection wants no bigger window any more."""
        if self.flag(c, T.CF_STARVED):
            self.clear_flag(c, T.CF_STARVED)
            self.gv[T.G_STARVED] -= 1

    def _release_send_buffer(self, c: int) -> None:
        v = self.v
        if v[c, T.SB_SIZE]:
            self.dev.tx.free_buffer(v[c, T.SB_OFFSET], v[c, T.SB_SIZE])
            v[c, T.SB_SIZE] = 0

    def release_queues(self, c: int) -> None:
        """Put what a connection has queued back to its pools."""
        v, e = self.v, self.e
        refs: dict[int, list[int]] = {}
        for head in (T.RQ_HEAD, T.OQ_HEAD):
            i = v[c, head]
            while i:
                following = int(e[i, T.E_NEXT])
                refs.setdefault(int(e[i, T.E_POOL]), []).append(int(e[i, T.E_NETMEM]))
                entry_free(self.g, e, i)
                i = following
        for word in (T.RQ_HEAD, T.RQ_TAIL, T.RQ_BYTES, T.RQ_BUFS):
            v[c, word] = 0
        self.gv[T.G_CREDIT + T.CR_WORDS * v[c, T.QUEUE] + T.CR_OOO_N] -= v[c, T.OQ_BUFS]
        for word in (T.OQ_HEAD, T.OQ_TAIL, T.OQ_BYTES, T.OQ_BUFS):
            v[c, word] = 0
        for pool, held in refs.items():
            self.dev.pools[pool].put_full_netmem(np.array(held, np.int64))

    def put_released(self) -> None:
        """Put back what kernels noted for release."""
        n = self.gv[T.G_RELEASE]
        if n:
            pairs = self.g[T.G_RELEASE_AT : T.G_RELEASE_AT + 2 * n].reshape(-1, 2).copy()
            self.gv[T.G_RELEASE] = 0
            for pool in np.unique(pairs[:, 1]):
                self.dev.pools[int(pool)].put_full_netmem(pairs[pairs[:, 1] == pool, 0].copy())

    def held_of(self, c: int) -> tuple[int, int]:
        """Buffers of a connection's pool that applications hold by token, and how many it has."""
        rows = self.t[: self.gv[T.G_ROWS]]
        queue = self.v[c, T.QUEUE]
        held = int(rows[rows[:, T.QUEUE] == queue, T.USER].sum())
        return held, self.gv[T.G_CREDIT + T.CR_WORDS * queue + T.CR_TOTAL]

    def check_pledges(self) -> None:
        """For the sanitiser: what is pledged adds up, and is never more than there is. SanitizerError."""
        rows = self.t[: self.gv[T.G_ROWS]]
        for queue in range(min(len(self.dev.rx_queues), T.MAX_QUEUES)):
            at = T.G_CREDIT + T.CR_WORDS * queue
            pledged, available = self.gv[at + T.CR_PLEDGED], self.gv[at + T.CR_AVAIL]
            each = rows[rows[:, T.QUEUE] == queue, T.PLEDGED]
            if each.sum() != pledged or (len(each) and each.min() < 0) or pledged > max(available, 0):
                raise SanitizerError(
                    Trap.PLEDGES,
                    f"pledges of queue {queue}: {pledged} in all, {each.sum()} by connection, "
                    f"{available} buffers available",
                )

    def close_all(self) -> None:
        """Forget everything: the stack goes away."""
        for c in range(self.gv[T.G_ROWS]):
            if self.v[c, T.PORTS]:
                self.free_row(c)
        for arena in (self.arena, self.table, self.entry_arena):
            arena.close()


