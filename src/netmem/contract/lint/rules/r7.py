"""R7: no recycling beside the pool."""

from __future__ import annotations

import re

from netmem.contract.lint.model import FAIL, NA, PASS, Case, Rule, Verdict

CURE = "drop it: give the netmem back to the pool, or hold a fragment or reference of the pool's"
CACHE = re.compile(r"cache|recycl|reuse|re_use|stash|free_?list|spare|backup", re.I)


def judge(case: Case) -> Verdict:
    """Reference counts of pages, and places that keep netmems for later."""
    if not any(case.mine(e) for e in case.of("alloc")):
        return Verdict(NA, "no payload is allocated from a page pool")
    counts = [e for e in case.judged("refcount") if any(label.kind in ("buf", "va") for label in e.labels)]
    kept = [
        e
        for e in case.judged("kept")
        if CACHE.search(e.call) and any(label.kind == "buf" for label in e.labels)
    ]
    if counts or kept:
        found = case.evidence(counts, "{call}() decides by, or changes, a page's own count", CURE)
        found += case.evidence(kept, "payload is kept in {call}, a cache beside the pool", CURE)
        return Verdict(FAIL, "the driver recycles beside the pool", found)
    bias = case.judged("bias")
    why = "fragments and references are the pool's own" if bias else "buffers go back to the pool"
    return Verdict(
        PASS, why, case.evidence(bias or case.judged("release_netmem", "release_page"), "{call}()")
    )


RULE = Rule(
    "R7",
    "Buffers kept by page count or reference tests, bias counters of the driver's own, or a cache above the "
    "pool, "
    "reachable with page_pool in use, fail. Allowed: fragment bias through the pool's own calls, posting "
    "again a buffer "
    "that the stack never got, recycling in a mode without page_pool.",
    judge,
)
