"""A gve's receive queue: frames of the wire into the guest's buffers (gve_desc_dqo.h)."""

from __future__ import annotations

import ctypes
from collections import deque
from ctypes import c_uint64

from netmem.hw.gve import descriptors as desc
from netmem.hw.gve import layout as ly
from netmem.hw.gve.port import NotifyBlock, Port
from netmem.hw.gve.steering import Seen
from netmem.hw.vfio_user.dma import DmaFault
from netmem.hw.wire import FrameRow

BUFFER_BYTES, COMPLETION_BYTES = 32, 32
BATCH = 64  # buffer descriptors read at once
MAX_HEADER = 1023  # what header_len can say


class RxQueue:
    """One queue: the driver posts buffers behind ``tail``, we use them from ``head`` on."""

    def __init__(self, port: Port, command: ly.CreateRxQueue, block: NotifyBlock) -> None:
        self._port, self.id = port, int(command.queue_id)
        self.buffers, self.buffers_size = int(command.rx_data_ring_addr), int(command.rx_buff_ring_size)
        self.completions, self.completion_size = int(command.rx_desc_ring_addr), int(command.rx_ring_size)
        self.buffer_bytes = int(command.packet_buffer_size)
        self.header_bytes = int(command.header_buffer_size)
        self.rsc = bool(command.enable_rsc)
        self.block = block
        self.head = self.tail = 0
        self._done = 0
        self.stopped = False  # by a fault
        self.starved_at = -1  # the tail at which a frame waited in vain: others do not wait any more
        self._posted: deque[desc.RxBuffer] = deque()  # read, from ``head`` on
        self._completion = desc.RxCompletion(rxdid=1, descriptor_done=1)
        self._words = (c_uint64 * 4).from_buffer(self._completion)
        self._rest = ctypes.addressof(self._completion) + 8
        self.no_buffers = self.over_mru = self.bad_checksum = self.dropped = 0  # of the statistics report

    def doorbell(self, value: int) -> None:
        """The driver's new tail."""
        if value < self.buffers_size:
            self.tail = value
        else:
            self._port.counters["rx_bad_doorbell"] += 1

    def posted(self) -> int:
        """Buffers that can be filled."""
        return (self.tail - self.head) % self.buffers_size

    def needs(self, frame: FrameRow) -> int:
        """Buffers that a frame takes at most; more than the ring has for one that fits nowhere."""
        size = frame.header_len + frame.payload_len + frame.payload2_len
        return max(1, -(-size // self.buffer_bytes))

    def _splits(self, seen: Seen) -> bool:
        return seen.tcp and 0 < seen.header <= min(self.header_bytes, MAX_HEADER)

    def deliver(self, frame: FrameRow, seen: Seen) -> None:
        """Put a frame into as many buffers as ``needs`` says, which must be posted.

        The driver sees all of a packet's completions or none: gve, up to 7.3.4 at least, forgets a packet it
        has seen in part, with its buffers, when its ring is reset. Fault ``torn`` has it do so.
        """
        if self.stopped:
            self.dropped += 1
            return
        port, faults = self._port, self._port.faults
        split, overflow = self._splits(seen), False
        if seen.tcp and self.header_bytes:
            if faults.unsplit_now():
                split = False
            elif faults.overflow_now():
                overflow = True
                split = False
        pieces = _pieces(frame, seen.header if split else 0)
        c = self._completion
        c.packet_type, c.hash = seen.packet_type, seen.hash
        c.l3_l4_processed, c.csum_ip_err, c.csum_l4_err = seen.checked, seen.l3_bad, seen.l4_bad
        gso = frame.gso_size
        c.rsc, c.rsc_seg_len = int(gso > 0), gso
        c.split_header, c.header_len = int(split or overflow), seen.header if split or overflow else 0
        c.header_buffer_overflow = int(overflow)
        c.rx_error = 0
        self.bad_checksum += seen.l4_bad
        first, opening = True, None
        while first or pieces:
            buffer = self._take()
            if buffer is None:
                break
            try:
                if first and split:
                    port.dma.copy_in(buffer.header_buf_addr, frame.header, seen.header)
                c.packet_len = self._fill(buffer.buf_addr, pieces)
            except DmaFault as fault:
                port.dma_fault(fault, f"receive queue {self.id}, buffer {buffer.buf_id}")
                c.packet_len, c.rx_error = 0, 1
                pieces.clear()
            c.end_of_packet, c.buf_id = int(not pieces), buffer.buf_id
            word = self._complete()
            if first:
                c.split_header = c.header_len = c.header_buffer_overflow = 0
                first, opening = False, word
                if pieces and faults.torn_now():
                    self.stopped = True
                    break
            else:
                _publish(word)
        if first:
            return
        _publish(opening)
        self.block.event()
        if self.stopped:
            return
        port.counters["rx_packets"] += 1
        port.counters["rx_split"] += split

    def _fill(self, iova: int, pieces: list[tuple[int, int]]) -> int:
        """Fill a buffer with what is left of a frame; bytes."""
        room = self.buffer_bytes
        while pieces and room:
            at, size = pieces.pop(0)
            take = min(size, room)
            self._port.dma.copy_in(iova, at, take)
            iova, room = iova + take, room - take
            if take < size:
                pieces.insert(0, (at + take, size - take))
        return self.buffer_bytes - room

    def _take(self) -> desc.RxBuffer | None:
        """The next posted buffer."""
        if not self._posted:
            at = self.head
            count = min(self.posted(), self.buffers_size - at, BATCH)
            if not count:
                return None
            try:
                data = self._port.dma.read(self.buffers + BUFFER_BYTES * at, BUFFER_BYTES * count)
            except DmaFault as fault:
                self._port.dma_fault(fault, f"receive queue {self.id}, buffer descriptor {at}")
                self.head = self.tail
                return None
            for i in range(count):
                self._posted.append(desc.RxBuffer.from_buffer_copy(data, BUFFER_BYTES * i))
        self.head = (self.head + 1) % self.buffers_size
        return self._posted.popleft()

    def _complete(self) -> tuple[int, int] | None:
        """Write a completion but for the word with its generation bit: where that goes, and the word."""
        lap, at = divmod(self._done, self.completion_size)
        self._completion.generation = (lap & 1) ^ 1
        try:
            address = self._port.dma.address(
                self.completions + COMPLETION_BYTES * at, COMPLETION_BYTES, write=True
            )
        except DmaFault as fault:
            self._port.dma_fault(fault, f"receive queue {self.id}, completion {at}")
            return None
        ctypes.memmove(address + 8, self._rest, COMPLETION_BYTES - 8)
        self._done += 1
        return address, int(self._words[0])


def _publish(word: tuple[int, int] | None) -> None:
    """The driver has a completion now."""
    if word is not None:
        address, value = word
        c_uint64.from_address(address).value = value


def _pieces(frame: FrameRow, skip: int) -> list[tuple[int, int]]:
    """Where a frame lies behind its first ``skip`` bytes, which are in its first piece: (address, bytes)."""
    found = [
        (frame.header + skip, frame.header_len - skip),
        (frame.payload, frame.payload_len),
        (frame.payload2, frame.payload2_len),
    ]
    return [(at, size) for at, size in found if size > 0]


assert ctypes.sizeof(desc.RxBuffer) == BUFFER_BYTES
assert ctypes.sizeof(desc.RxCompletion) == COMPLETION_BYTES
