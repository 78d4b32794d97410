"""kernel_rx.py DEVICE EXPORTER QUEUES PORT...: a connection to each port, received by Python into one dma-buf.

A line for each: its bytes' SHA-256, how many came as frags, linear and by copy, and seconds.
"""

import hashlib
import socket
import sys
import threading
import time

from netmem.kernel.devmem import KernelListener
from netmem.kernel.memory import Dmabuf
from netmem.kernel.netdev_family import NetdevFamily

SIZE = 16 << 20


def receive(listener, memory, view, hashed, out):
    mark, counts, start = hashlib.sha256(), {"frags": 0, "linear": 0, "copied": 0}, 0.0
    with listener.accept(timeout=60) as sock:
        while (message := sock.recvmsg_devmem(timeout=60)).size:
            start = start or time.monotonic()
            counts["copied" if message.copied else "linear"] += len(message.linear)
            counts["frags"] += int(message.frags["frag_size"].sum())
            if hashed:
                mark.update(message.linear)
                with memory.cpu_access():
                    for at, size in message.frags[["frag_offset", "frag_size"]].tolist():
                        mark.update(view[at : at + size])
            tokens = message.frags["frag_token"]
            if len(tokens):
                assert sock.devmem_dontneed(tokens) == len(tokens)
        seconds = time.monotonic() - start
    out.append((listener.port, mark.hexdigest(), counts, round(seconds, 3)))


def main() -> None:
    name, exporter, queues, *ports = sys.argv[1:]
    hashed = "-" not in ports
    with Dmabuf(SIZE, exporter=exporter) as memory, NetdevFamily() as family:
        family.bind_rx(socket.if_nametoindex(name), [int(q) for q in queues.split(",")], memory.fd)
        view, out = memory.map(), []
        listeners = [KernelListener(int(port)) for port in ports if port != "-"]
        bound = [queue["id"] for queue in family.queue_get() if "dmabuf" in queue]
        print("queues", *sorted(bound), flush=True)
        threads = [
            threading.Thread(target=receive, args=(one, memory, view, hashed, out)) for one in listeners
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for port, mark, counts, seconds in sorted(out):
        print(port, mark, counts["frags"], counts["linear"], counts["copied"], seconds)


main()
