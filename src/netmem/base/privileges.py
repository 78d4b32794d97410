"""Giving up privileges: what a process that was started as root does not need any more (capabilities(7))."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

CAP_DAC_OVERRIDE = 1  # write files whoever they belong to
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 23, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522
LAST = 63


def drop_capabilities(keep: Iterable[int] = ()) -> None:
    """Keep only the capabilities named, for good: none comes back, not by running another program either.

    It is the calling thread that gives them up, and what it starts: call it before there are others. OSError
    as the kernel says.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    kept = sum(1 << number for number in keep)
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(LAST + 1):
        if not kept >> number & 1 and libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            if libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) and ctypes.get_errno() != errno.EPERM:
                raise OSError(ctypes.get_errno(), "cannot drop a capability from the bounding set")
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    have = _capabilities(libc, header)
    data = b""
    for half in range(2):
        mask = kept >> 32 * half & have[half]
        data += struct.pack("=III", mask, mask, 0)  # effective, permitted, inheritable
    _check(libc.capset(header, data))


def _capabilities(libc: ctypes.CDLL, header: bytes) -> list[int]:
    """The permitted capabilities, low and high half."""
    data = ctypes.create_string_buffer(24)
    _check(libc.capget(ctypes.create_string_buffer(header, len(header)), data))
    words = struct.unpack("=6I", data.raw)
    return [words[1], words[4]]


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
