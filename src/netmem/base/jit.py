"""The one Numba wrapper: ``@kernel`` compiles a function and caches it on disk.

Numba's own cache looks at the file a kernel stands in and misses an edit of a kernel that it calls, or of a
layout that it reads, in another file. So each file's kernels have a folder of their own, whose name carries
a digest of that file and of all that it imports: an edit recompiles its file and its users. Each file of it
begins with a digest: one that is damaged counts as missing. Code is only loaded from a folder that nobody
else can write to; where there is none, kernels are compiled for each run. With ``NUMBA_DISABLE_JIT=1`` the
functions stay plain Python.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

from netmem.base import folders
from netmem.base.extras import COMPILED as COMPILED

if COMPILED:
    import numba
    from llvmlite import binding
    from numba.core import config as _config
    from numba.core.dispatcher import Dispatcher

    from netmem.base.kernel_cache import KernelCache, read_checked

    _numba_config: Any = _config

F = TypeVar("F", bound=Callable[..., Any])

_compiled: list[CodeType] = []  # of every kernel
_plain: set[Callable[..., Any]] = set()  # kernels that stay Python

DIGEST = 16
KEPT = 4  # versions of a file's kernels
ROOT = Path(__file__).resolve().parent.parent
IMPORT = re.compile(
    r"^(?:from (netmem[\w.]*) import (\([^)]*\)|[^\n#]*)|import (netmem[\w.]*))", re.MULTILINE
)


def _module(name: str) -> Path | None:
    """The file of a module of this package, None when there is none of that name."""
    path = ROOT.parent.joinpath(*name.split(".")).with_suffix(".py")
    return path if path.is_file() else None


@functools.cache
def _imports(path: Path) -> tuple[bytes, list[Path]]:
    """The text of a file, and the files of this package that it imports at the top."""
    data = path.read_bytes()
    found: list[Path | None] = []
    for package, names, module in IMPORT.findall(data.decode()):
        found.append(_module(package or module))
        for name in re.findall(r"\w+", re.sub(r"\bas \w+", "", names)):
            found.append(_module(f"{package}.{name}"))  # a module, perhaps
    return data, [one for one in found if one is not None]


@functools.cache
def _digest_of(path: Path) -> str:
    """A digest of a file and of all that it depends on: constants and layouts are compiled into kernels."""
    todo, found = [path], set[Path]()
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += _imports(one)[1]
    # Numba keeps a file's kernels by its path: two copies of the same code do not share them.
    digest = hashlib.sha256(f"3 {numba.__version__} {sys.version_info[:2]} {path}".encode())
    for one in sorted(found):
        digest.update(f"{one.name} {len(_imports(one)[0])} ".encode())
        digest.update(_imports(one)[0])
    return digest.hexdigest()[:DIGEST]


def _name_of(path: Path) -> str:
    """The folder of a file's kernels."""
    inside = path.is_relative_to(ROOT)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts) if inside else path.stem
    return f"{name}-{_digest_of(path)}"


@functools.cache
def _cache() -> tuple[Path | None, str]:
    """The folder for compiled kernels, or None and why there is none."""
    return folders.own_folder("netmem/kernels")


def cache_dir() -> Path | None:
    """The folder for compiled kernels, or None when there is none that is ours alone."""
    return _cache()[0]


def why_no_cache() -> str:
    """Why kernels are compiled for each run; empty when they are kept."""
    return _cache()[1]


def _cpu() -> str:
    """What kernels are compiled for: this CPU, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say."""
    name = _numba_config.CPU_NAME or binding.get_host_cpu_name()
    features = _numba_config.CPU_FEATURES
    return f"{name} {binding.get_host_cpu_features().flatten() if features is None else features}"


@functools.cache
def _mark() -> str:
    """The name of the file that says that all kernels of this version were compiled."""
    texts = {path: path.read_text() for path in ROOT.rglob("*.py")}
    names = [_name_of(path) for path, text in texts.items() if "kernel\ndef " in text]
    names.append(_cpu())
    return "warm-" + hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:DIGEST]


@functools.cache
def _kept_at(name: str) -> tuple[str, str] | None:
    """Where the kernels of a source file are kept, and the digest that says so; None: nowhere."""
    folder, source = cache_dir(), Path(name)
    if folder is None or not source.is_file():
        return None
    source = source.resolve()
    return str(folder / _name_of(source)), _digest_of(source)


def kernel(func: F) -> F:
    """Compile ``func`` on first call, with the GIL held, and keep the result on disk."""
    return _compile(func, forceinline=False)


def inline_kernel(func: F) -> F:
    """A small kernel that disappears into the kernels that call it."""
    return _compile(func, forceinline=True)


def is_kernel(func: Callable[..., Any]) -> bool:
    """True for what ``kernel`` or ``inline_kernel`` made."""
    return func in _plain if not COMPILED else isinstance(func, Dispatcher)


def _compile(func: F, *, forceinline: bool) -> F:
    if not COMPILED:
        _plain.add(func)
        return func
    # Kernels allocate nothing: without the run-time, arrays pass between them uncounted.
    options: dict[str, Any] = {"_nrt": False, "forceinline": forceinline, "error_model": "numpy"}
    compiled: Any = numba.njit(func, **options)
    if (kept := _kept_at(func.__code__.co_filename)) is not None:
        before = _numba_config.CACHE_DIR
        # Numba picks the folder when the cache is made; put its setting back for everyone else.
        _numba_config.CACHE_DIR, stamp = kept
        try:
            compiled._cache = KernelCache(func, stamp)
        finally:
            _numba_config.CACHE_DIR = before
    _compiled.append(func.__code__)
    made: F = compiled
    return made


def compile_ahead(modules: Sequence[ModuleType], *, backwards: bool = False) -> None:
    """Compile what Python calls of these modules: kernels that take nothing but numbers, without a call.

    ``backwards``: the last of the last module first.
    """
    if not COMPILED:
        return
    types = {"int": numba.int64, "bool": numba.boolean}
    step = -1 if backwards else 1
    for module in modules[::step]:
        for func in list(vars(module).values())[::step]:
            if isinstance(func, Dispatcher) and func.py_func.__module__ == module.__name__:
                code = func.py_func.__code__
                names = code.co_varnames[: code.co_argcount]
                said: list[Any] = [types.get(str(func.py_func.__annotations__.get(name))) for name in names]
                if said and None not in said:
                    func.compile(tuple(said))


def mark_warm() -> None:
    """Note in the cache folder that every kernel needed was compiled once, and which files that made."""
    folder = cache_dir()
    if COMPILED and folder is not None:
        mine = [Path(one.co_filename).resolve() for one in _compiled]
        names = sorted(
            str(path.relative_to(folder))
            for source in dict.fromkeys(mine)
            for path in (folder / _name_of(source)).rglob("*.nb[ic]")
        )
        with contextlib.suppress(OSError):
            fresh = folder / f"warm.{os.getpid()}.{time.monotonic_ns()}"
            fresh.write_text("\n".join(names))
            fresh.replace(folder / _mark())
            _prune(folder)


def is_partly_warm() -> bool:
    """True when some kernels of this version were compiled before."""
    folder = cache_dir()
    if folder is None:
        return False
    sources = dict.fromkeys(Path(one.co_filename).resolve() for one in _compiled)
    return any(any((folder / _name_of(source)).rglob("*.nbi")) for source in sources)


def _prune(folder: Path) -> None:
    """Take away what was not used for long: kernels of other versions, and marks of them."""
    for module in {path.name.rpartition("-")[0] for path in folder.iterdir() if path.is_dir()}:
        folders.prune(folder, f"{module}-*", keep=KEPT)
    folders.prune(folder, "warm*", keep=KEPT)
    folders.prune(folder.parent, "kernels-*", keep=0)  # as an earlier version kept them


def is_warm(*, thorough: bool = False) -> bool:
    """True when there is nothing to compile: the cache is complete, or the compiler is off.

    ``thorough`` reads every file of it; the damaged ones are taken out.
    """
    if not COMPILED:
        return True
    folder = cache_dir()
    if folder is None:
        return False
    mark = folder / _mark()
    try:
        names = mark.read_text().splitlines()
        for used in {mark, *(folder / name.partition("/")[0] for name in names)}:
            os.utime(used)
    except (OSError, UnicodeDecodeError):
        return False
    if not thorough:
        return True
    damaged = [name for name in names if read_checked(folder / name) is None]
    with contextlib.suppress(OSError):
        if damaged:
            mark.unlink(missing_ok=True)
        for name in damaged:
            (folder / name).unlink(missing_ok=True)
    return not damaged and bool(names)
