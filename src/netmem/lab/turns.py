"""Turns of connections that bring little at a look, while others bring much."""

from __future__ import annotations

import select

from netmem.base.clock import FAR

MUCH = 16 << 10  # bytes of one look
LOOKS = 8  # that brought little: one may come between two that bring much
SHARE = 5  # looks at those that bring little take one part in so many of the time
SAVED_NS = 1_000_000  # time of which they may take their part at once
MOST_NS = 2_000_000  # that they wait at most: to be scheduled away takes time, too
RECENT_NS = 5_000_000  # for which one that brought much counts


class Turns:
    """Who waits so that peers that send single bytes do not take all of the time.

    A look at a connection costs about the same for a byte as for a megabyte. While some connections bring
    much, all others together get a fifth of the time: they are set apart, and between their turns nobody
    hears of them; what they send gathers in the kernel, and comes with one look. While no connection brings
    much nobody waits. Times are in ns of one clock; connections are descriptors, watched for ``events``.
    """

    def __init__(self, epoll: select.epoll, events: int) -> None:
        self._main, self._events = epoll, events
        self._aside = select.epoll()
        self.fd = self._aside.fileno()
        self.apart: set[int] = set()
        self._looks: dict[int, int] = {}  # at each that brought little, one after the other
        self._heard = True  # that something happened to them
        self._next = 0  # their turn
        self._much, self._much_until = -1, 0  # who brought much last, and until when it counts
        epoll.register(self.fd, select.EPOLLIN)

    def add(self, fd: int) -> None:
        """A connection begins."""
        self._main.register(fd, self._events)

    def forget(self, fd: int) -> None:
        """A connection has ended: its descriptor is closed, which no epoll knows any more."""
        self.apart.discard(fd)
        self._looks.pop(fd, None)
        if fd == self._much:
            self._much = -1

    def note(self, fd: int, size: int, now: int) -> None:
        """A look at a connection moved ``size`` bytes."""
        if size >= MUCH:
            self._much, self._much_until = fd, now + RECENT_NS
            self._looks.pop(fd, None)
            if fd in self.apart:
                self._move(fd, self._aside, self._main)
                self.apart.discard(fd)
        elif size and fd not in self.apart:
            looks = self._looks[fd] = self._looks.get(fd, 0) + 1
            if looks >= LOOKS and now < self._much_until and fd != self._much:
                self._move(fd, self._main, self._aside)
                self.apart.add(fd)

    def _move(self, fd: int, source: select.epoll, target: select.epoll) -> None:
        source.unregister(fd)
        target.register(fd, self._events)  # which tells at once what it is ready for

    def heard(self, now: int) -> list[tuple[int, int]]:
        """What happened to those that are apart; who is heard while none brings much comes back."""
        if not self.apart:
            return []
        found = self._aside.poll(0)
        if now >= self._much_until:
            for fd, _ in found:
                self._move(fd, self._aside, self._main)
                self.apart.discard(fd)
        return found

    def is_due(self, now: int) -> bool:
        """Whether those that are apart may be looked at."""
        if now < self._next and now < self._much_until:
            self._hear(False)
            return False
        self._hear(True)
        return True

    def _hear(self, heard: bool) -> None:
        """Whether the main epoll tells when something happened to them."""
        if self._heard != heard:
            self._heard = heard
            self._main.modify(self.fd, select.EPOLLIN if heard else 0)

    def took(self, start: int, end: int) -> None:
        """They were looked at, from ``start`` to ``end``."""
        self._next = max(self._next, start - SAVED_NS) + SHARE * (end - start)
        self._next = min(self._next, end + MOST_NS)
        self._hear(end >= min(self._next, self._much_until))

    def timer(self) -> int:
        """When their turn comes, if they wait."""
        return FAR if self._heard else min(self._next, self._much_until)

    def close(self) -> None:
        """No more turns."""
        self._aside.close()
