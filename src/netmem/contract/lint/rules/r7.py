"""R7: no recycling beside the pool."""

from __future__ import annotations

from netmem.contract.lint.labels import Event
from netmem.contract.lint.model import FAIL, NA, PASS, Case, Rule, Verdict

CURE = "drop it: give the netmem back to the pool, or hold a fragment or reference of the pool's"


CALLS = 3  # between who allocates a buffer and who puts it into the ring


def judge(case: Case) -> Verdict:
    """Reference counts of pages, and places that keep netmems for later."""
    if not any(case.mine(e) for e in case.of("alloc")):
        return Verdict(NA, "no payload is allocated from a page pool")
    counts = [e for e in case.judged("refcount") if any(label.kind in ("buf", "va") for label in e.labels)]
    kept = _kept_for_later(case)
    contained = case.judged("contained")
    if counts or kept or contained:
        found = case.evidence(counts, "{call}() decides by, or changes, a page's own count", CURE)
        found += case.evidence(kept, "payload is kept in {call}, from where the ring is filled", CURE)
        found += case.evidence(contained, "{call}() keeps payload for later, beside the pool", CURE)
        return Verdict(FAIL, "the driver recycles beside the pool", found)
    bias = case.judged("bias")
    why = "fragments and references are the pool's own" if bias else "buffers go back to the pool"
    return Verdict(
        PASS, why, case.evidence(bias or case.judged("release_netmem", "release_page"), "{call}()")
    )


def _kept_for_later(case: Case) -> list[Event]:
    """Where buffers are kept that do not come fresh from the pool, and from where the ring is filled."""
    allocates = {(e.path, e.function) for e in case.judged("alloc")}
    names = {name.encode() for _, name in allocates}
    functions = [f for found in case.world.named.values() for f in found]
    callees: set[bytes] = set()
    for _ in range(CALLS):
        callees |= {
            name for f in functions if (f.path, f.name) in allocates or f.name.encode() in callees
            for name in f.called
        }  # fmt: skip
    fills = allocates | {(f.path, f.name) for f in functions if not names.isdisjoint(f.called)}
    posts = fills | {(f.path, f.name) for f in functions if f.name.encode() in callees}
    kept = [
        e for e in case.judged("kept")
        if any(label.kind == "buf" or (label.kind == "va" and _is_array(case, e)) for label in e.labels)
    ]  # fmt: skip
    frees = {e.function.encode() for e in case.of("release_page", "release_netmem")}
    helpers = {name for f in functions if (f.path, f.name) in fills for name in f.called} - frees
    ring = {
        e.cell for e in case.judged("kept")
        if (e.path, e.function) in posts or e.function.encode() in helpers
    }  # fmt: skip
    taken = {
        e.cell for e in case.judged("taken")
        if (e.path, e.function) in fills or e.function.encode() in helpers
    }  # fmt: skip
    return [e for e in kept if e.cell not in ring and e.cell in taken]


def _is_array(case: Case, event: Event) -> bool:
    """True for a place of several: one address is kept for the next turn, many are a cache."""
    owner, name = event.cell or ("", "")
    tags = {owner} | case.flow.types_of.get(owner, set())
    return any("[]" in case.world.field_type(tag, name) for tag in tags)


RULE = Rule(
    "R7",
    "Buffers kept by page count or reference tests, bias counters of the driver's own, or a place beside the "
    "ring where buffers are put that packets gave up and from where the ring is filled, reachable with "
    "page_pool in use, fail. Allowed: fragment bias through the pool's own calls, posting again a buffer "
    "that the stack never got, recycling in a mode without page_pool.",
    judge,
)
