"""What programs that receive have in common: totals, connections, files that are whole or partial."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netmem.base.frags import DevmemMessage

CHUNK = 1 << 20


@dataclass
class Totals:
    """What was received, over all connections."""

    bytes: int = 0
    linear: int = 0
    frags: int = 0
    connections: int = 0
    failed: int = 0
    started: float = 0.0
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        """From the first byte to the last."""
        return max(self.ended - self.started, 1e-9) if self.started else 0.0

    @property
    def frags_per_mib(self) -> float:
        """How scattered it was: 16 for whole pages of 64 KiB, 256 for whole pages of 4 KiB."""
        return round(self.frags * (1 << 20) / self.bytes, 1) if self.bytes else 0.0


@dataclass
class Flow:
    """How the payload of one connection came: bytes as frags, of which bindings, and beside the memory.

    ``linear``: with the headers; ``copied``: by a queue that has no memory.
    """

    frags: int = 0
    linear: int = 0
    copied: int = 0
    bindings: set[int] = field(default_factory=set)

    def take(self, message: DevmemMessage) -> bool:
        """Count a message. True when it is the first that came by another queue."""
        size, first = len(message.linear), message.copied and not self.copied
        if message.copied:
            self.copied += size
        else:
            self.linear += size
        if len(message.frags):
            self.frags += int(message.frags["frag_size"].sum())
            self.bindings.update(message.frags["dmabuf_id"].tolist())
        return first

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        found = {"frag_bytes": self.frags, "linear_bytes": self.linear, "copied_bytes": self.copied}
        return {**found, "bindings": sorted(self.bindings)}


@dataclass
class Connection:
    """One connection being received, on one of our sockets or the kernel's. ``sink`` takes its payload."""

    number: int
    sock: Any
    sink: Any
    close: Callable[[bool], None]  # True: everything came
    bytes: int = 0
    error: str = ""
    done: bool = False
    buffer: bytearray = field(default_factory=bytearray)
    flow: Flow = field(default_factory=Flow)

    def finish(self, *, abort: bool) -> bool:
        """Close socket and output, with a reset or in good order. True when the output did not close."""
        self.done, failed = True, False
        try:
            self.close(not abort)
        except OSError as error:
            self.error, failed = self.error or f"{error.filename or ''}: {error.strerror}", True
        if abort:
            self.sock.abort()
        else:
            self.sock.close()
        return failed


class FileSink:
    """Bytes to a file, by whole writes. A regular file is called FILE.partial until everything came.

    EBUSY when somebody else writes the same file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        special = os.path.exists(path) and not os.path.isfile(path)
        self.now = path if special else f"{path}.partial"
        while True:
            self.fd = os.open(self.now, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if special or self._is_ours():
                return

    def _is_ours(self) -> bool:
        """Lock and empty the file; False when it got its name in the meantime."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.exists(self.now) and os.path.samestat(os.fstat(self.fd), os.stat(self.now))
            if mine:
                os.ftruncate(self.fd, 0)
                return True
        except OSError as error:
            os.close(self.fd)
            if isinstance(error, BlockingIOError):
                why = "another connection is writing it; put {n} into the name, or say --count 1"
                raise OSError(errno.EBUSY, why, self.path) from None
            raise
        os.close(self.fd)
        return False

    def write(self, data: memoryview) -> None:
        """Write all of ``data``; OSError names the file."""
        try:
            while len(data):
                data = data[os.write(self.fd, data) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from None

    def close(self, complete: bool) -> None:
        """Close the file, and give it its name if it is ``complete``; OSError names it."""
        try:
            os.close(self.fd)
            if complete and self.now != self.path:
                os.replace(self.now, self.path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from None
