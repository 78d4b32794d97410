"""Work that is put off until somebody has the lock."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable


class Later:
    """What is to be done under a lock, by whoever takes it next: asked for where it cannot be taken."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock, self.waiting = lock, deque[Callable[[], None]]()
        self._pid = os.getpid()
        self.closed = False  # nobody else comes by any more

    def add(self, call: Callable[[], None]) -> None:
        """From any thread, also while the garbage collector runs: it never waits.

        With ``closed`` it is done at once if that can be: not in the middle of something, not in a fork.
        """
        self.waiting.append(call)
        if not self.closed or os.getpid() != self._pid or self._lock._is_owned():  # type: ignore[attr-defined]
            return
        if self._lock.acquire(blocking=False):
            try:
                self.run()
            finally:
                self._lock.release()

    def run(self) -> None:
        """Do what waits."""
        with self._lock:
            while self.waiting:
                self.waiting.popleft()()
