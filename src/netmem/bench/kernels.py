"""Kernels of the benchmarks: rounds of the pool, and descriptors completed as a NIC would."""

from __future__ import annotations

from netmem.base.arena import Words
from netmem.base.checksum import csum_fold
from netmem.base.headers import TcpHdr
from netmem.base.jit import kernel
from netmem.base.native import load_be16, load_be32, memcpy, store_be16, store_be32, store_release
from netmem.base.record import address_of
from netmem.drivers.igb.kernels import rx_desc, rx_word
from netmem.drivers.igb.regs import Rxd
from netmem.hw.softnic.regs import RXD_BYTES_SHIFT, RXD_HEADER_SHIFT, RXD_STATUS, Rxs
from netmem.hw.softnic.regs import RxDesc as SoftDesc
from netmem.memory import calls
from netmem.memory.kernels import pp_alloc, pp_io_address, pp_put
from netmem.memory.layout import PoolRecord
from netmem.netdev.ring import RxRingRecord, slot_of

TCP_AT = 34  # Ethernet and IPv4 headers before it


@kernel
def pool_rounds(at: int, refs: Words, rounds: int) -> int:
    """``rounds`` times: allocate ``len(refs)`` netmems in a bulk, put them in a bulk."""
    n = refs.shape[0]
    for _ in range(rounds):
        calls.alloc_bulk(at, refs, n)
        calls.put_bulk(at, refs, n, True)
    return n * rounds


@kernel
def pool_singles(at: int, refs: Words, rounds: int) -> int:
    """The same one netmem at a time, as a driver's refill does."""
    n, pool = refs.shape[0], PoolRecord.at(at)
    for _ in range(rounds):
        for i in range(n):
            refs[i] = pp_alloc(pool)
        for i in range(n):
            pp_put(pool, refs[i], True)
    return n * rounds


@kernel
def complete(ring_at: int, at: int, n: int, template: int, hlen: int, size: int, seq: int) -> int:
    """Complete ``n`` descriptors of the software NIC from ``at`` with in-order segments of ``size`` bytes."""
    ring = RxRingRecord.at(ring_at)
    pool = PoolRecord.at(ring.header_pool)
    for i in range(n):
        desc = SoftDesc.nth(ring.desc, (at + i) & ring.mask)
        header = pool.host + desc.header - pool.dma
        memcpy(header, template, hlen)
        store_be32(header + TCP_AT + TcpHdr.SEQ, seq + i * size)
        desc.hash = 0
        status = Rxs.DD | Rxs.SPH | Rxs.L3_OK | Rxs.L4_OK
        status |= hlen << RXD_HEADER_SHIFT | size << RXD_BYTES_SHIFT
        store_release(address_of(desc) + RXD_STATUS, status)
    return at + n


@kernel
def number_segments(base: int, n: int, record: int, seq: int, size: int) -> None:
    """Number ``n`` length-prefixed frames from ``seq`` and mend their TCP checksums (RFC 1624)."""
    for i in range(n):
        tcp = base + i * record + 4 + TCP_AT
        old = load_be32(tcp + TcpHdr.SEQ)
        new = (seq + i * size) & 0xFFFFFFFF
        total = load_be16(tcp + TcpHdr.CSUM) ^ 0xFFFF
        total += ((old >> 16) ^ 0xFFFF) + ((old & 0xFFFF) ^ 0xFFFF) + (new >> 16) + (new & 0xFFFF)
        store_be32(tcp + TcpHdr.SEQ, new)
        store_be16(tcp + TcpHdr.CSUM, csum_fold(total))


@kernel
def recycle(ring_at: int) -> int:
    """Take whatever the 82576 completed and post the same buffers again; descriptors taken."""
    ring = RxRingRecord.at(ring_at)
    pool, header_pool = PoolRecord.at(ring.pool), PoolRecord.at(ring.header_pool)
    at, tail = ring.next_to_clean, ring.next_to_use
    first = at
    while at < tail and rx_word(ring, at) & Rxd.DD != 0:
        at += 1
    while tail < at + ring.mask:
        slot, desc = slot_of(ring, tail), rx_desc(ring, tail)
        desc.packet = pp_io_address(pool, slot.netmem) + slot.offset
        desc.header = pp_io_address(header_pool, slot.header_netmem) + slot.header_offset
        tail += 1
    ring.next_to_clean, ring.next_to_use = at, tail
    pool.posted = tail - at
    return at - first
