"""A received batch: what one NAPI poll hands from driver to stack, as rows of words.

A packet is one row, or a row and its continuation rows (one for each further descriptor). The
batch is a loan: the stack takes a buffer by setting its netmem word to 0 (``take`` in the kernels);
what it leaves, the driver posts again.
"""

from __future__ import annotations

import numpy as np

from netmem.base.arena import Arena, Words, offsets

ROW_WORDS = 40
B_HDR = 0  # host address of the first byte of the frame
B_HLEN = 1  # readable bytes there
B_STATUS = 2  # RX_*
B_NETMEM = 3  # payload buffer, 0: none (any more)
B_OFFSET = 4  # of the payload in it
B_SIZE = 5
B_HNETMEM = 6  # the netmem that B_HDR lies in, 0: taken
B_HOFFSET = 7  # offset of B_HDR in it
B_MORE = 8  # continuation row of the same packet, -1: none
B_QUEUE = 9
B_POOL = 10  # pool handles, for whoever gives the buffers back
B_HPOOL = 11
B_SLOT = 12  # the driver's own
B_KIND = 13  # KIND_*
B_NEXT = 14  # next packet merged into this one, -1: none
B_LAST = 15  # last packet merged
B_L3 = 16  # offsets of the headers from B_HDR
B_L4 = 17
B_SRC = 18  # low words of the addresses
B_DST = 19
B_PORTS = 20  # source port << 16 | destination port
B_SEQ = 21
B_ACK = 22
B_TFLAGS = 23
B_WND = 24  # as in the header, unscaled
B_TSVAL = 25
B_TSECR = 26
B_TS = 27  # 1 with a timestamp option
B_LEN = 28  # TCP payload of this packet and those merged into it
B_OWN = 29  # TCP payload of this packet
B_LIN = 30  # offset of its linear payload from B_HDR
B_LINLEN = 31
B_SRC_HI = 32  # high words of the addresses, 0 for IPv4
B_DST_HI = 33
B_SACK = 34  # offset from B_HDR of the SACK option, 0: none
B_GSO = 35  # payload bytes of the segments that the NIC merged into this packet, 0: it is one

RX_SPLIT = 1
RX_L3_OK = 2
RX_L4_OK = 4
RX_L3_BAD = 8
RX_L4_BAD = 16

KIND_CONT = 0  # continuation row
KIND_TCP = 1
KIND_ARP = 2
KIND_ICMP = 3
KIND_MERGED = 4
KIND_DROP = 5  # malformed or unwanted: counted, nobody looks at it again
KIND_UDP = 6
KIND_ICMP6 = 7

# Words beside the rows.
M_ROWS = 0  # rows in use
M_HEADS = 1  # packets for the stack, after merging
M_PACKETS = 2
M_FLOW = 8  # direct-mapped table of GRO: head row + 1 by flow
FLOWS = 32
M_COUNTERS = 64

# Counters of parsing and GRO, by cause.
N_RX_PACKETS = 0
N_RX_BYTES = 1
N_RX_TCP = 2
N_RX_ARP = 3
N_RX_ICMP = 4
N_GRO_MERGED = 5
N_RX_RUNT = 6
N_RX_UNKNOWN_ETHERTYPE = 7
N_RX_BAD_IP_HEADER = 8
N_RX_BAD_IP_LENGTH = 9
N_RX_BAD_IP_CSUM = 10
N_RX_FRAGMENT = 11
N_RX_UNKNOWN_PROTO = 12
N_RX_BAD_TCP_HEADER = 13
N_RX_BAD_L4_CSUM = 14
N_RX_UNVERIFIED_CSUM = 15
N_RX_HEADER_UNREADABLE = 16
N_RX_TRUNCATED = 17
N_RX_FAULT = 18
N_RX_UDP = 19
N_RX_ICMP6 = 20
N_RX_BAD_UDP_HEADER = 21
N_RX_MERGED_BY_NIC = 22
NETDEV_COUNTERS = offsets(globals(), "N_")

M_WORDS = 128
HEADS = M_WORDS  # the list of head rows follows the words


class RxBatch:
    """Room for ``rows`` rows. ``meta`` holds counts, counters and the list of packets."""

    def __init__(self, rows: int = 1024) -> None:
        self.rows: Words = np.zeros((rows, ROW_WORDS), np.int64)
        self.arena = Arena("netdev:batch", M_WORDS + rows)
        self.meta: Words = self.arena.a[: M_WORDS + rows]

    def __len__(self) -> int:
        return int(self.meta[M_HEADS])

    def clear(self) -> None:
        """Empty the batch; counters go on."""
        self.meta[:M_COUNTERS] = 0

    def heads(self) -> list[int]:
        """Row numbers of the packets, in order of arrival."""
        heads: list[int] = self.meta[HEADS : HEADS + int(self.meta[M_HEADS])].tolist()
        return heads

    def counters(self) -> dict[str, int]:
        """What was received, merged and refused, by name."""
        return {name: int(self.meta[M_COUNTERS + at]) for name, at in NETDEV_COUNTERS.items()}
