"""Kernels of the benchmarks: rounds of the pool, and descriptors completed as a NIC would."""

from __future__ import annotations

from netmem.base.formats import TCP_CSUM, TCP_SEQ, csum_fold
from netmem.base.jit import kernel
from netmem.base.native import (
    load64,
    load_acquire,
    load_be16,
    load_be32,
    memcpy,
    store64,
    store_be16,
    store_be32,
    store_release,
)
from netmem.drivers.igb.regs import RXD_DD
from netmem.hw.softnic.regs import (
    RXD_HASH,
    RXD_HDR,
    RXD_STATUS,
    RXS_DD,
    RXS_EOP,
    RXS_L3_OK,
    RXS_L4_OK,
    RXS_SPH,
)
from netmem.memory.kernels import pp_alloc, pp_alloc_bulk, pp_io_address, pp_put, pp_put_bulk
from netmem.memory.layout import P_DMA, P_HOST, P_POSTED
from netmem.netdev.ring import (
    L_HNETMEM,
    L_HOFFSET,
    L_NETMEM,
    L_OFFSET,
    S_HEAD,
    S_MASK,
    S_RING,
    S_SLOTS,
    S_TAIL,
    SLOT_WORDS,
)

TCP_AT = 34  # Ethernet and IPv4 headers before it


@kernel
def pool_rounds(p, a, refs, rounds):
    """``rounds`` times: allocate ``len(refs)`` netmems in a bulk, put them in a bulk."""
    n = refs.shape[0]
    for _ in range(rounds):
        pp_alloc_bulk(p, a, refs, n)
        pp_put_bulk(p, a, refs, n, True)
    return n * rounds


@kernel
def pool_singles(p, a, refs, rounds):
    """The same one netmem at a time, as a driver's refill does."""
    n = refs.shape[0]
    for _ in range(rounds):
        for i in range(n):
            refs[i] = pp_alloc(p, a)
        for i in range(n):
            pp_put(p, a, refs[i], True)
    return n * rounds


@kernel
def complete(q, hp, at, n, template, hlen, size, seq):
    """Complete ``n`` descriptors from ``at`` with in-order segments of ``size`` bytes."""
    for i in range(n):
        desc = q[S_RING] + ((at + i) & q[S_MASK]) * 32
        header = hp[P_HOST] + load64(desc + 8 * RXD_HDR) - hp[P_DMA]
        memcpy(header, template, hlen)
        store_be32(header + TCP_AT + TCP_SEQ, seq + i * size)
        store64(desc + 8 * RXD_HASH, 0)
        status = RXS_DD | RXS_EOP | RXS_SPH | RXS_L3_OK | RXS_L4_OK
        store_release(desc + 8 * RXD_STATUS, status | hlen << 16 | size << 32)
    return at + n


@kernel
def number_segments(base, n, record, seq, size):
    """Number ``n`` length-prefixed frames from ``seq`` and mend their TCP checksums (RFC 1624)."""
    for i in range(n):
        tcp = base + i * record + 4 + TCP_AT
        old = load_be32(tcp + TCP_SEQ)
        new = (seq + i * size) & 0xFFFFFFFF
        total = load_be16(tcp + TCP_CSUM) ^ 0xFFFF
        total += ((old >> 16) ^ 0xFFFF) + ((old & 0xFFFF) ^ 0xFFFF) + (new >> 16) + (new & 0xFFFF)
        store_be32(tcp + TCP_SEQ, new)
        store_be16(tcp + TCP_CSUM, csum_fold(total))


@kernel
def recycle(q, p, hp):
    """Take whatever the 82576 completed and post the same buffers again; descriptors taken."""
    ring, mask = q[S_RING], q[S_MASK]
    at, tail = q[S_HEAD], q[S_TAIL]
    first = at
    while at < tail and load_acquire(ring + (at & mask) * 16 + 8) & RXD_DD != 0:
        at += 1
    while tail < at + mask:
        slot = S_SLOTS + (tail & mask) * SLOT_WORDS
        desc = ring + (tail & mask) * 16
        store64(desc, pp_io_address(p, q[slot + L_NETMEM]) + q[slot + L_OFFSET])
        store64(desc + 8, pp_io_address(hp, q[slot + L_HNETMEM]) + q[slot + L_HOFFSET])
        tail += 1
    q[S_HEAD], q[S_TAIL] = at, tail
    p[P_POSTED] = tail - at
    return at - first
