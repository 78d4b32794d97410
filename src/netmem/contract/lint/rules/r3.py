"""R3: payload is tracked by netmem_ref and handled by netmem calls."""

from __future__ import annotations

from netmem.contract.lint import api
from netmem.contract.lint.model import FAIL, NA, PARTIAL, PASS, Case, Rule, Verdict


def judge(case: Case) -> Verdict:
    """By the calls that payload is allocated, addressed, released and attached with."""
    allocs = case.judged("alloc") or [e for e in case.of("alloc") if case.mine(e)]
    if not allocs:
        return Verdict(NA, "no payload is allocated from a page pool")
    if case.api != "netmem":
        return Verdict(
            FAIL, "payload is kept as pages",
            case.evidence(allocs, "{call}() gives a page, which netmem need not be", "{call}() has a netmem "
            "twin: "
                          "keep a netmem_ref"),
        )  # fmt: skip
    wrong = [e for e in case.judged("frag") if e.call in api.PAGE_ATTACH]
    wrong += case.judged("release_page")
    wrong += [e for e in case.judged("bias", "pool_sync") if e.call in api.TWINS]
    wrong += [e for e in case.judged("posted") if e.call in api.TWINS]
    kept = {case.field_of(label.of) for e in allocs for label in e.labels if label.api == "netmem"}
    wrong += [
        e for e in case.of("alloc")
        if not e.xdp and any(label.api == "page" and case.field_of(label.of) in kept for label in e.labels)
    ]  # fmt: skip
    good = case.evidence(allocs, "{call}() gives a netmem_ref")
    if wrong:
        return Verdict(PARTIAL, "payload is allocated as netmem and handled as pages elsewhere",
                       case.evidence(wrong, "{call}() handles a page", "use the netmem call"))  # fmt: skip
    good += case.evidence(case.judged("frag")[:1], "attached by {call}()")
    return Verdict(PASS, "payload is netmem from allocation to attachment", good)


RULE = Rule(
    "R3",
    "The payload buffer is kept as netmem_ref, or in a library's structure that does, and allocated, "
    "addressed, "
    "released and attached by netmem calls. A page beside it is fine where it serves only a mode without "
    "page_pool.",
    judge,
)
