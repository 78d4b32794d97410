"""The Internet checksum (RFC 1071), and what it is over (kernels)."""

from __future__ import annotations

import struct

from netmem.base.headers import Ip6Ext, Ip6Hdr, IpHdr
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load_be16, load_u8


@kernel
def csum_add(addr: int, n: int, total: int) -> int:
    """Add ``n`` bytes at ``addr`` to a one's complement sum (RFC 1071); even starts only."""
    i = 0
    while i + 1 < n:
        total += load_be16(addr + i)
        i += 2
    if i < n:
        total += load_u8(addr + i) << 8
    return total


@kernel
def csum_fold(total: int) -> int:
    """Fold a sum to 16 bits and complement it."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total) & 0xFFFF


@inline_kernel
def pseudo_sum(ip: int, proto: int, size: int) -> int:
    """Sum of the pseudo header of ``size`` bytes of TCP, UDP or ICMPv6 (RFC 9293, 3.1; RFC 8200, 8.1)."""
    if load_u8(ip) >> 4 == 4:
        return csum_add(ip + IpHdr.SRC, 8, proto + size)
    return csum_add(ip + Ip6Hdr.SRC, 32, proto + size)


@inline_kernel
def ip6_upper(ip: int, have: int, size: int) -> tuple[int, int]:
    """The upper-layer header of an IPv6 packet behind its extension headers: (protocol, offset).

    ``have`` bytes of ``size`` can be read. (-1, 0) when they run out of bounds; a fragment header ends
    the walk as the protocol Ip6Ext.FRAGMENT.
    """
    proto, at = load_u8(ip + Ip6Hdr.NEXT), int(Ip6Hdr.LEN)
    while proto == Ip6Ext.HOPOPTS or proto == Ip6Ext.ROUTING or proto == Ip6Ext.DSTOPTS:
        if at + 8 > have or at + 8 > size:
            return -1, 0
        proto, length = load_u8(ip + at), (load_u8(ip + at + 1) + 1) * 8
        at += length
    if at > have or at > size:
        return -1, 0
    return proto, at


def inet_checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of ``data``; 0 over data that carries a right one."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
