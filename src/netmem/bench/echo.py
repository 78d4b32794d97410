"""Round trips of 1 KiB: through a software NIC into unreadable memory and back, and over loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

from netmem.base.ethtool import TcpDataSplit
from netmem.bench.figures import LIMIT_S
from netmem.hw.process import python_argv
from netmem.inet.listener import TcpListener
from netmem.lab.device import open_device
from netmem.memory.providers.dmabuf import DmabufProvider

SIZE, PORT = 1024, 5001


def main() -> None:
    """``python -m netmem.bench.echo PORT ROUNDS``: the client; prints median and 99th percentile in us."""
    port, rounds = map(int, sys.argv[1:])
    taken = []
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(rounds):
            start, got = time.perf_counter_ns(), 0
            sock.sendall(bytes(SIZE))
            while got < SIZE:
                got += len(sock.recv(SIZE))
            taken.append((time.perf_counter_ns() - start) / 1e3)
    taken.sort()
    print(taken[len(taken) // 2], taken[len(taken) * 99 // 100])


def _client(port: int, rounds: int) -> tuple[float, float]:
    argv = python_argv("netmem.bench.echo", str(port), str(rounds))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    median, late = map(float, done.stdout.split())
    return median, late


def loopback(rounds: int) -> tuple[float, float]:
    """Median and 99th percentile of a kernel socket's round trips, us."""

    def serve(server: socket.socket) -> None:
        sock, _ = server.accept()
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := sock.recv(SIZE):
                sock.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        found = _client(server.getsockname()[1], rounds)
        thread.join(LIMIT_S)
    return found


def softnic(rounds: int) -> tuple[float, float]:
    """The same through the user wire; the payload is read by the application's mapping."""

    def serve(listener: TcpListener) -> None:
        with listener.accept(LIMIT_S) as sock:
            sock.set_nodelay()
            reader = sock.reader()
            try:
                while True:
                    sock.sendall(reader.readexactly(SIZE, timeout=LIMIT_S))
            except EOFError:
                return

    with DmabufProvider(16 << 20, exporter="memfd") as memory, open_device() as device:
        device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        with device.bind_rx([1], memory):
            device.steer(PORT, queue=1)
            listener = device.listen(PORT)
            thread = threading.Thread(target=serve, args=(listener,), daemon=True)
            thread.start()
            found = _client(device.forward("127.0.0.1", 0, PORT), rounds)
            thread.join(LIMIT_S)
    return found


if __name__ == "__main__":
    main()
