"""R5: payload may be unreadable and need not be pages."""

from __future__ import annotations

from netmem.contract.lint.labels import Event
from netmem.contract.lint.model import FAIL, NA, PASS, Case, Rule, Verdict

CURE = "look only where netmem_address() is not NULL, or leave it to the stack: skb_frags may be unreadable"


def judge(case: Case) -> Verdict:
    """Payload that becomes a page, or is read, without a guard here or in every caller."""
    if not any(case.mine(e) for e in case.of("alloc")):
        return Verdict(NA, "no payload is allocated from a page pool")
    bad = [e for e in case.judged("topage") if not e.readable]
    reads = [e for e in case.judged("read", "linear") if not e.readable and _reads(case, e)]
    turned = [
        e for e in case.judged("address") if not e.readable and e.call not in ("netmem_address",)
    ]  # fmt: skip
    pulls = []
    if case.judged("frag"):  # what is pulled may lie in a frag
        pulls = [e for e in case.of("pull") if not e.xdp and not e.readable and _receives(case, e)]
    if bad or reads or turned or pulls:
        found = case.evidence(bad, "{call}() turns payload into a page, which it need not be", CURE)
        found += case.evidence(turned, "{call}() turns payload into an address, which it need not have", CURE)
        found += case.evidence(reads, "{call} reads payload in {function}() without a guard", CURE)
        found += case.evidence(pulls, "{call}() pulls headers out of payload in {function}()", CURE)
        return Verdict(FAIL, "payload is taken for readable", found)
    guards = [e for e in case.judged("topage", "address", "read", "linear") if e.readable]
    if guards:
        return Verdict(
            PASS,
            "payload is looked at behind guards only",
            case.evidence(guards, "{call} stands behind a guard"),
        )
    return Verdict(PASS, "payload is never looked at")


def _reads(case: Case, event: Event) -> bool:
    labels = event.labels
    return any(
        label[0] in ("va", "buf") and label[1] in case.payload and label[2] == case.api for label in labels
    )


def _receives(case: Case, event: Event) -> bool:
    name = event.function.lower()
    return event.path in case.world.own_paths and any(x in name for x in ("rx", "recv", "receive", "poll"))


RULE = Rule(
    "R5",
    "Payload is never turned into a page or an address without a guard (netmem_is_net_iov(), a NULL test of "
    "netmem_address(), a configuration in which the pool cannot be unreadable), which may stand in a caller. "
    "Counted "
    "too: copybreak, prefetch, header pull, cache flush on payload.",
    judge,
)
