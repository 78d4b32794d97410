"""The software NIC's look at a frame: split point, checksums, receive side scaling, steering rules."""

from __future__ import annotations

from netmem.base.checksum import csum_add, csum_fold, ip6_upper, pseudo_sum
from netmem.base.headers import (
    IP_MF_OR_OFFSET,
    PROTO_TCP,
    PROTO_UDP,
    V4_MAPPED,
    VLAN_LEN,
    EtherType,
    EthHdr,
    Ip6Hdr,
    IpHdr,
    TcpHdr,
    UdpHdr,
)
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load_be16, load_be32, load_be64, load_u8, memcpy
from netmem.base.record import address_of
from netmem.hw.softnic.regs import INDIR_SIZE, MAX_RULES, RSS_KEY, Bar, Rxs
from netmem.hw.softnic.state import HASH_BYTES, NicState
from netmem.hw.wire import Frame, FrameRow


@kernel
def toeplitz_table(nic_at: int) -> None:
    """Work out the Toeplitz hash of each value of each input byte for the key in the registers."""
    nic = NicState.at(nic_at)
    key = address_of(Bar.at(nic.bar)) + RSS_KEY
    for i in range(HASH_BYTES):
        for value in range(256):
            total = 0
            for bit in range(8):
                if value & (0x80 >> bit):
                    word = load_be32(key + i) << 8 | load_u8(key + i + 4)
                    total ^= (word >> (8 - bit)) & 0xFFFFFFFF
            nic.toeplitz[i * 256 + value] = total


@kernel
def rss_hash(nic: NicState, ip: int, l4: int) -> int:
    """Toeplitz hash over addresses, and ports when there is a TCP or UDP header."""
    at, size = (int(IpHdr.SRC), 8) if load_u8(ip) >> 4 == 4 else (int(Ip6Hdr.SRC), 32)
    total = 0
    for i in range(size):
        total ^= nic.toeplitz[i * 256 + load_u8(ip + at + i)]
    if l4 != 0:
        for i in range(4):
            total ^= nic.toeplitz[(size + i) * 256 + load_u8(l4 + i)]
    return total


@kernel
def match_rule(bar: Bar, ip: int, l4: int, proto: int) -> int:
    """The queue of the first rule that matches, or -1."""
    if load_u8(ip) >> 4 == 4:
        src_hi, src = 0, V4_MAPPED | load_be32(ip + IpHdr.SRC)
        dst_hi, dst = 0, V4_MAPPED | load_be32(ip + IpHdr.DST)
    else:
        src_hi, src = load_be64(ip + Ip6Hdr.SRC), load_be64(ip + Ip6Hdr.SRC + 8)
        dst_hi, dst = load_be64(ip + Ip6Hdr.DST), load_be64(ip + Ip6Hdr.DST + 8)
    sport = load_be16(l4) if l4 != 0 else 0
    dport = load_be16(l4 + 2) if l4 != 0 else 0
    for i in range(min(bar.n_rules, MAX_RULES)):
        rule = bar.rules[i]
        any_src = rule.src == 0 and rule.src_hi == 0
        any_dst = rule.dst == 0 and rule.dst_hi == 0
        if (
            rule.valid != 0
            and (any_src or (rule.src == src and rule.src_hi == src_hi))
            and (any_dst or (rule.dst == dst and rule.dst_hi == dst_hi))
            and (rule.src_port == 0 or rule.src_port == sport)
            and (rule.dst_port == 0 or rule.dst_port == dport)
            and (rule.proto == 0 or rule.proto == proto)
        ):
            return rule.queue
    return -1


@inline_kernel
def payload_piece(frame: FrameRow, n: int) -> tuple[int, int]:
    """Where piece ``n`` (0 to 2) of a frame's payload lies, and its bytes."""
    if n == 0:
        return frame.header + frame.split, frame.header_len - frame.split
    if n == 1:
        return frame.payload, frame.payload_len
    return frame.payload2, frame.payload2_len


@kernel
def payload_copy(frame: FrameRow, offset: int, n: int, dst: int) -> None:
    """Copy ``n`` payload bytes from ``offset`` of a frame, from up to three pieces."""
    for piece in range(3):
        at, size = payload_piece(frame, piece)
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
def payload_sum(frame: FrameRow, total: int) -> int:
    """Add a frame's payload to a one's complement sum, whatever the pieces' lengths."""
    odd = 0
    for piece in range(3):
        at, size = payload_piece(frame, piece)
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
def look(nic: NicState, frame: FrameRow) -> None:
    """Parse a frame's headers once: split point, queue, hash, checksum verdict.

    Longer than a screen: header after header, each with what the one before it said.
    """
    bar = Bar.at(nic.bar)
    hdr, have = frame.header, frame.header_len
    length = have + frame.payload_len + frame.payload2_len
    frame.seen = 1
    frame.split, frame.l3, frame.l4 = have, 0, 0
    frame.queue, frame.hash, frame.status = 0, 0, 0
    frame.done, frame.segments = 0, 0
    l3 = int(EthHdr.LEN)
    kind = load_be16(hdr + EthHdr.TYPE)
    if kind == EtherType.VLAN and have >= EthHdr.LEN + VLAN_LEN:
        l3 += VLAN_LEN
        kind = load_be16(hdr + EthHdr.TYPE + VLAN_LEN)
    status = 0
    ip, room = hdr + l3, have - l3
    if (kind == EtherType.IPV4 and room >= IpHdr.LEN and load_u8(ip) >> 4 == 4) or (
        kind == EtherType.IPV6 and room >= Ip6Hdr.LEN and load_u8(ip) >> 4 == 6
    ):
        trusted = frame.flags & (Frame.CSUM_OK | Frame.NEEDS_CSUM)
        whole, at = True, 0
        if kind == EtherType.IPV4:
            at = (load_u8(ip + IpHdr.VIHL) & 15) * 4
            total = load_be16(ip + IpHdr.TOTLEN)
            proto = load_u8(ip + IpHdr.PROTO)
            whole = load_be16(ip + IpHdr.FRAG) & IP_MF_OR_OFFSET == 0
            good = IpHdr.LEN <= at <= room
        else:
            total = Ip6Hdr.LEN + load_be16(ip + Ip6Hdr.PLEN)
            proto, at = ip6_upper(ip, room, length - l3)
            good = proto >= 0
        if frame.gso_size != 0:
            total = length - l3  # a segment's length field is filled in when it is cut
        if good and at <= total <= length - l3:
            frame.l3 = l3
            if kind == EtherType.IPV4:
                if trusted or csum_fold(csum_add(ip, at, 0)) == 0:
                    status |= Rxs.L3_OK
                else:
                    status |= Rxs.L3_BAD
            l4 = 0
            body = total - at
            if whole:
                at += l3
                if proto == PROTO_TCP and body >= TcpHdr.LEN and have >= at + TcpHdr.LEN:
                    size = (load_u8(hdr + at + TcpHdr.DATAOFF) >> 4) * 4
                    if TcpHdr.LEN <= size <= body and have >= at + size:
                        l4 = at
                        frame.split = at + size
                elif proto == PROTO_UDP and body >= UdpHdr.LEN and have >= at + UdpHdr.LEN:
                    l4 = at
                    frame.split = at + UdpHdr.LEN
                if l4 != 0:
                    frame.l4 = l4
                    unsummed = proto == PROTO_UDP and load_be16(hdr + l4 + UdpHdr.CSUM) == 0
                    unsummed = unsummed and kind == EtherType.IPV4
                    if trusted or unsummed:
                        status |= Rxs.L4_OK
                    else:
                        status |= check_l4(frame, ip, hdr + l4, body, proto)
            frame.hash = rss_hash(nic, ip, hdr + l4 if l4 != 0 else 0)
            queue = match_rule(bar, ip, hdr + l4 if l4 != 0 else 0, proto)
            if queue >= 0:
                bar.counters.rx_rule_hit += 1
            elif l4 != 0:
                queue = bar.indir[frame.hash & (INDIR_SIZE - 1)]
            else:
                queue = 0
            frame.queue = queue
    if status & (Rxs.L3_BAD | Rxs.L4_BAD):
        bar.counters.rx_csum_bad += 1
    frame.status = status
    frame.total = length - frame.split


@kernel
def look_at(nic_at: int, frame_at: int) -> None:
    """``look``, for Python."""
    look(NicState.at(nic_at), FrameRow.at(frame_at))


@kernel
def check_l4(frame: FrameRow, ip: int, l4: int, body: int, proto: int) -> int:
    """Verify a TCP or UDP checksum over headers and payload, padding left out."""
    header = frame.split - (l4 - frame.header)
    total = csum_add(l4, header, pseudo_sum(ip, proto, body))
    payload = body - header
    spare = frame.header_len + frame.payload_len + frame.payload2_len - frame.split - payload
    if spare > 0:  # Ethernet padding: only frames in one piece are that short
        total = csum_add(frame.header + frame.split, payload, total)
    else:
        total = payload_sum(frame, total)
    return int(Rxs.L4_OK if csum_fold(total) == 0 else Rxs.L4_BAD)
