"""The arithmetic of a netmem_ref, said once, for kernels and Python (``netmem`` has what the bits mean)."""

from __future__ import annotations

from netmem.base.arena import Words
from netmem.base.jit import inline_kernel

NET_IOV = 1
INDEX_SHIFT = 1
INDEX_MASK = (1 << 31) - 1
AREA_SHIFT = 32
AREA_MAX = (1 << 16) - 1
NOT_INDEX = ~(INDEX_MASK << INDEX_SHIFT)


@inline_kernel
def index_of(ref: int) -> int:
    """The number of a netmem in its area."""
    return (ref >> INDEX_SHIFT) & INDEX_MASK


def indexes_of(refs: Words) -> Words:
    """``index_of`` each of an array."""
    return (refs >> INDEX_SHIFT) & INDEX_MASK


@inline_kernel
def area_id_of(ref: int) -> int:
    """The area that a netmem is a piece of."""
    return ref >> AREA_SHIFT


@inline_kernel
def tag_of(ref: int) -> int:
    """What all netmems of an area have in common: the reference to its netmem 0."""
    return ref & NOT_INDEX


@inline_kernel
def ref_of(tag: int, index: int) -> int:
    """The reference to netmem ``index`` of the area with this tag."""
    return tag | index << INDEX_SHIFT


@inline_kernel
def offset_of(ref: int, shift: int) -> int:
    """Byte offset of a netmem of ``1 << shift`` bytes in its area's memory."""
    return ((ref >> INDEX_SHIFT) & INDEX_MASK) << shift
