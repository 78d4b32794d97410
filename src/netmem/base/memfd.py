"""Memory file descriptors that carry our name."""

from __future__ import annotations

import os


def memfd(name: str, size: int) -> int:
    """A new memory file descriptor of ``size`` bytes, closed on exec, untouched pages free."""
    fd = os.memfd_create(f"netmem:{name}", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd
