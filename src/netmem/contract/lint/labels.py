"""What is followed, and what is known of it: the vocabulary of flow."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from netmem.contract.lint import api
from netmem.contract.lint.csource import Function
from netmem.contract.lint.lowering import Expr
from netmem.contract.lint.selection import Selection
from netmem.contract.lint.world import World

Labels = frozenset[Any]
EMPTY: Labels = frozenset()
SPLIT: Labels = frozenset({("split",)})
UNSPLIT: Labels = frozenset({("unsplit",)})  # the other way round
READABLE, UNREADABLE = ("readable",), ("unreadable",)  # the result of a guard, kept for later
FLAGS: Labels = SPLIT | UNSPLIT
ANSWERS: Labels = FLAGS | {READABLE, UNREADABLE}
KINDS = ("buf", "dma", "va")
FOLLOWED = {*KINDS, "pool"}  # a field that holds one of these makes whoever names it worth a look
MAX_ROUNDS = 8
MAX_CALLS = 25
MAX_CONTEXTS = 12
MAX_PATH = 2  # fields in the name of an object


@dataclass(frozen=True)
class Event:
    """Something that a rule may care about. ``what``: see the calls of ``_note``."""

    what: str
    call: str
    labels: Labels
    path: str
    line: int
    function: str
    readable: bool  # a guard says that the memory is readable
    xdp: bool  # only for XDP, AF_XDP or self tests, or in a mode without page pool
    conds: tuple[tuple[Expr, bool], ...] = field(default=(), compare=False)


class Frame:
    """One function being looked at."""

    def __init__(self, function: Function, readable: bool, xdp: bool) -> None:
        self.function = function
        self.types: dict[str, str] = {name: type_ for type_, name in function.params if name}
        self.env: dict[str, Labels] = {}
        self.conds: list[tuple[Expr, bool]] = []
        self.marks = [(readable, xdp, False)]  # for each condition and those before it: readable, XDP, split
        self.returns: Labels = EMPTY
        self.dead = False


@dataclass
class Summary:
    """What is known of a function in one context: values given, returned, and written through pointers."""

    returns: Labels
    outs: tuple[Labels, ...]
    args: list[Labels]


class State:
    """What ``Flow`` keeps while it runs; the layers above add what can be asked of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.selection = Selection(world)
        self.fields: dict[tuple[str, str], Labels] = defaultdict(lambda: EMPTY)
        self.objects: dict[str, set[str]] = defaultdict(set)  # structure type -> embedded objects
        self.constants: dict[str, Labels] = defaultdict(lambda: EMPTY)
        self.events: set[Event] = set()
        # (file, function, local or parameter) -> what it holds at any time; "" is what the function returns
        self.locals: dict[tuple[str, str, str], Labels] = defaultdict(lambda: EMPTY)
        self.holds: dict[Any, set[Any]] = defaultdict(set)  # field -> places whose pools it may hold
        self._summaries: dict[Any, Summary] = {}
        self._round: dict[Any, int] = {}
        self._guards: dict[int, tuple[bool, bool]] = {}
        self._next: dict[int, tuple[bool, bool]] = {}
        self._returned: dict[int, Labels] = defaultdict(lambda: EMPTY)
        self._contexts: dict[int, set[Any]] = defaultdict(set)
        self._concluded: dict[tuple[int, bool], tuple[bool, bool]] = {}
        self._implies: dict[tuple[int, bool], tuple[bool, bool]] = {}
        self._pool_conds: set[tuple[int, bool]] = set()
        self._field_conds: dict[tuple[str, str], list[frozenset[tuple[int, bool]]]] = defaultdict(list)
        self._types: dict[int, str] = {}
        self.parameter_types: dict[tuple[int, str], str] = {}  # of macros, as they are called
        self._xdp: dict[tuple[int, bool], bool] = {}
        self.conditions: dict[
            int, tuple[bool, bool, bool]
        ] = {}  # follows split; readable when true, when false
        self._depth = 0
        self._changed = False
        self.number = 0

    def _quiet(self, f: Frame, e: Expr) -> Labels:
        """The labels of an expression, without noting what happens in it."""
        raise NotImplementedError

    def type_of(self, f: Frame, e: Expr) -> str:
        """Declared type of an expression, "" when unknown."""
        raise NotImplementedError

    def cells(self, f: Frame, e: Expr) -> list[tuple[str, str]]:
        """Where a field expression's value is kept: (structure or object, field)."""
        raise NotImplementedError


@functools.cache
def split_name(name: str) -> bool:
    return bool(api.SPLIT_NAME.search(name))


def names(e: Any) -> set[str]:
    """Every identifier in an expression."""
    if not isinstance(e, tuple | list):
        return set()
    if isinstance(e, tuple) and e and e[0] == "id":
        return {e[1]}
    found = {e[2]} if isinstance(e, tuple) and e and e[0] == "field" else set()
    for part in e:
        found |= names(part)
    return found


def line_of(e: Expr) -> int:
    for part in e:
        if isinstance(part, tuple):
            found = part[-1] if part and isinstance(part[-1], int) else line_of(part)
            if found:
                return found
    return 0


def merge(a: dict[str, Labels], b: dict[str, Labels]) -> dict[str, Labels]:
    """What locals may hold where two ways meet."""
    if a == b:
        return a
    return {name: a.get(name, EMPTY) | b.get(name, EMPTY) for name in a.keys() | b.keys()}
