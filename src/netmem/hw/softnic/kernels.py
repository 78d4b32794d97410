"""The software NIC's data path: frames to descriptors and back. It knows addresses only."""

from __future__ import annotations

from netmem.base.checksum import csum_add, csum_fold, ip6_upper, pseudo_sum
from netmem.base.dma import DmaDirection
from netmem.base.headers import FIN, IP_MAX, PROTO_TCP, PROTO_UDP, PSH, EthHdr, Ip6Hdr, IpHdr, TcpHdr, UdpHdr
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import (
    load_acquire,
    load_be16,
    load_be32,
    load_u8,
    memcpy,
    store_be16,
    store_be32,
    store_release,
    store_u8,
)
from netmem.base.record import address_of, clear
from netmem.hw.softnic.copies import (
    first_frame,
    from_memory,
    no_room,
    payload_to_memory,
    send_to,
    take_to,
    taken_to,
    tell,
    to_memory,
)
from netmem.hw.softnic.look import look, payload_copy
from netmem.hw.softnic.regs import (
    HDS_ON,
    MAX_QUEUES,
    Q_HEAD,
    Q_STATE,
    RXD_BEHIND_SHIFT,
    RXD_BYTES_SHIFT,
    RXD_HEADER_SHIFT,
    RXD_STATUS,
    TX_MAX_DESC,
    TXD_STATUS,
    TXS_DD,
    Bar,
    QueueRegs,
    QueueState,
    Rxs,
    Txc,
)
from netmem.hw.softnic.ring import (
    behind,
    buffers_to,
    keep_open,
    open_buffer,
    posted_to,
    rx_desc,
    translate,
    tx_desc,
)
from netmem.hw.softnic.state import NicState, QueueWork
from netmem.hw.wire import FQ_FRAMES, FQ_HEAD, FQ_TAIL, Frame, FrameQueueRecord, FrameRow, frame_of


@kernel
def patch_segment(frame: FrameRow, hdr: int, done: int, size: int, index: int, last: bool) -> None:
    """Make a copied header that of segment ``index``: lengths, IP id, sequence, FIN and PSH."""
    header, l3 = frame.split, frame.l3
    ip = hdr + l3
    if load_u8(ip) >> 4 == 4:
        store_be16(ip + IpHdr.TOTLEN, header - l3 + size)
        store_be16(ip + IpHdr.ID, load_be16(ip + IpHdr.ID) + index)
        store_be16(ip + IpHdr.CSUM, 0)
        store_be16(ip + IpHdr.CSUM, csum_fold(csum_add(ip, (load_u8(ip) & 15) * 4, 0)))
    else:
        store_be16(ip + Ip6Hdr.PLEN, header - l3 + size - Ip6Hdr.LEN)
    tcp = hdr + frame.l4
    store_be32(tcp + TcpHdr.SEQ, load_be32(tcp + TcpHdr.SEQ) + done)
    if not last:
        store_u8(tcp + TcpHdr.FLAGS, load_u8(tcp + TcpHdr.FLAGS) & ~(FIN | PSH))


@inline_kernel
def merged_size(q: QueueRegs, work: QueueWork, header: int, gso: int) -> int:
    """Payload bytes of a segmented frame that go into one packet: a segment's, or many (rx-gro-hw).

    ``header`` counts from the IP header. A packet takes at most half the ring.
    """
    if q.merge == 0:
        return gso
    most = min(IP_MAX - header, ((work.mask + 1) >> 1) * q.buf_len - header)
    return max(most // gso, 1) * gso


@kernel
def nic_rx(nic: NicState, now: int) -> int:
    """Deliver frames of the wire's queue to receive rings. Returns packets delivered or dropped.

    A frame whose queue has no descriptor holds the wire for up to R_PAUSE_NS (802.3x PAUSE in
    spirit); then it, and what follows and finds none, is dropped until a tail moves.
    """
    bar, queue = Bar.at(nic.bar), FrameQueueRecord.at(nic.rx)
    head, tail = first_frame(nic, queue), load_acquire(address_of(queue) + FQ_TAIL)
    handled = 0
    while head < tail and not no_room(nic):
        frame = frame_of(queue, head)
        if frame.seen == 0:
            if frame.header_len < EthHdr.LEN:
                bar.counters.rx_runt += 1
                nic.paused_at = 0
                head += 1
                handled += 1
                continue
            look(nic, frame)
        header, total, done = frame.split, frame.total, frame.done
        size = total - done
        q, work = bar.rxq[frame.queue], nic.rxq[frame.queue]
        gso, segments = frame.gso_size, 1
        on_wire = size
        if gso > 0 and frame.l4 != 0:
            on_wire = min(size, gso)
            size = min(size, merged_size(q, work, header - frame.l3, gso))
            segments = (size + gso - 1) // gso
        if header + on_wire - (frame.l3 if frame.l3 != 0 else EthHdr.LEN) > bar.mtu:
            bar.counters.rx_oversize += 1
            head += 1
            handled += 1
            continue
        last = done + size >= total
        outcome = nic_rx_one(nic, frame, size, last)
        if outcome < 0:  # no descriptor
            posted = posted_to(q) + buffers_to(q)
            if work.dry != posted + 1:
                if nic.paused_at == 0:
                    nic.paused_at = now
                    bar.counters.rx_paused += 1
                if now - nic.paused_at < bar.pause_ns:
                    break
                work.dry = posted + 1
            bar.counters.rx_no_desc += 1
            q.drops += 1
        nic.paused_at = 0
        handled += 1
        if outcome == 0:
            bar.counters.rx_disabled += 1
        else:
            bar.counters.rx_frames += segments
            bar.counters.rx_bytes += segments * header + size
        frame.done = done + size
        frame.segments += segments
        if last:
            head += 1
    take_to(nic, head)
    return handled


@kernel
def nic_rx_one(nic: NicState, frame: FrameRow, size: int, last: bool) -> int:
    """One packet into its queue's ring: 1 done, 0 queue not running, -1 no descriptor, or too few buffers."""
    q, work = Bar.at(nic.bar).rxq[frame.queue], nic.rxq[frame.queue]
    if work.ring == 0:
        return 0
    at = work.head
    header, buflen, hdrlen = frame.split, q.buf_len, q.header_len
    hds = q.hds
    status = frame.status
    into_header = 0
    if hds & HDS_ON:
        if frame.l4 != 0 and header <= hdrlen and header + size > hds >> 8:
            into_header = header
            status |= Rxs.SPH
        else:
            into_header = min(header + size, hdrlen)
            if header + size > hdrlen:
                status |= Rxs.HBO
    rest = header + size - into_header
    follow = behind(q, work, frame, size) if status & Rxs.SPH else 0
    need = (rest - follow + buflen - 1) // buflen
    if posted_to(q) - at < 1 or buffers_to(q) - work.fetch < need:
        return -1
    hdr_host = 0
    if into_header > 0:
        hdr_host = translate(nic, rx_desc(work, at).header, into_header, DmaDirection.FROM_DEVICE)
        if hdr_host == 0:
            return nic_fault(nic, q, work, at)
    if into_header > 0:
        if into_header < header:
            memcpy(hdr_host, frame.header, into_header)
        else:
            nic_header(frame, hdr_host, size, last)
        if into_header > header:
            payload_copy(frame, frame.done, into_header - header, hdr_host + header)
    if not nic_payload(nic, frame, into_header, follow, need, size, last):
        return nic_fault(nic, q, work, at)
    if hds & HDS_ON:
        if status & Rxs.SPH:
            q.split_hit += 1
        else:
            q.split_miss += 1
    nic_done(nic, frame, need, into_header, status, rest, follow)
    return 1


@kernel
def nic_payload(
    nic: NicState, frame: FrameRow, into_header: int, follow: int, need: int, size: int, last: bool
) -> bool:
    """Write what of a packet is not in the header buffer. False for an address that nobody mapped.

    ``follow`` bytes go behind what came before, the rest to ``need`` buffers.
    """
    q, work = Bar.at(nic.bar).rxq[frame.queue], nic.rxq[frame.queue]
    buflen, end = q.buf_len, frame.split + size
    offset = into_header  # of the next byte in the packet, headers included
    if follow > 0:
        host = translate(nic, open_buffer(work, frame.hash).io, follow, DmaDirection.FROM_DEVICE)
        if host == 0:
            return False
        if not payload_to_memory(nic, frame, frame.done, follow, nic.last_map, host):
            return False
        offset += follow
    for i in range(need):
        n = min(buflen, end - offset)
        if n > 0:
            host = translate(nic, rx_desc(work, work.fetch + i).packet, n, DmaDirection.FROM_DEVICE)
            if host == 0:
                return False
            fill = nic_piece(frame, host, offset, n, size, last)
            if fill > 0 and not to_memory(nic, nic.last_map, host, fill):
                return False
            start, more = frame.done + offset + fill - frame.split, n - fill
            if not payload_to_memory(nic, frame, start, more, nic.last_map, host + fill):
                return False
            offset += n
    return True


@kernel
def nic_piece(frame: FrameRow, host: int, offset: int, n: int, size: int, last: bool) -> int:
    """Copy what are headers of ``n`` bytes from ``offset`` of a packet to ``host``; how many."""
    header, fill = frame.split, 0
    if offset < header:  # not split: the headers lead the packet buffer
        fill = min(n, header - offset)
        memcpy(host, frame.header + offset, fill)
        if frame.gso_size > 0 and frame.l4 != 0 and offset == 0 and fill == header:
            patch_segment(frame, host, frame.done, size, frame.segments, last)
    return fill


@kernel
def nic_header(frame: FrameRow, host: int, size: int, last: bool) -> None:
    """Copy a frame's headers to ``host`` as those of its next ``size`` payload bytes."""
    memcpy(host, frame.header, frame.split)
    if frame.gso_size > 0 and frame.l4 != 0:
        patch_segment(frame, host, frame.done, size, frame.segments, last)


@kernel
def nic_done(
    nic: NicState, frame: FrameRow, need: int, into_header: int, status: int, rest: int, follow: int
) -> None:
    """Tell of a packet: ``into_header`` bytes in the header buffer, ``rest`` elsewhere, in ``need`` buffers.

    ``follow`` of these are behind what came before; where the last buffer has room it is left open.
    """
    q, work = Bar.at(nic.bar).rxq[frame.queue], nic.rxq[frame.queue]
    own = rest - follow
    desc = rx_desc(work, work.head)
    status |= Rxs.DD | keep_open(q, work, frame, need, status, own, follow)
    status |= into_header << RXD_HEADER_SHIFT | own << RXD_BYTES_SHIFT | follow << RXD_BEHIND_SHIFT
    desc.hash = frame.hash | (frame.gso_size << 32 if rest > frame.gso_size else 0)
    q.bytes += into_header + rest
    tell(nic, address_of(desc) + RXD_STATUS, status)
    work.head += 1
    work.fetch += need
    q.head = work.head
    q.packets += 1


@kernel
def nic_fault(nic: NicState, q: QueueRegs, work: QueueWork, at: int) -> int:
    """A descriptor or buffer with an address that nobody mapped: say so in it, and stop the queue."""
    Bar.at(nic.bar).counters.dma_fault += 1
    store_release(address_of(rx_desc(work, at)) + RXD_STATUS, int(Rxs.DD | Rxs.FAULT))
    work.ring = 0
    store_release(address_of(q) + Q_STATE, int(QueueState.FAULT))
    return 0


@kernel
def tx_step(nic_at: int) -> int:
    """Turn transmit descriptors into frames on the wire's queue; returns packets taken.

    Descriptors of frames that the wire has taken are completed first.
    """
    nic = NicState.at(nic_at)
    bar, queue = Bar.at(nic.bar), FrameQueueRecord.at(nic.tx)
    nic_tx_complete(nic)
    tail = taken_to(nic, queue)
    room = FQ_FRAMES - (tail - nic.tx_done)
    taken = 0
    for number in range(min(bar.tx_queues, MAX_QUEUES)):
        q, work = bar.txq[number], nic.txq[number]
        if work.ring == 0:
            continue
        posted = posted_to(q)
        at = work.fetch
        while at < posted and room > 0 and not no_room(nic):
            frame = frame_of(queue, tail)
            n = nic_tx_one(nic, work, at, posted, frame)
            if n < 0:  # a bad address or chain: the queue stops, the driver sees it
                work.ring = 0
                store_release(address_of(q) + Q_STATE, int(QueueState.FAULT))
                break
            frame.descriptors, frame.txq = n, number
            at += n
            tail += 1
            room -= 1
            taken += 1
            size = frame.header_len + frame.payload_len + frame.payload2_len
            q.packets += 1
            q.bytes += size
            bar.counters.tx_frames += 1
            bar.counters.tx_bytes += size
        work.fetch = at
    send_to(nic, queue, tail)
    return taken


@kernel
def nic_tx_one(nic: NicState, work: QueueWork, at: int, posted: int, frame: FrameRow) -> int:
    """Read one packet's descriptors into a frame row; how many, or -1 when they make no sense."""
    counters = Bar.at(nic.bar).counters
    clear(frame)
    n = 0
    while True:
        if at + n >= posted or n >= TX_MAX_DESC:
            counters.tx_bad_desc += 1
            return -1
        desc = tx_desc(work, at + n)
        word = desc.length
        size, flags = word & 0xFFFFFFFF, word >> 32
        host = translate(nic, desc.address, size, DmaDirection.TO_DEVICE)
        if host == 0 or not from_memory(nic, nic.last_map, host, size):
            counters.dma_fault += 1
            return -1
        if n > 2:
            counters.tx_bad_desc += 1
            return -1
        if n == 0:
            frame.header, frame.header_len = host, size
            if flags & Txc.CSUM:
                frame.flags = Frame.NEEDS_CSUM
            if flags & Txc.TSO:
                frame.gso_size = desc.meta >> 16
        elif n == 1:
            frame.payload, frame.payload_len = host, size
        else:
            frame.payload2, frame.payload2_len = host, size
        n += 1
        if flags & Txc.EOP:
            return n


@kernel
def nic_tx_complete(nic: NicState) -> None:
    """Mark done the descriptors of frames that the wire has taken."""
    bar, queue = Bar.at(nic.bar), FrameQueueRecord.at(nic.tx)
    done, head = nic.tx_done, load_acquire(address_of(queue) + FQ_HEAD)
    while done < head:
        frame = frame_of(queue, done)
        work = nic.txq[frame.txq]
        if work.ring != 0 and frame.descriptors > 0:
            at = work.head + frame.descriptors
            store_release(address_of(tx_desc(work, at - 1)) + TXD_STATUS, TXS_DD)
            work.head = at
            store_release(address_of(bar.txq[frame.txq]) + Q_HEAD, at)
        done += 1
    nic.tx_done = done


@inline_kernel
def l4_checksum(ip: int, ihl: int, body: int) -> tuple[int, int, bool]:
    """Of TCP or UDP behind the IP header at ``ip``: where its field is, the pseudo-header sum, UDP or not."""
    proto = load_u8(ip + IpHdr.PROTO)
    if load_u8(ip) >> 4 == 6:
        proto, _ = ip6_upper(ip, ihl, ihl)
    offset = int(TcpHdr.CSUM) if proto == PROTO_TCP else int(UdpHdr.CSUM)
    return ip + ihl + offset, pseudo_sum(ip, proto, body), proto == PROTO_UDP


@inline_kernel
def store_checksum(field: int, total: int, udp: bool) -> None:
    """Fold a sum into its field; UDP says 0xFFFF for zero, which means none (RFC 768)."""
    check = csum_fold(total)
    store_be16(field, 0xFFFF if check == 0 and udp else check)


@kernel
def frame_finish(frame_at: int) -> None:
    """Fill in the checksum that a frame's sender left to its NIC, in place, as the NIC would on the wire.

    For one that was looked at. A large segment keeps its unfinished one: no packet has it.
    """
    frame = FrameRow.at(frame_at)
    l4, have, size = frame.l4, frame.header_len, frame.payload_len
    if l4 == 0 or frame.flags & Frame.NEEDS_CSUM == 0 or frame.gso_size > 0:
        return
    ip = frame.header + frame.l3
    if load_u8(ip) >> 4 == 6:
        body = Ip6Hdr.LEN + load_be16(ip + Ip6Hdr.PLEN) - (l4 - frame.l3)
    else:
        body = load_be16(ip + IpHdr.TOTLEN) - (l4 - frame.l3)
    first = min(have - l4, body)  # what is behind the body is padding
    if (first & 1 and first < body) or (size & 1 and first + size < body):
        return  # a piece of odd length that is not the last: nobody makes such
    field, total, udp = l4_checksum(ip, l4 - frame.l3, body)
    store_be16(field, 0)
    total = csum_add(frame.header + l4, first, total)
    total = csum_add(frame.payload, min(size, body - first), total)
    total = csum_add(frame.payload2, min(frame.payload2_len, max(body - first - size, 0)), total)
    store_checksum(field, total, udp)
    frame.flags = Frame.CSUM_OK


@kernel
def frame_render(frame_at: int, dst: int, index: int, done: int) -> tuple[int, int]:
    """Write segment ``index`` of a frame as plain bytes with all checksums; (length, payload).

    For wires that carry bytes only. ``done`` is the payload already rendered.
    """
    frame = FrameRow.at(frame_at)
    header, l3, l4 = frame.split, frame.l3, frame.l4
    size = frame.total - done
    if frame.gso_size > 0 and l4 != 0:
        size = min(size, frame.gso_size)
    memcpy(dst, frame.header, header)
    payload_copy(frame, done, size, dst + header)
    if frame.gso_size > 0 and l4 != 0:
        patch_segment(frame, dst, done, size, index, done + size >= frame.total)
    if l4 != 0 and frame.flags & Frame.NEEDS_CSUM:
        body = header - l4 + size
        field, pseudo, udp = l4_checksum(dst + l3, l4 - l3, body)
        store_be16(field, 0)
        store_checksum(field, csum_add(dst + l4, body, pseudo), udp)
    return header + size, size
