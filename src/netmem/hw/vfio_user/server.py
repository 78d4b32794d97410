"""vfio-user's server: messages of one client to a PCI function, and their answers.

The client is another program, and whatever it sends is checked: a request that makes no sense is refused with
an errno; when the framing itself is lost the connection ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
import stat
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from netmem.base.errors import NetmemError
from netmem.hw.process import close_all
from netmem.hw.vfio_user import protocol as p
from netmem.hw.vfio_user.dma import MAX_MAPS
from netmem.hw.vfio_user.function import Function

READ_BYTES = 1 << 18
_Layout = TypeVar("_Layout", bound=ctypes.LittleEndianStructure)


class _Message:
    """One message that arrived, with the descriptors that came along."""

    __slots__ = ("body", "fds", "header")

    def __init__(self, header: p.Header, body: bytes) -> None:
        self.header, self.body = header, body
        self.fds: list[int] = []

    def layout(self, kind: type[_Layout]) -> _Layout:
        """The structure that the body starts with. EINVAL when it is too short."""
        if len(self.body) < ctypes.sizeof(kind):
            raise NetmemError(errno.EINVAL, f"a message of {len(self.body)} bytes holds no {kind.__name__}")
        return kind.from_buffer_copy(self.body)

    def take_fds(self) -> list[int]:
        """The descriptors, which are the caller's from here."""
        fds, self.fds = self.fds, []
        return fds


class _Stream:
    """Messages out of a stream socket.

    Descriptors belong to the message with the last byte of the read that brought them: the kernel ends a read
    behind a segment that carries some.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._bytes = bytearray()
        self._fds: list[int] = []  # of the message that is not whole yet

    def receive(self) -> list[_Message]:
        """The messages that are there, maybe none. EOFError at the end; EPROTO when framing is lost."""
        try:
            data, fds, flags, _ = socket.recv_fds(self._sock, READ_BYTES, p.MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return []
        except ConnectionError:
            raise EOFError from None
        if not data:
            close_all(fds)
            raise EOFError
        self._fds += fds
        if flags & socket.MSG_CTRUNC:
            raise NetmemError(errno.EPROTO, f"vfio-user: a message with more than {p.MAX_FDS} descriptors")
        self._bytes += data
        messages = list[_Message]()
        while (message := self._cut()) is not None:
            messages.append(message)
        if messages and not self._bytes:
            messages[-1].fds, self._fds = self._fds, []
        return messages

    def _cut(self) -> _Message | None:
        if len(self._bytes) < ctypes.sizeof(p.Header):
            return None
        header = p.Header.from_buffer_copy(self._bytes)
        if not ctypes.sizeof(p.Header) <= header.size <= p.MAX_MESSAGE:
            raise NetmemError(errno.EPROTO, f"vfio-user: a message of {header.size} bytes")
        if len(self._bytes) < header.size:
            return None
        message = _Message(header, bytes(self._bytes[ctypes.sizeof(p.Header) : header.size]))
        del self._bytes[: header.size]
        return message

    def close(self) -> None:
        close_all(self._fds)
        self._fds.clear()


class Server:
    """One client's connection ``sock`` to ``function``. ``counts`` has the messages by command."""

    def __init__(self, sock: socket.socket, function: Function) -> None:
        sock.setblocking(False)
        self.sock, self.function = sock, function
        self._stream = _Stream(sock)
        self._negotiated = False
        self.counts: dict[str, int] = {}
        self.refused = 0
        self._handlers: dict[int, Callable[[_Message], bytes]] = {
            p.Command.VERSION: self._version,
            p.Command.DMA_MAP: self._dma_map,
            p.Command.DMA_UNMAP: self._dma_unmap,
            p.Command.DEVICE_GET_INFO: self._device_info,
            p.Command.DEVICE_GET_REGION_INFO: self._region_info,
            p.Command.DEVICE_GET_IRQ_INFO: self._irq_info,
            p.Command.DEVICE_SET_IRQS: self._set_irqs,
            p.Command.REGION_READ: self._region_read,
            p.Command.REGION_WRITE: self._region_write,
            p.Command.DEVICE_RESET: self._reset,
        }

    def fileno(self) -> int:
        """For epoll: readable when there is something to ``receive``."""
        return self.sock.fileno()

    def receive(self) -> bool:
        """Handle what is there; True when anything was. EOFError once the client is gone or made no sense."""
        try:
            messages = self._stream.receive()
        except NetmemError:
            self._stream.close()
            raise
        for i, message in enumerate(messages):
            try:
                self._handle(message)
            except BaseException:
                for left in messages[i:]:
                    close_all(left.take_fds())
                raise
            close_all(message.take_fds())
        return bool(messages)

    def _handle(self, message: _Message) -> None:
        header = message.header
        if header.flags & p.HeaderFlag.TYPE:
            return  # a reply: we never asked
        name = p.Command(header.command).name if header.command in list(p.Command) else "unknown"
        self.counts[name] = self.counts.get(name, 0) + 1
        error, body = 0, b""
        try:
            handler = self._handlers.get(header.command)
            if handler is None:
                raise NetmemError(errno.ENOSYS, f"vfio-user: command {header.command} is not known")
            if not self._negotiated and header.command != p.Command.VERSION:
                raise NetmemError(errno.EINVAL, "vfio-user: the version comes first")
            body = handler(message)
        except OSError as refusal:
            self.refused += 1
            error = refusal.errno or errno.EIO
        if not header.flags & p.HeaderFlag.NO_REPLY:
            self._reply(header, body, error)

    def _reply(self, request: p.Header, body: bytes, error: int) -> None:
        flags = p.HeaderFlag.REPLY | (p.HeaderFlag.ERROR if error else 0)
        size = ctypes.sizeof(p.Header) + len(body)
        header = p.Header(id=request.id, command=request.command, size=size, flags=int(flags), error=error)
        data = memoryview(bytes(header) + body)
        # The client waits for the answer, so there is room; one that does not read is not waited for.
        self.sock.settimeout(2.0)
        try:
            self.sock.sendall(data)
        except OSError:
            raise EOFError from None
        finally:
            with contextlib.suppress(OSError):
                self.sock.setblocking(False)

    # -- requests -----------------------------------------------------------------------------

    def _version(self, message: _Message) -> bytes:
        asked = message.layout(p.Version)
        if asked.major != p.MAJOR:
            raise NetmemError(errno.EINVAL, f"vfio-user: version {asked.major}.{asked.minor} is not known")
        text = message.body[ctypes.sizeof(p.Version) :].rstrip(b"\0")
        try:
            their = json.loads(text or b"{}")
        except (ValueError, RecursionError):
            raise NetmemError(errno.EINVAL, "vfio-user: the version's capabilities are no JSON") from None
        if not isinstance(their, dict):
            raise NetmemError(errno.EINVAL, "vfio-user: the version's capabilities are no object")
        self._negotiated = True
        ours: dict[str, Any] = {
            "max_msg_fds": p.MAX_FDS, "max_data_xfer_size": p.MAX_DATA, "max_dma_maps": MAX_MAPS,
            "pgsizes": 4096,
        }  # fmt: skip
        return bytes(p.Version(p.MAJOR, p.MINOR)) + json.dumps({"capabilities": ours}).encode() + b"\0"

    def _dma_map(self, message: _Message) -> bytes:
        asked = message.layout(p.DmaMap)
        fds = message.fds
        if len(fds) > 1:
            raise NetmemError(errno.EINVAL, "vfio-user: a DMA range with more than one descriptor")
        if fds and not stat.S_ISREG(os.fstat(fds[0]).st_mode):
            raise NetmemError(errno.EINVAL, "vfio-user: a DMA range of what is no file")
        self.function.dma.map(
            asked.address, asked.size, fds[0] if fds else -1, asked.offset,
            read=bool(asked.flags & p.DmaFlag.READ), write=bool(asked.flags & p.DmaFlag.WRITE),
        )  # fmt: skip
        return b""

    def _dma_unmap(self, message: _Message) -> bytes:
        asked = message.layout(p.DmaUnmap)
        dma = self.function.dma
        if asked.flags & p.UNMAP_ALL:
            asked.size = dma.unmap_all()
        else:
            asked.size = dma.unmap(asked.address, asked.size)
        return bytes(asked)

    def _device_info(self, message: _Message) -> bytes:
        flags = p.DEVICE_RESET | p.DEVICE_PCI
        return bytes(p.DeviceInfo(ctypes.sizeof(p.DeviceInfo), flags, p.REGIONS, p.IRQS))

    def _region_info(self, message: _Message) -> bytes:
        asked = message.layout(p.RegionInfo)
        if asked.index >= p.REGIONS:
            raise NetmemError(errno.EINVAL, f"vfio-user: there is no region {asked.index}")
        size = self.function.region_size(asked.index)
        flags = p.REGION_READ | p.REGION_WRITE if size else 0
        return bytes(p.RegionInfo(ctypes.sizeof(p.RegionInfo), flags, asked.index, 0, size, 0))

    def _irq_info(self, message: _Message) -> bytes:
        asked = message.layout(p.IrqInfo)
        if asked.index >= p.IRQS:
            raise NetmemError(errno.EINVAL, f"vfio-user: there is no interrupt index {asked.index}")
        count = self.function.model.vectors if asked.index == p.MSIX_IRQ else 0
        flags = p.IRQ_EVENTFD | p.IRQ_NORESIZE
        return bytes(p.IrqInfo(ctypes.sizeof(p.IrqInfo), flags, asked.index, count))

    def _set_irqs(self, message: _Message) -> bytes:
        asked = message.layout(p.IrqSet)
        flags = p.IrqFlag(asked.flags & 0x3F)
        if asked.index != p.MSIX_IRQ or not flags & p.IrqFlag.ACTION_TRIGGER:
            if asked.count:
                raise NetmemError(errno.EINVAL, "vfio-user: only MSI-X has vectors, and no masks")
            return b""
        count = self.function.model.vectors
        if flags & p.IrqFlag.DATA_EVENTFD:
            if asked.count > count or asked.start > count - asked.count:
                raise NetmemError(errno.EINVAL, f"vfio-user: there are {count} vectors")
            fds = message.take_fds()
            if fds and len(fds) != asked.count:
                close_all(fds)
                raise NetmemError(errno.EINVAL, f"{len(fds)} descriptors for {asked.count} vectors")
            self.function.set_vectors(asked.start, fds or [-1] * asked.count)
        elif flags & p.IrqFlag.DATA_NONE and asked.count == 0:
            self.function.disable_vectors()
        elif flags & p.IrqFlag.DATA_NONE:
            _signal(self.function, range(asked.start, min(asked.start + asked.count, count)))
        else:
            raise NetmemError(errno.EINVAL, "vfio-user: vectors are set by descriptors")
        return b""

    def _region_read(self, message: _Message) -> bytes:
        asked = message.layout(p.RegionAccess)
        if asked.count > p.MAX_DATA:
            raise NetmemError(errno.EINVAL, f"vfio-user: {asked.count} bytes in one access")
        return bytes(asked) + self.function.read(asked.region, asked.offset, asked.count)

    def _region_write(self, message: _Message) -> bytes:
        asked = message.layout(p.RegionAccess)
        data = message.body[ctypes.sizeof(p.RegionAccess) :]
        if len(data) != asked.count:
            raise NetmemError(errno.EINVAL, f"vfio-user: {len(data)} bytes where {asked.count} were said")
        self.function.write(asked.region, asked.offset, data)
        return bytes(asked)

    def _reset(self, message: _Message) -> bytes:
        self.function.reset()
        return b""

    def close(self) -> None:
        """End the connection; the function lets go of the client's memory."""
        self._stream.close()
        self.sock.close()
        self.function.close()


def _signal(function: Function, vectors: Sequence[int]) -> None:
    for vector in vectors:
        function.signal(vector)
