"""UDP sockets: datagrams by reference, and sends from readable or device memory."""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from netmem.base.address import ip_bytes, ip_number, ip_text, ip_words, is_ip4
from netmem.base.arena import Arena
from netmem.base.checksum import inet_checksum
from netmem.base.clock import SEC
from netmem.base.errors import ETOOSMALL, NetmemError
from netmem.base.frags import FRAG, Frags
from netmem.base.headers import IP_DF, PROTO_UDP, EtherType, IpHdr, UdpHdr
from netmem.base.record import clear
from netmem.inet.icmp import IcmpError, port_unreachable
from netmem.inet.ip import address_of
from netmem.inet.poller import Poller
from netmem.inet.tcp.connections import Connections
from netmem.inet.tcp.tcb import RELEASE_ROOM
from netmem.inet.tokens import Tokens, pool_of
from netmem.inet.udp import kernels as k
from netmem.inet.udp.table import SOCKETS, DatagramRow, Receive, UdpSocketRecord
from netmem.inet.zerocopy import Completions, Zerocopy, as_ranges
from netmem.netdev.batch import RxBatch
from netmem.netdev.binding import TxBinding
from netmem.netdev.tx import TX_ROWS, Tx, TxRow

DATAGRAM = np.dtype(DatagramRow)
"""A received datagram: where from, its size, and how much of it is linear bytes and how many frags."""

RCVBUF = 4 << 20
LINEAR_ROOM = 1 << 18
UNREACHABLES_PER_S = 50
SLOT = 9216  # payload of one datagram to send


class UdpMessage(NamedTuple):
    """One datagram: ``peer`` it came from, ``linear`` bytes first, then ``frags``."""

    peer: tuple[str, int]
    linear: bytes
    frags: Frags

    @property
    def size(self) -> int:
        """Payload bytes of the datagram."""
        return len(self.linear) + int(self.frags["frag_size"].sum())


class Udp:
    """The UDP of one stack: its sockets' table, shared with the kernels."""

    def __init__(self, poller: Poller, conns: Connections, zerocopy: Zerocopy) -> None:
        self.poller, self.zerocopy = poller, zerocopy
        self.conns, self.ip, self.dev = conns, conns.ip, conns.dev
        self.arena = Arena("udp:sockets", SOCKETS * ctypes.sizeof(UdpSocketRecord))
        self.records = self.arena.array(UdpSocketRecord, 0, SOCKETS)
        conns.record.sockets = self.arena.address
        self.sockets: dict[int, UdpSocket] = {}
        self._next_port = 49152
        self._memory: int | None = None
        self._told_at, self._told = 0, 0

    def open(self, port: int) -> UdpSocket:
        """A socket on a port; 0 takes a free one. EADDRINUSE, EINVAL, ENOBUFS."""
        if not 0 <= port < 65536:
            raise NetmemError(errno.EINVAL, f"port {port} is outside 0 to 65535")
        used = {record.port for record in self.records}
        if port in used and port:
            raise NetmemError(errno.EADDRINUSE, f"UDP port {port} is in use")
        s = next((s for s, record in enumerate(self.records) if not record.port), -1)
        if s < 0:
            raise NetmemError(errno.ENOBUFS, f"all {SOCKETS} UDP sockets are in use")
        while not port:
            self._next_port = 49152 + (self._next_port + 1 - 49152) % 16384
            port = 0 if self._next_port in used else self._next_port
        self._clear(s)
        record, first = self.records[s], self.records[port % SOCKETS]
        record.port, record.limit = port, RCVBUF
        record.next, first.bucket = first.bucket, s + 1
        self.sockets[s] = UdpSocket(self, s)
        return self.sockets[s]

    def _clear(self, s: int) -> None:
        record = self.records[s]
        bucket = record.bucket  # the hash table's, not the socket's
        clear(record)
        record.bucket = bucket

    def forget(self, s: int) -> None:
        """A socket was closed: what it has queued goes back."""
        record, conns = self.records[s], self.conns
        while k.udp_drop(conns.at, s, RELEASE_ROOM // 4):
            conns.put_released()
        first = self.records[record.port % SOCKETS]
        if first.bucket == s + 1:
            first.bucket = record.next
        else:
            other = self.records[first.bucket - 1]
            while other.next != s + 1:
                other = self.records[other.next - 1]
            other.next = record.next
        self._clear(s)
        del self.sockets[s]

    def refused(self, batch: RxBatch, i: int) -> None:
        """Tell the sender of a datagram that nobody listens, now and then (RFC 1122, 4.1.3.1)."""
        ip, row = self.ip, batch.row(i)
        if ip.record.now - self._told_at >= SEC:
            self._told_at, self._told = ip.record.now, 0
        self._told += 1
        if self._told <= UNREACHABLES_PER_S:
            headers = ctypes.string_at(row.header, row.header_len)
            if (error := port_unreachable(headers, ip.mac)) is not None:
                ip.send_frame(error)

    def icmp_error(self, error: IcmpError) -> None:
        """A datagram of ours went nowhere: a connected socket learns of it."""
        for sock in self.sockets.values():
            if sock.port == error.ports & 0xFFFF and sock.remote == (error.target, error.ports >> 16):
                sock.error = errno.EMSGSIZE if error.mtu else errno.ECONNREFUSED
                if error.mtu:
                    self.ip.note_mtu(error)

    def row(self, source: int, target: int, ports: tuple[int, int], size: int) -> tuple[TxRow, int]:
        """Headers of a datagram of ``size`` payload bytes in the next transmit row: (row, memory for it).

        ENOBUFS when no row is free; EHOSTUNREACH when the neighbour does not answer (yet); EMSGSIZE.
        """
        tx, ip = self.dev.tx, self.ip
        room = ip.mtu(target) - UdpHdr.LEN - (IpHdr.LEN if is_ip4(target) else 40)
        if size > room:
            raise NetmemError(errno.EMSGSIZE, f"{size} bytes do not fit one packet: {room} at most")
        if tx.is_full():
            self.conns.stats.tx_full += 1
            raise NetmemError(errno.ENOBUFS, "the transmit queue is full")
        mac = ip.resolve(ip.next_hop(target))
        if mac is None:
            self.dev.xmit()
            raise NetmemError(errno.EHOSTUNREACH, f"{ip_text(target)} is being asked for its MAC address")
        if self._memory is None:
            self._memory = tx.alloc_buffer(TX_ROWS * SLOT)
            if self._memory is None:
                raise NetmemError(errno.ENOBUFS, "no transmit memory is left")
        sport, dport = ports
        frame = mac.to_bytes(6, "big") + ip.mac.to_bytes(6, "big")
        if is_ip4(target):
            head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + size, 0, IP_DF, 64, PROTO_UDP, 0)
            head += ip_bytes(source) + ip_bytes(target)
            head = head[:10] + inet_checksum(head).to_bytes(2, "big") + head[12:]
            frame += EtherType.IPV4.to_bytes(2, "big") + head
        else:
            head = struct.pack("!IHBB", 6 << 28, UdpHdr.LEN + size, PROTO_UDP, 64)
            frame += EtherType.IPV6.to_bytes(2, "big") + head + ip_bytes(source) + ip_bytes(target)
        frame += struct.pack("!HHHH", sport, dport, UdpHdr.LEN + size, 0)
        row = tx.begin(frame)
        assert row is not None
        row.flags = Tx.CSUM | Tx.UDP
        return row, self._memory + tx.record.filled % TX_ROWS * SLOT

    def close(self) -> None:
        """The stack goes away."""
        for sock in list(self.sockets.values()):
            sock.close()
        self.arena.close()


class UdpSocket:
    """A UDP socket. Calls block up to their ``timeout`` in seconds (None: for ever).

    Errors: TimeoutError; ENODEV when the NIC is gone; EBADF after close; ECONNREFUSED once, on a
    connected socket whose peer's host has nobody there.
    """

    def __init__(self, udp: Udp, s: int) -> None:
        self._poller, self._udp, self._s = udp.poller, udp, s
        self._record = udp.records[s]
        self.port = self._record.port
        self.remote: tuple[int, int] | None = None
        self.error = 0
        self.timeout: float | None = None
        self._tokens: Tokens | None = None
        self._completions = Completions()
        self._closed = False

    def connect(self, host: str, port: int) -> None:
        """connect(): send to, and receive from, this peer only. EINVAL."""
        with self._poller.lock:
            self._check_open()
            number = address_of(host)
            self.remote = (number, port)
            self._record.peer_hi, self._record.peer = ip_words(number)
            self._record.peer_port = port

    def _check_open(self) -> None:
        if self._closed:
            raise NetmemError(errno.EBADF, "the socket is closed")

    def _check(self) -> None:
        self._check_open()
        if self._poller.gone is not None:
            raise self._poller.gone
        if self.error:
            error, self.error = self.error, 0
            raise NetmemError(error, f"the peer of UDP port {self.port} cannot be reached so")

    # -- receiving ----------------------------------------------------------------------------

    def pending(self) -> int:
        """Datagrams that wait."""
        return 0 if self._closed else self._record.datagrams

    def readable(self) -> bool:
        """True when a receive call would not wait."""
        return self._closed or bool(self.pending()) or bool(self.error) or self._poller.gone is not None

    def recv_batch(
        self, datagrams: int = 64, *, max_frags: int = 256, timeout: float | None = None
    ) -> tuple[npt.NDArray[np.void], bytes, Frags]:
        """recvmmsg() with devmem: what has arrived, up to ``datagrams``; waits for the first.

        Returns an array of DATAGRAM, the linear bytes of all, and the frags of all as an array of FRAG,
        each in the datagrams' order. No Python object is made for a datagram. ETOOSMALL when the next one
        has more than ``max_frags`` frags.
        """
        conns = self._udp.conns
        with self._poller.lock:
            self._check()
            if not self.pending():
                wait = timeout if timeout is not None else self.timeout
                self._poller.wait(self.readable, wait, f"a datagram to port {self.port}")
                self._check()
            if self._tokens is None:
                self._tokens = Tokens(self._udp.conns, -1)
            if self._tokens.record.free < max_frags:
                self._tokens.reserve(max_frags)
            self._record.tokens_fd = self._tokens.fd
            handle = k.udp_pool(conns.at, self._s)
            pool = pool_of(conns.dev, handle) if handle else next(iter(conns.dev.pools.values()))
            found = np.empty(datagrams, DATAGRAM)
            frags = np.empty(max_frags, FRAG)
            linear = np.empty(LINEAR_ROOM, np.uint8)
            into = Receive(
                rows=found.ctypes.data, rows_room=datagrams, frags=frags.ctypes.data, frags_room=max_frags,
                linear=linear.ctypes.data, linear_room=LINEAR_ROOM,
            )  # fmt: skip
            n = k.udp_out(conns.at, self._s, self._tokens.at, pool.at, ctypes.addressof(into))
            if not n:
                raise NetmemError(ETOOSMALL, f"the datagram has more than {max_frags} frags")
            conns.put_released()
            rows = found[:n]
            used, size = int(rows["frags"].sum()), int(rows["linear"].sum())
            return rows, linear[:size].tobytes(), frags[:used]

    def recvmsg_devmem(self, *, max_frags: int = 64, timeout: float | None = None) -> UdpMessage:
        """One datagram, its payload by reference where the queue's memory is bound."""
        rows, linear, frags = self.recv_batch(1, max_frags=max_frags, timeout=timeout)
        row = rows[0]
        peer = ip_text(ip_number(int(row["peer_hi"]), int(row["peer_lo"]))), int(row["port"])
        return UdpMessage(peer, linear, frags)

    def devmem_dontneed(self, tokens: npt.ArrayLike) -> int:
        """Give frags back; how many tokens were freed. As ``TcpSocket.devmem_dontneed``."""
        with self._poller.lock:
            self._check_open()
            if self._tokens is None:
                return 0
            freed = self._tokens.dontneed(self._udp.conns, -1, tokens)
            self._poller.given_back()
        return freed

    # -- sending ------------------------------------------------------------------------------

    def _target(self, address: tuple[str, int] | None) -> tuple[int, int]:
        if address is not None:
            return address_of(address[0]), address[1]
        if self.remote is None:
            raise NetmemError(errno.EDESTADDRREQ, "the socket is not connected: say where to send to")
        return self.remote

    def sendto(self, data: bytes | bytearray | memoryview, address: tuple[str, int] | None = None) -> int:
        """Send one datagram to ``address``, or to the peer of a connected socket; its size.

        EMSGSIZE for one that does not fit a packet; ENOBUFS when the transmit queue is full;
        EHOSTUNREACH while the neighbour is being asked for; EDESTADDRREQ; ENETUNREACH.
        """
        view = memoryview(data).cast("B")
        with self._poller:
            self._check()
            target, port = self._target(address)
            udp, tx = self._udp, self._udp.dev.tx
            row, at = udp.row(udp.ip.source_for(target), target, (self.port, port), len(view))
            tx.region.bytes[at : at + len(view)] = np.frombuffer(view, np.uint8)
            row.payload, row.payload_len = tx.record.io + at, len(view)
            self._go()
            return len(view)

    def sendmsg_devmem(
        self, frags: npt.ArrayLike, binding: TxBinding | int, address: tuple[str, int] | None = None
    ) -> int:
        """Send one datagram straight from device memory: one or two frags. EINVAL for more.

        Otherwise as ``sendto`` and ``TcpSocket.sendmsg_devmem``; ``zerocopy_completions`` tells when the
        memory may be written anew.
        """
        with self._poller:
            self._check()
            target, port = self._target(address)
            udp, tx = self._udp, self._udp.dev.tx
            bound = udp.zerocopy.check(binding)
            ranges = as_ranges(frags, bound.size)
            if not 1 <= len(ranges) <= 2:
                raise NetmemError(
                    errno.EINVAL, f"a datagram is sent from one or two frags, not {len(ranges)}"
                )
            size = sum(length for _, length in ranges)
            row, _ = udp.row(udp.ip.source_for(target), target, (self.port, port), size)
            row.flags |= Tx.NETMEM
            row.payload, row.payload_len = bound.io + ranges[0][0], ranges[0][1]
            if len(ranges) == 2:
                row.payload2, row.payload2_len = bound.io + ranges[1][0], ranges[1][1]
            udp.zerocopy.datagram(bound, ranges, tx.record.filled + 1, self._completions)
            self._go()
            return size

    def _go(self) -> None:
        dev = self._udp.dev
        dev.tx.record.filled += 1
        self._udp.conns.stats.udp_out += 1
        dev.xmit()

    def zerocopy_completions(self) -> list[tuple[int, int]]:
        """Calls of sendmsg_devmem that are over since last asked, as ranges (first, last)."""
        with self._poller.lock:
            self._udp.dev.xmit()
            self._udp.zerocopy.poll()
            return self._completions.take()

    # -- end ----------------------------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Datagrams received, waiting and dropped for want of room; bytes waiting; tokens held."""
        record = self._record
        return {
            "datagrams": record.received, "pending": record.datagrams, "queued": record.bytes,
            "dropped": record.dropped, "tokens": self._tokens.held() if self._tokens else 0,
        }  # fmt: skip

    def close(self) -> None:
        """Give everything back: what is queued, and all tokens."""
        with self._poller.lock:
            if self._closed:
                return
            self._closed = True
            self._poller.changed()
            if self._tokens is not None:
                tokens = self._tokens.all()
                if len(tokens):
                    self._tokens.give_back(self._udp.conns, -1, tokens)
                    self._poller.given_back()
                self._tokens.close()
            self._udp.forget(self._s)

    def __enter__(self) -> UdpSocket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
