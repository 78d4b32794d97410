#!/usr/bin/env python3
"""Drivers that make a page pool, judged with the text filter and with all their files: no verdict may differ.

tools/same_verdicts.py TREE
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from netmem.contract.lint import api, check, tree

TREE = Path(sys.argv[1] if len(sys.argv) > 1 else "build/linux").absolute()


def verdicts(number: int) -> tuple[str, list[str]]:
    """A driver, and what differs."""
    driver = DRIVERS[number]
    few, all_ = (check.judge(driver, TREE, EXPORTS, everything) for everything in (False, True))
    return few.driver, [
        f"{id_} {one.verdict}, with all files {all_.requirements[id_].verdict}"
        for id_, one in few.requirements.items() if one.verdict != all_.requirements[id_].verdict
    ]  # fmt: skip


DRIVERS = [
    driver for driver in check.find_drivers([TREE / "drivers/net"], [])
    if any(api.POOLS.search(tree.load(str(one)) or b"") for one in driver.sources)
]  # fmt: skip
EXPORTS = tree.exports(TREE, TREE / "drivers/net")

if __name__ == "__main__":
    with ProcessPoolExecutor() as pool:
        found = [(name, said) for name, said in pool.map(verdicts, range(len(DRIVERS))) if said]
    for name, said in found:
        print(f"{name}: {'; '.join(said)}")
    print(f"{len(DRIVERS)} drivers, {len(found)} with another verdict when all their files are read")
    sys.exit(int(bool(found)))
