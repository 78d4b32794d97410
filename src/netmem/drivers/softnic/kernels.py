"""The softnic driver's hot paths: clean the receive ring, refill it, fill the transmit ring.

A receive ring's arena ``q`` has a header and four words a slot: payload netmem and offset, header
netmem and offset. We move the tail, the device moves the head.
"""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load64, load_acquire, store64, store_release
from netmem.hw.softnic.regs import (
    RXD_HASH,
    RXD_HDR,
    RXD_PKT,
    RXD_STATUS,
    RXS_DD,
    RXS_EOP,
    RXS_FAULT,
    RXS_L3_BAD,
    RXS_L3_OK,
    RXS_L4_BAD,
    RXS_L4_OK,
    RXS_SPH,
    TXC_CSUM,
    TXC_EOP,
    TXC_TSO,
    TXD_ADDR,
    TXD_LEN,
    TXD_META,
    TXD_STATUS,
)
from netmem.memory.kernels import (
    pp_alloc_buffer,
    pp_io_address,
    pp_sync_for_cpu,
    set_state,
)
from netmem.memory.layout import P_HOST, P_POSTED, P_SHIFT, ST_BATCH, ST_NIC
from netmem.netdev.batch import (
    B_HDR,
    B_HLEN,
    B_HNETMEM,
    B_HOFFSET,
    B_HPOOL,
    B_KIND,
    B_MORE,
    B_NETMEM,
    B_OFFSET,
    B_POOL,
    B_QUEUE,
    B_SIZE,
    B_SLOT,
    B_STATUS,
    KIND_CONT,
    M_COUNTERS,
    M_ROWS,
    N_RX_FAULT,
    RX_L3_BAD,
    RX_L3_OK,
    RX_L4_BAD,
    RX_L4_OK,
    RX_SPLIT,
)
from netmem.netdev.kernels import gro_receive
from netmem.netdev.tx import (
    SLOT_BYTES,
    T_BYTES,
    T_HEAD,
    T_IO,
    T_PACKETS,
    T_SENT,
    T_TAIL,
    TX_CSUM,
    TX_ROWS,
    X_FLAGS,
    X_GSO,
    X_HLEN,
    X_NDESC,
    X_P2LEN,
    X_PAY,
    X_PAY2,
    X_PLEN,
)

S_RING = 0  # host address of the descriptors
S_MASK = 1
S_HEAD = 2  # next descriptor to clean, free running
S_TAIL = 3  # next descriptor to post
S_QUEUE = 4
S_POOL = 5  # handles of the payload and the header pool
S_HPOOL = 6
S_BUFLEN = 7
S_HDRLEN = 8  # 0: no header split
S_TAIL_REG = 9  # host address of the tail register
S_PACKETS = 10
S_STARVED = 11  # refills that ended for want of memory
S_SLOTS = 16
SLOT_WORDS = 4
L_NETMEM, L_OFFSET, L_HNETMEM, L_HOFFSET = range(4)

REFILL_DONE, REFILL_PAYLOAD, REFILL_HEADER = 0, 1, 2


@inline_kernel
def netmem_host(p, ref, offset):
    """Host address of a readable netmem of pool ``p``."""
    return p[P_HOST] + (((ref >> 1) & 0x7FFFFFFF) << p[P_SHIFT]) + offset


@kernel
def softnic_rx(q, p, a, hp, meta, rows, budget):
    """Clean up to ``budget`` packets from the ring into the batch; returns descriptors cleaned."""
    at, mask, ring = q[S_HEAD], q[S_MASK], q[S_RING]
    tail, split = q[S_TAIL], q[S_HDRLEN]
    first = at
    room = rows.shape[0]
    n = meta[M_ROWS]
    packets = 0
    while packets < budget:
        # The device writes a packet's descriptors in order: take it only when its last is there.
        last = at
        status = 0
        while last < tail:
            status = load_acquire(ring + (last & mask) * 32 + 8 * RXD_STATUS)
            if status & RXS_DD == 0 or status & RXS_EOP:
                break
            last += 1
        if last >= tail or status & RXS_DD == 0 or n + last - at >= room:
            break
        head_row = n
        for i in range(at, last + 1):
            slot = S_SLOTS + (i & mask) * SLOT_WORDS
            status = load64(ring + (i & mask) * 32 + 8 * RXD_STATUS)
            hlen, size = (status >> 16) & 0xFFFF, (status >> 32) & 0xFFFF
            row = rows[n]
            ref, offset = q[slot + L_NETMEM], q[slot + L_OFFSET]
            set_state(p, a, ref, ST_BATCH)
            if size > 0:
                pp_sync_for_cpu(p, ref, offset, size)
            row[B_QUEUE], row[B_SLOT] = q[S_QUEUE], i
            row[B_POOL], row[B_HPOOL] = q[S_POOL], q[S_HPOOL]
            row[B_NETMEM], row[B_OFFSET], row[B_SIZE] = ref, offset, size
            row[B_HDR], row[B_HLEN], row[B_HNETMEM], row[B_HOFFSET] = 0, 0, 0, 0
            row[B_KIND] = KIND_CONT
            row[B_MORE] = n + 1 if i < last else -1
            if split != 0:
                row[B_HNETMEM], row[B_HOFFSET] = q[slot + L_HNETMEM], q[slot + L_HOFFSET]
                if i == at:
                    pp_sync_for_cpu(hp, row[B_HNETMEM], row[B_HOFFSET], hlen)
                    row[B_HDR] = netmem_host(hp, row[B_HNETMEM], row[B_HOFFSET])
                    row[B_HLEN] = hlen
            elif i == at:
                # Not split: the pool is of readable pages, and the frame starts in its buffer.
                row[B_HDR], row[B_HLEN] = netmem_host(p, ref, offset), size
                row[B_HNETMEM], row[B_HOFFSET], row[B_HPOOL] = ref, offset, q[S_POOL]
                row[B_NETMEM], row[B_SIZE] = 0, 0
            if i == at:
                row[B_STATUS] = 0
                if status & RXS_SPH:
                    row[B_STATUS] |= RX_SPLIT
                if status & RXS_L3_OK:
                    row[B_STATUS] |= RX_L3_OK
                if status & RXS_L4_OK:
                    row[B_STATUS] |= RX_L4_OK
                if status & RXS_L3_BAD:
                    row[B_STATUS] |= RX_L3_BAD
                if status & RXS_L4_BAD:
                    row[B_STATUS] |= RX_L4_BAD
            if status & RXS_FAULT:
                meta[M_COUNTERS + N_RX_FAULT] += 1
            n += 1
        gro_receive(meta, rows, head_row)
        packets += 1
        at = last + 1
    meta[M_ROWS] = n
    q[S_HEAD] = at
    q[S_PACKETS] += packets
    p[P_POSTED] -= at - first
    return at - first


@kernel
def softnic_return(q, meta, rows):
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


@kernel
def softnic_refill(q, p, a, hp, ha):
    """Post buffers until the ring is full; REFILL_* tells which pool must be refilled first."""
    mask, ring = q[S_MASK], q[S_RING]
    tail, stop = q[S_TAIL], q[S_HEAD] + mask + 1
    first = tail
    short = REFILL_DONE
    while tail < stop:
        slot = S_SLOTS + (tail & mask) * SLOT_WORDS
        if q[slot + L_NETMEM] == 0:
            ref, offset = pp_alloc_buffer(p, a, q[S_BUFLEN])
            if ref == 0 and not borrow(q, tail, stop, slot):
                short = REFILL_PAYLOAD
                break
            if ref != 0:
                q[slot + L_NETMEM], q[slot + L_OFFSET] = ref, offset
        io_header = 0
        if q[S_HDRLEN] != 0:
            if q[slot + L_HNETMEM] == 0:
                ref, offset = pp_alloc_buffer(hp, ha, q[S_HDRLEN])
                if ref == 0:
                    short = REFILL_HEADER
                    break
                q[slot + L_HNETMEM], q[slot + L_HOFFSET] = ref, offset
            io_header = pp_io_address(hp, q[slot + L_HNETMEM]) + q[slot + L_HOFFSET]
        ref = q[slot + L_NETMEM]
        set_state(p, a, ref, ST_NIC)
        desc = ring + (tail & mask) * 32
        store64(desc + 8 * RXD_PKT, pp_io_address(p, ref) + q[slot + L_OFFSET])
        store64(desc + 8 * RXD_HDR, io_header)
        store64(desc + 8 * RXD_HASH, 0)
        store64(desc + 8 * RXD_STATUS, 0)
        tail += 1
    if tail != first:
        p[P_POSTED] += tail - first
        q[S_TAIL] = tail
        store_release(q[S_TAIL_REG], tail)
    return short


@kernel
def borrow(q, tail, stop, slot):
    """With the pool dry, move an unused buffer from a later slot here. False: there is none."""
    mask = q[S_MASK]
    for i in range(stop - 1, tail, -1):
        other = S_SLOTS + (i & mask) * SLOT_WORDS
        if q[other + L_NETMEM] != 0:
            q[slot + L_NETMEM], q[slot + L_OFFSET] = q[other + L_NETMEM], q[other + L_OFFSET]
            q[other + L_NETMEM] = 0
            return True
    q[S_STARVED] += 1
    return False


@kernel
def softnic_pending(q):
    """True when a descriptor waits to be cleaned."""
    at = q[S_HEAD]
    if at >= q[S_TAIL]:
        return False
    return load_acquire(q[S_RING] + (at & q[S_MASK]) * 32 + 8 * RXD_STATUS) & RXS_DD != 0


@kernel
def softnic_xmit(t, meta, rows):
    """Clean what was sent and post what waits; returns descriptors posted."""
    ring, mask = t[S_RING], t[S_MASK]
    head = meta[T_HEAD]
    while head < meta[T_SENT]:
        row = rows[head & (TX_ROWS - 1)]
        end = t[S_HEAD] + row[X_NDESC]
        if load_acquire(ring + ((end - 1) & mask) * 32 + 8 * TXD_STATUS) == 0:
            break
        t[S_HEAD] = end
        head += 1
    meta[T_HEAD] = head
    at = t[S_TAIL]
    first = at
    sent = meta[T_SENT]
    while sent < meta[T_TAIL] and at - t[S_HEAD] + 3 <= mask + 1:
        row = rows[sent & (TX_ROWS - 1)]
        count = 1 + (row[X_PLEN] > 0) + (row[X_P2LEN] > 0)
        flags = TXC_CSUM if row[X_FLAGS] & TX_CSUM else 0
        if row[X_GSO] > 0:
            flags |= TXC_TSO
        header = meta[T_IO] + (sent & (TX_ROWS - 1)) * SLOT_BYTES
        for i in range(count):
            desc = ring + ((at + i) & mask) * 32
            if i == 0:
                addr, size = header, row[X_HLEN]
            elif i == 1 and row[X_PLEN] > 0:
                addr, size = row[X_PAY], row[X_PLEN]
            else:
                addr, size = row[X_PAY2], row[X_P2LEN]
            store64(desc + 8 * TXD_ADDR, addr)
            store64(desc + 8 * TXD_LEN, size | (flags | (TXC_EOP if i == count - 1 else 0)) << 32)
            store64(desc + 8 * TXD_META, row[X_GSO] << 16 | row[X_HLEN])
            store64(desc + 8 * TXD_STATUS, 0)
        row[X_NDESC] = count
        meta[T_PACKETS] += 1
        meta[T_BYTES] += row[X_HLEN] + row[X_PLEN] + row[X_P2LEN]
        at += count
        sent += 1
    meta[T_SENT] = sent
    if at != first:
        t[S_TAIL] = at
        store_release(t[S_TAIL_REG], at)
    return at - first
