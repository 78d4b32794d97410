"""The requirements on a driver that runs in the kernel: what memory, sockets and statistics show of it.

Nothing is compiled, and nothing of the driver is known but what the kernel tells: it works for every NIC that
has somebody at the other end. ``other_end`` is what runs there, ``rig`` a device with memory and a
connection, ``checks`` looks, ``run`` tells.
"""
