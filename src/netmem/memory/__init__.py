"""memory: netmem references, areas, DMA mapping, the page pool and its memory providers.

Answers to: include/net/netmem.h, net/core/page_pool.c, net/core/devmem.c, kernel/dma/mapping.c.
May import: base.
Netmem enters from a provider's area, leaves to a driver by reference, and comes back by put.
"""

from netmem.base.extras import need

need("lab", __name__)
