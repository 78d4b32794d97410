"""rx.py devmem|zcrx INTERFACE QUEUE MIB PORT: what rx does, in Python; says "bytes linear seconds"."""

import contextlib
import socket
import sys
import time

from netmem.kernel.devmem import KernelListener
from netmem.kernel.memory import Dmabuf
from netmem.kernel.netdev_family import NetdevFamily
from netmem.kernel.zcrx import Zcrx, ZcrxListener

BUFFER, FRAGS = 1 << 20, (64 << 10) // 40  # as rx.c: its buffer, and control messages of 40 bytes in 64 KiB

way, name = sys.argv[1:3]
queue, size, port = int(sys.argv[3]), int(sys.argv[4]) << 20, int(sys.argv[5])
index = socket.if_nametoindex(name)
linear = total = 0
with contextlib.ExitStack() as ends:
    memory = ends.enter_context(Dmabuf(size, exporter="udmabuf"))
    if way == "zcrx":
        zcrx = ends.enter_context(Zcrx(index, queue, memory))
        listener = ends.enter_context(ZcrxListener(zcrx, port))
    else:
        ends.enter_context(NetdevFamily()).bind_rx(index, [queue], memory.fd)
        listener = ends.enter_context(KernelListener(port))
    sock = ends.enter_context(listener.accept(timeout=60))
    start = time.monotonic()
    limits = {"bufsize": BUFFER, "max_frags": FRAGS} if way == "devmem" else {}  # rx takes all that zcrx has
    while (message := sock.recvmsg_devmem(**limits, timeout=60)).size:
        linear += len(message.linear)
        total += message.size
        sock.devmem_dontneed(message.frags["frag_token"])
    seconds = time.monotonic() - start
print(total - linear, linear, f"{seconds:.6f}")
