"""Frames between a TAP interface's descriptor and a wire's queues, each with its virtio-net header."""

from __future__ import annotations

from netmem.base.checksum import csum_fold, ip6_upper, pseudo_sum
from netmem.base.headers import PROTO_TCP, PROTO_UDP, EtherType, EthHdr, IpHdr, TcpHdr, UdpHdr
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import (
    load_acquire,
    load_be16,
    load_u8,
    memcpy,
    readv,
    store64,
    store_be16,
    store_release,
    store_u8,
    writev,
)
from netmem.base.record import Record, address_of, clear, i64
from netmem.hw.wire import FQ_HEAD, FQ_TAIL, Frame, FrameQueueRecord, FrameRow, frame_of

# struct virtio_net_hdr_v1 (include/uapi/linux/virtio_net.h); numbers are little-endian.
VNET_FLAGS, VNET_GSO_TYPE, VNET_HDR_LEN, VNET_GSO_SIZE, VNET_CSUM_START, VNET_CSUM_OFFSET = 0, 1, 2, 4, 6, 8
VNET_BYTES = 12
VNET_NEEDS_CSUM, VNET_DATA_VALID = 1, 2
VNET_GSO_NONE, VNET_GSO_TCPV4, VNET_GSO_TCPV6, VNET_GSO_ECN = 0, 1, 4, 0x80

ZEROS = 4096
IOV_MAX = 60  # pieces of a frame that is read
SLOTS, SLOT_BYTES = 128, 1 << 17  # a power of two, and room for the longest frame
HEADER_ROOM = 512


class Iovec(Record):
    """struct iovec."""

    base: i64
    len: i64


class TapRecord(Record):
    """A TAP wire: its scratch memory, and what it counts. All addresses are the host's."""

    fd: i64
    slots: i64  # that frames are read into
    iov: i64  # room for IOV_MAX Iovecs
    vnet: i64  # room for a virtio-net header
    header: i64  # room for the headers of a frame to send
    zeros: i64  # ZEROS bytes that are 0
    next: i64  # next slot
    rx_frames: i64
    rx_bytes: i64
    tx_frames: i64
    tx_bytes: i64
    tx_refused: i64


@inline_kernel
def load_le16(at: int) -> int:
    """The little-endian 16-bit number at ``at``."""
    return load_u8(at) | load_u8(at + 1) << 8


@inline_kernel
def store_le16(at: int, value: int) -> None:
    """Write a little-endian 16-bit number."""
    store_u8(at, value & 0xFF)
    store_u8(at + 1, value >> 8)


@inline_kernel
def iovec(tap: TapRecord, n: int, address: int, size: int) -> None:
    """Fill in the ``n``-th piece of what is read or written."""
    piece = Iovec.nth(tap.iov, n)
    piece.base, piece.len = address, size


@inline_kernel
def next_slot(tap: TapRecord) -> int:
    """Where the next frame is read to."""
    return tap.slots + (tap.next & (SLOTS - 1)) * SLOT_BYTES


@inline_kernel
def tap_row(tap: TapRecord, frame: FrameRow, slot: int, size: int, header: int) -> None:
    """Describe a frame of ``size`` bytes that was read, ``header`` of which are in its slot."""
    clear(frame)
    frame.header, frame.header_len, frame.payload_len = slot, header, size - header
    vnet = tap.vnet
    flags = load_u8(vnet + VNET_FLAGS)
    if flags & VNET_NEEDS_CSUM:
        frame.flags = Frame.NEEDS_CSUM
    elif flags & VNET_DATA_VALID:
        frame.flags = Frame.CSUM_OK
    kind = load_u8(vnet + VNET_GSO_TYPE) & ~VNET_GSO_ECN
    if kind == VNET_GSO_TCPV4 or kind == VNET_GSO_TCPV6:
        frame.gso_size = load_le16(vnet + VNET_GSO_SIZE)
    tap.next += 1
    tap.rx_frames += 1
    tap.rx_bytes += size


@kernel
def tap_rx(tap: TapRecord, frame: FrameRow) -> bool:
    """Read one frame whole into the next slot. False when none waits."""
    slot = next_slot(tap)
    iovec(tap, 0, tap.vnet, VNET_BYTES)
    iovec(tap, 1, slot, SLOT_BYTES)
    size = readv(tap.fd, tap.iov, 2) - VNET_BYTES
    if size <= 0:
        return False
    tap_row(tap, frame, slot, size, size)
    return True


@kernel
def tap_rx_all(tap_at: int, queue_at: int) -> int:
    """Read frames into a queue while it has room for them; how many."""
    tap, queue = TapRecord.at(tap_at), FrameQueueRecord.at(queue_at)
    first = queue.tail
    while queue.tail - queue.head < SLOTS and tap_rx(tap, frame_of(queue, queue.tail)):
        queue.tail += 1
    return queue.tail - first


@inline_kernel
def transport(frame: int, size: int) -> tuple[int, int]:
    """Where TCP or UDP starts in a frame that we made, and which: (offset, protocol), or (0, 0)."""
    kind = load_be16(frame + EthHdr.TYPE)
    ip = frame + EthHdr.LEN
    if kind == EtherType.IPV4:
        return EthHdr.LEN + (load_u8(ip) & 15) * 4, load_u8(ip + IpHdr.PROTO)
    if kind == EtherType.IPV6:
        proto, at = ip6_upper(ip, size - EthHdr.LEN, size - EthHdr.LEN)
        return EthHdr.LEN + at, proto
    return 0, 0


@kernel
def tap_tx(tap_at: int, queue_at: int) -> int:
    """Write the queue's frames to the interface; how many. What it refuses is counted and dropped."""
    tap, queue = TapRecord.at(tap_at), FrameQueueRecord.at(queue_at)
    head, tail = queue.head, load_acquire(address_of(queue) + FQ_TAIL)
    vnet, header = tap.vnet, tap.header
    first = head
    while head < tail:
        frame = frame_of(queue, head)
        head += 1
        size = frame.header_len
        if size < EthHdr.LEN:
            continue  # taken back
        store64(vnet, 0)
        store_be16(vnet + 8, 0)
        store_be16(vnet + 10, 0)
        start = frame.header
        if frame.flags & Frame.NEEDS_CSUM and size <= HEADER_ROOM:
            # The sum of the pseudo header goes where the checksum will be: into a copy, for the
            # driver's memory is not ours to write.
            memcpy(header, start, size)
            start = header
            l4, proto = transport(header, size)
            if proto == PROTO_TCP or proto == PROTO_UDP:
                field = int(TcpHdr.CSUM) if proto == PROTO_TCP else int(UdpHdr.CSUM)
                body = size - l4 + frame.payload_len + frame.payload2_len
                store_be16(
                    header + l4 + field, csum_fold(pseudo_sum(header + EthHdr.LEN, proto, body)) ^ 0xFFFF
                )
                store_u8(vnet + VNET_FLAGS, VNET_NEEDS_CSUM)
                store_le16(vnet + VNET_CSUM_START, l4)
                store_le16(vnet + VNET_CSUM_OFFSET, field)
                if frame.gso_size > 0 and proto == PROTO_TCP:
                    four = load_be16(header + EthHdr.TYPE) == EtherType.IPV4
                    store_u8(vnet + VNET_GSO_TYPE, VNET_GSO_TCPV4 if four else VNET_GSO_TCPV6)
                    store_le16(vnet + VNET_GSO_SIZE, frame.gso_size)
                    store_le16(vnet + VNET_HDR_LEN, l4 + (load_u8(header + l4 + TcpHdr.DATAOFF) >> 4) * 4)
        iovec(tap, 0, vnet, VNET_BYTES)
        iovec(tap, 1, start, size)
        pieces = 2
        if frame.payload_len > 0:
            iovec(tap, pieces, frame.payload, frame.payload_len)
            pieces += 1
        if frame.payload2_len > 0:
            iovec(tap, pieces, frame.payload2, frame.payload2_len)
            pieces += 1
        if writev(tap.fd, tap.iov, pieces) < 0:
            tap.tx_refused += 1
        else:
            tap.tx_frames += 1
            tap.tx_bytes += size + frame.payload_len + frame.payload2_len
    store_release(address_of(queue) + FQ_HEAD, head)
    return head - first
