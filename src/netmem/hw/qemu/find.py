"""Which QEMU there is, and whether it will do."""

from __future__ import annotations

import errno
import functools
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass

from netmem.base.errors import MissingError, NetmemError

COMMAND = "qemu-system-x86_64"
OLDEST = (8, 2)  # header split in its 82576 came with 8.2
DEVICES = ("igb", "ivshmem-plain", "ivshmem-doorbell", "pcie-root-port")
TIMEOUT_S = 20.0
# It starts no programs, takes no privileges and sets no limits (seccomp filters of QEMU's own).
SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")


@dataclass(frozen=True)
class Qemu:
    """A QEMU that has what is needed."""

    path: str
    version: tuple[int, int]
    sandbox: tuple[str, ...] = ()  # options that confine it, if it was built with seccomp


def find_qemu(path: str | None = None) -> Qemu:
    """QEMU on PATH, or at ``path``. MissingError when it is not there, too old, or lacks a device."""
    found = shutil.which(path or COMMAND) or path
    if not found:
        raise MissingError(f"{COMMAND} is not installed: {how_to_install()}, or name one that is elsewhere")
    if not os.access(found, os.X_OK) or os.path.isdir(found):
        raise NetmemError(errno.EINVAL, f"QEMU {found}: no program is there")
    return _examine(found, os.stat(found).st_mtime_ns)


@functools.cache
def _examine(path: str, changed: int) -> Qemu:
    text = _ask(path, "--version")
    match = re.search(r"version (\d+)\.(\d+)", text)
    if not match:
        raise NetmemError(errno.EINVAL, f"QEMU {path}: this is no QEMU")
    version = (int(match[1]), int(match[2]))
    if version < OLDEST:
        raise MissingError(
            f"{path} is QEMU {match[1]}.{match[2]}; its 82576 splits headers from 8.2 on: {how_to_install()}"
        )
    devices = _ask(path, "-device", "help")
    lacking = [name for name in DEVICES if f'"{name}"' not in devices]
    if lacking:
        raise MissingError(f"{path} was built without {', '.join(lacking)}: {how_to_install()}")
    confined = '"igb"' in _ask(path, *SANDBOX, "-device", "help")
    return Qemu(path, version, SANDBOX if confined else ())


def _ask(path: str, *words: str) -> str:
    try:
        done = subprocess.run(
            [path, *words], capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        raise NetmemError(errno.EINVAL, f"QEMU {path} cannot be run: {error}") from None
    return done.stdout


def how_to_install() -> str:
    """The command that brings a QEMU with igb to this machine."""
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        system = {}
    family = {system.get("ID", ""), *system.get("ID_LIKE", "").split()}
    if system.get("ID") == "debian" and system.get("VERSION_ID", "") == "12":
        return "enable bookworm-backports, then apt install -t bookworm-backports qemu-system-x86"
    if "debian" in family or "ubuntu" in family:
        return "apt install qemu-system-x86"
    if family & {"fedora", "rhel", "centos"}:
        return "dnf install qemu-system-x86-core"
    return "install QEMU 8.2 or later for x86_64"
