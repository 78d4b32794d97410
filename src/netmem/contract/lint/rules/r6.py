"""R6: the pool syncs payload for the CPU."""

from __future__ import annotations

from netmem.contract.lint.model import FAIL, NA, PASS, Case, Rule, Verdict

CURE = "call page_pool_dma_sync_netmem_for_cpu(pool, netmem, offset, len) instead"


def judge(case: Case) -> Verdict:
    """By whose address is given to the calls that sync."""
    if not any(case.mine(e) for e in case.of("alloc")):
        return Verdict(NA, "no payload is allocated from a page pool")
    raw = case.judged("sync")
    unmaps = case.judged("unmap")
    if raw or unmaps:
        found = case.evidence(raw, "{call}() syncs payload past the pool", CURE)
        found += case.evidence(unmaps, "{call}() unmaps payload, which syncs it", CURE)
        return Verdict(FAIL, "the driver syncs payload itself", found)
    pool = case.judged("pool_sync")
    if pool:
        return Verdict(PASS, "payload is synced through the pool", case.evidence(pool, "{call}()"))
    unclear = [
        e for e in case.of("sync", "unmap")
        if not e.xdp and not e.labels and (e.path, e.function) in case.receives
    ]  # fmt: skip
    if unclear:
        return Verdict(FAIL, "a raw sync or unmap in the receive path, of an address whose origin is not "
        "seen",
                       case.evidence(unclear, "{call}() in {function}()", CURE), "low",
                       "where the address that is synced comes from")  # fmt: skip
    return Verdict(PASS, "no sync of payload for the CPU is done")


RULE = Rule(
    "R6",
    "CPU sync of payload goes through the pool, or provably none happens. Any dma_sync_*_for_cpu spelling, "
    "or an unmap "
    "that syncs, whose address comes from the payload buffer, also through a stored field or a helper, "
    "fails. Raw syncs "
    "of header, copybreak or driver-owned buffers are legitimate.",
    judge,
)
