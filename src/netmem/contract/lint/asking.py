"""What comes of asking set_ringparam to turn header split on: whether any way leads to success."""

from __future__ import annotations

from netmem.contract.lint.csource import Function
from netmem.contract.lint.flow import Flow
from netmem.contract.lint.labels import Label
from netmem.contract.lint.nodes import (
    Assign,
    Binary,
    Call,
    Case,
    Declare,
    Do,
    Expr,
    Field,
    Id,
    Num,
    Return,
    Unary,
    is_zero,
)

Truths = frozenset[bool]
Env = dict[str, Truths]  # locals -> what they may be
BOTH: Truths = frozenset((True, False))
MAX_DEPTH = 5


def can_be_enabled(flow: Flow, setter: Function) -> bool:
    """False when every way that ETHTOOL_TCP_DATA_SPLIT_ENABLED can take returns an error."""
    return False in _results(flow, setter, 0)


def _results(flow: Flow, function: Function, depth: int) -> Truths:
    """Whether a function may return something other than zero, and zero."""
    blocks = function.graph.blocks
    known: dict[int, Env] = {0: {}}
    todo, found = [blocks[0]], Truths()
    while todo:
        block = todo.pop()
        env = dict(known[block.number])
        for action in block.actions:
            match action:
                case Return(value=value) if value is not None:
                    found |= _value(flow, function, value, env, depth)
                case Declare(name=name, init=value) if value is not None:
                    env[name] = _value(flow, function, value, env, depth)
                case Do(expr=Assign(op="=", left=Id(name=name), right=value)):
                    env[name] = _value(flow, function, value, env, depth)
        ways = _outcomes(flow, function, block.cond, depth) if block.cond is not None else BOTH
        for outcome, following in zip((True, False), block.follow, strict=False):
            if block.cond is not None and outcome not in ways:
                continue
            before = known.get(following.number)
            joined = env if before is None else {k: before[k] | v for k, v in env.items() if k in before}
            if joined != before:
                known[following.number] = joined
                todo.append(following)
    return found or BOTH


def _value(flow: Flow, function: Function, e: Expr, env: Env, depth: int) -> Truths:
    if is_zero(e):
        return frozenset({False})
    if isinstance(e, Num) or (isinstance(e, Unary) and e.op == "-"):
        return frozenset({True})
    if isinstance(e, Id) and e.name in env:
        return env[e.name]
    return _outcomes(flow, function, e, depth)


def _outcomes(flow: Flow, function: Function, cond: Expr, depth: int) -> Truths:
    """What a condition can be when header split, which is off, is to be turned on."""
    held = flow.asked.get(cond)
    if held is None:
        return BOTH
    match cond:
        case Binary(op="==" | "!=" as op, left=left, right=right):
            for one in (left, right):
                known = _means(one)
                if known is not None:
                    return frozenset({known == (op == "==")})
            return frozenset({op == "!="})  # what is asked for is not what there is
        case Case(values=values) if values:
            meant = [_means(one) for one in values]
            if True in meant:
                return frozenset({True})
            if None not in meant:
                return frozenset({False})
        case Call() if depth < MAX_DEPTH:
            target = flow.world.function(cond.name, function.path) if cond.name else None
            if target is not None and not target.macro:
                return _results(flow, target, depth + 1)
        case Id() | Field():
            if Label("split") in held and Label("unsplit") not in held:
                return frozenset({True})
    return BOTH


def _means(e: Expr) -> bool | None:
    """Whether a constant is the one that turns split on; None for anything else."""
    if not isinstance(e, Id) or not e.name.startswith("ETHTOOL_TCP_DATA_SPLIT_"):
        return None
    return e.name.endswith("_ENABLED")
