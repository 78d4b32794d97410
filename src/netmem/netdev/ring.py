"""A descriptor ring's arena ``q``: words of its own, then four words a slot of a receive ring.

A slot holds payload netmem and offset, header netmem and offset. We move the tail, the device moves
the head. A transmit ring uses the words S_RING, S_MASK, S_HEAD, S_TAIL and S_DRIVER.
"""

from __future__ import annotations

S_RING = 0  # host address of the descriptors
S_MASK = 1
S_HEAD = 2  # next descriptor to clean, free running
S_TAIL = 3  # next descriptor to post
S_QUEUE = 4
S_POOL = 5  # handles of the payload and the header pool
S_HPOOL = 6
S_BUFLEN = 7
S_HDRLEN = 8  # 0: no header split
S_PACKETS = 9
S_BYTES = 10
S_HDS_HIT = 11
S_HDS_MISS = 12
S_STARVED = 13  # refills that ended for want of memory
S_DRIVER = 14  # the driver's own
S_SLOTS = 16
SLOT_WORDS = 4
L_NETMEM, L_OFFSET, L_HNETMEM, L_HOFFSET = range(4)

REFILL_DONE, REFILL_PAYLOAD, REFILL_HEADER = 0, 1, 2
HEADER_BYTES = 256  # of a header buffer
DMA_ALIGN = 64
