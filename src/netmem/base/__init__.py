"""base: errors, clock, header formats, records, arenas, and the one Numba wrapper.

Answers to: lib/, include/linux/ (byte order, atomics), include/uapi/linux/if_ether.h, in.h, tcp.h.
May import: nothing of netmem.
Data enters and leaves: addresses and small integers only; base holds no packet and no state.
"""
