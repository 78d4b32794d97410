"""Which QEMU runs a guest: one with a vfio-user client, on PATH or of Debian's packages; and KVM."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from netmem.base.errors import MissingError, NetmemError
from netmem.base.folders import DAY_S
from netmem.hw.qemu.find import COMMAND, SANDBOX
from netmem.lab.guest.image import private
from netmem.lab.guest.packages import Say, Store

DEVICE = "vfio-user-pci"  # QEMU 10.1 brought it
ASK_S, KVM_S = 20.0, 8.0
PVM = Path("/sys/module/kvm_pvm")  # answers KVM's calls, and cannot run an unmodified kernel


@dataclass(frozen=True)
class GuestQemu:
    """How QEMU is started."""

    argv: tuple[str, ...]
    version: str
    sandbox: tuple[str, ...]


def find_guest_qemu(store: Store, path: str | None = None) -> GuestQemu:
    """The QEMU at ``path``, else one on PATH that will do, else the packages'.

    MissingError for a ``path`` that is too old; ENOENT when the packages were not fetched.
    """
    found = shutil.which(path or COMMAND)
    if path and not found:
        raise NetmemError(errno.ENOENT, f"QEMU {path}: no program is there")
    if found:
        known = _examine((found,))
        if known is not None:
            return known
        if path:
            raise MissingError(f"{path} has no {DEVICE}: QEMU 10.1 or later has, if it was built in")
    root = store.root("host")
    share, modules = root / "usr/share", root / "usr/lib/x86_64-linux-gnu/qemu"
    argv = (
        # Its own modules, or it takes the host's.
        "/usr/bin/env", f"QEMU_MODULE_DIR={modules}", *private(root, f"usr/bin/{COMMAND}"),
        "-L", str(share / "qemu"), "-L", str(share / "seabios"), "-L", str(root / "usr/lib/ipxe/qemu"),
    )  # fmt: skip
    known = _examine(argv)
    if known is None:
        raise MissingError(f"the QEMU of the packages does not run here, or has no {DEVICE}")
    return known


def _examine(argv: tuple[str, ...]) -> GuestQemu | None:
    version = re.search(r"version ([\d.]+)", _ask(*argv, "--version"))
    if not version or f'"{DEVICE}"' not in _ask(*argv, "-device", "help"):
        return None
    confined = f'"{DEVICE}"' in _ask(*argv, *SANDBOX, "-device", "help")
    return GuestQemu(argv, version[1], SANDBOX if confined else ())


def _ask(*argv: str) -> str:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=ASK_S, stdin=subprocess.DEVNULL
        ).stdout
    return ""


def kvm_works(qemu: GuestQemu, kernel: Path, folder: Path, say: Say, *, again: bool = False) -> bool:
    """True when a kernel starts under KVM here: tried once, and remembered for this host's kernel and a day.

    Some machines answer KVM's calls and cannot run a guest, so the kernel has to print a line in time.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or PVM.exists():
        return False
    mark = folder / f"kvm-{re.sub(r'[^A-Za-z0-9.-]', '_', platform.release())}-{qemu.version}"
    if mark.exists() and not again and time.time() - mark.stat().st_mtime < DAY_S:
        return mark.read_text() == "yes"
    say("trying KVM")
    works = _boots(qemu, kernel)
    with contextlib.suppress(OSError):
        mark.write_text("yes" if works else "no")
    return works


def _boots(qemu: GuestQemu, kernel: Path) -> bool:
    argv = [
        *qemu.argv, "-M", "q35", "-accel", "kvm", "-m", "256M", "-nodefaults", "-no-user-config", "-display",
        "none", "-no-reboot", "-serial", "stdio", "-kernel", str(kernel), "-append", "console=ttyS0 panic=-1",
    ]  # fmt: skip
    deadline, said = time.monotonic() + KVM_S, b""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        try:
            assert process.stdout is not None
            while b"Linux version" not in said and (left := deadline - time.monotonic()) > 0:
                if not select.select([process.stdout], [], [], left)[0]:
                    break
                data = os.read(process.stdout.fileno(), 65536)
                if not data:
                    break
                said += data
        finally:
            process.kill()
            process.wait()
    return b"Linux version" in said
