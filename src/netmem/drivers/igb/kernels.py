"""The igb driver's hot paths: clean the receive ring, refill it, fill the transmit ring."""

from __future__ import annotations

from netmem.base.formats import (
    ETH_HLEN,
    IP6_HLEN,
    PROTO_TCP,
    PROTO_UDP,
    TCP_CSUM,
    TCP_DATAOFF,
    UDP_CSUM,
    csum_fold,
    pseudo_sum,
)
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load64, load_acquire, load_u8, store64, store_be16
from netmem.drivers.igb.regs import (
    RXD_DD,
    RXD_EOP,
    RXD_HDR_LEN_MASK,
    RXD_HDR_LEN_SHIFT,
    RXD_IPCS,
    RXD_IPE,
    RXD_L4CS,
    RXD_L4E,
    RXD_LEN_SHIFT,
    RXD_RXE,
    RXD_SPH,
    TX_DATA_MAX,
    TXC_IPV4,
    TXC_L4LEN_SHIFT,
    TXC_L4T_TCP,
    TXC_L4T_UDP,
    TXC_MACLEN_SHIFT,
    TXC_MSS_SHIFT,
    TXD_DD,
    TXD_DEXT,
    TXD_DTYP_CTXT,
    TXD_DTYP_DATA,
    TXD_EOP,
    TXD_IDX_SHIFT,
    TXD_IFCS,
    TXD_IXSM,
    TXD_PAYLEN_SHIFT,
    TXD_RS,
    TXD_TSE,
    TXD_TXSM,
)
from netmem.memory.kernels import pp_io_address
from netmem.memory.layout import P_POSTED
from netmem.netdev.batch import (
    B_STATUS,
    M_COUNTERS,
    M_ROWS,
    N_RX_FAULT,
    RX_L3_BAD,
    RX_L3_OK,
    RX_L4_BAD,
    RX_L4_OK,
    RX_SPLIT,
)
from netmem.netdev.kernels import gro_receive, rx_count, rx_fill_slot, rx_row
from netmem.netdev.ring import (
    L_HNETMEM,
    L_HOFFSET,
    L_NETMEM,
    L_OFFSET,
    REFILL_DONE,
    S_HDRLEN,
    S_HEAD,
    S_MASK,
    S_RING,
    S_SLOTS,
    S_TAIL,
    SLOT_WORDS,
)
from netmem.netdev.tx import (
    SLOT_BYTES,
    T_BYTES,
    T_HEAD,
    T_IO,
    T_PACKETS,
    T_SENT,
    T_SLOTS,
    T_TAIL,
    TX_CSUM,
    TX_ROWS,
    TX_UDP,
    X_FLAGS,
    X_GSO,
    X_HLEN,
    X_NDESC,
    X_P2LEN,
    X_PAY,
    X_PAY2,
    X_PLEN,
)

# A transmit ring's arena: the last contexts sent, two words each, after the ring's own words.
S_CONTEXT = 16


@inline_kernel
def rx_status(word, split):
    """RX_* of a packet from its last descriptor's status (7.1.5.2)."""
    status = RX_SPLIT if split else 0
    if word & RXD_IPCS:
        status |= RX_L3_BAD if word & RXD_IPE else RX_L3_OK
    if word & RXD_L4CS:
        status |= RX_L4_BAD if word & RXD_L4E else RX_L4_OK
    return status


@kernel
def igb_rx(q, p, a, hp, meta, rows, budget):
    """Clean up to ``budget`` packets from the ring into the batch; returns descriptors cleaned."""
    at, mask, ring = q[S_HEAD], q[S_MASK], q[S_RING]
    tail = q[S_TAIL]
    first = at
    room = rows.shape[0]
    n = meta[M_ROWS]
    packets = 0
    while packets < budget:
        # The device writes a packet's descriptors in order: take it only when its last is there.
        last = at
        word = 0
        while last < tail:
            word = load_acquire(ring + (last & mask) * 16 + 8)
            if word & RXD_DD == 0 or word & RXD_EOP:
                break
            last += 1
        if last >= tail or word & RXD_DD == 0 or n + last - at >= room:
            break
        head_row = n
        total = 0
        split = q[S_HDRLEN] != 0 and load64(ring + (at & mask) * 16) & RXD_SPH != 0
        for i in range(at, last + 1):
            info = load64(ring + (i & mask) * 16)
            size = (load64(ring + (i & mask) * 16 + 8) >> RXD_LEN_SHIFT) & 0xFFFF
            # Every descriptor of a packet repeats the header length; the first has the header.
            hlen = 0
            if i == at and q[S_HDRLEN] != 0:
                hlen = (info >> RXD_HDR_LEN_SHIFT) & RXD_HDR_LEN_MASK
                if hlen > q[S_HDRLEN]:  # overflow: the rest of the headers went with the payload
                    hlen = q[S_HDRLEN]
                    split = False
            row = rows[n]
            rx_row(q, p, a, hp, row, i, i == at, n + 1 if i < last else -1, hlen, size)
            if i == at:
                row[B_STATUS] = rx_status(word, split)
            total += hlen + size
            n += 1
        rx_count(q, split, total)
        if word & RXD_RXE:
            meta[M_COUNTERS + N_RX_FAULT] += 1
        gro_receive(meta, rows, head_row)
        packets += 1
        at = last + 1
    meta[M_ROWS] = n
    q[S_HEAD] = at
    p[P_POSTED] -= at - first
    return at - first


@kernel
def igb_refill(q, p, a, hp, ha):
    """Post buffers; REFILL_* tells which pool must be refilled first.

    The slot cleaned last stays empty. The ring needs a gap (head equal to tail means empty, 7.1.8), and
    the device may still be at that descriptor: what it writes in two steps must not hit a new address.
    """
    mask, ring = q[S_MASK], q[S_RING]
    tail, stop = q[S_TAIL], q[S_HEAD] + mask
    first = tail
    short = REFILL_DONE
    while tail < stop:
        short = rx_fill_slot(q, p, a, hp, ha, tail, stop)
        if short != REFILL_DONE:
            break
        slot = S_SLOTS + (tail & mask) * SLOT_WORDS
        desc = ring + (tail & mask) * 16
        store64(desc, pp_io_address(p, q[slot + L_NETMEM]) + q[slot + L_OFFSET])
        io_header = 0
        if q[S_HDRLEN] != 0:
            io_header = pp_io_address(hp, q[slot + L_HNETMEM]) + q[slot + L_HOFFSET]
        store64(desc + 8, io_header)
        tail += 1
    p[P_POSTED] += tail - first
    q[S_TAIL] = tail
    return short


@kernel
def igb_pending(q):
    """True when a descriptor waits to be cleaned."""
    at = q[S_HEAD]
    if at >= q[S_TAIL]:
        return False
    return load_acquire(q[S_RING] + (at & q[S_MASK]) * 16 + 8) & RXD_DD != 0


@inline_kernel
def tx_context(t, at, index, row, host):
    """Write a context descriptor at ``at`` unless the device has the same already; how many (7.2.2.4).

    Also leaves the pseudo header's sum in the TCP checksum field, where the device expects it, without
    the length when it cuts segments itself (7.2.4.6, 7.2.5.2).
    """
    ring, mask = t[S_RING], t[S_MASK]
    ip = host + ETH_HLEN
    four = load_u8(ip) >> 4 == 4
    iplen = (load_u8(ip) & 15) * 4 if four else IP6_HLEN
    tcp = ip + iplen
    l4len = (load_u8(tcp + TCP_DATAOFF) >> 4) * 4
    body = row[X_HLEN] - ETH_HLEN - iplen + row[X_PLEN] + row[X_P2LEN]
    udp = row[X_FLAGS] & TX_UDP != 0
    pseudo = pseudo_sum(ip, PROTO_UDP if udp else PROTO_TCP, 0 if row[X_GSO] > 0 else body)
    store_be16(tcp + (UDP_CSUM if udp else TCP_CSUM), csum_fold(pseudo) ^ 0xFFFF)
    lens = iplen | ETH_HLEN << TXC_MACLEN_SHIFT
    mss = row[X_GSO] if row[X_GSO] > 0 else 0
    l4 = l4len if row[X_GSO] > 0 else 0
    word = TXD_DTYP_CTXT | TXD_DEXT | (TXC_IPV4 if four else 0) | (TXC_L4T_UDP if udp else TXC_L4T_TCP)
    word |= (mss << TXC_MSS_SHIFT | l4 << TXC_L4LEN_SHIFT | index << TXD_IDX_SHIFT) << 32
    have = S_CONTEXT + 2 * index
    if t[have] == lens and t[have + 1] == word:
        return 0
    t[have], t[have + 1] = lens, word
    store64(ring + (at & mask) * 16, lens)
    store64(ring + (at & mask) * 16 + 8, word)
    return 1


@inline_kernel
def tx_data(t, at, io, size, command, olinfo, last):
    """Write data descriptors for ``size`` bytes at ``io``; how many (7.2.2.3)."""
    ring, mask = t[S_RING], t[S_MASK]
    n = 0
    while size > 0:
        piece = min(size, TX_DATA_MAX)
        size -= piece
        ends = TXD_EOP | TXD_RS if last and size == 0 else 0
        desc = ring + ((at + n) & mask) * 16
        store64(desc, io)
        store64(desc + 8, piece | command | ends | olinfo << 32)
        io += piece
        n += 1
    return n


@inline_kernel
def tx_pieces(size):
    """Data descriptors that ``size`` bytes need."""
    return (size + TX_DATA_MAX - 1) // TX_DATA_MAX


@kernel
def igb_xmit(t, meta, rows):
    """Clean what was sent and post what waits; returns descriptors posted.

    As in the receive ring the descriptor that was completed last is never written anew.
    """
    ring, mask = t[S_RING], t[S_MASK]
    head = meta[T_HEAD]
    while head < meta[T_SENT]:
        end = t[S_HEAD] + rows[head & (TX_ROWS - 1), X_NDESC]
        # The low half of the written-back word is reserved, the high half is the status (7.2.2.5).
        if (load_acquire(ring + ((end - 1) & mask) * 16 + 8) >> 32) & TXD_DD == 0:
            break
        t[S_HEAD] = end
        head += 1
    meta[T_HEAD] = head
    at = t[S_TAIL]
    first = at
    sent = meta[T_SENT]
    while sent < meta[T_TAIL]:
        row = rows[sent & (TX_ROWS - 1)]
        need = 2 + tx_pieces(row[X_PLEN]) + tx_pieces(row[X_P2LEN])
        if at - t[S_HEAD] + need > mask:
            break
        start = at
        slot = (sent & (TX_ROWS - 1)) * SLOT_BYTES
        payload = row[X_PLEN] + row[X_P2LEN]
        command = TXD_DTYP_DATA | TXD_DEXT | TXD_IFCS
        olinfo = (row[X_HLEN] + payload) << TXD_PAYLEN_SHIFT
        if row[X_FLAGS] & TX_CSUM:
            index = 1 if row[X_GSO] > 0 else 0
            at += tx_context(t, at, index, row, meta[T_SLOTS] + slot)
            if row[X_GSO] > 0:
                command |= TXD_TSE
                olinfo = payload << TXD_PAYLEN_SHIFT | TXD_IXSM
            olinfo |= TXD_TXSM | index << TXD_IDX_SHIFT
        at += tx_data(t, at, meta[T_IO] + slot, row[X_HLEN], command, olinfo, payload == 0)
        at += tx_data(t, at, row[X_PAY], row[X_PLEN], command, olinfo, row[X_P2LEN] == 0)
        at += tx_data(t, at, row[X_PAY2], row[X_P2LEN], command, olinfo, True)
        row[X_NDESC] = at - start
        meta[T_PACKETS] += 1
        meta[T_BYTES] += row[X_HLEN] + payload
        sent += 1
    meta[T_SENT] = sent
    t[S_TAIL] = at
    return at - first
