"""Sends a file, or bytes from memory, over an ordinary kernel TCP socket: for demo and bench."""

from __future__ import annotations

import socket
import sys


def main() -> None:
    """``python -m netmem.lab.sender HOST PORT FILE-OR-SIZE [CONGESTION-CONTROL]``; until the peer closed."""
    host, port, what, *_ = sys.argv[1:]
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        if len(sys.argv) > 4:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, sys.argv[4].encode())
        if what.isdigit():
            left, block = int(what), memoryview(bytes(range(256)) * 4096)
            while left:
                left -= sock.send(block[:left])
        else:
            with open(what, "rb") as file:
                sock.sendfile(file)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)


if __name__ == "__main__":
    main()
