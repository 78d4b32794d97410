"""R2: users can set tcp-data-split."""

from __future__ import annotations

import re

from netmem.contract.lint.csource import Function
from netmem.contract.lint.lowering import Expr
from netmem.contract.lint.model import FAIL, PASS, Case, Evidence, Rule, Verdict

BIT = "ETHTOOL_RING_USE_TCP_DATA_SPLIT"
_WORD = re.compile(r"\w+")
CURE = f"add {BIT} to supported_ring_params and act on tcp_data_split in set_ringparam"
DEPTH = 6
PRINTS = re.compile(r"print|_dbg|_info|_warn|_err|_notice|NL_SET", re.IGNORECASE)


def judge(case: Case) -> Verdict:
    """Each table of ethtool operations: the bit, and what becomes of the setting."""
    seen: list[Evidence] = []
    best: Verdict | None = None
    for name, place, params, setter in _tables(case):
        line = place[1]
        if not _has_bit(case, params):
            continue
        here = Evidence(place[0], line, f"{name}: supported_ring_params has {BIT}")
        function = case.world.function(setter, place[0]) if setter else None
        if function is None:
            seen.append(Evidence(place[0], line, f"{name} has no set_ringparam that is known here", CURE))
            continue
        acted = _reaches(case, function)
        if acted is not None:
            best = Verdict(
                PASS,
                "tcp-data-split is offered and set_ringparam acts on it",
                [here, Evidence(acted.path, _first(case, acted), f"{acted.name}() looks at tcp_data_split")],
            )
            break
        seen.append(Evidence(function.path, function.line, f"{setter}() never looks at tcp_data_split", CURE))
    if best is not None:
        return best
    if seen:
        return Verdict(FAIL, "tcp-data-split is offered, but setting it does nothing", seen)
    reports = [
        Evidence(f.path, f.line, f"{f.name}() reports tcp_data_split, which users cannot set", CURE)
        for found in case.world.named.values() for f in found
        if f.path in case.world.own_paths and b"tcp_data_split" in f.words and "get_ringparam" in f.name
    ]  # fmt: skip
    return Verdict(FAIL, "tcp-data-split is not among supported_ring_params", reports)


def _first(case: Case, function: Function) -> int:
    """The line of a function on which tcp_data_split stands first."""
    lines = case.world.files[function.path].lines[function.line - 1 : function.end]
    return next((n for n, text in enumerate(lines, function.line) if "tcp_data_split" in text), function.line)


def _tables(case: Case) -> list[tuple[str, tuple[str, int], Expr, str]]:
    """(name, place, supported_ring_params, set_ringparam) of each struct ethtool_ops."""
    found = []
    for name, (type_, expr, path, line) in case.world.globals.items():
        if "ethtool_ops" not in type_ or expr[0] != "init" or path not in case.world.own_paths:
            continue
        fields = dict(expr[1])
        setter = fields.get("set_ringparam")
        params = fields.get("supported_ring_params", ("num", "0"))
        extra = _assigned(case, path)
        at = _line_of(params) or line
        found.append((name, (path, at), ("bin", "|", params, extra) if extra else params,
                      setter[1] if setter and setter[0] == "id" else ""))  # fmt: skip
    return found


def _assigned(case: Case, path: str) -> Expr | None:
    """What functions add to supported_ring_params at run time."""
    found: Expr | None = None

    def visit(part: object) -> None:
        nonlocal found
        if isinstance(part, tuple) and part and part[0] == "assign" and part[2][0] == "field":
            if part[2][2] == "supported_ring_params":
                found = part[3] if found is None else ("bin", "|", found, part[3])
        if isinstance(part, tuple | list):
            for inner in part:
                visit(inner)

    for function in (f for fs in case.world.named.values() for f in fs):
        if b"supported_ring_params" in function.words and function.path in case.world.own_paths:
            visit(function.body)
    return found


def _has_bit(case: Case, e: Expr) -> bool:
    todo, seen = [_WORD.findall(_flat(e))], set()
    while todo:
        for word in todo.pop():
            if word == BIT:
                return True
            if word in case.world.macros and word not in seen:
                seen.add(word)
                todo.append(_WORD.findall(case.world.macros[word]))
    return False


def _flat(e: object) -> str:
    if isinstance(e, tuple) and e and e[0] == "un" and e[1] == "~":
        return ""
    if isinstance(e, tuple | list):
        return " ".join(_flat(part) for part in e)
    return str(e) if isinstance(e, str) else ""


def _line_of(e: object) -> int:
    if isinstance(e, tuple) and e and e[0] == "id":
        return int(e[2])
    if isinstance(e, tuple | list):
        return next((line for line in map(_line_of, e) if line), 0)
    return 0


def _acts(part: object, counts: bool) -> bool:
    """True when tcp_data_split decides something: a condition, a value kept or returned, a driver's call."""
    if isinstance(part, list):
        return any(_acts(one, counts) for one in part)
    if not isinstance(part, tuple) or not part:
        return False
    kind = part[0]
    if kind == "field" and part[2] == "tcp_data_split":
        return counts
    if kind in ("if", "loop", "switch"):
        return _acts(part[1], True) or any(_acts(one, counts) for one in part[2:])
    if kind in ("return", "decl", "bin", "cond", "un"):
        return any(_acts(one, True) for one in part[1:])
    if kind == "assign":
        return _acts(part[3], True)
    if kind == "call":
        name = part[1][1] if part[1][0] == "id" else ""
        quiet = PRINTS.search(name) is not None
        return not quiet and any(_acts(arg, True) for arg in part[2])
    return any(_acts(one, counts) for one in part[1:] if isinstance(one, tuple | list))


def _reaches(case: Case, start: Function) -> Function | None:
    """A function that ``start`` calls, or itself, which looks at tcp_data_split."""
    seen, todo = {id(start)}, [(start, 0)]
    while todo:
        function, depth = todo.pop(0)
        if b"tcp_data_split" in function.words and _acts(function.body, False):
            return function
        if depth >= DEPTH:
            continue
        for word in function.words:
            name = word.decode()
            target = case.world.function(name, function.path) if name in case.world.named else None
            if target is not None and id(target) not in seen:
                seen.add(id(target))
                todo.append((target, depth + 1))
    return None


RULE = Rule(
    "R2",
    f"supported_ring_params has {BIT}, and set_ringparam acts on or checks tcp_data_split. Hardware split "
    "without that, or reporting without setting, fails.",
    judge,
)
