"""Kinds: constants of an enumeration that one function returns, and another decides by."""

from __future__ import annotations

from netmem.contract.lint.csource import Function
from netmem.contract.lint.nodes import Binary, Case, Expr, Id, Num, Return, is_zero

BOTH = frozenset((True, False))


def decides(function: Function, param: str, outcome: bool, constant: str) -> bool:
    """True when a function can return something true (or false), a parameter being this constant."""
    return outcome in _results(function, param, constant)


def _results(function: Function, param: str, constant: str) -> frozenset[bool]:
    todo, seen, found = [function.graph.blocks[0]], {0}, frozenset[bool]()
    while todo:
        block = todo.pop()
        for action in block.actions:
            if isinstance(action, Return) and action.value is not None:
                found |= _truth(action.value)
        ways = _ways(block.cond, param, constant) if block.cond is not None else BOTH
        for outcome, following in zip((True, False), block.follow, strict=False):
            if (block.cond is None or outcome in ways) and following.number not in seen:
                seen.add(following.number)
                todo.append(following)
    return found or BOTH


def _truth(value: Expr) -> frozenset[bool]:
    if is_zero(value):
        return frozenset({False})
    return frozenset({True}) if isinstance(value, Num) else BOTH


def _ways(cond: Expr, param: str, constant: str) -> frozenset[bool]:
    match cond:
        case Case(subject=Id(name=name), values=values) if name == param:
            return frozenset({not values or any(isinstance(x, Id) and x.name == constant for x in values)})
        case Binary(op="==" | "!=" as op, left=Id(name=left), right=Id(name=right)) if param in (left, right):
            other = right if left == param else left
            return frozenset({(other == constant) == (op == "==")})
    return BOTH
