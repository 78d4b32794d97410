"""The QEMU Machine Protocol: one JSON object a line.

Not the qemu.qmp package: it runs an event loop of its own in the calling thread, and a binding may be made
from a coroutine of the application's.
"""

from __future__ import annotations

import errno
import json
from typing import Any

from netmem.base.errors import NetmemError
from netmem.hw.qemu.qtest import LineSocket


class Qmp:
    """One QMP socket, ready for commands. Errors: DeviceGoneError when QEMU ended or hangs."""

    def __init__(self, lines: LineSocket) -> None:
        self._lines = lines
        self._message("greeting")
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Run a command (underscores in argument names stand for hyphens) and return its result.

        NetmemError (EINVAL) with QEMU's own words when it refuses.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        with self._lines.lock:
            self._lines.send(json.dumps({"execute": command, "arguments": named}))
            while "event" in (answer := self._message(command)):
                pass
        if "error" in answer:
            raise NetmemError(errno.EINVAL, f"QEMU refused {command}: {answer['error']['desc']}")
        return answer.get("return")

    def _message(self, what: str) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._lines.line(what))
        return message
