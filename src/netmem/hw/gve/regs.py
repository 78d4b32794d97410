"""gve's registers in BAR 0, big-endian (gve_register.h), and where doorbells are in BAR 2."""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32
from enum import IntFlag

TX_DOORBELLS, RX_DOORBELLS = 1024, 2048  # words of BAR 2, of the first queue; notify blocks have 0 and up


class Registers(ctypes.BigEndianStructure):
    """BAR 0 (struct gve_registers)."""

    _pack_ = 1
    _fields_ = (
        ("device_status", c_uint32),
        ("driver_status", c_uint32),
        ("max_tx_queues", c_uint32),
        ("max_rx_queues", c_uint32),
        ("adminq_pfn", c_uint32),  # PCI revision 0
        ("adminq_doorbell", c_uint32),  # commands written, free running
        ("adminq_event_counter", c_uint32),  # commands done, free running
        ("reserved", c_uint8 * 3),
        ("driver_version", c_uint8),  # a text, a character at a time, up to a newline
        ("adminq_base_address_hi", c_uint32),
        ("adminq_base_address_lo", c_uint32),
        ("adminq_length", c_uint16),  # bytes
    )


class DeviceStatus(IntFlag):
    """enum gve_device_status_flags."""

    RESET = 1 << 1  # the device asks the driver to reset it
    LINK_STATUS = 1 << 2
    REPORT_STATS = 1 << 3  # the device asks for the driver's part of the statistics report
    DEVICE_IS_RESET = 1 << 4


class DriverStatus(IntFlag):
    """enum gve_driver_status_flags."""

    RUN = 1 << 0
    RESET = 1 << 1


assert ctypes.sizeof(Registers) == 42
