"""Work that is put off until somebody has the lock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Later:
    """What is to be done under a lock, by whoever takes it next: asked for where it cannot be taken."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock, self.waiting = lock, deque[Callable[[], None]]()
        self.closed = False  # nobody else comes by any more

    def add(self, call: Callable[[], None]) -> None:
        """From any thread, also while the garbage collector runs."""
        self.waiting.append(call)
        if self.closed:
            self.run()

    def run(self) -> None:
        """Do what waits."""
        with self._lock:
            while self.waiting:
                self.waiting.popleft()()
