"""asyncio over a stack: async for, servers with many connections, sends, blocking calls beside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading

import pytest

from conftest import payload, scaled
from netmem.base.errors import NetmemError
from netmem.base.ethtool import TcpDataSplit
from netmem.inet.aio import AsyncStack
from netmem.inet.tcp.connections import TcpConfig
from netmem.lab.device import open_device
from netmem.memory.providers.dmabuf import DmabufProvider

pytestmark = pytest.mark.process
PORT = 5001
LIMIT_S = 60


@pytest.fixture(scope="module")
def device():
    with open_device() as opened:
        opened.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        yield opened


def client(port, data, results):
    """A kernel socket that sends, and reads the answer to its end."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while part := sock.recv(1 << 16):
            answer += part
        results.append(answer)


def once_it_listens(start):
    """Call ``start`` when the coroutine that is at work waits for the first time: ``serve`` listens by then."""
    asyncio.get_running_loop().call_soon(start)


def run(coroutine):
    async def limited():
        async with asyncio.timeout(LIMIT_S):
            return await coroutine

    return asyncio.run(limited())


def test_async_for_takes_frags(device):
    data = payload(scaled(5_000_000))
    memory = DmabufProvider(8 << 20, exporter="memfd")
    results = []

    async def main(port):
        got = bytearray()

        async def handler(connection):
            view = memory.map()
            async for message in connection:
                got.extend(message.linear)
                for frag in message.frags:
                    start = int(frag["frag_offset"])
                    got.extend(view[start : start + int(frag["frag_size"])].tobytes())
                connection.devmem_dontneed(message.frags["frag_token"])
            await connection.sendall(b"%d" % len(got))
            connection.shutdown()
            await connection.drain()

        async with AsyncStack(device.stack) as stack:
            thread = threading.Thread(target=client, args=(port, data, results))
            once_it_listens(thread.start)
            await stack.serve(PORT, handler, limit=1)
            thread.join()
        return bytes(got)

    with device.bind_rx([1], memory) as binding:
        rule = device.steer(PORT, 1)
        port = device.forward("127.0.0.1", 0, PORT)
        assert run(main(port)) == data
        assert results == [b"%d" % len(data)]
        device.ethtool.delete_rule(rule)
    assert binding.outstanding() == 0
    memory.close()


def test_a_server_with_many_connections(device):
    count = scaled(200)
    results = []

    async def handler(connection):
        data = b""
        while part := await connection.recv(1 << 16):
            data += part
        await connection.sendall(data[::-1])

    async def main(port):
        async with AsyncStack(device.stack) as stack:
            threads = [
                threading.Thread(target=client, args=(port, payload(1000, seed=n), results))
                for n in range(count)
            ]
            once_it_listens(lambda: [thread.start() for thread in threads])
            await stack.serve(5002, handler, limit=count)
            await asyncio.to_thread(lambda: [thread.join() for thread in threads])

    run(main(device.forward("127.0.0.1", 0, 5002)))
    assert sorted(results) == sorted(payload(1000, seed=n)[::-1] for n in range(count))


def test_connecting_and_timeouts(device):
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(LIMIT_S)
    host, port = device.reach("127.0.0.1", server.getsockname()[1])

    async def main():
        async with AsyncStack(device.stack) as stack:
            connection = await stack.connect(host, port)
            kernel, _ = await asyncio.to_thread(server.accept)
            with kernel, contextlib.closing(connection):
                await connection.sendall(b"hello")
                assert await asyncio.to_thread(kernel.recv, 5) == b"hello"
                with pytest.raises(TimeoutError, match="data from"):
                    await connection.recv(1, timeout=0.05)
                kernel.sendall(b"there")
                assert await connection.recv(5) == b"there"
            with pytest.raises(NetmemError):
                await stack.connect(host, 1)

    run(main())
    server.close()


def test_cancelling_a_server_closes_what_it_has(device):
    results = []

    async def main(port):
        started = asyncio.Event()

        async def handler(connection):
            started.set()
            await connection.recv(1)

        async with AsyncStack(device.stack) as stack:
            serving = asyncio.create_task(stack.serve(5003, handler))
            await asyncio.sleep(0)  # it listens
            thread = threading.Thread(target=lambda: results.append(_ends(port)))
            thread.start()
            await started.wait()
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            await asyncio.to_thread(thread.join)

    run(main(device.forward("127.0.0.1", 0, 5003)))
    assert results == [True]


def _ends(port):
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as sock:
        try:
            return sock.recv(1) == b""
        except ConnectionResetError:
            return True


def test_blocking_calls_work_from_another_thread_meanwhile(device):
    listener = device.listen(5004)
    port = device.forward("127.0.0.1", 0, 5004)
    results, got = [], []

    def blocking():
        sock = listener.accept(timeout=LIMIT_S)
        data = b""
        while part := sock.recv(1 << 16, timeout=LIMIT_S):
            data += part
        got.append(data)
        sock.close()

    async def main():
        async with AsyncStack(device.stack):
            threads = [
                threading.Thread(target=blocking),
                threading.Thread(target=client, args=(port, payload(50_000), results)),
            ]
            for thread in threads:
                thread.start()
            await asyncio.to_thread(lambda: [thread.join() for thread in threads])

    run(main())
    listener.close()
    assert got == [payload(50_000)]
    assert results == [b""]


SHORT = scaled(1000) * (10 if os.environ.get("NETMEM_SOAK") else 1)
CLIENT = """
import socket, sys
count, port, short = map(int, sys.argv[1:])
socks = [socket.create_connection(('127.0.0.1', port), timeout=60) for _ in range(count)]
for s in socks:
    s.sendall(b'x' * 20000)
    s.shutdown(socket.SHUT_WR)
assert all(s.recv(2) == b'ok' for s in socks)
[s.close() for s in socks]
for _ in range(short):
    with socket.create_connection(('127.0.0.1', port), timeout=60) as s:
        s.sendall(b'y' * 3000)
        s.shutdown(socket.SHUT_WR)
        assert s.recv(2) == b'ok'
"""


def test_a_thousand_connections_at_once_and_many_short_ones_leave_nothing_behind():
    """With NETMEM_SOAK=1 ten thousand short ones."""
    count = scaled(1000)
    memory = DmabufProvider(64 << 20, exporter="memfd")
    marks, total, ended = [], [0], [0]

    def resident():
        with open("/proc/self/status") as status:
            return int(next(line for line in status if line.startswith("VmRSS")).split()[1])

    with open_device(config=TcpConfig(connections=4096)) as device:
        device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        binding = device.bind_rx([1], memory)
        device.steer(PORT, 1)
        port = device.forward("127.0.0.1", 0, PORT)

        async def handler(connection):
            async for message in connection:
                total[0] += message.size
                if len(message.frags):
                    connection.devmem_dontneed(message.frags["frag_token"])
            await connection.sendall(b"ok")
            connection.shutdown()
            await connection.drain()
            ended[0] += 1
            if ended[0] in (count + SHORT // 2, count + SHORT):
                marks.append((resident(), len(os.listdir("/proc/self/fd"))))

        words = [sys.executable, "-c", CLIENT, str(count), str(port), str(SHORT)]
        clients = []

        async def main():
            async with AsyncStack(device.stack) as stack:
                once_it_listens(
                    lambda: clients.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
                )
                await stack.serve(PORT, handler, limit=count + SHORT)

        try:
            asyncio.run(main())
        finally:
            for client in clients:
                with client:
                    assert client.wait(LIMIT_S) == 0, client.stderr.read()
        assert total[0] == count * 20_000 + SHORT * 3000
        conns = device.stack.conns
        assert conns.record.free_entries == conns.config.entries
        (before, fds), (after, fds_after) = marks
        assert abs(fds - fds_after) < 20  # a socket or two more or less are open at each moment
        assert after <= before * 1.02
        binding.close()
        assert binding.outstanding() == 0
    memory.close()
