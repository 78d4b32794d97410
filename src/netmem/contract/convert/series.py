"""The patches of a conversion, one a step, as `git am` takes them."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from netmem.base.text import printable
from netmem.contract.convert.edits import Refused
from netmem.contract.lint import tree
from netmem.contract.lint.changes import GIT, git_environment

UNKNOWN = ("netmem convert", "netmem@localhost")  # the author where git knows none
TIMEOUT_S = 60


@dataclass
class Step:
    """``texts``: path -> what a file is after it; ``subject`` without prefix."""

    subject: str
    body: str
    texts: Mapping[str, bytes]


@dataclass
class Patch:
    """``name``: of its file; ``text``: a message with a diff, as `git format-patch` writes it."""

    name: str
    text: str


def author(folder: Path) -> tuple[str, str]:
    """Name and address that git has for the user."""
    found = []
    for key in ("user.name", "user.email"):
        done = subprocess.run(
            ["git", "config", "--get", key], cwd=folder, capture_output=True, timeout=TIMEOUT_S
        )
        found.append(done.stdout.decode("utf-8", "replace").strip())
    return (found[0], found[1]) if all(re.search(r"\w", one) for one in found) else UNKNOWN


def series_of(before: Mapping[str, bytes], steps: Sequence[Step], base: Path, prefix: str) -> list[Patch]:
    """Patches with paths from ``base``; a step that changes nothing has none. Refused."""
    for path in before:
        if not tree.is_inside(path, base) or os.path.relpath(path, base).startswith(".."):
            raise Refused(f"{printable(path)} is not below {base}")
    name, address = author(base)
    identity = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
                for what, value in (("NAME", name), ("EMAIL", address))}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="netmem-convert-") as folder:
        top, out = Path(folder, "tree"), Path(folder, "series")
        top.mkdir()
        _git(top, identity, "init", "-q", "--template=")
        _commit(top, identity, before, base, "before")
        last = dict(before)
        for step in steps:
            if any(last[path] != text for path, text in step.texts.items()):
                last.update(step.texts)
                body = "\n\n".join(textwrap.fill(one, 72) for one in step.body.split("\n\n"))
                _commit(top, identity, step.texts, base, f"{prefix}: {step.subject}\n\n{body}\n")
        root = _git(top, identity, "rev-list", "--max-parents=0", "HEAD").strip()
        _git(top, identity, "format-patch", "-q", "-o", str(out), "--no-signature", f"{root}..HEAD")
        found = sorted(out.glob("*.patch")) if out.exists() else []
        return [Patch(one.name, one.read_bytes().decode("utf-8", "surrogateescape")) for one in found]


def _commit(
    top: Path, identity: dict[str, str], texts: Mapping[str, bytes], base: Path, message: str
) -> None:
    for path, text in texts.items():
        target = top / os.path.relpath(path, base)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text)
    _git(top, identity, "add", "-A", "-f")
    _git(top, identity, "commit", "-q", "--no-verify", "-m", message)


def _git(top: Path, identity: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [*GIT, "-c", "commit.gpgSign=false", "-c", "core.autocrlf=false", "-C", str(top), *words],
        capture_output=True, text=True, timeout=TIMEOUT_S, errors="surrogateescape",
        env=git_environment(GIT_CEILING_DIRECTORIES=str(top), **identity),
    )  # fmt: skip
    if done.returncode:
        raise Refused(f"git {words[0]}: {printable(done.stderr.strip())}")
    return done.stdout
