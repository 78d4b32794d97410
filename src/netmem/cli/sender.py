"""Sends a file over an ordinary kernel TCP socket: the other side of demo and bench."""

from __future__ import annotations

import socket
import sys


def main() -> None:
    """``python -m netmem.cli.sender HOST PORT FILE [TIMES]``; waits until the peer closed."""
    host, port, path = sys.argv[1:4]
    times = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    with socket.create_connection((host, int(port)), timeout=60) as sock, open(path, "rb") as file:
        for _ in range(times):
            file.seek(0)
            sock.sendfile(file)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)


if __name__ == "__main__":
    main()
