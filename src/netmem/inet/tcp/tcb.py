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

# Every legal change of state (RFC 9293, figure 5 and section 3.10), with what causes it.
TRANSITIONS = {
    (CLOSED, SYN_SENT): "active OPEN: SYN sent",
    (CLOSED, SYN_RECEIVED): "SYN for a listener: SYN, ACK sent (LISTEN is a state of the listener)",
    (SYN_SENT, ESTABLISHED): "SYN, ACK received",
    (SYN_SENT, SYN_RECEIVED): "SYN received: both open at once",
    (SYN_SENT, CLOSED): "CLOSE, RST, or no answer",
    (SYN_RECEIVED, ESTABLISHED): "ACK of our SYN received",
    (SYN_RECEIVED, FIN_WAIT_1): "ACK of our SYN received, after CLOSE: FIN sent",
    (SYN_RECEIVED, CLOSED): "RST, no answer, or the backlog is full",
    (ESTABLISHED, FIN_WAIT_1): "CLOSE: FIN sent",
    (ESTABLISHED, CLOSE_WAIT): "FIN received",
    (ESTABLISHED, CLOSED): "RST, ABORT, or timeout",
    (FIN_WAIT_1, FIN_WAIT_2): "ACK of our FIN received",
    (FIN_WAIT_1, CLOSING): "FIN received before the ACK of ours",
    (FIN_WAIT_1, TIME_WAIT): "FIN received with the ACK of ours",
    (FIN_WAIT_1, CLOSED): "RST, ABORT, or timeout",
    (FIN_WAIT_2, TIME_WAIT): "FIN received",
    (FIN_WAIT_2, CLOSED): "RST, ABORT, or the peer never closes",
    (CLOSE_WAIT, LAST_ACK): "CLOSE: FIN sent",
    (CLOSE_WAIT, CLOSED): "RST, ABORT, or timeout",
    (CLOSING, TIME_WAIT): "ACK of our FIN received",
    (CLOSING, CLOSED): "RST, ABORT, or timeout",
    (LAST_ACK, CLOSED): "ACK of our FIN received, RST, ABORT, or timeout",
    (TIME_WAIT, CLOSED): "twice the longest segment life is over, a new SYN, or ABORT",
}

# Identity. Addresses are two words, of which the high ones stand with the template.
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
REO_AT = 12  # RACK's reordering timer
PTO_AT = 13  # tail loss probe
KEEP_AT = 14  # keepalive
LAST_TIMER = KEEP_AT

# Send sequence space.
SND_UNA = 16
SND_NXT = 17  # nothing beyond was sent: what is sent again has an entry of its own
SND_WND = 18
SND_WL1 = 19
SND_WL2 = 20
SND_SCALE = 21  # Snd.Wind.Shift
MSS = 22  # payload bytes of a full segment that we send
ISS = 23
MAX_SND_WND = 24
SRTT = 25  # ns
RTTVAR = 26
RTO = 27
BACKOFF = 28
SND_SML = 30  # end of the last segment shorter than MSS (Minshall's variant of Nagle)
USER_RETRIES = 29  # retransmissions since progress

# Congestion control (RFC 5681, 9438) and recovery (RFC 6675, 8985, 2883).
CWND = 32
SSTHRESH = 33
CUBIC_WMAX = 34
CUBIC_EPOCH = 35  # ns, 0: none yet
CUBIC_K = 36  # ns
CUBIC_WEST = 37
DUPACKS = 39
RECOVER = 40  # recovery ends when this is acknowledged
SACKED = 41  # bytes in flight that the peer has
LOST = 42  # bytes in flight that are taken for lost
RETRANS = 43  # of those: sent again and not taken for lost anew
RACK_TIME = 44  # of the segment sent last among those that arrived: when, its end, its round trip
RACK_END = 45
RACK_RTT = 46
RACK_FACK = 47  # highest sequence number that arrived
RACK_MULT = 48  # of the reordering window, in quarters of MIN_RTT
RACK_PERSIST = 49  # recoveries for which RACK_MULT stays
RACK_ROUND = 50  # SND_NXT when a D-SACK last widened the window
MIN_RTT = 51
TLP_END = 52  # SND_NXT at the time of the tail loss probe, -1: none is under way

# Send buffer: a ring in the device's transmit memory, and spans of it that stand for device memory.
SB_HOST = 53
SB_OFFSET = 54  # in the device's transmit memory
SB_SIZE = 55
SB_HEAD = 56  # stream offset of SND_UNA
SB_TAIL = 57  # stream offset behind the last byte written
TQ_HEAD = 58  # what is in flight: a chain of entries, X_*
TQ_TAIL = 59
SP_HEAD = 60  # spans: a chain of entries, Y_*
SP_TAIL = 61
SP_NEXT = 62  # hint: the span of what is sent next
RTT_SYN = 63  # when our SYN was sent, 0: more than once

# Receive sequence space.
RCV_NXT = 64
RCV_ADV = 65  # right edge that was advertised
RCV_SCALE = 66
IRS = 67
RCV_BUF = 68  # most bytes to hold
RCV_MSS = 69  # payload bytes of a full segment that we expect
TS_RECENT = 70
TS_RECENT_AT = 71  # ns
ACK_PENDING = 72  # bytes received since the last acknowledgement
LAST_ACK_SENT = 73
LAST_IN = 74  # when the peer was last heard of, ns
DSACK_START = 75  # duplicate to report (RFC 2883), both equal: none
DSACK_END = 76
SACK_RECENT = 77  # four sequence numbers: pieces of the blocks that changed last, newest first

# Receive queue and out-of-order queue: chains of entries.
RQ_HEAD = 81
RQ_TAIL = 82
RQ_BYTES = 83
RQ_BUFS = 84
OQ_HEAD = 85
OQ_TAIL = 86
OQ_BYTES = 87
OQ_BUFS = 88

# Share of the pool.
QUEUE = 89  # receive queue that the flow arrives on
PLEDGED = 90  # buffers kept for what the advertised window lets in (``window``)
PER = 91  # payload bytes of a buffer when segments are full
SLOW_IN = 92  # batch in which the slow path took this connection over
TOUCHED = 93  # batch in which it was last touched
BYTES_IN = 94
BYTES_OUT = 95
ADV_MSS = 96  # the MSS option we send
FIN_SEQ = 97  # of the peer's FIN, once seen
TOKENS_FD = 98  # descriptor of the socket's token arena, 0: no socket

# Options of the socket, and limits.
KEEP_IDLE = 99  # ns
KEEP_INTERVAL = 100
KEEP_COUNT = 101
KEEP_PROBES = 102  # sent without an answer
USER_TIMEOUT = 103  # ns that sent data may stay unacknowledged (RFC 5482), 0: as long as retries last
STUCK_AT = 104  # when what is not acknowledged yet was first waited for, ns
CHALLENGED_AT = 105  # when a challenge ACK was last sent, ns
PATH_MTU = 106

NEXT_HOP = 107
NEXT_HOP_HI = 108
LADDR_HI = 109
RADDR_HI = 110
TPL_LEN = 111  # of the template
TPL = 112  # header template: Ethernet, IP, TCP without options, 54 or 74 bytes
USER = 122  # buffers that the application holds by token
DEMAND = 123  # bytes of window that it makes sense to keep: grows and shrinks with what is used
USED = 124  # bytes received since DEMAND last changed, and when that was, ns
USED_AT = 125
DATA_AT = 126  # when data last came in sequence, ns
TCB_WORDS = 128

CF_TS = 1  # timestamps agreed on
CF_ACK_NOW = 2
CF_FIN_QUEUED = 4  # the application closed its direction
CF_FIN_SENT = 8
CF_FIN_SEEN = 16  # the peer's FIN was seen, perhaps with data before it missing
CF_RECOVERY = 32  # RFC 6675: from the first loss until RECOVER is acknowledged
CF_NODELAY = 64
CF_STARVED = 128  # the window is smaller than it should be for want of buffers
CF_ORPHAN = 256  # no socket any more
CF_LIMITED = 512  # the last output was held back by the congestion window
CF_MAC = 1024  # the template has the next hop's address
CF_WSCALE = 2048  # window scaling offered, then agreed on
CF_SACK = 4096  # selective acknowledgements offered, then agreed on
CF_LOSS = 8192  # after a retransmission timeout
CF_REORDERED = 16384  # the path was seen to reorder
CF_TLP_RETRANS = 32768  # the tail loss probe under way sent data again
CF_KEEPALIVE = 65536
CF_V6 = 131072

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

# An entry of what is in flight; E_NEXT, E_SEQ, E_LEN as above (a FIN counts one).
X_TIME = 3  # when it was last sent, ns
X_STATE = 4  # XS_*
XS_SACKED = 1
XS_LOST = 2
XS_RETRANS = 4  # sent again, and that not taken for lost
XS_EVER = 8  # sent more than once: its round trip means nothing without timestamps
XS_FIN = 16

# A span: stream bytes that lie in device memory; E_NEXT, E_LEN as above.
Y_START = 1  # stream offset
Y_IO = 3  # I/O address
Y_CALL = 4  # number of the sendmsg_devmem() call, unique in the stack
Y_MARK = 5  # transmit rows up to here may name it

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
G_QUEUE = 11  # of the batch at hand, and whether its data is handed out by token (G_TOKENS)
G_TURN = 12  # row that is told of a bigger window first
G_TOKENS = 13
G_RECLAIM_AT = 14  # when pledges are looked through next, ns
G_STARVED = 15  # connections with CF_STARVED
G_DELACK = 16  # ns
G_TS_BASE = 17
G_ZC_HEAD = 18  # spans that were acknowledged or given up, until the NIC is done with them
G_ZC_TAIL = 19
G_PRUNE_AT = 20  # when out-of-order queues are looked through for stale ones next, ns

G_CREDIT = 32  # per receive queue, CR_WORDS words
CR_AVAIL = 0  # buffers that can still be received into, those of the batch at hand among them
CR_PLEDGED = 1  # buffers pledged to connections
CR_RESERVE = 2  # buffers kept for acknowledgements and probes
CR_BUFLEN = 3
CR_OOO = 4  # most buffers of out-of-order data, of all connections together
CR_OOO_N = 5  # how many there are
CR_POOL = 6  # handle of the queue's payload pool
CR_HOST = 7  # host address of its memory, 0: unreadable; log2 of a netmem's bytes
CR_SHIFT = 8
CR_HPOOL = 9  # handle of its header pool, 0: none; host address, log2 of a netmem's bytes
CR_HHOST = 10
CR_HSHIFT = 11
CR_GRANT = 12  # buffers that an idle connection keeps
CR_TOTAL = 13  # buffers of the pool, whoever has them
CR_WORDS = 16
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
S_SACK_IN = 37  # segments with selective acknowledgements
S_DSACK_IN = 38
S_DSACK_OUT = 39
S_LOSS_RACK = 40  # segments taken for lost by time, not by a timeout
S_LOSS_PROBES = 41
S_KEEPALIVES = 42
S_BAD_ACK = 43  # outside what RFC 5961, section 5, allows
S_PMTU = 44
S_ICMP_ERRORS = 45
S_ND_IN = 46
S_ND_OUT = 47
S_BAD_ND = 48
S_UDP_IN = 49
S_UDP_NO_SOCKET = 50
S_UDP_FULL = 51
S_UDP_OUT = 52
S_ZC_DONE = 53  # sendmsg_devmem() calls that were completed
S_OVER_SHARE = 54  # data refused: the connection has its share of the pool's buffers
S_MERGED = 55  # short pieces that were copied behind others, into memory that is readable
S_COOKIES_OUT = 56  # SYN cookies sent, come back, and come back wrong (RFC 4987)
S_COOKIES_IN = 57
S_COOKIES_BAD = 58
S_MARTIAN = 59  # from an address of ours
S_LEFT_QUEUE = 60  # flows that came to a queue without the memory that they had been bound to
TCP_COUNTERS = offsets(globals(), "S_")

G_ADDRS = G_COUNTERS + 96  # how many addresses the stack has, and their words, high and low
MAX_ADDRESSES = 15
G_LISTS = G_ADDRS + 32  # touched rows, slow rows, release pairs, hash buckets follow
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
