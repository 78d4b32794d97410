"""Memory of another PCI device: a BAR that the NIC writes peer to peer."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from netmem.base.arena import PAGE_SIZE
from netmem.base.dma import DmaDevice, DmaDirection
from netmem.memory.provider import AreaProvider, check_size


class BarProvider(AreaProvider):
    """``size`` bytes of a BAR at bus address ``address`` (PCI peer-to-peer DMA, drivers/pci/p2pdma.c).

    ``fd`` is the BAR's file, as /sys/bus/pci/devices/.../resource2 is; only the application that asks
    for a view maps it. The provider owns ``fd``; ``release`` is called when it was closed and no
    device writes to it any more.
    Errors: EINVAL, ERANGE for sizes.
    """

    name = "bar"
    unreadable = True

    def __init__(
        self,
        fd: int,
        size: int,
        address: int,
        *,
        rx_page_size: int = PAGE_SIZE,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        check_size(size, rx_page_size)
        self.address, self._on_release = address, release
        super().__init__(fd, size, rx_page_size, net_iov=True, address=0)

    def _map_for(self, dma: DmaDevice, direction: DmaDirection) -> int:
        """dma_map_resource(): the other device's memory is there already, it only needs an I/O address."""
        return dma.dma_map_resource(self.address, self.size)

    def _key(self, dma: DmaDevice | None, direction: DmaDirection) -> tuple[int, int]:
        return id(dma), 0  # one address, whichever way the bytes go

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "bus_address": self.address}

    def _release(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def _unused(self) -> None:
        release, self._on_release = self._on_release, lambda: None
        release()
