"""R1: payload comes from a page pool, and reaches a descriptor."""

from __future__ import annotations

from typing import Any

from netmem.contract.lint import api
from netmem.contract.lint.labels import Event
from netmem.contract.lint.model import FAIL, PARTIAL, PASS, Case, Evidence, Rule, Verdict

CURE = "allocate receive buffers with page_pool_alloc_netmems() from a pool made for the queue"


def judge(case: Case) -> Verdict:
    """By where buffers are allocated, and whether the NIC gets them."""
    creates, allocs = case.of("create"), case.of("alloc")
    if not creates and not allocs:
        return Verdict(FAIL, "no page pool is made, directly or through a library")
    normal = [e for e in allocs if not e.xdp]
    made = case.evidence(creates, "a page pool is made in {function}()")
    if not allocs:
        if any(e.xdp for e in creates):
            return Verdict(PARTIAL, "the pool serves XDP or tests only", made)
        return Verdict(
            PARTIAL, "a pool is made, and nothing is seen to be allocated from it", made, "low",
            "where its buffers are allocated: perhaps in a file that is not here",
        )  # fmt: skip
    if not normal:
        return Verdict(
            PARTIAL,
            "the pool serves XDP or tests only",
            case.evidence(allocs, "{call}() for XDP or tests", CURE),
        )
    holders = {label.of for e in normal for label in e.labels}
    frags = {label for e in case.of("frag") if not e.xdp for label in e.labels if label.kind == "buf"}
    if frags and all(label.api == "raw" for label in frags):
        raw = _beside(case, {label.of for label in frags})
        return Verdict(FAIL, "payload does not come from a page pool: the pool serves headers only",
                       case.evidence(raw, "payload is allocated by {call}()", CURE))  # fmt: skip
    mixed = _mixed(case, normal)
    if mixed:
        message = "{call}() in {function}(), which is no mode without the pool"
        return Verdict(
            PARTIAL, "where the pool is in use buffers come from elsewhere, too",
            case.evidence(mixed, message, CURE),
        )  # fmt: skip

    def about(*what: str) -> list[Event]:
        return [
            e for e in case.of(*what)
            if not e.xdp and any(label.kind != "pool" and label.of in holders for label in e.labels)
        ]  # fmt: skip

    device = about("descriptor", "posted", "passed") + [
        e for e in about("kept") if any(label.kind == "dma" for label in e.labels)
    ]
    if not device and about("copied"):
        return Verdict(PARTIAL, "buffers from the pool serve copies only: none is seen to reach a descriptor",
                       case.evidence(normal, "{call}() for a copy", CURE))  # fmt: skip
    if not device and not about("frag"):
        return Verdict(PARTIAL, "buffers from the pool are not seen to reach a descriptor",
                       case.evidence(normal, "{call}(), and nothing is posted", CURE))  # fmt: skip
    found = case.evidence([e for e in normal if case.mine(e)] or normal, "payload is allocated by {call}()")
    posted = [
        e for e in device if e.line and case.mine(e) and any(label.kind != "pool" for label in e.labels)
    ]
    posted.sort(key=lambda e: ("descriptor", "kept", "posted", "passed").index(e.what))
    found += [Evidence(e.path, e.line, f"its address goes on through {e.call}") for e in posted[:1]]
    return Verdict(PASS, "payload buffers come from a page pool and are posted", found)


def _beside(case: Case, holders: set[Any]) -> list[Event]:
    """Where memory of no pool is allocated."""
    return [e for e in case.of("raw") if not e.xdp and any(label.of in holders for label in e.labels)]


def _mixed(case: Case, normal: list[Event]) -> list[Event]:
    """Memory of no pool that the device gets, allocated beside the pool's, or kept in the same place."""
    splits = any(pool.has(api.FLAGS[3]) for pool in case.payload_pools)
    uses = ("frag",) if splits else ("frag", "linear", "map")  # headers may lie anywhere
    posted = {label.of for e in case.of(*uses) if not e.xdp for label in e.labels}
    pool, called = {(e.path, e.function) for e in normal}, {e.function.encode() for e in normal}
    kept = [e for e in case.of("kept") if not e.xdp and e.cell is not None and e.cell[0] != "page"]
    rings = {e.cell for e in kept if any(label.of in case.payload for label in e.labels)}
    found = []
    for event in _beside(case, posted):
        (holder,) = {label.of for label in event.labels}
        places = {e.cell for e in kept if all(label.of == holder for label in e.labels)}
        name = event.function.encode()
        both = places & rings or [
            f for functions in case.world.named.values() for f in functions
            if (name in f.called or f.name == event.function)
            and ((f.path, f.name) in pool or not called.isdisjoint(f.called))
        ]  # fmt: skip
        found += [event] if both else []
    return found


RULE = Rule(
    "R1",
    "Payload buffers of a normal receive mode come from page_pool, directly or through a library, and reach "
    "a descriptor. Partial: the pool serves only copies, XDP or tests, or, where it is in use, buffers "
    "come from elsewhere, too.",
    judge,
)
