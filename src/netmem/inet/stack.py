"""A stack over one device: the only way in is ``poll``, under one lock, with the time passed in."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from netmem.base.clock import MS, SEC, Clock, MonotonicClock
from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.base.formats import PROTO_TCP, PROTO_UDP, endpoint, ip_words
from netmem.inet.icmp import IcmpError
from netmem.inet.ip import Ip, address_of
from netmem.inet.socket import TcpListener, TcpSocket
from netmem.inet.tcp import kernels as k
from netmem.inet.tcp import output as o
from netmem.inet.tcp import tcb as T
from netmem.inet.tcp import window as w
from netmem.inet.tcp.connections import TcpConfig
from netmem.inet.tcp.machine import Tcp
from netmem.inet.udp import Udp, UdpSocket
from netmem.inet.udp.kernels import udp_batch
from netmem.inet.zerocopy import Zerocopy
from netmem.memory import sanitizer
from netmem.netdev.batch import RxBatch
from netmem.netdev.device import BUDGET, NetDevice
from netmem.netdev.words import B_KIND, KIND_ARP, KIND_ICMP, KIND_ICMP6, KIND_TCP, KIND_UDP

BACKSTOP_NS, BACKSTOP_MAX_NS = 1 * MS, 50 * MS
SERVICE_NS = 5 * MS
FAIR_ROUNDS = 16


class Stack:
    """IPv4 and IPv6, ARP and neighbour discovery, ICMP, TCP and UDP on one device.

    ``addresses``: interface addresses, ``10.0.2.15/24`` or ``fd00::f/64``, one or a list; ``gateways``: a
    router for each family that needs one. ``poll(now)`` moves everything on and never blocks. Blocking socket
    calls poll, sleep on the
    NIC's interrupt, and poll again; ``serve`` starts a thread that does so while nobody else does.
    """

    def __init__(
        self,
        dev: NetDevice,
        addresses: str | list[str],
        *,
        gateways: list[str] | None = None,
        clock: Clock | None = None,
        config: TcpConfig | None = None,
    ) -> None:
        self.dev = dev
        self.clock: Clock = clock or MonotonicClock()
        self.lock = dev.lock
        self._changed = threading.Condition(self.lock)
        self.ip = Ip(dev, [addresses] if isinstance(addresses, str) else addresses, gateways or [])
        self.tcp = Tcp(dev, self.ip, config or TcpConfig())
        self.zerocopy = Zerocopy(dev, self.tcp)
        self.udp = Udp(self)
        self._addresses_changed()
        self.ip.count, self.ip.neighbour_up = self.tcp.count, self.tcp.neighbour_up
        self.ip.failed = self._icmp_error
        self._generation = -1
        self._next_reap = 0
        self._leader: threading.Thread | None = None
        self._led = False  # an event loop waits for the NIC
        self._kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._service: threading.Thread | None = None
        self._stop = threading.Event()
        self._last_poll = 0
        self._gone: DeviceGoneError | None = None
        self._trapped: Exception | None = None  # in the service thread
        self._closed = False
        self.closing: list[Callable[[], None]] = []  # called when the stack closes, for whoever waits on it
        dev.stack_notice = {
            "addresses": self.ip.addresses,
            "globals": self.tcp.arena.fd,
            "table": self.tcp.table.fd,
            "entries": self.tcp.entry_arena.fd,
            "udp": self.udp.arena.fd,
        }
        dev.publish()
        self.backstops = 0  # times the back-stop of a wait found work that no interrupt told of

    def add_address(self, text: str) -> None:
        """Give the stack one more address, ``10.0.2.16/24`` or ``fd00::10/64``. EINVAL, ENOBUFS."""
        with self.lock:
            self.ip.add(text)
            self._addresses_changed()
            self.dev.publish()

    def _addresses_changed(self) -> None:
        g = self.tcp.g
        g[T.G_ADDRS] = min(len(self.ip.ours), T.MAX_ADDRESSES)
        for n, address in enumerate(list(self.ip.ours)[: T.MAX_ADDRESSES]):
            at = T.G_ADDRS + 1 + 2 * n
            g[at], g[at + 1] = ip_words(address)

    # -- polling ------------------------------------------------------------------------------

    def poll(self, now: int | None = None, budget: int = BUDGET) -> bool:
        """Receive, run timers, send. True when anything came in or was left over to do."""
        with self.lock:
            if self._trapped is not None and threading.current_thread() is not self._service:
                trapped, self._trapped = self._trapped, None
                raise trapped
            if self._closed:
                raise NetmemError(errno.EBADF, "the stack was closed")
            tcp, dev = self.tcp, self.dev
            gv = tcp.gv
            # A call may have stamped a later time than the caller took: time never goes back.
            now = max(self.clock.now() if now is None else now, gv[T.G_NOW])
            self._last_poll = now
            gv[T.G_NOW] = self.ip.now = now
            if dev.queue_generation != self._generation:
                self._queues_changed()
            got = dev.poll(now, self._receive, budget) if dev.running else 0
            if now >= gv[T.G_TIMER]:
                tcp.timers()
            if gv[T.G_STARVED]:
                self._refresh_credits()
                o.window_updates(tcp.g, tcp.t, tcp.e, dev.tx.meta, dev.tx.rows)
            if gv[T.G_RELEASE]:
                tcp.put_released()
            if gv[T.G_ZC_HEAD] and self.zerocopy.poll():
                self._changed.notify_all()
            if now >= self._next_reap:
                self._next_reap = now + SEC
                dev.reap(now)
            if dev.running:
                dev.xmit()
            if sanitizer.ON:
                tcp.check_pledges()
            return got > 0

    def _queues_changed(self) -> None:
        """A queue got another pool: take over its sizes for credit and reserve."""
        self._generation = self.dev.queue_generation
        g = self.tcp.g
        for queue in self.dev.rx_queues[: T.MAX_QUEUES]:
            pool = queue.pool
            if pool is None:
                continue
            at = T.G_CREDIT + T.CR_WORDS * queue.index
            total = pool.area.count * pool.record.buffers_per_netmem
            g[at + T.CR_RESERVE] = max(4, min(128, total // 8))
            g[at + T.CR_OOO] = min(total // 4, 2048)
            g[at + T.CR_TOTAL] = total // max(pool.record.share, 1)
            g[at + T.CR_GRANT] = min(16, total // 4 // self.tcp.config.connections)
            g[at + T.CR_POOL] = g[at + T.CR_HPOOL] = 0
            for handle, known in self.dev.pools.items():
                if known is pool:
                    g[at + T.CR_POOL] = handle
                elif known.params.queue_idx == queue.index and known.destroyed_at is None:
                    if known.provider is None:  # the queue's other live pool is of its header buffers
                        g[at + T.CR_HPOOL] = handle
                        g[at + T.CR_HHOST] = known.record.host
                        g[at + T.CR_HSHIFT] = known.record.shift
            g[at + T.CR_HOST], g[at + T.CR_SHIFT] = pool.record.host, pool.record.shift
            g[at + T.CR_BUFLEN] = min(self.dev.ethtool.ring.rx_buf_len, 1 << pool.area.shift)
        self._refresh_credits()

    def _refresh_credits(self) -> None:
        gv = self.tcp.gv
        for queue in self.dev.rx_queues[: T.MAX_QUEUES]:
            at = T.G_CREDIT + T.CR_WORDS * queue.index
            gv[at + T.CR_AVAIL] = self.dev.available(queue.index)
            w.trim(self.tcp.g, self.tcp.t, queue.index)

    def _receive(self, batch: RxBatch, queue: int, available: int) -> None:
        """A batch from the device: fast path, slow path, answers."""
        tcp, dev = self.tcp, self.dev
        gv, pool = tcp.gv, dev.rx_queues[queue].pool
        gv[T.G_BATCH] += 1
        gv[T.G_QUEUE] = queue
        at = T.G_CREDIT + T.CR_WORDS * queue
        gv[at + T.CR_AVAIL] = available
        gv[T.G_TOKENS] = pool is not None and pool.provider is not None
        if k.tcp_rx(tcp.g, tcp.t, tcp.e, batch.meta, batch.rows, dev.tx.meta) and udp_batch(
            tcp.g, self.udp.u, tcp.e, batch.rows
        ):
            for i in tcp.g[T.G_SLOW_AT : T.G_SLOW_AT + gv[T.G_SLOW]].tolist():
                self._slow(batch, i)
        if gv[T.G_TOUCHED]:
            if tcp.touched is not None:
                tcp.touched.update(tcp.g[T.G_TOUCHED_AT : T.G_TOUCHED_AT + gv[T.G_TOUCHED]].tolist())
            o.tcp_flush(tcp.g, tcp.t, tcp.e, dev.tx.meta, dev.tx.rows)
        if gv[T.G_RELEASE]:
            tcp.put_released()

    def _slow(self, batch: RxBatch, i: int) -> None:
        kind = batch.rows[i, B_KIND]
        if kind == KIND_TCP:
            self.tcp.segment(batch, i)
        elif kind == KIND_ARP:
            self.ip.arp_in(batch, i)
        elif kind == KIND_ICMP:
            self.ip.icmp_in(batch, i)
        elif kind == KIND_ICMP6:
            self.ip.icmp6_in(batch, i)
        elif kind == KIND_UDP:
            self.udp.refused(batch, i)

    def activity(self) -> set[int]:
        """A set that grows by the row of each connection that something happens to (``TcpSocket.row``).

        For whoever serves many connections: take out what was looked after. One such user a stack.
        """
        with self.lock:
            if self.tcp.touched is None:
                self.tcp.touched = set()
            return self.tcp.touched

    # -- waiting ------------------------------------------------------------------------------

    def wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Poll until ``ready()``. TimeoutError naming ``what``; ENODEV when the device goes.

        One waiter at a time sleeps on the NIC's interrupt, the others on what it brings in.
        ``timeout`` in seconds, None: for ever.
        """
        deadline = None if timeout is None else self.clock.now() + int(timeout * SEC)
        backstop, rounds = BACKSTOP_NS, 0
        with self.lock:
            while not ready():
                if self._closed:
                    raise NetmemError(errno.EBADF, "the stack was closed")
                now = self.clock.now()
                if self.poll(now):
                    self._changed.notify_all()
                    backstop = BACKSTOP_NS
                    rounds += 1
                    if rounds % FAIR_ROUNDS == 0:
                        self._let_others()
                    if deadline is None or now < deadline or ready():
                        continue
                if ready():
                    return
                self.check_device()
                if ready():  # an error for the socket counts as ready
                    return
                if deadline is not None and now >= deadline:
                    raise TimeoutError(errno.ETIMEDOUT, f"{what} did not happen in {timeout:g} s")
                rest = SEC if deadline is None else max(0, deadline - now)
                if self._leader is not None or self._led:
                    if self._leader is self._service:
                        os.eventfd_write(self._kick, 1)
                    self._changed.wait(min(rest, 20 * MS) / SEC)
                    continue
                self._sleep(min(rest, backstop))
                backstop = min(2 * backstop, BACKSTOP_MAX_NS)

    def _let_others(self) -> None:
        """Under constant traffic: let go of the lock, every level, for whoever waits for it."""
        held = self.lock._release_save()  # type: ignore[attr-defined]
        try:
            time.sleep(0)
        finally:
            self.lock._acquire_restore(held)  # type: ignore[attr-defined]

    def _sleep(self, limit: int) -> bool:
        """As the leader, sleep on the interrupt for at most ``limit`` ns, the lock let go."""
        driver = self.dev.driver
        self._leader = threading.current_thread()
        driver.irq_arm()
        try:
            if driver.has_work() or self._stop.is_set():
                return True
            timer = self.tcp.gv[T.G_TIMER] - self.clock.now()
            limit = max(0, min(limit, timer))
            waiter = select.poll()
            for fd in (driver.irq_fd(), self._kick, *driver.filenos()):
                waiter.register(fd, select.POLLIN)
            # A socket call holds the lock already when it comes here: let go of every level, as
            # threading.Condition does, or nobody else could call in while we sleep.
            held = self.lock._release_save()  # type: ignore[attr-defined]
            try:
                events = waiter.poll((limit + MS - 1) // MS)
            finally:
                self.lock._acquire_restore(held)  # type: ignore[attr-defined]
            if not events and driver.has_work():
                self.backstops += 1
            return bool(events)
        finally:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._kick)
            driver.irq_ack()
            self._leader = None
            self._changed.notify_all()

    def lead(self, leading: bool) -> None:
        """An event loop takes over waiting for the NIC (True), or hands it back."""
        with self.lock:
            self._led = leading
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._kick, 1)

    def arm(self) -> bool:
        """Ask for an interrupt. True when there is work already, and none will come for it."""
        self.dev.driver.irq_arm()
        return self.dev.driver.has_work()

    def irq_taken(self) -> None:
        """The interrupt came: its descriptor is no longer readable."""
        self.dev.driver.irq_ack()

    def check_device(self) -> None:
        """When the NIC is gone, and all it left was read, tell every connection."""
        if self._gone is not None or self.dev.driver.is_alive():
            return
        if self.dev.driver.has_work():
            return
        self._gone = DeviceGoneError(f"{self.dev.name}: the NIC is gone")
        tcp = self.tcp
        for c in range(tcp.gv[T.G_ROWS]):
            if tcp.v[c, T.STATE]:
                tcp.closed(c, errno.ENODEV)
        self.dev.publish()
        self._changed.notify_all()

    def changed(self) -> None:
        """Wake whoever waits: a socket or listener was closed. Called under the lock."""
        self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """True once the stack was closed."""
        return self._closed

    @property
    def gone(self) -> DeviceGoneError | None:
        """The error that says that the device is gone, or None."""
        return self._gone

    def serve(self) -> None:
        """Start the service thread: it polls while no call of the application does."""
        if self._service is None:
            self._service = threading.Thread(target=self._serve, name="netmem-stack", daemon=True)
            self._service.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            idle = self.clock.now() - self._last_poll
            if self._leader is not None or self._led or idle < SERVICE_NS:
                self._stop.wait(SERVICE_NS / SEC)
                continue
            with self.lock:
                if self._closed:
                    return
                try:
                    for _ in range(FAIR_ROUNDS):
                        if self._stop.is_set() or not self.poll():
                            break
                        self._changed.notify_all()
                    self.check_device()
                    if self._leader is None and not self._stop.is_set():
                        self._sleep(BACKSTOP_MAX_NS)
                        if not self._stop.is_set() and self.poll():
                            self._changed.notify_all()
                except DeviceGoneError:
                    self.check_device()  # calls report it
                except Exception as error:  # the next call of the application raises it
                    self._trapped = error
                    self._changed.notify_all()
            if self._gone is not None:
                return
            if self._trapped is not None:
                self._stop.wait(SERVICE_NS / SEC)

    # -- sockets ------------------------------------------------------------------------------

    def listen(self, port: int, *, backlog: int = 128) -> TcpListener:
        """A listening socket. EADDRINUSE when the port has one; EINVAL for a port out of range."""
        if not 0 < port < 65536:
            raise NetmemError(errno.EINVAL, f"port {port} is outside 1 to 65535")
        with self.lock:
            return TcpListener(self, self.tcp.listen(port, backlog))

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
        with self.lock:
            self.check_device()
            if self._gone is not None:
                raise self._gone
            self.tcp.gv[T.G_NOW] = self.ip.now = self.clock.now()
            if self.dev.queue_generation != self._generation:
                self._queues_changed()
            return TcpSocket(self, self.tcp.connect(address_of(host), port))

    def _icmp_error(self, error: IcmpError) -> None:
        if error.proto == PROTO_TCP:
            self.tcp.icmp_error(error)
        elif error.proto == PROTO_UDP:
            self.udp.icmp_error(error)
            self._changed.notify_all()

    def udp_socket(self, port: int = 0) -> UdpSocket:
        """A UDP socket on a port of every address; 0 takes a free one. EADDRINUSE, EINVAL, ENOBUFS."""
        with self.lock:
            if self.dev.queue_generation != self._generation:
                self._queues_changed()
            return self.udp.open(port)

    def statistics(self) -> dict[str, Any]:
        """Counters of the stack and of the device below, and every connection's state."""
        v = self.tcp.v
        with self.lock:
            return {
                "addresses": self.ip.addresses,
                "tcp": self.tcp.counters(),
                "device": self.dev.describe(),
                "connections": [
                    {
                        "peer": endpoint(self.tcp.remote(c), v[c, T.PORTS] >> 16),
                        "port": v[c, T.PORTS] & 0xFFFF,
                        "state": T.STATE_NAMES[v[c, T.STATE]],
                        "queued": v[c, T.RQ_BYTES],
                        "out_of_order": v[c, T.OQ_BYTES],
                        "window": (v[c, T.RCV_ADV] - v[c, T.RCV_NXT]) & T.MASK32,
                    }
                    for c in range(self.tcp.gv[T.G_ROWS])
                    if v[c, T.STATE]
                ],
            }

    def linger(self, timeout: float, most: float = 60.0) -> None:
        """Wait until closed connections have sent all that they had and their FIN is acknowledged.

        At most ``timeout`` seconds without progress, and ``most`` in all.
        """
        v, rows = self.tcp.v, self.tcp.gv
        closing = (T.FIN_WAIT_1, T.CLOSING, T.LAST_ACK)

        def left() -> tuple[int, int]:
            waiting = [
                c for c in range(rows[T.G_ROWS])
                if v[c, T.STATE] in closing and v[c, T.FLAGS] & T.CF_ORPHAN
            ]
            return len(waiting), sum(v[c, T.SB_HEAD] for c in waiting)

        end = self.clock.now() + int(most * SEC)
        with contextlib.suppress(OSError):  # time is up, or the device is gone
            while not self._closed and (before := left())[0] and self.clock.now() < end:
                self.wait(lambda last=before: left() != last, timeout, "the last acknowledgement")  # type: ignore[misc]

    def close(self) -> None:
        """Reset what is open, give everything back, and stop the service thread."""
        if self._stop.is_set():
            return
        self._stop.set()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._kick, 1)
        if self._service is not None and self._service is not threading.current_thread():
            self._service.join(5.0)
        for call in list(self.closing):
            call()
        with self.lock:
            if self._closed:
                return
            self._closed = True
            for c in range(self.tcp.gv[T.G_ROWS]):
                if self.tcp.v[c, T.STATE] and self._gone is None:
                    self.tcp.abort(c)
            if self.dev.running and self._gone is None:
                self.dev.xmit()
            self.udp.close()
            self.tcp.put_released()
            self.tcp.close_all()
            self.zerocopy.close()
            self._changed.notify_all()
            os.close(self._kick)
