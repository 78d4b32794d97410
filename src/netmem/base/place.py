"""Where a reader's arrays lie: in this host's memory, or a GPU's (``inet/gpu.py``)."""

from __future__ import annotations

import ctypes
import errno
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from netmem.base.errors import NetmemError

NOT_WRITABLE = "the destination must be writable and contiguous (C order)"


class SupportsDlpack(Protocol):
    """Memory of another library: a tensor."""

    def __dlpack__(self, *, stream: Any = ...) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, Any]: ...


Writable = bytearray | memoryview | npt.NDArray[Any] | SupportsDlpack


class Place(Protocol):
    """Memory of one kind, in pieces of ``Any`` type that only the place itself looks into.

    ``device``: "", or "cuda:0". Arrays can be views of a memory that is on the same.
    """

    device: str

    def empty(self, size: int) -> Any:
        """New memory. ENOMEM."""

    def writable(self, destination: Writable) -> tuple[Any, int]:
        """An application's memory to read into, and its bytes. EINVAL for what cannot be written here."""

    def address(self, memory: Any) -> int:
        """Where it begins."""

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Bytes to an address."""

    def move(self, address: int, memory: Any, size: int) -> None:
        """The first bytes of other memory of this place to an address."""

    def load(self, memory: Any, size: int) -> bytes:
        """The first bytes, in this process."""

    def view(self, view: Any, size: int) -> Any:
        """The first bytes of a ``View``, which they keep."""

    def settle(self) -> None:
        """Until nothing works on a view any more that the application has let go of."""

    def shaped(self, memory: Any, kind: np.dtype[Any], shape: tuple[int, ...]) -> Any:
        """As the array that the application gets."""


class Host:
    """This host's memory: NumPy arrays."""

    device = ""

    def empty(self, size: int) -> npt.NDArray[np.uint8]:
        """Place.empty."""
        return np.empty(size, np.uint8)

    def writable(self, destination: Writable) -> tuple[npt.NDArray[np.uint8], int]:
        """Place.writable: any buffer or array, or a tensor by DLPack."""
        if isinstance(destination, bytearray | memoryview):
            view = memoryview(destination)
            if view.readonly or not view.c_contiguous:
                raise NetmemError(errno.EINVAL, NOT_WRITABLE)
            out = np.frombuffer(view.cast("B") if view.nbytes else b"", np.uint8)
            return out, len(out)
        if not isinstance(destination, np.ndarray):
            try:
                destination = np.from_dlpack(destination)
            except (AttributeError, TypeError, BufferError, RuntimeError, ValueError) as error:
                name = type(destination).__name__
                text = f"{name} is no memory that can be written here: {error}"
                raise NetmemError(errno.EINVAL, text) from None
        if not destination.flags.writeable or not destination.flags.c_contiguous:
            raise NetmemError(errno.EINVAL, NOT_WRITABLE)
        out = destination.reshape(-1).view(np.uint8)
        return out, len(out)

    def address(self, memory: npt.NDArray[np.uint8]) -> int:
        """Place.address."""
        return memory.ctypes.data

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Place.store."""
        ctypes.memmove(address, bytes(data), len(data))

    def move(self, address: int, memory: npt.NDArray[np.uint8], size: int) -> None:
        """Place.move."""
        ctypes.memmove(address, memory.ctypes.data, size)

    def load(self, memory: npt.NDArray[np.uint8], size: int) -> bytes:
        """Place.load."""
        return memory[:size].tobytes()

    def view(self, view: Any, size: int) -> npt.NDArray[np.uint8]:
        """Place.view."""
        return np.asarray(view)[:size]

    def settle(self) -> None:
        """Place.settle: the application is done with what it lets go of."""

    def shaped(
        self, memory: npt.NDArray[np.uint8], kind: np.dtype[Any], shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """Place.shaped."""
        return memory.view(kind).reshape(shape)


HOST = Host()
