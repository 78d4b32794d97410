"""What goes wrong at a gve on request: for tests of drivers, and of what is above them.

Each is provoked where hardware would do it. Rates are chances for each event, by a seed.
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, fields

from netmem.base.clock import MS
from netmem.base.errors import NetmemError
from netmem.hw.gve import layout as ly


@dataclass
class GveFaults:
    """Faults of one port; changing a field changes what happens next.

    ``completion_loss``, ``completion_late``: chance that a transmit completion never comes, or comes
    ``late_ms`` later. ``unsplit``, ``overflow``: chance that a TCP packet of a queue with header split is not
    split, or that its headers are said not to fit. ``no_buffers``: chance that a frame finds no buffer.
    ``torn``: chance that a queue stands still within a packet of several buffers, of which the driver has
    seen the first, until the queue is made anew.
    """

    seed: int = 0
    completion_loss: float = 0.0
    completion_late: float = 0.0
    late_ms: float = 50.0
    unsplit: float = 0.0
    overflow: float = 0.0
    no_buffers: float = 0.0
    torn: float = 0.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.commands: dict[int, int] = {}  # opcode: status that the next such command gets
        self.counts: dict[str, int] = {}

    def _happens(self, name: str) -> bool:
        chance = getattr(self, name)
        if chance and self._random.random() < chance:
            self.counts[name] = self.counts.get(name, 0) + 1
            return True
        return False

    def completion(self, now: int) -> int | None:
        """How much later (ns) a packet's transmit completions come; None when they never do."""
        if self._happens("completion_loss"):
            return None
        return int(self.late_ms * MS) if self._happens("completion_late") else 0

    def unsplit_now(self) -> bool:
        """True for a packet that is not to be split."""
        return self._happens("unsplit")

    def overflow_now(self) -> bool:
        """True for a packet whose headers are said not to fit."""
        return self._happens("overflow")

    def torn_now(self) -> bool:
        """True for a packet in which its queue is to stop."""
        return self._happens("torn")

    def starved_now(self) -> bool:
        """True for a frame that is to find no buffer."""
        return self._happens("no_buffers")

    def fail(self, command: str, status: str = "ERROR_ABORTED") -> None:
        """Have the next command of a kind fail: names as in ``layout.Opcode`` and ``Status``. EINVAL."""
        try:
            self.commands[ly.Opcode[command.upper()]] = ly.Status[status.upper()]
        except KeyError as error:
            raise NetmemError(errno.EINVAL, f"there is no {error}: see netmem.hw.gve.layout") from None

    def set(self, name: str, value: float) -> None:
        """Change one fault by its name. EINVAL for one that is not there, or no chance."""
        known = [field.name for field in fields(self)]
        if name not in known:
            raise NetmemError(errno.EINVAL, f"{name!r} is no fault: {', '.join(known)}")
        if name not in ("seed", "late_ms") and not 0 <= value <= 1:
            raise NetmemError(errno.EINVAL, f"{name}={value} is no chance between 0 and 1")
        setattr(self, name, type(getattr(self, name))(value))
        if name == "seed":
            self._random.seed(self.seed)
