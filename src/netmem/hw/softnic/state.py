"""What the software NIC keeps for itself: words of its arena ``d``."""

from __future__ import annotations

D_NMAPS = 0
D_PAUSED_AT = 1  # when the wire was first held for the frame at its head, 0: it is not
D_TX_DONE = 2  # frames whose descriptors were completed
D_LAST_MAP = 3
D_LAND_QUEUE = 4  # queue + 1 that the next frame is expected on, 0: nothing is expected
D_LAND_HEADER = 5  # ... and its header bytes
D_LANDED = 6  # frames that were read straight into their buffers, and those that were guessed wrong
D_MISLANDED = 7
D_RXQ = 16  # per receive queue, D_STRIDE words
D_TXQ = 16 + 8 * 16
D_STRIDE = 8
DQ_RING = 0  # host address of the ring, 0: not running
DQ_MASK = 1
DQ_HEAD = 2
DQ_DRY = 3  # tail + 1 at which the queue was found dry, 0: it was not
DQ_FETCH = 4  # transmit: descriptors taken from the ring
D_TOEPLITZ = 16 + 2 * 8 * 16  # HASH_BYTES bytes of input, 256 values each
HASH_BYTES = 36  # two IPv6 addresses and two ports
D_WORDS = D_TOEPLITZ + HASH_BYTES * 256
