"""What runs at the other end of a live check, with the standard library alone: orders come as JSON lines.

Each order has an ``id`` and says what to ``do``; what became of it is a line with that ``id``.
"""

import hashlib
import json
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

BLOCK = 1 << 20
LIMIT_S = 30.0
CHUNK = 1 << 18


def block(seed: int) -> bytes:
    """What is sent with a seed, again and again."""
    return hashlib.shake_256(b"%d" % seed).digest(BLOCK)


def digest(seed: int, size: int) -> str:
    """SHA-256 of ``size`` bytes of that."""
    mark, data = hashlib.sha256(), block(seed)
    for at in range(0, size, BLOCK):
        mark.update(data[: size - at])
    return mark.hexdigest()


def send(host: str, port: int, size: int, seed: int, piece: int) -> dict[str, Any]:
    """Connect, and send ``size`` bytes in pieces, each a segment of its own where it is small enough."""
    data = memoryview(block(seed))
    with socket.create_connection((host, port), timeout=LIMIT_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sent = 0
        while sent < size:
            at = sent % BLOCK
            sent += sock.send(data[at : min(at + piece, BLOCK, at + size - sent)])
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)  # the other end closes when it has everything
        return {"sent": sent, "from": sock.getsockname()[0]}


def take(port: int, listening: Any) -> dict[str, Any]:
    """Listen, and take what one connection brings."""
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        server.settimeout(LIMIT_S)
        listening(server.getsockname()[1])
        sock, _ = server.accept()
    mark, size = hashlib.sha256(), 0
    with sock:
        sock.settimeout(LIMIT_S)
        while data := sock.recv(CHUNK):
            mark.update(data)
            size += len(data)
    return {"size": size, "digest": mark.hexdigest()}


def datagrams(host: str, port: int, count: int, size: int) -> dict[str, Any]:
    """Send UDP."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(count):
            sock.sendto(bytes([number % 256]) * size, (host, port))
    return {}


ORDERS: dict[str, Callable[..., dict[str, Any]]] = {"send": send, "take": take, "datagrams": datagrams}


def main() -> None:
    """Orders from standard input until it ends, each in a thread of its own."""
    lock = threading.Lock()

    def answer(number: int, **words: Any) -> None:
        with lock:
            print(json.dumps({"id": number, **words}), flush=True)

    def follow(number: int, do: str, **words: Any) -> None:
        try:
            if do == "take":
                words["listening"] = lambda port: answer(number, listening=port)
            answer(number, done=ORDERS[do](**words))
        except Exception as error:
            text = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            answer(number, error=text, errno=getattr(error, "errno", None))

    answer(0, done={})
    for line in sys.stdin:
        order = json.loads(line)
        threading.Thread(target=follow, args=(order.pop("id"),), kwargs=order, daemon=True).start()


if __name__ == "__main__":
    main()
