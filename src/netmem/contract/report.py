"""Results of checks, verdicts by requirement, and how they are written down."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from dataclasses import asdict, dataclass, field
from typing import Any

from netmem.base.schema import document
from netmem.contract.requirements import BY_ID, REQUIREMENTS

PASS, FAIL, BLOCKED = "pass", "fail", "blocked"
CRASH = (
    "crash"  # the driver raised, ended its process or did not come back: nothing is known of the requirement
)
ELSEWHERE = "seen_elsewhere"  # by a check that is of another requirement, or from outside
UNKNOWN = "unknown"  # what a running driver does not show
WORST = (
    FAIL,
    CRASH,
    BLOCKED,
    PASS,
)  # a requirement is as good as its worst check, of those that saw something
READABLE = ("none", "pages")
# What others need comes first.
JUDGED = tuple(r.id for r in sorted(REQUIREMENTS, key=lambda r: len(r.needs)))


class Violation(Exception):
    """A requirement was broken: ``requirement`` names it, the text says how, as evidence."""

    def __init__(self, requirement: str, text: str) -> None:
        super().__init__(text)
        self.requirement, self.text = requirement, text


class Unseen(Exception):
    """What this kernel or machine cannot show of a running driver, and what would."""


@dataclass
class Result:
    """One check with one kind of memory. ``by``: the requirement that blocks it, if one does."""

    requirement: str
    check: str
    memory: str
    outcome: str
    evidence: str
    seconds: float = 0.0
    by: str = ""
    attributed: bool = False  # the violation names this requirement itself
    trace: str = ""
    conversions: list[str] = field(default_factory=list)  # that the driver called
    notes: list[tuple[str, str]] = field(default_factory=list)  # which requirement was broken, and how


@dataclass
class Verdict:
    """What becomes of one requirement."""

    requirement: str
    outcome: str
    evidence: str
    by: str
    seconds: float
    results: list[Result] = field(default_factory=list)


def verdicts(results: list[Result]) -> list[Verdict]:
    """By requirement, in their order.

    A requirement cannot be judged any more when one that it needs has failed. What fails, or crashes, with
    unreadable memory only, and for no reason that names another requirement, is R5's.
    """
    passed = {r.check for r in results if r.outcome == PASS and r.memory in READABLE}
    for r in results:
        unreadable = r.check in passed or (passed and r.requirement == "R5")
        if r.outcome == CRASH and r.memory not in READABLE and unreadable:
            r.outcome = FAIL
    results = [*results, *_seen_elsewhere(results)]
    for requirement in (BY_ID[id_] for id_ in JUDGED):
        failed = {r.requirement for r in results if r.outcome == FAIL}
        broken = [need for need in requirement.needs if need in failed]
        readable = {(r.check, r.outcome) for r in results if r.memory in READABLE}
        for r in results:
            if r.requirement != requirement.id or r.outcome != FAIL:
                continue
            if broken:
                r.outcome, r.by = BLOCKED, broken[0]
            elif r.requirement != "R5" and not r.attributed and (r.check, PASS) in readable:
                if "R5" in failed:
                    r.outcome, r.by = BLOCKED, "R5"
    found = []
    for requirement in REQUIREMENTS:
        mine = [r for r in results if r.requirement == requirement.id]
        if not mine:
            continue
        worst = next((r for kind in WORST for r in mine if r.outcome == kind), mine[0])
        where = f" ({worst.memory})" if worst.outcome != PASS and len(mine) > 1 else ""
        found.append(
            Verdict(
                requirement.id, worst.outcome, worst.evidence + where, worst.by,
                sum(r.seconds for r in mine), mine,
            )
        )  # fmt: skip
    return found


def _seen_elsewhere(results: list[Result]) -> list[Result]:
    """A failure of each requirement that a check of another one saw broken, and none of its own."""
    failed = {r.requirement for r in results if r.outcome == FAIL}
    found: dict[str, Result] = {}
    for r in results:
        blocking = [(r.by, r.evidence)] if r.outcome == BLOCKED else []
        for requirement, text in (*blocking, *r.notes):
            if requirement not in failed and requirement in BY_ID and requirement not in found:
                found[requirement] = Result(
                    requirement, ELSEWHERE, r.memory, FAIL, text, attributed=True, trace=r.trace
                )
    return list(found.values())


def crash_of(results: list[Result]) -> str:
    """What to mend before anything else, in a line; empty where nothing crashed."""
    crashed = [r for r in results if r.outcome == CRASH]
    if not crashed:
        return ""
    said = sorted({r.evidence for r in crashed}, key=lambda text: [r.evidence for r in crashed].index(text))
    more = f", and {len(said) - 1} more" if len(said) > 1 else ""
    where = f"in {len(crashed)} of {len(results)} checks"
    return f"the driver crashed {where}: {said[0]}{more}; -v has the tracebacks"


def warnings_of(results: list[Result]) -> list[str]:
    """What the kernel's document advises against and the driver does."""
    called = sorted({name for result in results for name in result.conversions})
    return [f"the driver calls {name}(); ideally it need not know what a netmem is" for name in called]


def as_json(driver: str, found: list[Verdict], warnings: list[str]) -> str:
    """{schema, driver, warnings, requirements: {R1: {outcome, evidence, by, seconds, results: [...]}}}."""
    body: dict[str, Any] = {}
    for verdict in found:
        body[verdict.requirement] = {"title": BY_ID[verdict.requirement].title, **asdict(verdict)}
        del body[verdict.requirement]["requirement"]
    made = {"driver": driver, "warnings": warnings, "requirements": body}
    return json.dumps(document("check", made), indent=2)


def as_junit(driver: str, found: list[Verdict], warnings: list[str]) -> str:
    """JUnit XML: a suite for the driver, a case for each check and kind of memory."""
    results = [result for verdict in found for result in verdict.results]
    count = {kind: sum(r.outcome == kind for r in results) for kind in (FAIL, CRASH, BLOCKED, UNKNOWN)}
    suite = xml.Element(
        "testsuite", name=f"netmem check {driver}", tests=str(len(results)), failures=str(count[FAIL]),
        skipped=str(count[BLOCKED] + count[UNKNOWN]), errors=str(count[CRASH]),
        time=f"{sum(r.seconds for r in results):.3f}",
    )  # fmt: skip
    for r in results:
        case = xml.SubElement(
            suite, "testcase", classname=r.requirement, name=f"{r.check}[{r.memory}]", time=f"{r.seconds:.3f}"
        )
        if r.outcome == FAIL:
            xml.SubElement(case, "failure", message=r.evidence).text = r.trace
        elif r.outcome == CRASH:
            xml.SubElement(case, "error", message=r.evidence).text = r.trace
        elif r.outcome == BLOCKED:
            xml.SubElement(case, "skipped", message=f"blocked by {r.by}: {r.evidence}")
        elif r.outcome == UNKNOWN:
            xml.SubElement(case, "skipped", message=f"unknown: {r.evidence}")
        else:
            xml.SubElement(case, "system-out").text = r.evidence
    if warnings:
        xml.SubElement(suite, "system-out").text = "\n".join(warnings)
    xml.indent(suite)
    return xml.tostring(suite, encoding="unicode", xml_declaration=True)


def as_ktap(driver: str, found: list[Verdict], warnings: list[str]) -> str:
    """KTAP version 1 (Documentation/dev-tools/ktap.rst): requirements are tests, checks their subtests."""
    lines = ["KTAP version 1", f"# driver {driver}", *(f"# warning: {w}" for w in warnings)]
    lines.append(f"1..{len(found)}")
    for number, verdict in enumerate(found, 1):
        lines += ["    KTAP version 1", f"    1..{len(verdict.results)}"]
        for i, r in enumerate(verdict.results, 1):
            lines.append(f"    {_ktap(r.outcome, r.by, r.evidence, i, f'{r.check}[{r.memory}]')}")
        lines.append(_ktap(verdict.outcome, verdict.by, verdict.evidence, number, verdict.requirement))
    return "\n".join(lines)


def _ktap(outcome: str, by: str, evidence: str, number: int, name: str) -> str:
    text = evidence.replace("#", "")
    if outcome == BLOCKED:
        return f"ok {number} {name} # SKIP blocked by {by}: {text}"
    if outcome == UNKNOWN:
        return f"ok {number} {name} # SKIP unknown: {text}"
    if outcome == CRASH:
        return f"not ok {number} {name} # crash: {text}"
    return f"{'ok' if outcome == PASS else 'not ok'} {number} {name} # {text}"


FORMATS = {"json": as_json, "junit": as_junit, "ktap": as_ktap}
