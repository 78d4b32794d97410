"""Payload in dma-bufs of the application's, copied to where a reader wants it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from netmem.base.errors import NetmemError
from netmem.base.frags import DevmemMessage
from netmem.base.place import HOST, Host


class Memory(Protocol):
    """A dma-buf that the application can map: ``kernel.memory.Dmabuf``, or any of our providers."""

    fd: int
    size: int

    def map(self) -> npt.NDArray[np.uint8]: ...

    def cpu_access(self, *, write: bool = False) -> contextlib.AbstractContextManager[None]: ...


class KernelGatherer:
    """For the readers of one socket. ``memories``: by dmabuf_id, what was bound."""

    def __init__(self, memories: Mapping[int, Memory]) -> None:
        self.place: Host = HOST
        self._memories = memories
        self._views: dict[int, npt.NDArray[np.uint8]] = {}

    def put(self, message: DevmemMessage, to: int) -> int:
        """Copy a message's bytes to address ``to``; how many. EOPNOTSUPP for memory not known here."""
        done = len(message.linear)
        if done:
            self.place.store(to, message.linear)
        if len(message.frags):
            memory, base = self._memory(int(message.frags["dmabuf_id"][0]))
            with memory.cpu_access():
                for offset, size in message.frags[["frag_offset", "frag_size"]].tolist():
                    ctypes.memmove(to + done, base + offset, size)
                    done += size
        return done

    def _memory(self, number: int) -> tuple[Memory, int]:
        memory = self._memories.get(number)
        if memory is None:
            text = f"the memory of binding {number} was not bound by this socket's device"
            raise NetmemError(errno.EOPNOTSUPP, text)
        if number not in self._views:
            self._views[number] = memory.map()
        return memory, self._views[number].ctypes.data

    def run(self, align: int) -> None:
        """Always None: arrays are copies, and tokens go back at once."""

    def made(self, view: bool) -> None:
        """Nothing to learn from."""
