"""The software NIC's data path: frames to descriptors and back. It knows addresses only.

``bar`` holds the registers (``regs``), ``d`` what the device keeps for itself, ``maps`` the DMA
mappings (I/O address, length, host address, direction).
"""

from __future__ import annotations

from netmem.base.formats import (
    ETH_HLEN,
    FIN,
    IP6_HLEN,
    IP6_PLEN,
    IP_CSUM,
    IP_ID,
    IP_PROTO,
    IP_TOTLEN,
    PROTO_TCP,
    PROTO_UDP,
    PSH,
    TCP_CSUM,
    TCP_FLAGS,
    TCP_SEQ,
    UDP_CSUM,
    csum_add,
    csum_fold,
    ip6_upper,
    pseudo_sum,
)
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import (
    load64,
    load_acquire,
    load_be16,
    load_be32,
    load_u8,
    memcpy,
    store64,
    store_be16,
    store_be32,
    store_release,
    store_u8,
)
from netmem.hw.softnic.look import look, payload_piece
from netmem.hw.softnic.regs import (
    C_DMA_FAULT,
    C_RX_BYTES,
    C_RX_DISABLED,
    C_RX_FRAMES,
    C_RX_NO_DESC,
    C_RX_OVERSIZE,
    C_RX_PAUSED,
    C_RX_RUNT,
    C_TX_BAD_DESC,
    C_TX_BYTES,
    C_TX_FRAMES,
    HDS_ON,
    Q_BUFLEN,
    Q_BYTES,
    Q_DROPS,
    Q_HDRLEN,
    Q_HDS,
    Q_HEAD,
    Q_MERGE,
    Q_PACKETS,
    Q_SPLIT_HIT,
    Q_SPLIT_MISS,
    Q_STATE,
    Q_TAIL,
    R_COUNTERS,
    R_MTU,
    R_PAUSE_NS,
    R_RXQ,
    R_TXQ,
    RXD_HASH,
    RXD_HDR,
    RXD_PKT,
    RXD_STATUS,
    RXQ_STRIDE,
    RXS_DD,
    RXS_EOP,
    RXS_FAULT,
    RXS_HBO,
    RXS_SPH,
    STATE_FAULT,
    TX_MAX_DESC,
    TXC_CSUM,
    TXC_EOP,
    TXC_TSO,
    TXD_ADDR,
    TXD_LEN,
    TXD_META,
    TXD_STATUS,
    TXS_DD,
)
from netmem.hw.softnic.state import (
    D_LAST_MAP,
    D_NMAPS,
    D_PAUSED_AT,
    D_RXQ,
    D_STRIDE,
    D_TX_DONE,
    D_TXQ,
    DQ_DRY,
    DQ_FETCH,
    DQ_HEAD,
    DQ_MASK,
    DQ_RING,
)
from netmem.hw.wire import (
    F_DONE,
    F_FLAGS,
    F_GSO,
    F_HASH,
    F_HDR,
    F_HLEN,
    F_L3,
    F_L4,
    F_NDESC,
    F_P2LEN,
    F_PAY,
    F_PAY2,
    F_PLEN,
    F_QUEUE,
    F_SEEN,
    F_SEGS,
    F_SPLIT,
    F_STATUS,
    F_TOTAL,
    F_TXQ,
    FQ_FRAMES,
    FQ_HEAD,
    FQ_TAIL,
    FRAME_NEEDS_CSUM,
)

IP_MAX = 65535
TO_DEVICE, FROM_DEVICE = 1, 2


@kernel
def translate(d, maps, io, n, direction):
    """Host address of ``n`` bytes at an I/O address, 0 when nobody mapped them so."""
    last = d[D_LAST_MAP]
    for i in range(-1, d[D_NMAPS]):
        m = last if i < 0 else i
        if m < d[D_NMAPS] and maps[m, 0] <= io and io + n <= maps[m, 0] + maps[m, 1]:
            if maps[m, 3] != 0 and maps[m, 3] != direction:
                return 0
            d[D_LAST_MAP] = m
            return maps[m, 2] + io - maps[m, 0]
    return 0


@kernel
def payload_copy(row, offset, n, dst):
    """Copy ``n`` payload bytes from ``offset`` of a frame, from up to three pieces."""
    for piece in range(3):
        at, size = payload_piece(row, piece)
        if offset < size:
            take = min(n, size - offset)
            if take > 0:
                memcpy(dst, at + offset, take)
                dst += take
                n -= take
            offset = 0
        else:
            offset -= size
        if n == 0:
            break


@kernel
def patch_segment(hdr, l3, l4, header, done, size, index, last):
    """Make a copied header that of segment ``index``: lengths, IP id, sequence, FIN and PSH."""
    ip = hdr + l3
    if load_u8(ip) >> 4 == 4:
        store_be16(ip + IP_TOTLEN, header - l3 + size)
        store_be16(ip + IP_ID, load_be16(ip + IP_ID) + index)
        store_be16(ip + IP_CSUM, 0)
        store_be16(ip + IP_CSUM, csum_fold(csum_add(ip, (load_u8(ip) & 15) * 4, 0)))
    else:
        store_be16(ip + IP6_PLEN, header - l3 + size - IP6_HLEN)
    tcp = hdr + l4
    store_be32(tcp + TCP_SEQ, load_be32(tcp + TCP_SEQ) + done)
    if not last:
        store_u8(tcp + TCP_FLAGS, load_u8(tcp + TCP_FLAGS) & ~(FIN | PSH))


@inline_kernel
def merged_size(bar, q, ring, header, gso):
    """Payload bytes of a segmented frame that go into one packet: a segment's, or many (rx-gro-hw).

    ``header`` counts from the IP header. A packet takes at most half the ring.
    """
    if bar[q + Q_MERGE] == 0:
        return gso
    most = min(IP_MAX - header, (ring >> 1) * bar[q + Q_BUFLEN] - header)
    return max(most // gso, 1) * gso


@kernel
def nic_rx(d, bar, maps, state, rows, now):
    """Deliver frames of a wire's queue to receive rings. Returns packets delivered or dropped.

    A frame whose queue has no descriptor holds the wire for up to R_PAUSE_NS (802.3x PAUSE in
    spirit); then it and all that follow for that queue are dropped until its tail moves.
    """
    head, tail = state[FQ_HEAD], load_acquire(state.ctypes.data + 8 * FQ_TAIL)
    handled = 0
    mtu = bar[R_MTU]
    while head < tail:
        row = rows[head & (FQ_FRAMES - 1)]
        if row[F_SEEN] == 0:
            if row[F_HLEN] < ETH_HLEN:
                bar[R_COUNTERS + C_RX_RUNT] += 1
                d[D_PAUSED_AT] = 0
                head += 1
                handled += 1
                continue
            look(d, bar, row)
        header, total, done = row[F_SPLIT], row[F_TOTAL], row[F_DONE]
        size = total - done
        q = R_RXQ + RXQ_STRIDE * row[F_QUEUE]
        dq = D_RXQ + D_STRIDE * row[F_QUEUE]
        gso, segments = row[F_GSO], 1
        on_wire = size
        if gso > 0 and row[F_L4] != 0:
            on_wire = min(size, gso)
            size = min(size, merged_size(bar, q, d[dq + DQ_MASK] + 1, header - row[F_L3], gso))
            segments = (size + gso - 1) // gso
        if header + on_wire - (row[F_L3] if row[F_L3] != 0 else ETH_HLEN) > mtu:
            bar[R_COUNTERS + C_RX_OVERSIZE] += 1
            head += 1
            handled += 1
            continue
        last = done + size >= total
        outcome = nic_rx_one(d, bar, maps, row, q, dq, size, last)
        if outcome < 0:  # no descriptor
            posted = load_acquire(bar.ctypes.data + 8 * (q + Q_TAIL))
            if d[dq + DQ_DRY] != posted + 1:
                if d[D_PAUSED_AT] == 0:
                    d[D_PAUSED_AT] = now
                    bar[R_COUNTERS + C_RX_PAUSED] += 1
                if now - d[D_PAUSED_AT] < bar[R_PAUSE_NS]:
                    break
                d[dq + DQ_DRY] = posted + 1
            bar[R_COUNTERS + C_RX_NO_DESC] += 1
            bar[q + Q_DROPS] += 1
        d[D_PAUSED_AT] = 0
        handled += 1
        if outcome == 0:
            bar[R_COUNTERS + C_RX_DISABLED] += 1
        else:
            bar[R_COUNTERS + C_RX_FRAMES] += segments
            bar[R_COUNTERS + C_RX_BYTES] += segments * header + size
        row[F_DONE] = done + size
        row[F_SEGS] += segments
        if last:
            head += 1
    store_release(state.ctypes.data + 8 * FQ_HEAD, head)
    return handled


@kernel
def nic_rx_one(d, bar, maps, row, q, dq, size, last):
    """One packet into one queue's ring: 1 done, 0 queue not running, -1 too few descriptors."""
    if d[dq + DQ_RING] == 0:
        return 0
    ring, mask, at = d[dq + DQ_RING], d[dq + DQ_MASK], d[dq + DQ_HEAD]
    posted = load_acquire(bar.ctypes.data + 8 * (q + Q_TAIL)) - at
    header, buflen, hdrlen = row[F_SPLIT], bar[q + Q_BUFLEN], bar[q + Q_HDRLEN]
    hds = bar[q + Q_HDS]
    status = row[F_STATUS]
    into_header = 0
    if hds & HDS_ON:
        if row[F_L4] != 0 and header <= hdrlen and header + size > hds >> 8:
            into_header = header
            status |= RXS_SPH
        else:
            into_header = min(header + size, hdrlen)
            if header + size > hdrlen:
                status |= RXS_HBO
    rest = header + size - into_header
    need = max(1, (rest + buflen - 1) // buflen)
    if posted < need:
        return -1
    slot = ring + (at & mask) * 32
    hdr_host = 0
    if into_header > 0:
        hdr_host = translate(d, maps, load64(slot + 8 * RXD_HDR), into_header, FROM_DEVICE)
        if hdr_host == 0:
            return nic_fault(d, bar, q, dq, slot)
    offset = 0  # of the next byte in the packet, headers included
    if into_header > 0:
        if into_header < header:
            memcpy(hdr_host, row[F_HDR], into_header)
        else:
            nic_header(row, hdr_host, size, last)
        if into_header > header:
            payload_copy(row, row[F_DONE], into_header - header, hdr_host + header)
        offset = into_header
    for i in range(need):
        slot = ring + ((at + i) & mask) * 32
        n = min(buflen, header + size - offset)
        if n > 0:
            host = translate(d, maps, load64(slot + 8 * RXD_PKT), n, FROM_DEVICE)
            if host == 0:
                return nic_fault(d, bar, q, dq, slot)
            fill = 0
            if offset < header:  # not split: the headers lead the packet buffer
                fill = min(n, header - offset)
                memcpy(host, row[F_HDR] + offset, fill)
                if row[F_GSO] > 0 and row[F_L4] != 0 and offset == 0 and fill == header:
                    patch_segment(host, row[F_L3], row[F_L4], header, row[F_DONE], size, row[F_SEGS], last)
            if n > fill:
                payload_copy(row, row[F_DONE] + offset + fill - header, n - fill, host + fill)
            offset += n
    if hds & HDS_ON:
        bar[q + (Q_SPLIT_HIT if status & RXS_SPH else Q_SPLIT_MISS)] += 1
    nic_done(d, bar, q, dq, row, need, into_header, status, rest)
    return 1


@kernel
def nic_header(row, host, size, last):
    """Copy a frame's headers to ``host`` as those of its next ``size`` payload bytes."""
    memcpy(host, row[F_HDR], row[F_SPLIT])
    if row[F_GSO] > 0 and row[F_L4] != 0:
        patch_segment(host, row[F_L3], row[F_L4], row[F_SPLIT], row[F_DONE], size, row[F_SEGS], last)


@kernel
def nic_done(d, bar, q, dq, row, need, into_header, status, rest):
    """Give ``need`` descriptors back: ``into_header`` bytes in the first's header buffer, ``rest`` in all."""
    ring, mask, at = d[dq + DQ_RING], d[dq + DQ_MASK], d[dq + DQ_HEAD]
    extra = row[F_HASH] | (row[F_GSO] << 32 if rest > row[F_GSO] else 0)
    bar[q + Q_BYTES] += into_header + rest
    for i in range(need):
        slot = ring + ((at + i) & mask) * 32
        n = min(bar[q + Q_BUFLEN], rest)
        rest -= n
        word = status | RXS_DD | (into_header << 16 if i == 0 else 0) | n << 32
        if i == need - 1:
            word |= RXS_EOP
        store64(slot + 8 * RXD_HASH, extra)
        store_release(slot + 8 * RXD_STATUS, word)
    d[dq + DQ_HEAD] = at + need
    bar[q + Q_HEAD] = at + need
    bar[q + Q_PACKETS] += 1


@kernel
def nic_fault(d, bar, q, dq, slot):
    """A descriptor with an address that nobody mapped: say so in it, and stop the queue."""
    bar[R_COUNTERS + C_DMA_FAULT] += 1
    store_release(slot + 8 * RXD_STATUS, RXS_DD | RXS_EOP | RXS_FAULT)
    d[dq + DQ_RING] = 0
    store_release(bar.ctypes.data + 8 * (q + Q_STATE), STATE_FAULT)
    return 0


@kernel
def nic_tx(d, bar, maps, state, rows, queues):
    """Turn transmit descriptors into frames on the wire's queue; returns packets taken.

    Descriptors of frames that the wire has taken are completed first.
    """
    nic_tx_complete(d, bar, state, rows)
    tail = state[FQ_TAIL]
    room = FQ_FRAMES - (tail - d[D_TX_DONE])
    taken = 0
    for queue in range(queues):
        q = R_TXQ + RXQ_STRIDE * queue
        dq = D_TXQ + D_STRIDE * queue
        ring, mask = d[dq + DQ_RING], d[dq + DQ_MASK]
        if ring == 0:
            continue
        posted = load_acquire(bar.ctypes.data + 8 * (q + Q_TAIL))
        at = d[dq + DQ_FETCH]
        while at < posted and room > 0:
            row = rows[tail & (FQ_FRAMES - 1)]
            n = nic_tx_one(d, bar, maps, ring, mask, at, posted, row)
            if n < 0:  # a bad address or chain: the queue stops, the driver sees it
                d[dq + DQ_RING] = 0
                store_release(bar.ctypes.data + 8 * (q + Q_STATE), STATE_FAULT)
                break
            row[F_NDESC], row[F_TXQ] = n, queue
            at += n
            tail += 1
            room -= 1
            taken += 1
            size = row[F_HLEN] + row[F_PLEN] + row[F_P2LEN]
            bar[q + Q_PACKETS] += 1
            bar[q + Q_BYTES] += size
            bar[R_COUNTERS + C_TX_FRAMES] += 1
            bar[R_COUNTERS + C_TX_BYTES] += size
        d[dq + DQ_FETCH] = at
    store_release(state.ctypes.data + 8 * FQ_TAIL, tail)
    return taken


@kernel
def nic_tx_one(d, bar, maps, ring, mask, at, posted, row):
    """Read one packet's descriptors into a frame row; how many, or -1 when they make no sense."""
    row[:] = 0
    n = 0
    while True:
        if at + n >= posted or n >= TX_MAX_DESC:
            bar[R_COUNTERS + C_TX_BAD_DESC] += 1
            return -1
        slot = ring + ((at + n) & mask) * 32
        word = load64(slot + 8 * TXD_LEN)
        size, flags = word & 0xFFFFFFFF, word >> 32
        host = translate(d, maps, load64(slot + 8 * TXD_ADDR), size, TO_DEVICE)
        if host == 0 or n > 2:
            bar[R_COUNTERS + (C_DMA_FAULT if host == 0 else C_TX_BAD_DESC)] += 1
            return -1
        if n == 0:
            row[F_HDR], row[F_HLEN] = host, size
            if flags & TXC_CSUM:
                row[F_FLAGS] = FRAME_NEEDS_CSUM
            if flags & TXC_TSO:
                row[F_GSO] = load64(slot + 8 * TXD_META) >> 16
        elif n == 1:
            row[F_PAY], row[F_PLEN] = host, size
        else:
            row[F_PAY2], row[F_P2LEN] = host, size
        n += 1
        if flags & TXC_EOP:
            return n


@kernel
def nic_tx_complete(d, bar, state, rows):
    """Mark done the descriptors of frames that the wire has taken."""
    done, head = d[D_TX_DONE], load_acquire(state.ctypes.data + 8 * FQ_HEAD)
    while done < head:
        row = rows[done & (FQ_FRAMES - 1)]
        dq = D_TXQ + D_STRIDE * row[F_TXQ]
        q = R_TXQ + RXQ_STRIDE * row[F_TXQ]
        if d[dq + DQ_RING] != 0 and row[F_NDESC] > 0:
            at = d[dq + DQ_HEAD] + row[F_NDESC]
            slot = d[dq + DQ_RING] + ((at - 1) & d[dq + DQ_MASK]) * 32
            store_release(slot + 8 * TXD_STATUS, TXS_DD)
            d[dq + DQ_HEAD] = at
            store_release(bar.ctypes.data + 8 * (q + Q_HEAD), at)
        done += 1
    d[D_TX_DONE] = done


@kernel
def frame_render(row, dst, index, done):
    """Write segment ``index`` of a frame as plain bytes with all checksums; (length, payload).

    For wires that carry bytes only. ``done`` is the payload already rendered.
    """
    header, l3, l4 = row[F_SPLIT], row[F_L3], row[F_L4]
    size = row[F_TOTAL] - done
    if row[F_GSO] > 0 and l4 != 0:
        size = min(size, row[F_GSO])
    memcpy(dst, row[F_HDR], header)
    payload_copy(row, done, size, dst + header)
    if row[F_GSO] > 0 and l4 != 0:
        patch_segment(dst, l3, l4, header, done, size, index, done + size >= row[F_TOTAL])
    if l4 != 0 and row[F_FLAGS] & FRAME_NEEDS_CSUM:
        ip = dst + l3
        proto = load_u8(ip + IP_PROTO)
        if load_u8(ip) >> 4 == 6:
            proto, _ = ip6_upper(ip, l4 - l3, l4 - l3)
        field = dst + l4 + (TCP_CSUM if proto == PROTO_TCP else UDP_CSUM)
        store_be16(field, 0)
        body = header - l4 + size
        total = csum_add(dst + l4, body, pseudo_sum(ip, proto, body))
        check = csum_fold(total)
        store_be16(field, 0xFFFF if check == 0 and proto == PROTO_UDP else check)
    return header + size, size
