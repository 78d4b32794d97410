"""The PCI function that a guest sees: configuration space, BARs, and MSI-X by eventfd.

A device model brings its BARs; BAR 1 is ours and holds MSI-X table and pending bits. PCI Local Bus 3.0,
chapter 6.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from netmem.base.errors import NetmemError
from netmem.hw import pci
from netmem.hw.vfio_user.dma import DmaTable
from netmem.hw.vfio_user.protocol import CONFIG_REGION

CONFIG_BYTES = 256
MSIX_BAR, MSIX_CAP = 1, 0x40
PBA_OFFSET = 0x800  # of BAR 1
MSIX_BAR_BYTES = 4096
MAX_VECTORS = PBA_OFFSET // 16


class DeviceModel(Protocol):
    """What a model of a PCI device offers. Reads and writes are of BARs, 1, 2, 4 or 8 bytes as a rule.

    Data is in the order in which it lies in memory. A model answers whatever comes: what makes no sense reads
    as all ones and writes nothing.
    """

    vendor: int
    device: int
    revision: int
    class_code: int  # 24 bits
    vectors: int  # of MSI-X

    @property
    def bars(self) -> Mapping[int, int]:
        """Bytes by index of BAR: powers of two from 4096; not MSIX_BAR."""

    def attach(self, dma: DmaTable, signal: Callable[[int], None]) -> None:
        """Get to know the guest's memory, and how a vector is signalled."""

    def read(self, bar: int, offset: int, size: int) -> bytes:
        """Read a BAR."""

    def write(self, bar: int, offset: int, data: bytes) -> None:
        """Write a BAR."""

    def reset(self) -> None:
        """Function-level reset: all as after power on; nothing of the guest's memory is used any more."""


class Function:
    """A model as a PCI function: regions as VFIO numbers them, and its interrupt vectors."""

    def __init__(self, model: DeviceModel) -> None:
        if not 0 < model.vectors <= MAX_VECTORS:
            raise NetmemError(errno.EINVAL, f"{model.vectors} MSI-X vectors: there can be 1 to {MAX_VECTORS}")
        self.model, self.dma = model, DmaTable()
        self._vectors = [-1] * model.vectors
        self.signals = 0
        self._build()
        model.attach(self.dma, self.signal)

    def _build(self) -> None:
        model = self.model
        self._config = config = bytearray(CONFIG_BYTES)
        self._writable = writable = bytearray(CONFIG_BYTES)  # mask: bits that the guest may write
        struct.pack_into("<HH", config, pci.PCI_VENDOR_ID, model.vendor, model.device)
        struct.pack_into("<I", config, 0x08, model.class_code << 8 | model.revision)
        struct.pack_into("<HH", config, 0x2C, model.vendor, model.device)  # subsystem
        config[0x06] = 0x10  # status: a capability list
        config[pci.PCI_CAPABILITY_LIST] = MSIX_CAP
        struct.pack_into("<BBH", config, MSIX_CAP, pci.PCI_CAP_ID_MSIX, 0, model.vectors - 1)
        struct.pack_into("<II", config, MSIX_CAP + 4, MSIX_BAR, PBA_OFFSET | MSIX_BAR)
        struct.pack_into("<H", writable, pci.PCI_COMMAND, 0x0406)  # memory, master, no INTx
        writable[0x0C] = writable[0x3C] = 0xFF  # cache line size, interrupt line
        struct.pack_into("<H", writable, MSIX_CAP + pci.PCI_MSIX_FLAGS, 0xC000)
        for index, size in self.bars().items():
            struct.pack_into("<I", writable, pci.PCI_BASE_ADDRESS_0 + 4 * index, -size & 0xFFFFFFFF)
        self._msix = bytearray(MSIX_BAR_BYTES)

    def bars(self) -> dict[int, int]:
        """Bytes of each BAR, MSI-X's included."""
        return {**self.model.bars, MSIX_BAR: MSIX_BAR_BYTES}

    def region_size(self, index: int) -> int:
        """Bytes of one of VFIO's regions, 0 for one that is not there."""
        return CONFIG_BYTES if index == CONFIG_REGION else self.bars().get(index, 0)

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read a region. EINVAL outside of it."""
        self._check(region, offset, size)
        if region == CONFIG_REGION:
            return bytes(self._config[offset : offset + size])
        if region == MSIX_BAR:
            return bytes(self._msix[offset : offset + size])
        data = self.model.read(region, offset, size)
        return data[:size].ljust(size, b"\xff")

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Write a region. EINVAL outside of it."""
        self._check(region, offset, len(data))
        if region == CONFIG_REGION:
            for at, byte in enumerate(data, offset):
                mask = self._writable[at]
                self._config[at] = self._config[at] & ~mask | byte & mask
        elif region == MSIX_BAR:
            if offset < PBA_OFFSET:
                self._msix[offset : offset + len(data)] = data
        else:
            self.model.write(region, offset, data)

    def _check(self, region: int, offset: int, size: int) -> None:
        if not 0 < size <= self.region_size(region) - offset:
            text = f"{size} bytes at {offset:#x} of region {region} are outside of it"
            raise NetmemError(errno.EINVAL, text)

    def set_vectors(self, start: int, fds: Sequence[int]) -> None:
        """Let vectors from ``start`` on signal these descriptors, which are ours from here; -1: nothing.

        EINVAL for vectors that are not there; the descriptors are closed then.
        """
        if start + len(fds) > len(self._vectors):
            _close(fds)
            text = f"vectors {start} to {start + len(fds) - 1} of {len(self._vectors)}"
            raise NetmemError(errno.EINVAL, text)
        old = self._vectors[start : start + len(fds)]
        self._vectors[start : start + len(fds)] = fds
        _close(old)

    def disable_vectors(self) -> None:
        """No vector signals anything."""
        self.set_vectors(0, [-1] * len(self._vectors))

    def signal(self, vector: int) -> None:
        """Raise an interrupt; nothing happens for one that nobody waits for."""
        if 0 <= vector < len(self._vectors) and self._vectors[vector] >= 0:
            self.signals += 1
            with contextlib.suppress(OSError):  # a counter that is full says the same already
                os.eventfd_write(self._vectors[vector], 1)

    def reset(self) -> None:
        """Function-level reset: registers as after power on. Mappings and vectors, the client's, stay."""
        self._build()
        self.model.reset()

    def close(self) -> None:
        """Let go of the guest's memory and of all descriptors."""
        self.model.reset()
        self.disable_vectors()
        self.dma.unmap_all()


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
