"""Registers and descriptors of the software NIC. All registers are 64-bit words of BAR 0.

What the driver writes and what the device writes stand on cache lines of their own.
"""

from __future__ import annotations

# Identity and status (device writes).
R_MAGIC = 0
R_STATUS = 1
R_RX_QUEUES = 2
R_TX_QUEUES = 3
R_MAC = 4  # 48-bit number
MAGIC = 0x6E65746D656D  # "netmem"
STATUS_LINK = 1

# Control (driver writes).
R_CTRL = 8
R_MTU = 9  # longest IP packet
R_GENERATION = 10  # bump after changing RSS or rules
R_PAUSE_NS = 11  # how long the wire is held when a queue has no descriptor, before frames drop
R_NRULES = 12
R_ITR_NS = 13  # least time between interrupts while packets keep coming (rx-usecs)
R_RSS_KEY = 16  # 40 bytes in five words
CTRL_ENABLE = 1
RSS_KEY_BYTES = 40

# Sleep and wake, one line each.
R_IRQ_ARMED = 24  # driver: 1 when it waits for an interrupt
R_DB_ARMED = 32  # device: 1 when it waits for a doorbell
R_HELD = 33  # device: 1 while a frame holds the wire for want of descriptors

R_INDIR = 64  # RSS indirection table
INDIR_SIZE = 128

# Steering rules, RULE_WORDS each: exact match, a field of 0 matches anything.
R_RULES = 192
RULE_WORDS = 16
MAX_RULES = 32
RULE_SRC, RULE_DST, RULE_SPORT, RULE_DPORT, RULE_PROTO, RULE_QUEUE, RULE_VALID = range(7)
RULE_SRC_HI, RULE_DST_HI = 7, 8

# Device counters (device writes).
R_COUNTERS = 704
C_RX_FRAMES = 0  # taken from the wire, segments counted singly
C_RX_BYTES = 1
C_RX_RUNT = 2
C_RX_OVERSIZE = 3
C_RX_NO_DESC = 4  # dropped: the queue had no descriptor for longer than the pause
C_RX_CSUM_BAD = 5
C_RX_DISABLED = 6
C_RX_PAUSED = 7  # times the wire was held
C_RX_RULE_HIT = 8
C_DMA_FAULT = 9  # an address that nobody mapped, or mapped the other way
C_TX_FRAMES = 10  # as handed to the wire: one for each packet of the driver
C_TX_BYTES = 11
C_TX_BAD_DESC = 12
C_IRQ = 13

# A receive queue: driver line, tail line, device line.
R_RXQ = 768
RXQ_STRIDE = 32
MAX_QUEUES = 16
Q_CTRL = 0  # 1: run
Q_RING = 1  # I/O address of the ring
Q_SIZE = 2  # descriptors, a power of two
Q_HDS = 3  # HDS_ON | threshold << 8
Q_BUFLEN = 4  # bytes of a packet buffer
Q_HDRLEN = 5  # bytes of a header buffer
Q_MERGE = 6  # 1: segments that the wire carries as one frame become one packet (rx-gro-hw)
Q_TAIL = 8  # driver: descriptors posted, free running
Q_STATE = 16  # device: 1 running, 2 fault
Q_HEAD = 17  # device: descriptors used, free running
Q_PACKETS = 18
Q_BYTES = 19
Q_SPLIT_HIT = 20
Q_SPLIT_MISS = 21
Q_DROPS = 22
HDS_ON = 1
STATE_STOPPED, STATE_RUNNING, STATE_FAULT = 0, 1, 2

# A transmit queue uses Q_CTRL, Q_RING, Q_SIZE, Q_TAIL, Q_STATE, Q_HEAD, Q_PACKETS, Q_BYTES.
R_TXQ = R_RXQ + RXQ_STRIDE * MAX_QUEUES
BAR_WORDS = R_TXQ + RXQ_STRIDE * MAX_QUEUES

# Receive descriptor: four words. The driver writes the first two, the device the last two.
RXD_WORDS = 4
RXD_PKT = 0  # I/O address of the packet (payload) buffer
RXD_HDR = 1  # I/O address of the header buffer, 0 without one
RXD_STATUS = 2  # RXS_* | header bytes << 16 | packet buffer bytes << 32
RXD_HASH = 3  # hash | segment size << 32 when segments were merged
RXS_DD = 1  # descriptor done
RXS_EOP = 2  # last descriptor of its packet
RXS_SPH = 4  # split: the header buffer holds exactly the headers
RXS_HBO = 8  # header buffer overflow: what did not fit is in the packet buffer
RXS_L3_OK = 16
RXS_L4_OK = 32
RXS_L3_BAD = 64
RXS_L4_BAD = 128
RXS_FAULT = 256

# Transmit descriptor: four words, a packet is one or more ending with EOP.
TXD_WORDS = 4
TXD_ADDR = 0
TXD_LEN = 1  # bytes | TXC_* << 32
TXD_META = 2  # segment size << 16 | header bytes, in the first descriptor of a packet
TXD_STATUS = 3  # device: TXS_DD
TXC_EOP = 1
TXC_TSO = 2
TXC_CSUM = 4
TXS_DD = 1
TX_MAX_DESC = 8  # descriptors of one packet
