"""Modes: fields and constants that only a mode has which is not judged (XDP, AF_XDP, self tests, no page
pool).

A field belongs to such a mode when whatever it is set to, other than zero, is set where that mode is known
to be at work; a constant when it is stored nowhere else. Both are concluded when all that is written is
known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from netmem.contract.lint.nodes import Expr
from netmem.contract.lint.places import Cell

Site = tuple[Any, int]  # who writes (a function in a context), and on which line
MAX_WRITES = 64


class Modes:
    """Of one driver. ``fields`` and ``constants``: those of modes that are not judged."""

    def __init__(self) -> None:
        self.fields: set[Cell] = set()
        self.constants: set[str] = set()
        self._writes: dict[Cell, dict[Site, tuple[bool, frozenset[tuple[Expr, bool]]]]] = defaultdict(dict)
        self._stored: dict[str, dict[Site, bool]] = defaultdict(dict)
        self._pool: set[tuple[Expr, bool]] = set()

    def pool_kept(self, conds: frozenset[tuple[Expr, bool]]) -> None:
        """A pool is kept in a field under these conditions."""
        self._pool |= conds

    def written(self, cell: Cell, site: Site, aside: bool, conds: frozenset[tuple[Expr, bool]]) -> None:
        """A field is set to something."""
        writes = self._writes[cell]
        if site in writes or len(writes) < MAX_WRITES:
            writes[site] = aside, conds

    def stored(self, constant: str, site: Site, aside: bool) -> None:
        """A constant is stored, or a bit set."""
        self._stored[constant][site] = aside

    def conclude(self, alive: Callable[[Any], bool], unseen: Callable[[str], bool]) -> set[str]:
        """Names of fields and constants of which something else is known now.

        ``alive``: a writer is called; ``unseen``: a constant is stored where nobody has looked, too.
        """
        fields, constants = set(), set()
        for cell, writes in self._writes.items():
            live = [one for (key, _), one in writes.items() if alive(key)]
            if live and len(writes) < MAX_WRITES and all(
                aside or any((cond, not positive) in self._pool for cond, positive in conds) for aside, conds
                in live
            ):  # fmt: skip
                fields.add(cell)
        for name, sites in self._stored.items():
            live_sites = [aside for (key, _), aside in sites.items() if alive(key)]
            if live_sites and all(live_sites) and not unseen(name):
                constants.add(name)
        news = {name for _, name in fields ^ self.fields} | (constants ^ self.constants)
        self.fields, self.constants = fields, constants
        return news
