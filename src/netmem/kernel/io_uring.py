"""As much of io_uring as zero-copy receive needs, by its system calls: one ring, completions of 32 bytes.

Numbers and layouts: include/uapi/linux/io_uring.h. The rings are shared memory that Python reads and writes
in program order, which x86-64 keeps; other processors would need fences.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from netmem.base.errors import NetmemError

SETUP, ENTER, REGISTER = 425, 426, 427  # system calls
SUBMIT_ALL, CQSIZE, CQE32, SINGLE_ISSUER, DEFER_TASKRUN = 1 << 7, 1 << 3, 1 << 11, 1 << 12, 1 << 13
GETEVENTS, EXT_ARG = 1 << 0, 1 << 3
OFF_SQ_RING, OFF_SQES = 0, 0x10000000
FEAT_SINGLE_MMAP = 1 << 0
REGISTER_EVENTFD, REGISTER_SYNC_CANCEL = 4, 24
CQE_F_MORE = 1 << 1
MIN_WAIT_AT, TIMESPEC_AT = 12, 16  # in struct io_uring_getevents_arg
GATHER_US = 1000  # how long to wait for more where there is something already
SQE_BYTES = 64
CQE = np.dtype([("user_data", "<u8"), ("res", "<i4"), ("flags", "<u4"), ("off", "<u8"), ("pad", "<u8")])
Cqes = npt.NDArray[Any]
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long


class _Offsets(ctypes.Structure):
    """struct io_sqring_offsets, io_cqring_offsets: the words that both have, in their order."""

    _fields_ = (
        ("head", ctypes.c_uint32), ("tail", ctypes.c_uint32), ("ring_mask", ctypes.c_uint32),
        ("ring_entries", ctypes.c_uint32), ("fifth", ctypes.c_uint32), ("sixth", ctypes.c_uint32),
        ("seventh", ctypes.c_uint32), ("reserved", ctypes.c_uint32), ("user_addr", ctypes.c_uint64),
    )  # fmt: skip


class _Params(ctypes.Structure):
    """struct io_uring_params."""

    _fields_ = (
        ("sq_entries", ctypes.c_uint32), ("cq_entries", ctypes.c_uint32), ("flags", ctypes.c_uint32),
        ("sq_thread_cpu", ctypes.c_uint32), ("sq_thread_idle", ctypes.c_uint32),
        ("features", ctypes.c_uint32), ("wq_fd", ctypes.c_uint32), ("reserved", ctypes.c_uint32 * 3),
        ("sq", _Offsets), ("cq", _Offsets),
    )  # fmt: skip


def words(memory: mmap.mmap, offset: int, count: int = 1) -> npt.NDArray[np.uint32]:
    """32-bit words in shared memory."""
    return np.frombuffer(memory, np.uint32, count, offset)


class Ring:
    """An io_uring of ``entries``, whose completions are ``cq_entries`` at most before the kernel stops.

    The thread that made it is the one that uses it. Errors: EOPNOTSUPP on other processors, and on kernels
    without it; EPERM where it is turned off.
    """

    def __init__(self, entries: int, cq_entries: int) -> None:
        if platform.machine() != "x86_64":
            raise NetmemError(errno.EOPNOTSUPP, "io_uring's rings need x86-64's order of writes here")
        params = _Params(cq_entries=cq_entries)
        params.flags = SUBMIT_ALL | CQSIZE | CQE32 | SINGLE_ISSUER | DEFER_TASKRUN
        self.fd = LIBC.syscall(SETUP, entries, ctypes.byref(params))
        if self.fd < 0:
            code = ctypes.get_errno()
            code = errno.EOPNOTSUPP if code in (errno.ENOSYS, errno.EINVAL) else code
            text = "io_uring cannot be used (sysctl kernel.io_uring_disabled; Linux 6.1 has what is needed)"
            raise NetmemError(code, f"{text}: {os.strerror(code)}")
        sq, cq = params.sq, params.cq
        size = max(sq.seventh + 4 * params.sq_entries, cq.sixth + CQE.itemsize * params.cq_entries)
        self._rings = mmap.mmap(self.fd, size, offset=OFF_SQ_RING)
        self._sqes = mmap.mmap(self.fd, SQE_BYTES * params.sq_entries, offset=OFF_SQES)
        self._sq_tail, self._cq_head = words(self._rings, sq.tail), words(self._rings, cq.head)
        self._cq_tail = words(self._rings, cq.tail)
        self._array = words(self._rings, sq.seventh, params.sq_entries)
        self._sq_mask, self._cq_mask = params.sq_entries - 1, params.cq_entries - 1
        self._cqes = np.frombuffer(self._rings, CQE, params.cq_entries, cq.sixth)
        # With DEFER_TASKRUN the ring itself does not become readable for work that was put off; this does.
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        code = self.register(REGISTER_EVENTFD, ctypes.byref(ctypes.c_int(self.event_fd)))
        if code:
            self.close()
            raise NetmemError(code, f"io_uring: no event descriptor: {os.strerror(code)}")
        self._timespec = (ctypes.c_int64 * 2)()
        # struct io_uring_getevents_arg: sigmask, its size, min_wait_usec, the address of a timespec
        self._wait = ctypes.create_string_buffer(
            struct.pack("=QIIQ", 0, 0, 0, ctypes.addressof(self._timespec)), 24
        )

    def submit(self, sqe: bytes) -> None:
        """Submit one request (struct io_uring_sqe)."""
        tail = int(self._sq_tail[0])
        at = tail & self._sq_mask
        self._sqes[at * SQE_BYTES : (at + 1) * SQE_BYTES] = sqe
        self._array[at] = at
        self._sq_tail[0] = (tail + 1) & 0xFFFFFFFF
        self._enter(1, 0, 0, None)

    def wait(self, timeout: float | None, least: int = 1) -> bool:
        """Until there is a completion; False when ``timeout`` seconds passed. 0 looks, and does not wait.

        ``least``: so many, if they come within GATHER_US. ``event_fd`` is readable when there may be one, and
        is not any more after this.
        """
        if self.fd < 0:
            raise NetmemError(errno.EBADF, "the ring is closed")
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.event_fd)
        if timeout is not None:
            self._timespec[0], self._timespec[1] = int(timeout), int(timeout % 1 * 1e9)
        # Also where there is something: work that was put off is told of once, and that was read above.
        there = self._cq_head[0] != self._cq_tail[0]
        wanted = 0 if timeout == 0 or (there and least == 1) else least
        struct.pack_into("=I", self._wait, MIN_WAIT_AT, GATHER_US if wanted > 1 else 0)
        self._enter(0, wanted, GETEVENTS, timeout)
        while wanted > 1 and timeout is None and self._cq_head[0] == self._cq_tail[0]:
            self._enter(0, 1, GETEVENTS, None)
        return bool(self._cq_head[0] != self._cq_tail[0])

    def _enter(self, submit: int, least: int, flags: int, timeout: float | None) -> None:
        arg, size = (None, 0)
        if timeout or least > 1:
            flags |= EXT_ARG
            arg, size = self._wait, len(self._wait)
            struct.pack_into("=Q", arg, TIMESPEC_AT, ctypes.addressof(self._timespec) if timeout else 0)
        if LIBC.syscall(ENTER, self.fd, submit, least, flags, arg, ctypes.c_size_t(size)) < 0:
            code = ctypes.get_errno()
            if code not in (errno.ETIME, errno.EINTR):
                raise NetmemError(code, f"io_uring_enter: {os.strerror(code)}")

    def completions(self) -> Cqes:
        """All completions that there are, as copies (CQE); they are the kernel's again."""
        head, tail = int(self._cq_head[0]), int(self._cq_tail[0])
        first, count = head & self._cq_mask, (tail - head) & 0xFFFFFFFF
        found = self._cqes[first : first + count].copy()
        if len(found) < count:  # the rest is at the ring's beginning
            found = np.concatenate((found, self._cqes[: count - len(found)]))
        self._cq_head[0] = tail
        return found

    def register(self, what: int, argument: Any, count: int = 1) -> int:
        """io_uring_register; the errno, or 0."""
        if LIBC.syscall(REGISTER, self.fd, what, argument, count) < 0:
            return ctypes.get_errno()
        return 0

    def cancel(self, user_data: int) -> None:
        """End a request, and wait until it has; its last completion says so (IORING_REGISTER_SYNC_CANCEL)."""
        request = struct.pack("=QiIqqB7x24x", user_data, -1, 0, -1, -1, 0)
        code = self.register(REGISTER_SYNC_CANCEL, request)
        if code not in (0, errno.ENOENT):
            raise NetmemError(code, f"io_uring: a request cannot be ended: {os.strerror(code)}")

    def close(self) -> None:
        """Close the ring: what is registered with it ends some time after that."""
        if self.fd >= 0:
            del self._sq_tail, self._cq_head, self._cq_tail, self._array, self._cqes
            fds, self.fd = (self.fd, self.event_fd), -1
            for mapping in (self._rings, self._sqes):  # which would keep the ring
                with contextlib.suppress(BufferError):  # a traceback may have a view; it goes with it
                    mapping.close()
            for fd in fds:
                os.close(fd)
