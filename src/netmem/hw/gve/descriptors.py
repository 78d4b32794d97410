"""gve's descriptors and completions, and its doorbells: little-endian, one class each (gve_desc_dqo.h).

Field names are those of the driver's headers, whose structure each docstring names.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum, IntFlag


class _Little(ctypes.LittleEndianStructure):
    _pack_ = 1


class TxDtype(IntEnum):
    """What a transmit descriptor is: the low five bits of its byte 8."""

    GENERAL_CONTEXT = 0x4
    TSO_CONTEXT = 0x5
    PACKET = 0xC


class TxPacket(_Little):
    """struct gve_tx_pkt_desc_dqo."""

    _fields_ = (
        ("buf_addr", c_uint64),
        ("dtype", c_uint8, 5),
        ("end_of_packet", c_uint8, 1),
        ("checksum_offload_enable", c_uint8, 1),
        ("report_event", c_uint8, 1),  # a descriptor completion is wanted
        ("reserved0", c_uint8),
        ("reserved1", c_uint16),
        ("compl_tag", c_uint16),
        ("buf_size", c_uint16, 14),
        ("reserved2", c_uint16, 2),
    )


class TxTsoContext(_Little):
    """struct gve_tx_tso_context_desc_dqo."""

    _fields_ = (
        ("tso_total_len", c_uint32, 24),  # bytes of payload
        ("flex10", c_uint32, 8),
        ("mss", c_uint16, 14),
        ("reserved", c_uint16, 2),
        ("header_len", c_uint8),
        ("flex11", c_uint8),
        ("dtype", c_uint8, 5),
        ("tso", c_uint8, 1),
        ("reserved1", c_uint8, 2),
        ("reserved2", c_uint8),
        ("flex", c_uint8 * 6),
    )


class TxCompletion(_Little):
    """struct gve_tx_compl_desc; ``tag`` is ``tx_head`` for descriptor completions."""

    _fields_ = (
        ("id", c_uint16, 11),
        ("type", c_uint16, 3),
        ("reserved0", c_uint16, 1),
        ("generation", c_uint16, 1),
        ("tag", c_uint16),
        ("reserved1", c_uint32),
    )


class CompletionType(IntEnum):
    """GVE_COMPL_TYPE_DQO_*."""

    MISS = 0x1
    PKT = 0x2
    REINJECTION = 0x3
    DESC = 0x4


class RxBuffer(_Little):
    """struct gve_rx_desc_dqo."""

    _fields_ = (
        ("buf_id", c_uint16),
        ("reserved0", c_uint16),
        ("reserved1", c_uint32),
        ("buf_addr", c_uint64),
        ("header_buf_addr", c_uint64),
        ("reserved2", c_uint64),
    )


class RxCompletion(_Little):
    """struct gve_rx_compl_desc_dqo."""

    _fields_ = (
        ("rxdid", c_uint8, 4),  # 1
        ("reserved0", c_uint8, 4),
        ("loopback", c_uint8, 1),
        ("ipv6_ex_add", c_uint8, 1),
        ("rx_error", c_uint8, 1),
        ("reserved1", c_uint8, 5),
        ("packet_type", c_uint16, 10),
        ("ip_hdr_err", c_uint16, 1),
        ("udp_len_err", c_uint16, 1),
        ("raw_cs_invalid", c_uint16, 1),
        ("reserved2", c_uint16, 3),
        ("packet_len", c_uint16, 14),
        ("generation", c_uint16, 1),
        ("buffer_queue_id", c_uint16, 1),
        ("header_len", c_uint16, 10),
        ("rsc", c_uint16, 1),
        ("split_header", c_uint16, 1),
        ("reserved3", c_uint16, 4),
        ("descriptor_done", c_uint8, 1),
        ("end_of_packet", c_uint8, 1),
        ("header_buffer_overflow", c_uint8, 1),
        ("l3_l4_processed", c_uint8, 1),
        ("csum_ip_err", c_uint8, 1),
        ("csum_l4_err", c_uint8, 1),
        ("csum_external_ip_err", c_uint8, 1),
        ("csum_external_udp_err", c_uint8, 1),
        ("status_error1", c_uint8),
        ("reserved5", c_uint8),
        ("ts_sub_nsecs_low", c_uint8),
        ("buf_id", c_uint16),
        ("rsc_seg_len", c_uint16),
        ("hash", c_uint32),
        ("reserved6", c_uint32),
        ("reserved7", c_uint32),
        ("ts", c_uint32),
    )


class IrqDoorbell(IntFlag):
    """What the driver writes to a notify block's doorbell (gve_dqo.h); the interval is not looked at."""

    ENABLE = 1 << 0
    CLEAR_PBA = 1 << 1


for _layout, _size in {
    TxPacket: 16,
    TxTsoContext: 16,
    TxCompletion: 8,
    RxBuffer: 32,
    RxCompletion: 32,
}.items():
    assert ctypes.sizeof(_layout) == _size, (_layout, ctypes.sizeof(_layout))
