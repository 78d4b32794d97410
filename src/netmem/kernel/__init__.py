"""kernel: the running kernel's netmem: what it tells, what it would refuse, its devmem sockets.

Answers to: net/core/netdev-genl.c, netdev_rx_queue.c, tools/net/ynl.
May import: base. Needs no Numba, and NumPy for sockets only: it works in a small guest.
"""

from netmem.base.extras import need

need("kernel", __name__)
