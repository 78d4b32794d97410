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

from netmem.base.address import endpoint, ip_words
from netmem.base.clock import MS, SEC, Clock, MonotonicClock
from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.base.headers import PROTO_TCP, PROTO_UDP
from netmem.inet.icmp import IcmpError
from netmem.inet.ip import Ip, address_of
from netmem.inet.socket import TcpListener, TcpSocket
from netmem.inet.tcp import calls
from netmem.inet.tcp.connections import TcpConfig
from netmem.inet.tcp.machine import Tcp
from netmem.inet.tcp.tcb import MASK32, MAX_ADDRESSES, MAX_QUEUES, Flag, TcpState
from netmem.inet.udp import Udp, UdpSocket
from netmem.inet.udp.kernels import udp_receive
from netmem.inet.zerocopy import Zerocopy
from netmem.memory import sanitizer
from netmem.netdev.batch import Kind, RxBatch
from netmem.netdev.device import BUDGET, NetDevice

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
        self.tcp.record.sockets = self.udp.arena.address
        self._addresses_changed()
        self.ip.stats, self.ip.neighbour_up = self.tcp.stats, self.tcp.neighbour_up
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
        record, ours = self.tcp.record, list(self.ip.ours)[:MAX_ADDRESSES]
        record.addresses_used = len(ours)
        for address, number in zip(record.addresses, ours, strict=False):
            address.hi, address.lo = ip_words(number)

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
            record = tcp.record
            # A call may have stamped a later time than the caller took: time never goes back.
            now = max(self.clock.now() if now is None else now, record.now)
            self._last_poll = now
            record.now = self.ip.now = now
            if dev.queue_generation != self._generation:
                self._queues_changed()
            got = dev.poll(now, self._receive, budget) if dev.running else 0
            if now >= record.timer:
                tcp.timers()
            if record.starved:
                self._refresh_credits()
                calls.window_updates(tcp.at)
            if record.releases:
                tcp.put_released()
            if record.zc_head and self.zerocopy.poll():
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
        for queue in self.dev.rx_queues[:MAX_QUEUES]:
            pool = queue.pool
            if pool is None:
                continue
            account = self.tcp.record.accounts[queue.index]
            total = pool.area.count * pool.record.buffers_per_netmem
            account.reserve = max(4, min(128, total // 8))
            account.ooo_most = min(total // 4, 2048)
            account.total = total // max(pool.record.share, 1)
            account.grant = min(16, total // 4 // self.tcp.config.connections)
            account.pool = account.header_pool = 0
            for handle, known in self.dev.pools.items():
                if known is pool:
                    account.pool = handle
                elif known.params.queue_idx == queue.index and known.destroyed_at is None:
                    if known.provider is None:  # the queue's other live pool is of its header buffers
                        account.header_pool = handle
                        account.header_host = known.record.host
                        account.header_shift = known.record.shift
            account.host, account.shift = pool.record.host, pool.record.shift
            account.buf_len = min(self.dev.ethtool.ring.rx_buf_len, 1 << pool.area.shift)
        self._refresh_credits()

    def _refresh_credits(self) -> None:
        for queue in self.dev.rx_queues[:MAX_QUEUES]:
            self.tcp.record.accounts[queue.index].available = self.dev.available(queue.index)
            calls.trim(self.tcp.at, queue.index)

    def _receive(self, batch: RxBatch, queue: int, available: int) -> None:
        """A batch from the device: fast path, slow path, answers."""
        tcp = self.tcp
        record, pool = tcp.record, self.dev.rx_queues[queue].pool
        record.batch += 1
        record.queue = queue
        record.accounts[queue].available = available
        record.by_token = pool is not None and pool.provider is not None
        if calls.receive(tcp.at, batch.at) and udp_receive(tcp.at, batch.at):
            for i in tcp.left():
                self._slow(batch, i)
        if record.touched:
            if tcp.touched is not None:
                tcp.touched.update(tcp.touched_now())
            calls.flush(tcp.at)
        if record.releases:
            tcp.put_released()

    def _slow(self, batch: RxBatch, i: int) -> None:
        kind = batch.row(i).kind
        if kind == Kind.TCP:
            self.tcp.segment(batch, i)
        elif kind == Kind.ARP:
            self.ip.arp_in(batch, i)
        elif kind == Kind.ICMP:
            self.ip.icmp_in(batch, i)
        elif kind == Kind.ICMP6:
            self.ip.icmp6_in(batch, i)
        elif kind == Kind.UDP:
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
            timer = self.tcp.record.timer - self.clock.now()
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
        for c in range(tcp.record.rows):
            if tcp.state(c):
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
            self.tcp.record.now = self.ip.now = self.clock.now()
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
        with self.lock:
            return {
                "addresses": self.ip.addresses,
                "tcp": self.tcp.counters(),
                "device": self.dev.describe(),
                "connections": [
                    {
                        "peer": endpoint(self.tcp.remote(c), tcb.ports >> 16),
                        "port": tcb.ports & 0xFFFF,
                        "state": TcpState(tcb.state).title,
                        "queued": tcb.rq_bytes,
                        "out_of_order": tcb.oq_bytes,
                        "window": (tcb.rcv_adv - tcb.rcv_nxt) & MASK32,
                    }
                    for c, tcb in enumerate(self.tcp.tcbs[: self.tcp.record.rows])
                    if tcb.state
                ],
            }

    def linger(self, timeout: float, most: float = 60.0) -> None:
        """Wait until closed connections have sent all that they had and their FIN is acknowledged.

        At most ``timeout`` seconds without progress, and ``most`` in all.
        """
        tcp = self.tcp
        closing = (TcpState.FIN_WAIT_1, TcpState.CLOSING, TcpState.LAST_ACK)

        def left() -> tuple[int, int]:
            waiting = [
                tcb for tcb in tcp.tcbs[: tcp.record.rows]
                if tcb.state in closing and tcb.flags & Flag.ORPHAN
            ]  # fmt: skip
            return len(waiting), sum(tcb.sb_head for tcb in waiting)

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
            for c in range(self.tcp.record.rows):
                if self.tcp.state(c) and self._gone is None:
                    self.tcp.abort(c)
            if self.dev.running and self._gone is None:
                self.dev.xmit()
            self.udp.close()
            self.tcp.put_released()
            self.tcp.close_all()
            self.zerocopy.close()
            self._changed.notify_all()
            os.close(self._kick)
