"""Host pages: memory that driver and stack can read, as an area of pages."""

from __future__ import annotations

import os

from netmem.base.arena import PAGE_SIZE, Region
from netmem.base.memfd import memfd
from netmem.memory.provider import AreaProvider, check_size


class PagesProvider(AreaProvider):
    """``size`` bytes of host pages, readable by everyone in this process.

    Bound to a queue it gives frags and tokens like device memory, and ``netmem_address`` works;
    the page pool maps and syncs it as it does ordinary pages. Errors: EINVAL, ERANGE for sizes.
    """

    name = "pages"
    unreadable = False

    def __init__(self, size: int, *, rx_page_size: int = PAGE_SIZE) -> None:
        check_size(size, rx_page_size)
        fd = memfd("pages", size)
        self._region = Region(fd, size)
        super().__init__(fd, size, rx_page_size, net_iov=False, address=self._region.address)

    def _release(self) -> None:
        os.close(self.fd)
        self.fd = -1
