"""Where a driver keeps the pages of its payload: fields, and locals, parameters and results of functions."""

from __future__ import annotations

import functools
import re

from netmem.contract.lint.labels import Labels
from netmem.contract.lint.model import Case
from netmem.contract.lint.nodes import Field, Stmt, walk

_PAGE = re.compile(r"^(?:const )?struct page((?: \*|\[\])+)$")
_NETMEM = re.compile(r"^(?:const )?netmem_ref((?: \*|\[\])*)$")


def level(type_: str) -> int:
    """How far a declared type is from memory: 1 for `struct page *`, 2 for a pointer to one or an array of
    them, 0 for other types."""
    match = _PAGE.match(type_)
    return match[1].count("*") + match[1].count("[]") if match else 0


def netmem_level(type_: str) -> int:
    """The same for `netmem_ref`."""
    match = _NETMEM.match(type_)
    return 1 + match[1].count("*") + match[1].count("[]") if match else 0


class Holders:
    """Of one driver. ``cells``: (structure, field); ``locals``: (file, function, name), "" for a result.

    Where pages of headers are kept at the same place they become netmem with the others: a netmem_ref holds
    any page.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self.cells = self._cells()
        self.locals = {key for key, held in case.flow.locals.items() if self._is_payload(held)}

    @functools.cached_property
    def names(self) -> set[str]:
        """Of fields in ``cells``, whichever structure they are of."""
        return {name for _, name in self.cells}

    def _is_payload(self, held: Labels) -> bool:
        return any(x.kind == "buf" and x.of in self._case.payload and x.api == "page" for x in held)

    def _cells(self) -> set[tuple[str, str]]:
        flow, world = self._case.flow, self._case.world
        found = set()
        for (owner, name), held in flow.fields.items():
            tags = [owner] if owner in world.structs else flow.types_of.get(owner, ())
            found |= {(t, name) for t in tags if level(world.field_type(t, name)) and self._is_payload(held)}
        return found

    def names_cell(self, body: list[Stmt]) -> bool:
        """True for statements that name a field which holds pages of payload."""
        return any(isinstance(one, Field) and one.name in self.names for one in walk(body))
