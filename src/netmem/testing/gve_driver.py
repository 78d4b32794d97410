"""The driver's part of a gve, for tests of the device model: admin queue, rings, and frames as bytes.

Slow and simple; looks at every generation bit and every completion as the kernel's driver would, and says
what is wrong with them (AssertionError).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from netmem.hw.gve import descriptors as d
from netmem.hw.gve import layout as ly
from netmem.hw.gve import regs
from netmem.hw.gve.device import DOORBELLS_BAR, REGISTERS_BAR
from netmem.testing.vfio_user import Client, Ram

ADMIN_BYTES = 4096
R = regs.Registers


@dataclass
class Packet:
    """A received packet: its headers where they were split, its payload, and what its completions said."""

    header: bytes
    payload: bytes
    packet_type: int
    hash: int
    split: bool
    rsc_seg_len: int
    checked: bool
    l4_bad: bool
    overflow: bool
    error: bool
    buffers: int

    @property
    def frame(self) -> bytes:
        return self.header + self.payload


class TxRing:
    """A transmit queue."""

    def __init__(self, driver: GveDriver, id_: int, size: int, block: int) -> None:
        self.driver, self.size = driver, size
        ram = driver.ram
        self.ring, self.completions = ram.alloc(16 * size, 4096), ram.alloc(8 * size, 4096)
        resources = ram.alloc(8)
        driver.command(
            ly.Opcode.CREATE_TX_QUEUE,
            ly.CreateTxQueue(
                queue_id=id_, queue_resources_addr=resources, tx_ring_addr=self.ring,
                queue_page_list_id=ly.RAW_ADDRESSING_QPL_ID, ntfy_id=block,
                tx_comp_ring_addr=self.completions, tx_ring_size=size, tx_comp_ring_size=size,
            ),
        )  # fmt: skip
        self.doorbell = ly.QueueResources.from_buffer_copy(ram.read(resources, 8)).db_index
        self.tail = self._done = self._tag = 0

    def send(
        self, frame: bytes, *, mss: int = 0, header: int = 0, csum: bool = False, pieces: int = 1
    ) -> int:
        """Queue one frame in so many pieces and ring the doorbell; its completion tag."""
        ram, descriptors = self.driver.ram, list[bytes]()
        if mss:
            descriptors.append(
                bytes(d.TxTsoContext(dtype=d.TxDtype.TSO_CONTEXT, tso=1, mss=mss, header_len=header,
                                     tso_total_len=len(frame) - header))
            )  # fmt: skip
        self._tag = (self._tag + 1) & 0x7FFF
        # A descriptor holds 16,383 bytes at most.
        step = min(-(-len(frame) // pieces), 16 * 1024 - 1)
        for at in range(0, len(frame), step):
            part = frame[at : at + step]
            place = ram.alloc(len(part))
            ram.write(place, part)
            last = at + step >= len(frame)
            descriptors.append(
                bytes(d.TxPacket(buf_addr=place, dtype=d.TxDtype.PACKET, end_of_packet=last,
                                 checksum_offload_enable=csum, report_event=last, compl_tag=self._tag,
                                 buf_size=len(part)))
            )  # fmt: skip
        for one in descriptors:
            ram.write(self.ring + 16 * self.tail, one)
            self.tail = (self.tail + 1) % self.size
        self.driver.ring_doorbell(self.doorbell, self.tail)
        return self._tag

    def completed(self) -> list[tuple[int, int]]:
        """(type, tag or head) of the completions that came since the last look."""
        found = list[tuple[int, int]]()
        while True:
            lap, at = divmod(self._done, self.size)
            raw = self.driver.ram.read(self.completions + 8 * at, 8)
            one = d.TxCompletion.from_buffer_copy(raw)
            if one.generation != (lap & 1) ^ 1:
                return found
            found.append((int(one.type), int(one.tag)))
            self._done += 1


class RxRing:
    """A receive queue whose buffers are posted at once and after every packet."""

    def __init__(
        self,
        driver: GveDriver,
        id_: int,
        size: int,
        block: int,
        *,
        rsc: bool,
        split: bool,
        buffer: int,
        post: int,
    ) -> None:
        self.driver, self.size, self.buffer = driver, size, buffer
        ram = driver.ram
        self.completions, self.ring = ram.alloc(32 * size, 4096), ram.alloc(32 * size, 4096)
        resources = ram.alloc(8)
        driver.command(
            ly.Opcode.CREATE_RX_QUEUE,
            ly.CreateRxQueue(
                queue_id=id_, index=id_, ntfy_id=block, queue_resources_addr=resources,
                rx_desc_ring_addr=self.completions, rx_data_ring_addr=self.ring,
                queue_page_list_id=ly.RAW_ADDRESSING_QPL_ID, rx_ring_size=size, packet_buffer_size=buffer,
                rx_buff_ring_size=size, enable_rsc=rsc, header_buffer_size=256 if split else 0,
            ),
        )  # fmt: skip
        self.doorbell = ly.QueueResources.from_buffer_copy(ram.read(resources, 8)).db_index
        self._places = [(ram.alloc(buffer, 4096), ram.alloc(256)) for _ in range(size - 1)]
        self._free = list(range(size - 1))
        self.tail = self._done = 0
        self.torn: Packet | None = None
        self.post(post if post >= 0 else size - 1)

    def post(self, count: int) -> None:
        """Give the device as many buffers."""
        for _ in range(count):
            id_ = self._free.pop(0)
            place, header = self._places[id_]
            one = d.RxBuffer(buf_id=id_, buf_addr=place, header_buf_addr=header)
            self.driver.ram.write(self.ring + 32 * self.tail, bytes(one))
            self.tail = (self.tail + 1) % self.size
        self.driver.ring_doorbell(self.doorbell, self.tail)

    def received(self, *, torn: bool = False) -> list[Packet]:
        """Packets that are whole; their buffers are posted again.

        Another may have come in part only where ``torn`` says so, and is kept in ``torn`` then.
        """
        found, used = [], 0
        packet, self.torn = self.torn, None
        while True:
            lap, at = divmod(self._done, self.size)
            raw = self.driver.ram.read(self.completions + 32 * at, 32)
            c = d.RxCompletion.from_buffer_copy(raw)
            if c.generation != (lap & 1) ^ 1:
                break
            assert c.rxdid == 1
            assert c.descriptor_done
            assert c.buf_id not in self._free, f"buffer {c.buf_id} is not the device's"
            place, header = self._places[c.buf_id]
            if packet is None:
                apart = c.split_header and not c.header_buffer_overflow
                packet = Packet(
                    self.driver.ram.read(header, c.header_len) if apart else b"", b"", c.packet_type, c.hash,
                    bool(c.split_header), c.rsc_seg_len if c.rsc else 0, bool(c.l3_l4_processed),
                    bool(c.csum_l4_err), bool(c.header_buffer_overflow), False, 0,
                )  # fmt: skip
            else:
                assert not c.split_header
            assert c.packet_len <= self.buffer
            packet.payload += self.driver.ram.read(place, c.packet_len)
            packet.error |= bool(c.rx_error)
            packet.buffers += 1
            self._free.append(c.buf_id)
            self._done += 1
            used += 1
            if c.end_of_packet:
                found.append(packet)
                packet = None
        assert torn or packet is None, "a packet without an end"
        self.torn = packet
        if used:
            self.post(used)
        return found


class GveDriver:
    """Probes the device of ``client`` whose memory is ``ram``, as a driver does; then ``up``."""

    def __init__(self, client: Client, ram: Ram) -> None:
        self.client, self.ram = client, ram
        self._commands = 0
        self.admin = ram.alloc(ADMIN_BYTES, 4096)
        self._set(R.adminq_length, ADMIN_BYTES.to_bytes(2, "big"))
        self._set(R.adminq_base_address_hi, (self.admin >> 32).to_bytes(4, "big"))
        self._set(R.adminq_base_address_lo, (self.admin & 0xFFFFFFFF).to_bytes(4, "big"))
        self._set(R.driver_status, int(regs.DriverStatus.RUN).to_bytes(4, "big"))
        self.tx: list[TxRing] = []
        self.rx: list[RxRing] = []
        self.blocks = 0

    def _set(self, field: object, data: bytes) -> None:
        self.client.write(REGISTERS_BAR, field.offset, data)  # type: ignore[attr-defined]

    def register(self, field: object) -> int:
        """Read a register."""
        f: ctypes._CField = field  # type: ignore[assignment,type-arg]
        return int.from_bytes(self.client.read(REGISTERS_BAR, f.offset, f.size), "big")

    def ring_doorbell(self, index: int, value: int) -> None:
        """Write a doorbell, posted."""
        self.client.post(DOORBELLS_BAR, 4 * index, value.to_bytes(4, "little"))

    def status_of(self, opcode: int, body: bytes | ctypes.Structure = b"") -> int:
        """Run a command; its status."""
        at = self.admin + ly.COMMAND_BYTES * (self._commands % (ADMIN_BYTES // ly.COMMAND_BYTES))
        data = bytes(ly.CommandHead(opcode, 0)) + bytes(body)
        self.ram.write(at, data.ljust(ly.COMMAND_BYTES, b"\0"))
        self._commands = (self._commands + 1) & 0xFFFFFFFF
        self._set(R.adminq_doorbell, self._commands.to_bytes(4, "big"))
        assert self.register(R.adminq_event_counter) == self._commands
        return int(ly.CommandHead.from_buffer_copy(self.ram.read(at, 8)).status)

    def command(self, opcode: int, body: bytes | ctypes.Structure = b"") -> None:
        """Run a command that passes."""
        status = self.status_of(opcode, body)
        assert status == ly.Status.PASSED, f"command {opcode:#x}: {status:#x}"

    def describe(self) -> tuple[ly.DeviceDescriptor, dict[int, bytes]]:
        """The device's descriptor, and its options by id."""
        place = self.ram.alloc(4096, 4096)
        self.command(ly.Opcode.DESCRIBE_DEVICE, ly.DescribeDevice(place, 1, 4096))
        data = self.ram.read(place, 4096)
        descriptor = ly.DeviceDescriptor.from_buffer_copy(data)
        at, options = ctypes.sizeof(descriptor), {}
        for _ in range(descriptor.num_device_options):
            head = ly.OptionHead.from_buffer_copy(data, at)
            at += ctypes.sizeof(head)
            options[int(head.option_id)] = data[at : at + head.option_length]
            at += head.option_length
        assert at == descriptor.total_length
        return descriptor, options

    def configure(self, queues: int) -> None:
        """Notify blocks for as many queues each way."""
        self.blocks = 2 * queues
        place = self.ram.alloc(64 * self.blocks, 4096)
        self.command(
            ly.Opcode.CONFIGURE_DEVICE_RESOURCES,
            ly.ConfigureDeviceResources(
                counter_array=self.ram.alloc(4096), irq_db_addr=place, num_counters=2 * queues,
                num_irq_dbs=self.blocks, irq_db_stride=64, queue_format=ly.QUEUE_FORMAT_DQO_RDA,
            ),
        )  # fmt: skip
        self._irq_doorbells = [
            int.from_bytes(self.ram.read(place + 64 * i, 4), "big") for i in range(self.blocks)
        ]

    def enable(self, block: int) -> None:
        """Ask for one interrupt."""
        self.ring_doorbell(self._irq_doorbells[block], int(d.IrqDoorbell.ENABLE))

    def up(
        self,
        queues: int = 1,
        *,
        size: int = 128,
        rsc: bool = False,
        split: bool = False,
        buffer: int = 4096,
        post: int = -1,
    ) -> GveDriver:
        """Resources, and as many queues each way."""  # fmt: skip
        if not self.blocks:
            self.configure(queues)
        for i in range(queues):
            self.tx.append(TxRing(self, i, size, i))
            self.rx.append(RxRing(self, i, size, queues + i, rsc=rsc, split=split, buffer=buffer, post=post))
        for block in range(self.blocks):
            self.enable(block)
        return self

    def down(self) -> None:
        """Destroy the queues."""
        for i in range(len(self.tx)):
            self.command(ly.Opcode.DESTROY_TX_QUEUE, ly.DestroyQueue(i))
            self.command(ly.Opcode.DESTROY_RX_QUEUE, ly.DestroyQueue(i))
        self.tx.clear()
        self.rx.clear()
