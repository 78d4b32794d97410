"""The commit that something was measured at."""

from __future__ import annotations

import subprocess
from pathlib import Path

# What measurements write themselves, one after the other.
WRITTEN = [
    f"docs/{name}.md"
    for name in ("verification", "reliability", "scoreboard", "guest-results", "edits", "benchmarks")
]


def commit_at_hand(folder: Path = Path(__file__).parent) -> str:
    """`git describe` of the working tree that ``folder`` lies in, "unknown" where it lies in none.

    "-dirty" after it when tracked files differ, or new ones lie there, that measurements do not write.
    """

    def git(*words: str, cwd: Path) -> str:
        done = subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        root = git("rev-parse", "--show-toplevel", cwd=folder)
        commit = git("describe", "--always", cwd=folder)
        changed = git("status", "--porcelain", "--", ".", *(f":!{name}" for name in WRITTEN), cwd=Path(root))
    except (OSError, subprocess.CalledProcessError):  # without git, outside, or before the first commit
        return "unknown"
    return commit + ("-dirty" if changed else "")
