"""What a bus offers a driver: registers, DMA mappings, interrupts, and its device's identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from netmem.base.arena import Words


class Bus(Protocol):
    """A driver does not know which bus it has.

    ``regs``: the register file as words. ``irq_fd``: eventfd of the interrupt. ``device_id``:
    (vendor, device) as in PCI configuration space. The DMA calls are those of the kernel's DMA API.
    """

    device_id: tuple[int, int]
    regs: Words
    irq_fd: int

    def dma_map(
        self, fd: int, offset: int, length: int, direction: int, *, peer: bool = False
    ) -> int: ...
    def dma_unmap(self, io_address: int) -> None: ...
    def dma_bounce(self, io_address: int) -> int: ...
    def sync_for_cpu(self, io_address: int, length: int) -> None: ...
    def sync_for_device(self, io_address: int, length: int) -> None: ...

    def doorbell(self) -> None:
        """Tell the device that rings or registers changed, if it sleeps."""

    def irq_arm(self) -> None:
        """Ask for an interrupt; look for work once more before sleeping."""

    def irq_ack(self) -> None:
        """The interrupt was seen."""

    def wait(self, ready: Callable[[], bool], what: str, timeout_ns: int) -> None:
        """Until ``ready()``; TimeoutError naming ``what``, DeviceGoneError when the device died."""

    def is_alive(self) -> bool:
        """False once the device is gone."""

    def filenos(self) -> list[int]:
        """Descriptors to sleep on beside ``irq_fd``: they become readable when the device goes."""

    def close(self) -> None: ...
