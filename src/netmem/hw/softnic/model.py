"""The software NIC itself: mappings, queue set-up, and one step of work at a time."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from netmem.base.arena import Region
from netmem.base.errors import NetmemError
from netmem.base.native import full_fence, read_word
from netmem.base.record import address_of, clear, field_offset, publish
from netmem.hw.softnic import copies, look, step
from netmem.hw.softnic import regs as r
from netmem.hw.softnic.engine import CopyEngine, Staging, engine_for
from netmem.hw.softnic.regs import QueueRegs, QueueState
from netmem.hw.softnic.ring import host_address
from netmem.hw.softnic.state import MAX_MAPS, NicState, QueueWork
from netmem.hw.softnic.step import Step
from netmem.hw.wire import Wire

PAUSE_NS = 50_000_000


class SoftNic:
    """A NIC over a register file in shared memory and a wire.

    ``bar_fd``: memfd of ``regs.BAR_BYTES`` bytes. ``irq_fd``: eventfd written when work arrived and
    the driver armed its interrupt. Nothing happens but in ``step``.
    """

    def __init__(
        self, bar_fd: int, irq_fd: int, wire: Wire, *, rx_queues: int, tx_queues: int, mac: int
    ) -> None:
        self._region = Region(bar_fd, r.BAR_BYTES)
        self.bar = self._region.record(r.Bar)
        self.wire = wire
        self.nic = NicState(bar=self._region.address, rx=wire.rx.at, tx=wire.tx.at, tap=wire.tap)
        self.at = address_of(self.nic)
        self.nic.irq_fd, self.nic.irq_count = irq_fd, 1
        self.nic.irq_at, self.nic.irq_len = self.at + field_offset(NicState, "irq_count"), 8
        self._regions: dict[int, Region | Staging] = {}
        self._engine: CopyEngine | None = None
        self._sent_from = (0, 0)
        self._key = b""
        self._generation_at = self._region.address + field_offset(r.Bar, "generation")
        self.rx_queues, self.tx_queues = rx_queues, tx_queues
        bar = self.bar
        bar.rx_queues, bar.tx_queues, bar.mac = rx_queues, tx_queues, mac
        bar.pause_ns, bar.mtu = PAUSE_NS, 1500
        bar.magic, bar.status = r.MAGIC, r.STATUS_LINK

    def map(self, fd: int, offset: int, length: int, io: int, direction: int, exporter: str = "") -> None:
        """Let the device reach ``length`` bytes of ``fd`` at I/O address ``io`` (``DmaDevice.dma_map``)."""
        if len(self._regions) >= MAX_MAPS:
            raise NetmemError(errno.ENOSPC, f"the NIC has no room for more than {MAX_MAPS} mappings")
        region: Region | Staging
        try:
            region = self._attach(exporter, fd, length) if exporter else Region(fd, length, offset)
        except NetmemError:
            raise
        except (OSError, ValueError) as error:
            raise NetmemError(errno.EINVAL, f"cannot map {length} bytes for the NIC: {error}") from None
        self._regions[io] = region
        n = len(self._regions) - 1
        mapped = self.nic.maps[n]
        mapped.io, mapped.length, mapped.host, mapped.direction = io, length, region.address, direction
        mapped.far = region.far if isinstance(region, Staging) else 0
        self.nic.maps_used = n + 1

    def _attach(self, exporter: str, fd: int, length: int) -> Staging:
        if self._engine is None:
            self._engine = engine_for(exporter)
            address, size = self._sent_from
            if size and self._engine.reach(address, size):
                self.nic.near, self.nic.near_end = address, address + size
        elif self._engine.exporter != exporter:
            text = f"the copy engine serves {self._engine.exporter}: for {exporter} open another device"
            raise NetmemError(errno.EBUSY, text)
        return self._engine.attach(fd, length)

    def unmap(self, io: int) -> None:
        """End a mapping; queues whose ring lay in it stop with a fault."""
        if io not in self._regions:
            raise NetmemError(errno.EINVAL, f"I/O address {io:#x} is not mapped")
        self.settle()
        region = self._regions.pop(io)
        nic = self.nic
        n = nic.maps_used
        at = next(i for i in range(n) if nic.maps[i].io == io)
        for i in range(at, n - 1):
            nic.maps[i] = nic.maps[i + 1]
        nic.maps_used, nic.last_map = n - 1, 0
        for q, work in self._queues():
            if region.address <= work.ring < region.address + region.size:
                self._stop(q, work, QueueState.FAULT)
        if isinstance(region, Staging):
            region.close()

    def sent_from(self, address: int, size: int) -> None:
        """The wire's far end sends from this memory: a copy engine need not have it copied for it.

        Before the first mapping. The memory must outlive the NIC.
        """
        self._sent_from = (address, size)

    def _queues(self) -> Iterator[tuple[QueueRegs, QueueWork]]:
        bar, nic = self.bar, self.nic
        yield from ((bar.rxq[i], nic.rxq[i]) for i in range(self.rx_queues))
        yield from ((bar.txq[i], nic.txq[i]) for i in range(self.tx_queues))

    def _stop(self, q: QueueRegs, work: QueueWork, state: QueueState) -> None:
        work.ring = 0
        publish(q, "state", int(state))

    def _configure(self) -> None:
        """Follow what the driver wrote: hash key, queues to start and to stop."""
        self.settle()
        self.nic.generation = read_word(self._generation_at)
        key = bytes(self.bar.rss_key)
        if key != self._key:
            self._key = key
            look.toeplitz_table(self.at)
        for number, (q, work) in enumerate(self._queues()):
            if q.ctrl and q.state == QueueState.STOPPED:
                self._start(q, work)
            elif not q.ctrl and q.state != QueueState.STOPPED:
                if number >= self.rx_queues:
                    self._forget_frames(number - self.rx_queues)
                self._stop(q, work, QueueState.STOPPED)

    def _start(self, q: QueueRegs, work: QueueWork) -> None:
        size = q.size
        ring = host_address(self.at, q.ring, size * r.DESC_BYTES, 0)
        if not ring or size & (size - 1) or not size:
            self.bar.counters.dma_fault += 1
            publish(q, "state", int(QueueState.FAULT))
            return
        clear(work)
        work.mask = size - 1
        q.head = 0
        work.ring = ring
        publish(q, "state", int(QueueState.RUNNING))

    def _forget_frames(self, queue: int) -> None:
        """Take back frames of a transmit queue that stops: its memory may go away."""
        for frame in self.wire.tx.waiting():
            if frame.txq == queue:
                # No bytes, not looked at: the other side counts a runt.
                frame.header_len = frame.payload_len = frame.payload2_len = frame.seen = frame.gso_size = 0
                frame.descriptors = 0

    def step(self, now: int) -> bool:
        """Do what there is to do: configuration, frames in, frames out. True when anything was."""
        worked = self.wire.exchange(now)
        did = step.nic_step(self.at, now)
        if did & Step.CONFIGURE:
            self._configure()
            did = step.nic_step(self.at, now)
        if did & Step.COPY:
            self._copy()
        return worked or did != 0

    def settle(self) -> None:
        """Until no copy is queued or made: memory and rings may go away. EIO of a GPU that fails."""
        while copies.is_any_waiting(self.at):
            self._copy()

    def _copy(self) -> None:
        """Have the engine work while the NIC goes on, and tell of what it has done."""
        nic, engine = self.nic, self._engine
        assert engine is not None
        if nic.flying and engine.is_done():
            copies.nic_copied(self.at)
        if not nic.flying:
            queue = nic.queues[nic.filling]
            if queue.copies or queue.told or queue.frames:
                engine.start(queue)
                copies.nic_fly(self.at)
                if engine.is_done():
                    copies.nic_copied(self.at)

    def run(self, spin_ns: int, most_ns: int) -> bool:
        """``step`` again and again, for a NIC that reads its wire by itself (``Wire.tap``).

        Until nothing moved for ``spin_ns``, for at most ``most_ns``. True when there may be more to do.
        """
        did = step.nic_run(self.at, spin_ns, most_ns)
        if did & Step.CONFIGURE:
            self._configure()
        if did & Step.COPY:
            self._copy()
        return did != 0

    def interrupt(self, now: int) -> None:
        """Wake the driver if it waits, for what was delivered since the last time."""
        step.interrupt(self.at, now)

    def arm_doorbell(self) -> None:
        """Ask for a doorbell; look at the rings again after this, before sleeping."""
        self.bar.db_armed = 1
        full_fence()

    def is_paused(self) -> bool:
        """True while a frame holds the wire for want of descriptors."""
        return self.nic.paused_at != 0

    def close(self) -> None:
        """Stop all queues and let go of all memory."""
        with contextlib.suppress(NetmemError):
            self.settle()
        self.bar.status = 0
        for q, work in self._queues():
            self._stop(q, work, QueueState.STOPPED)
        self.nic.maps_used = 0
        for region in self._regions.values():
            if isinstance(region, Staging):
                region.close()
        self._regions.clear()
        if self._engine is not None:
            self._engine.close()
        self.wire.close()
