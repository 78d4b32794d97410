"""The software NIC's data path: frames to descriptors and back. It knows addresses only.

``bar`` holds the registers (``regs``), ``d`` what the device keeps for itself, ``maps`` the DMA
mappings (I/O address, length, host address, direction).
"""

from __future__ import annotations

from netmem.base.formats import (
    ETH_HLEN,
    ETH_TYPE,
    ETHERTYPE_IPV4,
    ETHERTYPE_VLAN,
    FIN,
    IP_CSUM,
    IP_DST,
    IP_FRAG,
    IP_HLEN,
    IP_ID,
    IP_MF_OR_OFFSET,
    IP_PROTO,
    IP_SRC,
    IP_TOTLEN,
    IP_VIHL,
    PROTO_TCP,
    PROTO_UDP,
    PSH,
    TCP_CSUM,
    TCP_DATAOFF,
    TCP_FLAGS,
    TCP_HLEN,
    TCP_SEQ,
    UDP_HLEN,
    VLAN_HLEN,
    csum_add,
    csum_fold,
)
from netmem.base.jit import kernel
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
from netmem.hw.softnic.regs import (
    C_DMA_FAULT,
    C_RX_BYTES,
    C_RX_CSUM_BAD,
    C_RX_DISABLED,
    C_RX_FRAMES,
    C_RX_NO_DESC,
    C_RX_OVERSIZE,
    C_RX_PAUSED,
    C_RX_RULE_HIT,
    C_RX_RUNT,
    C_TX_BAD_DESC,
    C_TX_BYTES,
    C_TX_FRAMES,
    HDS_ON,
    INDIR_SIZE,
    Q_BUFLEN,
    Q_BYTES,
    Q_DROPS,
    Q_HDRLEN,
    Q_HDS,
    Q_HEAD,
    Q_PACKETS,
    Q_SPLIT_HIT,
    Q_SPLIT_MISS,
    Q_STATE,
    Q_TAIL,
    R_COUNTERS,
    R_INDIR,
    R_MTU,
    R_NRULES,
    R_PAUSE_NS,
    R_RULES,
    R_RXQ,
    R_TXQ,
    RULE_DPORT,
    RULE_DST,
    RULE_PROTO,
    RULE_QUEUE,
    RULE_SPORT,
    RULE_SRC,
    RULE_VALID,
    RULE_WORDS,
    RXD_HASH,
    RXD_HDR,
    RXD_PKT,
    RXD_STATUS,
    RXQ_STRIDE,
    RXS_DD,
    RXS_EOP,
    RXS_FAULT,
    RXS_HBO,
    RXS_L3_BAD,
    RXS_L3_OK,
    RXS_L4_BAD,
    RXS_L4_OK,
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
    FRAME_CSUM_OK,
    FRAME_NEEDS_CSUM,
)

# What the device keeps for itself.
D_NMAPS = 0
D_PAUSED_AT = 1  # when the wire was first held for the frame at its head, 0: it is not
D_TX_DONE = 2  # frames whose descriptors were completed
D_LAST_MAP = 3
D_RXQ = 16  # per receive queue, D_STRIDE words
D_TXQ = 16 + 8 * 16
D_STRIDE = 8
DQ_RING = 0  # host address of the ring, 0: not running
DQ_MASK = 1
DQ_HEAD = 2
DQ_DRY = 3  # tail + 1 at which the queue was found dry, 0: it was not
DQ_FETCH = 4  # transmit: descriptors taken from the ring
D_TOEPLITZ = 16 + 2 * 8 * 16  # 12 bytes of input, 256 values each
D_WORDS = D_TOEPLITZ + 12 * 256

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
def toeplitz_table(d, key_addr):
    """Work out the Toeplitz hash of each value of each of 12 input bytes for a 40-byte key."""
    for i in range(12):
        for value in range(256):
            total = 0
            for bit in range(8):
                if value & (0x80 >> bit):
                    at = i * 8 + bit
                    byte, shift = at >> 3, at & 7
                    word = load_be32(key_addr + byte) << 8 | load_u8(key_addr + byte + 4)
                    total ^= (word >> (8 - shift)) & 0xFFFFFFFF
            d[D_TOEPLITZ + i * 256 + value] = total


@kernel
def rss_hash(d, ip, l4):
    """Toeplitz hash over addresses, and ports when there is a TCP or UDP header."""
    total = 0
    for i in range(8):
        total ^= d[D_TOEPLITZ + i * 256 + load_u8(ip + IP_SRC + i)]
    if l4 != 0:
        for i in range(4):
            total ^= d[D_TOEPLITZ + (8 + i) * 256 + load_u8(l4 + i)]
    return total


@kernel
def match_rule(bar, ip, l4, proto):
    """The queue of the first rule that matches, or -1."""
    src, dst = load_be32(ip + IP_SRC), load_be32(ip + IP_DST)
    sport = load_be16(l4) if l4 != 0 else 0
    dport = load_be16(l4 + 2) if l4 != 0 else 0
    for i in range(bar[R_NRULES]):
        r = R_RULES + i * RULE_WORDS
        if (
            bar[r + RULE_VALID] != 0
            and (bar[r + RULE_SRC] == 0 or bar[r + RULE_SRC] == src)
            and (bar[r + RULE_DST] == 0 or bar[r + RULE_DST] == dst)
            and (bar[r + RULE_SPORT] == 0 or bar[r + RULE_SPORT] == sport)
            and (bar[r + RULE_DPORT] == 0 or bar[r + RULE_DPORT] == dport)
            and (bar[r + RULE_PROTO] == 0 or bar[r + RULE_PROTO] == proto)
        ):
            return bar[r + RULE_QUEUE]
    return -1


@kernel
def payload_copy(row, offset, n, dst):
    """Copy ``n`` payload bytes from ``offset`` of a frame, from up to three pieces."""
    for piece in range(3):
        if piece == 0:
            at, size = row[F_HDR] + row[F_SPLIT], row[F_HLEN] - row[F_SPLIT]
        elif piece == 1:
            at, size = row[F_PAY], row[F_PLEN]
        else:
            at, size = row[F_PAY2], row[F_P2LEN]
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
def payload_sum(row, total):
    """Add a frame's payload to a one's complement sum, whatever the pieces' lengths."""
    odd = 0
    for piece in range(3):
        if piece == 0:
            at, size = row[F_HDR] + row[F_SPLIT], row[F_HLEN] - row[F_SPLIT]
        elif piece == 1:
            at, size = row[F_PAY], row[F_PLEN]
        else:
            at, size = row[F_PAY2], row[F_P2LEN]
        if size > 0 and odd == 1:
            total += load_u8(at)
            at += 1
            size -= 1
            odd = 0
        total = csum_add(at, size, total)
        if size & 1:
            odd = 1
    return total


@kernel
def l4_sum(ip, l4, size, proto):
    """Pseudo header plus TCP or UDP header (without payload), as a running sum."""
    total = load_be16(ip + IP_SRC) + load_be16(ip + IP_SRC + 2)
    total += load_be16(ip + IP_DST) + load_be16(ip + IP_DST + 2)
    return total + proto + size


@kernel
def look(d, bar, row):
    """Parse a frame's headers once: split point, queue, hash, checksum verdict."""
    hdr, have = row[F_HDR], row[F_HLEN]
    frame = have + row[F_PLEN] + row[F_P2LEN]
    row[F_SEEN] = 1
    row[F_SPLIT], row[F_L3], row[F_L4] = have, 0, 0
    row[F_QUEUE], row[F_HASH], row[F_STATUS] = 0, 0, 0
    row[F_DONE], row[F_SEGS] = 0, 0
    l3 = ETH_HLEN
    kind = load_be16(hdr + ETH_TYPE)
    if kind == ETHERTYPE_VLAN and have >= ETH_HLEN + VLAN_HLEN:
        l3 += VLAN_HLEN
        kind = load_be16(hdr + ETH_TYPE + VLAN_HLEN)
    status = 0
    if kind == ETHERTYPE_IPV4 and have >= l3 + IP_HLEN and load_u8(hdr + l3) >> 4 == 4:
        ip = hdr + l3
        ihl = (load_u8(ip + IP_VIHL) & 15) * 4
        total = load_be16(ip + IP_TOTLEN)
        if row[F_GSO] != 0:
            total = frame - l3  # a segment's length field is filled in when it is cut
        if ihl >= IP_HLEN and have >= l3 + ihl and ihl <= total <= frame - l3:
            row[F_L3] = l3
            trusted = row[F_FLAGS] & (FRAME_CSUM_OK | FRAME_NEEDS_CSUM)
            if trusted or csum_fold(csum_add(ip, ihl, 0)) == 0:
                status |= RXS_L3_OK
            else:
                status |= RXS_L3_BAD
            proto = load_u8(ip + IP_PROTO)
            l4 = 0
            if load_be16(ip + IP_FRAG) & IP_MF_OR_OFFSET == 0:
                body = total - ihl
                at = l3 + ihl
                if proto == PROTO_TCP and body >= TCP_HLEN and have >= at + TCP_HLEN:
                    size = (load_u8(hdr + at + TCP_DATAOFF) >> 4) * 4
                    if TCP_HLEN <= size <= body and have >= at + size:
                        l4 = at
                        row[F_SPLIT] = at + size
                elif proto == PROTO_UDP and body >= UDP_HLEN and have >= at + UDP_HLEN:
                    l4 = at
                    row[F_SPLIT] = at + UDP_HLEN
                if l4 != 0:
                    row[F_L4] = l4
                    field = TCP_CSUM if proto == PROTO_TCP else 6
                    if trusted or (proto == PROTO_UDP and load_be16(hdr + l4 + field) == 0):
                        status |= RXS_L4_OK
                    else:
                        status |= check_l4(row, hdr + l3, hdr + l4, body, proto)
            row[F_HASH] = rss_hash(d, ip, hdr + l4 if l4 != 0 else 0)
            queue = match_rule(bar, ip, hdr + l4 if l4 != 0 else 0, proto)
            if queue >= 0:
                bar[R_COUNTERS + C_RX_RULE_HIT] += 1
            elif l4 != 0:
                queue = bar[R_INDIR + (row[F_HASH] & (INDIR_SIZE - 1))]
            else:
                queue = 0
            row[F_QUEUE] = queue
    if status & (RXS_L3_BAD | RXS_L4_BAD):
        bar[R_COUNTERS + C_RX_CSUM_BAD] += 1
    row[F_STATUS] = status
    row[F_TOTAL] = frame - row[F_SPLIT]


@kernel
def check_l4(row, ip, l4, body, proto):
    """Verify a TCP or UDP checksum over headers and payload, padding left out."""
    header = row[F_SPLIT] - (l4 - row[F_HDR])
    total = l4_sum(ip, l4, body, proto)
    total = csum_add(l4, header, total)
    payload = body - header
    spare = row[F_HLEN] + row[F_PLEN] + row[F_P2LEN] - row[F_SPLIT] - payload
    if spare > 0:  # Ethernet padding: only frames in one piece are that short
        total = csum_add(row[F_HDR] + row[F_SPLIT], payload, total)
    else:
        total = payload_sum(row, total)
    return RXS_L4_OK if csum_fold(total) == 0 else RXS_L4_BAD


@kernel
def patch_segment(hdr, l3, l4, header, done, size, index, last):
    """Make a copied header that of segment ``index``: lengths, IP id, sequence, FIN and PSH."""
    ip = hdr + l3
    store_be16(ip + IP_TOTLEN, header - l3 + size)
    store_be16(ip + IP_ID, load_be16(ip + IP_ID) + index)
    store_be16(ip + IP_CSUM, 0)
    store_be16(ip + IP_CSUM, csum_fold(csum_add(ip, (load_u8(ip) & 15) * 4, 0)))
    tcp = hdr + l4
    store_be32(tcp + TCP_SEQ, load_be32(tcp + TCP_SEQ) + done)
    if not last:
        store_u8(tcp + TCP_FLAGS, load_u8(tcp + TCP_FLAGS) & ~(FIN | PSH))


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
        gso = row[F_GSO]
        if gso > 0 and row[F_L4] != 0:
            size = min(size, gso)
        if header + size - (row[F_L3] if row[F_L3] != 0 else ETH_HLEN) > mtu:
            bar[R_COUNTERS + C_RX_OVERSIZE] += 1
            head += 1
            handled += 1
            continue
        last = done + size >= total
        q = R_RXQ + RXQ_STRIDE * row[F_QUEUE]
        dq = D_RXQ + D_STRIDE * row[F_QUEUE]
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
            bar[R_COUNTERS + C_RX_FRAMES] += 1
            bar[R_COUNTERS + C_RX_BYTES] += header + size
        row[F_DONE] = done + size
        row[F_SEGS] += 1
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
            bar[q + Q_SPLIT_HIT] += 1
        else:
            into_header = min(header + size, hdrlen)
            if header + size > hdrlen:
                status |= RXS_HBO
            bar[q + Q_SPLIT_MISS] += 1
    rest = header + size - into_header
    need = max(1, (rest + buflen - 1) // buflen)
    if posted < need:
        if hds & HDS_ON:  # counted when the packet is really placed
            bar[q + (Q_SPLIT_HIT if status & RXS_SPH else Q_SPLIT_MISS)] -= 1
        return -1
    slot = ring + (at & mask) * 32
    hdr_host = 0
    if into_header > 0:
        hdr_host = translate(d, maps, load64(slot + 8 * RXD_HDR), into_header, FROM_DEVICE)
        if hdr_host == 0:
            return nic_fault(d, bar, q, dq, slot)
    offset = 0  # of the next byte in the packet, headers included
    if into_header > 0:
        take = min(into_header, header)
        memcpy(hdr_host, row[F_HDR], take)
        if row[F_GSO] > 0 and row[F_L4] != 0 and take == header:
            patch_segment(
                hdr_host, row[F_L3], row[F_L4], header, row[F_DONE], size, row[F_SEGS], last
            )
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
                    patch_segment(
                        host, row[F_L3], row[F_L4], header, row[F_DONE], size, row[F_SEGS], last
                    )
            if n > fill:
                payload_copy(row, row[F_DONE] + offset + fill - header, n - fill, host + fill)
            offset += n
        word = status | RXS_DD | (into_header << 16 if i == 0 else 0) | n << 32
        if i == need - 1:
            word |= RXS_EOP
        store64(slot + 8 * RXD_HASH, row[F_HASH])
        store_release(slot + 8 * RXD_STATUS, word)
    d[dq + DQ_HEAD] = at + need
    bar[q + Q_HEAD] = at + need
    bar[q + Q_PACKETS] += 1
    bar[q + Q_BYTES] += header + size
    return 1


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
        field = dst + l4 + (TCP_CSUM if proto == PROTO_TCP else 6)
        store_be16(field, 0)
        body = header - l4 + size
        total = csum_add(dst + l4, body, l4_sum(ip, dst + l4, body, proto))
        store_be16(field, csum_fold(total))
    return header + size, size
