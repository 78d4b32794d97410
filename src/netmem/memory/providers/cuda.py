"""Memory of a GPU (what device-memory TCP was made for): the NIC's copy engine fills it, no CPU reads it."""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np

from netmem.base.arena import Bytes, Words
from netmem.base.cuda import Allocation, Copies, Gpu
from netmem.base.errors import NetmemError
from netmem.memory.provider import AreaProvider, check_size

RX_PAGE_SIZE = 64 << 10  # a copy engine takes as long for 4 KiB as for 32


class CudaProvider(AreaProvider):
    """``size`` bytes of GPU ``device`` (its number here).

    ``fd`` is the allocation's descriptor, which a software NIC's process imports; ``dmabuf`` makes one for
    real devices. The GPU allocates in pages of 2 MiB (``granularity``), of which ``size`` may leave a rest;
    ``rx_page_size`` is the netmem's. ``address`` is for the application's own kernels: driver, pool and stack
    never ask for it. Errors: ENODEV without that GPU, MissingError (ENODEV) without driver or bindings;
    ENOMEM; EINVAL, ERANGE for sizes.
    """

    name = "cuda"
    unreadable = True
    mappable = False

    def __init__(self, size: int, *, device: int = 0, rx_page_size: int = RX_PAGE_SIZE) -> None:
        check_size(size, rx_page_size)
        self.gpu = Gpu(device)
        self.memory = Allocation.make(self.gpu, size)
        try:
            fd = self.memory.export()
        except BaseException:
            self.memory.close()
            raise
        self.device, self.exporter = f"cuda:{device}", f"cuda:{self.gpu.uuid}"
        self._copies: Copies | None = None
        super().__init__(fd, size, rx_page_size, net_iov=True, address=0)

    @property
    def address(self) -> int:
        """Where the GPU reaches the memory in this process (a CUdeviceptr). EBADF after ``close``."""
        self._check_open()
        return self.memory.address

    def dmabuf(self) -> int:
        """A dma-buf of the memory, as the kernel's bind-rx wants it; the caller closes it.

        EOPNOTSUPP where the driver offers none.
        """
        self._check_open()
        return self.memory.dmabuf()

    def map(self, *, writable: bool = False) -> Bytes:
        """EOPNOTSUPP: no CPU maps it. ``read`` copies it; a reader's arrays are for the GPU."""
        text = "a CPU cannot map GPU memory: read() copies it, reader(device=...) gives arrays to the GPU"
        raise NetmemError(errno.EOPNOTSUPP, text)

    def read(self, offset: int, size: int) -> bytes:
        """AreaProvider.read, by the copy engine."""
        self._check_range(offset, size)
        out = np.empty(size, np.uint8)
        self._copy([out.ctypes.data], [self.address + offset], [size])
        return out.tobytes()

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """AreaProvider.write, by the copy engine."""
        source = np.frombuffer(data, np.uint8)
        self._check_range(offset, len(source))
        self._copy([self.address + offset], [source.ctypes.data], [len(source)])

    def gather(self, rows: Words, to: int) -> int:
        """AreaProvider.gather, by the copy engine: one batch."""
        sizes = rows[:, 1] & 0xFFFFFFFF
        ends = np.cumsum(sizes)
        self._copy(to + ends - sizes, self.address + rows[:, 0], sizes)
        return int(ends[-1])

    def _copy(self, to: Any, source: Any, sizes: Any) -> None:
        if self._copies is None:
            self._copies = Copies(self.gpu)
        lists = [np.ascontiguousarray(each, np.int64) for each in (to, source, sizes)]
        if lists[2].any():
            a, b, c = (each.ctypes.data for each in lists)
            self._copies.copy(a, b, c, len(lists[0]))

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "gpu": self.gpu.name,
            "uuid": self.gpu.uuid,
            "granularity": self.gpu.granularity,
        }

    def _release(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def _unused(self) -> None:
        if self._copies is not None:
            self._copies.close()
        self.memory.close()
