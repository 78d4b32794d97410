"""A guest without a virtual machine: a vfio-user client whose RAM is a memfd.

Every message is answered within the call that sends it, by ``serve``, so that a whole device model runs in
one thread of a test.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import select
import socket
from collections.abc import Sequence
from typing import Any

from netmem.base.errors import NetmemError
from netmem.base.memfd import memfd
from netmem.hw.vfio_user import Function, Server
from netmem.hw.vfio_user import protocol as p


class Ram:
    """A guest's RAM at I/O virtual address ``base``: ``size`` bytes, handed out from its start."""

    def __init__(self, size: int = 16 << 20, base: int = 0) -> None:
        self.base, self.size = base, size
        self.fd = memfd("guest-ram", size)
        self.bytes = mmap.mmap(self.fd, size)
        self._next = 4096  # address 0 says "none" to some

    def alloc(self, size: int, align: int = 64) -> int:
        """Zeroed memory; its I/O virtual address. ENOMEM."""
        at = -(-self._next // align) * align
        if at + size > self.size:
            raise NetmemError(errno.ENOMEM, f"{size} bytes of a guest's {self.size}")
        self._next = at + size
        return self.base + at

    def read(self, iova: int, size: int) -> bytes:
        """What lies at an address."""
        at = iova - self.base
        return self.bytes[at : at + size]

    def write(self, iova: int, data: bytes) -> None:
        """Write to an address."""
        at = iova - self.base
        self.bytes[at : at + len(data)] = data

    def close(self) -> None:
        self.bytes.close()
        os.close(self.fd)


class Client:
    """The client's end of a connection to ``function``'s server. Refusals raise OSError with their errno."""

    def __init__(self, function: Function) -> None:
        self.sock, theirs = socket.socketpair()
        self.server = Server(theirs, function)
        self.sock.setblocking(False)
        self._id = 0
        self.irqs: list[int] = []

    def serve(self) -> None:
        """Let the server handle what was sent."""
        while self.server.receive():
            pass

    def send(self, command: int, body: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> None:
        """Send a message and do not wait."""
        self._id = (self._id + 1) & 0xFFFF
        header = p.Header(self._id, command, ctypes.sizeof(p.Header) + len(body), flags, 0)
        socket.send_fds(self.sock, [bytes(header) + body], list(fds))

    def call(self, command: int, body: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a request; the answer's body."""
        self.send(command, body, fds)
        self.serve()
        data = self.sock.recv(p.MAX_MESSAGE)
        header = p.Header.from_buffer_copy(data)
        assert (header.id, header.command, header.size) == (self._id, command, len(data))
        assert header.flags & p.HeaderFlag.TYPE == p.HeaderFlag.REPLY
        if header.flags & p.HeaderFlag.ERROR:
            raise OSError(header.error, os.strerror(header.error))
        return data[ctypes.sizeof(p.Header) :]

    def version(self, major: int = 0, capabilities: object = None) -> dict[str, Any]:
        """Agree on a version; the server's capabilities."""
        text = json.dumps({"capabilities": capabilities or {}}).encode() + b"\0"
        answer = self.call(p.Command.VERSION, bytes(p.Version(major, 0)) + text)
        said: dict[str, Any] = json.loads(answer[4:].rstrip(b"\0"))
        return said

    def map(self, iova: int, size: int, fd: int = -1, offset: int = 0, flags: int = 3) -> None:
        """Map a range of a file, or with -1 one that has no memory."""
        body = bytes(p.DmaMap(ctypes.sizeof(p.DmaMap), flags, offset, iova, size))
        self.call(p.Command.DMA_MAP, body, [fd] if fd >= 0 else [])

    def unmap(self, iova: int, size: int, flags: int = 0) -> int:
        """Unmap a range; the bytes that were."""
        body = bytes(p.DmaUnmap(ctypes.sizeof(p.DmaUnmap), flags, iova, size))
        return int(p.DmaUnmap.from_buffer_copy(self.call(p.Command.DMA_UNMAP, body)).size)

    def device_info(self) -> p.DeviceInfo:
        body = self.call(p.Command.DEVICE_GET_INFO, bytes(p.DeviceInfo(16)))
        return p.DeviceInfo.from_buffer_copy(body)

    def region_info(self, index: int) -> p.RegionInfo:
        body = self.call(p.Command.DEVICE_GET_REGION_INFO, bytes(p.RegionInfo(32, 0, index)))
        return p.RegionInfo.from_buffer_copy(body)

    def irq_info(self, index: int) -> p.IrqInfo:
        body = self.call(p.Command.DEVICE_GET_IRQ_INFO, bytes(p.IrqInfo(16, 0, index)))
        return p.IrqInfo.from_buffer_copy(body)

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read a region."""
        body = self.call(p.Command.REGION_READ, bytes(p.RegionAccess(offset, region, size)))
        return body[ctypes.sizeof(p.RegionAccess) :]

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Write a region and wait."""
        self.call(p.Command.REGION_WRITE, bytes(p.RegionAccess(offset, region, len(data))) + data)

    def post(self, region: int, offset: int, data: bytes) -> None:
        """Write a region as QEMU rings a doorbell: no answer comes."""
        body = bytes(p.RegionAccess(offset, region, len(data))) + data
        self.send(p.Command.REGION_WRITE, body, flags=int(p.HeaderFlag.NO_REPLY))
        self.serve()

    def set_irqs(self, start: int, fds: Sequence[int]) -> None:
        """Have vectors from ``start`` on signal these descriptors."""
        flags = p.IrqFlag.DATA_EVENTFD | p.IrqFlag.ACTION_TRIGGER
        body = bytes(p.IrqSet(ctypes.sizeof(p.IrqSet), int(flags), p.MSIX_IRQ, start, len(fds)))
        self.call(p.Command.DEVICE_SET_IRQS, body, fds)

    def enable_irqs(self, count: int) -> None:
        """An eventfd for every vector; ``fired`` looks at them."""
        self.irqs = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        self.set_irqs(0, self.irqs)

    def fired(self) -> set[int]:
        """Vectors that were signalled since the last look."""
        poll = select.poll()
        for fd in self.irqs:
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(0)}
        for fd in ready:
            os.eventfd_read(fd)
        return {i for i, fd in enumerate(self.irqs) if fd in ready}

    def close(self) -> None:
        self.sock.close()
        self.server.close()
        for fd in self.irqs:
            os.close(fd)
