"""Who polls, and how waiting works: lock, clock, leader, service thread.

All of a device and the stack above it happens under one lock, in ``work``, which the poller calls. A blocked
call sleeps on the NIC's interrupt as the leader; other waiters sleep on what the leader brings in; a service
thread leads when nobody polled for a while. ``with poller.lock`` is to look; ``with poller`` is to act: it
stamps the time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Callable

from netmem.base.clock import MS, SEC, Clock
from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.inet.later import Later
from netmem.inet.tcp.tcb import StackRecord
from netmem.netdev.device import BUDGET, NetDevice

BACKSTOP_NS, BACKSTOP_MAX_NS = 1 * MS, 50 * MS
SERVICE_NS = 5 * MS
FAIR_ROUNDS = 16


class Poller:
    """Polls one device.

    ``work(now, budget)`` does what there is to do, and tells whether anything came in; ``told_gone`` is
    called once, when the device is gone and all that it left was read. ``record``: its ``now`` is the time of
    all that is done, its ``timer`` when there is something to do whatever comes.
    """

    def __init__(
        self,
        dev: NetDevice,
        clock: Clock,
        record: StackRecord,
        work: Callable[[int, int], bool],
        told_gone: Callable[[], None],
    ) -> None:
        self._dev, self.clock, self._record = dev, clock, record
        self._work, self._told_gone = work, told_gone
        self.lock = dev.lock
        self.later = Later(self.lock)
        """What the next poll does first."""
        self._changed = threading.Condition(self.lock)
        self._leader: threading.Thread | None = None
        self._led = False  # an event loop waits for the NIC
        self._kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._service: threading.Thread | None = None
        self._stop = threading.Event()
        self._last_poll = 0
        self._trapped: Exception | None = None  # in the service thread
        self.gone: DeviceGoneError | None = None
        """The error that says that the device is gone, or None."""
        self.closed = False
        self.closing: list[Callable[[], None]] = []  # called when the stack closes, for whoever waits on it
        self.backstops = 0  # times the back-stop of a wait found work that no interrupt told of

    # -- entering -----------------------------------------------------------------------------

    def __enter__(self) -> Poller:
        self.lock.acquire()
        try:
            self.stamp()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.lock.release()

    def stamp(self) -> None:
        """The time of what is done from here on. It never goes back. Called under the lock."""
        self._record.now = max(self.clock.now(), self._record.now)

    def check_open(self) -> None:
        """EBADF once the stack was closed."""
        if self.closed:
            raise NetmemError(errno.EBADF, "the stack was closed")

    def check(self) -> None:
        """EBADF once the stack was closed, ENODEV once the device is gone."""
        self.check_open()
        if self.gone is not None:
            raise self.gone

    def changed(self) -> None:
        """Wake whoever waits. Called under the lock."""
        self._changed.notify_all()

    # -- polling ------------------------------------------------------------------------------

    def poll(self, now: int | None = None, budget: int = BUDGET) -> bool:
        """Do what there is to do. True when anything came in."""
        with self.lock:
            if self._trapped is not None and threading.current_thread() is not self._service:
                trapped, self._trapped = self._trapped, None
                raise trapped
            self.check_open()
            if self.later.waiting:
                self.later.run()
            # A call may have stamped a later time than the caller took: time never goes back.
            now = max(self.clock.now() if now is None else now, self._record.now)
            self._last_poll = self._record.now = now
            return self._work(now, budget)

    def given_back(self) -> None:
        """Buffers came back. Nobody polls a device that is down, so look here for pools that this ends."""
        if not self._dev.queues.running:
            self.stamp()
            self._dev.reap(self._record.now)

    def check_device(self) -> None:
        """When the NIC is gone, and all it left was read, tell of it, once."""
        if self.gone is not None or self._dev.driver.is_alive():
            return
        if self._dev.driver.has_work():
            return
        self.gone = DeviceGoneError(f"{self._dev.name}: the NIC is gone")
        self._told_gone()
        self._changed.notify_all()

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
                self.check_open()
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
        driver = self._dev.driver
        self._leader = threading.current_thread()
        driver.irq_arm()
        try:
            if driver.has_work() or self._stop.is_set():
                return True
            limit = max(0, min(limit, self._record.timer - self.clock.now()))
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

    # -- an event loop that waits for the NIC -------------------------------------------------

    def lead(self, leading: bool) -> None:
        """An event loop takes over waiting for the NIC (True), or hands it back."""
        with self.lock:
            self._led = leading
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._kick, 1)

    def arm(self) -> bool:
        """Ask for an interrupt. True when there is work already, and none will come for it."""
        self._dev.driver.irq_arm()
        return self._dev.driver.has_work()

    def irq_taken(self) -> None:
        """The interrupt came: its descriptor is no longer readable."""
        self._dev.driver.irq_ack()

    def next_timer(self) -> int:
        """ns until there is something to do whatever comes, at most the longest back-stop."""
        return min(self._record.timer - self.clock.now(), BACKSTOP_MAX_NS)

    # -- the service thread -------------------------------------------------------------------

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
                if self.closed:
                    return
                try:
                    self._serve_once()
                except DeviceGoneError:
                    self.check_device()  # calls report it
                except Exception as error:  # the next call of the application raises it
                    self._trapped = error
                    self._changed.notify_all()
            if self.gone is not None:
                return
            if self._trapped is not None:
                self._stop.wait(SERVICE_NS / SEC)

    def _serve_once(self) -> None:
        for _ in range(FAIR_ROUNDS):
            if self._stop.is_set() or not self.poll():
                break
            self._changed.notify_all()
        self.check_device()
        if self._leader is None and not self._stop.is_set():
            self._sleep(BACKSTOP_MAX_NS)
            if not self._stop.is_set() and self.poll():
                self._changed.notify_all()

    # -- the end ------------------------------------------------------------------------------

    def stop(self) -> bool:
        """End the service thread, and tell whoever waits on it. False: it was stopped before."""
        if self._stop.is_set():
            return False
        self._stop.set()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._kick, 1)
        if self._service is not None and self._service is not threading.current_thread():
            self._service.join(5.0)
        for call in list(self.closing):
            call()
        return True

    def close(self) -> None:
        """Nothing is done from here on. Called under the lock, after ``stop``."""
        self.later.closed = True
        self.later.run()
        self._changed.notify_all()
        os.close(self._kick)
