"""The qtest protocol: lines of text with which a test drives a machine's ports and memory.

Described in QEMU's documentation, "QTest Device Emulation Testing Framework". One call costs 20 to 80 us,
nearly all of it QEMU's one thread: doorbells are posted, and their answers are taken later.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable

from netmem.base.errors import DeviceGoneError

TIMEOUT_S, LIMIT_S = 5.0, 60.0
MAX_POSTED = 256


class LineSocket:
    """Lines to QEMU and back, never waiting longer than 5 s, or 60 s for a QEMU that is at work.

    ``at_work()`` is a number that grows while QEMU runs, or waits for a CPU of a loaded machine.
    ``gone(what)`` makes the error for a QEMU that ended, or that did not answer to ``what`` in time: it
    is then ended, since answers could not be told apart any more.
    """

    def __init__(
        self, sock: socket.socket, gone: Callable[[str], DeviceGoneError], at_work: Callable[[], int]
    ) -> None:
        self._sock, self._gone, self._at_work = sock, gone, at_work
        self._sock.setblocking(False)
        self.lock = threading.RLock()
        self._data = b""

    def send(self, text: str) -> None:
        """Send a line."""
        data = text.encode() + b"\n"
        while data:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, text)
            except OSError:
                raise self._gone("") from None

    def line(self, what: str) -> bytes:
        """The next line, waiting for it."""
        while b"\n" not in self._data:
            if not self.take():
                self._wait(select.POLLIN, what)
        text, _, self._data = self._data.partition(b"\n")
        return text

    def take(self) -> bool:
        """Take what has come, without waiting; False when nothing had."""
        try:
            more = self._sock.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            more = b""
        if not more:
            raise self._gone("")
        self._data += more
        return True

    def has_line(self) -> bool:
        """True when ``line`` need not wait."""
        return b"\n" in self._data

    def _wait(self, event: int, what: str) -> None:
        """Until the socket is ready: TIMEOUT_S, or as long as QEMU is at work, at most LIMIT_S."""
        poll = select.poll()
        poll.register(self._sock, event)
        end = time.monotonic() + LIMIT_S
        before = self._at_work()
        while not poll.poll(TIMEOUT_S * 1e3):
            now = self._at_work()
            if now == before or time.monotonic() > end:
                raise self._gone(what)
            before = now

    def close(self) -> None:
        """Close our end."""
        self._sock.close()


class QTest:
    """One qtest socket. Errors of all calls: DeviceGoneError when QEMU ended or hangs."""

    def __init__(self, lines: LineSocket) -> None:
        self._lines = lines
        self._posted = 0

    def call(self, command: str) -> int:
        """Send a command and return its answer's number (0 without one)."""
        with self._lines.lock:
            self._lines.send(command)
            while self._posted:
                self._answer(command)
                self._posted -= 1
            answer = self._answer(command)
            return int(answer[1], 0) if len(answer) > 1 else 0

    def post(self, command: str) -> None:
        """Send a command and do not wait for its answer."""
        with self._lines.lock:
            self._lines.send(command)
            self._posted += 1
            self._lines.take()
            while self._posted and (self._lines.has_line() or self._posted > MAX_POSTED):
                self._answer(command)
                self._posted -= 1

    def _answer(self, what: str) -> list[str]:
        """The next answer; interrupts that qtest reports in between are not asked for."""
        while True:
            text = self._lines.line(what)
            words = text.decode(errors="replace").split()
            if words and words[0] == "OK":
                return words
            if not words or words[0] != "IRQ":
                raise RuntimeError(f"QEMU answered {text!r} to {what!r}")

    # -- memory and ports ---------------------------------------------------------------------

    def readl(self, address: int) -> int:
        """32 bits of memory or device registers."""
        return self.call(f"readl {address:#x}")

    def writel(self, address: int, value: int) -> None:
        """Write 32 bits, and wait until the device has them."""
        self.call(f"writel {address:#x} {value:#x}")

    def config_read(self, bdf: tuple[int, int, int], offset: int, size: int) -> int:
        """PCI configuration mechanism 1 (PCI 3.0, 3.2.2.3.2): an address port and a data port."""
        with self._lines.lock:
            self._select(bdf, offset)
            return self.call(f"in{' bw l'[size]} {0xCFC + offset % 4:#x}")

    def config_write(self, bdf: tuple[int, int, int], offset: int, size: int, value: int) -> None:
        with self._lines.lock:
            self._select(bdf, offset)
            self.call(f"out{' bw l'[size]} {0xCFC + offset % 4:#x} {value & (1 << 8 * size) - 1:#x}")

    def _select(self, bdf: tuple[int, int, int], offset: int) -> None:
        bus, device, function = bdf
        address = 1 << 31 | bus << 16 | device << 11 | function << 8 | offset & 0xFC
        self.post(f"outl 0xcf8 {address:#x}")
