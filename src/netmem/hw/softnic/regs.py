"""Registers and descriptors of the software NIC: BAR 0, and what lies in rings.

All are 64-bit words. What the driver writes and what the device writes stand on cache lines of their own.
Words that the other side waits for are written with ``store_release`` and read with ``load_acquire``.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Annotated

from netmem.base.record import Items, Record, field_offset, i64

MAGIC = 0x6E65746D656D  # "netmem"
RSS_KEY_BYTES = 40
INDIR_SIZE = 128
MAX_RULES = 32
MAX_QUEUES = 16
TX_MAX_DESC = 8  # descriptors of one packet
BUF_LEN_MAX = 65536
OPEN_BUFFERS = 4  # of a queue, that wait for more of a flow: one for each value of the hash's low bits

STATUS_LINK = 1  # Bar.status
CTRL_ENABLE = 1  # Bar.ctrl
HDS_ON = 1  # QueueRegs.hds


class QueueState(enum.IntEnum):
    """QueueRegs.state."""

    STOPPED = 0
    RUNNING = 1
    FAULT = 2


class SteeringEntry(Record):
    """A steering rule: exact match, a field of 0 matches anything."""

    src: i64  # low and high words of the addresses
    dst: i64
    src_port: i64
    dst_port: i64
    proto: i64
    queue: i64
    valid: i64
    src_hi: i64
    dst_hi: i64
    _unused: Annotated[Items[int], ctypes.c_int64 * 7]


class NicCounters(Record):
    """What the device counts."""

    rx_frames: i64  # taken from the wire, segments counted singly
    rx_bytes: i64
    rx_runt: i64
    rx_oversize: i64
    rx_no_desc: i64  # dropped: the queue had no descriptor or too few buffers for longer than the pause
    rx_csum_bad: i64
    rx_disabled: i64
    rx_paused: i64  # times the wire was held
    rx_rule_hit: i64
    dma_fault: i64  # an address that nobody mapped, or mapped the other way
    tx_frames: i64  # as handed to the wire: one for each packet of the driver
    tx_bytes: i64
    tx_bad_desc: i64
    irq: i64


class QueueRegs(Record):
    """A queue: driver line, tail line, device line. Transmit queues have no use for hds to merge."""

    ctrl: i64  # 1: run
    ring: i64  # I/O address of the ring
    size: i64  # descriptors, a power of two
    hds: i64  # HDS_ON | threshold << 8
    buf_len: i64  # bytes of a packet buffer
    header_len: i64  # bytes of a header buffer
    merge: i64  # 1: a frame's segments become one packet, and a flow's payload lies end to end (rx-gro-hw)
    _driver: i64
    tail: i64  # driver: descriptors posted, free running
    buf_tail: i64  # driver: packet buffers posted, free running (receive)
    _tail: Annotated[Items[int], ctypes.c_int64 * 6]
    state: i64  # device: QueueState
    head: i64  # device: descriptors used, free running
    packets: i64
    bytes: i64
    split_hit: i64
    split_miss: i64
    drops: i64
    _device: Annotated[Items[int], ctypes.c_int64 * 9]


class Bar(Record):
    """BAR 0."""

    # Identity and status (device writes).
    magic: i64
    status: i64
    rx_queues: i64
    tx_queues: i64
    mac: i64  # 48-bit number
    _status: Annotated[Items[int], ctypes.c_int64 * 3]
    # Control (driver writes).
    ctrl: i64
    mtu: i64  # longest IP packet
    generation: i64  # bump after changing RSS, rules or queues
    pause_ns: i64  # how long the wire is held when a queue has no descriptor, before frames drop
    n_rules: i64
    itr_ns: i64  # least time between interrupts while packets keep coming (rx-usecs)
    adaptive: i64  # 1: less than that while few come
    _ctrl: Annotated[Items[int], ctypes.c_int64 * 1]
    rss_key: Annotated[Items[int], ctypes.c_uint8 * RSS_KEY_BYTES]
    _key: Annotated[Items[int], ctypes.c_int64 * 3]
    # Sleep and wake, a line each.
    irq_armed: i64  # driver: 1 when it waits for an interrupt
    _irq: Annotated[Items[int], ctypes.c_int64 * 7]
    db_armed: i64  # device: 1 when it waits for a doorbell
    held: i64  # device: 1 while a frame holds the wire for want of descriptors
    _db: Annotated[Items[int], ctypes.c_int64 * 30]
    indir: Annotated[Items[int], ctypes.c_int64 * INDIR_SIZE]  # RSS indirection table
    rules: Annotated[Items[SteeringEntry], SteeringEntry * MAX_RULES]
    counters: Annotated[NicCounters, NicCounters]
    _counters: Annotated[Items[int], ctypes.c_int64 * 50]
    rxq: Annotated[Items[QueueRegs], QueueRegs * MAX_QUEUES]
    txq: Annotated[Items[QueueRegs], QueueRegs * MAX_QUEUES]


BAR_BYTES = ctypes.sizeof(Bar)
RSS_KEY = field_offset(Bar, "rss_key")
Q_TAIL = field_offset(QueueRegs, "tail")
Q_BUF_TAIL = field_offset(QueueRegs, "buf_tail")
Q_HEAD = field_offset(QueueRegs, "head")
Q_STATE = field_offset(QueueRegs, "state")


class Rxs(enum.IntEnum):
    """Bits of RxDesc.status."""

    DD = 1  # descriptor done
    SPH = 4  # split: the header buffer holds exactly the headers
    HBO = 8  # header buffer overflow: what did not fit is in the packet buffer
    L3_OK = 16
    L4_OK = 32
    L3_BAD = 64
    L4_BAD = 128
    FAULT = 256
    OPEN = 512  # the last packet buffer is not full: more of the flow may follow in it


class RxDesc(Record):
    """An entry of a receive ring: a packet buffer, and a descriptor, each with an index of its own.

    A packet takes one descriptor, with its header buffer, and as many packet buffers as it needs, in the
    order in which they were posted. Its payload may begin behind what its flow brought before: *behind* bytes
    of it lie in the buffer that was left OPEN for the hash's low bits. The next packet buffer that such a
    hash takes closes that. The driver writes the first two words, the device the last two.
    """

    packet: i64  # I/O address of a packet (payload) buffer
    header: i64  # I/O address of the descriptor's header buffer, 0 without one
    status: i64  # Rxs bits | header bytes << 12 | bytes in packet buffers << 24 | bytes behind << 44
    hash: i64  # hash | segment size << 32 when segments were merged


RXD_HEADER_SHIFT, RXD_HEADER_MASK = 12, 0xFFF
RXD_BYTES_SHIFT, RXD_BEHIND_SHIFT, RXD_BYTES_MASK = 24, 44, 0xFFFFF
RXD_STATUS = field_offset(RxDesc, "status")


class Txc(enum.IntEnum):
    """Command bits of TxDesc.length."""

    EOP = 1
    TSO = 2
    CSUM = 4


TXS_DD = 1


class TxDesc(Record):
    """A transmit descriptor; a packet is one or more ending with EOP."""

    address: i64  # I/O address
    length: i64  # bytes | Txc bits << 32
    meta: i64  # segment size << 16 | header bytes, in the first descriptor of a packet
    status: i64  # device: TXS_DD


TXD_STATUS = field_offset(TxDesc, "status")
DESC_BYTES = ctypes.sizeof(RxDesc)
