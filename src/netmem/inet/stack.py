"""A stack over one device: what one poll does, and the sockets."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Sequence
from typing import Any

from netmem.base.address import endpoint, ip_words
from netmem.base.clock import SEC, Clock, MonotonicClock
from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.base.headers import PROTO_TCP, PROTO_UDP
from netmem.base.ops import address_of_op
from netmem.inet.icmp import IcmpError
from netmem.inet.ip import Ip, address_of
from netmem.inet.listener import TcpListener
from netmem.inet.poll import After, credits, inet_receive, stack_poll, take_batch
from netmem.inet.poller import Poller
from netmem.inet.socket import TcpSocket
from netmem.inet.tcp import calls
from netmem.inet.tcp.connections import Connections, TcpConfig
from netmem.inet.tcp.machine import Tcp
from netmem.inet.tcp.tcb import MASK32, MAX_ADDRESSES, MAX_QUEUES, Flag, TcpState
from netmem.inet.udp import Udp, UdpSocket
from netmem.inet.zerocopy import Zerocopy
from netmem.memory import sanitizer
from netmem.netdev.batch import Kind, RxBatch
from netmem.netdev.device import BUDGET, NetDevice
from netmem.netdev.napi import PacketType
from netmem.netdev.ring import RxRingRecord


class Stack:
    """IPv4 and IPv6, ARP and neighbour discovery, ICMP, TCP and UDP on one device.

    ``addresses``: interface addresses, ``10.0.2.15/24`` or ``fd00::f/64``, one or a list; ``gateways``: a
    router for each family that needs one. ``poll(now)`` moves everything on and never blocks. Blocking socket
    calls poll, sleep on the NIC's interrupt, and poll again; ``serve`` starts a thread that does so while
    nobody else does.
    """

    def __init__(
        self,
        dev: NetDevice,
        addresses: str | Sequence[str],
        *,
        gateways: Sequence[str] = (),
        clock: Clock | None = None,
        config: TcpConfig | None = None,
    ) -> None:
        self.dev = dev
        self.clock: Clock = clock or MonotonicClock()
        self.ip = Ip(dev, [addresses] if isinstance(addresses, str) else addresses, gateways)
        self.conns = Connections(dev, self.ip, config or TcpConfig())
        self.tcp = Tcp(self.conns)
        self.poller = Poller(dev, self.clock, self.conns.record, self._work, self._device_gone)
        self.lock = self.poller.lock
        try:
            self._build()
        except BaseException:
            self.poller.close()
            raise

    def _build(self) -> None:
        dev = self.dev
        self.zerocopy = Zerocopy(dev, self.conns)
        self.udp = Udp(self.poller, self.conns, self.zerocopy)
        self._addresses_changed()
        self.ip.neighbour_up, self.ip.failed = self.tcp.neighbour_up, self._icmp_error
        self._generation = -1
        op = address_of_op(inet_receive, 3)
        self._packets = PacketType(self._receive, self._rest, op, self.conns.at)
        dev.stack_notice = {
            "addresses": self.ip.addresses,
            "globals": self.conns.arena.fd,
            "table": self.conns.table.fd,
            "entries": self.conns.entry_arena.fd,
            "udp": self.udp.arena.fd,
        }
        dev.publish()

    def add_address(self, text: str) -> None:
        """Give the stack one more address, ``10.0.2.16/24`` or ``fd00::10/64``. EINVAL, ENOBUFS."""
        with self.lock:
            self.ip.add(text)
            self._addresses_changed()
            self.dev.publish()

    def _addresses_changed(self) -> None:
        record, ours = self.conns.record, list(self.ip.ours)[:MAX_ADDRESSES]
        record.addresses_used = len(ours)
        for address, number in zip(record.addresses, ours, strict=False):
            address.hi, address.lo = ip_words(number)

    # -- polling ------------------------------------------------------------------------------

    def poll(self, now: int | None = None, budget: int = BUDGET) -> bool:
        """Receive, run timers, send. True when anything came in."""
        return self.poller.poll(now, budget)

    def _work(self, now: int, budget: int) -> bool:
        dev, who = self.dev, self._packets
        self._look_at_queues()
        dev.begin_poll(now, who, budget)
        at = dev.napi.at
        while (todo := stack_poll(at)) and todo < After.TIMERS:
            dev.poll_stage(todo, who)
        if todo:
            self._after(now, todo)
        if sanitizer.ON:
            self.conns.check_pledges()
        return dev.end_poll() > 0

    def _after(self, now: int, todo: int) -> None:
        """Python's share of a poll, when all queues were polled."""
        if todo & After.TIMERS:
            self.tcp.timers.run()
        if todo & After.RELEASES or self.conns.record.releases:
            self.conns.put_released()
            credits(self.dev.napi.at)
        if todo & After.ZEROCOPY and self.zerocopy.poll():
            self.poller.changed()
        if todo & After.REAP:
            self.conns.record.reap_at = now + SEC
            self.dev.reap(now)
        if todo & After.XMIT:
            self.dev.xmit()
        elif todo & After.NOTIFY:
            self.dev.napi.xmit_rest()

    def _look_at_queues(self) -> None:
        """When a queue got another pool: take over its sizes for credit and reserve."""
        if self.dev.queues.generation != self._generation:
            self._queues_changed()

    def _queues_changed(self) -> None:
        """A queue got another pool: take over its sizes for credit and reserve."""
        self._generation = self.dev.queues.generation
        running = {queue.index for queue in self.dev.rx_queues if queue.pool is not None}
        for index, account in enumerate(self.conns.record.accounts):
            if index not in running:
                account.pool = account.pool_at = account.header_pool = account.host = account.header_host = 0
        for queue in self.dev.rx_queues[:MAX_QUEUES]:
            pool = queue.pool
            if pool is None:
                continue
            account = self.conns.record.accounts[queue.index]
            total = pool.area.count * pool.record.buffers_per_netmem
            account.reserve = max(4, min(128, total // 8))
            account.ooo_most = min(total // 4, 2048)
            account.total = total // max(pool.record.share, 1)
            account.grant = min(16, total // 4 // self.conns.config.connections)
            account.pool = account.header_pool = 0
            account.pool_at = pool.at
            for handle, known in self.dev.pools.items():
                if known is pool:
                    account.pool = handle
                elif known.params.queue_idx == queue.index and known.destroyed_at is None:
                    if known.provider is None:  # the queue's other live pool is of its header buffers
                        account.header_pool = handle
                        account.header_host = known.record.host
                        account.header_shift = known.record.shift
            account.by_token = pool.provider is not None
            account.host, account.shift = pool.record.host, pool.record.shift
            if queue.mem is not None:
                account.buf_len = queue.mem.arena.record(RxRingRecord).buf_len
        self.dev.begin_poll(self.dev.now, self._packets, 0)
        credits(self.dev.napi.at)

    def _receive(self, batch: RxBatch, queue: int, free: int) -> None:
        """A batch from the device, where Python hands it up."""
        if take_batch(self.conns.at, batch.at, queue, free):
            self._rest(batch)

    def _rest(self, batch: RxBatch) -> None:
        """What compiled code left of a batch."""
        for i in self.conns.left():
            self._slow(batch, i)
        if self.conns.record.touched:
            calls.flush(self.conns.at)
        if self.conns.record.releases:
            self.conns.put_released()

    def _slow(self, batch: RxBatch, i: int) -> None:
        kind = batch.row(i).kind
        if kind == Kind.TCP:
            self.tcp.segment(batch, i)
        elif kind == Kind.ARP:
            self.ip.arp_in(batch, i)
        elif kind in (Kind.ICMP, Kind.ICMP6):
            self.ip.icmp_in(batch, i)
        elif kind == Kind.UDP:
            self.udp.refused(batch, i)

    def activity(self) -> list[int]:
        """Rows (``TcpSocket.row``) of connections that something happened to since the last such call.

        For whoever serves many connections; one such user a stack. The first call has none.
        """
        with self.lock:
            return self.conns.activity()

    # -- waiting ------------------------------------------------------------------------------

    def wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Poll until ``ready()``; see ``Poller.wait``."""
        self.poller.wait(ready, timeout, what)

    def serve(self) -> None:
        """Start the service thread: it polls while no call of the application does."""
        self.poller.serve()

    @property
    def closed(self) -> bool:
        """True once the stack was closed."""
        return self.poller.closed

    @property
    def gone(self) -> DeviceGoneError | None:
        """The error that says that the device is gone, or None."""
        return self.poller.gone

    def _device_gone(self) -> None:
        for c in range(self.conns.record.rows):
            if self.conns.state(c):
                self.tcp.control.closed(c, errno.ENODEV)
        self.dev.publish()

    # -- sockets ------------------------------------------------------------------------------

    def listen(self, port: int, *, backlog: int = 128) -> TcpListener:
        """A listening socket. EADDRINUSE when the port has one; EINVAL for a port out of range."""
        if not 0 < port < 65536:
            raise NetmemError(errno.EINVAL, f"port {port} is outside 1 to 65535")
        with self.lock:
            return TcpListener(self.poller, self.tcp, self.zerocopy, self.tcp.listen(port, backlog))

    def connect(self, host: str, port: int, *, timeout: float | None = 30.0) -> TcpSocket:
        """A connection to ``host``:``port``. TimeoutError, ECONNREFUSED as the network answers."""
        sock = self.connect_nowait(host, port)
        try:
            sock.wait_connected(timeout)
        except BaseException:
            sock.abort()
            raise
        return sock

    def connect_nowait(self, host: str, port: int) -> TcpSocket:
        """Start a connection; ``TcpSocket.wait_connected`` waits for it."""
        if not 0 < port < 65536:
            raise NetmemError(errno.EINVAL, f"port {port} is outside 1 to 65535")
        with self.poller as poller:
            poller.check_device()
            poller.check()
            self._look_at_queues()
            return TcpSocket(poller, self.tcp, self.zerocopy, self.tcp.connect(address_of(host), port))

    def _icmp_error(self, error: IcmpError) -> None:
        if error.proto == PROTO_TCP:
            self.tcp.icmp_error(error)
        elif error.proto == PROTO_UDP:
            self.udp.icmp_error(error)
            self.poller.changed()

    def udp_socket(self, port: int = 0) -> UdpSocket:
        """A UDP socket on a port of every address; 0 takes a free one. EADDRINUSE, EINVAL, ENOBUFS."""
        with self.lock:
            self._look_at_queues()
            return self.udp.open(port)

    def statistics(self) -> dict[str, Any]:
        """Counters of the stack and of the device below, and every connection's state."""
        with self.lock:
            return {
                "addresses": self.ip.addresses,
                "tcp": self.conns.counters(),
                "device": self.dev.describe(),
                "connections": [
                    {
                        "peer": endpoint(self.conns.remote(c), tcb.ports >> 16),
                        "port": tcb.ports & 0xFFFF,
                        "state": TcpState(tcb.state).title,
                        "queued": tcb.rq_bytes,
                        "out_of_order": tcb.oq_bytes,
                        "window": (tcb.rcv_adv - tcb.rcv_nxt) & MASK32,
                    }
                    for c, tcb in enumerate(self.conns.tcbs[: self.conns.record.rows])
                    if tcb.state
                ],
            }

    def linger(self, timeout: float, most: float = 60.0) -> None:
        """Wait until closed connections have sent all that they had and their FIN is acknowledged.

        At most ``timeout`` seconds without progress, and ``most`` in all.
        """
        conns = self.conns
        closing = (TcpState.FIN_WAIT_1, TcpState.CLOSING, TcpState.LAST_ACK)

        def left() -> tuple[int, int]:
            waiting = [
                tcb for tcb in conns.tcbs[: conns.record.rows]
                if tcb.state in closing and tcb.flags & Flag.ORPHAN
            ]  # fmt: skip
            return len(waiting), sum(tcb.sb_head for tcb in waiting)

        end = self.clock.now() + int(most * SEC)
        with contextlib.suppress(OSError):  # time is up, or the device is gone
            while not self.closed and (before := left())[0] and self.clock.now() < end:
                self.wait(lambda last=before: left() != last, timeout, "the last acknowledgement")  # type: ignore[misc]

    def close(self) -> None:
        """Reset what is open, give everything back, and stop the service thread."""
        if not self.poller.stop():
            return
        with self.lock:
            if self.closed:
                return
            self.poller.closed = True
            for c in range(self.conns.record.rows):
                if self.conns.state(c) and self.gone is None:
                    self.tcp.control.abort(c)
            if self.dev.running and self.gone is None:
                self.dev.xmit()
            self.udp.close()
            self.conns.put_released()
            self.conns.close_all()
            self.zerocopy.close()
            self.poller.close()
