"""How long the static checker takes on a kernel tree, and a semantic patch for one of its rules."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from netmem.hw.process import python_argv

LIMIT_S = 600
RULE = Path(__file__).with_name("r6.cocci")


@dataclass(frozen=True)
class LintFigures:
    """Seconds, KiB at most in one process, and drivers that R6 finds."""

    drivers: int
    files: int
    megabytes: float
    cold: float
    cached: float
    memory_kib: int
    r6_seconds: float
    r6_drivers: int
    cocci_seconds: float | None
    cocci_files: list[str]


def _timed(words: list[str], tree: Path, cache: str) -> tuple[float, str, int]:
    """Seconds, output, and the largest process's KiB."""
    env = {**os.environ, "XDG_CACHE_HOME": cache}
    start = time.monotonic()
    with subprocess.Popen(
        words, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    ) as run:
        assert run.stdout is not None
        text = run.stdout.read()
        _, _, usage = os.wait4(run.pid, 0)
        run.returncode = 0
    return time.monotonic() - start, text, usage.ru_maxrss


def lint(tree: Path) -> LintFigures:
    """Check all of drivers/net without and with the cache; then R6 alone, and as a semantic patch."""
    check = python_argv("netmem.cli.entry", "check", "--format", "json")
    sources = list((tree / "drivers/net").rglob("*.c"))
    with tempfile.TemporaryDirectory() as cache:
        cold, text, memory = _timed([*check, "drivers/net"], tree, cache)
        cached, _, _ = _timed([*check, "drivers/net"], tree, cache)
        r6, found, _ = _timed([*check, "--no-cache", "--only", "R6", "drivers/net/ethernet"], tree, cache)
    failing = [d for d in json.loads(found)["drivers"] if d["requirements"]["R6"]["verdict"] == "fail"]
    cocci, files = None, []
    if shutil.which("spatch"):
        words = [
            "spatch",
            "--very-quiet",
            "--use-coccigrep",
            "--sp-file",
            str(RULE),
            "--jobs",
            str(os.cpu_count() or 1),
        ]
        start = time.monotonic()
        done = subprocess.run(
            [*words, "--dir", "drivers/net/ethernet"],
            cwd=tree,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        cocci = time.monotonic() - start
        files = sorted(set(re.findall(r"^--- (\S+)", done.stdout, re.MULTILINE)))
    return LintFigures(
        len(json.loads(text)["drivers"]), len(sources), sum(p.stat().st_size for p in sources) / 1e6, cold,
        cached, memory,
        r6, len(failing), cocci, files,
    )  # fmt: skip
