"""What the kernel says when something is wrong with it or with a driver, and its log."""

from __future__ import annotations

import contextlib
import errno
import os
import re

from netmem.base.text import printable

COMPLAINT = re.compile(
    r"\b(WARNING: (?!.*out-of-tree)|BUG: |Oops|Kernel panic|general protection fault|UBSAN: |KASAN: |KCSAN: |"
    r"INFO: task .* blocked|rcu: INFO: .*stall|NETDEV WATCHDOG|DMAR: .*fault|DMA-API: |"
    r"page_pool.*stalled|refcount_t: |list_(add|del) corruption|unregister_netdevice: waiting|page_pool leak)"
)
# When a driver's page pool, or its restart of a queue, fails: nothing is wrong where that is provoked.
REFUSAL = re.compile(r"page_pool.*gave up with errno|RX queue \d+ may be unhealthy")
KMSG, RECORD = "/dev/kmsg", 8192


class KernelLog:
    """The kernel's log from now on (/dev/kmsg). ``readable`` is False where this process may not read it."""

    def __init__(self) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)

    @property
    def readable(self) -> bool:
        """True where complaints can be seen."""
        return self._fd >= 0

    def complaints(self) -> list[str]:
        """What was complained of since last asked."""
        return self.lines(COMPLAINT, REFUSAL)

    def lines(self, *wanted: re.Pattern[str]) -> list[str]:
        """Lines since last asked that have one of these."""
        found: list[str] = []
        while self._fd >= 0:
            try:
                record = os.read(self._fd, RECORD)
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten before it was read: go on behind it
                    continue
                return found
            _, _, text = record.partition(b";")
            line = printable(text.partition(b"\n")[0].decode(errors="replace"))
            if any(one.search(line) for one in wanted):
                found.append(line)
        return found

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
