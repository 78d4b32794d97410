"""kernel_device.py DEVICE QUEUE ADDRESS PEER EXPORTER: opens a device of the kernel's as an application would.

ADDRESS is ours, PEER the peer's in namespace peer. A line for each thing that came true; "done" at the end.
"""

import contextlib
import difflib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np

from netmem.base.errors import NetmemError
from netmem.base.ethtool import TcpDataSplit
from netmem.kernel.device import KernelDevice
from netmem.kernel.journal import FOLDER
from netmem.kernel.memory import Dmabuf

SIZE = int(os.environ.get("SIZE", 16 << 20))
AREA = 16 << 20
PORT = 5600
BLOCK = np.random.default_rng(5).bytes(1 << 20)
SEND = """
import hashlib, os, socket, sys
host, port, size, seed = sys.argv[1], *map(int, sys.argv[2:])
block = hashlib.shake_256(bytes([seed])).digest(1 << 20)
with socket.create_connection((host, port), timeout=60) as sock:
    for at in range(0, size, len(block)):
        sock.sendall(block[: size - at])
"""
TAKE = """
import hashlib, socket, sys
with socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print("listening", flush=True)
    sock, _ = server.accept()
mark = hashlib.sha256()
while data := sock.recv(1 << 18):
    mark.update(data)
print(mark.hexdigest(), flush=True)
"""


def peer(code: str, *words: object) -> subprocess.Popen:
    argv = ["ip", "netns", "exec", "peer", "python3", "-c", code, *map(str, words)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def said(argv: str) -> str:
    return subprocess.run(argv.split(), capture_output=True, text=True).stdout


def settings(name: str) -> list[str]:
    """The RSS table alone: gve tells its hash function from the first change on."""
    table = said(f"ethtool -x {name}").split("RSS hash key")[0]
    return [table, *(said(f"ethtool {flag} {name}") for flag in ("-g", "-k", "-n"))]


def same(name: str, before: list[str]) -> None:
    for was, now in zip(before, settings(name), strict=True):
        diff = difflib.unified_diff(was.splitlines(), now.splitlines(), n=0, lineterm="")
        assert was == now, "\n".join(diff)


def expected(size: int, seed: int) -> str:
    block, mark = hashlib.shake_256(bytes([seed])).digest(1 << 20), hashlib.sha256()
    for at in range(0, size, len(block)):
        mark.update(block[: size - at])
    return mark.hexdigest()


def set_up(device: KernelDevice, queue: int, memory: Dmabuf):
    device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
    device.isolate([queue])
    return device.bind_rx([queue], memory)


def receive(device: KernelDevice, queue: int, memory: Dmabuf, address: str, connections: int = 1) -> None:
    view = memory.map()
    for seed in range(connections):
        port = PORT + seed
        device.steer(port, queue)
        with device.listen(port) as listener:
            sender = peer(SEND, address, port, SIZE, seed)
            with listener.accept(timeout=60) as sock:
                mark, linear = hashlib.sha256(), 0
                while (message := sock.recvmsg_devmem(timeout=60)).size:
                    linear += len(message.linear)
                    with memory.cpu_access():
                        for at, size in message.frags[["frag_offset", "frag_size"]].tolist():
                            mark.update(view[at : at + size])
                    sock.devmem_dontneed(message.frags["frag_token"])
            assert sender.wait(60) == 0
        assert not linear, linear
        assert mark.hexdigest() == expected(SIZE, seed)


def send(device: KernelDevice, memory: Dmabuf, address: str) -> None:
    with memory.cpu_access(write=True):
        memory.map(writable=True)[: 1 << 20] = np.frombuffer(BLOCK, np.uint8)
    taker = peer(TAKE, PORT + 90)
    assert taker.stdout.readline() == "listening\n"
    with device.bind_tx(memory) as binding, device.connect(address, PORT + 90) as sock:
        calls, over, sent = 0, [], 0
        mark = hashlib.sha256()
        while sent < SIZE:
            at = sent % (1 << 20)
            n = sock.sendmsg_devmem([(at, min((1 << 20) - at, SIZE - sent))], binding, timeout=60)
            mark.update(BLOCK[at : at + n])
            sent, calls = sent + n, calls + 1
            over += sock.zerocopy_completions()
        over += sock.wait_zerocopy(60)
        assert sum(last - first + 1 for first, last in over) == calls
        with contextlib.suppress(NetmemError):
            sock.sendmsg_devmem([(AREA, 100)], binding, timeout=5)
            raise AssertionError("beyond the memory")
        sock.shutdown()
        assert taker.stdout.readline().strip() == mark.hexdigest()
    assert taker.wait(60) == 0


def killed(name: str, queue: int) -> None:
    """A process that set everything up, and is killed with its binding."""
    code = f"""
import sys, time
sys.argv = ['x'] ; sys.path.insert(0, {os.path.dirname(__file__)!r})
import kernel_device as k
device, memory = k.KernelDevice({name!r}), k.Dmabuf(k.AREA)
k.set_up(device, {queue}, memory); device.steer({PORT}, {queue})
print('up', flush=True); time.sleep(600)
"""
    child = subprocess.Popen(["python3", "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "up\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10)


def main() -> None:
    name, queue, address, other, exporter = sys.argv[1], int(sys.argv[2]), *sys.argv[3:6]
    before = settings(name)
    with KernelDevice(name) as device, Dmabuf(AREA, exporter=exporter) as memory:
        try:
            device.bind_rx([queue], memory)
            raise AssertionError("bound without header split")
        except NetmemError as error:
            print("refused:", error, flush=True)
        start = time.monotonic()
        set_up(device, queue, memory)
        receive(device, queue, memory, address, 2)
        print("received", 2 * SIZE, round(time.monotonic() - start, 1), flush=True)
        send(device, memory, other)
        print("sent", SIZE, flush=True)
        assert settings(name) != before
    same(name, before)
    assert not list(FOLDER.iterdir())
    print("undone at the end", flush=True)

    killed(name, queue)
    assert settings(name) != before
    with KernelDevice(name) as device:
        assert device.undone == [
            "tcp-data-split 2", "flows over queues 0, 1, 2", f"tcp4 port {PORT} to queue {queue}",
            f"tcp6 port {PORT} to queue {queue}",
        ], device.undone  # fmt: skip
        same(name, before)
    print("undone at the next start", flush=True)

    first, memory = KernelDevice(name), Dmabuf(AREA)
    first.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
    second = KernelDevice(name)
    assert not second.undone
    set_up(second, queue, memory)
    try:
        first.close()
        raise AssertionError("split off, with memory bound")
    except NetmemError as error:
        print("kept:", error, flush=True)
    second.close()
    same(name, before)
    print("undone by the last", flush=True)
    try:
        KernelDevice("nosuch0")
    except NetmemError as error:
        print("missing:", error, flush=True)
    with socket.socket() as sock:  # nothing of ours is left that holds the port
        sock.bind(("", PORT))
    print("done")


if __name__ == "__main__":
    main()
