"""vfio-user's messages: every layout little-endian, one class each, sizes checked at import.

Names are those of vfio-user.rst, and of linux/vfio.h where the payload is a structure of that.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint16, c_uint32, c_uint64
from enum import IntEnum, IntFlag

MAJOR, MINOR = 0, 0
MAX_DATA = 1 << 20  # max_data_xfer_size: bytes of a region access
MAX_MESSAGE = MAX_DATA + 4096
MAX_FDS = 16  # in one message; QEMU takes a server with more for broken


class Command(IntEnum):
    """A message's ``command``."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15


class HeaderFlag(IntFlag):
    """A message's ``flags``; the low four bits are its type."""

    REPLY = 0x1
    TYPE = 0xF
    NO_REPLY = 0x10
    ERROR = 0x20


class Header(ctypes.LittleEndianStructure):
    """In front of every message; ``size`` counts it."""

    _pack_ = 1
    _fields_ = (
        ("id", c_uint16),
        ("command", c_uint16),
        ("size", c_uint32),
        ("flags", c_uint32),
        ("error", c_uint32),  # errno, with HeaderFlag.ERROR
    )


class Version(ctypes.LittleEndianStructure):
    """VERSION: followed by JSON, its NUL included."""

    _pack_ = 1
    _fields_ = (("major", c_uint16), ("minor", c_uint16))


class DmaFlag(IntFlag):
    """``DmaMap.flags``: what the device may do there."""

    READ = 1
    WRITE = 2


class DmaMap(ctypes.LittleEndianStructure):
    """DMA_MAP: ``size`` bytes at ``address`` are those at ``offset`` of the descriptor that comes along."""

    _pack_ = 1
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("offset", c_uint64),
        ("address", c_uint64),  # I/O virtual address
        ("size", c_uint64),
    )


UNMAP_ALL = 2  # DmaUnmap.flags


class DmaUnmap(ctypes.LittleEndianStructure):
    """DMA_UNMAP, and its reply with the bytes that were unmapped."""

    _pack_ = 1
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("address", c_uint64), ("size", c_uint64))


class DeviceInfo(ctypes.LittleEndianStructure):
    """DEVICE_GET_INFO (struct vfio_device_info)."""

    _pack_ = 1
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("num_regions", c_uint32), ("num_irqs", c_uint32))


DEVICE_RESET, DEVICE_PCI = 1, 2  # DeviceInfo.flags


class RegionInfo(ctypes.LittleEndianStructure):
    """DEVICE_GET_REGION_INFO (struct vfio_region_info)."""

    _pack_ = 1
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("cap_offset", c_uint32),
        ("size", c_uint64),
        ("offset", c_uint64),
    )


REGION_READ, REGION_WRITE = 1, 2  # RegionInfo.flags
REGIONS, CONFIG_REGION = 9, 7  # VFIO_PCI_NUM_REGIONS, VFIO_PCI_CONFIG_REGION_INDEX


class IrqInfo(ctypes.LittleEndianStructure):
    """DEVICE_GET_IRQ_INFO (struct vfio_irq_info)."""

    _pack_ = 1
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("index", c_uint32), ("count", c_uint32))


IRQ_EVENTFD, IRQ_NORESIZE = 1, 8  # IrqInfo.flags
IRQS, MSIX_IRQ = 5, 2  # VFIO_PCI_NUM_IRQS, VFIO_PCI_MSIX_IRQ_INDEX


class IrqSet(ctypes.LittleEndianStructure):
    """DEVICE_SET_IRQS (struct vfio_irq_set)."""

    _pack_ = 1
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("start", c_uint32),
        ("count", c_uint32),
    )


class IrqFlag(IntFlag):
    """``IrqSet.flags``: what comes along, and what it is for."""

    DATA_NONE = 0x01
    DATA_BOOL = 0x02
    DATA_EVENTFD = 0x04
    ACTION_MASK = 0x08
    ACTION_UNMASK = 0x10
    ACTION_TRIGGER = 0x20


class RegionAccess(ctypes.LittleEndianStructure):
    """REGION_READ and REGION_WRITE; data follows in a write, and in the reply to a read."""

    _pack_ = 1
    _fields_ = (("offset", c_uint64), ("region", c_uint32), ("count", c_uint32))


for _layout, _size in {
    Header: 16, Version: 4, DmaMap: 32, DmaUnmap: 24, DeviceInfo: 16, RegionInfo: 32, IrqInfo: 16, IrqSet: 20,
    RegionAccess: 16,
}.items():  # fmt: skip
    assert ctypes.sizeof(_layout) == _size, _layout
