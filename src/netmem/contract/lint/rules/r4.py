"""R4: the flags of payload's pool."""

from __future__ import annotations

from netmem.contract.lint import api
from netmem.contract.lint.flags import Cond, Conds
from netmem.contract.lint.model import FAIL, NA, PARTIAL, PASS, Case, Evidence, Pool, Rule, Verdict
from netmem.contract.lint.nodes import Assign, Binary, Call, Field, Init, text, walk

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
        if not _rights(case, pool.conds):
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
    sometimes = [name for name in (MAP, SYNC) if name not in flags.sure]
    if sometimes:
        here.cure = "add " + " | ".join(sometimes) + ", always"
        return Verdict(
            PARTIAL, f"{' and '.join(sometimes)} reach the payload pool under a condition only", [here]
        )
    if UNREADABLE in flags.sure:
        right = _rights(case, pool.conds, pool)
        if right:
            here.message += f"; made only when {_says(right)}"
            return Verdict(PASS, f"{UNREADABLE} follows the provider: the pool is made only then", [here])
        here.cure = ONLY_IF
        return Verdict(PARTIAL, f"{UNREADABLE} is set whether header split is on or not", [here])
    if UNREADABLE in flags.maybe:
        ways = [(way, _rights(case, way | pool.conds, pool)) for way in flags.maybe[UNREADABLE]]
        if all(right for _, right in ways):
            here.message += f", and {UNREADABLE[8:]} when {' or '.join(sorted(_says(r) for _, r in ways))}"
            return Verdict(PASS, f"{UNREADABLE} follows header split", [here])
        here.cure = ONLY_IF
        says = min((_says(way) for way, right in ways if not right), default="") or "something else"
        here.message += f", and {UNREADABLE[8:]} when {says}"
        return Verdict(
            PARTIAL, f"{UNREADABLE} is set under a condition that does not follow header split", [here]
        )
    here.cure = ONLY_IF
    if flags.unknown:
        return Verdict(PARTIAL, f"{UNREADABLE} is not seen", [here], "low",
                       "what " + ", ".join(sorted(flags.unknown)) + " stands for")  # fmt: skip
    return Verdict(PARTIAL, f"{UNREADABLE} is never set", [here])


def _rights(case: Case, conds: Conds, pool: Pool | None = None) -> Conds:
    """Those conditions that follow split or provider, the right way round; of ``pool``'s own queue."""
    others = _others(case, pool) if pool is not None else set()
    return frozenset(
        cond for cond in conds
        if _right(case, cond) and others.isdisjoint(one for one in walk(cond[0]) if isinstance(one, Call))
    )  # fmt: skip


def _others(case: Case, pool: Pool) -> set[Call]:
    """Calls, where a pool is made, that ask another queue for its provider than the pool's queue_idx says."""
    found: set[Call] = set()
    for function in (f for functions in case.world.named.values() for f in functions):
        if function.path != pool.path or not function.line <= pool.line <= function.end:
            continue
        queues, calls = set(), list[Call]()
        for one in walk(function.body):
            match one:
                case Assign(left=Field(name="queue_idx"), right=right):
                    queues.add(text(right))
                case Init() if "queue_idx" in one.names:
                    queues.add(text(dict(one.items)["queue_idx"]))
                case Call(args=[_, _, *_]) if one.name in api.SPLIT_CALLS:
                    calls.append(one)
        found |= {one for one in calls if queues and text(one.args[1]) not in queues}
    return found


def _right(case: Case, cond: Cond) -> bool:
    expr, positive = cond
    if isinstance(expr, Binary) and expr.op in ("&&", "||"):
        every = all if (expr.op == "||") == positive else any
        return every(_right(case, (part, positive)) for part in (expr.left, expr.right))
    said = case.flow.conditions.get(expr)
    return said is not None and not said[0 if positive else 1]


def _says(conds: Conds) -> str:
    """Conditions as C."""
    return " and ".join(("" if positive else "not ") + text(e) for e, positive in conds)


RULE = Rule(
    "R4",
    f"{MAP} and {SYNC} reach the payload pool, and {UNREADABLE} under a condition that follows split or "
    f"provider. "
    "Partial: the first two, but the third absent, unconditional, or under a wrong or inverted condition. "
    "Fail: one of "
    "the first two missing, or the driver maps the pages itself.",
    judge,
)
