"""The igb driver's hot paths: clean the receive ring, refill it, fill the transmit ring."""

from __future__ import annotations

from netmem.base.checksum import csum_fold, pseudo_sum
from netmem.base.headers import PROTO_TCP, PROTO_UDP, EthHdr, Ip6Hdr, TcpHdr, UdpHdr
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load_acquire, load_u8, store_be16
from netmem.base.record import address_of
from netmem.drivers.igb import regs as r
from netmem.drivers.igb.regs import Context, IgbTxRing, Rxd, RxDesc, Txd, TxDesc
from netmem.memory.kernels import pp_io_address
from netmem.memory.layout import PoolRecord
from netmem.netdev.batch import BatchRecord, Rx, RxRow, row_of
from netmem.netdev.kernels import (
    gro_receive,
    rx_count,
    rx_fill_header,
    rx_fill_payload,
    rx_header,
    rx_no_header,
    rx_payload,
    rx_row,
    rx_unsplit,
)
from netmem.netdev.ring import Refill, RxRingRecord, TxRingRecord, slot_of
from netmem.netdev.tx import SLOT_BYTES, TX_ROWS, Tx, TxQueueRecord, TxRow, tx_row

DOORBELL = 64  # descriptors worth a tail write: each costs the device (QEMU's thread) as much as 10 packets


@inline_kernel
def rx_desc(ring: RxRingRecord, i: int) -> RxDesc:
    """Descriptor ``i``."""
    return RxDesc.nth(ring.desc, i & ring.mask)


@inline_kernel
def rx_word(ring: RxRingRecord, i: int) -> int:
    """Length and status of descriptor ``i``, before anything else of it is read."""
    return load_acquire(address_of(rx_desc(ring, i)) + r.RXD_STATUS)


@inline_kernel
def rx_status(word: int, split: bool) -> int:
    """Rx bits of a packet from its last descriptor's status (7.1.5.2)."""
    status = 0
    if split:
        status |= Rx.SPLIT
    if word & Rxd.IPCS:
        status |= Rx.L3_BAD if word & Rxd.IPE else Rx.L3_OK
    if word & Rxd.L4CS:
        status |= Rx.L4_BAD if word & Rxd.L4E else Rx.L4_OK
    return status


@inline_kernel
def igb_row(ring: RxRingRecord, row: RxRow, i: int, first: bool, more: int, hlen: int, size: int) -> None:
    """Fill a row from descriptor ``i``: a packet's first has its header, each has a payload buffer."""
    rx_row(ring, row, more)
    if ring.header_len == 0 and first:
        rx_unsplit(ring, row, i, size)
        return
    rx_payload(ring, row, i, size)
    if first:
        rx_header(ring, row, i, hlen)
    else:
        rx_no_header(row)


@kernel
def igb_rx(ring_at: int, batch_at: int, budget: int) -> int:
    """Clean up to ``budget`` packets from the ring into the batch; returns descriptors cleaned."""
    ring, batch = RxRingRecord.at(ring_at), BatchRecord.at(batch_at)
    at, tail = ring.next_to_clean, ring.next_to_use
    first = at
    n = batch.used
    packets = 0
    while packets < budget:
        # The device writes a packet's descriptors in order: take it only when its last is there.
        last = at
        word = 0
        while last < tail:
            word = rx_word(ring, last)
            if word & Rxd.DD == 0 or word & Rxd.EOP:
                break
            last += 1
        if last >= tail or word & Rxd.DD == 0 or n + last - at >= batch.room:
            break
        head_row = n
        total = 0
        split = ring.header_len != 0 and rx_desc(ring, at).packet & r.RXD_SPH != 0
        for i in range(at, last + 1):
            desc, row = rx_desc(ring, i), row_of(batch, n)
            size = (desc.header >> r.RXD_LEN_SHIFT) & 0xFFFF
            # Every descriptor of a packet repeats the header length; the first has the header.
            hlen = 0
            if i == at and ring.header_len != 0:
                hlen = (desc.packet >> r.RXD_HDR_LEN_SHIFT) & r.RXD_HDR_LEN_MASK
                if hlen > ring.header_len:  # overflow: the rest of the headers went with the payload
                    hlen = ring.header_len
                    split = False
            igb_row(ring, row, i, i == at, n + 1 if i < last else -1, hlen, size)
            if i == at:
                row.status = rx_status(word, split)
            total += hlen + size
            n += 1
        rx_count(ring, split, total)
        if word & Rxd.RXE:
            batch.counters.rx_fault += 1
        gro_receive(batch, head_row)
        packets += 1
        at = last + 1
    batch.used = n
    ring.next_to_clean = at
    PoolRecord.at(ring.pool).posted -= at - first
    return at - first


@kernel
def igb_refill(ring_at: int) -> int:
    """Post buffers; Refill tells which pool must be refilled first.

    The slot cleaned last stays empty. The ring needs a gap (head equal to tail means empty, 7.1.8), and
    the device may still be at that descriptor: what it writes in two steps must not hit a new address.
    """
    ring = RxRingRecord.at(ring_at)
    pool, header_pool = PoolRecord.at(ring.pool), PoolRecord.at(ring.header_pool)
    tail, stop = ring.next_to_use, ring.next_to_clean + ring.mask
    first = tail
    short = int(Refill.DONE)
    while tail < stop:
        short = rx_fill_payload(ring, tail, stop)
        if short == Refill.DONE:
            short = rx_fill_header(ring, tail)
        if short != Refill.DONE:
            break
        slot, desc = slot_of(ring, tail), rx_desc(ring, tail)
        desc.packet = pp_io_address(pool, slot.netmem) + slot.offset
        desc.header = 0
        if ring.header_len != 0:
            desc.header = pp_io_address(header_pool, slot.header_netmem) + slot.header_offset
        tail += 1
    pool.posted += tail - first
    ring.next_to_use = tail
    return short


@kernel
def igb_post(ring_at: int) -> int:
    """1 when what the device was not told of yet is worth a tail write."""
    ring = RxRingRecord.at(ring_at)
    return 1 if ring.next_to_use - ring.tail >= min(DOORBELL, (ring.mask + 1) >> 2) else 0


@kernel
def igb_pending(ring_at: int) -> bool:
    """True when a descriptor waits to be cleaned."""
    ring = RxRingRecord.at(ring_at)
    at = ring.next_to_clean
    return at < ring.next_to_use and rx_word(ring, at) & Rxd.DD != 0


@inline_kernel
def tx_desc(ring: TxRingRecord, i: int) -> TxDesc:
    """Descriptor ``i``."""
    return TxDesc.nth(ring.desc, i & ring.mask)


@inline_kernel
def tx_context(tx: IgbTxRing, at: int, index: int, row: TxRow, host: int) -> int:
    """Write a context descriptor at ``at`` unless the device has the same already; how many (7.2.2.4).

    Also leaves the pseudo header's sum in the TCP checksum field, where the device expects it, without
    the length when it cuts segments itself (7.2.4.6, 7.2.5.2).
    """
    ip = host + EthHdr.LEN
    four = load_u8(ip) >> 4 == 4
    iplen = (load_u8(ip) & 15) * 4 if four else Ip6Hdr.LEN
    tcp = ip + iplen
    l4len = (load_u8(tcp + TcpHdr.DATAOFF) >> 4) * 4
    body = row.header_len - EthHdr.LEN - iplen + row.payload_len + row.payload2_len
    udp = row.flags & Tx.UDP != 0
    pseudo = pseudo_sum(ip, PROTO_UDP if udp else PROTO_TCP, 0 if row.gso_size > 0 else body)
    store_be16(tcp + (int(UdpHdr.CSUM) if udp else int(TcpHdr.CSUM)), csum_fold(pseudo) ^ 0xFFFF)
    lengths = iplen | EthHdr.LEN << r.CONTEXT_MACLEN_SHIFT
    mss = row.gso_size if row.gso_size > 0 else 0
    l4 = l4len if row.gso_size > 0 else 0
    command = Txd.DTYP_CTXT | Txd.DEXT | (Context.L4T_UDP if udp else Context.L4T_TCP)
    if four:
        command |= Context.IPV4
    command |= (mss << r.CONTEXT_MSS_SHIFT | l4 << r.CONTEXT_L4LEN_SHIFT | index << r.TXD_IDX_SHIFT) << 32
    have = tx.contexts[index]
    if have.lengths == lengths and have.command == command:
        return 0
    have.lengths, have.command = lengths, command
    desc = tx_desc(tx.ring, at)
    desc.address, desc.command = lengths, command
    return 1


@inline_kernel
def tx_data(ring: TxRingRecord, at: int, io: int, size: int, command: int, olinfo: int, last: bool) -> int:
    """Write data descriptors for ``size`` bytes at ``io``; how many (7.2.2.3)."""
    n = 0
    while size > 0:
        piece = min(size, r.TX_DATA_MAX)
        size -= piece
        desc = tx_desc(ring, at + n)
        desc.address = io
        desc.command = piece | command | olinfo << 32
        if last and size == 0:
            desc.command |= Txd.EOP | Txd.RS
        io += piece
        n += 1
    return n


@inline_kernel
def tx_pieces(size: int) -> int:
    """Data descriptors that ``size`` bytes need."""
    return (size + r.TX_DATA_MAX - 1) // r.TX_DATA_MAX


@kernel
def igb_xmit(tx_at: int) -> int:
    """Clean what was sent and post what waits; returns descriptors posted.

    As in the receive ring the descriptor that was completed last is never written anew.
    """
    tx = IgbTxRing.at(tx_at)
    ring = tx.ring
    queue = TxQueueRecord.at(ring.queue)
    if queue.filled == queue.completed:
        return 0
    queue = TxQueueRecord.at(ring.queue)
    while queue.completed < queue.sent:
        end = ring.next_to_clean + tx_row(queue, queue.completed).descriptors
        # The low half of the written-back word is reserved, the high half is the status (7.2.2.5).
        word = load_acquire(address_of(tx_desc(ring, end - 1)) + r.TXD_STATUS)
        if (word >> 32) & Txd.DD == 0:
            break
        ring.next_to_clean = end
        queue.completed += 1
    at = ring.next_to_use
    first = at
    while queue.sent < queue.filled:
        row = tx_row(queue, queue.sent)
        need = 2 + tx_pieces(row.payload_len) + tx_pieces(row.payload2_len)
        if at - ring.next_to_clean + need > ring.mask:
            break
        start = at
        slot = (queue.sent & (TX_ROWS - 1)) * SLOT_BYTES
        payload = row.payload_len + row.payload2_len
        command = Txd.DTYP_DATA | Txd.DEXT | Txd.IFCS
        olinfo = (row.header_len + payload) << r.TXD_PAYLEN_SHIFT
        if row.flags & Tx.CSUM:
            index = 1 if row.gso_size > 0 else 0
            at += tx_context(tx, at, index, row, queue.slots + slot)
            if row.gso_size > 0:
                command |= Txd.TSE
                olinfo = payload << r.TXD_PAYLEN_SHIFT | Txd.IXSM
            olinfo |= Txd.TXSM | index << r.TXD_IDX_SHIFT
        at += tx_data(ring, at, queue.io + slot, row.header_len, command, olinfo, payload == 0)
        at += tx_data(ring, at, row.payload, row.payload_len, command, olinfo, row.payload2_len == 0)
        at += tx_data(ring, at, row.payload2, row.payload2_len, command, olinfo, True)
        row.descriptors = at - start
        queue.packets += 1
        queue.bytes += row.header_len + payload
        queue.sent += 1
    ring.next_to_use = at
    return at - first
