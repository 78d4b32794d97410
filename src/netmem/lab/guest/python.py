"""netmem itself for a guest: the package, and what the extra "kernel" needs, of this installation."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import netmem
from netmem.base.errors import NetmemError

WANTED = ("click", "rich", "pyroute2")  # pure Python, as everything that they need
LEFT_OUT = shutil.ignore_patterns("__pycache__", "tests", "*.so", "lab", "hw", "bench", "testing", "lint")


def _packages(name: str, seen: set[str]) -> Iterator[Path]:
    """Folders and modules of a distribution and of what it needs on every system."""
    if name.lower() in seen:
        return
    seen.add(name.lower())
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise NetmemError(errno.ENOENT, f"{name} is not installed: pip install 'pynetmem[lab]'") from None
    tops = sorted({file.parts[0] for file in found.files or () if file.suffix == ".py"})
    if not tops:
        raise NetmemError(errno.ENOENT, f"{name} does not say what it consists of: pip install {name}")
    for top in tops:
        if not top.startswith((".", "_")):
            yield Path(str(found.locate_file(top)))
    for line in found.requires or ():
        if ";" not in line and (needed := re.match(r"[\w.-]+", line)):
            yield from _packages(needed[0], seen)


def sources() -> list[Path]:
    """What a guest gets, by the name that it is imported under."""
    seen: set[str] = set()
    found = {path for name in WANTED for path in _packages(name, seen)}
    return sorted({*found, Path(netmem.__file__).parent})


def fingerprint(paths: list[Path]) -> str:
    """Changes when a file does."""
    mark = hashlib.sha256()
    for path in paths:
        for place, folders, files in os.walk(path):
            folders[:] = sorted(one for one in folders if one != "__pycache__")
            for name in sorted(files):
                about = os.stat(os.path.join(place, name))
                mark.update(f"{place}/{name} {about.st_size} {about.st_mtime_ns}\n".encode())
        if path.is_file():
            mark.update(f"{path} {path.stat().st_mtime_ns}\n".encode())
    return mark.hexdigest()[:16]


def lay_out(paths: list[Path], folder: Path) -> None:
    """Copy them."""
    for path in paths:
        if path.is_dir():
            ignored = LEFT_OUT if path.name == "netmem" else shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(path, folder / path.name, ignore=ignored)
        else:
            shutil.copyfile(path, folder / path.name)
