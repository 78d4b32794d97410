"""C as the rules see it: typed nodes of expressions and statements. ``lowering`` makes them, ``cfg`` puts
them in order.

Nodes are compared by identity: the same text at two places is two nodes. What lowering cannot read is an
``Other``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields


@dataclass(slots=True, eq=False)
class Node:
    """``line`` is of the file, 0 where it does not matter."""

    line: int


@dataclass(slots=True, eq=False)
class Expr(Node):
    """An expression."""


@dataclass(slots=True, eq=False)
class Id(Expr):
    name: str


@dataclass(slots=True, eq=False)
class Num(Expr):
    """A number, character, true, false or NULL."""

    text: str


@dataclass(slots=True, eq=False)
class Text(Expr):
    """A string, or sizeof."""


@dataclass(slots=True, eq=False)
class Field(Expr):
    """``base.name`` and ``base->name``."""

    base: Expr
    name: str


@dataclass(slots=True, eq=False)
class Index(Expr):
    base: Expr
    index: Expr


@dataclass(slots=True, eq=False)
class Deref(Expr):
    of: Expr


@dataclass(slots=True, eq=False)
class Addr(Expr):
    of: Expr


@dataclass(slots=True, eq=False)
class Call(Expr):
    function: Expr
    args: list[Expr]

    @property
    def name(self) -> str:
        """What is called, when that is a name; "" for calls through pointers."""
        return self.function.name if isinstance(self.function, Id) else ""


@dataclass(slots=True, eq=False)
class Assign(Expr):
    op: str
    left: Expr
    right: Expr


@dataclass(slots=True, eq=False)
class Unary(Expr):
    op: str
    of: Expr


@dataclass(slots=True, eq=False)
class Binary(Expr):
    op: str
    left: Expr
    right: Expr


@dataclass(slots=True, eq=False)
class Ternary(Expr):
    cond: Expr
    then: Expr
    other: Expr


@dataclass(slots=True, eq=False)
class Init(Expr):
    """``{ .name = value, ... }``: names are "" where there is no designator. ``configs``: #if of each item,
    or ""."""

    names: list[str]
    values: list[Expr]

    @property
    def items(self) -> Iterator[tuple[str, Expr]]:
        return zip(self.names, self.values, strict=True)


@dataclass(slots=True, eq=False)
class Other(Expr):
    """Operands one after the other: a comma expression, or syntax that was not understood."""

    parts: list[Expr]


@dataclass(slots=True, eq=False)
class Inner(Expr):
    """A statement expression: ``({ ... })``. Its value is its last statement's."""

    body: list[Stmt]


@dataclass(slots=True, eq=False)
class Config(Expr):
    """The condition of an #if: nobody knows which branch it is."""

    text: str


@dataclass(slots=True, eq=False)
class Case(Expr):
    """The condition under which a switch takes a case; ``values`` is empty for default."""

    subject: Expr
    values: list[Expr]


@dataclass(slots=True, eq=False)
class Stmt(Node):
    """A statement."""


@dataclass(slots=True, eq=False)
class Do(Stmt):
    expr: Expr


@dataclass(slots=True, eq=False)
class Declare(Stmt):
    type: str
    name: str
    init: Expr | None


@dataclass(slots=True, eq=False)
class If(Stmt):
    cond: Expr
    then: list[Stmt]
    other: list[Stmt]


@dataclass(slots=True, eq=False)
class Loop(Stmt):
    """``cond`` is None where it never ends by itself; ``late``: do ... while."""

    cond: Expr | None
    body: list[Stmt]
    step: Expr | None = None
    late: bool = False


@dataclass(slots=True, eq=False)
class Switch(Stmt):
    """``cases``: (values, or None for default; statements)."""

    subject: Expr
    cases: list[tuple[list[Expr] | None, list[Stmt]]]


@dataclass(slots=True, eq=False)
class Return(Stmt):
    value: Expr | None


@dataclass(slots=True, eq=False)
class Leave(Stmt):
    """break or continue."""

    kind: str


@dataclass(slots=True, eq=False)
class Goto(Stmt):
    label: str


@dataclass(slots=True, eq=False)
class Label(Stmt):
    name: str


@dataclass(slots=True, eq=False)
class Compound(Stmt):
    body: list[Stmt] = field(default_factory=list)


ZEROS = frozenset(("0", "NULL", "false", "0U", "0UL", "0x0"))


def is_zero(e: Expr) -> bool:
    """True for 0, NULL and false."""
    return (isinstance(e, Num) and e.text in ZEROS) or (isinstance(e, Id) and e.name in ZEROS)


_PARTS: dict[type, tuple[str, ...]] = {}


def children(node: Node) -> Iterator[Node]:
    """What a node is made of, in the order of the source."""
    names = _PARTS.get(type(node))
    if names is None:
        names = _PARTS[type(node)] = tuple(
            one.name for one in fields(node) if one.type not in ("str", "int", "bool", "list[str]")
        )
    for name in names:
        yield from _nodes(getattr(node, name))


def _nodes(part: object) -> Iterator[Node]:
    if isinstance(part, Node):
        yield part
    elif isinstance(part, list | tuple):
        for one in part:
            yield from _nodes(one)


def walk(part: Node | list[Stmt]) -> Iterator[Node]:
    """A node, or statements, with all that is in them, in the order of the source."""
    todo: list[Node] = list(reversed(part)) if isinstance(part, list) else [part]
    while todo:
        node = todo.pop()
        yield node
        todo += reversed(list(children(node)))


def names(part: Node | list[Stmt]) -> set[str]:
    """Every identifier and field in a node."""
    return {one.name for one in walk(part) if isinstance(one, Id | Field)}


def text(e: Node | None) -> str:
    """An expression as C, roughly."""
    match e:
        case Id(name=name):
            return name
        case Num(text=said) | Config(text=said):
            return said
        case Field(base=base, name=name):
            return f"{text(base)}->{name}"
        case Call(function=function, args=args):
            return f"{text(function)}({', '.join(map(text, args))})"
        case Binary(op=op, left=left, right=right) | Assign(op=op, left=left, right=right):
            return f"{text(left)} {op} {text(right)}"
        case Unary(op=op, of=of):
            return op + text(of)
        case Addr(of=of):
            return "&" + text(of)
        case Deref(of=of):
            return "*" + text(of)
        case Index(base=base, index=index):
            return f"{text(base)}[{text(index)}]"
        case Ternary(cond=cond, then=then, other=other):
            return f"{text(cond)} ? {text(then)} : {text(other)}"
        case Case(subject=subject, values=values):
            return (
                f"{text(subject)} == {' or '.join(map(text, values))}"
                if values
                else f"{text(subject)} is another"
            )
    return "..."
