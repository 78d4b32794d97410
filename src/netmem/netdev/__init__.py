"""netdev: devices, queues, NAPI batches, GRO, ethtool settings, and binding memory to queues.

Answers to: net/core/dev.c, netdev_rx_queue.c, netdev-genl.c, gro.c, net/ethtool/rings.c, channels.c.
May import: base, memory.
Received batches enter from a driver and go to a protocol stack; rows to send go the other way.
"""

from netmem.base.extras import need

need("lab", __name__)
