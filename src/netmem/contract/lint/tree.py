"""Finding drivers: told apart by their Makefiles, with the headers and library files that they use."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from netmem.contract.lint import api

_ASSIGN = re.compile(r"^\s*([\w.$()-]+?)\s*[:+?]?=\s*(.*)$")
_TARGET = re.compile(r"^obj-(?:\$\(\s*[\w$()-]*\s*\)|[my])$")
_MEMBER = re.compile(r"^([\w-]+?)-(?:y|m|objs|\$\([^)]*\))$")
_REFERENCE = re.compile(r"\$\(([\w-]+)-(?:y|objs|m)\)")
_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*(["<])([^">\n]+)[">]', re.MULTILINE)
EXPORT = re.compile(rb"\bEXPORT_SYMBOL(?:_NS)?(?:_GPL)?\((\w+)")
_HANDLES = re.compile(rb"page_pool|netmem\b")
_DRIVER = re.compile(
    rb"register_netdev|alloc_etherdev|alloc_netdev|devm_alloc_etherdev|net_device_ops|napi_gro_receive|netif_receive_skb"
)
CORE = ("include/net/page_pool/", "include/net/netmem.h", "include/net/xdp", "include/linux/skbuff.h",
        "include/net/devlink.h", "include/linux/netdevice.h", "include/net/pkt_cls.h")  # fmt: skip
MAX_FILE, MAX_FOLDERS = 4 << 20, 200_000
MAX_OBJECTS = 100_000  # of all targets of a Makefile
FEW = 3  # drivers at a path of which every file is accounted for
LIBRARY_DIRS = ("drivers/net",)


@dataclass
class Driver:
    """One module: ``name`` is its folder's path, and its target where a folder has several."""

    name: str
    folder: Path
    sources: list[Path]
    problems: list[str] = field(default_factory=list)


_replaced: dict[str, bytes] = {}


@contextlib.contextmanager
def replaced(texts: Mapping[str, bytes]) -> Iterator[None]:
    """Files read as if they had these texts."""
    forget()
    _replaced.update(texts)
    try:
        yield
    finally:
        _replaced.clear()
        forget()


def forget() -> None:
    """Files may have changed since they were read."""
    for one in (load, _called, _real):
        one.cache_clear()


@functools.lru_cache(20_000)
def load(path: str) -> bytes | None:
    """A file's bytes, None when it cannot be read, is too large to be C by hand, or is no regular file.

    The tree may be hostile: a FIFO is not waited for, and what has no size (as all of /proc) is empty.
    """
    if path in _replaced:
        return _replaced[path]
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a device can do things already
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_FILE:
            return None
        text = b""
        while len(text) < about.st_size and (more := os.read(fd, about.st_size - len(text))):
            text += more
        return text
    except OSError:
        return None
    finally:
        os.close(fd)


def is_inside(path: str | Path, top: Path) -> bool:
    """True when a path leads below ``top``, whatever links and dots it has."""
    real, base = _real(str(path)), _real(str(top))
    return real == base or real.startswith(base.rstrip("/") + "/")


_real = functools.lru_cache(1 << 16)(os.path.realpath)


def top_of(driver: Driver, root: Path | None) -> Path:
    """The folder beyond which a driver's includes are not followed: the tree, its repository, or itself."""
    if root is not None:
        return root
    for parent in (driver.folder, *driver.folder.parents):
        if (parent / ".git").exists():
            return parent
    return driver.folder


def root_of(path: Path) -> Path | None:
    """The kernel tree that a path is in: the nearest parent with Kbuild or MAINTAINERS and drivers/net."""
    for parent in (path, *path.parents):
        if (parent / "drivers/net").is_dir() and (parent / "Makefile").is_file():
            return parent
    return None


def makefile(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """(target -> objects, folders below) of a kernel Makefile; ({}, []) without one."""
    names = [folder / name for name in ("Kbuild", "Makefile") if is_inside(folder / name, folder)]
    text = next((t for name in names if (t := load(str(name))) is not None), None)
    if text is None:
        return {}, []
    targets: dict[str, list[str]] = {}
    members: dict[str, list[str]] = {}
    below: list[str] = []
    for line in text.decode("utf-8", "replace").replace("\\\n", " ").splitlines():
        match = _ASSIGN.match(line.split("#")[0])
        if not match:
            continue
        left, words = match[1], match[2].split()
        if _TARGET.match(left):
            for word in words:
                if word.endswith("/"):
                    below.append(word.rstrip("/"))
                elif word.endswith(".o"):
                    targets.setdefault(word[:-2], [])
        elif member := _MEMBER.match(left):
            if member[1] not in ("obj", "ccflags", "subdir", "lib", "asflags"):
                members.setdefault(member[1], []).extend(words)
    budget = MAX_OBJECTS
    for name in targets:
        targets[name] = _objects(name, members) if budget > 0 else []
        budget -= 1 + len(targets[name])
    return targets, below


def _objects(name: str, members: dict[str, list[str]]) -> list[str]:
    """Objects of a target, through composite ones, in their order; a target without members is one itself."""
    found: list[str] = []
    seen: set[str] = set()
    todo = [name]
    while todo:
        one = todo.pop()
        if one not in members:
            found.append(one)
            continue
        if one in seen:
            continue
        seen.add(one)
        parts = []
        for word in members[one]:
            if word.endswith(".o"):
                parts.append(word[:-2])
            elif (match := _REFERENCE.fullmatch(word)) and match[1] in members:
                parts.append(match[1])
        todo += reversed(parts)
    return found


def find(path: Path, problems: list[str]) -> Iterator[Driver]:
    """Drivers at or below a path. What cannot be looked at is noted in ``problems``."""
    if path.is_file():
        yield Driver(str(path), path.parent, [path])
        return
    if not path.exists():  # a module of a folder with several, as it is listed
        yield from (one for one in _modules(path.parent, path.parent) if one.name == str(path))
        return
    found = list(_walk(path, problems))
    if not found:
        sources = sorted(p for p in files(path, problems) if p.suffix == ".c")
        if sources:
            yield Driver(str(path), path, sources)
        return
    if len(found) <= FEW:
        _name_unclaimed(found, problems)
    direct = [d for d in found if d.folder == path]
    if len(direct) == 1 and all(d.folder.is_relative_to(path) for d in found) and len(found) == 1:
        direct[0].name = str(path)
    yield from found


def _name_unclaimed(found: list[Driver], problems: list[str]) -> None:
    """C files beside a driver's that no Makefile names, and no other file includes."""
    claimed = {path for driver in found for path in driver.sources}
    for folder in dict.fromkeys(path.parent for path in claimed):
        beside = [path for path in sorted(folder.glob("*.c")) if path not in claimed]
        texts = [load(str(path)) or b"" for path in folder.glob("*.[ch]")] if beside else []
        for path in beside:
            if not any(b'"%s"' % os.fsencode(path.name) in text for text in texts):
                problems.append(f"{path}: no Makefile names it: it was not judged")


def folders(top: Path, problems: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Folders at and below ``top`` with the names of their files; links to folders are not followed."""

    def note(error: OSError) -> None:
        problems.append(f"{error.filename}: {error.strerror}")

    for n, (folder, dirs, names) in enumerate(os.walk(top, onerror=note)):
        if n >= MAX_FOLDERS:
            problems.append(f"{top}: more than {MAX_FOLDERS} folders: the rest was not looked at")
            return
        dirs.sort()
        yield Path(folder), sorted(names)


def files(path: Path, problems: list[str]) -> Iterator[Path]:
    """C files and headers below."""
    for folder, names in folders(path, problems):
        for name in names:
            if name.endswith((".c", ".h")) and is_inside(folder / name, path):
                yield folder / name


def _walk(top: Path, problems: list[str]) -> Iterator[Driver]:
    """A driver for each target of each Makefile that has sources."""
    for here, names in folders(top, problems):
        if "Makefile" in names or "Kbuild" in names:
            yield from _modules(here, top)


def _modules(here: Path, top: Path) -> Iterator[Driver]:
    """Those of one Makefile."""
    made: dict[str, list[Path]] = {}
    for target, objects in makefile(here)[0].items():
        sources = [p for one in objects if os.path.isfile(p := here / f"{one}.c") and is_inside(p, top)]
        if sources:
            made[target] = sources
    for target, sources in made.items():
        yield Driver(str(here) if len(made) == 1 else f"{here}/{target}", here, sources)


def makes_pool(driver: Driver) -> bool:
    """True when a driver makes a page pool, itself or through a library."""
    return any(api.POOLS.search(text) for p in driver.sources if (text := load(str(p))))


def is_network_driver(driver: Driver) -> bool:
    """True when a module receives packets for, or registers, a network device."""
    return any(_DRIVER.search(text) for p in driver.sources if (text := load(str(p))))


@dataclass(frozen=True)
class Selection:
    """Files to parse: the driver's own, and those of libraries."""

    own: tuple[str, ...]
    libraries: tuple[str, ...]


def select(driver: Driver, root: Path | None, exports: dict[str, str], everything: bool = False) -> Selection:
    """Which files can matter: those that name an interface, and the headers and libraries that they use.

    ``everything`` takes all: the verdicts must be the same.
    """
    own: list[str] = []
    headers: list[str] = []
    libraries: list[str] = []
    todo: list[tuple[Path, bytes]] = []
    texts = {source: load(str(source)) or b"" for source in driver.sources}
    relevant = api.RELEVANT if any(api.MAKES.search(text) for text in texts.values()) else api.RING
    for source, text in texts.items():
        if text and (everything or relevant.search(text)):
            own.append(str(source))
            todo.append((source, text))
    seen = set(own)
    while todo:
        path, text = todo.pop()
        for quote, name in _INCLUDE.findall(text):
            target = _resolve(path, quote, name.decode("utf-8", "replace"), driver, root)
            if target is None or str(target) in seen:
                continue
            seen.add(str(target))
            content = load(str(target))
            if content is None:
                continue
            inside = root is None or not str(target).startswith(str(root / "include"))
            if target.suffix == ".c" or inside:
                (own if target.suffix == ".c" else headers).append(str(target))
                todo.append((target, content))
            elif api.RELEVANT.search(content) and not any(
                str(target).endswith(c) or f"/{c}" in str(target) for c in CORE
            ):
                libraries.append(str(target))
                todo.append((target, content))
    words: set[bytes] = set()
    for name in (*own, *headers, *libraries):
        words |= _called(name)
    more = {exports[w.decode()] for w in words if w.decode("ascii", "ignore") in exports} - seen
    for name in sorted(more):
        libraries.append(name)
        seen.add(name)
        for quote, include in _INCLUDE.findall(load(name) or b""):
            target = _resolve(Path(name), quote, include.decode("utf-8", "replace"), driver, root)
            if target is not None and str(target) not in seen and quote == b'"':
                seen.add(str(target))
                libraries.append(str(target))
    return Selection((*sorted(own), *sorted(headers)), tuple(sorted(libraries)))


@functools.lru_cache(None)
def _called(path: str) -> frozenset[bytes]:
    return frozenset(re.findall(rb"\b([A-Za-z_]\w+)\(", load(path) or b""))


def _resolve(path: Path, quote: bytes, name: str, driver: Driver, root: Path | None) -> Path | None:
    candidates = [path.parent / name, driver.folder / name] if quote == b'"' else []
    if root is not None:
        candidates.append(root / "include" / name)
    for one in candidates:
        if os.path.isfile(one) and is_inside(one, top_of(driver, root)):
            return Path(os.path.normpath(one))
    return None


def exports(root: Path | None, top: Path) -> dict[str, str]:
    """Exported functions of files that name an interface: name -> file. Drivers call them across folders."""
    found: dict[str, str] = {}
    base = [root / one for one in LIBRARY_DIRS] if root is not None else [top if top.is_dir() else top.parent]
    for folder in base:
        if root is not None and not is_inside(folder, root):
            continue
        for path in files(folder, []):
            text = load(str(path))
            if path.suffix == ".c" and text and b"EXPORT_SYMBOL" in text and _HANDLES.search(text):
                for name in EXPORT.findall(text):
                    found.setdefault(name.decode(), str(path))
    return found
