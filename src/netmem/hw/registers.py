"""Registers as data: a table of names, offsets and fields, and one way to use it.

Reading, writing, changing fields, dumping and names all derive from the table; a driver's table
stands in its own room (``drivers/igb/regs.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class RegisterIo(Protocol):
    """32-bit access to a device's registers, by byte offset."""

    def read32(self, offset: int) -> int: ...
    def write32(self, offset: int, value: int) -> None: ...


@dataclass(frozen=True)
class Register:
    """A register, or ``count`` of them ``stride`` bytes apart.

    ``fields`` maps a field's name to (lowest bit, width). ``access``: "rw", "ro", "wo", or "rc" when
    reading clears it. ``section`` is where the data sheet describes it.
    """

    offset: int
    fields: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    count: int = 1
    stride: int = 4
    access: str = "rw"
    section: str = ""

    def encode(self, value: int, **fields: int) -> int:
        """``value`` with ``fields`` set. ValueError for a value that its field cannot hold."""
        for name, number in fields.items():
            low, width = self.fields[name]
            if not 0 <= number < 1 << width:
                raise ValueError(f"{number} does not fit the {width} bits of {name}")
            value = value & ~(((1 << width) - 1) << low) | number << low
        return value

    def decode(self, value: int) -> dict[str, int]:
        """The fields of ``value`` by name."""
        return {name: value >> low & (1 << width) - 1 for name, (low, width) in self.fields.items()}


class RegisterFile:
    """The registers of one device, by name and, where there are several, number."""

    def __init__(self, io: RegisterIo, table: Mapping[str, Register]) -> None:
        self._io, self.table = io, table

    def offset(self, name: str, n: int = 0) -> int:
        """Byte offset of a register. IndexError for a number that it does not have."""
        register = self.table[name]
        if not 0 <= n < register.count:
            raise IndexError(f"{name}[{n}]: there are {register.count}")
        return register.offset + n * register.stride

    def read(self, name: str, n: int = 0) -> int:
        """The register's value."""
        return self._io.read32(self.offset(name, n))

    def get(self, name: str, field: str, n: int = 0) -> int:
        """One field of the register."""
        return self.table[name].decode(self.read(name, n))[field]

    def write(self, name: str, value: int = 0, n: int = 0, **fields: int) -> None:
        """Write ``value`` with ``fields`` set in it."""
        self._io.write32(self.offset(name, n), self.table[name].encode(value, **fields))

    def modify(self, name: str, n: int = 0, **fields: int) -> None:
        """Change ``fields`` and leave the others as they are."""
        self.write(name, self.read(name, n), n, **fields)

    def dump(self) -> dict[str, int]:
        """Every register that can be read without a side effect, by name."""
        found = {}
        for name, register in self.table.items():
            if register.access not in ("rw", "ro"):
                continue
            for n in range(register.count):
                found[name if register.count == 1 else f"{name}[{n}]"] = self.read(name, n)
        return found
