"""A segment as it leaves: its window, its headers, and where its payload lies (kernels)."""

from __future__ import annotations

from netmem.base.checksum import csum_add, csum_fold
from netmem.base.clock import MS
from netmem.base.headers import ACK, FIN, IP_MAX, RST, SYN, EthHdr, Ip6Hdr, IpHdr, TcpHdr
from netmem.base.jit import kernel
from netmem.base.native import memcpy, store_be16, store_be32, store_u8
from netmem.base.record import address_of, field_offset
from netmem.inet.tcp.sack import sack_option
from netmem.inet.tcp.spans import span_at
from netmem.inet.tcp.tcb import MASK32, Flag, StackRecord, Tcb, seq_diff, span_of
from netmem.inet.tcp.window import select_window
from netmem.netdev.tx import SLOT_BYTES, TX_ROWS, Tx, TxQueueRecord, TxRow, tx_row

TEMPLATE = field_offset(Tcb, "template")


@kernel
def next_row(stack: StackRecord) -> int:
    """The number of the next free transmit row, -1 when all are in use."""
    queue = TxQueueRecord.at(stack.tx)
    if queue.filled - queue.completed >= TX_ROWS:
        queue.full += 1
        stack.counters.tx_full += 1
        return -1
    return queue.filled


@kernel
def slot_of(queue: TxQueueRecord, r: int) -> int:
    """Host address of the header slot of row ``r``."""
    return queue.slots + (r & (TX_ROWS - 1)) * SLOT_BYTES


@kernel
def begin_row(row: TxRow, header_len: int) -> None:
    """Headers are there, payload is not yet."""
    row.header_len = header_len
    row.payload_len = row.payload2_len = row.gso_size = 0
    row.flags = Tx.CSUM


@kernel
def tcp_header(stack: StackRecord, tcb: Tcb, seq: int, flags: int, length: int) -> int:
    """Start a segment in the next transmit row: all headers, no payload yet. The row's number, or -1."""
    r = next_row(stack)
    if r < 0:
        return -1
    queue = TxQueueRecord.at(stack.tx)
    at = slot_of(queue, r)
    memcpy(at, address_of(tcb) + TEMPLATE, tcb.template_len)
    ip, tcp = at + EthHdr.LEN, at + tcb.template_len - TcpHdr.LEN
    size = int(TcpHdr.LEN)
    stamp = (stack.now // MS + stack.ts_base) & MASK32
    if flags & SYN:
        store_be32(tcp + size, 0x02040000 | tcb.adv_mss)
        size += 4
        if tcb.flags & Flag.WSCALE:
            store_be32(tcp + size, 0x01030300 | tcb.rcv_scale)
            size += 4
        if tcb.flags & Flag.SACK:
            store_be32(tcp + size, 0x01010402)
            size += 4
    if tcb.flags & Flag.TS and flags & RST == 0:
        store_be32(tcp + size, 0x0101080A)
        store_be32(tcp + size + 4, stamp)
        store_be32(tcp + size + 8, tcb.ts_recent if flags & ACK else 0)
        size += 12
    if length == 0 and flags & (SYN | RST | FIN) == 0 and tcb.flags & Flag.SACK:
        if tcb.oq_head != 0 or tcb.dsack_start != tcb.dsack_end:
            size += sack_option(stack, tcb, tcp + size)
    store_be32(tcp + TcpHdr.SEQ, seq)
    store_be32(tcp + TcpHdr.ACK, tcb.rcv_nxt if flags & ACK else 0)
    store_u8(tcp + TcpHdr.DATAOFF, size << 2)
    store_u8(tcp + TcpHdr.FLAGS, flags)
    if flags & SYN:
        window = min(max(tcb.rcv_buf, 0), 0xFFFF)  # never scaled in a SYN
        left = max(seq_diff(tcb.rcv_adv, tcb.rcv_nxt), 0)
        window = min(window, left)
    else:
        window = select_window(stack, tcb)
    store_be16(tcp + TcpHdr.WINDOW, window)
    if tcb.flags & Flag.V6:
        store_be16(ip + Ip6Hdr.PLEN, min(size + length, IP_MAX))
    else:
        store_be16(ip + IpHdr.TOTLEN, min(IpHdr.LEN + size + length, IP_MAX))
        store_be16(ip + IpHdr.ID, stack.ip_id)
        stack.ip_id = (stack.ip_id + 1 + length // max(tcb.mss, 1)) & 0xFFFF
        store_be16(ip + IpHdr.CSUM, 0)
        store_be16(ip + IpHdr.CSUM, csum_fold(csum_add(ip, IpHdr.LEN, 0)))
    begin_row(tx_row(queue, r), tcb.template_len - TcpHdr.LEN + size)
    queue.filled += 1
    stack.counters.out_segs += 1
    if flags & ACK:
        tcb.last_ack_sent = tcb.rcv_nxt
        tcb.ack_pending = 0
        tcb.timers.delack = 0
        tcb.flags &= ~Flag.ACK_NOW
    return r


@kernel
def payload(stack: StackRecord, tcb: Tcb, r: int, offset: int, length: int) -> None:
    """Name ``length`` bytes at stream offset ``offset`` in row ``r``, as ``piece`` allowed."""
    queue = TxQueueRecord.at(stack.tx)
    row = tx_row(queue, r)
    if length > tcb.mss:
        row.gso_size = tcb.mss
    if tcb.sp_head != 0:
        i = span_at(stack, tcb, offset)
        if i != 0 and offset >= span_of(stack, i).start:
            span = span_of(stack, i)
            first = min(length, span.start + span.len - offset)
            row.payload, row.payload_len = span.io + offset - span.start, first
            if first < length:
                row.payload2, row.payload2_len = span_of(stack, span.next).io, length - first
            tcb.sp_next = i
            row.flags |= Tx.NETMEM
            return
    at = offset % tcb.sb_size
    first = min(length, tcb.sb_size - at)
    io = queue.io + tcb.sb_offset
    row.payload, row.payload_len = io + at, first
    row.payload2, row.payload2_len = io, length - first
    tcb.sb_mark = queue.filled
