"""ICMP echo (RFC 792): what answers ping."""

from __future__ import annotations

import struct

from netmem.base.formats import (
    ETH_HLEN,
    ICMP_ECHO,
    ICMP_ECHO_REPLY,
    ICMP_HLEN,
    IP_HLEN,
    PROTO_ICMP,
    inet_checksum,
)


def echo_reply(frame: bytes, address: int) -> bytes | None:
    """The answer to an echo request for ``address`` in a whole frame, None when it is none."""
    header = (frame[ETH_HLEN] & 15) * 4
    total = int.from_bytes(frame[ETH_HLEN + 2 : ETH_HLEN + 4], "big")
    body = frame[ETH_HLEN + header : ETH_HLEN + total]
    if len(body) < ICMP_HLEN or body[0] != ICMP_ECHO or body[1] != 0 or inet_checksum(body):
        return None
    source, target = frame[ETH_HLEN + 12 : ETH_HLEN + 16], frame[ETH_HLEN + 16 : ETH_HLEN + 20]
    if int.from_bytes(target, "big") != address:
        return None
    reply = bytes((ICMP_ECHO_REPLY, 0, 0, 0)) + body[4:]
    reply = reply[:2] + inet_checksum(reply).to_bytes(2, "big") + reply[4:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, IP_HLEN + len(reply), 0, 0x4000, 64, PROTO_ICMP, 0)
    ip += target + source
    ip = ip[:10] + inet_checksum(ip).to_bytes(2, "big") + ip[12:]
    return frame[6:12] + frame[0:6] + frame[12:14] + ip + reply
