"""What drivers call for each packet: parsing, generic receive offload (net/core/gro.c), ring slots."""

from __future__ import annotations

from netmem.base.formats import (
    ACK,
    ETH_HLEN,
    ETH_TYPE,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    IP_DST,
    IP_FRAG,
    IP_HLEN,
    IP_MF_OR_OFFSET,
    IP_PROTO,
    IP_SRC,
    IP_TOTLEN,
    OPT_END,
    OPT_NOP,
    OPT_TIMESTAMP,
    PROTO_ICMP,
    PROTO_TCP,
    PSH,
    TCP_ACK,
    TCP_DATAOFF,
    TCP_FLAGS,
    TCP_HLEN,
    TCP_SEQ,
    TCP_WINDOW,
    csum_add,
    csum_fold,
)
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load_be16, load_be32, load_u8
from netmem.memory.kernels import pp_alloc_buffer, pp_posted, pp_sync_for_cpu, set_state
from netmem.memory.layout import P_HOST, P_SHIFT, ST_BATCH, ST_NIC
from netmem.memory.shadow import sh_delivered
from netmem.netdev.batch import (
    B_ACK,
    B_DST,
    B_HDR,
    B_HLEN,
    B_HNETMEM,
    B_HOFFSET,
    B_HPOOL,
    B_KIND,
    B_L3,
    B_L4,
    B_LAST,
    B_LEN,
    B_LIN,
    B_LINLEN,
    B_MORE,
    B_NETMEM,
    B_NEXT,
    B_OFFSET,
    B_OWN,
    B_POOL,
    B_PORTS,
    B_QUEUE,
    B_SEQ,
    B_SIZE,
    B_SLOT,
    B_SRC,
    B_STATUS,
    B_TFLAGS,
    B_TS,
    B_TSECR,
    B_TSVAL,
    B_WND,
    FLOWS,
    HEADS,
    KIND_ARP,
    KIND_CONT,
    KIND_DROP,
    KIND_ICMP,
    KIND_MERGED,
    KIND_TCP,
    M_COUNTERS,
    M_FLOW,
    M_HEADS,
    M_PACKETS,
    M_ROWS,
    N_GRO_MERGED,
    N_RX_ARP,
    N_RX_BAD_IP_CSUM,
    N_RX_BAD_IP_HEADER,
    N_RX_BAD_IP_LENGTH,
    N_RX_BAD_L4_CSUM,
    N_RX_BAD_TCP_HEADER,
    N_RX_BYTES,
    N_RX_FRAGMENT,
    N_RX_HEADER_UNREADABLE,
    N_RX_ICMP,
    N_RX_PACKETS,
    N_RX_RUNT,
    N_RX_TCP,
    N_RX_UNKNOWN_ETHERTYPE,
    N_RX_UNKNOWN_PROTO,
    N_RX_UNVERIFIED_CSUM,
    RX_L3_BAD,
    RX_L3_OK,
    RX_L4_BAD,
    RX_L4_OK,
)
from netmem.netdev.ring import (
    L_HNETMEM,
    L_HOFFSET,
    L_NETMEM,
    L_OFFSET,
    REFILL_DONE,
    REFILL_HEADER,
    REFILL_PAYLOAD,
    S_BUFLEN,
    S_BYTES,
    S_HDRLEN,
    S_HDS_HIT,
    S_HDS_MISS,
    S_HPOOL,
    S_MASK,
    S_PACKETS,
    S_POOL,
    S_QUEUE,
    S_SLOTS,
    SLOT_WORDS,
)

GRO_MAX = 1 << 20  # payload bytes of a merged packet


@inline_kernel
def tcp_timestamps(tcp, header, row):
    """Find the timestamp option (RFC 7323) and note it in ``row``."""
    at, end = tcp + TCP_HLEN, tcp + header
    while at < end:
        kind = load_u8(at)
        if kind == OPT_END:
            break
        if kind == OPT_NOP:
            at += 1
            continue
        if at + 1 >= end:
            break
        size = load_u8(at + 1)
        if size < 2 or at + size > end:
            break
        if kind == OPT_TIMESTAMP and size == 10:
            row[B_TS], row[B_TSVAL], row[B_TSECR] = 1, load_be32(at + 2), load_be32(at + 6)
            break
        at += size


@inline_kernel
def parse(meta, rows, row):
    """Fill in what the stack needs from a packet's headers; returns its KIND_*."""
    row[B_NEXT] = -1
    row[B_LEN] = 0
    hdr, have = row[B_HDR], row[B_HLEN]
    total = have + row[B_SIZE]
    more = row[B_MORE]
    while more >= 0:
        total += rows[more, B_SIZE]
        more = rows[more, B_MORE]
    meta[M_COUNTERS + N_RX_PACKETS] += 1
    meta[M_COUNTERS + N_RX_BYTES] += total
    if have < ETH_HLEN:
        meta[M_COUNTERS + N_RX_RUNT] += 1
        return KIND_DROP
    kind = load_be16(hdr + ETH_TYPE)
    if kind == ETHERTYPE_ARP:
        meta[M_COUNTERS + N_RX_ARP] += 1
        return KIND_ARP
    if kind != ETHERTYPE_IPV4:
        meta[M_COUNTERS + N_RX_UNKNOWN_ETHERTYPE] += 1
        return KIND_DROP
    ip = hdr + ETH_HLEN
    if have < ETH_HLEN + IP_HLEN or load_u8(ip) >> 4 != 4:
        meta[M_COUNTERS + N_RX_BAD_IP_HEADER] += 1
        return KIND_DROP
    ihl = (load_u8(ip) & 15) * 4
    size = load_be16(ip + IP_TOTLEN)
    if ihl < IP_HLEN or ETH_HLEN + ihl > have:
        meta[M_COUNTERS + N_RX_BAD_IP_HEADER] += 1
        return KIND_DROP
    if size < ihl or ETH_HLEN + size > total:
        meta[M_COUNTERS + N_RX_BAD_IP_LENGTH] += 1
        return KIND_DROP
    status = row[B_STATUS]
    if status & RX_L3_BAD or (status & RX_L3_OK == 0 and csum_fold(csum_add(ip, ihl, 0)) != 0):
        meta[M_COUNTERS + N_RX_BAD_IP_CSUM] += 1
        return KIND_DROP
    if load_be16(ip + IP_FRAG) & IP_MF_OR_OFFSET:
        meta[M_COUNTERS + N_RX_FRAGMENT] += 1
        return KIND_DROP
    row[B_SRC], row[B_DST] = load_be32(ip + IP_SRC), load_be32(ip + IP_DST)
    row[B_L3], row[B_L4] = ETH_HLEN, ETH_HLEN + ihl
    proto = load_u8(ip + IP_PROTO)
    if proto == PROTO_ICMP:
        row[B_LEN] = size - ihl
        meta[M_COUNTERS + N_RX_ICMP] += 1
        return KIND_ICMP
    if proto != PROTO_TCP:
        meta[M_COUNTERS + N_RX_UNKNOWN_PROTO] += 1
        return KIND_DROP
    tcp = ip + ihl
    room = have - ETH_HLEN - ihl
    if size - ihl < TCP_HLEN:
        meta[M_COUNTERS + N_RX_BAD_TCP_HEADER] += 1
        return KIND_DROP
    if room < TCP_HLEN:
        meta[M_COUNTERS + N_RX_HEADER_UNREADABLE] += 1
        return KIND_DROP
    header = (load_u8(tcp + TCP_DATAOFF) >> 4) * 4
    if header < TCP_HLEN or header > size - ihl:
        meta[M_COUNTERS + N_RX_BAD_TCP_HEADER] += 1
        return KIND_DROP
    if header > room:
        meta[M_COUNTERS + N_RX_HEADER_UNREADABLE] += 1
        return KIND_DROP
    if status & RX_L4_BAD:
        meta[M_COUNTERS + N_RX_BAD_L4_CSUM] += 1
        return KIND_DROP
    if status & RX_L4_OK == 0:
        # The stack never reads payload: without the NIC's word only what is all header is summed.
        if ETH_HLEN + size > have:
            meta[M_COUNTERS + N_RX_UNVERIFIED_CSUM] += 1
            return KIND_DROP
        pseudo = csum_add(ip + IP_SRC, 8, PROTO_TCP + size - ihl)
        if csum_fold(csum_add(tcp, size - ihl, pseudo)) != 0:
            meta[M_COUNTERS + N_RX_BAD_L4_CSUM] += 1
            return KIND_DROP
    length = size - ihl - header
    row[B_LIN] = ETH_HLEN + ihl + header
    row[B_LINLEN] = min(length, have - row[B_LIN])
    trim(rows, row, length - row[B_LINLEN])
    row[B_PORTS] = load_be32(tcp)
    row[B_SEQ], row[B_ACK] = load_be32(tcp + TCP_SEQ), load_be32(tcp + TCP_ACK)
    row[B_TFLAGS] = load_u8(tcp + TCP_FLAGS)
    row[B_WND] = load_be16(tcp + TCP_WINDOW)
    row[B_TS] = 0
    if header > TCP_HLEN:
        tcp_timestamps(tcp, header, row)
    row[B_LEN] = row[B_OWN] = length
    meta[M_COUNTERS + N_RX_TCP] += 1
    return KIND_TCP


@inline_kernel
def trim(rows, row, left):
    """Cut a packet's buffers to ``left`` payload bytes: Ethernet padding is no payload."""
    row[B_SIZE] = min(row[B_SIZE], left)
    left -= row[B_SIZE]
    more = row[B_MORE]
    while more >= 0:
        size = min(rows[more, B_SIZE], left)
        rows[more, B_SIZE] = size
        left -= size
        more = rows[more, B_MORE]


@inline_kernel
def gro_receive(meta, rows, i):
    """napi_gro_receive(): parse packet ``i``, and merge it when it continues one of this batch."""
    row = rows[i]
    kind = parse(meta, rows, row)
    row[B_KIND] = kind
    meta[M_PACKETS] += 1
    if kind == KIND_DROP:
        return
    if kind == KIND_TCP:
        flow = (row[B_PORTS] ^ (row[B_PORTS] >> 16) ^ row[B_SRC]) & (FLOWS - 1)
        head = meta[M_FLOW + flow] - 1
        if row[B_TFLAGS] & ~PSH == ACK and row[B_LEN] > 0:
            if head >= 0:
                to = rows[head]
                if (
                    to[B_PORTS] == row[B_PORTS]
                    and to[B_SRC] == row[B_SRC]
                    and to[B_DST] == row[B_DST]
                    and (to[B_SEQ] + to[B_LEN]) & 0xFFFFFFFF == row[B_SEQ]
                    and to[B_ACK] == row[B_ACK]
                    and to[B_WND] == row[B_WND]
                    and to[B_TS] == row[B_TS]
                    and (to[B_TS] == 0 or (to[B_TSVAL] == row[B_TSVAL] and to[B_TSECR] == row[B_TSECR]))
                    and to[B_LEN] + row[B_LEN] <= GRO_MAX
                ):
                    row[B_KIND] = KIND_MERGED
                    rows[to[B_LAST], B_NEXT] = i
                    to[B_LAST] = i
                    to[B_LEN] += row[B_LEN]
                    to[B_TFLAGS] |= row[B_TFLAGS]
                    meta[M_COUNTERS + N_GRO_MERGED] += 1
                    return
            row[B_LAST] = i
            meta[M_FLOW + flow] = i + 1
        else:
            row[B_LAST] = i
            meta[M_FLOW + flow] = 0  # whatever else it is, nothing is merged across it
    n = meta[M_HEADS]
    meta[HEADS + n] = i
    meta[M_HEADS] = n + 1


@inline_kernel
def netmem_host(p, ref, offset):
    """Host address of a readable netmem of pool ``p``."""
    return p[P_HOST] + (((ref >> 1) & 0x7FFFFFFF) << p[P_SHIFT]) + offset


@inline_kernel
def rx_row(q, p, a, hp, row, i, first, more, hlen, size):
    """Fill a row from descriptor ``i``, of which the device used ``hlen`` and ``size`` bytes.

    ``first``: the packet starts here. ``more``: row of its next descriptor, -1 without one.
    """
    slot = S_SLOTS + (i & q[S_MASK]) * SLOT_WORDS
    ref, offset = q[slot + L_NETMEM], q[slot + L_OFFSET]
    set_state(p, a, ref, ST_BATCH)
    if size > 0:
        pp_sync_for_cpu(p, ref, offset, size)
    row[B_QUEUE], row[B_SLOT] = q[S_QUEUE], i
    row[B_POOL], row[B_HPOOL] = q[S_POOL], q[S_HPOOL]
    row[B_NETMEM], row[B_OFFSET], row[B_SIZE] = ref, offset, size
    row[B_HDR], row[B_HLEN], row[B_HNETMEM], row[B_HOFFSET] = 0, 0, 0, 0
    row[B_KIND], row[B_MORE] = KIND_CONT, more
    if q[S_HDRLEN] != 0:
        row[B_HNETMEM], row[B_HOFFSET] = q[slot + L_HNETMEM], q[slot + L_HOFFSET]
        if first:
            pp_sync_for_cpu(hp, row[B_HNETMEM], row[B_HOFFSET], hlen)
            row[B_HDR] = netmem_host(hp, row[B_HNETMEM], row[B_HOFFSET])
            row[B_HLEN] = hlen
    elif first:
        # Not split: the pool is of readable pages, and the frame starts in its buffer.
        row[B_HDR], row[B_HLEN] = netmem_host(p, ref, offset), size
        row[B_HNETMEM], row[B_HOFFSET], row[B_HPOOL] = ref, offset, q[S_POOL]
        row[B_NETMEM], row[B_SIZE] = 0, 0


@inline_kernel
def rx_count(q, split, size):
    """Count a packet of ``size`` bytes on its queue, and whether its headers were split off."""
    q[S_PACKETS] += 1
    q[S_BYTES] += size
    if q[S_HDRLEN] != 0:
        q[S_HDS_HIT if split else S_HDS_MISS] += 1


@kernel
def rx_return(q, meta, rows):
    """Note which buffers the stack took; the rest is posted again from the slot it is in."""
    mask, split = q[S_MASK], q[S_HDRLEN]
    for n in range(meta[M_ROWS]):
        row = rows[n]
        slot = S_SLOTS + (row[B_SLOT] & mask) * SLOT_WORDS
        if split != 0:
            if row[B_HNETMEM] == 0:
                q[slot + L_HNETMEM] = 0
            if row[B_NETMEM] == 0:
                q[slot + L_NETMEM] = 0
        elif row[B_NETMEM] == 0 and row[B_HNETMEM] == 0:
            q[slot + L_NETMEM] = 0
    meta[M_ROWS] = 0


@inline_kernel
def rx_fill_slot(q, p, a, hp, ha, i, stop):
    """See that slot ``i`` has its buffers; REFILL_DONE, or which pool must be refilled first."""
    slot = S_SLOTS + (i & q[S_MASK]) * SLOT_WORDS
    if q[slot + L_NETMEM] == 0:
        ref, offset = pp_alloc_buffer(p, a, q[S_BUFLEN])
        if ref == 0 and not rx_borrow(q, i, stop, slot):
            return REFILL_PAYLOAD
        if ref != 0:
            q[slot + L_NETMEM], q[slot + L_OFFSET] = ref, offset
    if q[S_HDRLEN] != 0 and q[slot + L_HNETMEM] == 0:
        ref, offset = pp_alloc_buffer(hp, ha, q[S_HDRLEN])
        if ref == 0:
            return REFILL_HEADER
        q[slot + L_HNETMEM], q[slot + L_HOFFSET] = ref, offset
        set_state(hp, ha, ref, ST_NIC)
    if q[S_HDRLEN] != 0:
        pp_posted(hp, q[slot + L_HNETMEM], q[slot + L_HOFFSET], q[S_HDRLEN])
    set_state(p, a, q[slot + L_NETMEM], ST_NIC)
    pp_posted(p, q[slot + L_NETMEM], q[slot + L_OFFSET], q[S_BUFLEN])
    return REFILL_DONE


@kernel
def rx_borrow(q, i, stop, slot):
    """With the pool dry, move an unused buffer from a later slot here. False: there is none."""
    mask = q[S_MASK]
    for j in range(stop - 1, i, -1):
        other = S_SLOTS + (j & mask) * SLOT_WORDS
        if q[other + L_NETMEM] != 0:
            q[slot + L_NETMEM], q[slot + L_OFFSET] = q[other + L_NETMEM], q[other + L_OFFSET]
            q[other + L_NETMEM] = 0
            return True
    return False


@kernel
def rx_check(rows, n, handle, p, a):
    """The sanitiser's look at a batch that a driver hands up: the buffers of one pool."""
    for i in range(n):
        row = rows[i]
        if row[B_POOL] == handle and row[B_NETMEM] != 0:
            sh_delivered(p, a, row[B_NETMEM], row[B_OFFSET], row[B_SIZE])
        if row[B_HPOOL] == handle and row[B_HNETMEM] != 0:
            sh_delivered(p, a, row[B_HNETMEM], row[B_HOFFSET], row[B_HLEN])
