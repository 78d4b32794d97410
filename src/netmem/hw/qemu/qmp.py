"""The QEMU Machine Protocol: one JSON object a line.

Not the qemu.qmp package: it runs an event loop of its own in the calling thread, and a binding may be made
from a coroutine of the application's.
"""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

from netmem.base.errors import DeviceGoneError, NetmemError

TIMEOUT_S = 10.0


class Qmp:
    """One QMP socket, ready for commands. ``gone()`` makes the error that says how QEMU ended."""

    def __init__(self, sock: socket.socket, gone: Callable[[], DeviceGoneError]) -> None:
        self._sock, self._gone = sock, gone
        self._sock.settimeout(TIMEOUT_S)
        self._lock = threading.Lock()
        self._data = b""
        self.version: dict[str, int] = self._message("greeting")["QMP"]["version"]["qemu"]
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Run a command (underscores in argument names stand for hyphens) and return its result.

        NetmemError (EINVAL) with QEMU's own words when it refuses; DeviceGoneError when it ended.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = json.dumps({"execute": command, "arguments": named}) + "\n"
        with self._lock:
            try:
                self._sock.sendall(request.encode())
            except TimeoutError:
                raise TimeoutError(f"QEMU did not take {command!r} in {TIMEOUT_S:g} s") from None
            except OSError:
                raise self._gone() from None
            while True:
                answer = self._message(command)
                if "event" in answer:
                    continue
                if "error" in answer:
                    raise NetmemError(errno.EINVAL, f"QEMU refused {command}: {answer['error']['desc']}")
                return answer.get("return")

    def _message(self, what: str) -> dict[str, Any]:
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
        message: dict[str, Any] = json.loads(text)
        return message

    def close(self) -> None:
        """Close our end."""
        self._sock.close()
