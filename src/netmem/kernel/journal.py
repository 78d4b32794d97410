"""What was set on a device and is to be undone, kept where it survives its process.

A file for each open device below /run/netmem: a line for each setting, written before the setting is made.
Its owner holds a lock on it, which ends with the process: a journal that can be locked was left behind, and
whoever opens the device next undoes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from netmem.base.errors import NetmemError

FOLDER = Path("/run/netmem")
Entry = dict[str, Any]


def _place(name: str, ifindex: int) -> str:
    """A device of this network namespace, as file names begin."""
    return f"{os.stat('/proc/self/ns/net').st_ino}-{ifindex}-{name}-"


class Journal:
    """The journal of one open device. EACCES where /run is not to be written."""

    def __init__(self, name: str, ifindex: int) -> None:
        try:
            FOLDER.mkdir(mode=0o755, exist_ok=True)
            numbers = itertools.count()
            while not self._open(FOLDER / f"{_place(name, ifindex)}{os.getpid()}.{next(numbers)}"):
                pass
        except OSError as error:
            text = (
                f"cannot note what is set on {name}, to undo it: {FOLDER}: {error.strerror} (root is needed)"
            )
            raise NetmemError(error.errno or errno.EACCES, text) from None
        self.entries: list[Entry] = []

    def _open(self, path: Path) -> bool:
        """False for a file that is there, or that was taken for one that was left behind."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX)
        if not _is_at(fd, path):
            os.close(fd)
            return False
        self.path, self._fd = path, fd
        return True

    def note(self, entry: Entry) -> None:
        """What is about to be set, and how it was before."""
        self.entries.append(entry)
        self._write()

    def forget(self, entry: Entry) -> None:
        """It was not set after all. Others may say the same, which count: it is this one that goes."""
        self.entries[:] = [one for one in self.entries if one is not entry]
        self._write()

    def _write(self) -> None:
        _write(self._fd, self.entries)

    def undo(self, how: Callable[[Entry], None]) -> list[NetmemError]:
        """Undo everything, the last first. What fails stays in the journal for whoever comes next."""
        failed = undo_all(self.entries, how)
        self._write()
        if not self.entries:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        return failed


def _write(fd: int, entries: list[Entry]) -> None:
    """In place, since the lock is on this file."""
    text = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    os.pwrite(fd, text, 0)
    os.ftruncate(fd, len(text))


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def undo_all(entries: list[Entry], how: Callable[[Entry], None]) -> list[NetmemError]:
    """Undo entries, the last first; those that fail stay in the list, and their errors are returned."""
    failed = []
    for entry in reversed(entries[:]):
        try:
            how(entry)
        except NetmemError as error:
            failed.append(error)
        else:
            entries[:] = [one for one in entries if one is not entry]
    return failed


def left_behind(name: str, ifindex: int) -> Iterator[tuple[Path, list[Entry]]]:
    """Journals of a device whose processes are gone; what is left in a list afterwards is kept.

    A file that makes no sense is removed.
    """
    for path in sorted(FOLDER.glob(f"{_place(name, ifindex)}*")) if FOLDER.is_dir() else ():
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_at(fd, path):
                    continue  # another process has undone it meanwhile
                with open(fd, errors="replace", closefd=False) as file:
                    entries = _parsed(file.read())
                yield path, entries
                _write(fd, entries)
                if not entries:
                    path.unlink()
            finally:
                os.close(fd)


def _parsed(text: str) -> list[Entry]:
    entries = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                entries.append(found)
    return entries
