"""Why the kernel would refuse memory on a receive queue, what would cure it; and a try that compares."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any

from netmem.base.dmabuf import export
from netmem.base.errors import NetmemError, errno_name
from netmem.kernel.netdev_family import NetdevFamily
from netmem.kernel.rules import AROUND, BIND_RX, MEMORY, Ask, Rule, Verdict

NO_DESCRIPTOR = 0x7FFFFFFF  # names no file, so that dma_buf_get() says EBADF
TRY_BYTES = 1 << 20


@dataclass(frozen=True)
class Finding:
    """What a rule says of a queue."""

    rule: Rule
    verdict: Verdict
    why: str
    cure: str

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        found = {"rule": self.rule.text, "errno": self.rule.error, "source": self.rule.source}
        return {**found, "verdict": self.verdict.value, "why": self.why, "cure": self.cure}


@dataclass(frozen=True)
class Explanation:
    """All rules for a queue, in the kernel's order, and what is refused around it."""

    ask: Ask
    findings: tuple[Finding, ...]
    around: tuple[Finding, ...]

    @property
    def refused(self) -> Finding | None:
        """The first rule that refuses: its errno is what a binding gets."""
        return next((one for one in self.findings if one.verdict is Verdict.REFUSES), None)

    @property
    def unknown(self) -> tuple[Finding, ...]:
        """Rules before the first that refuses of which nothing is known: each may refuse instead."""
        found = []
        for one in self.findings:
            if one.verdict is Verdict.REFUSES:
                break
            if one.verdict is Verdict.UNKNOWN:
                found.append(one)
        return tuple(found)

    def is_behind(self, finding: Finding, rule: Rule) -> bool:
        """True when the kernel looks at ``rule`` before it comes to what was found."""
        order = [one.rule for one in self.findings]
        return order.index(finding.rule) > order.index(rule)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "queue": self.ask.queue,
            "refused": self.refused.rule.error if self.refused else None,
            "rules": [one.plain() for one in self.findings],
            "around": [one.plain() for one in self.around],
        }


def explain(ask: Ask) -> Explanation:
    """Look at every rule for a queue; nothing is changed."""
    return Explanation(ask, _look(BIND_RX, ask), _look(AROUND, ask))


def _look(rules: tuple[Rule, ...], ask: Ask) -> tuple[Finding, ...]:
    return tuple(Finding(rule, *rule.look(ask)) for rule in rules)


@dataclass(frozen=True)
class Tried:
    """What the kernel answered: ``errno`` 0 when it bound (and unbound again); ``text`` of its own."""

    errno: int
    text: str
    memory: str  # what was bound; "" when nothing here exports a dma-buf

    def agrees(self, explanation: Explanation) -> bool | None:
        """Whether the prediction was right; None where it said that it does not know.

        Without a dma-buf, EBADF tells that everything that comes before it was accepted.
        """
        predicted = explanation.refused
        if not self.memory and self.errno == errno.EBADF:
            return predicted is None or explanation.is_behind(predicted, MEMORY)
        if self.errno == (predicted.rule.errno if predicted else 0):
            return True
        if self.errno in {one.rule.errno for one in explanation.unknown}:
            return None
        return None if predicted is None else False  # a driver may refuse with an errno of its own


def attempt(ask: Ask) -> Tried:
    """Bind a small dma-buf to the queue, and unbind it: the queue is restarted twice if it is accepted."""
    fd, memory = NO_DESCRIPTOR, ""
    try:
        fd, memory, _ = export(max(TRY_BYTES, ask.rx_page_size))
        if memory == "memfd":
            os.close(fd)
            fd, memory = NO_DESCRIPTOR, ""
    except NetmemError:
        pass
    try:
        with NetdevFamily() as family:
            family.bind_rx(ask.device.ifindex, [ask.queue], fd, ask.rx_page_size)
        return Tried(0, "", memory)
    except NetmemError as error:
        return Tried(error.errno or 0, error.strerror or "", memory)
    finally:
        if memory:
            os.close(fd)


def outcome(tried: Tried) -> str:
    """In a word."""
    return "accepted" if not tried.errno else errno_name(tried.errno)
