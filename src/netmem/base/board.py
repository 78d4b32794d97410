"""A notice board: what a process says of itself, for tools that look in through /proc.

JSON in a named memfd, under a sequence number that is odd while it is being written. Nothing listens,
nothing is left behind; a process that hangs can be looked at too. What changes all the time is not
written here but read from the arenas whose descriptors the board names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netmem.base.arena import Region, Words, memfd
from netmem.base.native import publish_word

PREFIX = "/memfd:netmem:board:"
SIZE = 1 << 18
HEADER = 16  # sequence number, length
TRIES = 100


class Board:
    """One board. ``write`` replaces what it says."""

    def __init__(self, name: str) -> None:
        self.fd = memfd(f"board:{name}", SIZE)
        self._region = Region(self.fd, SIZE)
        self._sequence = 0

    def write(self, content: Any) -> None:
        """Say ``content`` from now on; it is cut off (and so unreadable) beyond 256 KiB."""
        data = json.dumps(content).encode()[: SIZE - HEADER]
        at = self._region.address
        publish_word(at, self._sequence + 1)
        self._region.bytes[HEADER : HEADER + len(data)] = memoryview(data)
        publish_word(at + 8, len(data))
        self._sequence += 2
        publish_word(at, self._sequence)

    def close(self) -> None:
        """Take the board down: wiped, because a mapping keeps the memory for a while."""
        if self.fd >= 0:
            publish_word(self._region.address + 8, 0)
            os.close(self.fd)
            self.fd = -1


def boards(pid: int | None = None) -> Iterator[tuple[int, Any]]:
    """(process id, content) of every board that this user may read, of one process or all."""
    pids = [pid] if pid is not None else [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    for one in sorted(pids):
        try:
            links = list(os.scandir(f"/proc/{one}/fd"))
        except OSError:
            continue
        seen = set()
        for link in links:
            try:
                if os.readlink(link.path).startswith(PREFIX):
                    inode = os.stat(link.path).st_ino
                    if inode in seen:
                        continue  # Python's mmap holds a second descriptor
                    seen.add(inode)
                    content = _read(link.path)
                    if content is not None:
                        yield one, content
            except OSError:
                continue  # closed in the meantime


def _read(path: str) -> Any:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(TRIES):
            before = os.pread(fd, HEADER, 0)
            data = os.pread(fd, SIZE - HEADER, HEADER)
            if os.pread(fd, 8, 0) != before[:8] or before[0] & 1:
                continue
            size = int.from_bytes(before[8:], "little")
            if not size:
                return None
            try:
                return json.loads(data[:size])
            except ValueError:
                return None
    finally:
        os.close(fd)
    return None


def arena_words(pid: int, fd: int) -> Words:
    """The words of another process's arena, for reading. OSError when it is gone."""
    copy = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Region(copy, os.fstat(copy).st_size, writable=False).words()
    finally:
        os.close(copy)
