"""The socket layer, one source for every back end: softnic, igb (``test_socket_layer.py``) and the kernel's
(``python3 socket_layer.py DEVICE QUEUE ADDRESS PEER devmem|zcrx``, in a guest: ``guest/test_socket_layer.py``).

Each test gets a ``World``: a device with memory bound to a queue, and what connects to it from the far end.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import hashlib
import socket
import sys
import threading
import time
import traceback

import numpy as np

SIZE = 1_000_000


def payload(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size)


class World:
    """``device`` with ``memory`` bound, ``listener`` there; ``connect`` makes an ordinary socket to it."""

    def __init__(self, device, memory, listener, connect, serve, spare) -> None:
        self.device, self.memory, self.listener, self.connect = device, memory, listener, connect
        self.serve = serve  # an ordinary listening socket, and where the device reaches it
        self.spare = spare  # makes memory to send from
        self.linear = 0  # bytes that may come unsplit
        self.repeats = True  # a token may be given back twice: nobody watches
        self.resets = True  # they cross the wire

    def pair(self):
        """A connection: our end, and the far one."""
        theirs = self.connect()
        theirs.settimeout(30)
        ours = self.listener.accept(timeout=30)
        ours.timeout = 30
        return ours, theirs

    def gather(self, message) -> bytes:
        with self.memory.cpu_access():
            view = self.memory.map()
            parts = [view[at : at + size].tobytes() for at, size in
                     message.frags[["frag_offset", "frag_size"]].tolist()]  # fmt: skip
        return bytes(message.linear) + b"".join(parts)

    def take(self, sock, size: int) -> bytes:
        """``size`` bytes, whose tokens are given back."""
        got = b""
        while len(got) < size:
            message = sock.recvmsg_devmem()
            assert message.size, f"the end after {len(got)} bytes"
            got += self.gather(message)
            sock.devmem_dontneed(message.frags["frag_token"])
        return got


def refused(code: int, call) -> None:
    found = None
    try:
        call()
    except OSError as error:
        found = error
    assert found is not None, f"{errno.errorcode[code]} was to be raised"
    assert found.errno == code, f"{found}, not {errno.errorcode[code]}"
    assert "\n" not in str(found)


def later(call, *args) -> threading.Thread:
    thread = threading.Thread(target=call, args=args, daemon=True)
    thread.start()
    return thread


def check_a_stream_comes_as_frags(w: World) -> None:
    ours, theirs = w.pair()
    data = payload(SIZE)
    sender = later(theirs.sendall, data)
    got, linear = hashlib.sha256(), 0
    left = SIZE
    while left:
        message = ours.recvmsg_devmem()
        linear += len(message.linear)
        got.update(w.gather(message))
        left -= message.size
        assert not len(message.frags) or ours.devmem_dontneed(message.frags["frag_token"]) == len(
            message.frags
        )
    sender.join(30)
    assert got.digest() == hashlib.sha256(data).digest()
    assert linear <= w.linear
    theirs.close()
    assert ours.recvmsg_devmem().size == 0
    ours.close()


def check_tokens(w: World) -> None:
    ours, theirs = w.pair()
    theirs.sendall(payload(100_000, 2))
    kept, size = [], 0
    while size < 100_000:
        kept.append(ours.recvmsg_devmem())
        size += kept[-1].size
    sender = later(theirs.sendall, payload(SIZE, 3))
    assert w.take(ours, SIZE) == payload(SIZE, 3)
    sender.join(30)
    assert b"".join(map(w.gather, kept)) == payload(100_000, 2)
    tokens = np.concatenate([message.frags["frag_token"] for message in kept])
    assert len(set(tokens.tolist())) == len(tokens)
    assert ours.devmem_dontneed(tokens[:1]) == 1
    if w.repeats:
        assert ours.devmem_dontneed(tokens[:1]) == 0
    else:
        tokens = tokens[1:]
    assert ours.devmem_dontneed(tokens) == len(tokens) - w.repeats
    assert ours.devmem_dontneed([]) == 0
    theirs.sendall(b"x" * 5000)
    message = ours.recvmsg_devmem()
    first = message.frags["frag_token"].tolist()
    assert ours.devmem_dontneed(np.array([(token, 1) for token in first])) == len(first)
    ours.close()
    theirs.close()


def check_sizes(w: World) -> None:
    ours, theirs = w.pair()
    theirs.sendall(payload(50_000, 4))
    time.sleep(0.3)  # so that all of it is there: what is asked for is less
    message = ours.recvmsg_devmem(1000)
    assert 0 < message.size <= 1000
    one = ours.recvmsg_devmem(max_frags=1)
    assert len(one.frags) == 1
    rest = w.take(ours, 50_000 - message.size - one.size)
    assert w.gather(message) + w.gather(one) + rest == payload(50_000, 4)
    ours.close()
    theirs.close()


def check_ends(w: World) -> None:
    ours, theirs = w.pair()
    start = time.monotonic()
    refused(errno.ETIMEDOUT, lambda: ours.recvmsg_devmem(timeout=0.2))
    assert 0.15 < time.monotonic() - start < 5
    theirs.sendall(b"last words")
    theirs.shutdown(socket.SHUT_WR)
    assert w.take(ours, 10) == b"last words"
    assert ours.recvmsg_devmem().size == 0
    ours.sendall(b"answer")
    assert theirs.recv(100) == b"answer"
    ours.close()
    theirs.close()
    if not w.resets:
        return
    ours, theirs = w.pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()
    refused(errno.ECONNRESET, ours.recvmsg_devmem)
    ours.close()
    ours, theirs = w.pair()
    ours.abort()
    refused(errno.ECONNRESET, lambda: theirs.recv(1))
    theirs.close()


def check_copies(w: World) -> None:
    ours, theirs = w.pair()
    data, got = payload(SIZE, 5), bytearray()
    sender = later(lambda: (ours.sendall(data), ours.shutdown()))
    while part := theirs.recv(1 << 18):
        got += part
    sender.join(30)
    assert bytes(got) == data
    ours.close()
    theirs.close()


def check_readers(w: World) -> None:
    ours, theirs = w.pair()
    numbers = np.arange(60_000, dtype=np.float64)
    later(lambda: (theirs.sendall(b"a line\n" + (5).to_bytes(4, "big") + b"hello" + numbers.tobytes() * 2
                                  + b"tail"), theirs.close()))  # fmt: skip
    reader = ours.reader()
    assert reader.readuntil() == b"a line\n"
    assert bytes(reader.read_message()) == b"hello"
    array = reader.read_array((200, 300), np.float64)
    assert array.shape == (200, 300)
    assert (array.reshape(-1) == numbers).all()
    into = np.zeros(60_000)
    reader.read_into(into)
    assert (into == numbers).all()
    assert reader.readexactly(2) == b"ta"
    partial = None
    try:
        reader.readexactly(3)
    except EOFError as error:
        partial = error.partial
    assert partial == b"il"
    ours.close()


def check_sends_from_memory(w: World) -> None:
    server, host, port = w.serve()
    memory, data = w.spare(1 << 20), payload(1 << 20, 6)
    with memory.cpu_access(write=True):
        memory.map(writable=True)[:] = np.frombuffer(data, np.uint8)
    binding = w.device.bind_tx(memory)
    got = bytearray()

    def collect() -> None:
        sock, _ = server.accept()
        with sock:
            while part := sock.recv(1 << 18):
                got.extend(part)

    collector = later(collect)
    sock = w.device.connect(host, port)
    sock.timeout = 30
    done, calls, over = 0, 0, []
    while done < len(data):
        done += sock.sendmsg_devmem([(done, len(data) - done)], binding)
        calls += 1
    over += sock.wait_zerocopy(30)
    assert sum(last - first + 1 for first, last in over) == calls
    assert sock.zerocopy_done()
    refused(errno.EINVAL, lambda: sock.sendmsg_devmem([(0, 10)], 99_999))
    refused(errno.EFAULT, lambda: sock.sendmsg_devmem([((1 << 20) + 4096, 10)], binding))
    assert sock.sendmsg_devmem([], binding) == 0
    sock.shutdown()
    collector.join(30)
    assert bytes(got) == data
    sock.close()
    binding.close()
    memory.close()
    server.close()


def check_many_connections(w: World) -> None:
    pairs = [w.pair() for _ in range(8)]
    senders = [later(theirs.sendall, payload(200_000, n)) for n, (_, theirs) in enumerate(pairs)]
    for n, (ours, _) in enumerate(pairs):
        assert w.take(ours, 200_000) == payload(200_000, n)
    for sender in senders:
        sender.join(30)
    for ours, theirs in pairs:
        theirs.close()
        assert ours.recvmsg_devmem().size == 0
        ours.close()


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]


class Namespace:
    """Sockets of another network namespace: a thread that is in it makes them."""

    def __init__(self, path: str) -> None:
        self._path = path

    def run(self, call):
        made = []

        def inside() -> None:
            with open(self._path) as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000):
                    made.append(OSError(ctypes.get_errno(), "setns"))
                    return
            try:
                made.append(call())
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join(60)
        if isinstance(made[0], OSError):
            raise made[0]
        return made[0]


def pieces_of(size: int, seed: int, piece: int = 1 << 20):
    """A reproducible stream in pieces, cheap to make: a block that each piece is a rotation of."""
    block = payload(piece, seed)
    for n, at in enumerate(range(0, size, piece)):
        turn = n * 4099 % piece
        yield (block[turn:] + block[:turn])[: size - at]


def kernel_world(name: str, queue: int, address: str, other: str, api: str, exporter: str = "auto"):
    from netmem.base.ethtool import TcpDataSplit
    from netmem.kernel.device import KernelDevice
    from netmem.kernel.memory import Dmabuf

    device, memory, port = KernelDevice(name), Dmabuf(16 << 20, exporter=exporter), 5800
    device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
    device.isolate([queue])
    if api == "zcrx":
        device.bind_zcrx(queue, memory)
    else:
        device.bind_rx([queue], memory)
    device.steer(port, queue)
    peer = Namespace("/run/netns/peer")

    def serve():
        server = peer.run(lambda: socket.create_server((other, 0)))
        return server, other, server.getsockname()[1]

    connect = lambda: peer.run(lambda: socket.create_connection((address, port), timeout=30))  # noqa: E731
    return World(device, memory, device.listen(port), connect, serve, Dmabuf)


def main() -> None:
    world = kernel_world(sys.argv[1], int(sys.argv[2]), *sys.argv[3:6])
    with world.device:
        for check in CHECKS:
            try:
                check(world)
                print(check.__name__, "ok", flush=True)
            except Exception:
                print(check.__name__, "failed", flush=True)
                traceback.print_exc()
        asyncio.run(check_asyncio_of_the_kernel(world))
    print("done")


async def check_asyncio_of_the_kernel(w: World) -> None:
    from netmem.kernel.aio import accept

    theirs = await asyncio.to_thread(w.connect)
    async with await accept(w.listener, timeout=30) as ours:
        data = payload(SIZE, 9)
        later(lambda: (theirs.sendall(b"head\n" + data), theirs.shutdown(socket.SHUT_WR)))
        reader = ours.reader()
        assert await reader.readuntil(timeout=30) == b"head\n"
        assert bytes(await reader.read_array(SIZE, timeout=30)) == data
        await ours.sendall(b"thanks", timeout=30)
        assert theirs.recv(100) == b"thanks"
        assert (await ours.recvmsg_devmem(timeout=30)).size == 0
    theirs.close()
    await several_at_once(w)
    print("asyncio ok")


async def several_at_once(w: World) -> None:
    """Readers that all wait: what comes for one wakes that one, whoever looks."""
    from netmem.kernel.aio import accept

    ends = []
    for _ in range(4):
        theirs = await asyncio.to_thread(w.connect)
        ends.append((await accept(w.listener, timeout=30), theirs))
    readers = [asyncio.create_task(ours.reader().readexactly(50_000, timeout=30)) for ours, _ in ends]
    for n in (2, 0, 3, 1):
        await asyncio.sleep(0.1)
        await asyncio.to_thread(ends[n][1].sendall, payload(50_000, n))
    assert await asyncio.gather(*readers) == [payload(50_000, n) for n in range(4)]
    for ours, theirs in ends:
        ours.close()
        theirs.close()


if __name__ == "__main__":
    main()
