"""inet: ARP, IPv4, ICMP, TCP and the sockets over them. Payload is never read here.

Answers to: net/ipv4 (arp.c, icmp.c, tcp.c, tcp_input.c, tcp_output.c, tcp_timer.c).
May import: base, memory, netdev.
Batches enter from netdev and end in receive queues; rows with headers leave through its TxQueue.
"""

from netmem.base.extras import need

need("lab", __name__)
