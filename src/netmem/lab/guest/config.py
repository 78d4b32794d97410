"""What a guest is like, what a command in it did, and the error when it did not do what it was to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from netmem.base.errors import NetmemError
from netmem.base.text import printable

LOCAL4, REMOTE4 = "10.9.0.2", "10.9.0.1"


@dataclass(frozen=True)
class GuestConfig:
    """What a guest is like. ``memory`` in MiB; ``faults``: chances of the wire's, and of GveFaults'."""

    queues: int = 4
    mtu: int = 1500
    memory: int = 1024
    cpus: int = 2
    wire: str = "pair"  # pair, user, tap
    tap: int = -1  # the interface's descriptor, with wire "tap"
    local4: str = LOCAL4
    remote4: str = REMOTE4
    faults: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    iommu: bool = False
    bounce: bool = False
    gdb: int = 0  # TCP port of this host's loopback
    capture: int = -1  # descriptor of a file
    share: Path | None = None  # an image
    out: bool = False
    shell: bool = False
    verbose: bool = False  # the kernel's messages as they come
    folder: str = "/root"
    append: str = ""  # more of the kernel's command line
    devices: tuple[str, ...] = ()  # more of QEMU's devices, as -device has them
    netdevs: tuple[str, ...] = ()  # and what they are plugged into, as -netdev has it


class GuestError(NetmemError):
    """EIO and others: the guest did not do what it was to; ``console`` has its last lines."""

    def __init__(self, code: int, message: str, console: Sequence[str] = ()) -> None:
        super().__init__(code, message)
        self.console = list(console)


@dataclass
class Done:
    """What a command did."""

    status: int
    stdout: bytes = b""
    stderr: bytes = b""

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")

    def last_words(self) -> str:
        """The last line that it said, of its errors if there are any, made harmless; or its status."""
        for said in (self.stderr, self.stdout):
            if lines := said.decode(errors="replace").strip().splitlines():
                return printable(lines[-1])
        return f"exit status {self.status}"
