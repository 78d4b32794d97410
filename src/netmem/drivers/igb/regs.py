"""Registers and descriptors of the 82576, as its data sheet names them (chapters 7 and 8)."""

from __future__ import annotations

import ctypes
import enum
from typing import Annotated

from netmem.base.record import Items, Record, field_offset, i64
from netmem.hw.registers import Register
from netmem.netdev.ring import TxRingRecord

QUEUES = 16
QUEUE_STRIDE = 0x40
FILTERS = 8  # 5-tuple filters
RSS_KEY_BYTES = 40


def _queue(offset: int, section: str, **fields: tuple[int, int]) -> Register:
    """A register that each of the 16 queues has."""
    return Register(offset, fields, QUEUES, QUEUE_STRIDE, section=section)


def _count(offset: int, section: str = "8.19") -> Register:
    """A statistics register: reading clears it."""
    return Register(offset, access="rc", section=section)


REGISTERS: dict[str, Register] = {
    # General (8.2)
    "CTRL": Register(
        0x0000,
        {
            "FD": (0, 1),
            "SLU": (6, 1),
            "SPEED": (8, 2),
            "FRCSPD": (11, 1),
            "FRCDPX": (12, 1),
            "RST": (26, 1),
            "VME": (30, 1),
            "PHY_RST": (31, 1),
        },
        section="8.2.1",
    ),
    "STATUS": Register(
        0x0008, {"FD": (0, 1), "LU": (1, 1), "SPEED": (6, 2), "PHYRA": (10, 1)}, access="ro", section="8.2.2"
    ),
    "CTRL_EXT": Register(0x0018, {"LINK_MODE": (22, 2), "DRV_LOAD": (28, 1)}, section="8.2.3"),
    "MDIC": Register(
        0x0020,
        {"DATA": (0, 16), "REGADD": (16, 5), "PHYADD": (21, 5), "OP": (26, 2), "R": (28, 1), "E": (30, 1)},
        section="8.2.4",
    ),
    # Interrupts (8.8)
    "ICR": Register(0x1500, access="rc", section="8.8.9"),
    "IMC": Register(0x150C, access="wo", section="8.8.12"),
    "GPIE": Register(
        0x1514, {"NSICR": (0, 1), "MULTIPLE_MSIX": (4, 1), "EIAME": (30, 1), "PBA": (31, 1)}, section="8.8.20"
    ),
    "EIMS": Register(0x1524, section="8.8.3"),
    "EIMC": Register(0x1528, access="wo", section="8.8.4"),
    "EIAC": Register(0x152C, section="8.8.5"),
    "EICR": Register(0x1580, access="rc", section="8.8.1"),
    "EITR": Register(0x1680, {"INTERVAL": (2, 13)}, 25, section="8.8.14"),
    "IVAR": Register(0x1700, count=8, section="8.8.15"),
    # Receive (8.10)
    "RCTL": Register(
        0x0100,
        {
            "RXEN": (1, 1),
            "SBP": (2, 1),
            "UPE": (3, 1),
            "MPE": (4, 1),
            "LPE": (5, 1),
            "LBM": (6, 2),
            "BAM": (15, 1),
            "VFE": (18, 1),
            "SECRC": (26, 1),
        },
        section="8.10.1",
    ),
    "RXCSUM": Register(
        0x5000, {"PCSS": (0, 8), "IPOFLD": (8, 1), "TUOFLD": (9, 1), "PCSD": (13, 1)}, section="8.10.15"
    ),
    "RLPML": Register(0x5004, {"RLPML": (0, 14)}, section="8.10.17"),
    "RFCTL": Register(0x5008, section="8.10.18"),
    "RAL": Register(0x5400, count=16, stride=8, section="8.10.20"),
    "RAH": Register(0x5404, {"RAH": (0, 16), "AV": (31, 1)}, 16, 8, section="8.10.21"),
    "MTA": Register(0x5200, count=128, section="8.10.19"),
    "RDBAL": _queue(0xC000, "8.10.5"),
    "RDBAH": _queue(0xC004, "8.10.6"),
    "RDLEN": _queue(0xC008, "8.10.7"),
    "SRRCTL": _queue(
        0xC00C,
        "8.10.2",
        BSIZEPACKET=(0, 7),
        BSIZEHEADER=(8, 4),
        RDMTS=(20, 5),
        DESCTYPE=(25, 3),
        DROP_EN=(31, 1),
    ),
    "RDH": _queue(0xC010, "8.10.8"),
    "RDT": _queue(0xC018, "8.10.9"),
    "RXDCTL": _queue(0xC028, "8.10.10", PTHRESH=(0, 5), HTHRESH=(8, 5), WTHRESH=(16, 5), ENABLE=(25, 1)),
    "RQDPC": Register(0xC030, {}, QUEUES, QUEUE_STRIDE, "rc", "8.10.11"),
    # Receive side scaling and filters (8.10.23 and following)
    "MRQC": Register(
        0x5818,
        {
            "ENABLE": (0, 3),
            "TCPIPV4": (16, 1),
            "IPV4": (17, 1),
            "IPV6": (20, 1),
            "TCPIPV6": (21, 1),
            "UDPIPV4": (22, 1),
            "UDPIPV6": (23, 1),
        },
        section="8.10.25",
    ),
    "RETA": Register(0x5C00, count=32, section="8.10.26"),
    "RSSRK": Register(0x5C80, count=10, section="8.10.27"),
    "SAQF": Register(0x5980, count=FILTERS, section="8.11.1"),
    "DAQF": Register(0x59A0, count=FILTERS, section="8.11.2"),
    "SPQF": Register(0x59C0, {"SPORT": (0, 16)}, FILTERS, section="8.11.3"),
    "FTQF": Register(
        0x59E0,
        {
            "PROTOCOL": (0, 8),
            "QUEUE_ENABLE": (8, 1),
            "VF_MASK": (15, 1),
            "QUEUE": (16, 3),
            "MASK_PROTOCOL": (28, 1),
            "MASK_SADDR": (29, 1),
            "MASK_DADDR": (30, 1),
            "MASK_SPORT": (31, 1),
        },
        FILTERS,
        section="8.11.4",
    ),
    "IMIR": Register(0x5A80, {"PORT": (0, 16), "PORT_BP": (17, 1)}, FILTERS, section="8.8.16"),
    "IMIREXT": Register(0x5AA0, {"SIZE_BP": (12, 1), "CTRL_BP": (19, 1)}, FILTERS, section="8.8.17"),
    # Transmit (8.12)
    "TCTL": Register(0x0400, {"EN": (1, 1), "PSP": (3, 1), "CT": (4, 8), "COLD": (12, 10)}, section="8.12.1"),
    "TDBAL": _queue(0xE000, "8.12.6"),
    "TDBAH": _queue(0xE004, "8.12.7"),
    "TDLEN": _queue(0xE008, "8.12.8"),
    "TDH": _queue(0xE010, "8.12.9"),
    "TDT": _queue(0xE018, "8.12.10"),
    "TXDCTL": _queue(0xE028, "8.12.11", PTHRESH=(0, 5), HTHRESH=(8, 5), WTHRESH=(16, 5), ENABLE=(25, 1)),
    # Statistics (8.19)
    "CRCERRS": _count(0x4000),
    "MPC": _count(0x4010),
    "GPRC": _count(0x4074),
    "BPRC": _count(0x4078),
    "MPRC": _count(0x407C),
    "GPTC": _count(0x4080),
    "GORCL": _count(0x4088),
    "GORCH": _count(0x408C),
    "GOTCL": _count(0x4090),
    "GOTCH": _count(0x4094),
    "RNBC": _count(0x40A0),
    "RUC": _count(0x40A4),
    "RFC": _count(0x40A8),
    "ROC": _count(0x40AC),
    "RJC": _count(0x40B0),
    "TPR": _count(0x40D0),
    "TPT": _count(0x40D4),
    "TSCTC": _count(0x40F8),
}

# What `ethtool -S` calls them; a pair is the low and the high half of one number.
STATISTICS: dict[str, tuple[str, ...]] = {
    "rx_frames": ("GPRC",),
    "rx_bytes": ("GORCL", "GORCH"),
    "rx_broadcast": ("BPRC",),
    "rx_multicast": ("MPRC",),
    "rx_crc_errors": ("CRCERRS",),
    "rx_missed": ("MPC",),
    "rx_no_desc": ("RNBC",),
    "rx_runt": ("RUC",),
    "rx_fragments": ("RFC",),
    "rx_oversize": ("ROC",),
    "rx_jabber": ("RJC",),
    "rx_total": ("TPR",),
    "tx_frames": ("GPTC",),
    "tx_bytes": ("GOTCL", "GOTCH"),
    "tx_total": ("TPT",),
    "tx_tso": ("TSCTC",),
}

# SRRCTL.DESCTYPE (8.10.2)
DESCTYPE_ADV_ONE_BUFFER = 1
DESCTYPE_SPLIT_ALWAYS = 5

# PHY registers through MDIC (8.25): control, with auto-negotiation on and restarted, or forced 1000/full.
PHY_ADDRESS, PHY_CONTROL = 1, 0
PHY_AUTONEG, PHY_FORCED = 0x1340, 0x0140
MDIC_WRITE = 1

MRQC_RSS = 2

RXD_HDR_LEN_SHIFT = 21  # 10 bits
RXD_HDR_LEN_MASK = 0x3FF
RXD_SPH = 1 << 31
RXD_LEN_SHIFT = 32


class RxDesc(Record):
    """Advanced receive descriptor, as the driver writes it (7.1.5.1) and as the device does (7.1.5.2)."""

    packet: i64  # bus address of the packet buffer; then RSS hash << 32 | SPH and header length
    header: i64  # bus address of the header buffer; then VLAN << 48 | length << 32 | status


RXD_STATUS = field_offset(RxDesc, "header")


class Rxd(enum.IntEnum):
    """Extended status and error bits of a receive descriptor that was written back (7.1.5.2)."""

    DD = 1 << 0
    EOP = 1 << 1
    L4CS = 1 << 5
    IPCS = 1 << 6
    L4E = 1 << 29
    IPE = 1 << 30
    RXE = 1 << 31


class TxDesc(Record):
    """Advanced transmit descriptor: data (7.2.2.3), context (7.2.2.4), or written back (7.2.2.5)."""

    address: i64  # bus address of the buffer; of a context VLAN, MAC and IP header length
    command: i64  # olinfo_status << 32 | command | length; then status << 32


TXD_STATUS = field_offset(TxDesc, "command")
DESC_BYTES = ctypes.sizeof(TxDesc)


class Txd(enum.IntEnum):
    """Bits of a transmit descriptor's command, of its olinfo_status, and of the status written back."""

    DTYP_CTXT = 0x0020_0000
    DTYP_DATA = 0x0030_0000
    EOP = 0x0100_0000
    IFCS = 0x0200_0000
    RS = 0x0800_0000
    DEXT = 0x2000_0000
    TSE = 0x8000_0000
    IXSM = 0x100  # olinfo_status
    TXSM = 0x200
    DD = 1  # status


TXD_IDX_SHIFT = 4  # of olinfo_status and of the context's last word
TXD_PAYLEN_SHIFT = 14
TX_DATA_MAX = 1 << 14  # bytes that we give one data descriptor


class Context(enum.IntEnum):
    """Bits of a context descriptor's command."""

    IPV4 = 0x400
    L4T_UDP = 0
    L4T_TCP = 0x800


CONTEXT_MACLEN_SHIFT = 9
CONTEXT_L4LEN_SHIFT = 8
CONTEXT_MSS_SHIFT = 16


class TxContext(Record):
    """A context that the device has: what the descriptor said."""

    lengths: i64
    command: i64


class IgbTxRing(Record):
    """The transmit ring, and the device's two contexts."""

    ring: Annotated[TxRingRecord, TxRingRecord]
    contexts: Annotated[Items[TxContext], TxContext * 2]
