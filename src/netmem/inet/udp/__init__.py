"""UDP with devmem frags (RFC 768): what instruments stream, straight into device memory.

Answers to: net/ipv4/udp.c, which has no devmem.
May import: base, memory, netdev, inet.
Datagrams enter from batches into socket queues; they leave by transmit rows.
"""

from netmem.inet.udp.sockets import DATAGRAM, Udp, UdpMessage, UdpSocket

__all__ = ["DATAGRAM", "Udp", "UdpMessage", "UdpSocket"]
