"""The qtest protocol: lines of text with which a test drives a machine's ports and memory.

Described in QEMU's documentation, "QTest Device Emulation Testing Framework". One call costs 20 to 80 us,
nearly all of it QEMU's one thread: doorbells are posted, and their answers are taken later.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from netmem.base.errors import DeviceGoneError

TIMEOUT_S = 10.0
MAX_POSTED = 256


class QTest:
    """One qtest socket. ``gone()`` makes the error that says how QEMU ended."""

    def __init__(self, sock: socket.socket, gone: Callable[[], DeviceGoneError]) -> None:
        self._sock, self._gone = sock, gone
        self._sock.settimeout(TIMEOUT_S)
        self._lock = threading.Lock()
        self._data = b""
        self._posted = 0

    def call(self, line: str) -> int:
        """Send a command and return its answer's number (0 without one).

        DeviceGoneError when QEMU ended, TimeoutError when it does not answer in 10 s.
        """
        with self._lock:
            self._send(line)
            while True:
                answer = self._line(line)
                if self._posted:
                    self._posted -= 1
                    continue
                return int(answer[1], 0) if len(answer) > 1 else 0

    def post(self, line: str) -> None:
        """Send a command and do not wait; DeviceGoneError when QEMU ended."""
        with self._lock:
            self._send(line)
            self._posted += 1
            try:
                self._data += self._sock.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError:
                raise self._gone() from None
            while self._posted and (b"\n" in self._data or self._posted > MAX_POSTED):
                self._line(line)
                self._posted -= 1

    def _send(self, line: str) -> None:
        try:
            self._sock.sendall(line.encode() + b"\n")
        except TimeoutError:
            raise TimeoutError(f"QEMU did not take {line!r} in {TIMEOUT_S:g} s") from None
        except OSError:
            raise self._gone() from None

    def _line(self, what: str) -> list[str]:
        """The next answer; interrupts that qtest reports in between are not asked for."""
        while True:
            while b"\n" not in self._data:
                try:
                    more = self._sock.recv(1 << 16)
                except TimeoutError:
                    raise TimeoutError(f"QEMU did not answer to {what!r} in {TIMEOUT_S:g} s") from None
                except OSError:
                    more = b""
                if not more:
                    raise self._gone()
                self._data += more
            text, _, self._data = self._data.partition(b"\n")
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
        """PCI configuration mechanism 1 (PCI 3.0, 3.2.2.3.2)."""
        self._select(bdf, offset)
        return self.call(f"in{' bw l'[size]} {0xCFC + offset % 4:#x}")

    def config_write(self, bdf: tuple[int, int, int], offset: int, size: int, value: int) -> None:
        self._select(bdf, offset)
        self.call(f"out{' bw l'[size]} {0xCFC + offset % 4:#x} {value & (1 << 8 * size) - 1:#x}")

    def _select(self, bdf: tuple[int, int, int], offset: int) -> None:
        bus, device, function = bdf
        address = 1 << 31 | bus << 16 | device << 11 | function << 8 | offset & 0xFC
        self.post(f"outl 0xcf8 {address:#x}")

    def close(self) -> None:
        """Close our end."""
        self._sock.close()
