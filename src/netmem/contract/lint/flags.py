"""Which flags reach page_pool_create(): constants followed along each function's graph, through helpers and
callers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from netmem.contract.lint import api
from netmem.contract.lint.cfg import BasicBlock
from netmem.contract.lint.csource import Function
from netmem.contract.lint.nodes import (
    Addr,
    Assign,
    Binary,
    Call,
    Config,
    Declare,
    Deref,
    Do,
    Expr,
    Field,
    Id,
    Index,
    Init,
    Num,
    Other,
    Return,
    Ternary,
    Unary,
    walk,
)
from netmem.contract.lint.world import World

Cond = tuple[Expr, bool]
Conds = frozenset[Cond]
ALWAYS: Conds = frozenset()
MAX_DEPTH = 5
MAX_ROUNDS = 4
START = "?start"
_FLAG = re.compile(r"[A-Za-z_]\w*")


@dataclass
class Flags:
    """``sure``: set on every way here; ``maybe``: flag -> under any of these conjunctions of conditions;
    ``unknown``: names that were not resolved."""

    sure: set[str] = field(default_factory=set)
    maybe: dict[str, set[Conds]] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)

    def copy(self) -> Flags:
        return Flags(set(self.sure), {k: set(v) for k, v in self.maybe.items()}, set(self.unknown))

    def add(self, other: Flags) -> None:
        """|="""
        self.sure |= other.sure
        for name, ways in other.maybe.items():
            self.maybe.setdefault(name, set()).update(ways)
        self.unknown |= other.unknown

    def drop(self, names: Iterable[str]) -> None:
        """&= ~"""
        for name in names:
            self.sure.discard(name)
            self.maybe.pop(name, None)

    def keep(self, mask: Flags) -> None:
        """&="""
        self.drop([x for x in self.sure | self.maybe.keys() if x not in mask.sure and x not in mask.maybe])
        for name in self.sure - mask.sure:
            self.sure.discard(name)
            self.maybe.setdefault(name, set()).update(mask.maybe[name])

    def toggle(self, other: Flags) -> None:
        """^="""
        for name in other.sure:
            if name in self.sure:
                self.sure.discard(name)
            elif name not in self.maybe:
                self.sure.add(name)
        self.unknown |= other.unknown

    def under(self, conds: Conds) -> Flags:
        """The same, where it depends on these."""
        if not conds:
            return self.copy()
        made = Flags(set(), {k: {way | conds for way in v} for k, v in self.maybe.items()}, set(self.unknown))
        for name in self.sure:
            made.maybe.setdefault(name, set()).add(conds)
        return made

    def joined(self, mine: Conds, other: Flags, theirs: Conds) -> Flags:
        """Where two ways meet, taken under these conditions."""
        both = self.sure & other.sure
        made = Flags(both, {}, self.unknown | other.unknown)
        for flags, conds in ((self, mine - theirs), (other, theirs - mine)):
            for name in flags.sure - both:
                made.maybe.setdefault(name, set()).add(conds)
            for name, ways in flags.maybe.items():
                if name not in both:
                    made.maybe.setdefault(name, set()).update(ways)
        return made


@dataclass
class Point:
    """Between two statements: what is in each place, and what holds."""

    flags: dict[str, Flags] = field(default_factory=dict)
    conds: Conds = ALWAYS

    def copy(self) -> Point:
        return Point({k: v.copy() for k, v in self.flags.items()}, self.conds)

    def joined(self, other: Point) -> Point:
        made = Point({}, self.conds & other.conds)
        for place in self.flags.keys() | other.flags.keys():
            a, b = self.flags.get(place), other.flags.get(place)
            if a is None or b is None:
                made.flags[place] = (a or b or Flags()).copy()  # not declared on the other way
            else:
                made.flags[place] = a.joined(self.conds, b, other.conds)
        return made


def key(e: Expr) -> str:
    """A place, by name: ``pp`` and ``&pp``, ``rxr.params`` and ``rxr->params`` are each the same."""
    match e:
        case Id(name=name):
            return name
        case Field(base=base, name=name):
            return f"{key(base)}.{name}"
        case Addr(of=of) | Deref(of=of) | Index(base=of):
            return key(of)
        case Other(parts=[*_, last]):
            return key(last)
    return "?"


class FlagReader:
    """``at_create`` tells what one call of page_pool_create() is given."""

    def __init__(self, world: World) -> None:
        self.world = world

    def at_create(self, path: str, line: int) -> tuple[Flags, Conds]:
        """Flags at the call in that place, and the conditions under which it is made."""
        for function in self._functions():
            if function.path == path and function.line <= line <= function.end:
                return self._in(function, line, set(api.CREATE), 0)
        return Flags(unknown={"?"}), ALWAYS

    def _functions(self) -> list[Function]:
        return [f for found in self.world.named.values() for f in found]

    def _in(
        self, function: Function, line: int, names: set[str], depth: int, position: int = 0
    ) -> tuple[Flags, Conds]:
        """What argument ``position`` of the call on a line has."""
        walker = Walker(self.world, function, depth, line, names)
        walker.run(Point())
        if walker.at is None:
            return Flags(unknown={"?"}), ALWAYS
        point = walker.at
        place = walker.place(walker.args[position]) if position < len(walker.args) else "?"
        flags = point.flags.get(place)
        root = place.partition(".")[0]
        at = next((i for i, (_, name) in enumerate(function.params) if name == root), None)
        if at is not None and depth < MAX_DEPTH and (flags is None or START in flags.unknown):
            # Filled in by whoever calls, and perhaps changed here.
            merged = self._callers(function, at, place[len(root) :], depth)
            if flags is not None:
                merged.add(Flags(flags.sure, flags.maybe))
            return merged, point.conds
        if flags is None:
            flags = self._global(place)
        if flags is None:
            flags = self._stored(place)
        return (flags if flags is not None else Flags(unknown={place})), point.conds

    def _callers(self, function: Function, at: int, suffix: str, depth: int) -> Flags:
        found: Flags | None = None
        name = function.name.encode()
        for caller in self._functions():
            if name not in caller.words or caller is function:
                continue
            calls = [one for one in walk(caller.body) if isinstance(one, Call) and one.name == function.name]
            for call in calls:
                if at >= len(call.args):
                    continue
                flags, conds = self._in(caller, call.line, {function.name}, depth + 1, at)
                if conds and api.FLAGS[3] in flags.sure:
                    flags.maybe.setdefault(api.FLAGS[3], set()).add(conds)
                if found is None:
                    found = flags
                else:
                    found = found.joined(ALWAYS, flags, ALWAYS)
        return found if found is not None else Flags(unknown={f"callers of {function.name}"})

    def _global(self, place: str) -> Flags | None:
        known = self.world.globals.get(place.partition(".")[0])
        if known is None or not isinstance(known[1], Init):
            return None
        return Walker(self.world, None, 0).of_init(known[1], Point())

    def _stored(self, place: str) -> Flags | None:
        """A structure kept in a field: what anybody in the driver puts into its flags."""
        name = place.rpartition(".")[2]
        if name in ("", "?"):
            return None
        found: Flags | None = None
        for other in self._functions():
            if name.encode() not in other.words or b"flags" not in other.words:
                continue
            inner = Walker(self.world, other, 0)
            for where, flags in inner.run(Point()).flags.items():
                if where.rpartition(".")[2] == name or where == name:
                    found = found or Flags()
                    found.add(flags)
        return found


class Walker:
    """Goes through one function; ``at``: what is known at the call on ``line`` that has one of ``names``."""

    def __init__(
        self, world: World, function: Function | None, depth: int, line: int = 0, names: Iterable[str] = ()
    ) -> None:
        self.world, self.function, self.depth, self.line, self.names = (
            world,
            function,
            depth,
            line,
            set(names),
        )
        self.at: Point | None = None
        self.args: list[Expr] = []
        self.alias: dict[str, str] = {}
        self.returned: Flags | None = None
        self._returned_under: Conds = ALWAYS
        self._returns_place = ""

    def run(self, start: Point) -> Point:
        """Along the graph; what is known at the function's end."""
        assert self.function is not None
        blocks = self.function.graph.blocks
        points: dict[BasicBlock, Point] = {}
        end: Point | None = None
        for _ in range(MAX_ROUNDS):
            before = {k: v.copy() for k, v in points.items()}
            arrived: dict[BasicBlock, Point] = {blocks[0]: start.copy()}
            self.at, self.returned, end = None, None, None
            for block in blocks:
                point = arrived.get(block)
                if point is None:
                    continue
                back = before.get(block)  # by an edge that leads back
                point = point.joined(back) if back is not None else point.copy()
                for action in block.actions:
                    self._action(action, point)
                if block.cond is not None:
                    self._visit(block.cond, point)
                if not block.follow:
                    end = point if end is None else end.joined(point)
                for outcome, following in zip((True, False), block.follow, strict=False):
                    way = point
                    if block.cond is not None:
                        way = Point(point.flags, point.conds | {(block.cond, outcome)})
                    into = points if following.number <= block.number else arrived
                    known = into.get(following)
                    into[following] = way.copy() if known is None else known.joined(way)
            if points == before:
                break
        return end if end is not None else start

    def place(self, e: Expr) -> str:
        """Where the structure given to a call is."""
        name = key(e)
        return self.alias.get(name, name)

    def _action(self, action: Do | Declare | Return, point: Point) -> None:
        match action:
            case Do(expr=expr):
                self._visit(expr, point)
            case Declare():
                self._declare(action, point)
            case Return(value=value) if value is not None:
                self._visit(value, point)
                place = self.place(value)
                flags = point.flags[place] if place in point.flags else self.value(value, point)
                if self.returned is None:
                    self.returned, self._returned_under = flags.copy(), point.conds
                else:
                    self.returned = self.returned.joined(self._returned_under, flags, point.conds)
                    self._returned_under &= point.conds

    def _declare(self, one: Declare, point: Point) -> None:
        name, init = one.name, one.init
        if init is None:
            return
        if isinstance(init, Init):
            point.flags[name] = self.of_init(init, point)
            return
        self._visit(init, point)
        if "page_pool_params" not in one.type:
            point.flags[name] = self.value(init, point)
            return
        place = self.place(init)
        if isinstance(init, Call):
            point.flags[name] = self._result(init, point)
        elif "*" in one.type:
            self.alias[name] = place
        elif place in point.flags:
            point.flags[name] = point.flags[place].copy()
        else:
            known = self.world.globals.get(place)
            start = Flags(unknown={START, place})
            point.flags[name] = (
                self.of_init(known[1], point) if known is not None and isinstance(known[1], Init) else start
            )

    def of_init(self, init: Init, point: Point) -> Flags:
        """The flags that an initialiser gives."""
        found = Flags()
        for name, one in init.items:
            self._visit(one, point)
            if name.split(".")[-1] == "flags":
                found = self.value(one, point)
        return found

    def _visit(self, e: Expr, point: Point) -> None:
        """What evaluating an expression does."""
        match e:
            case Assign(right=right):
                self._visit(right, point)
                self._assign(e, point)
            case Call(args=args):
                for arg in args:
                    self._visit(arg, point)
                if e.name:
                    self._call(e, point)
            case _:
                for part in walk(e):
                    if part is not e and isinstance(part, Assign | Call):
                        self._visit(part, point)

    def _assign(self, e: Assign, point: Point) -> None:
        left, right = e.left, e.right
        if isinstance(left, Field) and left.name == "flags":
            place = self.place(left.base)
        elif isinstance(left, Id | Field | Deref):
            place = self.place(left)
            if isinstance(right, Init):  # pp = (struct page_pool_params) { ... }
                point.flags[place] = self.of_init(right, point)
                return
            other = self.place(right)
            if other in point.flags and isinstance(right, Id | Field | Deref) and e.op == "=":
                point.flags[place] = point.flags[other].copy()
                return
        else:
            return
        value = self.value(right, point)
        if e.op == "=":
            point.flags[place] = value
            return
        old = point.flags.setdefault(place, Flags(unknown={START}))
        if e.op in ("|=", "+="):
            old.add(value)
        elif e.op == "&=":
            self._mask(old, right, point)
        elif e.op == "^=":
            old.toggle(value)

    def _mask(self, flags: Flags, mask: Expr, point: Point) -> None:
        """Only what a mask has is kept."""
        if isinstance(mask, Unary) and mask.op == "~":
            flags.drop(self.value(mask.of, point).sure)
        else:
            flags.keep(self.value(mask, point))

    def _call(self, e: Call, point: Point) -> None:
        if e.name in self.names and e.line == self.line:
            self.args = e.args
            self.at = point.copy() if self.at is None else self.at.joined(point)
            return
        if self.depth >= MAX_DEPTH or self.function is None:
            return
        target = self.world.function(e.name, self.function.path)
        if target is None or target is self.function or b"flags" not in target.words:
            return
        for (type_, name), arg in zip(target.params, e.args, strict=False):
            place = self.place(arg)
            if isinstance(arg, Addr | Id | Field) and "page_pool_params" in type_:
                inner = Walker(self.world, target, self.depth + 1)
                start = Point({name: point.flags[place].copy()} if place in point.flags else {})
                end = inner.run(start)
                if name in end.flags:
                    point.flags[place] = end.flags[name]

    def value(self, e: Expr, point: Point) -> Flags:
        """Flags that an expression stands for."""
        match e:
            case Id(name=name):
                return self._name(name, point, 0)
            case Binary(op="|" | "+", left=left, right=right):
                made = self.value(left, point)
                made.add(self.value(right, point))
                return made
            case Binary(op="&", left=left, right=right):
                made = self.value(left, point)
                self._mask(made, right, point)
                return made
            case Binary(op="^", left=left, right=right):
                made = self.value(left, point)
                made.toggle(self.value(right, point))
                return made
            case Binary(op="*", left=left, right=right):
                a, b = self.value(left, point), self.value(right, point)
                flags, cond = (a, right) if a.sure or a.maybe else (b, left)
                return Flags(flags.sure, flags.maybe).under(frozenset({(cond, True)}))
            case Ternary(cond=cond, then=then, other=other):
                yes, no = frozenset({(cond, True)}), frozenset({(cond, False)})
                return self.value(then, point).joined(yes, self.value(other, point), no)
            case Field(base=base, name="flags"):
                return self._held(self.place(base), point)
            case Field() | Deref() | Index():
                return self._held(self.place(e), point)
            case Other(parts=[*_, last]) | Assign(right=last):
                return self.value(last, point)
            case Call():
                return self._result(e, point)
        return Flags()

    @staticmethod
    def _held(place: str, point: Point) -> Flags:
        found = point.flags.get(place)
        return found.copy() if found is not None else Flags(unknown={place})

    def _name(self, name: str, point: Point, depth: int) -> Flags:
        if name in api.FLAGS:
            return Flags({name})
        if name in api.FLAG_GROUPS:
            return Flags(set(api.FLAG_GROUPS[name]))
        if name in point.flags:
            return point.flags[name].copy()
        text = self.world.macros.get(name)
        if text is None or depth > 8:
            return Flags() if name.isupper() else Flags(unknown={name})
        made = Flags()
        for word in _FLAG.findall(text):
            made.add(self._name(word, Point(), depth + 1))
        return made

    def _result(self, e: Call, point: Point) -> Flags:
        """What a helper returns: flags, or a structure that has them."""
        target = self.world.function(e.name, self.function.path if self.function else "") if e.name else None
        if target is None or self.depth >= MAX_DEPTH or target is self.function:
            return Flags(unknown={e.name or "a call"})
        inner = Walker(self.world, target, self.depth + 1)
        start = Point()
        for (_, name), arg in zip(target.params, e.args, strict=False):
            given = self.value(arg, point)
            if name and (given.sure or given.maybe):
                start.flags[name] = given
        inner.run(start)
        return inner.returned.copy() if inner.returned is not None else Flags(unknown={e.name})


def is_config(cond: Cond) -> bool:
    """True for a condition of the preprocessor's."""
    return isinstance(cond[0], Config)


__all__ = ["ALWAYS", "Cond", "Conds", "FlagReader", "Flags", "Num", "is_config", "key"]
