"""Layout of the connection table (transmission control blocks), receive entries and stack arena.

A connection is a row of TCB_WORDS words; names are RFC 9293's. Sequence numbers are kept masked to
32 bits; ``seq_lt`` and its kin are the only comparison.
"""

from __future__ import annotations

from netmem.base.arena import offsets
from netmem.base.jit import inline_kernel

MASK32 = 0xFFFFFFFF

# States (RFC 9293, section 3.3.2).
CLOSED = 0
LISTEN = 1
SYN_SENT = 2
SYN_RECEIVED = 3
ESTABLISHED = 4
FIN_WAIT_1 = 5
FIN_WAIT_2 = 6
CLOSE_WAIT = 7
CLOSING = 8
LAST_ACK = 9
TIME_WAIT = 10
STATE_NAMES = [
    "CLOSED", "LISTEN", "SYN-SENT", "SYN-RECEIVED", "ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2",
    "CLOSE-WAIT", "CLOSING", "LAST-ACK", "TIME-WAIT",
]

# Identity.
STATE = 0
LADDR = 1
RADDR = 2
PORTS = 3  # remote port << 16 | local port: the word as it stands in a segment from the peer
NEXT = 4  # hash chain, row + 1
FLAGS = 5  # CF_*
ERROR = 6  # errno for the socket, 0: none
LISTENER = 7  # id of the listener that this connection comes from, 0: none

# Timers, ns, 0: not running. One cache line, so that a scan touches little.
RTO_AT = 8
DELACK_AT = 9
PERSIST_AT = 10
WAIT_AT = 11  # TIME-WAIT, FIN-WAIT-2 of an orphan

# Send sequence space.
SND_UNA = 16
SND_NXT = 17
SND_MAX = 18  # highest sequence number sent
SND_WND = 19
SND_WL1 = 20
SND_WL2 = 21
SND_SCALE = 22  # Snd.Wind.Shift
MSS = 23  # payload bytes of a full segment that we send
ISS = 24
CWND = 25
SSTHRESH = 26
DUPACKS = 27
RECOVER = 28
SRTT = 29  # ns
RTTVAR = 30
RTO = 31
BACKOFF = 32
RTT_SEQ = 33  # without timestamps: the sequence number being timed, when
RTT_AT = 34
MAX_SND_WND = 35

# Send buffer: a ring in the device's transmit memory.
SB_HOST = 36
SB_OFFSET = 37  # in the device's transmit memory
SB_SIZE = 38
SB_HEAD = 39  # stream offset of SND_UNA
SB_TAIL = 40  # stream offset behind the last byte written

# Receive sequence space.
RCV_NXT = 41
RCV_ADV = 42  # right edge that was advertised
RCV_SCALE = 43
IRS = 44
RCV_BUF = 45  # most bytes to hold
RCV_MSS = 46  # payload bytes of a full segment that we expect
TS_RECENT = 47
ACK_PENDING = 48  # bytes received since the last acknowledgement
LAST_ACK_SENT = 49

# Receive queue and out-of-order queue: chains of entries.
RQ_HEAD = 50
RQ_TAIL = 51
RQ_BYTES = 52
RQ_BUFS = 53
OQ_HEAD = 54
OQ_TAIL = 55
OQ_BYTES = 56
OQ_BUFS = 57

# Share of the pool.
QUEUE = 58  # receive queue that the flow arrives on
OUT = 59  # buffers that the advertised window may still fill
PPN = 60  # payload per buffer, bytes * 16, measured
SLOW_IN = 61  # batch in which the slow path took this connection over
TOUCHED = 62  # batch in which it was last touched
BYTES_IN = 63
BYTES_OUT = 64
NEXT_HOP = 65
ADV_MSS = 66  # the MSS option we send
FIN_SEQ = 67  # of the peer's FIN, once seen
USER_RETRIES = 68  # retransmissions since progress
TOKENS_FD = 69  # descriptor of the socket's token arena, 0: no socket
TPL = 72  # header template: Ethernet, IPv4, TCP without options, 54 bytes
TCB_WORDS = 80

CF_TS = 1  # timestamps agreed on
CF_ACK_NOW = 2
CF_FIN_QUEUED = 4  # the application closed its direction
CF_FIN_SENT = 8
CF_FIN_SEEN = 16  # the peer's FIN was seen, perhaps with data before it missing
CF_RECOVERY = 32
CF_NODELAY = 64
CF_STARVED = 128  # the window is smaller than it should be for want of buffers
CF_ORPHAN = 256  # no socket any more
CF_LIMITED = 512  # the last output was held back by the congestion window
CF_MAC = 1024  # the template has the next hop's address
CF_WSCALE = 2048  # window scaling offered, then agreed on

# A receive entry: a piece of payload in stream order.
E_NEXT = 0
E_SEQ = 1
E_LEN = 2
E_NETMEM = 3
E_OFFSET = 4
E_POOL = 5
E_KIND = 6
ENTRY_WORDS = 8
EK_COPY = 0  # readable data of an unbound queue
EK_LINEAR = 1  # readable bytes that came with the headers on a bound queue
EK_FRAG = 2  # payload of a bound queue: handed out by token

# Stack arena header.
G_NOW = 0
G_BATCH = 1  # number of the batch
G_TIMER = 2  # no timer runs out before this
G_ROWS = 3  # rows of the table ever used
G_BUCKETS = 4  # size of the hash table
G_EFREE = 5  # first free entry
G_ECOUNT = 6  # free entries
G_TOUCHED = 7
G_SLOW = 8
G_RELEASE = 9
G_IP_ID = 10
G_QUEUE = 11  # of the batch at hand: queue, buffers available, handed out by token
G_AVAIL = 12
G_TOKENS = 13
G_ADDR = 14  # our address
G_STARVED = 15  # connections with CF_STARVED
G_DELACK = 16  # ns
G_TS_BASE = 17

G_CREDIT = 32  # per receive queue, CR_WORDS words
CR_AVAIL = 0
CR_OUT = 1
CR_RESERVE = 2
CR_BUFLEN = 3
CR_OOO = 4  # most buffers of out-of-order data, of all connections together
CR_OOO_N = 5  # how many there are
CR_POOL = 6  # handle of the queue's payload pool
CR_WORDS = 8
MAX_QUEUES = 16

G_COUNTERS = G_CREDIT + CR_WORDS * MAX_QUEUES
S_IN_SEGS = 0
S_IN_FAST = 1
S_IN_SLOW = 2
S_OUT_SEGS = 3
S_OUT_ACKS = 4
S_OUT_RST = 5
S_RETRANS = 6
S_RTO = 7
S_FAST_RETRANS = 8
S_DELAYED_ACKS = 9
S_OOO_QUEUED = 10
S_OOO_PRUNED = 11
S_DUP_DROPPED = 12  # data that was there already
S_BEYOND_WINDOW = 13
S_POOL_LOW = 14  # data refused to keep the last buffers for control segments
S_PAWS = 15
S_NO_SOCKET = 16
S_NOT_OURS = 17
S_SYN_DROPPED = 18
S_BACKLOG_FULL = 19
S_TABLE_FULL = 20
S_PASSIVE = 21
S_ACTIVE = 22
S_RESETS_IN = 23
S_PROBES = 24
S_WINDOW_UPDATES = 25
S_CHALLENGE_ACK = 26
S_ENTRIES_EMPTY = 27
S_TX_FULL = 28
S_BAD_ARP = 29
S_ARP_IN = 30
S_ARP_OUT = 31
S_ICMP_ECHO = 32
S_ICMP_DROPPED = 33
S_TIME_WAIT_REUSED = 34
S_TIMEOUTS = 35
S_BAD_OPTIONS = 36
TCP_COUNTERS = offsets(globals(), "S_")

G_LISTS = G_COUNTERS + 64  # touched rows, slow rows, release pairs, hash buckets follow
LIST_ROOM = 4096
G_TOUCHED_AT = G_LISTS
G_SLOW_AT = G_TOUCHED_AT + LIST_ROOM
G_RELEASE_AT = G_SLOW_AT + LIST_ROOM
RELEASE_ROOM = 16384
G_HASH_AT = G_RELEASE_AT + 2 * RELEASE_ROOM


@inline_kernel
def seq_lt(a, b):
    """a < b in sequence space."""
    return ((a - b) & MASK32) > 0x7FFFFFFF


@inline_kernel
def seq_le(a, b):
    """a <= b in sequence space."""
    return ((b - a) & MASK32) <= 0x7FFFFFFF


@inline_kernel
def seq_diff(a, b):
    """a - b in sequence space, signed."""
    d = (a - b) & MASK32
    return d - 0x100000000 if d > 0x7FFFFFFF else d
