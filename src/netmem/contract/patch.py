"""Edits of C sources as a patch."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from netmem.base.text import printable
from netmem.contract.lint import tree
from netmem.contract.lint.changes import GIT, git_environment
from netmem.contract.lint.csource import CFile


class Refused(Exception):
    """Nothing was rewritten, and why."""


def patch_of(files: Sequence[CFile], edits: Mapping[str, list[tuple[int, int, str]]], base: Path) -> str:
    """What `git apply` takes, from ``base``: ``edits`` of ``files`` by path, as (start, end, text) in bytes.

    Refused for a file outside of it.
    """
    for path in edits:
        if not tree.is_inside(path, base) or os.path.relpath(path, base).startswith(".."):
            raise Refused(f"{printable(path)} is not below {base}")
    with tempfile.TemporaryDirectory(prefix="netmem-convert-") as folder:
        for one in files:
            changes = edits.get(one.path)
            if not changes:
                continue
            text = one.text
            for start, end, new in sorted(changes, key=lambda e: (e[0], e[1]), reverse=True):
                text = text[:start] + new.encode() + text[end:]
            for side, content in (("a", one.text), ("b", text)):
                target = Path(folder, side, os.path.relpath(one.path, base))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        words = [
            *GIT,
            "diff",
            "--no-index",
            "--no-color",
            "--no-ext-diff",
            "--no-textconv",
            "--src-prefix=",
            "--dst-prefix=",
        ]
        done = subprocess.run(
            [*words, "a", "b"],
            cwd=folder,
            capture_output=True,
            timeout=60,
            env=git_environment(GIT_DIR=os.devnull, GIT_CEILING_DIRECTORIES=folder),
        )
    if done.returncode not in (0, 1):
        raise Refused(f"git diff: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode("utf-8", "surrogateescape")
