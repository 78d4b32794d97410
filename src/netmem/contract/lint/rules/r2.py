"""R2: users can set tcp-data-split."""

from __future__ import annotations

import re

from netmem.contract.lint.asking import Asking, Outcome
from netmem.contract.lint.csource import Function
from netmem.contract.lint.model import FAIL, PARTIAL, PASS, Case, Evidence, Rule, Verdict
from netmem.contract.lint.nodes import Assign, Binary, Call, Expr, Field, Id, Init, Num, Return, Unary, walk

BIT = "ETHTOOL_RING_USE_TCP_DATA_SPLIT"
SPLIT = b"ETHTOOL_TCP_DATA_SPLIT_"
_WORD = re.compile(r"\w+")
CURE = f"add {BIT} to supported_ring_params and act on tcp_data_split in set_ringparam"
DEPTH = 6


def judge(case: Case) -> Verdict:
    """Each table of ethtool operations: the bit, and what becomes of the setting."""
    seen: list[Evidence] = []
    reported: list[Evidence] = []
    for name, path, line, params, setter in _tables(case):
        here = Evidence(path, line, f"{name}: supported_ring_params has {BIT}")
        if not _has_bit(case, params):
            reported.append(Evidence(path, line, f"{name} does not offer {BIT}", CURE))
            continue
        function = case.world.function(setter, path) if setter else None
        if function is None:
            seen.append(Evidence(path, line, f"{name} has no set_ringparam that is known here", CURE))
            continue
        acted = _acts(case, function)
        on = Asking(case.flow).setter(function)
        kept = acted is not None or on.told
        verdict = _comes_of(case, function, on, [here, acted] if acted else [here]) if kept else None
        if verdict is not None and verdict.verdict != FAIL:
            return verdict
        nothing = f"nothing that {setter}() does depends on tcp_data_split"
        seen.append(Evidence(function.path, function.line, verdict.why if verdict else nothing, CURE))
    if seen:
        return Verdict(FAIL, "tcp-data-split is offered, but setting it does nothing", seen)
    reported += [
        Evidence(f.path, f.line, f"{f.name}() reports tcp_data_split, which users cannot set", CURE)
        for found in case.world.named.values() for f in found
        if f.path in case.world.own_paths and b"tcp_data_split" in f.words and "get_ringparam" in f.name
    ]  # fmt: skip
    return Verdict(FAIL, "tcp-data-split is not among supported_ring_params", reported)


def _comes_of(case: Case, setter: Function, on: Outcome, places: list[Evidence]) -> Verdict:
    """What becomes of asking for split, on every way that leads to success."""
    if False not in on.truths:
        return Verdict(FAIL, f"{setter.name}() refuses to turn it on, whatever else")
    if not on.always and not _core_decides(case):
        here = Evidence(setter.path, setter.line, "", CURE)
        if on.ever:
            here.message = f"{setter.name}() reports success on a way on which the setting is kept nowhere"
            return Verdict(PARTIAL, "tcp-data-split is accepted, and forgotten on some ways", [here])
        if (
            False in Asking(case.flow, "DISABLED").setter(setter).truths
        ):  # else split is always on, and said so
            return Verdict(FAIL, f"{setter.name}() looks at it, and keeps it nowhere")
    blind = _cannot_tell(case, setter)
    if blind:
        return Verdict(
            FAIL, f"{blind[0]}() tells split on from off, and whoever makes rings does not ask which"
        )
    return Verdict(PASS, "tcp-data-split is offered and set_ringparam acts on it", places)


def _cannot_tell(case: Case, setter: Function) -> list[str]:
    """Functions that say whether split is on, and are only ever asked whether it is known."""
    functions = [f for found in case.world.named.values() for f in found if f.path in case.world.own_paths]
    found = []
    for getter in functions:
        said = {w.removeprefix(SPLIT).decode() for w in getter.words if w.startswith(SPLIT)}
        if getter is setter or getter.macro or not {"ENABLED", "DISABLED"} <= said or not _returns(getter):
            continue
        askers = [
            f for f in functions
            if getter.name.encode() in f.called and f is not setter and not _reports(case, f)
        ]  # fmt: skip
        asked = [one for f in askers for one in _compared(f, getter.name)]
        if asked and all(one == f"{SPLIT.decode()}UNKNOWN" for one in asked):
            found.append(getter.name)
    return found


def _returns(function: Function) -> bool:
    """True for a function whose results are settings of tcp-data-split."""
    results = [one.value for one in walk(function.body) if isinstance(one, Return) and one.value is not None]
    named = {one.name.encode() for value in results for one in walk(value) if isinstance(one, Id)}
    return SPLIT + b"ENABLED" in named and SPLIT + b"DISABLED" in named


def _compared(function: Function, getter: str) -> list[str]:
    """What its results are compared with; "" where they go elsewhere."""
    calls = {one for one in walk(function.body) if isinstance(one, Call) and one.name == getter}
    found = []
    for one in walk(function.body):
        if isinstance(one, Binary) and one.op in ("==", "!="):
            for call, other in ((one.left, one.right), (one.right, one.left)):
                if isinstance(call, Call) and call in calls and isinstance(other, Id):
                    calls.discard(call)
                    found.append(other.name)
    return found + [""] * len(calls)


def _core_decides(case: Case) -> bool:
    """True for a driver that looks at the core's hds_config, beside what it tells users."""
    return any(
        b"hds_config" in f.fields and not _reports(case, f)
        for found in case.world.named.values() for f in found if f.path in case.world.own_paths
    )  # fmt: skip


def _tables(case: Case) -> list[tuple[str, str, int, Expr, str]]:
    """(name, file, line, supported_ring_params, set_ringparam) of each struct ethtool_ops."""
    found = []
    for name, (type_, expr, path, line) in case.world.globals.items():
        if "ethtool_ops" not in type_ or not isinstance(expr, Init) or path not in case.world.own_paths:
            continue
        fields = dict(expr.items)
        setter = fields.get("set_ringparam")
        params = fields.get("supported_ring_params", Num(0, "0"))
        at = next((one.line for one in walk(params) if one.line), line)
        extra = _assigned(case)
        if extra is not None:
            params = Binary(at, "|", params, extra)
        found.append((name, path, at, params, setter.name if isinstance(setter, Id) else ""))
    return found


def _assigned(case: Case) -> Expr | None:
    """What functions add to supported_ring_params at run time."""
    found: Expr | None = None
    for function in (f for fs in case.world.named.values() for f in fs):
        if b"supported_ring_params" not in function.words or function.path not in case.world.own_paths:
            continue
        for one in walk(function.body):
            match one:
                case Assign(op="=" | "|=" | "+=", left=Field(name="supported_ring_params"), right=right):
                    found = right if found is None else Binary(one.line, "|", found, right)
    return found


def _has_bit(case: Case, e: Expr, seen: frozenset[str] = frozenset()) -> bool:
    """True when a mask has the bit: not when it is masked out again."""
    match e:
        case Binary(op="&", left=left, right=Unary(op="~", of=of)):
            return _has_bit(case, left, seen) and not _has_bit(case, of, seen)
        case Binary(op="&" | "^", left=left, right=right):
            both = _has_bit(case, left, seen), _has_bit(case, right, seen)
            return both[0] and both[1] if e.op == "&" else both[0] != both[1]
        case Binary(left=left, right=right):
            return _has_bit(case, left, seen) or _has_bit(case, right, seen)
        case Id(name=name):
            text = case.world.macros.get(name, "") if name not in seen else ""
            words = _WORD.findall(text.split("~")[0])
            return name == BIT or any(_has_bit(case, Id(0, one), seen | {name}) for one in words)
        case Unary(op="~"):
            return False
    return any(_has_bit(case, Id(0, one.name), seen) for one in walk(e) if isinstance(one, Id))


def _acts(case: Case, start: Function) -> Evidence | None:
    """Where what was asked for decides something: in the setter or what it calls, or by the core's
    hds_config."""
    reached = {(f.path, f.name): f for f in case.world.reached([start], DEPTH)}
    for event in case.of("acted"):
        function = reached.get((event.path, event.function))
        if function is None and not _asks_the_core(case, event.path, event.function):
            continue
        if event.call.startswith(".") and not _is_read(case, event.call[1:], event.function):
            continue
        return Evidence(event.path, event.line, f"{event.function}() acts on it: {event.call.lstrip('.')}")
    return None


def _asks_the_core(case: Case, path: str, name: str) -> bool:
    function = case.world.function(name, path)
    return function is not None and b"hds_config" in function.words and not _reports(case, function)


def _reports(case: Case, function: Function) -> bool:
    """True for what get_ringparam tells users."""
    return any(
        isinstance(expr, Init) and any(
            name == "get_ringparam" and isinstance(one, Id) and one.name == function.name for name, one in
            expr.items
        )
        for _, expr, _, _ in case.world.globals.values()
    )  # fmt: skip


def _is_read(case: Case, name: str, writer: str) -> bool:
    """True when somebody else names a field that the setting is kept in."""
    word = name.encode()
    return any(
        word in f.words for found in case.world.named.values() for f in found
        if f.name != writer and f.path in case.world.own_paths
    )  # fmt: skip


RULE = Rule(
    "R2",
    f"supported_ring_params has {BIT}, and what is asked for decides something in set_ringparam, or in what "
    "looks at the core's hds_config: a condition with two ways, a field that somebody reads, a command to "
    "the device. On every way that reports success it is kept where it lasts, or handed on to who reads it; "
    "partial: on some. Hardware split without that, or reporting without setting, fails.",
    judge,
)
