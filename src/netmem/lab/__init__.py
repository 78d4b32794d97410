"""lab: puts a NIC, a wire, a driver and the stack together; one call opens a working device.

Answers to: what a tester does with cables, ip and ethtool. The NIC's own process starts here, and
the gateway behind the `user` wire lives here.
May import: base, memory, hw, netdev, drivers, inet.
"""

from netmem.base.extras import need

need("lab", __name__)
