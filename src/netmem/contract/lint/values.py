"""What an expression may hold, and what follows from it: asked without any effect of its own."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from netmem.contract.lint import api
from netmem.contract.lint.cfg import TRANSPARENT
from netmem.contract.lint.csource import Function
from netmem.contract.lint.kinds import decides
from netmem.contract.lint.labels import (
    ALL_READABLE,
    ASKED,
    CARRIED,
    EMPTY,
    FIRST,
    FLAGS,
    NO_FACTS,
    NO_POOL,
    PACKET,
    PROGRAM,
    READABLE,
    SPLIT,
    UNREADABLE,
    XDP,
    Answer,
    Event,
    Fact,
    Facts,
    Label,
    Labels,
    Point,
    both,
    covers,
    memory,
    split_name,
)
from netmem.contract.lint.modes import Modes
from netmem.contract.lint.nodes import (
    Addr,
    Assign,
    Binary,
    Call,
    Case,
    Config,
    Deref,
    Expr,
    Field,
    Id,
    Index,
    Inner,
    Num,
    Other,
    Ternary,
    Unary,
    is_zero,
)
from netmem.contract.lint.places import Cell, Memory, Scope, Types, path_of
from netmem.contract.lint.selection import Selection
from netmem.contract.lint.world import World

Key = tuple[int, Any]  # a function, and the pools and objects that it is given
_MAKES = frozenset((b"page_pool_create", b"page_pool_params"))
COMPARES = frozenset(("==", "!=", "<", ">", "<=", ">=", "&&", "||"))
DESCRIPTOR_SHARE = 3  # a structure of which a third of the fields has an endianness is the device's


def carried(labels: Labels) -> Labels:
    """What is left of values that are compared."""
    return frozenset(x for x in labels if x in CARRIED or x.kind == "count") if labels else labels


# Conditions that follow split: whether all is readable when one is true, and when it is not.
Conditions = dict[Expr, tuple[bool, bool]]


class Frame(Scope):
    """One look at a function. ``locals``: its names; ``point``: what is known now."""

    __slots__ = (
        "answer", "asked", "block", "conditions", "entry", "events", "kept", "key", "kinds", "locals",
        "point", "returns", "sites",
    )  # fmt: skip

    def __init__(self, function: Function, key: Key, entry: Facts) -> None:
        super().__init__(function)
        self.types.update(function.types)
        self.key, self.entry = key, entry
        self.point = Point({}, entry, {}, {})
        self.locals = self.types.keys()
        self.returns: Labels = EMPTY
        self.answer: Answer | None = None
        self.block: Any = None  # whose events are noted now
        self.events: dict[Any, set[Event]] = {}
        self.sites: dict[Key, Facts] = {}  # what it calls -> what is known at every such call
        self.kept: dict[str, Facts] = {}  # fields that were given what a user asked for -> conditions there
        self.conditions: Conditions = {}
        self.kinds: dict[str, Facts] = {}  # constants that it returns -> what holds then
        self.asked: dict[Expr, Labels] = {}  # conditions on what a user asks set_ringparam for


class Values:
    """Of one driver. ``returned``: what functions return, by id; ``answers``: what their results say, by
    key."""

    def __init__(self, world: World, selection: Selection, keeps_aside: bool = False) -> None:
        self.world, self.selection, self.keeps_aside = world, selection, keeps_aside
        self.types = Types(world)
        self.memory = Memory(world, self.types)
        self.returned: dict[int, Labels] = defaultdict(lambda: EMPTY)
        self.answers: dict[int, Answer] = {}
        self.kinds: dict[int, dict[str, Facts]] = {}  # of functions that return constants
        self.modes = Modes()
        # (file, function, local or parameter) -> what it holds at any time; "" is what the function returns
        self.locals: dict[tuple[str, str, str], Labels] = defaultdict(lambda: EMPTY)
        self.handed_on: set[str] = set()  # functions not known here that are given structures with buffers
        self._devices: dict[str, bool] = {}

    # -- labels --------------------------------------------------------------------------------

    def labels(self, f: Frame, e: Expr) -> Labels:
        """What an expression may hold."""
        match e:
            case Id(name=name):
                return self._name(f, name)
            case Field():
                return self.field(f, e)
            case Index(base=of) | Deref(of=of):
                return self.labels(f, of)
            case Addr(of=of):
                return self.labels(f, of) | self.memory.base(f, f.point.env, of)
            case Binary(op="==" | "!=", left=left, right=right) if self.is_itself(f, left, right):
                return EMPTY
            case Binary(op=op, left=left, right=right):
                found = self.labels(f, left) | self.labels(f, right)
                return carried(found) if op in COMPARES else found
            case Unary(of=of):
                return self.labels(f, of)
            case Ternary(then=then, other=other):
                return self.labels(f, then) | self.labels(f, other)
            case Assign(left=left):
                return self.labels(f, left)
            case Call():
                return self._result(f, e)
            case Other(parts=[*_, last]):
                return self.labels(f, last)
        return EMPTY

    def _name(self, f: Frame, name: str) -> Labels:
        if name in f.locals:
            return f.point.env.get(name, EMPTY)
        found = self.memory.constant(name) | self.memory.variable(name)
        if name in self.selection.known:
            found |= {Label("fn", name)}
        elif name.isupper() and not name.startswith("ETHTOOL_") and split_name(name):
            found |= SPLIT
        return found

    def field(self, f: Frame, e: Field) -> Labels:
        """A field's own, and what its name and its structure say."""
        found = self.memory.load(f, f.point.env, e)
        if e.base.__class__ is Field or f.point.env:
            found |= self.memory.base(f, f.point.env, e)
        name = e.name
        if name in api.SPLIT_FIELDS:
            found |= SPLIT if name not in api.ASKED_FIELDS else SPLIT | {ASKED}
        elif split_name(name) and PACKET not in found and not self._is_descriptor(self.types.tag(f, e.base)):
            found |= SPLIT
        if self._is_descriptor(self.types.tag(f, e.base)):
            found |= {PACKET}
        return found

    def _is_descriptor(self, tag: str) -> bool:
        known = self._devices.get(tag)
        if known is None:
            types = list(self.world.structs.get(tag, {}).values())
            ordered = sum(one.startswith(("__le", "__be")) for one in types)
            known = self._devices[tag] = ordered * DESCRIPTOR_SHARE > len(types)
        return known

    def _result(self, f: Frame, e: Call) -> Labels:
        name = e.name
        if name in api.SPLIT_CALLS:
            return SPLIT
        if name in api.RUNS_XDP:
            return frozenset({PROGRAM})
        if name in api.COUNTS and e.args:
            return frozenset(x._replace(kind="count") for x in memory(self.labels(f, e.args[0])))
        found = EMPTY
        for arg in e.args:
            found |= carried(self.labels(f, arg))
        at = api.SAME.get(name)
        if at is not None and at < len(e.args):
            return found | self.labels(f, e.args[at])
        target = self.world.function(name, f.function.path) if name else None
        return found | self.returned[id(target)] if target is not None else found

    def is_itself(self, f: Frame, left: Expr, right: Expr) -> bool:
        """True when something is compared with itself, under whatever name."""
        path = self.path(f, left)
        return path is not None and path == self.path(f, right)

    # -- conditions ----------------------------------------------------------------------------

    def path(self, f: Frame, e: Expr) -> tuple[str, ...] | None:
        """The place that an expression is about."""
        return path_of(e, f.point.alias)

    def is_readable(self, f: Frame, e: Expr | None) -> bool:
        """True when a guard says that what an expression is about can be read."""
        facts = f.point.facts
        if ALL_READABLE in facts:
            return True
        guards = [x.of for x in facts if x.kind == "readable"]
        if not guards or e is None:
            return False
        used = self.path(f, e)
        return used is not None and any(covers(one, used) for one in guards)

    def is_split(self, f: Frame, cond: Expr) -> bool:
        """True when a condition follows header split, or whether there is a provider."""
        match cond:
            case Case(subject=subject):
                return self.is_split(f, subject)
            case Config():
                return False
        held = self.labels(f, cond)
        return bool(held & FLAGS) and PACKET not in held

    def truth(self, f: Frame, cond: Expr, outcome: bool) -> Facts:
        """What holds when a condition is true, or when it is not."""
        match cond:
            case Unary(op="!", of=of):
                return self.truth(f, of, not outcome)
            case Binary(op="&&" | "||" as op, left=left, right=right):
                a, b = self.truth(f, left, outcome), self.truth(f, right, outcome)
                return a | b if (op == "&&") == outcome else both(a, b)
            case Binary(op="==" | "!=" as op, left=left, right=right):
                return self._compared(f, left, right, outcome == (op == "=="))
            case Binary(op="&", left=left, right=right):
                found = self._flags(self.labels(f, left) | self.labels(f, right), outcome)
                return found | {XDP} if outcome and self._is_of_mode(right, left) else found
            case Binary(op=">", left=left, right=right) if is_zero(right):
                return self.truth(f, left, outcome)
            case Call():
                return self._called(f, cond, outcome)
            case Assign(left=left, right=right):
                return self.truth(f, right, outcome) | self.truth(f, left, outcome)
            case Id() | Field() | Index() | Deref():
                return self._value(f, cond, outcome)
            case Ternary(cond=asked, then=then, other=other):
                return self._chosen(f, asked, then, other, outcome)
            case Case(subject=subject, values=[one]):
                return self._compared(f, subject, one, outcome)
            case Other(parts=[*_, last]) | Inner(body=[*_, Assign() as last]):
                return self.truth(f, last, outcome)
        return NO_FACTS

    def answer(self, f: Frame, e: Expr) -> Answer:
        """What follows when this value, taken here, turns out to be true, and when not."""
        here = frozenset(x for x in f.point.facts if x.kind != "cond")
        if is_zero(e):
            return Answer(None, here)
        match e:
            case Num() | Unary(op="-"):
                return Answer(here, None)
            case Id() | Field() if self.local_name(f, e) in f.point.answers:
                true, false = f.point.answers[self.local_name(f, e)]
                return Answer(None if true is None else true | here, None if false is None else false | here)
        return Answer(here | self.truth(f, e, True), here | self.truth(f, e, False))

    def _chosen(self, f: Frame, cond: Expr, then: Expr, other: Expr, outcome: bool) -> Facts:
        ways = []
        for way, part in ((True, then), (False, other)):
            if isinstance(part, Num) and is_zero(part) == outcome:
                continue
            ways.append(self.truth(f, cond, way) | self.truth(f, part, outcome))
        return functools.reduce(both, ways) if ways else NO_FACTS

    def _compared(self, f: Frame, left: Expr, right: Expr, equal: bool) -> Facts:
        if is_zero(right):
            return self.truth(f, left, not equal)
        if is_zero(left):
            return self.truth(f, right, not equal)
        if isinstance(right, Num) and right.text in ("1", "true"):
            return self.truth(f, left, equal)
        if not isinstance(right, Id):
            return NO_FACTS
        kinds = self._of_kinds(f, left, lambda kind: (kind == right.name) == equal)
        if kinds:
            return kinds
        if equal and self._is_of_mode(right):
            return frozenset({XDP})
        held = self.labels(f, left)
        if PROGRAM in held:
            return frozenset({XDP}) if equal != right.name.endswith("PASS") else NO_FACTS
        if held & FLAGS and PACKET not in held:
            if right.name.endswith("ENABLED"):
                return self._flags(held, equal)
            if right.name.endswith("DISABLED"):
                return self._flags(held, not equal)
        return NO_FACTS

    def _is_of_mode(self, *operands: Expr) -> bool:
        """True for a constant that only a mode has which is not judged."""
        return any(isinstance(one, Id) and one.name in self.modes.constants for one in operands)

    @staticmethod
    def _flags(held: Labels, outcome: bool) -> Facts:
        """What a flag that follows these says."""
        facts = set()
        if PACKET not in held:
            if (Label("unsplit") if outcome else Label("split")) in held:
                facts.add(ALL_READABLE)
        return frozenset(facts)

    def _called(self, f: Frame, e: Call, outcome: bool) -> Facts:
        name = self.world.meant(e.name)
        if name in TRANSPARENT and e.args:
            return self.truth(f, e.args[0], outcome)
        if name in api.POOL_TESTS:
            return frozenset({ALL_READABLE}) if not outcome else NO_FACTS
        if name in api.NET_IOV_TESTS or name in api.READABLE_TESTS:
            if outcome != (name in api.READABLE_TESTS) or not e.args:
                return NO_FACTS
            path = self.path(f, e.args[0])
            return frozenset({Fact("readable", path) if path is not None else ALL_READABLE})
        if name == "skb_headlen":
            return frozenset({FIRST}) if not outcome else NO_FACTS
        if name in api.WHOLE_TESTS:
            return frozenset({ALL_READABLE}) if outcome else NO_FACTS
        if name in api.TESTS_BIT and e.args and outcome and self._is_of_mode(e.args[0]):
            return frozenset({XDP})
        target = self.world.function(name, f.function.path) if name else None
        if target is None:  # most of the kernel's return an error, which says nothing of what they are given
            says = name in api.SAME or name in api.TESTS_BIT or name in api.SPLIT_CALLS
            return self._flags(self._result(f, e) if says else EMPTY, outcome) | self._typed(f, e, outcome)
        known = self.answers.get(id(target))
        facts = (known.true if outcome else known.false) if known is not None else None
        found = self._typed(f, e, outcome) | self._flags(self.returned[id(target)], outcome)
        if facts:
            found |= self.translated(f, target, e.args, facts)
        for (_, param), arg in zip(target.params, e.args, strict=False):
            found |= self._of_kinds(f, arg, functools.partial(decides, target, param, outcome))
        return found

    def _of_kinds(self, f: Frame, e: Expr, may_be: Callable[[str], bool]) -> Facts:
        """What holds when a function has returned one of the constants that it may be."""
        said = self.world.function(e.name, f.function.path) if isinstance(e, Call) and e.name else None
        kinds = self.kinds.get(id(said)) if said is not None else None
        if said is None or not kinds or not isinstance(e, Call):
            return NO_FACTS
        ways = [self.translated(f, said, e.args, facts) for kind, facts in kinds.items() if may_be(kind)]
        return functools.reduce(both, ways) if ways else NO_FACTS

    def translated(self, f: Frame, target: Function, args: list[Expr], facts: Facts) -> Facts:
        """Facts of a function that is called, in the words of its caller."""
        found = set()
        places = {name: arg for (_, name), arg in zip(target.params, args, strict=False)}
        for fact in facts:
            if fact.kind != "readable" or not fact.of:
                found.add(fact)
            elif fact.of[0] in places:
                path = self.path(f, places[fact.of[0]])
                if path is not None:
                    found.add(Fact("readable", path + fact.of[1:]))
        return frozenset(found)

    def handed(self, f: Frame, target: Function, args: list[Expr]) -> Facts:
        """What a function that is called may rely on, in its own words."""
        found = set()
        paths = [(name, self.path(f, arg)) for (_, name), arg in zip(target.params, args, strict=False)]
        for fact in f.point.facts:
            if fact.kind == "cond":
                continue
            if fact.kind != "readable" or not fact.of:
                found.add(fact)
                continue
            for name, path in paths:
                if path is None or not name:
                    continue
                if fact.of[: len(path)] == path:
                    found.add(Fact("readable", (name, *fact.of[len(path) :])))
                elif covers(fact.of, path):
                    found.add(Fact("readable", (name,)))
        return frozenset(found)

    def local_name(self, f: Frame, e: Expr) -> str:
        """``x``, or ``s.x`` of a structure among the locals; "" for anything else."""
        match e:
            case Id(name=name):
                return name
            case Field(base=Id(name=base), name=name) if base in f.locals and "*" not in f.types.get(
                base, "*"
            ):
                return f"{base}.{name}"
        return ""

    def _value(self, f: Frame, e: Expr, outcome: bool) -> Facts:
        """A variable, or what a place holds, is true or not."""
        name = self.local_name(f, e)
        if name:
            known = f.point.answers.get(name)
            if known is not None:
                facts = known.true if outcome else known.false
                return facts if facts is not None else NO_FACTS
        held = self.labels(f, e)
        found = self._flags(held, outcome) | self._typed(f, e, outcome)
        if outcome and any(x.kind == "va" and x.api == "netmem" for x in held):
            path = self.path(f, e)
            if path is not None:
                found |= {Fact("readable", path)}
        if (READABLE if outcome else UNREADABLE) in held:  # of a buffer, kept beside it
            path = self.path(f, e)
            found |= {Fact("readable", path[:-1] if path is not None and len(path) > 1 else ())}
        if isinstance(e, Field) and outcome:
            cells = self.memory.cells(f, f.point.env, e)
            for cell in cells:
                self.memory.readers[cell[1]].add(f.key)
            if any(cell in self.modes.fields for cell in cells):
                found |= {XDP}
        return found

    def _typed(self, f: Frame, e: Expr, outcome: bool) -> Facts:
        """What it says that a pointer of a type of the kernel's is set."""
        type_ = self.types.of(f, e)
        if (
            not outcome
            and isinstance(e, Field)
            and e.name == "data"
            and "xdp_buff" in self.types.tag(f, e.base)
        ):
            return frozenset({FIRST})
        if "*" not in type_:
            return NO_FACTS
        if outcome:
            return frozenset({XDP}) if api.XDP_TYPE.search(type_) else NO_FACTS
        if "page_pool *" not in type_ or not _MAKES.isdisjoint(f.function.words):
            return NO_FACTS  # whoever makes a pool has none yet
        return frozenset({NO_POOL})


@dataclass(slots=True, eq=False)
class Summary:
    """One function in one context. ``args``, ``returns``, ``outs``: values given, returned, and written
    through pointers; ``sites``: who calls it, and what is known there."""

    function: Function
    args: list[Labels]
    outs: tuple[Labels, ...]
    returns: Labels = EMPTY
    sites: dict[Key, Facts] = field(default_factory=dict)
    entry: Facts = NO_FACTS
    calls: set[Key] = field(default_factory=set)
    events: Iterable[Event] = ()
    conditions: Conditions = field(default_factory=dict)
    asked: dict[Expr, Labels] = field(default_factory=dict)
    looks: int = 0
    busy: bool = False
    depth: int = 0


class Evaluator(Protocol):
    """Who walks a function (``walk.Walk``), for those who do its assignments and calls."""

    values: Values

    def eval(self, f: Frame, e: Expr) -> Labels:
        """What an expression may hold; notes what happens in it."""

    def follows(self, f: Frame, value: Expr) -> Labels:
        """A constant chosen by what follows split follows it too, or its opposite."""

    def taken(self, f: Frame, e: Field) -> None:
        """A buffer is taken from where it was kept."""

    def note(
        self, f: Frame, what: str, call: str, labels: Labels, e: Expr, about: Expr | None,
        cell: Cell | None = None,
    ) -> None:  # fmt: skip
        """Something happens to payload; ``about``: which expression is handled."""


# A function calls another, with these arguments and where this holds; None: that has nothing to
# do with payload.
Called = Callable[[Frame, Function, list[Labels], Facts], Summary | None]
