#!/usr/bin/env python3
"""devmem_rx.py udmabuf|system QUEUES PORT...: device-memory TCP with the kernel's own API, in a guest.

Binds one dma-buf to the queues, takes one connection at each port, and prints for each what arrived: SHA-256,
bytes in frags, linear bytes. Run in the selftests' folder drivers/net, whose library speaks netlink.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import socket
import struct
import sys
import threading

sys.path.insert(0, ".")
from lib.py import NetdevFamily

SIZE = 32 << 20
SO_DEVMEM_LINEAR, SO_DEVMEM_DMABUF, SO_DEVMEM_DONTNEED = 78, 79, 80
MSG_SOCK_DEVMEM = 0x2000000
UDMABUF_CREATE = 0x40187542
DMA_HEAP_IOCTL_ALLOC = 0xC0184800


def dmabuf(kind: str) -> tuple[int, mmap.mmap]:
    """A dma-buf's descriptor, and its memory as the application sees it."""
    if kind == "udmabuf":
        memory = os.memfd_create("devmem", os.MFD_ALLOW_SEALING)
        os.truncate(memory, SIZE)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        with open("/dev/udmabuf", "rb+", buffering=0) as device:
            fd = fcntl.ioctl(device, UDMABUF_CREATE, bytearray(struct.pack("=IIQQ", memory, 1, 0, SIZE)))
        return fd, mmap.mmap(memory, SIZE)
    request = bytearray(struct.pack("=QIIQ", SIZE, 0, os.O_RDWR | os.O_CLOEXEC, 0))
    with open("/dev/dma_heap/system", "rb+", buffering=0) as device:
        fcntl.ioctl(device, DMA_HEAP_IOCTL_ALLOC, request)
    fd = struct.unpack_from("=I", request, 8)[0]
    return fd, mmap.mmap(fd, SIZE)


def receive(sock: socket.socket, view: mmap.mmap, result: list[object]) -> None:
    """Everything of one connection."""
    digest, frags, linear = hashlib.sha256(), 0, 0
    while True:
        data, control, _, _ = sock.recvmsg(1 << 20, 64 << 10, MSG_SOCK_DEVMEM)
        if not data and not control:
            break
        at, tokens = 0, []
        for _, kind, body in control:
            if kind == SO_DEVMEM_DMABUF:
                offset, size, token, _, _ = struct.unpack_from("=QIIII", body)
                digest.update(view[offset : offset + size])
                frags += size
                tokens.append(token)
            elif kind == SO_DEVMEM_LINEAR:
                size = struct.unpack_from("=QI", body)[1]
                digest.update(data[at : at + size])
                at, linear = at + size, linear + size
        for token in tokens:
            sock.setsockopt(socket.SOL_SOCKET, SO_DEVMEM_DONTNEED, struct.pack("=II", token, 1))
    result[:] = [digest.hexdigest(), frags, linear]


def main() -> None:
    kind, queues, ports = sys.argv[1], sys.argv[2].split(","), [int(one) for one in sys.argv[3:]]
    fd, view = dmabuf(kind)
    netdev = NetdevFamily()
    bound = netdev.bind_rx({
        "ifindex": socket.if_nametoindex("eth0"), "fd": fd,
        "queues": [{"id": int(one), "type": "rx"} for one in queues],
    })  # fmt: skip
    listeners = [socket.create_server(("10.9.0.2", port)) for port in ports]
    print("dmabuf", bound["id"], flush=True)
    threads, results = [], []
    for listener in listeners:
        sock, _ = listener.accept()
        results.append([])
        threads.append(threading.Thread(target=receive, args=(sock, view, results[-1])))
        threads[-1].start()
    for thread in threads:
        thread.join()
    owners = [
        one
        for one in netdev.queue_get({"ifindex": socket.if_nametoindex("eth0")}, dump=True)
        if "dmabuf" in one
    ]
    print("queues", *sorted(one["id"] for one in owners))
    for result in results:
        print("got", *result)


if __name__ == "__main__":
    main()
