"""R5: payload may be unreadable and need not be pages."""

from __future__ import annotations

from netmem.contract.lint.labels import Event
from netmem.contract.lint.model import FAIL, NA, PASS, Case, Evidence, Rule, Verdict

MESSAGES = {
    ("topage",): "{call}() turns payload into a page, which it need not be",
    ("address",): "{call}() turns payload into an address, which it need not have",
    ("read", "linear"): "{call} reads payload in {function}() without a guard",
}
CURE = "look only where netmem_address() is not NULL, or leave it to the stack: skb_frags may be unreadable"


def judge(case: Case) -> Verdict:
    """Payload that becomes a page, or is read, without a guard here or in every caller."""
    if not any(case.mine(e) for e in case.of("alloc")):
        return Verdict(NA, "no payload is allocated from a page pool")
    heads = {(e.path, e.function) for e in case.judged("linear") if e.first}
    events = case.judged("topage", "address", "read", "linear")
    wrong = [e for e in events if not e.readable and e.call != "netmem_address" and _handled(case, e)]
    begins = [e for e in wrong if e.first and ((e.path, e.function) in heads or _of_packet(e))]
    found: list[Evidence] = []
    for what, message in MESSAGES.items():
        of_kind = [e for e in wrong if e.what in what and e not in begins]
        found += case.evidence(of_kind, message, CURE)
    if case.judged("frag"):  # what is pulled may lie in a frag
        pulls = [
            e
            for e in case.of("pull")
            if not e.xdp and not e.readable and (e.path, e.function) in case.receives
        ]
        found += case.evidence(pulls, "{call}() pulls headers out of payload in {function}()", CURE)
    if found:
        return Verdict(FAIL, "payload is taken for readable", found)
    drops = case.judged("drops")
    if begins and not drops:
        return Verdict(
            PASS, "payload is read only where a packet begins with it",
            case.evidence(begins, "{call} in {function}(): only when no header came before"), "low",
            "whether a packet can come without its header: then payload is read",
        )  # fmt: skip
    guards = [e for e in events if e.readable] + drops
    if guards:
        return Verdict(
            PASS,
            "payload is looked at behind guards only",
            case.evidence(guards, "{call} stands behind a guard"),
        )
    return Verdict(PASS, "payload is never looked at")


def _of_packet(event: Event) -> bool:
    """True when memory is handled that is in a packet already."""
    return any(label.of[0] == "frag" for label in event.labels)


def _handled(case: Case, event: Event) -> bool:
    """True when it is payload itself, or its address for the CPU, that is handled."""
    return event.what in ("topage", "address") or case.mine(event, "va", "buf")


RULE = Rule(
    "R5",
    "Payload is never turned into a page or an address without a guard (netmem_is_net_iov(), a NULL test of "
    "netmem_address(), a configuration in which the pool cannot be unreadable), which may stand in a caller. "
    "Counted "
    "too: copybreak, prefetch, header pull, cache flush on payload.",
    judge,
)
