"""kernel: the running kernel's netmem, over netlink: what it tells, and what it would refuse.

Answers to: net/core/netdev-genl.c, netdev_rx_queue.c, tools/net/ynl.
May import: base. Needs neither NumPy nor Numba: it works in a small guest.
"""

from netmem.base.extras import need

need("kernel", __name__)
