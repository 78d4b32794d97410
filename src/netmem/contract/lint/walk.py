"""One function, statement by statement along its graph: what its values are, and what happens there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from netmem.contract.lint import api, nodes
from netmem.contract.lint.calls import Calls
from netmem.contract.lint.cfg import BasicBlock, Graph, graph_of
from netmem.contract.lint.labels import (
    ALL_READABLE,
    ASIDE,
    ASKED,
    EMPTY,
    FIRST,
    FLAGS,
    KINDS,
    NO_FACTS,
    PACKET,
    SPLIT,
    UNSPLIT,
    Event,
    Fact,
    Facts,
    Labels,
    Point,
    both,
    memory,
    of_kind,
)
from netmem.contract.lint.nodes import (
    Addr,
    Assign,
    Binary,
    Call,
    Case,
    Config,
    Declare,
    Deref,
    Do,
    Expr,
    Field,
    Id,
    Index,
    Init,
    Inner,
    Num,
    Other,
    Return,
    Ternary,
    Unary,
    text,
)
from netmem.contract.lint.places import Cell
from netmem.contract.lint.stores import Stores
from netmem.contract.lint.values import COMPARES, Called, Frame, Values, carried

BOTH_WAYS = {True, False}
MAX_VISITS = 12  # of one block: what it leaves has long stopped to change


class Walk:
    """Walks functions for ``flow``; ``called``: what it knows of a function that is called."""

    def __init__(self, values: Values, called: Called) -> None:
        self.values, self.memory = values, values.memory
        self.stores = Stores(self)
        self.calls = Calls(self, self.stores, called)
        self._graphs: dict[Expr, Graph] = {}
        self._eval: dict[type, Callable[[Frame, Any], Labels]] = {
            Id: self._id, Field: self._access, Index: self._access, Deref: self._access, Addr: self._addr,
            Call: self.calls.call, Assign: self._assign, Binary: self._binary, Unary: self._unary,
            Ternary: self._ternary, Init: self._init, Other: self._other, Inner: self._inner,
        }  # fmt: skip

    # -- statements ----------------------------------------------------------------------------

    def function(self, f: Frame) -> Point:
        """Look at a function whose parameters are in its frame's point."""
        return self.graph(f, f.function.graph)

    def graph(self, f: Frame, graph: Graph) -> Point:
        """Walk a graph until nothing changes any more; what is known at its end."""
        points: dict[BasicBlock, Point] = {graph.blocks[0]: f.point}
        last, todo, visits = f.point, {0}, [0] * len(graph.blocks)
        ends: Point | None = None
        outer = f.block
        while todo:
            number = min(todo)
            todo.discard(number)
            block = graph.blocks[number]
            visits[number] += 1
            if visits[number] > MAX_VISITS:
                continue
            f.point = points[block].copy()
            f.block, f.events[block] = block, set()
            for action in block.actions:
                self._action(f, action)
            if not block.follow:
                last = f.point
                ends = last if ends is None else ends.joined(last)
                continue
            ways: list[Point | None] = [f.point] * len(block.follow)
            if block.cond is not None:
                self.eval(f, block.cond)
                ways = self._ways(f, block, block.cond)
            for following, point in zip(block.follow, ways, strict=True):
                if point is None:
                    continue
                known = points.get(following)
                merged = point if known is None else known.joined(point)
                if known is None or not merged.same(known):
                    points[following] = merged
                    todo.add(following.number)
        f.point = ends if ends is not None else last
        f.block = outer
        return f.point

    def _ways(self, f: Frame, block: BasicBlock, cond: Expr) -> list[Point | None]:
        """What is known where a condition holds, and where not; None where it is never so."""
        said = (NO_FACTS, NO_FACTS)
        if not isinstance(cond, Config):
            asked = cond.subject if isinstance(cond, Case) else cond
            held = self.values.labels(f, asked)
            self._decided(f, block, cond, asked, held)
            said = self._said(f, cond, held)
        here, known = f.point, BOTH_WAYS
        if isinstance(cond, Id):
            known = {x.of for x in here.env.get(cond.name, EMPTY) if x.kind == "const"}
        return [
            None if known == {not outcome} else
            Point(here.env, here.facts | facts | {Fact("cond", cond, outcome)}, here.alias, here.answers)
            for outcome, facts in zip((True, False), said, strict=True)
        ]  # fmt: skip

    def _said(self, f: Frame, cond: Expr, held: Labels) -> tuple[Facts, Facts]:
        """What holds when a condition is true, and when not; what it says of split is kept for later."""
        said = self.values.truth(f, cond, True), self.values.truth(f, cond, False)
        if held & FLAGS and PACKET not in held and ALL_READABLE not in f.point.facts:
            f.conditions[cond] = ALL_READABLE in said[0], ALL_READABLE in said[1]
        return said

    def _decided(self, f: Frame, block: BasicBlock, cond: Expr, asked: Expr, held: Labels) -> None:
        """What a user asked for decides where to go on, unless both ways do the same."""
        self._counted(f, asked, held)
        self._drops(f, asked)
        if ASKED not in held:
            return
        f.asked[cond] = held
        if not _is_comparison(asked) and effective(block.follow[0]) is not effective(block.follow[1]):
            self.note(f, "acted", text(asked), frozenset({ASKED}), cond, None)

    def _drops(self, f: Frame, cond: Expr) -> None:
        """Memory that cannot be read is told where a packet has no head yet: it can be dropped."""
        if not isinstance(cond, Call) or cond.name not in api.NET_IOV_TESTS or not cond.args:
            return
        if any(
            x.kind == "cond" and not x.outcome and self.values.types.tag(f, x.of) in ("sk_buff", "xdp_buff")
            for x in f.point.facts
        ):
            self.note(f, "drops", cond.name, self.values.labels(f, cond.args[0]), cond, cond.args[0])

    def _counted(self, f: Frame, cond: Expr, held: Labels) -> None:
        """A page's own count decides."""
        counts = of_kind(held, "count")
        if counts:
            call = next(
                (one for one in nodes.walk(cond) if isinstance(one, Call) and one.name in api.COUNTS), None
            )
            pages = frozenset(x._replace(kind="buf") for x in counts)
            self.note(f, "refcount", call.name if call is not None else text(cond), pages, call or cond, None)

    def _action(self, f: Frame, action: Do | Declare | Return) -> None:
        match action:
            case Do(expr=expr):
                self.eval(f, expr)
            case Declare(name=name, init=init, line=line):
                held = self.stores.local_object(f, action)
                if init is None or held:
                    f.point.forget(name)
                    f.point.env.pop(name, None)
                if held:
                    f.point.env[name] = held
                if init is not None:
                    self.stores.store(f, Id(line, name), init, line)
            case Return(value=value):
                if value is not None:
                    f.returns |= self.eval(f, value)
                    if "bool" in f.function.returns:
                        f.returns |= self.follows(f, value)
                    self.stores.remember(f, "", f.returns)
                    self._kinds(f, value, f.point.facts)
                    answer = self.values.answer(f, value)
                    f.answer = answer if f.answer is None else f.answer.joined(answer)

    def _kinds(self, f: Frame, e: Expr, facts: Facts) -> None:
        """Constants that are returned here, each with what holds then."""
        match e:
            case Ternary(cond=cond, then=then, other=other):
                for outcome, part in ((True, then), (False, other)):
                    self._kinds(f, part, facts | self.values.truth(f, cond, outcome))
            case Id(name=name) if name.isupper() and name not in f.locals:
                here = frozenset(x for x in facts if x.kind != "cond")
                f.kinds[name] = both(f.kinds[name], here) if name in f.kinds else here

    def follows(self, f: Frame, value: Expr) -> Labels:
        """A constant chosen by what follows split follows it too, or its opposite."""
        if not isinstance(value, Num | Id):
            return EMPTY
        word = value.text if isinstance(value, Num) else value.name
        if word not in ("0", "1", "true", "false") and not word.isupper():
            return EMPTY
        facts, found = f.point.facts, EMPTY
        if any(x.kind == "cond" and self.values.is_split(f, x.of) for x in facts):
            if word.isupper():
                return found | SPLIT
            found |= SPLIT if (word in ("1", "true")) != (ALL_READABLE in facts) else UNSPLIT
        return found

    # -- expressions -----------------------------------------------------------------------------

    def eval(self, f: Frame, e: Expr) -> Labels:
        """What an expression may hold; notes what happens in it."""
        handler = self._eval.get(e.__class__)
        return handler(f, e) if handler is not None else EMPTY

    def _id(self, f: Frame, e: Id) -> Labels:
        held = f.point.env.get(e.name)
        return held if held is not None else self.values.labels(f, e)

    def _addr(self, f: Frame, e: Addr) -> Labels:
        self.eval(f, e.of)
        return self.values.labels(f, e)

    def _unary(self, f: Frame, e: Unary) -> Labels:
        held = self.eval(f, e.of)
        if e.op in ("++", "--") and isinstance(e.of, Id | Field):
            f.point.forget(e.of.name if isinstance(e.of, Id) else "." + e.of.name)
        return held

    def _binary(self, f: Frame, e: Binary) -> Labels:
        left = self.eval(f, e.left)
        if e.op in ("&&", "||"):
            right = self._behind(f, e.left, e.op == "&&", e.right)
        else:
            right = self.eval(f, e.right)
        if e.op in ("==", "!=") and self.values.is_itself(f, e.left, e.right):
            return EMPTY
        return carried(left | right) if e.op in COMPARES else left | right

    def _behind(self, f: Frame, cond: Expr, outcome: bool, e: Expr) -> Labels:
        """An expression that is looked at only where a condition holds."""
        before = f.point.facts
        true, false = self._said(f, cond, self.values.labels(f, cond))
        f.point.facts = before | (true if outcome else false) | {Fact("cond", cond, outcome)}
        held = self.eval(f, e)
        f.point.facts = before & f.point.facts
        return held

    def _ternary(self, f: Frame, e: Ternary) -> Labels:
        self.eval(f, e.cond)
        held = self.values.labels(f, e.cond)
        self._counted(f, e.cond, held)
        true, false = self._said(f, e.cond, held)
        found = EMPTY
        if ASKED in held and text(e.then) != text(e.other):
            found |= {ASKED}
        for outcome, facts, part in ((True, true, e.then), (False, false, e.other)):
            before = f.point.facts
            f.point.facts = before | facts | {Fact("cond", e.cond, outcome)}
            value = self.eval(f, part) | self.follows(f, part)
            if self.values.is_readable(f, part):  # behind a guard: what comes out may be read
                value = frozenset(x._replace(safe=True) if x.kind == "va" else x for x in value)
            found |= value
            f.point.facts = before & f.point.facts
        return found

    def _init(self, f: Frame, e: Init) -> Labels:
        for one in e.values:
            self.eval(f, one)
        return EMPTY

    def _other(self, f: Frame, e: Other) -> Labels:
        found = EMPTY
        for one in e.parts:
            found = self.eval(f, one)
        return found

    def _inner(self, f: Frame, e: Inner) -> Labels:
        graph = self._graphs.get(e)
        if graph is None:
            graph = self._graphs[e] = graph_of(e.body)
        self.graph(f, graph)
        last = e.body[-1] if e.body else None
        return self.values.labels(f, last.expr) if isinstance(last, Do) else EMPTY

    def _access(self, f: Frame, e: Field | Index | Deref) -> Labels:
        """A field, an element, what a pointer points to: reading through payload's address is noted."""
        if isinstance(e, Field):
            self.taken(f, e)
        match e:
            case Field(base=Id(name=name)):
                base = f.point.env.get(name, EMPTY)
            case Field(base=Field(base=Id() | Field())):
                base = EMPTY  # nothing happens on the way along fields
            case Field(base=inner):
                base = self.eval(f, inner)
            case Index(base=inner, index=index):
                base = self.eval(f, inner)
                self.eval(f, index)
            case Deref(of=inner):
                base = self.eval(f, inner)
        if base and any(x.kind == "va" for x in base):
            if isinstance(e, Field):
                self.note(f, "read", "->", base, e, e.base)
            elif not isinstance(inner, Addr):
                self.note(f, "read", "*", base, e, inner)
        return self.values.labels(f, e)

    def _assign(self, f: Frame, e: Assign) -> Labels:
        return self.stores.store(f, e.left, e.right, e.line, e.op)

    def taken(self, f: Frame, e: Field) -> None:
        """A buffer is taken from where it was kept."""
        held = of_kind(self.values.labels(f, e), "buf", "va")
        if held:
            for cell in self.memory.cells(f, f.point.env, e):
                self.note(f, "taken", e.name, held, e, None, cell)

    # -- events ------------------------------------------------------------------------------------

    def note(
        self, f: Frame, what: str, call: str, labels: Labels, e: Expr, about: Expr | None,
        cell: Cell | None = None,
    ) -> None:  # fmt: skip
        """Something happens to payload; ``about``: which expression is handled."""
        if what != "acted":
            labels = frozenset(x for x in labels if x.kind in KINDS or x.kind == "pool")
        if what in ("read", "write"):
            labels = of_kind(labels, "va")
        if not labels and what not in ("sync", "unmap", "pull"):
            return
        facts, held = f.point.facts, memory(labels)
        readable = (bool(held) and all(x.safe for x in held)) or self.values.is_readable(f, about)
        labels = frozenset(x._replace(safe=False) if x.safe else x for x in labels)
        f.events[f.block].add(
            Event(what, call, labels, f.function.path, e.line, f.function.name, readable,
                  bool(facts & ASIDE), FIRST in facts, cell)
        )  # fmt: skip


def _is_comparison(cond: Expr) -> bool:
    """True when something is compared with what there is: that alone changes nothing."""
    match cond:
        case Binary(op="==" | "!=", left=left, right=right):
            return not any(
                isinstance(one, Num) or (isinstance(one, Id) and one.name.isupper()) for one in (left, right)
            )
    return False


def effective(block: BasicBlock) -> BasicBlock:
    """The next block in which something is done that is not only said."""
    for _ in range(20):
        if block.cond is not None or len(block.follow) != 1 or not all(map(_only_says, block.actions)):
            break
        block = block.follow[0]
    return block


def _only_says(action: Do | Declare | Return) -> bool:
    return (
        isinstance(action, Do) and isinstance(action.expr, Call) and bool(api.PRINTS.search(action.expr.name))
    )
