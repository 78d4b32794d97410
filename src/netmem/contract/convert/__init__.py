"""The mechanical part of a conversion to netmem: types of what holds payload, and calls with a netmem twin.

Pages of header pools stay pages. A use of payload that has no twin gets netmem_to_page() around it, which
is right as long as the pool's memory is pages, and goes on the list of what remains by hand, with what the
checker says of the converted driver. Where a rewrite cannot be shown to be safe nothing is rewritten
(``Refused``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from netmem.base.text import printable
from netmem.contract.convert.edits import Refused, Remaining
from netmem.contract.convert.rewriter import Rewriter
from netmem.contract.convert.series import Patch, Step, series_of
from netmem.contract.convert.shared import refuse_shared
from netmem.contract.convert.sheet import CONVERT, GUARD, RENAME, Sheet
from netmem.contract.convert.twins import twins_of
from netmem.contract.lint import tree
from netmem.contract.lint.check import Report, judge, understand
from netmem.contract.lint.model import FAIL, PARTIAL

__all__ = ["Conversion", "Moved", "Patch", "Refused", "Remaining", "convert"]

CONVERTED = (
    "Payload is kept as netmem_ref instead of struct page *, and handled by the netmem calls of the page "
    "pool and of the skb. Nothing changes as long as the pool's memory is pages."
)
THROUGH_PAGE = (
    "Uses that have no netmem call go through netmem_to_page(): {count} in {files}. They have to go before "
    "the pool may hand out memory that is none."
)
RENAMED = "What holds a netmem_ref is not called a page any more."
GUARDED = (
    "Memory that the CPU cannot read has no address to fetch from, and no page: ask before fetching early."
)


@dataclass
class Moved:
    """A requirement's verdict, before and after."""

    requirement: str
    before: str
    after: str


@dataclass
class Conversion:
    """Patches (none when there is nothing to do), what they leave, and what the checker says of it."""

    driver: str
    series: list[Patch] = field(default_factory=list)
    remaining: list[Remaining] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)

    @property
    def moved(self) -> list[Moved]:
        """Verdicts that are not what they were."""
        return [
            Moved(id_, was, self.after[id_]) for id_, was in self.before.items() if self.after[id_] != was
        ]


def convert(path: Path, *, rename: bool = False) -> Conversion:
    """Convert the one driver at ``path``: a folder, a file, or a name as `check --list` has it.

    ``rename``: fields and locals that are called page and hold a netmem get a name that says so. Refused.
    """
    try:
        return _convert(path, rename)
    except RecursionError:
        raise Refused(f"{printable(str(path))}: an expression is nested too deep to be read") from None


def _convert(path: Path, rename: bool) -> Conversion:
    driver = _driver(path)
    root = tree.root_of(path.absolute())
    exports = tree.exports(root, path.absolute())
    top = tree.top_of(driver, root)
    own = root is not None or (top / ".git").exists() or not tree.is_inside(top, Path.cwd())
    base = top if own else Path.cwd()
    named = os.path.relpath(driver.name, base)
    made = Conversion(named if named != "." else driver.folder.name)
    before = judge(driver, root, exports)
    if before.facts["payload_api"] == "netmem":
        return made
    case = understand(driver, root, exports)
    if not [e for e in case.of("alloc") if not e.xdp and case.mine(e)]:
        raise Refused("no payload is allocated from a page pool: there is nothing to convert yet (R1)")
    sheet = Sheet(case, base, twins_of(root), rename)
    Rewriter(sheet).run()
    texts = {one.path: one.text for one in case.world.own if one.path in sheet.edits.by_path}
    refuse_shared(sheet, set(texts))
    steps = [
        Step(subject, body, {path: sheet.edits.text(path, text, step) for path, text in texts.items()})
        for step, subject, body in (
            (CONVERT, "keep payload as netmem", _message(sheet, base)),
            (RENAME, "name netmem as such", RENAMED),
            (GUARD, "ask before payload is fetched early", GUARDED),
        )
    ]  # fmt: skip
    made.series = series_of(texts, steps, base, _prefix(made.driver))
    with tree.replaced(steps[-1].texts):
        after = judge(driver, root, exports)
    made.before, made.after = (
        {id_: one.verdict for id_, one in report.requirements.items()} for report in (before, after)
    )
    made.remaining = _remaining(sheet, texts, base, after)
    return made


def _driver(path: Path) -> tree.Driver:
    """The driver that a path means: of several the one with a page pool. Refused."""
    problems: list[str] = []
    found = list(tree.find(path.absolute(), problems))
    if not found:
        raise Refused(printable(problems[0]) if problems else f"{path}: no C files")
    makers = [one for one in found if tree.makes_pool(one)] if len(found) > 1 else found
    if len(makers) != 1:
        names = ", ".join(os.path.relpath(one.name, path.absolute()) for one in makers[:8] or found[:8])
        raise Refused(f"{path} holds {len(makers or found)} drivers ({names}): name one, as {path}/NAME")
    return makers[0]


def _message(sheet: Sheet, base: Path) -> str:
    through = sheet.edits.through
    if not through:
        return CONVERTED
    files = ", ".join(sorted({os.path.relpath(path, base) for path in through}))
    return f"{CONVERTED}\n\n{THROUGH_PAGE.format(count=len(through), files=files)}"


def _prefix(driver: str) -> str:
    """As the network trees have it."""
    return f"{'wifi' if '/wireless/' in driver else 'net'}: {Path(driver).name.removesuffix('.c')}"


def _remaining(sheet: Sheet, texts: dict[str, bytes], base: Path, after: Report) -> list[Remaining]:
    """What the rewrite noted and what the checker says of the result, by place in the converted files."""
    found: dict[tuple[str, int, str], Remaining] = {}
    for path, offset, rule, reason in sheet.edits.remaining:
        line = sheet.edits.line(path, texts[path], offset, GUARD)
        file = os.path.relpath(path, base)
        found.setdefault((file, line, rule), Remaining(file, line, rule, reason))
    for id_, verdict in after.requirements.items():
        if verdict.verdict not in (FAIL, PARTIAL):
            continue
        for place in verdict.evidence:
            key = place.file, place.line
            if (*key, id_) not in found:
                said = f"{place.message}: {place.cure}" if place.cure else place.message
                found[(*key, id_)] = Remaining(place.file, place.line, id_, said)
    return sorted(found.values(), key=lambda one: (one.file, one.line, one.rule))
