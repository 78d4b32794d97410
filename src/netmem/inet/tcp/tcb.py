"""The records of a TCP: transmission control blocks, entries of queues, the stack's own.

Names of a block's fields are RFC 9293's. Sequence numbers are kept masked to 32 bits; ``seq_lt`` and its kin
are the only comparison.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Annotated

from netmem.base.jit import inline_kernel
from netmem.base.record import Items, Record, address_of, i32, i64

MASK32 = 0xFFFFFFFF
MAX_QUEUES = 16
MAX_ADDRESSES = 15
LIST_ROOM = 4096  # packets of a batch, connections that it concerns
RELEASE_ROOM = 16384
SACK_RECENT = 4
TEMPLATE_BYTES = 80


class TcpState(enum.IntEnum):
    """RFC 9293, section 3.3.2."""

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

    @property
    def title(self) -> str:
        """As the RFC writes it, FIN-WAIT-1."""
        return self.name.replace("_", "-")


# Every legal change of state (RFC 9293, figure 5 and section 3.10), with what causes it.
TRANSITIONS: dict[tuple[int, int], str] = {
    (TcpState.CLOSED, TcpState.SYN_SENT): "active OPEN: SYN sent",
    (TcpState.CLOSED, TcpState.SYN_RECEIVED): "SYN for a listener, whose state LISTEN is: SYN, ACK sent",
    (TcpState.SYN_SENT, TcpState.ESTABLISHED): "SYN, ACK received",
    (TcpState.SYN_SENT, TcpState.SYN_RECEIVED): "SYN received: both open at once",
    (TcpState.SYN_SENT, TcpState.CLOSED): "CLOSE, RST, or no answer",
    (TcpState.SYN_RECEIVED, TcpState.ESTABLISHED): "ACK of our SYN received",
    (TcpState.SYN_RECEIVED, TcpState.FIN_WAIT_1): "ACK of our SYN received, after CLOSE: FIN sent",
    (TcpState.SYN_RECEIVED, TcpState.CLOSED): "RST, no answer, or the backlog is full",
    (TcpState.ESTABLISHED, TcpState.FIN_WAIT_1): "CLOSE: FIN sent",
    (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT): "FIN received",
    (TcpState.ESTABLISHED, TcpState.CLOSED): "RST, ABORT, or timeout",
    (TcpState.FIN_WAIT_1, TcpState.FIN_WAIT_2): "ACK of our FIN received",
    (TcpState.FIN_WAIT_1, TcpState.CLOSING): "FIN received before the ACK of ours",
    (TcpState.FIN_WAIT_1, TcpState.TIME_WAIT): "FIN received with the ACK of ours",
    (TcpState.FIN_WAIT_1, TcpState.CLOSED): "RST, ABORT, or timeout",
    (TcpState.FIN_WAIT_2, TcpState.TIME_WAIT): "FIN received",
    (TcpState.FIN_WAIT_2, TcpState.CLOSED): "RST, ABORT, or the peer never closes",
    (TcpState.CLOSE_WAIT, TcpState.LAST_ACK): "CLOSE: FIN sent",
    (TcpState.CLOSE_WAIT, TcpState.CLOSED): "RST, ABORT, or timeout",
    (TcpState.CLOSING, TcpState.TIME_WAIT): "ACK of our FIN received",
    (TcpState.CLOSING, TcpState.CLOSED): "RST, ABORT, or timeout",
    (TcpState.LAST_ACK, TcpState.CLOSED): "ACK of our FIN received, RST, ABORT, or timeout",
    (TcpState.TIME_WAIT, TcpState.CLOSED): "twice the longest segment life is over, a new SYN, or ABORT",
}


class Flag(enum.IntEnum):
    """Bits of Tcb.flags."""

    TS = 1  # timestamps agreed on
    ACK_NOW = 2
    FIN_QUEUED = 4  # the application closed its direction
    FIN_SENT = 8
    FIN_SEEN = 16  # the peer's FIN was seen, perhaps with data before it missing
    RECOVERY = 32  # RFC 6675: from the first loss until RECOVER is acknowledged
    NODELAY = 64
    STARVED = 128  # the window is smaller than it should be for want of buffers
    ORPHAN = 256  # no socket any more
    LIMITED = 512  # the last output was held back by the congestion window
    MAC = 1024  # the template has the next hop's address
    WSCALE = 2048  # window scaling offered, then agreed on
    SACK = 4096  # selective acknowledgements offered, then agreed on
    LOSS = 8192  # after a retransmission timeout
    REORDERED = 16384  # the path was seen to reorder
    TLP_RETRANS = 32768  # the tail loss probe under way sent data again
    KEEPALIVE = 65536
    V6 = 131072
    ABORTED = 524288  # the RST waits for a transmit row
    FILLING = 262144  # a caller was handed a piece of the send buffer to fill (send_window)


class EntryKind(enum.IntEnum):
    """What a receive entry is."""

    COPY = 0  # readable data of an unbound queue
    LINEAR = 1  # readable bytes that came with the headers on a bound queue
    FRAG = 2  # payload of a bound queue: handed out by token
    DGRAM = 3  # the head of a datagram


class Mark(enum.IntEnum):
    """Bits of Sent.marks."""

    SACKED = 1
    LOST = 2
    RETRANS = 4  # sent again, and that not taken for lost
    EVER = 8  # sent more than once: its round trip means nothing without timestamps
    FIN = 16


class Timers(Record):
    """When timers run out, ns, 0: not running. One cache line, so that a scan touches little."""

    rto: i64
    delack: i64
    persist: i64
    wait: i64  # TIME-WAIT, FIN-WAIT-2 of an orphan
    reo: i64  # RACK's reordering timer
    pto: i64  # tail loss probe
    keep: i64  # keepalive
    xmit: i64  # what found no transmit row tries again


TIMERS = 8


class Tcb(Record):
    """A transmission control block."""

    # Identity. Addresses are two words, of which the high ones stand with the template.
    state: i64
    laddr: i64
    raddr: i64
    ports: i64  # remote port << 16 | local port: the word as it stands in a segment from the peer
    next: i64  # hash chain, row + 1
    flags: i64  # Flag bits
    error: i64  # errno for the socket, 0: none
    listener: i64  # id of the listener that this connection comes from, 0: none
    timers: Annotated[Timers, Timers]
    # Send sequence space.
    snd_una: i64
    snd_nxt: i64  # nothing beyond was sent: what is sent again has an entry of its own
    snd_wnd: i64
    snd_wl1: i64
    snd_wl2: i64
    snd_scale: i64  # Snd.Wind.Shift
    mss: i64  # payload bytes of a full segment that we send
    iss: i64
    max_snd_wnd: i64
    srtt: i64  # ns
    rttvar: i64
    rto: i64
    backoff: i64
    snd_sml: i64  # end of the last segment shorter than MSS (Minshall's variant of Nagle)
    user_retries: i64  # retransmissions since progress
    # Congestion control (RFC 5681, 9438) and recovery (RFC 6675, 8985, 2883).
    cwnd: i64
    ssthresh: i64
    cubic_wmax: i64
    cubic_epoch: i64  # ns, 0: none yet
    cubic_k: i64  # ns
    cubic_west: i64
    dupacks: i64
    recover: i64  # recovery ends when this is acknowledged
    sacked: i64  # bytes in flight that the peer has
    lost: i64  # bytes in flight that are taken for lost
    retrans: i64  # of those: sent again and not taken for lost anew
    rack_time: i64  # of the segment sent last among those that arrived: when, its end, its round trip
    rack_end: i64
    rack_rtt: i64
    rack_fack: i64  # highest sequence number that arrived
    rack_mult: i64  # of the reordering window, in quarters of MIN_RTT
    rack_persist: i64  # recoveries for which RACK_MULT stays
    rack_round: i64  # SND_NXT when a D-SACK last widened the window
    min_rtt: i64
    tlp_end: i64  # SND_NXT at the time of the tail loss probe, -1: none is under way
    # Send buffer: a ring in the device's transmit memory, and spans of it that stand for device memory.
    sb_offset: i64  # in the device's transmit memory
    sb_size: i64
    sb_mark: i64  # count of transmit rows, before which one may name it
    sb_head: i64  # stream offset of SND_UNA
    sb_tail: i64  # stream offset behind the last byte written
    tq_head: i64  # what is in flight: a chain of Sent
    tq_tail: i64
    sp_head: i64  # spans: a chain of Span
    sp_tail: i64
    sp_next: i64  # hint: the span of what is sent next
    rtt_syn: i64  # when our SYN was sent, 0: more than once
    # Receive sequence space.
    rcv_nxt: i64
    rcv_adv: i64  # right edge that was advertised
    rcv_scale: i64
    irs: i64
    rcv_buf: i64  # most bytes to hold
    rcv_mss: i64  # payload bytes of a full segment that we expect
    ts_recent: i64
    ts_recent_at: i64  # ns
    ack_pending: i64  # bytes received since the last acknowledgement
    last_ack_sent: i64
    last_in: i64  # when the peer was last heard of, ns
    dsack_start: i64  # duplicate to report (RFC 2883), both equal: none
    dsack_end: i64
    sack_recent: Annotated[Items[int], ctypes.c_int64 * SACK_RECENT]  # pieces of blocks that changed last
    # Receive queue and out-of-order queue: chains of entries.
    rq_head: i64
    rq_tail: i64
    rq_bytes: i64
    rq_bufs: i64
    oq_head: i64
    oq_tail: i64
    oq_bytes: i64
    oq_bufs: i64
    # Share of the pool.
    queue: i64  # receive queue that the flow arrives on
    pledged: i64  # buffers kept for what the advertised window lets in (``window``)
    per_buffer: i64  # payload bytes of a buffer, as measured, at least per_segment
    slow_in: i64  # batch in which the slow path took this connection over
    touched: i64  # batch in which it was last touched
    active: i64  # 1: on the list of StackRecord.active
    bytes_in: i64
    bytes_out: i64
    adv_mss: i64  # the MSS option we send
    fin_seq: i64  # of the peer's FIN, once seen
    tokens_fd: i64  # descriptor of the socket's token arena, 0: no socket
    # Options of the socket, and limits.
    keep_idle: i64  # ns
    keep_interval: i64
    keep_count: i64
    keep_probes: i64  # sent without an answer
    user_timeout: i64  # ns that sent data may stay unacknowledged (RFC 5482), 0: as long as retries last
    stuck_at: i64  # when what is not acknowledged yet was first waited for, ns
    challenged_at: i64  # when a challenge ACK was last sent, ns
    path_mtu: i64
    next_hop: i64
    next_hop_hi: i64
    laddr_hi: i64
    raddr_hi: i64
    template_len: i64  # of the template
    template: Annotated[Items[int], ctypes.c_uint8 * TEMPLATE_BYTES]  # Ethernet, IP, TCP without options
    user: i64  # buffers that the application holds by token
    demand: i64  # bytes of window that it makes sense to keep: grows and shrinks with what is used
    used: i64  # bytes received since DEMAND last changed
    used_at: i64  # ... which was then, ns
    data_at: i64  # when data last came in sequence, ns
    per_segment: i64  # payload bytes of a buffer when segments are full, and each has its own
    took_from: i32  # bytes_in when it was last worked out what a buffer holds, buffers taken since then
    took_buffers: i32


WAITS = 24  # up to eight seconds
TCB_SHIFT = 10  # of its size: a number is found with a shift
assert ctypes.sizeof(Tcb) == 1 << TCB_SHIFT


class Entry(Record):
    """A piece of payload in stream order."""

    next: i64  # entry behind it, 0: none
    seq: i64
    len: i64
    netmem: i64
    offset: i64
    pool: i64  # handle
    kind: i64  # EntryKind
    shared: i32  # batch.Shared: whether others may write to the rest of its buffer
    came: i32  # when it came, units of 1024 ns, modulo 2^32


class Sent(Record):
    """What is in flight of one transmit row, in an Entry's place; a FIN counts one."""

    next: i64
    seq: i64
    len: i64
    time: i64  # when it was last sent, ns
    marks: i64  # Mark bits
    _unused: Annotated[Items[int], ctypes.c_int64 * 3]


class Span(Record):
    """Stream bytes that lie in device memory, in an Entry's place."""

    next: i64
    start: i64  # stream offset
    len: i64
    io: i64  # I/O address
    call: i64  # number of the sendmsg_devmem() call, unique in the stack
    mark: i64  # transmit rows up to here may name it
    _unused: Annotated[Items[int], ctypes.c_int64 * 2]


class Account(Record):
    """A receive queue's pool, as connections draw on it (``window``). Buffers, where nothing else is said."""

    available: i64  # buffers that can still be received into, those of the batch at hand among them
    pledged: i64  # buffers pledged to connections
    reserve: i64  # buffers kept for acknowledgements and probes
    buf_len: i64  # bytes
    ooo_most: i64  # of out-of-order data, of all connections together
    ooo: i64  # how many there are
    pool: i64  # handle of the queue's payload pool, and the address of its PoolRecord
    pool_at: i64
    host: i64  # host address of its memory, 0: unreadable
    shift: i64  # log2 of a netmem's bytes
    header_pool: i64  # handle of its header pool, 0: none
    header_host: i64
    header_shift: i64
    grant: i64  # buffers that an idle connection keeps
    total: i64  # buffers of the pool, whoever has them
    by_token: i64  # 1: payload is handed out by token


class InetCounters(Record):
    """What a stack counts."""

    in_segs: i64
    in_fast: i64
    in_slow: i64
    out_segs: i64
    out_acks: i64
    out_rst: i64
    retrans: i64
    rto: i64
    fast_retrans: i64
    delayed_acks: i64
    ooo_queued: i64
    ooo_pruned: i64
    dup_dropped: i64  # data that was there already
    beyond_window: i64
    pool_low: i64  # data refused to keep the last buffers for control segments
    paws: i64
    no_socket: i64
    not_ours: i64
    syn_dropped: i64
    backlog_full: i64
    table_full: i64
    passive: i64
    active: i64
    resets_in: i64
    probes: i64
    window_updates: i64
    challenge_ack: i64
    entries_empty: i64
    tx_full: i64
    bad_arp: i64
    arp_in: i64
    arp_out: i64
    icmp_echo: i64
    icmp_dropped: i64
    time_wait_reused: i64
    timeouts: i64
    bad_options: i64
    sack_in: i64  # segments with selective acknowledgements
    dsack_in: i64
    dsack_out: i64
    loss_rack: i64  # segments taken for lost by time, not by a timeout
    loss_probes: i64
    keepalives: i64
    bad_ack: i64  # outside what RFC 5961, section 5, allows
    pmtu: i64
    icmp_errors: i64
    nd_in: i64
    nd_out: i64
    bad_nd: i64
    udp_in: i64
    udp_no_socket: i64
    udp_full: i64
    udp_out: i64
    zc_done: i64  # sendmsg_devmem() calls that were completed
    over_share: i64  # data refused: the connection has its share of the pool's buffers
    coalesced: i64  # pieces that lay behind others in their buffers
    merged: i64  # short pieces that were copied behind others, into memory that is readable
    cookies_out: i64  # SYN cookies sent, come back, and come back wrong (RFC 4987)
    cookies_in: i64
    cookies_bad: i64
    martian: i64  # from an address of ours
    left_queue: i64  # flows that came to a queue without the memory that they had been bound to


class Address(Record):
    """An IP address in two words."""

    hi: i64
    lo: i64


class Release(Record):
    """A netmem for Python to put back."""

    netmem: i64
    pool: i64  # handle


class StackRecord(Record):
    """A stack's own state, and where its tables are."""

    now: i64  # ns
    tcbs: i64  # address of Tcb 0
    rows: i64  # Tcbs ever used
    buckets: i64  # address: a word for each bucket of the hash table, number + 1 of its first Tcb
    bucket_mask: i64
    entries: i64  # address of Entry 0
    entries_used: i64  # Entries ever used: their memory is not touched before
    free_entry: i64  # the first of a chain of those given back
    free_entries: i64  # those, and those never used
    tx: i64  # address of the device's TxQueueRecord
    sockets: i64  # address of UdpSocket 0
    # The batch at hand.
    batch: i64  # its number
    queue: i64  # that it came by
    by_token: i64  # 1: the queue's data is handed out by token
    touched: i64  # Tcbs that it concerns, and a word for each: its number
    touched_list: i64
    active: i64  # Tcbs that something happened to since ``activity`` asked, -1: nobody asks
    active_list: i64  # address: a word for each, its number
    slow: i64  # packets that the fast path left, and a word for each: its row
    slow_list: i64
    releases: i64  # netmems to put back, and the address of Release 0
    release_list: i64
    # Timers, ns.
    timer: i64  # no timer runs out before this
    delack_ns: i64
    reclaim_at: i64  # when pledges are looked through next
    reap_at: i64  # when pools that came to their end are looked for next
    prune_at: i64  # when out-of-order queues are looked through for stale ones next
    starved: i64  # connections with Flag.STARVED
    turn: i64  # Tcb that is told of a bigger window first
    ip_id: i64
    ts_base: i64
    zc_head: i64  # spans that were acknowledged or given up, until the NIC is done with them
    zc_tail: i64
    addresses_used: i64
    addresses: Annotated[Items[Address], Address * MAX_ADDRESSES]
    accounts: Annotated[Items[Account], Account * MAX_QUEUES]
    counters: Annotated[InetCounters, InetCounters]
    timed: i64  # 1: count in ``waits`` how long frags waited for the application; somebody looks
    waits: Annotated[Items[int], ctypes.c_int64 * WAITS]  # by the bits of their units of 1024 ns


@inline_kernel
def tcb_of(stack: StackRecord, c: int) -> Tcb:
    """Transmission control block ``c``."""
    return Tcb.nth(stack.tcbs, c)


@inline_kernel
def number_of(stack: StackRecord, tcb: Tcb) -> int:
    """A block's number."""
    return (address_of(tcb) - stack.tcbs) >> TCB_SHIFT


@inline_kernel
def entry_of(stack: StackRecord, i: int) -> Entry:
    """Entry ``i``, of payload."""
    return Entry.nth(stack.entries, i)


@inline_kernel
def sent_of(stack: StackRecord, i: int) -> Sent:
    """Entry ``i``, of what is in flight."""
    return Sent.nth(stack.entries, i)


@inline_kernel
def span_of(stack: StackRecord, i: int) -> Span:
    """Entry ``i``, of device memory to send."""
    return Span.nth(stack.entries, i)


@inline_kernel
def account_of(stack: StackRecord, tcb: Tcb) -> Account:
    """The account of a connection's queue."""
    return stack.accounts[tcb.queue]


@inline_kernel
def seq_lt(a: int, b: int) -> bool:
    """a < b in sequence space."""
    return ((a - b) & MASK32) > 0x7FFFFFFF


@inline_kernel
def seq_le(a: int, b: int) -> bool:
    """a <= b in sequence space."""
    return ((b - a) & MASK32) <= 0x7FFFFFFF


@inline_kernel
def seq_diff(a: int, b: int) -> int:
    """a - b in sequence space, signed."""
    d = (a - b) & MASK32
    return d - 0x100000000 if d > 0x7FFFFFFF else d
