"""Whoever is at the other end of the wire: a network namespace of this machine, or another one by ssh."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from netmem.base.errors import NetmemError
from netmem.base.text import printable

PROGRAM = Path(__file__).with_name("other_end.py")
START_S = 30.0
NO_WAY = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT)
KINDS = ("netns", "ssh")


def default_peer(environ: dict[str, str]) -> str:
    """What the kernel's selftests are told of it: REMOTE_TYPE and REMOTE_ARGS; "" without."""
    kind, words = environ.get("REMOTE_TYPE", ""), environ.get("REMOTE_ARGS", "")
    return f"{kind}:{words}" if kind in KINDS and words else ""


def _argv(where: str) -> list[str]:
    kind, _, name = where.partition(":")
    program = PROGRAM.read_text()
    if kind not in KINDS or not name:
        raise NetmemError(errno.EINVAL, f"peer {where!r} is not netns:NAME or ssh:HOST")
    try:
        words = shlex.split(name)
    except ValueError as error:
        raise NetmemError(errno.EINVAL, f"peer {where!r}: {error}") from None
    if kind == "netns":
        return ["ip", "netns", "exec", name, "python3", "-u", "-c", program]
    return ["ssh", "-o", "BatchMode=yes", *words, f"python3 -u -c {shlex.quote(program)}"]


class Peer:
    """``where`` is netns:NAME or ssh:[USER@]HOST, with python3 there. ENOTCONN when it does not answer."""

    def __init__(self, where: str) -> None:
        self.where = where
        try:
            self._child = subprocess.Popen(
                _argv(where), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise NetmemError(error.errno or errno.EIO, f"peer {where}: {error.strerror}") from None
        self._data, self._next = b"", 0
        self._answers: dict[int, list[dict[str, Any]]] = {0: []}
        try:
            self.wait(0, START_S)
        except BaseException as error:
            self._kill()
            said = self._last_words()
            self.close()
            if isinstance(error, NetmemError):
                raise NetmemError(errno.ENOTCONN, f"peer {where}: {said}") from None
            raise

    def order(self, do: str, **words: Any) -> int:
        """Have something done there; its number for ``wait``."""
        self._next += 1
        self._answers[self._next] = []
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps({"id": self._next, "do": do, **words}).encode() + b"\n")
            self._child.stdin.flush()
        except OSError:
            raise NetmemError(errno.ENOTCONN, "the other end has ended") from None
        return self._next

    def wait(self, number: int, timeout: float) -> dict[str, Any]:
        """What became of an order, or what it says on the way. ETIMEDOUT; EIO with what went wrong there."""
        end = time.monotonic() + timeout
        while not self._answers[number]:
            if not self._take(end - time.monotonic()):
                raise NetmemError(errno.ETIMEDOUT, f"the other end did not answer in {timeout:g} s")
        found = self._answers[number].pop(0)
        if "error" in found:
            raise NetmemError(errno.EIO, f"the other end: {found['error']}")
        return found

    def _take(self, left: float) -> bool:
        assert self._child.stdout is not None
        fd = self._child.stdout.fileno()
        if not select.select([fd], [], [], max(left, 0.0))[0]:
            return False
        data = os.read(fd, 1 << 16)
        if not data:
            raise NetmemError(errno.ENOTCONN, "the other end has ended")
        *lines, self._data = (self._data + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):  # what a shell says first
                found = json.loads(line)
                if isinstance(found, dict) and isinstance(found.get("id"), int):
                    self._answers.setdefault(found["id"], []).append(found)
        return True

    def trouble(self, number: int) -> str:
        """Why an order could not even be begun there: no route, no address; "" where that is not known."""
        self._take(0.0)
        found = self._answers[number][0] if self._answers[number] else {}
        return str(found.get("error", "")) if found.get("errno") in NO_WAY else ""

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def _last_words(self) -> str:
        assert self._child.stderr is not None
        fd = self._child.stderr.fileno()
        os.set_blocking(fd, False)  # somebody else may have it still
        with contextlib.suppress(OSError):
            said = os.read(fd, 1 << 16).decode(errors="replace").strip().splitlines()
            return printable(said[-1]) if said else "no answer"
        return "no answer"

    def close(self) -> None:
        """End it, with all that it does."""
        self._kill()
        for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
