"""What an installation without extras lacks, said in one line."""

from __future__ import annotations

import os
from importlib.util import find_spec

EXTRAS = {
    "kernel": ("pyroute2",),
    "lab": ("numpy", "numba", "pyroute2", "pcapng", "debian"),
}

COMPILED: bool = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
"""False when NUMBA_DISABLE_JIT is set: kernels then run as ordinary Python, and Numba need not be there."""


class MissingExtraError(ImportError):
    """A part of netmem that this installation does not have; the message says how to get it."""


def need(extra: str, module: str) -> None:
    """Refuse to import ``module`` without the packages of an extra (see ``pyproject.toml``).

    Numba is not needed where it would not be used (NUMBA_DISABLE_JIT). MissingExtraError.
    """
    wanted = [name for name in EXTRAS[extra] if COMPILED or name != "numba"]
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{module} needs packages that are not here ({', '.join(missing)}): "
            f"pip install 'pynetmem[{extra}]'",
            name=missing[0],
        )
