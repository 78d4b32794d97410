"""Programs of ours that run in a guest: shell scripts, and sources that are built there."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("programs")


def script(*names: str) -> str:
    """The texts of shell scripts, one behind the other."""
    return "".join((FOLDER / f"{name}.sh").read_text() for name in names)


def program(*names: str) -> str:
    """A shell program: what all have in common, then these scripts."""
    return script("common", *names)
