"""rx.py INTERFACE QUEUE MIB PORT: what `rx devmem` does, in Python; says "bytes linear seconds"."""

import socket
import sys
import time

from netmem.kernel.devmem import KernelListener
from netmem.kernel.memory import Dmabuf
from netmem.kernel.netdev_family import NetdevFamily

BUFFER, FRAGS = 1 << 20, (64 << 10) // 40  # as rx.c: its buffer, and control messages of 40 bytes in 64 KiB

name, queue, size, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) << 20, int(sys.argv[4])
linear = total = 0
with Dmabuf(size, exporter="udmabuf") as memory, NetdevFamily() as family:
    family.bind_rx(socket.if_nametoindex(name), [queue], memory.fd)
    with KernelListener(port) as listener, listener.accept(timeout=60) as sock:
        start = time.monotonic()
        while (message := sock.recvmsg_devmem(BUFFER, max_frags=FRAGS, timeout=60)).size:
            linear += len(message.linear)
            total += message.size
            sock.devmem_dontneed(message.frags["frag_token"])
        seconds = time.monotonic() - start
print(total - linear, linear, f"{seconds:.6f}")
