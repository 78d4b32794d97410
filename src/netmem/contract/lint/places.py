"""Places: types of expressions, the cells that fields' values are kept in, and how a place is written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from netmem.contract.lint import api
from netmem.contract.lint.csource import Function
from netmem.contract.lint.labels import EMPTY, MAX_PATH, Label, Labels, Path
from netmem.contract.lint.nodes import (
    Addr,
    Assign,
    Binary,
    Call,
    Deref,
    Expr,
    Field,
    Id,
    Index,
    Num,
    Other,
    Return,
    Ternary,
    Unary,
    names,
    text,
)  # fmt: skip
from netmem.contract.lint.world import World

MAX_OBJECTS = 48  # a value of more is taken for any of its type
Cell = tuple[str, str]  # (structure or object, field)
Memo = dict[Expr, tuple[int, Labels | None, Labels]]  # version of all fields, the variable's value, found
Wanted = tuple[str, str, str]  # a cell as somebody reads it, with the structure's type


class Scope:
    """A function's names: types of its parameters and locals; and what fields held when read last."""

    __slots__ = ("bases", "function", "loads", "types")

    def __init__(self, function: Function) -> None:
        self.function = function
        self.types: dict[str, str] = {name: type_ for type_, name in function.params if name}
        self.loads: Memo = {}
        self.bases: Memo = {}


class Types:
    """Declared types of expressions, "" when unknown."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.parameters: dict[tuple[int, str], str] = {}  # of macros, as they are called
        self._known: dict[Expr, str] = {}
        self._tags: dict[Expr, str] = {}

    def of(self, scope: Scope, e: Expr) -> str:
        known = self._known.get(e)
        if known is None:
            known = self._type(scope, e)
            if known and scope.function.returns:  # a macro's parameters have no types of their own
                self._known[e] = known
        return known

    def tag(self, scope: Scope, e: Expr) -> str:
        """The structure that an expression is, or points to."""
        known = self._tags.get(e)
        if known is None:
            known = self.world.tag(self.of(scope, e))
            if known and scope.function.returns:
                self._tags[e] = known
        return known

    def _type(self, scope: Scope, e: Expr) -> str:
        match e:
            case Id(name=name):
                known = scope.types.get(name)
                return known if known is not None else self.world.globals.get(name, ("",))[0]
            case Field(base=base, name=name):
                return self.world.field_type(self.world.tag(self.of(scope, base)), name)
            case Index(base=of) | Deref(of=of) | Addr(of=of):
                return self.of(scope, of)
            case Call(args=args):
                return self._result(scope, e.name, args)
            case Binary(left=left, right=right) | Ternary(then=left, other=right):
                return self.of(scope, left) or self.of(scope, right)
            case Assign(left=left):
                return self.of(scope, left)
            case Other(parts=[*_, last]):
                return self.of(scope, last)
        return ""

    def _result(self, scope: Scope, name: str, args: list[Expr]) -> str:
        if name == "container_of" and len(args) == 3:
            return text(args[1]) if not text(args[1]).startswith("...") else ""
        at = api.SAME.get(name)
        if at is not None and at < len(args):
            return self.of(scope, args[at])
        target = self.world.function(name, scope.function.path) if name else None
        if target is not None and target.returns:
            return target.returns
        if target is None or target is scope.function or len(target.body) != 1:
            return ""
        (only,) = target.body
        if not isinstance(only, Return) or only.value is None:
            return ""
        inner = Scope(target)
        for (_, param), arg in zip(target.params, args, strict=False):
            inner.types[param] = self.of(scope, arg)
        return self.of(inner, only.value)


class Memory:
    """What fields hold: one cell for each structure type and name, and for each embedded object where it is
    known.

    ``readers``: who has read a place (a ``Wanted``, a constant), for whom it is news when it is among
    ``changed``.
    """

    def __init__(self, world: World, types: Types) -> None:
        self.world, self.types = world, types
        self.fields: dict[Cell, Labels] = defaultdict(lambda: EMPTY)
        self.objects: dict[str, set[str]] = defaultdict(set)  # structure type -> embedded objects
        self.constants: dict[str, Labels] = defaultdict(lambda: EMPTY)
        self.holds: dict[Any, set[Any]] = defaultdict(set)  # field -> places whose pools it may hold
        self.reader: Any = None  # who reads now
        self.readers: dict[Any, set[Any]] = defaultdict(set)
        self.changed: set[Any] = set()
        self._read_before: dict[Wanted, Labels] = {}
        self._wanted: dict[Any, set[Wanted]] = defaultdict(set)  # cell, or structure -> what was read of it
        self._made: dict[tuple[Field, Labels], Labels] = {}
        self.types_of: dict[str, set[str]] = defaultdict(set)  # object -> its structure types
        self.keeping: set[str] = set()  # structure types with buffers in them
        self.version = 0  # of all that fields hold: counts changes

    def put(self, cell: Cell, value: Labels) -> None:
        """A field may hold these, too."""
        if len(value) > MAX_OBJECTS:
            value = frozenset(x for x in value if x.kind != "obj")
        held = self.fields[cell]
        if not value <= held:
            self.fields[cell] = held | value
            self._is_news(cell)
            if any(x.kind in ("buf", "va") for x in value):
                self.keeping |= self.types_of.get(cell[0]) or {cell[0]}
                self.keeping.discard("")

    def add_object(self, tag: str, *names: str) -> None:
        """Structures of this type lie here, too."""
        known = self.objects[tag]
        if not known.issuperset(names):
            known.update(names)
            for name in names:
                self.types_of[name].add(tag)
            self._is_news(tag)

    def _is_news(self, what: Any) -> None:
        self.version += 1
        for wanted in self._wanted.pop(what, ()):
            self._read_before.pop(wanted, None)
            self.changed.add(wanted)

    def add_constant(self, name: str, value: Labels) -> None:
        """A constant (a bit of a mask, say) stands for these, too."""
        if not value <= self.constants[name]:
            self.constants[name] |= value
            self.changed.add(name)

    def constant(self, name: str) -> Labels:
        """What a constant stands for."""
        self.readers[name].add(self.reader)
        return self.constants.get(name, EMPTY)

    def variable(self, name: str) -> Labels:
        """What a variable outside of functions may hold."""
        wanted = "global", name, "global"
        self.readers[wanted].add(self.reader)
        held = self._read_before.get(wanted)
        if held is None:
            self._wanted[wanted[:2]].add(wanted)
            held = self._read_before[wanted] = self.fields.get(wanted[:2], EMPTY)
        return held

    def cells(self, scope: Scope, env: dict[str, Labels], e: Field) -> list[Cell]:
        """Where a field expression's value is kept."""
        objects = self.base(scope, env, e.base)
        return [(one.of, e.name) for one in objects] if objects else [(self.types.tag(scope, e.base), e.name)]

    def base(self, scope: Scope, env: dict[str, Labels], base: Expr) -> Labels:
        """Objects that an expression denotes or points to."""
        while True:
            match base:
                case Id(name=name):
                    held = env.get(name)
                    return frozenset(x for x in held if x.kind == "obj") if held else EMPTY
                case Field():
                    return self._embedded(scope, env, base)
                case Addr(of=of) | Deref(of=of) | Index(base=of) | Assign(left=of):
                    base = of
                case Call(args=args):
                    at = api.SAME.get(base.name)
                    if at is None or at >= len(args):
                        return EMPTY
                    base = args[at]
                case Binary(left=left, right=right) | Ternary(then=left, other=right):
                    return self.base(scope, env, left) | self.base(scope, env, right)
                case _:
                    return EMPTY

    def _embedded(self, scope: Scope, env: dict[str, Labels], base: Field) -> Labels:
        return self._remembered(scope, scope.bases, env, base, self._lies_in)

    def _remembered(
        self, scope: Scope, memo: Memo, env: dict[str, Labels], e: Field,
        find: Callable[[Scope, dict[str, Labels], Field], Labels],
    ) -> Labels:  # fmt: skip
        """What was found before, if neither the variable that ``e`` begins with nor any field has changed."""
        root = _root(e)
        if not root:
            return find(scope, env, e)
        held, known = env.get(root), memo.get(e)
        if known is not None and known[0] == self.version and known[1] is held:
            return known[2]
        found = find(scope, env, e)
        memo[e] = self.version, held, found
        return found

    def _lies_in(self, scope: Scope, env: dict[str, Labels], base: Field) -> Labels:
        outer = self.base(scope, env, base.base)
        tag = self.types.tag(scope, base.base)
        inner = self.world.field_type(tag, base.name)
        of = self.world.tag(inner)
        several = bool(of) and self.world.places.get(of, 0) > 1
        if not of or not (several or outer):
            return frozenset(x for x in self.load(scope, env, base) if x.kind == "obj")
        found = self._made.get((base, outer)) if scope.function.returns else None
        if found is None:
            made = [f"{one.of}.{base.name}" for one in outer]  # what the object's pointer leads to
            made = made or [f"{tag}.{base.name}"]
            made = [one if one.count(".") <= MAX_PATH else f"{tag}.{base.name}" for one in made]
            self.add_object(of, *made)
            found = self._made[base, outer] = frozenset(Label("obj", one) for one in made)
        if several and "*" in inner:  # what was put there, too
            put = frozenset(x for x in self.load(scope, env, base) if x.kind == "obj")
            found = found | put if put else found
        return found

    def load(self, scope: Scope, env: dict[str, Labels], e: Field) -> Labels:
        """What a field may hold."""
        return self._remembered(scope, scope.loads, env, e, self._load)

    def _load(self, scope: Scope, env: dict[str, Labels], e: Field) -> Labels:
        found = EMPTY
        tag = self.types.tag(scope, e.base)
        for owner, name in self.cells(scope, env, e):
            wanted = owner, name, tag
            self.readers[wanted].add(self.reader)
            held = self._read_before.get(wanted)
            if held is None:
                held = self._read_before[wanted] = self._read(wanted)
            found = found | held if found else held
        return found

    def _read(self, wanted: Wanted) -> Labels:
        owner, name, tag = wanted
        asked = [(owner, name)]
        if owner != tag:
            asked.append((tag, name))  # written where the object was not known
        else:
            self._wanted[tag].add(wanted)
            asked += [(one, name) for one in self.objects.get(tag, ())]
        if owner:
            asked.append(("", name))
        others = self.world.shared.get((tag, name), ())  # of a union
        asked += [(one, other) for other in others for one, _ in asked]
        found = EMPTY
        for one in asked:
            self._wanted[one].add(wanted)
            held = self.fields.get(one)
            if held:
                found = found | held if found else held
        if any(x.kind == "pool" for x in found):
            # A pool is known by the field it is kept in.
            return frozenset(x for x in found if x.kind != "pool") | {Label("pool", (owner, name))}
        return found


def _root(e: Expr) -> str:
    """The variable that a place begins with; "" where it is not that alone."""
    while True:
        match e:
            case Id(name=name):
                return name
            case Field(base=of) | Addr(of=of) | Deref(of=of):
                e = of
            case Index(base=of, index=Id() | Num()):
                e = of
            case _:
                return ""


def path_of(e: Expr, alias: dict[str, Path]) -> Path | None:
    """A place as it is written, locals that stand for another place resolved; None for what is no place."""
    match e:
        case Id(name=name):
            return alias.get(name) or (name,)
        case Field(base=base, name=name):
            inner = path_of(base, alias)
            return None if inner is None else (*inner, "." + name)
        case Deref(of=of) | Addr(of=of):
            return path_of(of, alias)
        case Index(base=base, index=index):
            inner = path_of(base, alias)
            return None if inner is None else (*inner, "[", text(index), *sorted(names(index)), "]")
        case Call(args=args):
            return _path_of_call(e, args, alias)
        case Binary(op="+" | "-", left=left, right=right):
            return path_of(left, alias) or path_of(right, alias)
        case Unary(op="++" | "--", of=of) | Assign(left=of):
            return path_of(of, alias)
        case Num():
            return None
        case Other(parts=[*_, last]):
            return path_of(last, alias)
    return None


def _path_of_call(e: Call, args: list[Expr], alias: dict[str, Path]) -> Path | None:
    at = api.SUBJECT.get(e.name, api.SAME.get(e.name))
    if at is not None and at < len(args):
        return path_of(args[at], alias)
    if not e.name:
        return None
    parts = [f"{e.name}()"]
    for arg in args:
        parts += path_of(arg, alias) or (text(arg),)
    return tuple(parts)
