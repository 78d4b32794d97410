"""What comes of asking set_ringparam to turn header split on, which is off, or off: whether any way leads to
success, and whether what was asked for is kept on every such way.

One path-sensitive walk along the setter's graph, into the functions that are given what was asked for. It is
*kept* when it is stored in a structure that lasts, given to a function of the kernel's, or handed on in a
structure to a function that reads it from there; not when it stays in a local structure, is stored after
that was handed on, or is compared and forgotten. So in

    cfg = priv->cfg;                                      a copy, on the stack
    if (kernel_ring->tcp_data_split == DISABLED)          asked for: on, so this way is not taken
            return 0;
    cfg.split = kernel_ring->tcp_data_split;              ``asked`` has the place (cfg, .split); not kept
    return restart(priv, &cfg);                           restart() reads .split: kept

a way that reaches ``return 0`` with ``kept`` false makes ``always`` false, any that is kept ``ever`` true.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from netmem.contract.lint import api
from netmem.contract.lint.cfg import BasicBlock
from netmem.contract.lint.csource import Function
from netmem.contract.lint.flow import Flow
from netmem.contract.lint.labels import Label, Path
from netmem.contract.lint.nodes import (
    Addr,
    Assign,
    Binary,
    Call,
    Case,
    Declare,
    Deref,
    Do,
    Expr,
    Field,
    Id,
    Index,
    Init,
    Num,
    Return,
    Ternary,
    Unary,
    is_zero,
    walk,
)
from netmem.contract.lint.places import path_of

Truths = frozenset[bool]
BOTH: Truths = frozenset((True, False))
NOTHING: Truths = frozenset()
MAX_DEPTH = 5
READ_DEPTH = 6
MAX_LOOKS = 40  # at a block
ORDERS = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
COPIES = {"memcpy", "memmove"}
ASKED_FOR = ("tcp_data_split",)
RING = "struct kernel_ethtool_ringparam *"  # where it is asked for
SETTINGS = ("UNKNOWN", "DISABLED", "ENABLED")  # ETHTOOL_TCP_DATA_SPLIT_, in the order of their numbers
ACTS = re.compile(r"^_*(set|clear|assign|change)_bit$|write")  # calls of the kernel's that do something


@dataclass(frozen=True)
class State:
    """What is known between two statements. ``values``: what locals may be; ``asked``: places with what was
    asked for; ``alias``: pointers to local structures; ``kept``: so on every way to here."""

    values: dict[str, Truths] = field(default_factory=dict)
    asked: frozenset[Path] = frozenset()
    alias: dict[str, Path] = field(default_factory=dict)
    kept: bool = False

    def joined(self, other: State) -> State:
        values = {k: self.values[k] | v for k, v in other.values.items() if k in self.values}
        alias = {k: v for k, v in self.alias.items() if other.alias.get(k) == v}
        return State(values, self.asked | other.asked, alias, self.kept and other.kept)


class Outcome(NamedTuple):
    """Of a function: whether it may return something other than zero, and zero; whether what was asked for is
    kept on every way to zero, on any way at all, and there by more than a field; places behind its parameters
    that have it then."""

    truths: Truths
    always: bool
    ever: bool
    told: bool
    out: frozenset[Path]


class Asking:
    """Of one driver. ``wanted``: split is to be turned on; or off, while it is on."""

    def __init__(self, flow: Flow, wanted: str = "ENABLED") -> None:
        self.flow, self.world, self.wanted = flow, flow.world, wanted
        self._names: dict[int, set[str]] = {}

    def setter(self, function: Function) -> Outcome:
        """set_ringparam, as the core calls it."""
        given = frozenset(
            (name, f".{field}") for type_, name in function.params if RING in type_ for field in ASKED_FOR
        )
        return self.run(function, given, 0)

    def run(self, function: Function, given: frozenset[Path], depth: int) -> Outcome:
        """One function, which is given what was asked for in these parameters."""
        return _Run(self, function, depth).walk(State(asked=given))

    def reads(self, function: Function, names: set[str]) -> bool:
        """True for a function that names one of these fields, or whose callees do."""
        known = self._names.get(id(function))
        if known is None:
            reached = self.world.reached([function], READ_DEPTH)
            known = self._names[id(function)] = {word.decode() for one in reached for word in one.fields}
        return not names.isdisjoint(known)


class _Run:
    """One walk along one function."""

    def __init__(self, asking: Asking, function: Function, depth: int) -> None:
        self.asking, self.flow, self.world = asking, asking.flow, asking.world
        self.function, self.depth = function, depth
        self.types = {name: type_ for type_, name in function.params} | function.types
        self.params = {name for _, name in function.params}
        self.ever = self.told = False
        self.decides: set[int] = set()  # blocks that are reached by what was asked for
        self.chosen: set[str] = set()  # locals that are given one constant or another by it

    def walk(self, start: State) -> Outcome:
        """Ways on which it is kept by now, and those on which it is not, are gone apart."""
        blocks = self.function.graph.blocks
        known = {(0, start.kept): start}
        todo = [(blocks[0], start.kept)]
        truths, always, out = NOTHING, True, frozenset[Path]()
        looks = 0
        waited: set[int] = set()
        while todo and looks < MAX_LOOKS * len(blocks):
            looks += 1
            block, kept = todo.pop()
            state = known[block.number, kept]
            if not kept and _is_loop(block) and block.number not in waited:  # its body is taken to run at all
                waited.add(block.number)
                todo.insert(0, (block, kept))
                ways: tuple[bool, ...] = (True,)
            else:
                ways = (True, False) if kept or (block.number, True) not in known else (True,)
            for action in block.actions:
                state = self._action(block, action, state)
                if isinstance(action, Return) and action.value is not None:
                    said = self._value(action.value, state)
                    truths |= said
                    always &= state.kept or False not in said
            if not block.follow:
                out |= {path for path in state.asked if path[0] in self.params}
                if not any(isinstance(one, Return) and one.value is not None for one in block.actions):
                    always &= state.kept
                continue
            for outcome, following in zip((True, False), block.follow, strict=False):
                if block.cond is not None and outcome not in self._outcomes(block.cond, state):
                    continue
                if outcome not in ways and _is_loop(block):
                    continue
                after = self._decided(block, state, outcome)
                key = following.number, after.kept
                before = known.get(key)
                joined = after if before is None else before.joined(after)
                if joined != before:
                    known[key] = joined
                    todo.append((following, after.kept))
        return Outcome(truths or BOTH, always, self.ever, self.told, out)

    def _decided(self, block: BasicBlock, state: State, outcome: bool) -> State:
        """Behind a condition: its calls were made, and what it chooses between depends on it."""
        if block.cond is None:
            return state
        if isinstance(block.cond, Id) and block.cond.name in self.types:
            state = replace(state, values={**state.values, block.cond.name: frozenset({outcome})})
        if self._is_asked(block.cond, state) and len(block.follow) == 2:
            yes, no = (_reach(one) for one in block.follow)
            if yes & no or (self._is_choice(block.cond) and not (self._fails(yes) or self._fails(no))):
                self.decides |= yes ^ no
        return self._calls(block, block.cond, state)

    def _is_choice(self, cond: Expr) -> bool:
        """True for a condition on the setting itself, not on whether it is another than there is."""
        match cond:
            case Binary(left=left, right=right):
                return any(self._means(one) is not None for one in (left, right))
            case Id(name=name):
                return name not in self.chosen
        return True

    def _fails(self, numbers: set[int]) -> bool:
        """True for a way that only returns errors."""
        returned = [
            action.value for block in self.function.graph.blocks if block.number in numbers
            for action in block.actions if isinstance(action, Return)
        ]  # fmt: skip
        return bool(returned) and all(isinstance(one, Unary) and one.op == "-" for one in returned)

    # -- statements ----------------------------------------------------------------------------------

    def _action(self, block: BasicBlock, action: Do | Declare | Return, state: State) -> State:
        match action:
            case Return(value=value):
                return self._calls(block, value, state) if value is not None else state
            case Declare(name=name, init=init):
                state = self._forget(state, (name,))
                return self._store(block, Id(action.line, name), init, state) if init is not None else state
            case Do(expr=Assign(op=op, left=left, right=right)):
                return self._store(block, left, right, state, op)
            case Do(expr=expr):
                return self._calls(block, expr, state)

    def _forget(self, state: State, path: Path) -> State:
        asked = frozenset(one for one in state.asked if one[: len(path)] != path)
        return replace(state, asked=asked)

    def _store(self, block: BasicBlock, left: Expr, right: Expr, state: State, op: str = "=") -> State:
        state = self._calls(block, right, state)
        path = path_of(left, state.alias)
        if path is None:
            return state
        if isinstance(left, Id) and isinstance(right, Addr):
            target = path_of(right, state.alias)
            if target is not None and self._is_local(target):
                return replace(state, alias={**state.alias, left.name: target})
        asked = self._is_asked(right, state)
        chosen = block.number in self.decides and not isinstance(right, Call)
        if isinstance(left, Id):
            made = self._value(right, state)
            if op == "|=":
                made = made if made == {True} else made | state.values.get(left.name, BOTH)
            if op in ("=", "|="):
                state = replace(state, values={**state.values, left.name: made})
        if op == "=":
            state = self._forget(state, path)
        source = path_of(right, state.alias)
        held = frozenset[Path]()
        if source is not None and not asked:  # a whole structure
            held = frozenset(
                path + one[len(source) :] for one in state.asked if one[: len(source)] == source != one
            )
        if not (asked or chosen or held):
            return state
        if chosen and not asked and isinstance(left, Id):
            self.chosen.add(left.name)
        state = replace(state, asked=state.asked | (held or {path}))
        known = isinstance(left, Id) and left.name in self.types  # a local, or a parameter's own value
        behind = path[0] in self.params and self.depth > 0  # the caller knows what it points to
        if known or behind or self._is_local(path):
            return state
        return self._keep(state, stored=isinstance(left, Field) and not held)

    def _keep(self, state: State, stored: bool = False) -> State:
        """``stored``: in a field, of which others may say what comes of it."""
        self.ever = True
        self.told |= not stored
        return replace(state, kept=True)

    def _is_local(self, path: Path) -> bool:
        """True for a place in a structure among the locals."""
        type_ = self.types.get(path[0])
        return type_ is not None and path[0] not in self.params and "*" not in type_

    # -- calls ---------------------------------------------------------------------------------------

    def _calls(self, block: BasicBlock, e: Expr, state: State) -> State:
        for one in walk(e):
            if isinstance(one, Call):
                state = self._call(block, one, state)
        return state

    def _call(self, block: BasicBlock, call: Call, state: State) -> State:
        name = call.name
        if api.PRINTS.search(name):
            return state
        target = self.world.function(name, self.function.path) if name else None
        rings = [self._is_ring(one) for one in call.args]
        whole = [
            frozenset() if ring else self._within(one, state)
            for one, ring in zip(call.args, rings, strict=True)
        ]
        given = [ring or self._is_asked(one, state) for one, ring in zip(call.args, rings, strict=True)]
        if name in COPIES and len(call.args) > 1:
            return self._copied(call, [self._within(one, state) for one in call.args], state)
        if not any(given) and not any(whole):
            own = target is not None and not target.macro
            if block.number in self.decides and (own or ACTS.search(name)):
                return self._keep(state)  # what is done depends on it
            return state
        if target is None or target.macro or self.depth >= MAX_DEPTH:
            return self._keep(state) if any(given) or any(whole) else state
        names = {one[-1].lstrip(".") for paths in whole for one in paths}
        kept = bool(names) and self.asking.reads(target, names)
        out = frozenset[Path]()
        if any(given):
            entry = frozenset(
                (param, f".{ASKED_FOR[0]}") if RING in type_ else (param,)
                for (type_, param), is_asked in zip(target.params, given, strict=False) if is_asked
            )  # fmt: skip
            done = self.asking.run(target, entry, self.depth + 1)
            kept |= done.ever
            for (_, param), arg in zip(target.params, call.args, strict=False):
                base = path_of(arg, state.alias)
                if self._is_ring(arg):
                    continue
                if base is not None and self._is_local(base):
                    out |= {base + one[1:] for one in done.out if one[0] == param and len(one) > 1}
                elif any(one[0] == param and len(one) > 1 for one in done.out):
                    kept = True  # behind a pointer that is not to a local structure
        state = replace(state, asked=state.asked | out)
        return self._keep(state) if kept else state

    def _is_ring(self, e: Expr) -> bool:
        """True for the settings as the core hands them over."""
        return isinstance(e, Id) and RING in self.types.get(e.name, "")

    def _copied(self, call: Call, whole: list[frozenset[Path]], state: State) -> State:
        target, source = (path_of(one, state.alias) for one in call.args[:2])
        if target is None or source is None or not whole[1]:
            return state
        if not self._is_local(target):
            return self._keep(state)
        moved = frozenset(target + one[len(source) :] for one in whole[1])
        return replace(state, asked=state.asked | moved)

    def _within(self, arg: Expr, state: State) -> frozenset[Path]:
        """Places with what was asked for in a structure that an argument points to."""
        if not isinstance(arg, Addr | Id | Field):
            return frozenset()
        base = path_of(arg, state.alias)
        if base is None:
            return frozenset()
        return frozenset(one for one in state.asked if one[: len(base)] == base and len(one) > len(base))

    # -- values --------------------------------------------------------------------------------------

    def _is_asked(self, e: Expr, state: State) -> bool:
        """True for a value that depends on what was asked for."""
        match e:
            case Field(name=name) if name in ASKED_FOR:
                return True
            case Id() | Field() | Index() | Deref():
                path = path_of(e, state.alias)
                return path is not None and path in state.asked
            case Call(args=args):
                target = self.world.function(e.name, self.function.path) if e.name else None
                return target is not None and any(
                    self._is_ring(one) or self._is_asked(one, state) for one in args
                )
            case Binary(left=left, right=right):
                return self._is_asked(left, state) or self._is_asked(right, state)
            case Unary(of=of):
                return self._is_asked(of, state)
            case Ternary(cond=cond, then=then, other=other):
                return any(self._is_asked(one, state) for one in (cond, then, other))
            case Case(subject=subject):
                return self._is_asked(subject, state)
            case Init(values=values):
                return any(self._is_asked(one, state) for one in values)
        return False

    def _value(self, e: Expr, state: State) -> Truths:
        if is_zero(e):
            return frozenset({False})
        if isinstance(e, Num) or (isinstance(e, Unary) and e.op == "-"):
            return frozenset({True})
        if isinstance(e, Id) and e.name in state.values:
            return state.values[e.name]
        if isinstance(e, Ternary):
            ways = self._outcomes(e.cond, state)
            parts = [part for way, part in ((True, e.then), (False, e.other)) if way in ways]
            return NOTHING.union(*(self._value(part, state) for part in parts))
        return self._outcomes(e, state)

    def _outcomes(self, cond: Expr, state: State) -> Truths:
        """What a condition can be when header split, which is off, is to be turned on."""
        if isinstance(cond, Id) and cond.name in state.values:
            return state.values[cond.name]
        held = self.flow.asked.get(cond, frozenset())
        if not held and not self._is_asked(cond, state):
            return BOTH
        match cond:
            case Binary(op="==" | "!=" | "^" as op, left=left, right=right):
                for one in (left, right):
                    known = self._means(one)
                    if known is not None:
                        return frozenset({known == (op == "==")})
                return frozenset({op != "=="})  # what is asked for is not what there is
            case Binary(op="<" | ">" | "<=" | ">=" as op, left=left, right=right):
                less, more = self._rank(left, state), self._rank(right, state)
                if less is not None and more is not None:
                    return frozenset({ORDERS[op](less, more)})
            case Case(values=values) if values:
                meant = [self._means(one) for one in values]
                if True in meant:
                    return frozenset({True})
                if None not in meant:
                    return frozenset({False})
            case Call() if self.depth < MAX_DEPTH:
                return self._result(cond, state)
            case Id() | Field():
                if Label("split") in held and Label("unsplit") not in held:
                    return frozenset({self.asking.wanted == "ENABLED"})
        return BOTH

    def _means(self, e: Expr) -> bool | None:
        """Whether a constant is the one that is asked for; None for anything else."""
        if not isinstance(e, Id) or not e.name.startswith("ETHTOOL_TCP_DATA_SPLIT_"):
            return None
        return e.name.endswith(f"_{self.asking.wanted}")

    def _rank(self, e: Expr, state: State) -> int | None:
        """The number of a constant, or of what is asked for; None for anything else."""
        if isinstance(e, Id) and e.name.startswith("ETHTOOL_TCP_DATA_SPLIT_"):
            return SETTINGS.index(e.name.rpartition("_")[2]) if e.name.endswith(SETTINGS) else None
        return SETTINGS.index(self.asking.wanted) if self._is_asked(e, state) else None

    def _result(self, call: Call, state: State) -> Truths:
        target = self.world.function(call.name, self.function.path) if call.name else None
        if target is None or target.macro:
            return BOTH
        entry = frozenset(
            (param, f".{ASKED_FOR[0]}") if RING in type_ else (param,)
            for (type_, param), arg in zip(target.params, call.args, strict=False)
            if self._is_ring(arg) or self._is_asked(arg, state)
        )  # fmt: skip
        return self.asking.run(target, entry, self.depth + 1).truths


def _is_loop(block: BasicBlock) -> bool:
    """True for the condition of a loop."""
    return len(block.follow) == 2 and block.number in _reach(block.follow[0])


def _reach(start: BasicBlock) -> set[int]:
    """Numbers of the blocks that can follow."""
    seen, todo = {start.number}, [start]
    while todo:
        for one in todo.pop().follow:
            if one.number not in seen:
                seen.add(one.number)
                todo.append(one)
    return seen
