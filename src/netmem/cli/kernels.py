"""Kernels of the benchmarks: rounds of the pool, and descriptors completed as a NIC would."""

from __future__ import annotations

from netmem.base.formats import TCP_SEQ
from netmem.base.jit import kernel
from netmem.base.native import load64, memcpy, store64, store_be32, store_release
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
from netmem.memory.kernels import pp_alloc, pp_alloc_bulk, pp_put, pp_put_bulk
from netmem.memory.layout import P_DMA, P_HOST
from netmem.netdev.ring import S_MASK, S_RING

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
