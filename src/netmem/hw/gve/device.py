"""A gve: registers, doorbells and interrupts, and what it does when it is stepped (gve_register.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from netmem.base.arena import Bytes
from netmem.base.clock import MS, SEC
from netmem.base.headers import EthHdr
from netmem.base.record import address_of
from netmem.hw.faults import FRAME_ROOM, PlainFrames
from netmem.hw.gve import layout as ly
from netmem.hw.gve import regs
from netmem.hw.gve.admin import AdminQueue
from netmem.hw.gve.port import GveConfig, NotifyBlock, Port
from netmem.hw.gve.rx import RxQueue
from netmem.hw.gve.setup import Setup
from netmem.hw.gve.tx import TxQueue
from netmem.hw.softnic.kernels import frame_finish
from netmem.hw.vfio_user.dma import DmaFault, DmaTable
from netmem.hw.wire import FrameRow, Wire

GOOGLE, GVE_DEVICE = 0x1AE0, 0x0042
CLASS_ETHERNET = 0x020000
REVISION = 1  # the admin queue's base and length have registers of their own
REGISTERS_BAR, DOORBELLS_BAR = 0, 2
BAR0_BYTES, BAR2_BYTES = 4096, 16384
MAX_QUEUES = 16
HOLD_NS = 50 * MS  # how long a frame waits for buffers, before it is dropped
STATS_NS = SEC


class Gve:
    """The device model (``hw.vfio_user.DeviceModel``), on a wire. ``step`` moves its packets."""

    vendor, device, revision, class_code = GOOGLE, GVE_DEVICE, REVISION, CLASS_ETHERNET

    def __init__(self, wire: Wire, config: GveConfig | None = None) -> None:
        self.port = Port(wire, config or GveConfig())
        self.bars = {REGISTERS_BAR: BAR0_BYTES, DOORBELLS_BAR: BAR2_BYTES}
        self.vectors = self.port.vectors
        self.link = True
        self._plain = PlainFrames()
        self._segment: Bytes = np.zeros(FRAME_ROOM, np.uint8)
        self.reset()

    def attach(self, dma: DmaTable, signal: Callable[[int], None]) -> None:
        """The guest's memory, and its interrupts."""
        self.port.dma, self.port.signal = dma, signal

    def reset(self) -> None:
        """As after power on: no queues, nothing of the guest's memory in use."""
        queues = self.port.config.queues
        self.registers = regs.Registers(
            max_tx_queues=queues, max_rx_queues=queues,
            device_status=regs.DeviceStatus.DEVICE_IS_RESET | self._link_bit(),
        )  # fmt: skip
        self.setup = Setup(self.port)
        self.admin = AdminQueue(self.port, self.setup)
        self.driver_version = ""
        self._version = bytearray()
        self._stats_at = 0
        self._held_at = 0  # since when a frame waits for buffers

    def _link_bit(self) -> int:
        return int(regs.DeviceStatus.LINK_STATUS) if self.link else 0

    # -- registers and doorbells --------------------------------------------------------------

    def read(self, bar: int, offset: int, size: int) -> bytes:
        """Read a register; doorbells read as zero."""
        if bar != REGISTERS_BAR:
            return bytes(size)
        return bytes(self.registers)[offset : offset + size].ljust(size, b"\0")

    def write(self, bar: int, offset: int, data: bytes) -> None:
        """Write a register (big-endian) or ring a doorbell (little-endian)."""
        if bar == DOORBELLS_BAR:
            self._doorbell(offset, data)
            return
        r, value = self.registers, int.from_bytes(data, "big")
        name = _REGISTERS.get((offset, len(data)))
        if name == "driver_status":
            self._driver_status(value)
        elif name == "adminq_doorbell":
            r.adminq_doorbell = value
            base = r.adminq_base_address_hi << 32 | r.adminq_base_address_lo
            r.adminq_event_counter = self.admin.run(base, r.adminq_length, r.adminq_event_counter, value)
        elif name == "driver_version":
            self._driver_version(value)
        elif name in ("adminq_base_address_hi", "adminq_base_address_lo", "adminq_length", "adminq_pfn"):
            setattr(r, name, value)
        else:
            self.port.counters["bad_register_write"] += 1

    def _driver_status(self, value: int) -> None:
        if value & regs.DriverStatus.RESET:
            self.port.counters["resets"] += 1
            self.reset()
        elif value & regs.DriverStatus.RUN:
            self.registers.device_status &= ~int(regs.DeviceStatus.DEVICE_IS_RESET | regs.DeviceStatus.RESET)
            self.registers.adminq_event_counter = 0
        self.registers.driver_status = value

    def _driver_version(self, value: int) -> None:
        if value == ord("\n"):
            self.driver_version = self._version.decode(errors="replace")
            self._version.clear()
        elif len(self._version) < 256:
            self._version.append(value)

    def _doorbell(self, offset: int, data: bytes) -> None:
        index, value = offset // 4, int.from_bytes(data, "little")
        self.port.counters["doorbells"] += 1
        target: NotifyBlock | TxQueue | RxQueue | None
        if index >= regs.RX_DOORBELLS:
            target = self.setup.rx_queues.get(index - regs.RX_DOORBELLS)
        elif index >= regs.TX_DOORBELLS:
            target = self.setup.tx_queues.get(index - regs.TX_DOORBELLS)
        else:
            target = self.setup.blocks[index] if index < len(self.setup.blocks) else None
        if target is not None and offset % 4 == 0 and len(data) == 4:
            target.doorbell(value)
        else:
            self.port.counters["bad_doorbell"] += 1

    # -- what happens by itself ---------------------------------------------------------------

    def step(self, now: int) -> bool:
        """Send what the driver has queued, receive what the wire has; True when anything moved."""
        moved = False
        for tx in list(self.setup.tx_queues.values()):
            moved |= tx.step(now)
        moved |= self.port.wire.exchange(now)
        moved |= self._receive(now)
        if self.setup.stats_report is not None and now - self._stats_at >= STATS_NS:
            self._stats_at = now
            self._write_stats(*self.setup.stats_report)
        for block in self.setup.blocks:
            block.fire()
        return moved

    def timer(self, now: int) -> int:
        """When ``step`` has something to do, whatever comes, in ns."""
        due = [tx.late[0][0] for tx in self.setup.tx_queues.values() if tx.late]
        if self._held_at:
            due.append(now + MS)
        return min(due, default=now + SEC)

    def _receive(self, now: int) -> bool:
        queue, moved = self.port.wire.rx, False
        if not self.setup.rx_queues:
            self._held_at = 0  # whoever waited has no queue to wait for
        while len(queue):
            frame = queue.row(queue.record.head)
            if frame.header_len >= EthHdr.LEN and not self._take(frame, now):
                break
            queue.record.head += 1
            moved = True
            self._held_at = 0
        return moved

    def _take(self, frame: FrameRow, now: int) -> bool:
        """Deliver or drop a frame; False while it waits for buffers."""
        seen = self.setup.steering.see(frame)
        rx = self.setup.rx_queues.get(seen.queue) or self.setup.rx_queues.get(0)
        if rx is None or not self.link:
            self.port.counters["rx_no_queue"] += 1
            return True
        size = frame.header_len + frame.payload_len + frame.payload2_len
        gso = frame.gso_size
        if (gso or size) > self.setup.mtu + 22 and not (gso and gso + seen.header <= self.setup.mtu + 22):
            rx.over_mru += 1
            return True
        segmented = gso and not rx.rsc
        needed = rx.needs(frame) * (2 if segmented else 1)
        if self.port.faults.starved_now() or needed >= rx.buffers_size:
            rx.no_buffers += 1
            rx.dropped += 1
            return True
        if rx.posted() < needed:
            self._held_at = self._held_at or now
            rx.block.fire()
            if now - self._held_at < HOLD_NS and rx.starved_at != rx.tail:
                return False
            rx.starved_at = rx.tail
            rx.no_buffers += 1
            rx.dropped += 1
            return True
        if not segmented:
            frame_finish(address_of(frame))
            rx.deliver(frame, seen)
            return True
        for segment in self._plain.of(frame):
            self._segment[: len(segment)] = np.frombuffer(segment, np.uint8)
            part = FrameRow(header=self._segment.ctypes.data, header_len=len(segment))
            if rx.posted() < rx.needs(part):
                rx.no_buffers += 1
                continue
            rx.deliver(part, self.setup.steering.see(part))
        return True

    def _write_stats(self, address: int, length: int) -> None:
        """The NIC's part of the report, at its end (struct gve_stats_report)."""
        entries = b""
        for id_, rx in sorted(self.setup.rx_queues.items()):
            for name, value in (
                (ly.StatName.RX_QUEUE_DROP_CNT, rx.dropped),
                (ly.StatName.RX_NO_BUFFERS_POSTED, rx.no_buffers),
                (ly.StatName.RX_DROPS_PACKET_OVER_MRU, rx.over_mru),
                (ly.StatName.RX_DROPS_INVALID_CHECKSUM, rx.bad_checksum),
            ):  # fmt: skip
                entries += bytes(ly.Stat(name, id_, value))
        room = length - ly.REPORT_HEAD
        if not entries or len(entries) > room:
            return
        try:
            self.port.dma.write(address + length - len(entries), entries)
        except DmaFault as fault:
            self.port.dma_fault(fault, "statistics report")

    # -- management ---------------------------------------------------------------------------

    def set_link(self, up: bool) -> None:
        """Plug the cable in or out, and tell the driver."""
        self.link = up
        status = self.registers.device_status & ~int(regs.DeviceStatus.LINK_STATUS)
        self.registers.device_status = status | self._link_bit()
        self._manage()

    def request_reset(self) -> None:
        """Have the device ask for a reset, as after an error of its own."""
        self.registers.device_status |= int(regs.DeviceStatus.RESET)
        self._manage()

    def _manage(self) -> None:
        if self.setup.management >= 0:
            self.port.interrupt(self.setup.management)

    def statistics(self) -> dict[str, int]:
        """Everything counted, the queues' numbers added up."""
        found = dict(self.port.counters)
        for rx in self.setup.rx_queues.values():
            for name in ("no_buffers", "over_mru", "bad_checksum", "dropped"):
                found[f"rx_{name}"] = found.get(f"rx_{name}", 0) + getattr(rx, name)
        found.update({f"fault_{name}": n for name, n in self.port.faults.counts.items()})
        return found


# (offset, bytes): name, of what the driver may write.
_REGISTERS = {
    (getattr(regs.Registers, name).offset, ctypes.sizeof(kind)): name
    for name, kind in regs.Registers._fields_
    if name not in ("device_status", "max_tx_queues", "max_rx_queues", "adminq_event_counter", "reserved")
}
assert _REGISTERS[0x04, 4] == "driver_status"
