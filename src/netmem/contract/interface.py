"""Whether a class has what a driver has (``netmem.netdev.driver.Driver``), before anything runs."""

from __future__ import annotations

import inspect
from typing import Any

from netmem.netdev.driver import Driver, EthtoolOps, NetDeviceOps, QueueMgmtOps

TABLES = (NetDeviceOps, EthtoolOps, QueueMgmtOps, Driver)
JUDGED = {"netmem_tx"}  # a requirement of its own (TX2)


def lacks(made: Any) -> list[str]:
    """What of the tables of operations is missing in class ``made``, or takes other arguments, in words."""
    found = []
    if not _takes(made, ("bus",)):
        found.append(f"{_said(made, '__init__')} instead of __init__(self, bus)")
    for table in TABLES:
        for name, kind in inspect.get_annotations(table).items():
            has = hasattr(made, name) or _at_run_time(made, name)
            if "ClassVar" in str(kind) and name not in JUDGED and not has:
                found.append(name)
        for name, wanted in vars(table).items():
            if name.startswith("_") or not inspect.isfunction(wanted):
                continue
            names = tuple(inspect.signature(wanted).parameters)
            has = inspect.getattr_static(made, name, None)
            if has is None:
                if not _at_run_time(made, name):
                    found.append(f"{name}()")
            elif inspect.isfunction(has) and not _takes(has, names):
                found.append(f"{_said(made, name)} instead of {name}({', '.join(names)})")
    return found


def _at_run_time(made: Any, name: str) -> bool:
    """Whether instances may have what their class has not: by __getattr__, or set in __init__."""
    if hasattr(made, "__getattr__"):
        return True
    inits = [vars(one).get("__init__") for one in inspect.getmro(made)]
    return any(name in init.__code__.co_names for init in inits if inspect.isfunction(init))


def _takes(func: Any, names: tuple[str, ...]) -> bool:
    """Whether a function can be called with so many arguments; True where nobody can tell."""
    try:
        inspect.signature(func).bind(*names)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _said(made: Any, name: str) -> str:
    try:
        return f"{name}{inspect.signature(getattr(made, name))}"
    except (TypeError, ValueError):
        return name
