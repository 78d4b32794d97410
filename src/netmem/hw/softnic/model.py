"""The software NIC itself: mappings, queue set-up, and one step of work at a time."""

from __future__ import annotations

import contextlib
import errno
import os

import numpy as np

from netmem.base.arena import Region, Words
from netmem.base.errors import NetmemError
from netmem.base.native import full_fence, publish_word, read_word
from netmem.hw.softnic import kernels as k
from netmem.hw.softnic import look
from netmem.hw.softnic import regs as r
from netmem.hw.softnic import state as st
from netmem.hw.softnic.scatter import nic_scatter
from netmem.hw.wire import F_GSO, F_HLEN, F_NDESC, F_P2LEN, F_PLEN, F_SEEN, F_TXQ, FQ_HEAD, FQ_TAIL, Wire

MAX_MAPS = 256
PAUSE_NS = 50_000_000
SCATTER_BUDGET = 32  # frames


class SoftNic:
    """A NIC over a register file in shared memory and a wire.

    ``bar_fd``: memfd of ``regs.BAR_WORDS`` words. ``irq_fd``: eventfd written when work arrived and
    the driver armed its interrupt. Nothing happens but in ``step``.
    """

    def __init__(
        self, bar_fd: int, irq_fd: int, wire: Wire, *, rx_queues: int, tx_queues: int, mac: int
    ) -> None:
        self._bar = Region(bar_fd, r.BAR_WORDS * 8)
        self.bar: Words = self._bar.words()
        self.irq_fd, self.wire = irq_fd, wire
        self.d: Words = np.zeros(st.D_WORDS, np.int64)
        self.maps: Words = np.zeros((MAX_MAPS, 4), np.int64)
        self._regions: dict[int, Region] = {}
        self._generation = 0
        self._scatter: Words | None = getattr(wire, "scatter", None)
        self._pending, self._last_irq = False, 0
        self._generation_at = self._bar.address + 8 * r.R_GENERATION
        self.rx_queues, self.tx_queues = rx_queues, tx_queues
        bar = self.bar
        bar[r.R_RX_QUEUES], bar[r.R_TX_QUEUES], bar[r.R_MAC] = rx_queues, tx_queues, mac
        bar[r.R_PAUSE_NS], bar[r.R_MTU] = PAUSE_NS, 1500
        bar[r.R_MAGIC], bar[r.R_STATUS] = r.MAGIC, r.STATUS_LINK

    def map(self, fd: int, offset: int, length: int, io: int, direction: int) -> None:
        """Let the device reach ``length`` bytes of ``fd`` at I/O address ``io``."""
        if len(self._regions) >= MAX_MAPS:
            raise NetmemError(errno.ENOSPC, f"the NIC has no room for more than {MAX_MAPS} mappings")
        try:
            region = Region(fd, length, offset)
        except (OSError, ValueError) as error:
            raise NetmemError(errno.EINVAL, f"cannot map {length} bytes for the NIC: {error}") from None
        self._regions[io] = region
        n = len(self._regions) - 1
        self.maps[n] = io, length, region.address, direction
        self.d[st.D_NMAPS] = n + 1

    def unmap(self, io: int) -> None:
        """End a mapping; queues whose ring lay in it stop with a fault."""
        if io not in self._regions:
            raise NetmemError(errno.EINVAL, f"I/O address {io:#x} is not mapped")
        region = self._regions.pop(io)
        n = int(self.d[st.D_NMAPS])
        at = int(np.flatnonzero(self.maps[:n, 0] == io)[0])
        self.maps[at : n - 1] = self.maps[at + 1 : n]
        self.d[st.D_NMAPS], self.d[st.D_LAST_MAP] = n - 1, 0
        for base, regs, count in self._queues():
            for queue in range(count):
                ring = int(self.d[base + st.D_STRIDE * queue + st.DQ_RING])
                if region.address <= ring < region.address + region.size:
                    self._stop(base, regs, queue, r.STATE_FAULT)

    def _queues(self) -> tuple[tuple[int, int, int], ...]:
        return ((st.D_RXQ, r.R_RXQ, self.rx_queues), (st.D_TXQ, r.R_TXQ, self.tx_queues))

    def _stop(self, base: int, regs: int, queue: int, state: int) -> None:
        self.d[base + st.D_STRIDE * queue + st.DQ_RING] = 0
        self._set(regs + r.RXQ_STRIDE * queue + r.Q_STATE, state)

    def _set(self, at: int, value: int) -> None:
        publish_word(self._bar.address + 8 * at, value)

    def _configure(self) -> None:
        """Follow what the driver wrote: hash key, queues to start and to stop."""
        bar, d = self.bar, self.d
        look.toeplitz_table(d, bar.ctypes.data + 8 * r.R_RSS_KEY)
        for base, regs, count in self._queues():
            for queue in range(count):
                q, dq = regs + r.RXQ_STRIDE * queue, base + st.D_STRIDE * queue
                want, state = int(bar[q + r.Q_CTRL]), int(bar[q + r.Q_STATE])
                if want and state == r.STATE_STOPPED:
                    size = int(bar[q + r.Q_SIZE])
                    ring = k.translate(d, self.maps, int(bar[q + r.Q_RING]), size * 32, 0)
                    if not ring or size & (size - 1) or not size:
                        bar[r.R_COUNTERS + r.C_DMA_FAULT] += 1
                        self._set(q + r.Q_STATE, r.STATE_FAULT)
                        continue
                    d[dq : dq + st.D_STRIDE] = 0
                    d[dq + st.DQ_MASK] = size - 1
                    bar[q + r.Q_HEAD] = 0
                    d[dq + st.DQ_RING] = ring
                    self._set(q + r.Q_STATE, r.STATE_RUNNING)
                elif not want and state != r.STATE_STOPPED:
                    if base == st.D_TXQ:
                        self._forget_frames(queue)
                    self._stop(base, regs, queue, r.STATE_STOPPED)

    def _forget_frames(self, queue: int) -> None:
        """Take back frames of a transmit queue that stops: its memory may go away."""
        state, rows = self.wire.tx.state, self.wire.tx.rows
        for at in range(int(state[FQ_HEAD]), int(state[FQ_TAIL])):
            row = rows[at % len(rows)]
            if row[F_TXQ] == queue:
                # No bytes, not looked at: the other side counts a runt.
                row[F_HLEN] = row[F_PLEN] = row[F_P2LEN] = row[F_SEEN] = row[F_GSO] = 0
                row[F_NDESC] = 0

    def step(self, now: int) -> bool:
        """Do what there is to do: configuration, frames in, frames out. True when anything was."""
        bar = self.bar
        generation = read_word(self._generation_at)
        if generation != self._generation:
            self._generation = generation
            self._configure()
        worked = self.wire.exchange(now)
        rx, tx = self.wire.rx, self.wire.tx
        got = 0
        if self._scatter is not None:
            got = nic_scatter(self.d, bar, self.maps, rx.state, rx.rows, self._scatter, now, SCATTER_BUDGET)
        elif len(rx):
            got = k.nic_rx(self.d, bar, self.maps, rx.state, rx.rows, now)
        held = self.d[st.D_PAUSED_AT] != 0
        if bar[r.R_HELD] != held:
            self._set(r.R_HELD, int(held))
        sent = k.nic_tx(self.d, bar, self.maps, tx.state, tx.rows, self.tx_queues)
        if got:
            self._pending = True
        if self._pending and now - self._last_irq >= bar[r.R_ITR_NS]:
            self.interrupt(now)
        return bool(worked or got or sent)

    def interrupt(self, now: int) -> None:
        """Wake the driver if it waits, for what was delivered since the last time."""
        if not self._pending:
            return
        self._pending, self._last_irq = False, now
        full_fence()
        if self.bar[r.R_IRQ_ARMED]:
            self.bar[r.R_IRQ_ARMED] = 0
            self.bar[r.R_COUNTERS + r.C_IRQ] += 1
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self.irq_fd, 1)

    def arm_doorbell(self) -> None:
        """Ask for a doorbell; look at the rings again after this, before sleeping."""
        self.bar[r.R_DB_ARMED] = 1
        full_fence()

    def is_paused(self) -> bool:
        """True while a frame holds the wire for want of descriptors."""
        return bool(self.d[st.D_PAUSED_AT])

    def close(self) -> None:
        """Stop all queues and let go of all memory."""
        self.bar[r.R_STATUS] = 0
        for base, regs, count in self._queues():
            for queue in range(count):
                self._stop(base, regs, queue, r.STATE_STOPPED)
        self.d[st.D_NMAPS] = 0
        self._regions.clear()
        self.wire.close()
