"""netmem_ref: a 64-bit reference to a piece of network memory (include/net/netmem.h).

0 is none. Bit 0 tells a net_iov from a page, bits 1 to 31 are the index in the area, bits 32 to 47
the area; the rest is zero. A page is the same number with bit 0 clear. Offsets travel beside it.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import NewType

from netmem.base.errors import NetmemError
from netmem.memory.area import area_of
from netmem.memory.ref import AREA_SHIFT, NET_IOV, area_id_of, index_of, offset_of, ref_of

NetmemRef = NewType("NetmemRef", int)
"""netmem_ref: a page or a net_iov, told apart by bit 0."""
Page = NewType("Page", int)
"""struct page *: a netmem reference whose bit 0 is clear."""


@dataclass(frozen=True)
class NetIov:
    """struct net_iov: one piece of an area of memory that the CPU side may be unable to read."""

    area: int
    index: int


def netmem_is_net_iov(netmem: int) -> bool:
    """netmem_is_net_iov(): True for a net_iov, False for a page."""
    return bool(int(netmem) & NET_IOV)


def netmem_to_page(netmem: int) -> Page | None:
    """netmem_to_page(): the page behind ``netmem``, or None for a net_iov."""
    return None if int(netmem) & NET_IOV else Page(int(netmem))


def page_to_netmem(page: Page) -> NetmemRef:
    """page_to_netmem(): the reference to a page. EINVAL when it is no page."""
    if int(page) & NET_IOV:
        raise NetmemError(errno.EINVAL, f"{page:#x} is a net_iov, not a page")
    return NetmemRef(int(page))


def netmem_to_net_iov(netmem: int) -> NetIov | None:
    """netmem_to_net_iov(): the net_iov behind ``netmem``, or None for a page."""
    ref = int(netmem)
    if not ref & NET_IOV:
        return None
    return NetIov(area_id_of(ref), index_of(ref))


def net_iov_to_netmem(niov: NetIov) -> NetmemRef:
    """net_iov_to_netmem(): the reference to a net_iov."""
    return NetmemRef(ref_of(niov.area << AREA_SHIFT | NET_IOV, niov.index))


def netmem_address(netmem: int) -> int | None:
    """netmem_address(): host address of the memory, or None when the CPU side cannot read it."""
    ref = int(netmem)
    area = area_of(area_id_of(ref))
    if area is None or ref & NET_IOV or not area.address:
        return None
    return area.address + offset_of(ref, area.shift)
