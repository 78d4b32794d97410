"""Word offsets of the arenas that the kernels of this room share.

Area arena: a header, then four words per netmem, then a stack of free indexes.
Pool arena: a header, the cache, the ring, and the list of netmem to hand back to the provider.
"""

from __future__ import annotations

# Area header.
A_ID = 0
A_COUNT = 1  # netmems in the area
A_SHIFT = 2  # log2 of a netmem's bytes
A_TAG = 3  # the reference to index 0
A_FREE = 4  # netmems on the free stack
A_STACK = 5  # word offset of the free stack
A_NID = 6  # NUMA node, -1 when it has none
A_NOW = 7  # time in ns, stamped by whoever polls
A_SHADOW = 8  # word offset of the sanitiser's shadow, 0 without it
A_SITE = 9  # who calls, as the sanitiser numbers callers
A_REC = 16  # first record

# A netmem's record, REC_WORDS words at A_REC + REC_WORDS * index.
REC_REF = 0  # pp_ref_count
REC_STATE = 1  # ST_* | pool id << 8
REC_TIME = 2  # ns of the last change
REC_SHIFT = 2
REC_WORDS = 1 << REC_SHIFT

# Who holds a netmem.
ST_FREE = 0
ST_CACHE = 1
ST_RING = 2
ST_DRIVER = 3
ST_NIC = 4
ST_BATCH = 5
ST_USER = 8
ST_TX = 9  # transmit in flight

# Pool header.
P_ID = 0
P_AREA = 1  # area id << AREA_SHIFT | tag bit: what a reference of this pool looks like
P_SHIFT = 2
P_DMA = 3  # I/O address of index 0
P_BOUNCE = 4  # host address of the bounce buffer, 0 when the bus is coherent
P_HOST = 5  # host address of the memory, 0 when it is not mapped here
P_SYNC_CPU = 6  # dma_sync_for_cpu
P_SYNC_DEV = 7  # dma_sync
P_MAX_LEN = 8
P_OFFSET = 9
P_NID = 10
P_CACHE_N = 11
P_RING_HEAD = 12  # consumer
P_RING_TAIL = 13  # producer
P_RING_MASK = 14
P_RING_AT = 15  # word offset of the ring
P_RELEASE_N = 16
P_RELEASE_AT = 17  # word offset of the list of netmem to release
P_FRAG_REF = 18
P_FRAG_OFFSET = 19
P_HOLD = 20  # pages_state_hold_cnt
P_RELEASED = 21  # pages_state_release_cnt
P_PER = 22  # receive buffers that the driver cuts from one netmem
P_PROVIDER = 23  # 1 with a memory provider: payload is handed out by token
P_UNREADABLE = 24
P_DESTROYED = 25  # nothing is recycled any more
P_POSTED = 26  # buffers that the driver has posted to its NIC
P_SHARE = 27  # pools that draw on the same area
P_RING_SIZE = 29  # netmems that the ring holds at most
P_SHADOW = 28  # word offset of what was synced, one word for each netmem; 0 without sanitiser

# struct page_pool_alloc_stats and page_pool_recycle_stats, in the kernel's order.
PS_ALLOC_FAST = 32
PS_ALLOC_SLOW = 33
PS_ALLOC_SLOW_HIGH_ORDER = 34
PS_ALLOC_EMPTY = 35
PS_ALLOC_REFILL = 36
PS_ALLOC_WAIVE = 37
PS_RECYCLE_CACHED = 38
PS_RECYCLE_CACHE_FULL = 39
PS_RECYCLE_RING = 40
PS_RECYCLE_RING_FULL = 41
PS_RECYCLE_RELEASED_REFCNT = 42

# What the kernel does not count.
PX_SYNC_CPU = 44  # bytes became visible to the CPU through the pool
PX_SYNC_CPU_NOOP = 45  # sync asked for where none is due (coherent bus, unreadable memory)
PX_SYNC_DEV = 46
PX_FOREIGN = 47  # put or unref of a reference that is not this pool's: refused
PX_DEAD = 48  # put of a netmem that nobody held: refused

P_CACHE = 64
PP_ALLOC_CACHE_SIZE = 128
PP_ALLOC_CACHE_REFILL = 64
P_RING = P_CACHE + PP_ALLOC_CACHE_SIZE

# PP_FLAG_* (include/net/page_pool/types.h).
PP_FLAG_DMA_MAP = 1
PP_FLAG_DMA_SYNC_DEV = 2
PP_FLAG_SYSTEM_POOL = 4
PP_FLAG_ALLOW_UNREADABLE_NETMEM = 8
PP_FLAG_ALL = 15
