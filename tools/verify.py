#!/usr/bin/env python3
"""The long checks, one after the other; stages, times and results go to docs/verification.md as they end."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

from netmem.base.commit import commit_at_hand

ROOT = Path(__file__).resolve().parent.parent
STAGES = [
    ("lint, types, layers", ["make", "lint"]),
    ("tests, compiled", ["make", "test"]),
    ("wheel and sdist, in fresh environments", [sys.executable, "tools/try_wheels.py"]),
    ("tests, everything uncompiled", ["make", "test-uncompiled"]),
    ("drivers with mistakes, on both NICs", ["make", "mutants"]),
    ("100,000 simulated connections", ["make", "simulate", "RUNS=10000"]),
    ("crowds of a thousand, simulated", ["make", "crowd"]),
    ("10,000 short connections, a GiB each way", ["make", "soak"]),
    ("attacks on real processes", ["make", "attack"]),
    ("fuzzing, ten minutes", ["make", "fuzz"]),
    ("every driver of a Linux tree", ["make", "check-tree"]),
    ("edits of real drivers", ["make", "edits"]),
    ("conversions of real drivers, built", ["make", "convert-compile"]),
    ("guests", ["make", "guest-verify"]),
]


def last_words(text: str) -> str:
    """The line that says most about how a stage ended."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("make")]
    return (lines[-1] if lines else "").replace("|", "/")[:110]


def main() -> int:
    """Run the stages named, or all; the exit status."""
    wanted = sys.argv[1:]
    for word in wanted:
        if not any(word in name for name, _ in STAGES):
            print(f"verify: no stage has {word!r} in its name: {'; '.join(name for name, _ in STAGES)}")
            return 2
    commit = commit_at_hand()
    head = (
        "# Verification\n\nMade by `make verify`: what takes longer than CI may. "
        f"{os.cpu_count()} CPUs.\n\n| stage | result | seconds | last line | commit, day |\n"
        "| --- | --- | ---: | --- | --- |\n"
    )
    place = ROOT / "docs/verification.md"
    rows = {}
    if place.exists():
        for line in place.read_text().splitlines():
            if line.startswith("| ") and not line.startswith(("| stage", "| ---")):
                rows[line.split(" | ")[0].removeprefix("| ")] = line
    bad = 0
    for name, command in STAGES:
        if wanted and not any(word in name for word in wanted):
            continue
        print(f"== {name}", flush=True)
        start = time.monotonic()
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            said = ""
            for line in process.stdout or ():
                print(line, end="", flush=True)
                said = (said + line)[-20_000:]
        took = time.monotonic() - start
        result = "ok" if process.returncode == 0 else "FAILED"
        bad += process.returncode != 0
        day = datetime.date.today().isoformat()
        rows[name] = f"| {name} | {result} | {took:.0f} | {last_words(said)} | {commit}, {day} |"
        order = [one for one, _ in STAGES if one in rows]
        place.write_text(head + "\n".join(rows[one] for one in order) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
