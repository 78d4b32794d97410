"""Errors that carry the kernel's errno and one clear line."""

from __future__ import annotations

import errno as _errno
from typing import Any

ETOOSMALL = 525
"""Kernel-internal number that recvmsg returns when no control message fits (net/core/scm.c)."""

NAMES = {ETOOSMALL: "ETOOSMALL", _errno.EOPNOTSUPP: "EOPNOTSUPP"}  # the C library says ENOTSUP for that, too


def errno_name(code: int) -> str:
    """A number's name, as the kernel's sources have it."""
    return NAMES.get(code) or _errno.errorcode.get(code, str(code))


class _ByErrno(type):
    """Picks the class that is the builtin exception for an errno, too."""

    def __call__(cls, *args: Any, **words: Any) -> Any:
        kind = _kinds.get(args[0], cls) if cls is NetmemError and args else cls
        return type.__call__(kind, *args, **words)


class NetmemError(OSError, metaclass=_ByErrno):
    """An operation that netmem refuses, with the errno Linux gives for the same reason.

    ``str()`` is one line: what was refused, why, and where possible the cure. It is the builtin exception
    for its errno, too: ConnectionResetError, TimeoutError and the like.
    """

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(errno, message)

    def __str__(self) -> str:
        return f"{self.strerror} [{errno_name(self.errno or 0)}]"


def _kind(builtin: type[OSError]) -> type:
    return _ByErrno(f"Netmem{builtin.__name__}", (NetmemError, builtin), {"__doc__": NetmemError.__doc__})


_kinds: dict[object, type] = {
    _errno.ECONNRESET: _kind(ConnectionResetError),
    _errno.ECONNREFUSED: _kind(ConnectionRefusedError),
    _errno.ECONNABORTED: _kind(ConnectionAbortedError),
    _errno.EPIPE: _kind(BrokenPipeError),
    _errno.ETIMEDOUT: _kind(TimeoutError),
    _errno.EACCES: _kind(PermissionError),
    _errno.EPERM: _kind(PermissionError),
    _errno.EEXIST: _kind(FileExistsError),
    _errno.ENOENT: _kind(FileNotFoundError),
}


class DeviceGoneError(NetmemError):
    """ENODEV: the NIC behind the device is gone (its process died, or it was unplugged)."""

    def __init__(self, message: str) -> None:
        super().__init__(_errno.ENODEV, message)


class MissingError(NetmemError):
    """ENODEV: something that must be installed first is not there; the message says how to get it."""

    def __init__(self, message: str) -> None:
        super().__init__(_errno.ENODEV, message)
