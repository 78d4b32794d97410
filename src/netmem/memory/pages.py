"""Pages of the built-in page allocator: what a page pool has without a provider."""

from __future__ import annotations

import os

from netmem.base.arena import Region
from netmem.base.memfd import memfd
from netmem.memory.area import Area


class PageMemory:
    """Pages of the built-in page allocator, for one pool without provider."""

    def __init__(self, name: str, size: int, shift: int, nid: int) -> None:
        self.fd = memfd(name, size)
        self.region = Region(self.fd, size)
        self.area = Area(name, size >> shift, shift, net_iov=False, address=self.region.address, nid=nid)

    def close(self) -> None:
        """Nobody uses the pages any more."""
        self.area.close()
        os.close(self.fd)
