"""Two buses that a softnic driver can sit on: the NIC in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Sequence

from netmem.base.arena import PAGE_SIZE, Region
from netmem.base.errors import DeviceGoneError
from netmem.base.memfd import memfd
from netmem.base.native import full_fence
from netmem.hw.bus import DmaSpace
from netmem.hw.process import Child
from netmem.hw.softnic import regs as r
from netmem.hw.softnic.model import SoftNic

DEVICE_ID = (0x1AF4, 0x6E6D)
IO_BASE = 0x1_0000_0000


class _SoftnicBus(DmaSpace):
    """What both have in common: registers and I/O addresses."""

    device_id = DEVICE_ID

    def __init__(self, *, bounce: bool = False) -> None:
        super().__init__(bounce=bounce)
        self.bar_fd = memfd("softnic-bar", -(-r.BAR_BYTES // PAGE_SIZE) * PAGE_SIZE)
        self.regs = Region(self.bar_fd, r.BAR_BYTES).record(r.Bar)
        self._next = IO_BASE

    def _attach(self, fd: int, offset: int, length: int, direction: int, exporter: str) -> int:
        io = self._next
        self._map(fd, offset, length, io, direction, exporter)
        # A gap behind each mapping, so that running over its end hits nothing.
        self._next += (length + 2 * PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE + PAGE_SIZE
        return io

    def _map(self, fd: int, offset: int, length: int, io: int, direction: int, exporter: str) -> None:
        raise NotImplementedError

    def irq_arm(self) -> None:
        self.regs.irq_armed = 1
        full_fence()

    def irq_ack(self) -> None:
        self.regs.irq_armed = 0
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.irq_fd)

    def _close(self) -> None:
        super()._close()
        os.close(self.bar_fd)


class LocalBus(_SoftnicBus):
    """The NIC in this process, moved on by ``step``: for tests, simulation and gateways."""

    def __init__(self, *, bounce: bool = False) -> None:
        super().__init__(bounce=bounce)
        self.nic: SoftNic | None = None
        self._dead = False
        self._now = 0

    def attach(self, nic: SoftNic) -> None:
        """Put the NIC on the bus."""
        self.nic = nic

    def _map(self, fd: int, offset: int, length: int, io: int, direction: int, exporter: str) -> None:
        assert self.nic is not None
        if self._dead:
            raise DeviceGoneError("the NIC was unplugged")
        self.nic.map(fd, offset, length, io, direction, exporter)

    def _detach(self, io: int) -> None:
        assert self.nic is not None
        if not self._dead:
            self.nic.unmap(io)

    def step(self, now: int) -> bool:
        """Let the NIC work."""
        self._now = now
        return not self._dead and self.nic is not None and self.nic.step(now)

    def doorbell(self) -> None:
        """Nothing to do: who owns this bus steps the NIC."""

    def wait(self, ready: Callable[[], bool], what: str, timeout_ns: int) -> None:
        for _ in range(1000):
            if ready():
                return
            if self._dead:
                raise DeviceGoneError(f"the NIC was unplugged while waiting for {what}")
            self.step(self._now)
        raise TimeoutError(f"the NIC did not get to {what} in 1000 steps")

    def unplug(self) -> None:
        """Surprise removal."""
        self._dead = True
        if self.nic is not None:
            self.nic.close()

    def is_alive(self) -> bool:
        return not self._dead

    def filenos(self) -> list[int]:
        return []

    def close(self) -> None:
        """Let the device go."""
        if self.nic is not None and not self._dead:
            self.nic.close()
        self._dead = True
        self._close()


class ProcessBus(_SoftnicBus):
    """The NIC in a process of its own, which alone maps the memory that the driver has it map.

    ``meanwhile`` is called while that process starts.
    """

    def __init__(
        self, argv: list[str], fds: Sequence[int] = (), *, bounce: bool = False,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        super().__init__(bounce=bounce)
        self.doorbell_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        own = (self.bar_fd, self.irq_fd, self.doorbell_fd)
        names = ("--bar-fd", "--irq-fd", "--doorbell-fd")
        extra = itertools.chain.from_iterable(zip(names, map(str, own), strict=True))
        try:
            self.child = Child([*argv, *extra], [*own, *fds])
            try:
                meanwhile()
                self.info = self.child.wait_ready()
            except BaseException:
                self.child.close()
                raise
        except BaseException:
            os.close(self.doorbell_fd)
            self._close()
            raise

    def _map(self, fd: int, offset: int, length: int, io: int, direction: int, exporter: str) -> None:
        request = {"op": "map", "offset": offset, "length": length, "io": io, "dir": direction}
        self.child.call({**request, "exporter": exporter}, [fd])

    def _detach(self, io: int) -> None:
        self.child.call({"op": "unmap", "io": io})

    def doorbell(self) -> None:
        full_fence()
        if self.regs.db_armed:
            self.regs.db_armed = 0
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self.doorbell_fd, 1)

    def wait(self, ready: Callable[[], bool], what: str, timeout_ns: int) -> None:
        deadline = time.monotonic_ns() + timeout_ns
        while not ready():
            if not self.is_alive():
                raise DeviceGoneError(f"the NIC went away while waiting for {what}")
            if time.monotonic_ns() > deadline:
                raise TimeoutError(f"the NIC did not get to {what} in {timeout_ns / 1e9:g} s")
            time.sleep(0.0002)  # set-up only: a queue starts or stops

    def is_alive(self) -> bool:
        return self.child.is_alive()

    def filenos(self) -> list[int]:
        return [self.child.sock.fileno()]

    def close(self) -> None:
        """End the NIC's process and close what belonged to it."""
        self.child.close()
        os.close(self.doorbell_fd)
        self._close()
