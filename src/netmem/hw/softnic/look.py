"""The software NIC's look at a frame: split point, checksums, receive side scaling, steering rules."""

from __future__ import annotations

from netmem.base.formats import (
    ETH_HLEN,
    ETH_TYPE,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ETHERTYPE_VLAN,
    IP6_DST,
    IP6_HLEN,
    IP6_PLEN,
    IP6_SRC,
    IP_DST,
    IP_FRAG,
    IP_HLEN,
    IP_MF_OR_OFFSET,
    IP_PROTO,
    IP_SRC,
    IP_TOTLEN,
    IP_VIHL,
    PROTO_TCP,
    PROTO_UDP,
    TCP_DATAOFF,
    TCP_HLEN,
    UDP_CSUM,
    UDP_HLEN,
    V4_MAPPED,
    VLAN_HLEN,
    csum_add,
    csum_fold,
    ip6_upper,
    pseudo_sum,
)
from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import load_be16, load_be32, load_be64, load_u8
from netmem.hw.softnic.regs import (
    C_RX_CSUM_BAD,
    C_RX_RULE_HIT,
    INDIR_SIZE,
    R_COUNTERS,
    R_INDIR,
    R_NRULES,
    R_RULES,
    RULE_DPORT,
    RULE_DST,
    RULE_DST_HI,
    RULE_PROTO,
    RULE_QUEUE,
    RULE_SPORT,
    RULE_SRC,
    RULE_SRC_HI,
    RULE_VALID,
    RULE_WORDS,
    RXS_L3_BAD,
    RXS_L3_OK,
    RXS_L4_BAD,
    RXS_L4_OK,
)
from netmem.hw.softnic.state import D_TOEPLITZ, HASH_BYTES
from netmem.hw.wire import (
    F_DONE,
    F_FLAGS,
    F_GSO,
    F_HASH,
    F_HDR,
    F_HLEN,
    F_L3,
    F_L4,
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
    FRAME_CSUM_OK,
    FRAME_NEEDS_CSUM,
)


@kernel
def toeplitz_table(d, key_addr):
    """Work out the Toeplitz hash of each value of each input byte for a 40-byte key."""
    for i in range(HASH_BYTES):
        for value in range(256):
            total = 0
            for bit in range(8):
                if value & (0x80 >> bit):
                    word = load_be32(key_addr + i) << 8 | load_u8(key_addr + i + 4)
                    total ^= (word >> (8 - bit)) & 0xFFFFFFFF
            d[D_TOEPLITZ + i * 256 + value] = total


@kernel
def rss_hash(d, ip, l4):
    """Toeplitz hash over addresses, and ports when there is a TCP or UDP header."""
    at, size = (IP_SRC, 8) if load_u8(ip) >> 4 == 4 else (IP6_SRC, 32)
    total = 0
    for i in range(size):
        total ^= d[D_TOEPLITZ + i * 256 + load_u8(ip + at + i)]
    if l4 != 0:
        for i in range(4):
            total ^= d[D_TOEPLITZ + (size + i) * 256 + load_u8(l4 + i)]
    return total


@kernel
def match_rule(bar, ip, l4, proto):
    """The queue of the first rule that matches, or -1."""
    if load_u8(ip) >> 4 == 4:
        src_hi, src = 0, V4_MAPPED | load_be32(ip + IP_SRC)
        dst_hi, dst = 0, V4_MAPPED | load_be32(ip + IP_DST)
    else:
        src_hi, src = load_be64(ip + IP6_SRC), load_be64(ip + IP6_SRC + 8)
        dst_hi, dst = load_be64(ip + IP6_DST), load_be64(ip + IP6_DST + 8)
    sport = load_be16(l4) if l4 != 0 else 0
    dport = load_be16(l4 + 2) if l4 != 0 else 0
    for i in range(bar[R_NRULES]):
        r = R_RULES + i * RULE_WORDS
        any_src = bar[r + RULE_SRC] == 0 and bar[r + RULE_SRC_HI] == 0
        any_dst = bar[r + RULE_DST] == 0 and bar[r + RULE_DST_HI] == 0
        if (
            bar[r + RULE_VALID] != 0
            and (any_src or (bar[r + RULE_SRC] == src and bar[r + RULE_SRC_HI] == src_hi))
            and (any_dst or (bar[r + RULE_DST] == dst and bar[r + RULE_DST_HI] == dst_hi))
            and (bar[r + RULE_SPORT] == 0 or bar[r + RULE_SPORT] == sport)
            and (bar[r + RULE_DPORT] == 0 or bar[r + RULE_DPORT] == dport)
            and (bar[r + RULE_PROTO] == 0 or bar[r + RULE_PROTO] == proto)
        ):
            return bar[r + RULE_QUEUE]
    return -1


@inline_kernel
def payload_piece(row, n):
    """Where piece ``n`` (0 to 2) of a frame's payload lies, and its bytes."""
    if n == 0:
        return row[F_HDR] + row[F_SPLIT], row[F_HLEN] - row[F_SPLIT]
    if n == 1:
        return row[F_PAY], row[F_PLEN]
    return row[F_PAY2], row[F_P2LEN]


@kernel
def payload_sum(row, total):
    """Add a frame's payload to a one's complement sum, whatever the pieces' lengths."""
    odd = 0
    for piece in range(3):
        at, size = payload_piece(row, piece)
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
    ip, room = hdr + l3, have - l3
    if (kind == ETHERTYPE_IPV4 and room >= IP_HLEN and load_u8(ip) >> 4 == 4) or (
        kind == ETHERTYPE_IPV6 and room >= IP6_HLEN and load_u8(ip) >> 4 == 6
    ):
        trusted = row[F_FLAGS] & (FRAME_CSUM_OK | FRAME_NEEDS_CSUM)
        whole, at = True, 0
        if kind == ETHERTYPE_IPV4:
            at = (load_u8(ip + IP_VIHL) & 15) * 4
            total = load_be16(ip + IP_TOTLEN)
            proto = load_u8(ip + IP_PROTO)
            whole = load_be16(ip + IP_FRAG) & IP_MF_OR_OFFSET == 0
            good = IP_HLEN <= at <= room
        else:
            total = IP6_HLEN + load_be16(ip + IP6_PLEN)
            proto, at = ip6_upper(ip, room, frame - l3)
            good = proto >= 0
        if row[F_GSO] != 0:
            total = frame - l3  # a segment's length field is filled in when it is cut
        if good and at <= total <= frame - l3:
            row[F_L3] = l3
            if kind == ETHERTYPE_IPV4:
                if trusted or csum_fold(csum_add(ip, at, 0)) == 0:
                    status |= RXS_L3_OK
                else:
                    status |= RXS_L3_BAD
            l4 = 0
            body = total - at
            if whole:
                at += l3
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
                    unsummed = proto == PROTO_UDP and load_be16(hdr + l4 + UDP_CSUM) == 0
                    unsummed = unsummed and kind == ETHERTYPE_IPV4
                    if trusted or unsummed:
                        status |= RXS_L4_OK
                    else:
                        status |= check_l4(row, ip, hdr + l4, body, proto)
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
    total = csum_add(l4, header, pseudo_sum(ip, proto, body))
    payload = body - header
    spare = row[F_HLEN] + row[F_PLEN] + row[F_P2LEN] - row[F_SPLIT] - payload
    if spare > 0:  # Ethernet padding: only frames in one piece are that short
        total = csum_add(row[F_HDR] + row[F_SPLIT], payload, total)
    else:
        total = payload_sum(row, total)
    return RXS_L4_OK if csum_fold(total) == 0 else RXS_L4_BAD
