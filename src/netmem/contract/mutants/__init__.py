"""Drivers that break the contract, each in one plausible way.

They show what the conformance kit catches, and that it catches it: ``netmem check
netmem.contract.mutants:FlagAlways``. ``BREAKS`` says which requirement each of them breaks. They are drivers
of the software NIC; those that are about no NIC's registers are ``netmem.contract.mutants.igb``'s as well.
"""

from typing import Any

from netmem.contract.mutants import payload, pools, recycling, split, transmit
from netmem.contract.mutants.base import BREAKS, IGB, SOFTNIC, payload_rows

__all__ = ["BREAKS", "IGB", "SOFTNIC", "payload", "payload_rows", "pools", "recycling", "split", "transmit"]


def __getattr__(name: str) -> Any:
    """The software NIC's driver with this mistake."""
    if name in SOFTNIC:
        return SOFTNIC[name]
    raise AttributeError(f"module {__name__} has no attribute {name}")
