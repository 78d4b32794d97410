"""Control flow: the statements of a function as a graph of basic blocks.

Conditions are taken apart: ``a && b`` is two blocks, ``!a`` has its ways exchanged, ``unlikely(a)`` is
``a``. So what holds where ways meet needs no algebra of its own. A switch is a chain of ``Case`` conditions;
goto, break, continue and early returns are edges.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from netmem.contract.lint.nodes import (
    Binary,
    Call,
    Case,
    Compound,
    Declare,
    Do,
    Expr,
    Goto,
    If,
    Label,
    Leave,
    Loop,
    Num,
    Return,
    Stmt,
    Switch,
    Unary,
    is_zero,
)

TRANSPARENT = frozenset(("likely", "unlikely", "READ_ONCE", "bool", "WARN_ON", "WARN_ON_ONCE", "data_race"))
NEVER_ENDS = frozenset(("1", "true"))


@dataclass(slots=True, eq=False)
class BasicBlock:
    """Actions, then: nothing (a return, or the end), one following block, or two: where ``cond`` holds, and
    where not."""

    number: int
    actions: list[Do | Declare | Return] = field(default_factory=list)
    cond: Expr | None = None
    follow: list[BasicBlock] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Graph:
    """Of one function: ``blocks`` in reverse postorder from the entry; no unreachable ones."""

    blocks: list[BasicBlock]


def graph_of(body: list[Stmt]) -> Graph:
    """The graph of a function's statements."""
    builder = _Builder()
    entry = builder.here
    builder.statements(body)
    order: list[BasicBlock] = []
    seen = {id(entry)}
    stack = [(entry, iter(entry.follow))]
    while stack:
        block, rest = stack[-1]
        following = next((one for one in rest if id(one) not in seen), None)
        if following is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(id(following))
            stack.append((following, iter(following.follow)))
    order.reverse()
    for number, block in enumerate(order):
        block.number = number
    return Graph(order)


class _Builder:
    def __init__(self) -> None:
        self.here = BasicBlock(0)
        self.labels: dict[str, BasicBlock] = {}
        self.leave: list[tuple[BasicBlock, BasicBlock | None]] = []  # (break, continue) of loops and switches

    def _goto(self, target: BasicBlock) -> None:
        """End the block here, and go on in one that nothing leads to yet."""
        self.here.follow.append(target)
        self.here = BasicBlock(0)

    def statements(self, body: list[Stmt]) -> None:
        for stmt in body:
            self._statement(stmt)

    def _statement(self, stmt: Stmt) -> None:
        match stmt:
            case Do() | Declare():
                self.here.actions.append(stmt)
            case Compound(body=body):
                self.statements(body)
            case If(cond=cond, then=then, other=other):
                yes, no, after = BasicBlock(0), BasicBlock(0), BasicBlock(0)
                self._branch(cond, yes, no)
                for block, part in ((yes, then), (no, other)):
                    self.here = block
                    self.statements(part)
                    self.here.follow.append(after)
                self.here = after
            case Loop():
                self._loop(stmt)
            case Switch(subject=subject, cases=cases):
                self._switch(stmt.line, subject, cases)
            case Return():
                self.here.actions.append(stmt)
                self.here = BasicBlock(0)
            case Goto(label=label):
                self._goto(self.labels.setdefault(label, BasicBlock(0)))
            case Label(name=name):
                block = self.labels.setdefault(name, BasicBlock(0))
                self.here.follow.append(block)
                self.here = block
            case Leave(kind=kind):
                ways = [one[kind == "continue"] for one in self.leave]
                target = next((one for one in reversed(ways) if one is not None), None)
                self._goto(target if target is not None else BasicBlock(0))

    def _branch(self, cond: Expr, yes: BasicBlock, no: BasicBlock) -> None:
        """Leave the block here for one of two."""
        match cond:
            case Unary(op="!", of=of):
                self._branch(of, no, yes)
            case Binary(op="&&", left=left, right=right):
                middle = BasicBlock(0)
                self._branch(left, middle, no)
                self.here = middle
                self._branch(right, yes, no)
            case Binary(op="||", left=left, right=right):
                middle = BasicBlock(0)
                self._branch(left, yes, middle)
                self.here = middle
                self._branch(right, yes, no)
            case Binary(op="==" | "!=" as op, left=left, right=right) if is_zero(right) and _is_boolean(left):
                self._branch(left, *((no, yes) if op == "==" else (yes, no)))
            case Call(args=[of]) if cond.name in TRANSPARENT:
                self._branch(of, yes, no)
            case Num(text=said) if said in NEVER_ENDS:
                self.here.follow.append(yes)
            case _ if is_zero(cond):
                self.here.follow.append(no)
            case _:
                self.here.cond = cond
                self.here.follow += [yes, no]

    def _loop(self, stmt: Loop) -> None:
        head, body, after, step = BasicBlock(0), BasicBlock(0), BasicBlock(0), BasicBlock(0)
        cond = stmt.cond if stmt.cond is not None else Num(stmt.line, "1")
        if stmt.late:
            self._goto(body)
        else:
            self._goto(head)
            self.here = head
            self._branch(cond, body, after)
        self.leave.append((after, step))
        self.here = body
        self.statements(stmt.body)
        self.leave.pop()
        self.here.follow.append(step)
        self.here = step
        if stmt.step is not None:
            self.here.actions.append(Do(stmt.line, stmt.step))
        if stmt.late:
            self._branch(cond, body, after)
        else:
            self.here.follow.append(head)
        self.here = after

    def _switch(self, line: int, subject: Expr, cases: list[tuple[list[Expr] | None, list[Stmt]]]) -> None:
        self.here.actions.append(Do(line, subject))
        after = BasicBlock(0)
        default = after
        bodies = [BasicBlock(0) for _ in cases]
        said: list[Expr] = []
        for (values, _), block in zip(cases, bodies, strict=True):
            if values is None:
                default = block
                continue
            said += values
            self.here.cond = Case(line, subject, values)
            otherwise = BasicBlock(0)
            self.here.follow += [block, otherwise]
            self.here = otherwise
        self.here.follow.append(default)
        self.leave.append((after, None))
        for at, (_, part) in enumerate(cases):
            self.here = bodies[at]
            self.statements(part)
            self.here.follow.append(bodies[at + 1] if at + 1 < len(bodies) else after)
        self.leave.pop()
        self.here = after


def _is_boolean(e: Expr) -> bool:
    """True for what is a condition itself, so that a comparison with zero negates it."""
    match e:
        case Unary(op="!") | Binary(op="&&" | "||" | "==" | "!=" | "<" | ">" | "<=" | ">="):
            return True
        case Call():
            return e.name in TRANSPARENT
    return False
