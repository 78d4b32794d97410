"""Frames between a TAP interface's descriptor and a wire's queues, each with its virtio-net header."""

from __future__ import annotations

from netmem.base.formats import (
    ETH_HLEN,
    ETH_TYPE,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IP_PROTO,
    PROTO_TCP,
    PROTO_UDP,
    TCP_CSUM,
    TCP_DATAOFF,
    UDP_CSUM,
    csum_fold,
    ip6_upper,
    pseudo_sum,
)
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
from netmem.hw.wire import (
    F_FLAGS,
    F_GSO,
    F_HDR,
    F_HLEN,
    F_P2LEN,
    F_PAY,
    F_PAY2,
    F_PLEN,
    FQ_FRAMES,
    FQ_HEAD,
    FQ_TAIL,
    FRAME_CSUM_OK,
    FRAME_NEEDS_CSUM,
)

# struct virtio_net_hdr_v1 (include/uapi/linux/virtio_net.h); numbers are little-endian.
VNET_FLAGS, VNET_GSO_TYPE, VNET_HDR_LEN, VNET_GSO_SIZE, VNET_CSUM_START, VNET_CSUM_OFFSET = 0, 1, 2, 4, 6, 8
VNET_BYTES = 12
VNET_NEEDS_CSUM, VNET_DATA_VALID = 1, 2
VNET_GSO_NONE, VNET_GSO_TCPV4, VNET_GSO_TCPV6, VNET_GSO_ECN = 0, 1, 4, 0x80

# Words of a TAP wire ``w``.
W_FD = 0
W_SLOTS = 1  # host address of the slots that frames are read into
W_IOV = 2  # of room for struct iovec
W_VNET = 3  # of room for a virtio-net header
W_HEADER = 4  # of room for the headers of a frame to send
W_NEXT = 5  # next slot
W_RX = 6  # counters: frames and bytes read, read errors, frames and bytes written, frames refused
W_RX_BYTES = 7
W_TX = 8
W_TX_BYTES = 9
W_TX_REFUSED = 10
W_ZEROS = 11  # of ZEROS bytes that are 0
W_WORDS = 16
ZEROS = 4096
IOV_MAX = 60  # of W_IOV
SLOTS, SLOT_BYTES = 128, 1 << 17  # a power of two, and room for the longest frame
HEADER_ROOM = 512


@inline_kernel
def load_le16(at):
    """The little-endian 16-bit number at ``at``."""
    return load_u8(at) | load_u8(at + 1) << 8


@inline_kernel
def store_le16(at, value):
    """Write a little-endian 16-bit number."""
    store_u8(at, value & 0xFF)
    store_u8(at + 1, value >> 8)


@inline_kernel
def iovec(at, n, address, size):
    """Fill in the ``n``-th struct iovec at ``at``."""
    store64(at + 16 * n, address)
    store64(at + 16 * n + 8, size)


@inline_kernel
def next_slot(w):
    """Where the next frame is read to."""
    return w[W_SLOTS] + (w[W_NEXT] & (SLOTS - 1)) * SLOT_BYTES


@inline_kernel
def tap_row(w, row, slot, size, header):
    """Describe a frame of ``size`` bytes that was read, ``header`` of which are in its slot."""
    row[:] = 0
    row[F_HDR], row[F_HLEN], row[F_PLEN] = slot, header, size - header
    vnet = w[W_VNET]
    flags = load_u8(vnet + VNET_FLAGS)
    if flags & VNET_NEEDS_CSUM:
        row[F_FLAGS] = FRAME_NEEDS_CSUM
    elif flags & VNET_DATA_VALID:
        row[F_FLAGS] = FRAME_CSUM_OK
    kind = load_u8(vnet + VNET_GSO_TYPE) & ~VNET_GSO_ECN
    if kind == VNET_GSO_TCPV4 or kind == VNET_GSO_TCPV6:
        row[F_GSO] = load_le16(vnet + VNET_GSO_SIZE)
    w[W_NEXT] += 1
    w[W_RX] += 1
    w[W_RX_BYTES] += size


@kernel
def tap_rx(w, row):
    """Read one frame whole into the next slot. False when none waits."""
    slot = next_slot(w)
    iovec(w[W_IOV], 0, w[W_VNET], VNET_BYTES)
    iovec(w[W_IOV], 1, slot, SLOT_BYTES)
    size = readv(w[W_FD], w[W_IOV], 2) - VNET_BYTES
    if size <= 0:
        return False
    tap_row(w, row, slot, size, size)
    return True


@inline_kernel
def transport(frame, size):
    """Where TCP or UDP starts in a frame that we made, and which: (offset, protocol), or (0, 0)."""
    kind = load_be16(frame + ETH_TYPE)
    ip = frame + ETH_HLEN
    if kind == ETHERTYPE_IPV4:
        return ETH_HLEN + (load_u8(ip) & 15) * 4, load_u8(ip + IP_PROTO)
    if kind == ETHERTYPE_IPV6:
        proto, at = ip6_upper(ip, size - ETH_HLEN, size - ETH_HLEN)
        return ETH_HLEN + at, proto
    return 0, 0


@kernel
def tap_tx(w, state, rows):
    """Write the queue's frames to the interface; how many. What it refuses is counted and dropped."""
    head, tail = state[FQ_HEAD], load_acquire(state.ctypes.data + 8 * FQ_TAIL)
    iov, vnet, header = w[W_IOV], w[W_VNET], w[W_HEADER]
    first = head
    while head < tail:
        row = rows[head & (FQ_FRAMES - 1)]
        head += 1
        size = row[F_HLEN]
        if size < ETH_HLEN:
            continue  # taken back
        store64(vnet, 0)
        store_be16(vnet + 8, 0)
        store_be16(vnet + 10, 0)
        start = row[F_HDR]
        if row[F_FLAGS] & FRAME_NEEDS_CSUM and size <= HEADER_ROOM:
            # The sum of the pseudo header goes where the checksum will be: into a copy, for the
            # driver's memory is not ours to write.
            memcpy(header, start, size)
            start = header
            l4, proto = transport(header, size)
            if proto == PROTO_TCP or proto == PROTO_UDP:
                field = TCP_CSUM if proto == PROTO_TCP else UDP_CSUM
                body = size - l4 + row[F_PLEN] + row[F_P2LEN]
                store_be16(
                    header + l4 + field, csum_fold(pseudo_sum(header + ETH_HLEN, proto, body)) ^ 0xFFFF
                )
                store_u8(vnet + VNET_FLAGS, VNET_NEEDS_CSUM)
                store_le16(vnet + VNET_CSUM_START, l4)
                store_le16(vnet + VNET_CSUM_OFFSET, field)
                if row[F_GSO] > 0 and proto == PROTO_TCP:
                    four = load_be16(header + ETH_TYPE) == ETHERTYPE_IPV4
                    store_u8(vnet + VNET_GSO_TYPE, VNET_GSO_TCPV4 if four else VNET_GSO_TCPV6)
                    store_le16(vnet + VNET_GSO_SIZE, row[F_GSO])
                    store_le16(vnet + VNET_HDR_LEN, l4 + (load_u8(header + l4 + TCP_DATAOFF) >> 4) * 4)
        iovec(iov, 0, vnet, VNET_BYTES)
        iovec(iov, 1, start, size)
        pieces = 2
        if row[F_PLEN] > 0:
            iovec(iov, pieces, row[F_PAY], row[F_PLEN])
            pieces += 1
        if row[F_P2LEN] > 0:
            iovec(iov, pieces, row[F_PAY2], row[F_P2LEN])
            pieces += 1
        if writev(w[W_FD], iov, pieces) < 0:
            w[W_TX_REFUSED] += 1
        else:
            w[W_TX] += 1
            w[W_TX_BYTES] += size + row[F_PLEN] + row[F_P2LEN]
    store_release(state.ctypes.data + 8 * FQ_HEAD, head)
    return head - first
