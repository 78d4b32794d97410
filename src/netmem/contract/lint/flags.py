"""Which flags reach page_pool_create(): constant propagation, statement by statement, through helpers and "
"callers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from netmem.contract.lint import api
from netmem.contract.lint.csource import Function
from netmem.contract.lint.lowering import Expr, Stmt
from netmem.contract.lint.world import World

Cond = tuple[Expr, bool]
MAX_DEPTH = 5
_FLAG = re.compile(r"[A-Za-z_]\w*")


@dataclass
class Flags:
    """``sure``: set on every way here; ``maybe``: under these conditions; ``unknown``: names not resolved."""

    sure: set[str] = field(default_factory=set)
    maybe: dict[str, list[Cond]] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)

    def copy(self) -> Flags:
        return Flags(set(self.sure), {k: list(v) for k, v in self.maybe.items()}, set(self.unknown))

    def add(self, other: Flags) -> None:
        """|="""
        self.sure |= other.sure
        for name, conds in other.maybe.items():
            self.maybe.setdefault(name, []).extend(conds)
        self.unknown |= other.unknown

    def drop(self, other: Flags) -> None:
        """&= ~"""
        for name in other.sure:
            self.sure.discard(name)
            self.maybe.pop(name, None)


State = dict[str, Flags]


def key(e: Expr) -> str:
    """A place, by name: ``pp`` and ``&pp``, ``rxr.params`` and ``rxr->params`` are each the same."""
    kind = e[0]
    if kind == "id":
        return str(e[1])
    if kind == "field":
        return f"{key(e[1])}.{e[2]}"
    if kind in ("addr", "deref", "index"):
        return key(e[1])
    return "?"


class _Found(Exception):
    """The call was reached, in this state and under these conditions."""

    def __init__(self, state: State, conds: list[Cond]) -> None:
        super().__init__()
        self.state, self.conds = state, conds


class FlagReader:
    """``at_create`` tells what one call of page_pool_create() is given."""

    def __init__(self, world: World) -> None:
        self.world = world

    def at_create(self, path: str, line: int) -> tuple[Flags, list[Cond]]:
        """Flags at the call in that place, and the conditions under which it is made."""
        for function in self._functions():
            if function.path == path and function.line <= line <= function.end:
                return self._in(function, line, set(api.CREATE), 0)
        return Flags(unknown={"?"}), []

    def _functions(self) -> list[Function]:
        return [f for found in self.world.named.values() for f in found]

    def _in(
        self, function: Function, line: int, names: set[str], depth: int, position: int = 0
    ) -> tuple[Flags, list[Cond]]:
        walker = _Walker(self.world, function, line, names, depth)
        try:
            walker.block(function.body, {}, [])
        except _Found as found:
            place = walker.place(position)
            flags = found.state.get(place)
            root = place.partition(".")[0]
            at = next((i for i, (_, name) in enumerate(function.params) if name == root), None)
            if at is not None and depth < MAX_DEPTH:
                # Filled in by whoever calls, and perhaps changed here.
                outer = self._callers(function, at, place[len(root) :], depth)
                if flags is None or "?start" in flags.unknown:
                    merged = outer
                    if flags is not None:
                        merged.add(Flags(flags.sure, flags.maybe))
                    return merged, found.conds
            if flags is None:
                flags = self._global(place)
            if flags is None:
                flags = self._stored(function, walker, position)
            return (flags if flags is not None else Flags(unknown={place})), found.conds
        return Flags(unknown={"?"}), []

    def _callers(self, function: Function, at: int, suffix: str, depth: int) -> Flags:
        found: Flags | None = None
        name = function.name.encode()
        for caller in self._functions():
            if name not in caller.words or caller is function:
                continue
            for line, args in _calls(caller.body, function.name):
                if at >= len(args):
                    continue
                flags, conds = self._in(caller, line, {function.name}, depth + 1, at)
                for flag in flags.sure & {api.FLAGS[3]} if conds else ():
                    flags.maybe.setdefault(flag, []).extend(conds)
                if found is None:
                    found = flags
                else:
                    both = found.sure & flags.sure
                    for one in (found, flags):
                        for flag in one.sure - both:
                            found.maybe.setdefault(flag, [])
                    found.add(Flags(set(), flags.maybe, flags.unknown))
                    found.sure = both
        return found or Flags(unknown={f"callers of {function.name}"})

    def _global(self, place: str) -> Flags | None:
        known = self.world.globals.get(place.partition(".")[0])
        if known is None or known[1][0] != "init":
            return None
        reader = _Walker(self.world, None, 0, set(), 0)
        return next(
            (reader.value(e, {}, []) for name, e in known[1][1] if name.split(".")[-1] == "flags"), Flags()
        )

    def _stored(self, function: Function, walker: _Walker, position: int) -> Flags | None:
        """A structure kept in a field: what anybody in the driver puts into its flags."""
        expr = walker.args[position] if position < len(walker.args) else ("num", "0")
        name = key(expr).rpartition(".")[2]
        if name in ("", "?"):
            return None
        found: Flags | None = None
        for other in self._functions():
            if name.encode() not in other.words or b"flags" not in other.words:
                continue
            inner = _Walker(self.world, other, -1, set(), 0)
            state: State = {}
            inner.block(other.body, state, [])
            for place, flags in inner.final.items():
                if place.rpartition(".")[2] == name or place == name:
                    found = found or Flags()
                    found.add(flags)
        return found


def _calls(body: list[Stmt], name: str) -> list[tuple[int, list[Expr]]]:
    """Line and arguments of each call of ``name``."""
    found: list[tuple[int, list[Expr]]] = []

    def visit(part: object) -> None:
        if (
            isinstance(part, tuple)
            and part
            and part[0] == "call"
            and part[1][0] == "id"
            and part[1][1] == name
        ):
            found.append((part[3], part[2]))
        if isinstance(part, tuple | list):
            for inner in part:
                visit(inner)

    visit(body)
    return found


class _Walker:
    """Goes through one function; ends with _Found at the call that is looked for."""

    def __init__(
        self, world: World, function: Function | None, line: int, names: set[str], depth: int
    ) -> None:
        self.world, self.function, self.line, self.names, self.depth = world, function, line, names, depth
        self.args: list[Expr] = []
        self.alias: dict[str, str] = {}
        self.final: State = {}

    def place(self, position: int) -> str:
        """Where the structure given to the call is."""
        name = key(self.args[position]) if position < len(self.args) else "?"
        return self.alias.get(name, name)

    def block(self, stmts: list[Stmt], state: State, conds: list[Cond]) -> bool:
        """Change ``state`` as the statements do. True when control leaves."""
        conds = list(conds)
        for stmt in stmts:
            kind = stmt[0]
            if kind == "expr":
                self.visit(stmt[1], state, conds)
            elif kind == "decl":
                self._declare(stmt, state, conds)
            elif kind == "if":
                self.visit(stmt[1], state, conds)
                ways = []
                for positive, body in ((True, stmt[2]), (False, stmt[3])):
                    inner = {k: v.copy() for k, v in state.items()}
                    left = self.block(body, inner, [*conds, (stmt[1], positive)])
                    ways.append((left, inner))
                self._join(state, stmt[1], ways)
                if ways[0][0] and ways[1][0]:
                    return True
                if ways[0][0]:
                    conds.append((stmt[1], False))
                elif ways[1][0] and stmt[3]:
                    conds.append((stmt[1], True))
            elif kind == "loop":
                if stmt[1] is not None:
                    self.visit(stmt[1], state, conds)
                self.block(stmt[2], state, conds)
            elif kind == "switch":
                self._switch(stmt, state, conds)
            elif kind == "block":
                if self.block(stmt[1], state, conds):
                    return True
            elif kind == "return":
                if stmt[1] is not None:
                    self.visit(stmt[1], state, conds)
                self.final = self.final or state
                return True
            elif kind == "jump":
                return True
        self.final = state
        return False

    def _switch(self, stmt: Stmt, state: State, conds: list[Cond]) -> None:
        ways = []
        for labels, body in stmt[2]:
            inner = {k: v.copy() for k, v in state.items()}
            case: Expr = ("bin", "==", stmt[1], labels[0]) if labels else ("num", "?")
            self.block(body, inner, [*conds, (case, True)])
            ways.append((case, inner))
        for case, inner in ways:
            for place, flags in inner.items():
                old = state.setdefault(place, Flags())
                for flag in flags.sure - old.sure:
                    old.maybe.setdefault(flag, []).append((case, True))
                old.add(Flags(set(), flags.maybe, flags.unknown))

    @staticmethod
    def _join(state: State, cond: Expr, ways: list[tuple[bool, State]]) -> None:
        (left_then, then), (left_else, other) = ways
        if left_then or left_else:
            if not (left_then and left_else):
                state.clear()
                state.update(other if left_then else then)
            return
        for place in then.keys() | other.keys():
            a, b = then.get(place, Flags()), other.get(place, Flags())
            made = Flags(a.sure & b.sure, {k: list(v) for k, v in a.maybe.items()}, a.unknown | b.unknown)
            for name, conds in b.maybe.items():
                made.maybe.setdefault(name, [])
                made.maybe[name] += [c for c in conds if c not in made.maybe[name]]
            for name in a.sure - b.sure:
                made.maybe.setdefault(name, []).append((cond, True))
            for name in b.sure - a.sure:
                made.maybe.setdefault(name, []).append((cond, False))
            state[place] = made

    def _declare(self, stmt: Stmt, state: State, conds: list[Cond]) -> None:
        _, type_, name, init, _ = stmt
        if init is None:
            return
        if init[0] == "init":
            state[name] = Flags()
            for field_name, one in init[1]:
                if field_name.split(".")[-1] == "flags":
                    state[name] = self.value(one, state, conds)
                self.visit(one, state, conds)
            return
        if "page_pool_params" in type_:
            self.visit(init, state, conds)
            place = key(init)
            place = self.alias.get(place, place)
            if init[0] == "call" and init[1][0] == "id":
                state[name] = self._made_by(init[1][1])
            elif "*" in type_:
                self.alias[name] = place
            elif place in state:
                state[name] = state[place].copy()
            else:
                known = self.world.globals.get(place)
                state[name] = (
                    self.value(next((e for n, e in known[1][1] if n.split(".")[-1] == "flags"), ("num",
                    "0")), state, conds)
                    if known is not None and known[1][0] == "init" else Flags(unknown={"?start", place})
                )  # fmt: skip
            return
        self.visit(init, state, conds)
        state[name] = self.value(init, state, conds)

    def _made_by(self, name: str) -> Flags:
        """What a helper that returns the structure by value has put into it."""
        target = self.world.function(name, self.function.path if self.function else "")
        if target is None or self.depth >= MAX_DEPTH:
            return Flags(unknown={name})
        inner = _Walker(self.world, target, -1, set(), self.depth + 1)
        inner.block(target.body, {}, [])
        last = next((stmt[1] for stmt in reversed(target.body) if stmt[0] == "return"), None)
        found = inner.final.get(key(last)) if last is not None else None
        return found.copy() if found is not None else Flags(unknown={name})

    def visit(self, e: Expr, state: State, conds: list[Cond]) -> None:
        """What evaluating an expression does."""
        kind = e[0]
        if kind == "assign":
            self.visit(e[3], state, conds)
            self._assign(e, state, conds)
        elif kind == "call":
            for arg in e[2]:
                self.visit(arg, state, conds)
            if e[1][0] == "id":
                self._call(e, state, conds)
        elif kind == "cond":
            for positive, part in ((True, e[2]), (False, e[3])):
                self.visit(part, state, [*conds, (e[1], positive)])
        elif kind == "block":
            self.block(e[1], state, conds)
        elif kind in ("bin", "un", "field", "index", "deref", "addr", "seq"):
            for part in e[1:]:
                if isinstance(part, tuple):
                    self.visit(part, state, conds)
                elif isinstance(part, list):
                    for inner in part:
                        self.visit(inner, state, conds)
        elif kind == "init":
            for _, part in e[1]:
                self.visit(part, state, conds)

    def _assign(self, e: Expr, state: State, conds: list[Cond]) -> None:
        _, op, left, right, _ = e
        if left[0] == "field" and left[2] == "flags":
            place = key(left[1])
        elif left[0] in ("id", "field", "deref"):
            place = key(left)
            if right[0] == "init":  # pp = (struct page_pool_params) { ... }
                state[place] = next(
                    (self.value(v, state, conds) for n, v in right[1] if n == "flags"), Flags()
                )
                return
            other = self.alias.get(key(right), key(right))
            if other in state and right[0] in ("id", "field", "deref") and op == "=":
                state[self.alias.get(place, place)] = state[other].copy()
                return
        else:
            return
        place = self.alias.get(place, place)
        value = self.value(right, state, conds)
        if op == "=":
            state[place] = value
            return
        old = state.setdefault(place, Flags(unknown={"?start"}))
        if op == "|=":
            old.add(value)
        elif op == "&=" and right[0] == "un" and right[1] == "~":
            old.drop(self.value(right[2], state, conds))

    def _call(self, e: Expr, state: State, conds: list[Cond]) -> None:
        name, args, line = e[1][1], e[2], e[3]
        if name in self.names and line == self.line:
            self.args = args
            raise _Found(state, conds)
        if self.depth >= MAX_DEPTH or self.function is None:
            return
        target = self.world.function(name, self.function.path)
        if target is None or target is self.function or b"flags" not in target.words:
            return
        for at, arg in enumerate(args):
            place = self.alias.get(key(arg), key(arg))
            if (
                at < len(target.params)
                and arg[0] in ("addr", "id", "field")
                and "page_pool_params" in target.params[at][0]
            ):
                inner = _Walker(self.world, target, -1, set(), self.depth + 1)
                start = {target.params[at][1]: state[place].copy()} if place in state else {}
                inner.block(target.body, start, [])
                if target.params[at][1] in inner.final:
                    state[place] = inner.final[target.params[at][1]]

    def value(self, e: Expr, state: State, conds: list[Cond]) -> Flags:
        """Flags that an expression stands for."""
        kind = e[0]
        if kind == "id":
            return self._name(e[1], state, 0)
        if kind == "bin" and e[1] in ("|", "+"):
            made = self.value(e[2], state, conds)
            made.add(self.value(e[3], state, conds))
            return made
        if kind == "bin" and e[1] == "&":
            made = self.value(e[2], state, conds)
            if e[3][0] == "un" and e[3][1] == "~":
                made.drop(self.value(e[3][2], state, conds))
            return made
        if kind == "cond":
            a, b = self.value(e[2], state, conds), self.value(e[3], state, conds)
            made = Flags(a.sure & b.sure, {}, a.unknown | b.unknown)
            for flags, positive in ((a, True), (b, False)):
                for name in flags.sure - made.sure:
                    made.maybe.setdefault(name, []).append((e[1], positive))
                for name, more in flags.maybe.items():
                    made.maybe.setdefault(name, []).extend([*more, (e[1], positive)])
            return made
        if kind in ("field", "deref", "index"):
            place = key(e)
            if kind == "field" and e[2] == "flags":
                place = key(e[1])
            found = state.get(self.alias.get(place, place))
            return found.copy() if found is not None else Flags(unknown={place})
        if kind == "seq" and e[1]:
            return self.value(e[1][-1], state, conds)
        if kind == "call" and e[1][0] == "id":
            return self._returned(e, state, conds)
        return Flags()

    def _name(self, name: str, state: State, depth: int) -> Flags:
        if name in api.FLAGS:
            return Flags({name})
        if name in api.FLAG_GROUPS:
            return Flags(set(api.FLAG_GROUPS[name]))
        if name in state:
            return state[name].copy()
        text = self.world.macros.get(name)
        if text is None or depth > 8:
            return Flags() if name.isupper() else Flags(unknown={name})
        made = Flags()
        for word in _FLAG.findall(text):
            made.add(self._name(word, {}, depth + 1))
        return made

    def _returned(self, e: Expr, state: State, conds: list[Cond]) -> Flags:
        target = self.world.function(e[1][1], self.function.path if self.function else "")
        if target is None or self.depth >= MAX_DEPTH:
            return Flags(unknown={e[1][1]})
        inner = _Walker(self.world, target, -1, set(), self.depth + 1)
        results: list[tuple[Flags, list[Cond]]] = []

        def returns(stmts: list[Stmt], held: State, under: list[Cond]) -> None:
            for stmt in stmts:
                if stmt[0] == "return" and stmt[1] is not None:
                    results.append((inner.value(stmt[1], held, under), list(under)))
                elif stmt[0] == "if":
                    returns(stmt[2], held, [*under, (stmt[1], True)])
                    returns(stmt[3], held, [*under, (stmt[1], False)])
                    inner.block([stmt], held, under)
                elif stmt[0] == "block":
                    returns(stmt[1], held, under)
                else:
                    inner.block([stmt], held, under)

        returns(target.body, {}, [])
        if not results:
            return Flags(unknown={e[1][1]})
        made = Flags(set.intersection(*(flags.sure for flags, _ in results)))
        for flags, under in results:
            for name in flags.sure - made.sure:
                made.maybe.setdefault(name, []).extend(under)
            for name, more in flags.maybe.items():
                made.maybe.setdefault(name, []).extend(more)
            made.unknown |= flags.unknown
        return made
