"""The one Numba wrapper: ``@kernel`` compiles a function and caches it on disk.

Numba's own cache looks at the file a kernel stands in and misses an edit of a kernel that it calls
in another file. So the cache folder carries a hash of every kernel source of the package, and a
cache is never shared between two versions of the code. With ``NUMBA_DISABLE_JIT=1`` the functions
stay plain Python.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import config as _config

_numba_config: Any = _config

F = TypeVar("F", bound=Callable[..., Any])

COMPILED: bool = not _numba_config.DISABLE_JIT
"""False when NUMBA_DISABLE_JIT is set: kernels then run as ordinary Python."""


def _sources() -> list[Path]:
    """The files that define kernels, and what they import: constants are compiled into kernels."""
    root = Path(__file__).resolve().parent.parent
    texts = {path: path.read_text() for path in root.rglob("*.py")}
    todo = [path for path, text in texts.items() if "kernel\ndef " in text]
    found: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in found or path not in texts:
            continue
        found.add(path)
        for module in re.findall(r"^from netmem\.([\w.]+) import", texts[path], re.MULTILINE):
            todo.append(root.joinpath(*module.split(".")).with_suffix(".py"))
    return sorted(found)


@functools.cache
def cache_dir() -> Path | None:
    """The folder for compiled kernels, or None when no folder can be written."""
    # Numba keeps a file's kernels by its path: two copies of the same code do not share them.
    here = Path(__file__).resolve().parent
    digest = hashlib.sha256(f"{numba.__version__} {sys.version_info[:2]} {here}".encode())
    for path in _sources():
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    leaf = f"kernels-{digest.hexdigest()[:16]}"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for parent in (Path(home) / "netmem", Path(tempfile.gettempdir()) / f"netmem-{os.getuid()}"):
        try:
            (parent / leaf).mkdir(parents=True, exist_ok=True, mode=0o700)
            owner = (parent / leaf).stat().st_uid
            with tempfile.TemporaryFile(dir=parent / leaf):
                pass
        except OSError:
            continue
        if owner == os.getuid():  # never load code that another user could have put there
            return parent / leaf
    return None


def kernel(func: F) -> F:
    """Compile ``func`` on first call, with the GIL held, and keep the result on disk."""
    return _compile(func, forceinline=False)


def inline_kernel(func: F) -> F:
    """A small kernel that disappears into the kernels that call it."""
    return _compile(func, forceinline=True)


def _compile(func: F, *, forceinline: bool) -> F:
    if not COMPILED:
        return func
    folder = cache_dir()
    before = _numba_config.CACHE_DIR
    # Numba picks the folder when the decorator runs; put its setting back for everyone else.
    _numba_config.CACHE_DIR = str(folder) if folder else before
    try:
        # Kernels allocate nothing: without the run-time, arrays pass between them uncounted.
        options: dict[str, Any] = {"_nrt": False, "forceinline": forceinline, "error_model": "numpy"}
        compiled: F = numba.njit(func, cache=folder is not None, **options)
        return compiled
    finally:
        _numba_config.CACHE_DIR = before


def mark_warm() -> None:
    """Note in the cache folder that every kernel needed to run was compiled once."""
    folder = cache_dir()
    if COMPILED and folder is not None:
        (folder / "warm").touch()


def is_warm() -> bool:
    """True when there is nothing to compile: the cache is complete, or the compiler is off."""
    folder = cache_dir()
    return not COMPILED or (folder is not None and (folder / "warm").exists())
