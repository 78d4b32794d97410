"""What drivers call for each packet: generic receive offload (net/core/gro.c), rows and ring slots."""

from __future__ import annotations

from netmem.base.formats import ACK, PSH
from netmem.base.jit import inline_kernel, kernel
from netmem.memory.kernels import pp_alloc_buffer, pp_posted, pp_sync_for_cpu, set_state
from netmem.memory.layout import P_HOST, P_SHIFT, ST_BATCH, ST_NIC
from netmem.memory.shadow import sh_delivered
from netmem.netdev.batch import (
    B_ACK,
    B_DST,
    B_DST_HI,
    B_GSO,
    B_HDR,
    B_HLEN,
    B_HNETMEM,
    B_HOFFSET,
    B_HPOOL,
    B_KIND,
    B_LAST,
    B_LEN,
    B_MORE,
    B_NETMEM,
    B_NEXT,
    B_OFFSET,
    B_POOL,
    B_PORTS,
    B_QUEUE,
    B_SACK,
    B_SEQ,
    B_SIZE,
    B_SLOT,
    B_SRC,
    B_SRC_HI,
    B_TFLAGS,
    B_TS,
    B_TSECR,
    B_TSVAL,
    B_WND,
    FLOWS,
    HEADS,
    KIND_CONT,
    KIND_DROP,
    KIND_MERGED,
    KIND_TCP,
    M_COUNTERS,
    M_FLOW,
    M_HEADS,
    M_PACKETS,
    M_ROWS,
    N_GRO_MERGED,
)
from netmem.netdev.parse import parse
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
        if row[B_TFLAGS] & ~PSH == ACK and row[B_LEN] > 0 and row[B_SACK] == 0:
            if head >= 0:
                to = rows[head]
                if (
                    to[B_PORTS] == row[B_PORTS]
                    and to[B_SRC] == row[B_SRC]
                    and to[B_DST] == row[B_DST]
                    and to[B_SRC_HI] == row[B_SRC_HI]
                    and to[B_DST_HI] == row[B_DST_HI]
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
    row[B_GSO] = 0
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
