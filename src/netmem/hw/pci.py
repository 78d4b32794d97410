"""PCI configuration space: header, capabilities and BARs of one function (PCI Local Bus 3.0, PCIe 4.0).

The constants carry the names of the kernel's pci_regs.h.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Protocol

from netmem.base.errors import NetmemError

PCI_VENDOR_ID = 0x00
PCI_COMMAND = 0x04
PCI_COMMAND_MEMORY = 2
PCI_COMMAND_MASTER = 4
PCI_BASE_ADDRESS_0 = 0x10
PCI_BASE_ADDRESS_MEM_TYPE_64 = 4
PCI_PRIMARY_BUS = 0x18
PCI_PREF_MEMORY_BASE = 0x24
PCI_PREF_BASE_UPPER32 = 0x28
PCI_PREF_LIMIT_UPPER32 = 0x2C
PCI_CAPABILITY_LIST = 0x34
PCI_CAP_ID_EXP = 0x10
PCI_CAP_ID_MSIX = 0x11
PCI_MSIX_FLAGS = 2
PCI_MSIX_FLAGS_ENABLE = 0x8000
PCI_EXP_SLTCTL = 0x18
PCI_EXP_SLTCTL_PIC = 0x0300
PCI_EXP_SLTCTL_PWR_IND_ON = 0x0100
PCI_EXP_SLTCTL_PCC = 0x0400  # power off
PCI_EXP_SLTSTA = 0x1A
BRIDGE_WINDOW = 1 << 20  # granularity of a bridge's memory window


class ConfigSpace(Protocol):
    """Access to the configuration space of every function, by (bus, device, function)."""

    def config_read(self, bdf: tuple[int, int, int], offset: int, size: int) -> int: ...
    def config_write(self, bdf: tuple[int, int, int], offset: int, size: int, value: int) -> None: ...


class PciFunction:
    """One function at (bus, device, function)."""

    def __init__(self, space: ConfigSpace, bus: int, device: int, function: int = 0) -> None:
        self._space, self.bdf = space, (bus, device, function)

    def read(self, offset: int, size: int = 4) -> int:
        """Read ``size`` bytes (1, 2 or 4) of configuration space."""
        return self._space.config_read(self.bdf, offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        """Write ``size`` bytes of configuration space."""
        self._space.config_write(self.bdf, offset, size, value)

    @property
    def device_id(self) -> tuple[int, int]:
        """(vendor, device); (0xffff, 0xffff) when nobody answers."""
        word = self.read(PCI_VENDOR_ID)
        return word & 0xFFFF, word >> 16

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """(id, offset) of each capability."""
        at = self.read(PCI_CAPABILITY_LIST, 1) & ~3
        for _ in range(48):  # as many as fit: a broken list must not hold us
            if not at:
                return
            head = self.read(at, 2)
            yield head & 0xFF, at
            at = head >> 8 & ~3

    def capability(self, wanted: int) -> int:
        """Offset of a capability. ENODEV when the function does not have it."""
        for found, at in self.capabilities():
            if found == wanted:
                return at
        raise NetmemError(errno.ENODEV, f"PCI function {self.name} has no capability {wanted:#x}")

    def bar_size(self, index: int) -> int:
        """Bytes that a memory BAR decodes, 0 when there is none; its address is put back."""
        at = PCI_BASE_ADDRESS_0 + 4 * index
        before = self.read(at)
        wide = before & 7 == PCI_BASE_ADDRESS_MEM_TYPE_64
        high = self.read(at + 4) if wide else 0
        self.write(at, 0xFFFFFFFF)
        mask = self.read(at) & ~0xF
        if wide:
            self.write(at + 4, 0xFFFFFFFF)
            mask |= self.read(at + 4) << 32
            self.write(at + 4, high)
        self.write(at, before)
        return mask & -mask

    def assign_bar(self, index: int, address: int) -> None:
        """Place a memory BAR. EINVAL for an address that is not aligned to its size."""
        size = self.bar_size(index)
        if not size or address % size:
            raise NetmemError(errno.EINVAL, f"BAR {index} of {self.name} cannot be at {address:#x}")
        at = PCI_BASE_ADDRESS_0 + 4 * index
        wide = self.read(at) & 4
        self.write(at, address & 0xFFFFFFFF)
        if wide:
            self.write(at + 4, address >> 32)

    def enable(self, *, master: bool = False) -> None:
        """Let the function answer at its memory BARs, and as a bus master reach others'."""
        self.write(PCI_COMMAND, PCI_COMMAND_MEMORY | (PCI_COMMAND_MASTER if master else 0), 2)

    def disable(self) -> None:
        """No memory accesses, neither way."""
        self.write(PCI_COMMAND, 0, 2)

    @property
    def name(self) -> str:
        """As lspci writes it: bus:device.function."""
        return "{:02x}:{:02x}.{}".format(*self.bdf)


class RootPort(PciFunction):
    """A PCIe root port with a hot-plug slot, behind which one function lives (PCIe 4.0, 6.7)."""

    def __init__(self, space: ConfigSpace, device: int, function: int, secondary: int) -> None:
        super().__init__(space, 0, device, function)
        self.secondary = secondary
        self._exp = 0

    def power_on(self, address: int, length: int) -> None:
        """Power the slot, and open the port's window for ``length`` bytes at ``address``."""
        self._exp = self._exp or self.capability(PCI_CAP_ID_EXP)
        self.write(PCI_PRIMARY_BUS, self.secondary << 8 | self.secondary << 16)
        self.write(self._exp + PCI_EXP_SLTCTL, PCI_EXP_SLTCTL_PWR_IND_ON, 2)
        last = address + max(length, BRIDGE_WINDOW) - 1
        window = (address >> 16 & 0xFFF0) | (last >> 16 & 0xFFF0) << 16
        self.write(PCI_PREF_MEMORY_BASE, window | 0x0001_0001)
        self.write(PCI_PREF_BASE_UPPER32, address >> 32)
        self.write(PCI_PREF_LIMIT_UPPER32, last >> 32)
        self.enable(master=True)

    def power_off(self) -> None:
        """Acknowledge the slot's events and cut its power: what was asked to go may go now."""
        self._exp = self._exp or self.capability(PCI_CAP_ID_EXP)
        self.write(self._exp + PCI_EXP_SLTSTA, self.read(self._exp + PCI_EXP_SLTSTA, 2), 2)
        self.write(self._exp + PCI_EXP_SLTCTL, PCI_EXP_SLTCTL_PCC | PCI_EXP_SLTCTL_PIC, 2)
