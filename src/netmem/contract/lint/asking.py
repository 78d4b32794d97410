"""What comes of asking set_ringparam to turn header split on: whether any way leads to success."""

from __future__ import annotations

from netmem.contract.lint.csource import Function
from netmem.contract.lint.flow import Flow
from netmem.contract.lint.labels import Label
from netmem.contract.lint.nodes import Binary, Call, Case, Expr, Field, Id, Num, Return, Unary, is_zero

BOTH = frozenset((True, False))
MAX_DEPTH = 5


def can_be_enabled(flow: Flow, setter: Function) -> bool:
    """False when every way that ETHTOOL_TCP_DATA_SPLIT_ENABLED can take returns an error."""
    return False in _results(flow, setter, 0)


def _results(flow: Flow, function: Function, depth: int) -> frozenset[bool]:
    """Whether a function may return something other than zero, and zero."""
    blocks = function.graph.blocks
    reached, todo, found = {0}, [blocks[0]], frozenset[bool]()
    while todo:
        block = todo.pop()
        for action in block.actions:
            if isinstance(action, Return) and action.value is not None:
                found |= _value(flow, function, action.value, depth)
        ways = _outcomes(flow, function, block.cond, depth) if block.cond is not None else BOTH
        for outcome, following in zip((True, False), block.follow, strict=False):
            if (block.cond is None or outcome in ways) and following.number not in reached:
                reached.add(following.number)
                todo.append(following)
    return found or BOTH


def _value(flow: Flow, function: Function, e: Expr, depth: int) -> frozenset[bool]:
    if is_zero(e):
        return frozenset({False})
    if isinstance(e, Num) or (isinstance(e, Unary) and e.op == "-"):
        return frozenset({True})
    return _outcomes(flow, function, e, depth)


def _outcomes(flow: Flow, function: Function, cond: Expr, depth: int) -> frozenset[bool]:
    """What a condition can be when header split is to be turned on."""
    held = flow.asked.get(cond)
    if held is None:
        return BOTH
    match cond:
        case Binary(op="==" | "!=" as op, left=left, right=right):
            for one in (left, right):
                known = _means(one)
                if known is not None:
                    return frozenset({known == (op == "==")})
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
