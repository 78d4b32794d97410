"""Addresses: one number of 128 bits, an IPv4 address as the IPv4-mapped one (RFC 4291, 2.5.5.2).

Kernels hold it as two signed words, high and low.
"""

from __future__ import annotations

import ipaddress
import struct

from netmem.base.headers import V4_MAPPED


def ip4(address: str) -> int:
    """An IPv4 address in text as a 32-bit number."""
    return int(ipaddress.IPv4Address(address))


def ip4_text(address: int) -> str:
    """A 32-bit number as an IPv4 address in text."""
    return str(ipaddress.IPv4Address(int(address)))


def ip(address: str) -> int:
    """An IPv4 or IPv6 address in text as a number of 128 bits."""
    parsed = ipaddress.ip_address(address)
    return V4_MAPPED | int(parsed) if parsed.version == 4 else int(parsed)


def ip_text(address: int) -> str:
    """A number of 128 bits as an address in text."""
    if is_ip4(address):
        return ip4_text(address & 0xFFFFFFFF)
    return str(ipaddress.IPv6Address(address))


def endpoint(address: int, port: int) -> str:
    """Address and port as text, ``10.0.2.15:80`` or ``[fd00::f]:80``."""
    text = ip_text(address)
    return f"{text}:{port}" if is_ip4(address) else f"[{text}]:{port}"


def host_port(host: str, port: int) -> str:
    """The same of an address that is text already."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_ip4(address: int) -> bool:
    """True for a number that stands for an IPv4 address."""
    return address >> 32 == 0xFFFF


def ip_bytes(address: int) -> bytes:
    """An address as it stands in a packet: 4 or 16 bytes."""
    return (address & 0xFFFFFFFF).to_bytes(4, "big") if is_ip4(address) else address.to_bytes(16, "big")


def ip_from(packed: bytes) -> int:
    """The address that stands in a packet as 4 or 16 bytes."""
    number = int.from_bytes(packed, "big")
    return V4_MAPPED | number if len(packed) == 4 else number


def ip_words(address: int) -> tuple[int, int]:
    """An address as kernels hold it: high and low word, signed."""
    high, low = struct.unpack("!qq", address.to_bytes(16, "big"))
    return high, low


def ip_number(high: int, low: int) -> int:
    """The address that two signed words stand for."""
    return int.from_bytes(struct.pack("!qq", high, low), "big")


def mac(address: str) -> int:
    """A MAC address ``aa:bb:cc:dd:ee:ff`` as a 48-bit number."""
    return int.from_bytes(bytes.fromhex(address.replace(":", "")), "big")
