"""A netmem's record in its area's arena: where it is, and whose netmem it is (kernels)."""

from __future__ import annotations

from netmem.base.jit import inline_kernel
from netmem.memory.layout import A_COUNT, A_REC, P_AREA, REC_SHIFT, REC_STATE

INDEX_MASK = 0x7FFFFFFF


@inline_kernel
def record(ref):
    """Word offset of a netmem's record in its area's arena."""
    return A_REC + (((ref >> 1) & INDEX_MASK) << REC_SHIFT)


@inline_kernel
def state_of(a, ref):
    """Who holds a netmem: ST_*."""
    return a[record(ref) + REC_STATE] & 0xFF


@inline_kernel
def pp_is_mine(p, a, ref):
    """True when ``ref`` is a netmem of this pool's area."""
    return (ref & ~(INDEX_MASK << 1)) == p[P_AREA] and ((ref >> 1) & INDEX_MASK) < a[A_COUNT]
