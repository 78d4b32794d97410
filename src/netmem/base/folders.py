"""Folders for what is kept between runs: ours alone along the whole path, locked, and pruned."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DAY_S = 86400.0


def homes() -> list[Path]:
    """Where a cache may be, best first: $XDG_CACHE_HOME, $HOME/.cache, .cache of the user's own home."""
    found = [os.environ.get("XDG_CACHE_HOME"), os.path.join(os.path.expanduser("~"), ".cache")]
    with contextlib.suppress(KeyError):
        found.append(os.path.join(pwd.getpwuid(os.geteuid()).pw_dir, ".cache"))
    absolute = [one for one in found if one and os.path.isabs(one)]
    return [Path(one) for one in dict.fromkeys(os.path.realpath(one) for one in absolute)]


def is_ours(path: Path, *, owned: bool = True) -> bool:
    """True when nobody but us and root can put anything at an existing path, or swap it.

    ``owned``: and it belongs to us.

    Every component of the real path belongs to us or to root; none can be written by others, unless it is a
    folder of root's in which nobody can take away what is another's (the sticky bit).
    """
    me, real = os.geteuid(), Path(os.path.realpath(path))
    for part in (real, *real.parents):
        about = os.lstat(part)
        if stat.S_ISLNK(about.st_mode) or about.st_uid not in (me, 0):
            return False
        open_to_others = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if open_to_others and not (about.st_uid == 0 and about.st_mode & stat.S_ISVTX):
            return False
        if open_to_others and part == real and owned:
            return False
    return not owned or (os.lstat(real).st_uid == me and os.path.realpath(path) == str(path))


def own_folder(name: str) -> tuple[Path | None, str]:
    """A folder of ours called ``name`` below a cache's, mode 0700, made if need be; or None, and why."""
    why = "there is no home folder"
    for home in homes():
        # Links are followed once, here: what is checked below is what is used.
        path = Path(os.path.realpath(home)) / name
        try:
            if not _make(path):
                why = f"{path} is not ours alone: another user could put code there"
                continue
            probe = path / f".probe.{os.getpid()}.{time.monotonic_ns()}"  # process ids are not unique here
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            why = f"{error.filename or path}: {error.strerror}"
            continue
        return path, ""
    return None, why


def _make(path: Path) -> bool:
    """Make what is missing of a path, each part for us alone; False when any part is not ours alone."""
    missing = []
    have = path
    while not os.path.lexists(have):
        missing.append(have)
        have = have.parent
    if not is_ours(have, owned=not missing):
        return False
    for part in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, 0o700)
    return is_ours(path)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[float], None], limit: float = 600.0) -> Iterator[bool]:
    """Hold the lock file ``path``; True when it was free at once.

    ``waiting`` is called twice a second with the seconds waited; after ``limit`` of them we go on without.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    start, free = time.monotonic(), True
    try:
        while (waited := time.monotonic() - start) < limit:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                free = False
                waiting(waited)
                time.sleep(0.5)
        yield free
    finally:
        os.close(fd)


def prune(folder: Path, pattern: str, *, keep: int, age: float = DAY_S) -> None:
    """Take away all but the ``keep`` newest that match, as far as they were not used for ``age`` seconds."""
    with contextlib.suppress(OSError):
        found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in found[keep:]:
            if time.time() - path.stat().st_mtime < age:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
