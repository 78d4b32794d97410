"""A gve's transmit queue: packets out of the guest's memory onto the wire (gve_desc_dqo.h)."""

from __future__ import annotations

import ctypes
from collections import deque
from ctypes import c_uint64

from netmem.hw.faults import FRAME_ROOM
from netmem.hw.gve import descriptors as desc
from netmem.hw.gve import layout as ly
from netmem.hw.gve.port import NotifyBlock, Port
from netmem.hw.vfio_user.dma import DmaFault
from netmem.hw.wire import Frame

DESC_BYTES, COMPLETION_BYTES = 16, 8
BATCH = 64  # descriptors read at once
HEADERS = 512  # of a frame, in its first piece
MIN_FRAME = 14
MIN_MSS, MAX_MSS = 88, 9728  # GVE_TX_MIN_TSO_MSS_DQO, GVE_TX_MAX_TSO_MSS_DQO


class TxQueue:
    """One queue: the driver moves ``tail``, we move ``head`` and write completions."""

    def __init__(self, port: Port, command: ly.CreateTxQueue, block: NotifyBlock) -> None:
        self._port, self.id = port, int(command.queue_id)
        self.ring, self.size = int(command.tx_ring_addr), int(command.tx_ring_size)
        self.completions = int(command.tx_comp_ring_addr)
        self.completion_size = int(command.tx_comp_ring_size)
        self.block = block
        self.head = self.tail = 0
        self._done = 0  # completions written
        self._descriptors: deque[desc.TxPacket] = deque()  # read, from ``head`` on
        self._completion = desc.TxCompletion(id=self.id)
        self._word = c_uint64.from_buffer(self._completion)
        self.late: deque[tuple[int, int, int]] = deque()  # (due, kind, tag) of completions a fault holds back

    def doorbell(self, value: int) -> None:
        """The driver's new tail."""
        if value < self.size:
            self.tail = value
        else:
            self._port.counters["tx_bad_doorbell"] += 1

    def step(self, now: int) -> bool:
        """Send what is complete, as long as the wire takes it; True when anything moved."""
        moved = False
        while self.late and self.late[0][0] <= now:
            self._complete(*self.late.popleft()[1:])
            moved = True
        wire = self._port.wire
        while self.head != self.tail and wire.tx.room():
            count = self._packet()
            if not count:
                break
            self._send([self._descriptors.popleft() for _ in range(count)], now)
            self.head = (self.head + count) % self.size
            moved = True
        return moved

    def _packet(self) -> int:
        """Descriptors of the packet at the head, 0 while it is not whole."""
        n = 0
        while True:
            if n == len(self._descriptors) and not self._fetch():
                return 0
            n += 1
            one = self._descriptors[n - 1]
            # What is no packet has no end bit; a ring full of such is broken, and taken in one piece.
            if (one.dtype == desc.TxDtype.PACKET and one.end_of_packet) or n == self.size - 1:
                return n

    def _fetch(self) -> bool:
        """Read more descriptors; False when all up to the tail are here."""
        at = (self.head + len(self._descriptors)) % self.size
        count = min((self.tail - at) % self.size, self.size - at, BATCH)
        if not count:
            return False
        try:
            data = self._port.dma.read(self.ring + DESC_BYTES * at, DESC_BYTES * count)
        except DmaFault as fault:
            self._port.dma_fault(fault, f"transmit queue {self.id}, descriptor {at}")
            self.tail = at  # nothing of it can be known
            return False
        for i in range(count):
            self._descriptors.append(desc.TxPacket.from_buffer_copy(data, DESC_BYTES * i))
        return True

    def _send(self, descriptors: list[desc.TxPacket], now: int) -> None:
        port = self._port
        last = descriptors[-1]
        mss, header = 0, 0
        pieces = list[desc.TxPacket]()
        for one in descriptors:
            if one.dtype == desc.TxDtype.TSO_CONTEXT:
                context = desc.TxTsoContext.from_buffer_copy(one)
                mss, header = int(context.mss), int(context.header_len)
            elif one.dtype == desc.TxDtype.PACKET:
                pieces.append(one)
            elif one.dtype != desc.TxDtype.GENERAL_CONTEXT:
                pieces.clear()
                break
        total = sum(one.buf_size for one in pieces)
        whole = MIN_FRAME <= total <= FRAME_ROOM
        if whole and (not mss or (MIN_MSS <= mss <= MAX_MSS and header < total)):
            if self._offer(pieces, total, mss, header):
                port.counters["tx_packets"] += 1
                port.counters["tx_bytes"] += total
        else:
            port.counters["tx_bad_descriptor"] += 1
        head = (self.head + len(descriptors)) % self.size
        delay = port.faults.completion(now)
        for kind, tag, wanted in (
            (desc.CompletionType.PKT, int(last.compl_tag), last.dtype == desc.TxDtype.PACKET),
            (desc.CompletionType.DESC, head, bool(last.report_event)),
        ):
            if wanted and delay is None:
                port.counters["fault_completions_lost"] += 1
            elif wanted and (delay or self.late):
                self.late.append((now + (delay or 0), kind, tag))
            elif wanted:
                self._complete(kind, tag)

    def _offer(self, pieces: list[desc.TxPacket], total: int, mss: int, header: int) -> bool:
        """Copy a packet into the wire's next slot, and hand it over."""
        port, queue = self._port, self._port.wire.tx
        slot = port.slot(queue.record.tail)
        at = slot
        try:
            for one in pieces:
                port.dma.copy_out(at, one.buf_addr, one.buf_size)
                at += one.buf_size
        except DmaFault as fault:
            port.dma_fault(fault, f"transmit queue {self.id}, payload")
            return False
        first = min(total, HEADERS)
        gso = mss if mss and total - header > mss else 0
        offload = mss or any(one.checksum_offload_enable for one in pieces)
        flags = Frame.NEEDS_CSUM if offload else 0
        return queue.offer(slot, first, pay=slot + first, plen=total - first, gso=gso, flags=flags)

    def _complete(self, kind: int, tag: int) -> None:
        """Write a completion: the generation bit goes with it, in one store."""
        lap, at = divmod(self._done, self.completion_size)
        word = self._completion
        word.type, word.tag, word.generation = kind, tag, (lap & 1) ^ 1
        try:
            address = self._port.dma.address(
                self.completions + COMPLETION_BYTES * at, COMPLETION_BYTES, write=True
            )
        except DmaFault as fault:
            self._port.dma_fault(fault, f"transmit queue {self.id}, completion {at}")
            return
        c_uint64.from_address(address).value = self._word.value
        self._done += 1
        self.block.event()


assert ctypes.sizeof(desc.TxPacket) == DESC_BYTES
assert ctypes.sizeof(desc.TxCompletion) == COMPLETION_BYTES
