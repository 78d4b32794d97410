"""The one Numba wrapper: ``@kernel`` compiles a function and caches it on disk.

Numba's own cache looks at the file a kernel stands in and misses an edit of a kernel that it calls
in another file. So the cache folder carries a hash of every kernel source of the package, and a
cache is never shared between two versions of the code. Each file of it begins with a digest: one that is
damaged counts as missing. Code is only loaded from a folder that nobody else can write to; where there is
none, kernels are compiled for each run. With ``NUMBA_DISABLE_JIT=1`` the functions stay plain Python.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import caching
from numba.core import config as _config

from netmem.base import folders

_numba_config: Any = _config

F = TypeVar("F", bound=Callable[..., Any])

COMPILED: bool = not _numba_config.DISABLE_JIT
"""False when NUMBA_DISABLE_JIT is set: kernels then run as ordinary Python."""

DIGEST = 16
KEPT = 4  # caches of other versions


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
def _cache() -> tuple[Path | None, str]:
    """The folder for compiled kernels, or None and why there is none."""
    # Numba keeps a file's kernels by its path: two copies of the same code do not share them.
    here = Path(__file__).resolve().parent
    digest = hashlib.sha256(f"2 {numba.__version__} {sys.version_info[:2]} {here}".encode())
    for path in _sources():
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return folders.own_folder(f"netmem/kernels-{digest.hexdigest()[:16]}")


def cache_dir() -> Path | None:
    """The folder for compiled kernels, or None when there is none that is ours alone."""
    return _cache()[0]


def why_no_cache() -> str:
    """Why kernels are compiled for each run; empty when they are kept."""
    return _cache()[1]


def kernel(func: F) -> F:
    """Compile ``func`` on first call, with the GIL held, and keep the result on disk."""
    return _compile(func, forceinline=False)


def inline_kernel(func: F) -> F:
    """A small kernel that disappears into the kernels that call it."""
    return _compile(func, forceinline=True)


def _compile(func: F, *, forceinline: bool) -> F:
    if not COMPILED:
        return func
    # Kernels allocate nothing: without the run-time, arrays pass between them uncounted.
    options: dict[str, Any] = {"_nrt": False, "forceinline": forceinline, "error_model": "numpy"}
    compiled: Any = numba.njit(func, **options)
    folder = cache_dir()
    if folder is not None:
        before = _numba_config.CACHE_DIR
        # Numba picks the folder when the cache is made; put its setting back for everyone else.
        _numba_config.CACHE_DIR = str(folder)
        try:
            compiled._cache = _KernelCache(func)
        finally:
            _numba_config.CACHE_DIR = before
    made: F = compiled
    return made


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def _read(path: str | Path) -> bytes | None:
    """What a file of the cache holds, None when it is missing or damaged."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    return data[DIGEST:] if data[:DIGEST] == _digest(data[DIGEST:]) else None


class _CheckedFile(caching.IndexDataCacheFile):
    """One kernel's files, each behind its digest. What cannot be written is not kept, and no error."""

    def _write(self, path: str, data: bytes) -> None:
        with contextlib.suppress(OSError), self._open_for_write(path) as file:
            file.write(_digest(data) + data)

    def _load_index(self) -> dict[Any, str]:
        data = _read(self._index_path)
        if data is None:
            return {}
        stamp, overloads = pickle.loads(data)
        return overloads if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._write(self._index_path, self._dump((self._source_stamp, overloads)))

    def _load_data(self, name: str) -> Any:
        data = _read(self._data_path(name))
        if data is None:
            raise FileNotFoundError(name)  # compiled anew, then
        return pickle.loads(data)

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), self._dump(data))


class _KernelCache(caching.FunctionCache):
    """Numba's cache of one function, over checked files."""

    def __init__(self, func: Callable[..., Any]) -> None:
        super().__init__(func)
        self._cache_file = _CheckedFile(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=self._impl.locator.get_source_stamp(),
        )

    def _save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):  # a disk that is full, a folder that is gone
            super()._save_overload(sig, data)


def mark_warm() -> None:
    """Note in the cache folder that every kernel needed was compiled once, and which files that made."""
    folder = cache_dir()
    if COMPILED and folder is not None:
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.nb[ic]"))
        with contextlib.suppress(OSError):
            fresh = folder / f"warm.{os.getpid()}.{time.monotonic_ns()}"
            fresh.write_text("\n".join(names))
            fresh.replace(folder / "warm")
            folders.prune(folder.parent, "kernels-*", keep=KEPT)


def is_warm(*, thorough: bool = False) -> bool:
    """True when there is nothing to compile: the cache is complete, or the compiler is off.

    ``thorough`` reads every file of it; the damaged ones are taken out.
    """
    if not COMPILED:
        return True
    folder = cache_dir()
    if folder is None:
        return False
    mark = folder / "warm"
    try:
        names = mark.read_text().splitlines()
        os.utime(folder)
    except (OSError, UnicodeDecodeError):
        return False
    if not thorough:
        return True
    damaged = [name for name in names if _read(folder / name) is None]
    with contextlib.suppress(OSError):
        if damaged:
            mark.unlink(missing_ok=True)
        for name in damaged:
            (folder / name).unlink(missing_ok=True)
    return not damaged and bool(names)
