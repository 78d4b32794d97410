"""A received batch: what one NAPI poll hands from driver to stack.

A packet is one row, or a row and its continuation rows (one for each further buffer). The batch is a
loan: the stack takes a buffer by setting its netmem to 0; what it leaves, the driver posts again.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Annotated

from netmem.base.arena import Arena, Words
from netmem.base.jit import inline_kernel
from netmem.base.record import Items, Record, Word, i64, items

FLOWS = 32  # slots of GRO's table
SIZES = 12  # of histograms of batches


class Rx(enum.IntEnum):
    """What a NIC says of a packet: bits of RxRow.status."""

    SPLIT = 1  # the header buffer holds exactly the headers
    L3_OK = 2
    L4_OK = 4
    L3_BAD = 8
    L4_BAD = 16


class Kind(enum.IntEnum):
    """What a row is."""

    CONT = 0  # continuation row
    TCP = 1
    ARP = 2
    ICMP = 3
    MERGED = 4
    DROP = 5  # malformed or unwanted: counted, nobody looks at it again
    UDP = 6
    ICMP6 = 7


class Shared(enum.IntEnum):
    """Whether a row has its payload buffer for itself."""

    NO = 0
    FIRST = 1  # more may follow behind it; the row has a reference of its own, no slot has the buffer
    BEHIND = 2  # it lies behind what came before; a reference of its own


class RxRow(Record):
    """A buffer's worth of a received packet; what is of the whole packet stands in its first row."""

    header: i64  # host address of the first byte of the frame
    header_len: i64  # readable bytes there
    status: i64  # Rx bits
    netmem: i64  # payload buffer, 0: none (any more)
    offset: i64  # of the payload in it
    size: i64
    header_netmem: i64  # the netmem that the header lies in, 0: taken
    header_offset: i64  # of the header in it
    more: i64  # continuation row of the same packet, -1: none
    queue: i64
    pool: i64  # handles of the buffers' pools, for whoever gives them back
    header_pool: i64
    slot: i64  # of the ring, where the payload buffer is from, -1: none
    header_slot: i64  # ... and the header buffer
    kind: i64  # Kind
    next: i64  # next packet merged into this one, -1: none
    last: i64  # last packet merged
    l3: i64  # offsets of the headers from ``header``
    l4: i64
    src: i64  # low words of the addresses
    dst: i64
    ports: i64  # source port << 16 | destination port
    seq: i64
    ack: i64
    tcp_flags: i64
    window: i64  # as in the header, unscaled
    tsval: i64
    tsecr: i64
    has_timestamp: i64  # RFC 7323
    len: i64  # TCP payload of this packet and those merged into it
    own_len: i64  # TCP payload of this packet
    linear: i64  # offset of its linear payload from ``header``
    linear_len: i64
    src_hi: i64  # high words of the addresses, 0 for IPv4
    dst_hi: i64
    sack: i64  # offset from ``header`` of the SACK option, 0: none
    gso_size: i64  # payload bytes of the segments that the NIC merged into this packet, 0: it is one
    shared: i64  # Shared: whether others have parts of the same buffer
    stamp: i64  # when the driver handed the packet on, ns of CLOCK_MONOTONIC; only where the batch wants it


class RxCounters(Record):
    """What parsing and GRO saw, by cause."""

    rx_packets: i64
    rx_bytes: i64
    rx_tcp: i64
    rx_arp: i64
    rx_icmp: i64
    gro_merged: i64
    rx_runt: i64
    rx_unknown_ethertype: i64
    rx_bad_ip_header: i64
    rx_bad_ip_length: i64
    rx_bad_ip_csum: i64
    rx_fragment: i64
    rx_unknown_proto: i64
    rx_bad_tcp_header: i64
    rx_bad_l4_csum: i64
    rx_unverified_csum: i64
    rx_header_unreadable: i64
    rx_truncated: i64
    rx_fault: i64
    rx_udp: i64
    rx_icmp6: i64
    rx_bad_udp_header: i64
    rx_merged_by_nic: i64


class BatchRecord(Record):
    """A batch's head."""

    rows: i64  # address of RxRow 0
    room: i64  # rows at most
    used: i64  # rows in use
    packets: i64
    heads: i64  # address: a word for each packet for the stack, after merging: its first row
    head_count: i64
    stamps: i64  # 1: packets get a time each (a capture is written)
    sizes: Annotated[Items[int], ctypes.c_int64 * SIZES]  # batches so far, by the bits of their packets
    flows: Annotated[Items[int], ctypes.c_int64 * FLOWS]  # GRO: head row + 1 by flow
    counters: Annotated[RxCounters, RxCounters]


@inline_kernel
def row_of(batch: BatchRecord, i: int) -> RxRow:
    """Row ``i`` of a batch."""
    return RxRow.nth(batch.rows, i)


@inline_kernel
def head_of(batch: BatchRecord, i: int) -> int:
    """Number of the first row of the batch's ``i``-th packet."""
    return Word.nth(batch.heads, i).value


@inline_kernel
def batch_clear(batch: BatchRecord) -> None:
    """Empty a batch; counters go on."""
    batch.used = batch.packets = batch.head_count = 0
    for i in range(FLOWS):
        batch.flows[i] = 0


class RxBatch:
    """Room for ``rows`` rows. ``record`` holds counts and counters, ``at`` is its address."""

    def __init__(self, rows: int = 1024) -> None:
        heads = ctypes.sizeof(BatchRecord)
        self.arena = Arena("netdev:batch", heads + 8 * rows)
        self._rows = (RxRow * rows)()
        self.at = self.arena.address
        self.record = self.arena.record(BatchRecord)
        self.record.rows, self.record.room = ctypes.addressof(self._rows), rows
        self.record.heads = self.at + heads
        self._heads: Words = self.arena.bytes[heads:].view("q")

    def __len__(self) -> int:
        return self.record.head_count

    def row(self, i: int) -> RxRow:
        """Row ``i``."""
        return self._rows[i]

    def used(self) -> list[RxRow]:
        """The rows in use."""
        return self._rows[: self.record.used]

    def clear(self) -> None:
        """Empty the batch; counters go on."""
        record = self.record
        record.used = record.packets = record.head_count = 0
        ctypes.memset(ctypes.addressof(record.flows), 0, 8 * FLOWS)  # type: ignore[arg-type]

    def heads(self) -> list[int]:
        """Row numbers of the packets, in order of arrival."""
        heads: list[int] = self._heads[: self.record.head_count].tolist()
        return heads

    def counters(self) -> dict[str, int]:
        """What was received, merged and refused, by name."""
        return items(self.record.counters)
