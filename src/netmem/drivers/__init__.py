"""drivers: network drivers in Python, one folder each.

Answers to: drivers/net/ethernet. Each keeps the seven requirements of netmem.rst.
May import: base, memory, hw, netdev.
Descriptors come and go on the NIC's side, batches and rows on netdev's.
"""

from netmem.base.extras import need

need("lab", __name__)
