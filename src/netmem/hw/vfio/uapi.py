"""VFIO's calls (include/uapi/linux/vfio.h): a group, its container with an IOMMU of type 1, a device."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from netmem.base.errors import NetmemError

_BASE = ord(";") << 8 | 100
(
    GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU, GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER,
    GROUP_GET_DEVICE_FD, DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS,
    DEVICE_RESET, IOMMU_GET_INFO, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA,
) = range(_BASE, _BASE + 15)  # fmt: skip
API_VERSION, TYPE1V2_IOMMU = 0, 3
GROUP_VIABLE = 1
BAR0_REGION, CONFIG_REGION = 0, 7
MSIX_IRQ, ERR_IRQ, REQ_IRQ = 2, 3, 4
IRQ_DATA_NONE, IRQ_DATA_EVENTFD, IRQ_ACTION_TRIGGER = 1, 4, 32
DMA_READ, DMA_WRITE = 1, 2  # by the device
IOMMU_INFO_CAPS, IOVA_RANGE = 2, 1
FOLDER = "/dev/vfio"
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class RegionInfo:
    """struct vfio_region_info: where a region of a device lies behind its descriptor."""

    size: int
    offset: int


class Container:
    """An IOMMU's address space, for one group of functions.

    Errors: EPERM, EACCES for a group that may not be opened; EBUSY for one that is in use; EINVAL when not
    all of its functions are VFIO's; EOPNOTSUPP for an IOMMU of another type.
    """

    def __init__(self, group: int) -> None:
        self._ends = contextlib.ExitStack()
        try:
            self.fd = self._open(f"{FOLDER}/vfio")
            self.group = self._open(f"{FOLDER}/{group}")
            self._set_up(group)
        except BaseException:
            self.close()
            raise

    def _open(self, path: str) -> int:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            text = "EBUSY" if error.errno == errno.EBUSY else error.strerror
            cure = {errno.ENOENT: ": modprobe vfio-pci", errno.EACCES: ": run as root, or own this file",
                    errno.EBUSY: ": another process has it"}.get(error.errno or 0, "")  # fmt: skip
            raise NetmemError(error.errno or errno.EIO, f"{path}: {text}{cure}") from None
        self._ends.callback(os.close, fd)
        return fd

    def _set_up(self, group: int) -> None:
        if fcntl.ioctl(self.fd, GET_API_VERSION) != API_VERSION or not fcntl.ioctl(
            self.fd, CHECK_EXTENSION, TYPE1V2_IOMMU
        ):
            raise NetmemError(errno.EOPNOTSUPP, "VFIO has no IOMMU of type 1 here: modprobe vfio_iommu_type1")
        status = bytearray(struct.pack("=II", 8, 0))
        fcntl.ioctl(self.group, GROUP_GET_STATUS, status)
        if not struct.unpack("=II", status)[1] & GROUP_VIABLE:
            text = f"IOMMU group {group} has functions that other drivers hold"
            raise NetmemError(
                errno.EINVAL, f"{text}: all of /sys/kernel/iommu_groups/{group}/devices must be VFIO's"
            )
        try:
            fcntl.ioctl(self.group, GROUP_SET_CONTAINER, struct.pack("=i", self.fd))
            fcntl.ioctl(self.fd, SET_IOMMU, TYPE1V2_IOMMU)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise NetmemError(error.errno or errno.EIO, f"VFIO: {error.strerror}") from None
            text = "this machine's IOMMU does not remap interrupts, and VFIO refuses it"
            cure = "vfio_iommu_type1.allow_unsafe_interrupts=1, where all devices can be trusted"
            raise NetmemError(errno.EPERM, f"{text}: {cure}") from None

    def device(self, name: str) -> int:
        """A descriptor for function ``name`` (0000:03:00.0) of the group."""
        asked = ctypes.create_string_buffer(name.encode())
        fd = LIBC.ioctl(self.group, ctypes.c_ulong(GROUP_GET_DEVICE_FD), asked)
        if fd < 0:
            code = ctypes.get_errno()
            raise NetmemError(code, f"VFIO does not hand out {name}: {os.strerror(code)}")
        self._ends.callback(os.close, fd)
        os.set_inheritable(fd, False)
        return int(fd)

    def iova_ranges(self) -> list[tuple[int, int]]:
        """I/O addresses that may be used, as (first, last). Empty where the kernel does not say."""
        info = bytearray(struct.pack("=IIQII", 4096, 0, 0, 0, 0).ljust(4096, b"\0"))
        fcntl.ioctl(self.fd, IOMMU_GET_INFO, info)
        _, flags, _, at, _ = struct.unpack_from("=IIQII", info)
        while flags & IOMMU_INFO_CAPS and at:
            kind, _, following = struct.unpack_from("=HHI", info, at)
            if kind == IOVA_RANGE:
                (count,) = struct.unpack_from("=I", info, at + 8)
                words = struct.unpack_from(f"={2 * count}Q", info, at + 16)
                return list(zip(words[::2], words[1::2], strict=True))
            at = following
        return []

    def map_dma(self, address: int, iova: int, size: int, flags: int) -> None:
        """Let the functions reach ``size`` bytes of this process at ``iova``; they are pinned."""
        request = struct.pack("=IIQQQ", 32, flags, address, iova, size)
        try:
            fcntl.ioctl(self.fd, IOMMU_MAP_DMA, request)
        except OSError as error:
            cure = {
                errno.ENOMEM: ": raise the limit of locked memory (ulimit -l)",
                errno.EFAULT: ": this memory cannot be pinned, as that of a foreign dma-buf",
                errno.ENOSPC: ": too many mappings (vfio_iommu_type1.dma_entry_limit)",
            }.get(error.errno or 0, "")
            raise NetmemError(error.errno or errno.EIO, f"VFIO cannot map {size} bytes{cure}") from None

    def unmap_dma(self, iova: int, size: int) -> None:
        """End a mapping, wholly."""
        fcntl.ioctl(self.fd, IOMMU_UNMAP_DMA, bytearray(struct.pack("=IIQQ", 24, 0, iova, size)))

    def close(self) -> None:
        """Give back everything: the kernel unmaps and unpins what is left."""
        self._ends.close()


class VfioDevice:
    """A PCI function that was handed out: configuration space, BAR 0, interrupts."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._config = self.region(CONFIG_REGION)
        bar = self.region(BAR0_REGION)
        self._map = mmap.mmap(fd, bar.size, flags=mmap.MAP_SHARED, offset=bar.offset)
        self.words = (ctypes.c_uint32 * (bar.size // 4)).from_buffer(self._map)

    def region(self, index: int) -> RegionInfo:
        """Where a region is."""
        info = bytearray(struct.pack("=IIIIQQ", 32, 0, index, 0, 0, 0))
        fcntl.ioctl(self.fd, DEVICE_GET_REGION_INFO, info)
        _, _, _, _, size, offset = struct.unpack("=IIIIQQ", info)
        return RegionInfo(size, offset)

    def config_read(self, bdf: tuple[int, int, int], offset: int, size: int) -> int:
        """``netmem.hw.pci.ConfigSpace``, of this function alone."""
        return int.from_bytes(os.pread(self.fd, size, self._config.offset + offset), "little")

    def config_write(self, bdf: tuple[int, int, int], offset: int, size: int, value: int) -> None:
        os.pwrite(self.fd, value.to_bytes(size, "little"), self._config.offset + offset)

    def set_irq(self, index: int, eventfds: Sequence[int]) -> None:
        """Have interrupts written to eventfds, from vector 0 on; none: no interrupts of this kind."""
        flags = IRQ_ACTION_TRIGGER | (IRQ_DATA_EVENTFD if eventfds else IRQ_DATA_NONE)
        size = 20 + 4 * len(eventfds)
        request = struct.pack(f"=IIIII{len(eventfds)}i", size, flags, index, 0, len(eventfds), *eventfds)
        fcntl.ioctl(self.fd, DEVICE_SET_IRQS, request)

    def close(self) -> None:
        """Unmap the registers: a mapping keeps the function, and the descriptor is held by it as well."""
        del self.words
        self._map.close()

    def reset(self) -> bool:
        """Reset the function; False where it has no way to be."""
        try:
            fcntl.ioctl(self.fd, DEVICE_RESET)
        except OSError:
            return False
        return True
