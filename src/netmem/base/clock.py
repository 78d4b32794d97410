"""Time, passed in. Nanoseconds as int, from an arbitrary start, never going back."""

from __future__ import annotations

import time
from typing import Protocol

US = 1_000
MS = 1_000_000
SEC = 1_000_000_000
FAR = 1 << 62  # later than anything


class Clock(Protocol):
    """Anything that can say the time in nanoseconds."""

    def now(self) -> int: ...


class MonotonicClock:
    """CLOCK_MONOTONIC of this machine."""

    now = staticmethod(time.monotonic_ns)


class ManualClock:
    """A clock that moves only when told to; for tests and simulation."""

    def __init__(self, start: int = SEC) -> None:
        self._now = start

    def now(self) -> int:
        return self._now

    def advance(self, ns: int) -> int:
        """Move on by ``ns`` nanoseconds and return the new time."""
        if ns < 0:
            raise ValueError("time does not go back")
        self._now += ns
        return self._now
