"""R4: the flags of payload's pool."""

from __future__ import annotations

from netmem.contract.lint import api
from netmem.contract.lint.flags import Cond
from netmem.contract.lint.model import FAIL, NA, PARTIAL, PASS, Case, Evidence, Pool, Rule, Verdict

MAP, SYNC, UNREADABLE = api.FLAGS[0], api.FLAGS[1], api.FLAGS[3]
ONLY_IF = f"set {UNREADABLE} if and only if header split is on"


def judge(case: Case) -> Verdict:
    """The worst of payload's pools."""
    if not case.payload_pools:
        return Verdict(NA, "no page pool is made")
    maps = case.judged("map")
    if maps:
        return Verdict(FAIL, "the driver maps payload itself",
                       case.evidence(maps, "{call}() on payload", f"set {MAP} and take the address from the "
                       f"pool"))  # fmt: skip
    found = [_pool(case, pool) for pool in case.payload_pools]
    others = [p for p in case.creates.values() if p not in case.payload_pools and UNREADABLE in p.flags.sure]
    for pool in others:
        if not any(_right(case, c) for c in pool.conds):
            here = Evidence(pool.path, pool.line, f"another pool has {UNREADABLE} always", ONLY_IF)
            found.append(Verdict(PARTIAL, f"{UNREADABLE} is set whether header split is on or not", [here]))
    order = (FAIL, PARTIAL, PASS)
    worst = min(found, key=lambda v: order.index(v.verdict))
    worst.evidence = [e for v in found if v.verdict == worst.verdict for e in v.evidence]
    return worst


def _pool(case: Case, pool: Pool) -> Verdict:
    flags = pool.flags
    said = [f[8:] for f in sorted(flags.sure)]
    said += [
        f"{f[8:]} under a condition" for f in sorted(flags.maybe) if f != UNREADABLE and f not in flags.sure
    ]
    here = Evidence(pool.path, pool.line, "flags: " + (", ".join(said) or "none"))
    missing = [name for name in (MAP, SYNC) if not pool.has(name)]
    if missing and flags.unknown:
        return Verdict(FAIL, f"no {' and no '.join(missing)} is seen", [here], "low",
                       "what " + ", ".join(sorted(flags.unknown)) + " stands for")  # fmt: skip
    if missing:
        here.cure = "add " + " | ".join(missing)
        return Verdict(FAIL, f"the payload pool lacks {' and '.join(missing)}", [here])
    if UNREADABLE in flags.sure:
        split = [c for c in pool.conds if _right(case, c)]
        if split:
            here.message += f"; made only when {_says(split[0])}"
            return Verdict(PASS, f"{UNREADABLE} follows the provider: the pool is made only then", [here])
        here.cure = ONLY_IF
        return Verdict(PARTIAL, f"{UNREADABLE} is set whether header split is on or not", [here])
    if UNREADABLE in flags.maybe:
        conds = flags.maybe[UNREADABLE] + pool.conds
        right = [c for c in conds if _right(case, c)]
        if right:
            here.message += f", and {UNREADABLE[8:]} when {_says(right[0])}"
            return Verdict(PASS, f"{UNREADABLE} follows header split", [here])
        here.cure = ONLY_IF
        wrong = flags.maybe[UNREADABLE]
        says = _says(wrong[0]) if wrong else "something else"
        here.message += f", and {UNREADABLE[8:]} when {says}"
        return Verdict(
            PARTIAL, f"{UNREADABLE} is set under a condition that does not follow header split", [here]
        )
    here.cure = ONLY_IF
    if flags.unknown:
        return Verdict(PARTIAL, f"{UNREADABLE} is not seen", [here], "low",
                       "what " + ", ".join(sorted(flags.unknown)) + " stands for")  # fmt: skip
    return Verdict(PARTIAL, f"{UNREADABLE} is never set", [here])


def _right(case: Case, cond: Cond) -> bool:
    """True for a condition that follows split or provider, the right way round."""
    expr, positive = cond
    if expr[0] == "bin" and expr[1] in ("&&", "||"):
        every = all if (expr[1] == "||") == positive else any
        return every(_right(case, (part, positive)) for part in expr[2:])
    split, when_true, when_false = case.flow.conditions.get(id(expr), (False, False, False))
    if not split:
        return False
    return not (when_true if positive else when_false)


def _says(cond: Cond) -> str:
    return ("" if cond[1] else "not ") + text(cond[0])


def text(e: object) -> str:
    """An expression as C, roughly."""
    if not isinstance(e, tuple) or not e:
        return ""
    kind = e[0]
    if kind in ("id", "num"):
        return str(e[1])
    if kind == "field":
        return f"{text(e[1])}->{e[2]}"
    if kind == "call":
        return f"{text(e[1])}({', '.join(text(arg) for arg in e[2])})"
    if kind == "bin":
        return f"{text(e[2])} {e[1]} {text(e[3])}"
    if kind == "un":
        return f"{e[1]}{text(e[2])}"
    if kind in ("addr", "deref"):
        return ("&" if kind == "addr" else "*") + text(e[1])
    if kind == "index":
        return f"{text(e[1])}[{text(e[2])}]"
    return "..."


RULE = Rule(
    "R4",
    f"{MAP} and {SYNC} reach the payload pool, and {UNREADABLE} under a condition that follows split or "
    f"provider. "
    "Partial: the first two, but the third absent, unconditional, or under a wrong or inverted condition. "
    "Fail: one of "
    "the first two missing, or the driver maps the pages itself.",
    judge,
)
