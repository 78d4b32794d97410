"""kernel_bulk.py EXPORTER API ADDRESS PEER MIB: much data each way through one dma-buf, in four connections.

Tokens are held at first until the window closes. A line for each way.
"""

import hashlib
import sys
import threading
import time

import numpy as np

from socket_layer import kernel_world, later, pieces_of

PARTS = 4


def main() -> None:
    exporter, api, address, other, size = *sys.argv[1:5], int(sys.argv[5]) << 20
    world = kernel_world("eth0", 3, address, other, api, exporter)
    each = size // PARTS
    with world.device:
        pairs = [world.pair() for _ in range(PARTS)]
        senders = [later(send, theirs, each, n) for n, (_, theirs) in enumerate(pairs)]
        held = hold(pairs[0][0])
        start, idle = time.monotonic(), time.monotonic()
        marks, left, linear = [hashlib.sha256() for _ in pairs], [each] * PARTS, 0
        while any(left):
            # All in turn: what one connection leaves unread, another cannot have.
            ready = [
                n for n, (ours, _) in enumerate(pairs) if left[n] and ((held and n == 0) or ours.readable())
            ]
            assert ready or time.monotonic() - idle < 60, f"{left} bytes are missing"
            if not ready:
                time.sleep(0.001)
                continue
            for n in ready:
                message = held.pop(0) if n == 0 and held else pairs[n][0].recvmsg_devmem(timeout=60)
                assert message.size, f"{left[n]} bytes of connection {n} are missing"
                linear += len(message.linear)
                marks[n].update(world.gather(message))
                pairs[n][0].devmem_dontneed(message.frags["frag_token"])
                left[n] -= message.size
            idle = time.monotonic()
        assert not linear
        for n, (ours, theirs) in enumerate(pairs):
            assert marks[n].digest() == digest_of(each, n), f"connection {n}"
            ours.close()
            theirs.close()
        for sender in senders:
            sender.join(60)
        print("received", size, round(time.monotonic() - start, 1), flush=True)
        transmit(world, size)
    print("done")


def send(sock, size: int, seed: int) -> None:
    for piece in pieces_of(size, seed):
        sock.sendall(piece)


def digest_of(size: int, seed: int) -> bytes:
    mark = hashlib.sha256()
    for piece in pieces_of(size, seed):
        mark.update(piece)
    return mark.digest()


def hold(sock) -> list:
    """Messages until nothing more comes: the memory is full, or the window closed."""
    held = []
    while True:
        try:
            held.append(sock.recvmsg_devmem(timeout=1.0))
        except TimeoutError:
            print("held", sum(message.size for message in held), flush=True)
            return held


def transmit(world, size: int) -> None:
    """The same amount out of a second dma-buf, in four connections, filled anew each time that it was sent."""
    memory, area, seconds = world.spare(4 << 20), 4 << 20, 0.0
    binding, each = world.device.bind_tx(memory), size // PARTS
    view = memory.map(writable=True)
    for n in range(PARTS):
        server, host, port = world.serve()
        marks: list[bytes] = []

        def take(server=server, marks=marks) -> None:
            sock, _ = server.accept()
            mark = hashlib.sha256()
            while data := sock.recv(1 << 18):
                mark.update(data)
            marks.append(mark.digest())

        taker = threading.Thread(target=take)
        taker.start()
        sock = world.device.connect(host, port)
        sent, mark = 0, hashlib.sha256()
        start = time.monotonic()
        for piece in pieces_of(each, 10 + n, area):
            with memory.cpu_access(write=True):
                view[: len(piece)] = np.frombuffer(piece, np.uint8)
            mark.update(piece)
            done = 0
            while done < len(piece):
                done += sock.sendmsg_devmem([(done, len(piece) - done)], binding, timeout=60)
            sock.wait_zerocopy(60)
            sent += done
        sock.shutdown()
        taker.join(60)
        seconds += time.monotonic() - start
        assert sent == each
        assert marks == [mark.digest()], f"connection {n}"
        sock.close()
        server.close()
    binding.close()
    memory.close()
    print("sent", size, round(seconds, 1), flush=True)


if __name__ == "__main__":
    main()
