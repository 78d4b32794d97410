#!/usr/bin/env python3
"""Edits of real drivers (tests/lint/edits.json), judged.

What breaks a requirement must fail it, what changes nothing must move nothing. A table goes to docs/edits.md;
what is known to be missed is marked in the list, and anything else fails.

    tools/edits.py TREE [ID ...]
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/lint"))

import edits  # noqa: E402  (tests/lint/edits.py)

from netmem.contract.lint import check, tree  # noqa: E402
from netmem.contract.lint.model import RANK  # noqa: E402

DOCUMENT, MARK = ROOT / "docs/edits.md", "<!-- made by tools/edits.py -->"
TREE = Path(sys.argv[1] if len(sys.argv) > 1 else "build/linux").absolute()
Verdicts = dict[str, dict[str, str]]  # module -> requirement -> verdict
HARD = ("easy", "medium", "hard")


def verdicts(driver: str) -> Verdicts:
    """Of what is at a path below drivers/net."""
    found = check.find_drivers([TREE / "drivers/net" / driver], [])
    exports = tree.exports(TREE, TREE / "drivers/net")
    made = {}
    for one in found:
        report = check.judge(one, TREE, exports)
        made[report.driver] = {id_: v.verdict for id_, v in report.requirements.items()}
    return made


def one(edit: dict[str, Any]) -> tuple[Verdicts | None, str]:
    """Verdicts with the edit; or why it cannot be made."""
    path = TREE / "drivers/net" / edit["driver"]
    folder = path if path.is_dir() else path.parent
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "driver")
        shutil.copytree(folder, copy, ignore=None if path.is_dir() else _files_only)
        try:
            edits.apply(edit, copy)
        except edits.CannotEdit as error:
            return None, str(error)
        edited = {}
        for changed in copy.rglob("*.[ch]"):
            original = folder / changed.relative_to(copy)
            if original.is_file() and original.read_bytes() != changed.read_bytes():
                edited[str(original)] = changed.read_bytes()
    with tree.replaced(edited):
        return verdicts(edit["driver"]), ""


def _files_only(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if os.path.isdir(os.path.join(folder, name))]


def is_right(edit: dict[str, Any], before: Verdicts, after: Verdicts) -> bool:
    """One module at least fails what is broken; or no verdict of any module has moved."""
    id_ = edit["breaks"]
    if id_ is None:
        return before == after
    return any(RANK[after[name][id_]] < RANK[before[name][id_]] for name in after)


def main() -> int:
    """Judge all of them, or those named."""
    listed = json.loads((ROOT / "tests/lint/edits.json").read_text())
    chosen = [edit for edit in listed if not sys.argv[2:] or edit["id"] in sys.argv[2:]]
    names = sorted({edit["driver"] for edit in chosen})
    with ProcessPoolExecutor() as pool:
        before = dict(zip(names, pool.map(verdicts, names), strict=True))
        results = list(pool.map(one, chosen))
    right: Counter[tuple[str, bool]] = Counter()
    total: Counter[tuple[str, bool]] = Counter()
    missed, bad = [], 0
    for edit, (after, why) in zip(chosen, results, strict=True):
        key = edit["hard"], edit["breaks"] is not None
        total[key] += 1
        ok = after is not None and is_right(edit, before[edit["driver"]], after)
        right[key] += ok
        if not ok:
            missed.append(edit)
        if ok == edit.get("missed", False):
            bad += not ok
            said = "as it should be, and marked as missed" if ok else why or "MISSED"
            about = f"{edit['id']} ({edit['driver']}, {edit['breaks'] or 'harmless'})"
            print(f"{about}: {said}: {edit['what']}")
    lines = ["| | easy | medium | hard |", "| --- | --- | --- | --- |"]
    for breaking, name in (
        (True, "break one requirement: seen"),
        (False, "change nothing: no verdict moved"),
    ):
        cells = [f"{right[h, breaking]} of {total[h, breaking]}" for h in HARD]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(lines))
    if not sys.argv[2:]:
        rows = [f"| {e['driver']} | {e['breaks'] or 'none'} | {e['hard']} | {e['what']} |" for e in missed]
        head = DOCUMENT.read_text().split(MARK)[0].rstrip()
        table = [
            "",
            "Not seen, or moved:",
            "",
            "| driver | breaks | | what |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
        DOCUMENT.write_text("\n".join([head, "", MARK, "", *lines, *table]) + "\n")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
