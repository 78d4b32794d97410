"""Errors that carry the kernel's errno and one clear line."""

from __future__ import annotations

import errno as _errno


class NetmemError(OSError):
    """An operation that netmem refuses, with the errno Linux gives for the same reason.

    ``str()`` is one line: what was refused, why, and where possible the cure.
    """

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(errno, message)

    def __str__(self) -> str:
        code = self.errno or 0
        name = "ETOOSMALL" if code == ETOOSMALL else _errno.errorcode.get(code, str(code))
        return f"{self.strerror} [{name}]"


class DeviceGoneError(NetmemError):
    """ENODEV: the NIC behind the device is gone (its process died, or it was unplugged)."""

    def __init__(self, message: str) -> None:
        super().__init__(_errno.ENODEV, message)


class MissingError(NetmemError):
    """ENODEV: something that must be installed first is not there; the message says how to get it."""

    def __init__(self, message: str) -> None:
        super().__init__(_errno.ENODEV, message)


ETOOSMALL = 525
"""Kernel-internal number that recvmsg returns when no control message fits (net/core/scm.c)."""
