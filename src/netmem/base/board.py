"""A notice board: what a process says of itself, for tools that look in through /proc.

JSON in a named memfd, under a sequence number that is odd while it is being written. Nothing listens,
nothing is left behind; a process that hangs can be looked at too. What changes all the time is not
written here but read from the arenas whose descriptors the board names.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from netmem.base.arena import Words
from netmem.base.memfd import memfd
from netmem.base.record import Record, dtype
from netmem.base.text import harmless

R = TypeVar("R", bound=Record)
PREFIX = "/memfd:netmem:board:"
HEADER = 16  # sequence number, length
TRIES, MOST = 100, 4 << 20  # bytes of a board
MOST_WORDS = 64 << 20  # of an arena


# Files that say where what is read through /proc lies.
LAYOUTS = (
    "base/record.py",
    "memory/layout.py", "netdev/batch.py", "netdev/ring.py", "inet/tcp/tcb.py", "inet/tcp/receive.py",
    "inet/udp/table.py", "base/board.py",
)  # fmt: skip


@functools.cache
def layout() -> str:
    """A digest of the layouts of this version: the words of another cannot be read."""
    digest = hashlib.blake2b(digest_size=8)
    for name in LAYOUTS:
        digest.update((Path(__file__).parent.parent / name).read_bytes())
    return digest.hexdigest()


class Board:
    """One board. ``write`` replaces what it says."""

    def __init__(self, name: str) -> None:
        self.fd = memfd(f"board:{name}", HEADER)
        self._sequence = 0

    def write(self, content: dict[str, Any]) -> None:
        """Say ``content`` from now on."""
        data = json.dumps({**content, "layout": layout()}).encode()
        os.pwrite(self.fd, (self._sequence + 1).to_bytes(8, "little"), 0)
        os.pwrite(self.fd, data, HEADER)
        self._sequence += 2
        os.pwrite(self.fd, self._sequence.to_bytes(8, "little") + len(data).to_bytes(8, "little"), 0)

    def close(self) -> None:
        """Take the board down."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _finalizing():
            self.close()


def boards(pid: int | None = None) -> Iterator[tuple[int, Any]]:
    """(process id, content) of every board that this user may read, of one process or all.

    ``content["layout"]`` is ``layout()`` where the words of the process can be read.
    """
    pids = [pid] if pid is not None else [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    for one in sorted(pids):
        try:
            links = list(os.scandir(f"/proc/{one}/fd"))
        except OSError:
            continue
        for link in links:
            try:
                if os.readlink(link.path).startswith(PREFIX):
                    content = _read(link.path)
                    if content is not None:
                        yield one, harmless(content)
            except (OSError, ValueError, RecursionError):
                continue  # closed in the meantime, or not ours


def _read(path: str) -> Any:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(TRIES):
            before = os.pread(fd, HEADER, 0)
            size = int.from_bytes(before[8:], "little")
            if size > min(MOST, os.fstat(fd).st_size):
                return None  # somebody else's, with a name like ours
            data = os.pread(fd, size, HEADER)
            if os.pread(fd, HEADER, 0) != before or before[0] & 1:
                continue
            content = json.loads(data) if size else None
            return content if isinstance(content, dict) else None
    finally:
        os.close(fd)
    return None


def arena_words(pid: int, fd: int) -> Words:
    """A copy of another process's arena, for ``record_in`` and ``table_in``.

    OSError when it is gone, ValueError when it is none.

    It is read, not mapped: the other process may cut it short at any moment.
    """
    path = f"/proc/{pid}/fd/{fd}"
    if not os.readlink(path).startswith("/memfd:netmem:"):
        raise FileNotFoundError(errno.ENOENT, "this is no arena any more", path)
    copy = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(copy).st_size
        if size > MOST_WORDS * 8 or size % 8:
            raise ValueError(f"{path}: an arena of {size} bytes")
        words = np.empty(size // 8, np.int64)
        if os.preadv(copy, [words.data], 0) != size:
            raise ValueError(f"{path}: it was cut short")
        return words
    finally:
        os.close(copy)


def record_in(words: Words, layout: type[R], offset: int = 0) -> R:
    """A record in a copy of an arena, ``offset`` bytes from its start. ValueError when it does not fit."""
    return layout.from_buffer_copy(words.data, offset)


def table_in(words: Words, layout: type[Record], offset: int, count: int) -> npt.NDArray[Any]:
    """``count`` records in a copy of an arena, as a structured array. ValueError when they do not fit."""
    return np.frombuffer(words.data, dtype(layout), count, offset)
