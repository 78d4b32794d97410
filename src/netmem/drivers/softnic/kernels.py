"""The softnic driver's hot paths: clean the receive ring, refill it, fill the transmit ring."""

from __future__ import annotations

from netmem.base.jit import kernel
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
from netmem.memory.kernels import pp_fault, pp_io_address
from netmem.memory.layout import P_POSTED
from netmem.netdev.batch import (
    B_GSO,
    B_STATUS,
    M_COUNTERS,
    M_ROWS,
    N_RX_FAULT,
    RX_L3_BAD,
    RX_L3_OK,
    RX_L4_BAD,
    RX_L4_OK,
    RX_SPLIT,
)
from netmem.netdev.kernels import gro_receive, rx_count, rx_fill_slot, rx_row
from netmem.netdev.ring import (
    L_HNETMEM,
    L_HOFFSET,
    L_NETMEM,
    L_OFFSET,
    REFILL_DONE,
    S_DRIVER,
    S_HDRLEN,
    S_HEAD,
    S_MASK,
    S_RING,
    S_SLOTS,
    S_TAIL,
    SLOT_WORDS,
)
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


@kernel
def softnic_rx(q, p, a, hp, meta, rows, budget):
    """Clean up to ``budget`` packets from the ring into the batch; returns descriptors cleaned."""
    at, mask, ring = q[S_HEAD], q[S_MASK], q[S_RING]
    tail = q[S_TAIL]
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
        total = 0
        for i in range(at, last + 1):
            status = load64(ring + (i & mask) * 32 + 8 * RXD_STATUS)
            row = rows[n]
            hlen, size = (status >> 16) & 0xFFFF, (status >> 32) & 0xFFFF
            rx_row(q, p, a, hp, row, i, i == at, n + 1 if i < last else -1, hlen, size)
            total += hlen + size
            if i == at:
                row[B_GSO] = load64(ring + (i & mask) * 32 + 8 * RXD_HASH) >> 32
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
                pp_fault(p, a, q[S_SLOTS + (i & mask) * SLOT_WORDS + L_NETMEM])
            n += 1
        rx_count(q, rows[head_row, B_STATUS] & RX_SPLIT != 0, total)
        gro_receive(meta, rows, head_row)
        packets += 1
        at = last + 1
    meta[M_ROWS] = n
    q[S_HEAD] = at
    p[P_POSTED] -= at - first
    return at - first


@kernel
def softnic_refill(q, p, a, hp, ha):
    """Post buffers until the ring is full; REFILL_* tells which pool must be refilled first."""
    mask, ring = q[S_MASK], q[S_RING]
    tail, stop = q[S_TAIL], q[S_HEAD] + mask + 1
    first = tail
    short = REFILL_DONE
    while tail < stop:
        short = rx_fill_slot(q, p, a, hp, ha, tail, stop)
        if short != REFILL_DONE:
            break
        slot = S_SLOTS + (tail & mask) * SLOT_WORDS
        io_header = 0
        if q[S_HDRLEN] != 0:
            io_header = pp_io_address(hp, q[slot + L_HNETMEM]) + q[slot + L_HOFFSET]
        desc = ring + (tail & mask) * 32
        store64(desc + 8 * RXD_PKT, pp_io_address(p, q[slot + L_NETMEM]) + q[slot + L_OFFSET])
        store64(desc + 8 * RXD_HDR, io_header)
        store64(desc + 8 * RXD_HASH, 0)
        store64(desc + 8 * RXD_STATUS, 0)
        tail += 1
    if tail != first:
        p[P_POSTED] += tail - first
        q[S_TAIL] = tail
        store_release(q[S_DRIVER], tail)
    return short


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
        store_release(t[S_DRIVER], at)
    return at - first
