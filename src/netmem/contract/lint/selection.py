"""Which functions of a driver and its libraries are worth looking at, and who calls them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable

from netmem.contract.lint import api
from netmem.contract.lint.csource import Function
from netmem.contract.lint.world import World

PREDICATE_LINES = 16  # of a function that is asked for a condition
CALLER_LEVELS = 3

_INTERFACE = {
    *api.CREATE, *api.ALLOC_NETMEM, *api.ALLOC_PAGE, *api.ALLOC_VA, *api.DMA_ADDRESS, *api.POOL_SYNC,
    *api.RELEASE_PAGE, *api.RELEASE_NETMEM, "tcp_data_split", "libeth_rx_alloc", "page_pool_params",
    "bpf_prog", *api.FRAG_READ,
}  # fmt: skip


_WORDS = {name.encode() for name in _INTERFACE}


class Selection:
    """Of one world. ``known``: names of the functions chosen last; ``callers``: who calls each, by id."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.known: set[str] = set()
        self.callers: dict[int, set[int]] = {}
        self._relevant: dict[int, bool] = {}
        self._handed: dict[int, bool] = {}

    def is_handed_on(self, function: Function) -> bool:
        """True when the driver names a library's function without calling it."""
        known = self._handed.get(id(function))
        if known is None:
            pattern = re.compile(rb"\b%s\b(?!\s*\()" % re.escape(function.name.encode()))
            known = self._handed[id(function)] = function.path.endswith(".c") and any(
                pattern.search(one.text) for one in self.world.own if one.path.endswith(".c")
            )
        return known

    def _is_relevant(self, function: Function) -> bool:
        known = self._relevant.get(id(function))
        if known is None:
            known = self._relevant[id(function)] = bool(api.RELEVANT.search(b" ".join(function.words)))
        return known

    def choose(
        self, everything: list[Function], words: set[bytes], names_one: Callable[[Function], bool]
    ) -> list[Function]:
        """Functions that can matter: those that name an interface, a field of ``words`` as ``names_one``
        sees it, or one of these."""
        chosen = {
            id(f): f for f in everything
            if not _WORDS.isdisjoint(f.words) or self._is_relevant(f)
            or (not words.isdisjoint(f.fields) and names_one(f))
        }  # fmt: skip
        for function in list(chosen.values()):  # predicates that they ask
            for word in function.words:
                for one in self.world.named.get(word.decode(), ()):
                    if one.end - one.line < PREDICATE_LINES:
                        chosen.setdefault(id(one), one)
        callees = {f.name.encode() for f in chosen.values()}
        for _ in range(CALLER_LEVELS):  # who calls them: for what is passed, and for guards
            fresh = [f for f in everything if id(f) not in chosen and not callees.isdisjoint(f.words)]
            chosen.update((id(f), f) for f in fresh)
            callees = {f.name.encode() for f in fresh}
        names = {f.name for f in chosen.values()}
        self.known = names
        callers: dict[int, set[int]] = defaultdict(set)
        for function in chosen.values():
            for word in function.called:
                name = word.decode()
                if name in names and name != function.name:
                    target = self.world.function(name, function.path)
                    if target is not None:
                        callers[id(target)].add(id(function))
        self.callers = callers
        return list(chosen.values())
