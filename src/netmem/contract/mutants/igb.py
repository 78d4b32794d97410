"""The same mistakes in drivers of an 82576: ``netmem check netmem.contract.mutants.igb:FlagAlways``."""

from typing import Any

from netmem.contract.mutants import IGB


def __getattr__(name: str) -> Any:
    """igb's driver with this mistake."""
    if name in IGB:
        return IGB[name]
    raise AttributeError(f"module {__name__} has no attribute {name}")
