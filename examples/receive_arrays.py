"""Receive arrays of several clients at once, into 64 MiB of memory that the driver never maps.

receive_arrays.py [CLIENTS [ARRAYS-OF-EACH]]: starts its own clients, sockets of the kernel, and compares
what arrives. An array comes behind a line of JSON that says its shape and dtype.
"""

import asyncio
import json
import socket
import sys
import time

import numpy as np

import netmem
from netmem import AsyncConnection, AsyncStack

PORT = 5001


def client(number: int, arrays: int, port: int) -> float:
    """Send arrays of 1 to 16 MiB; the sum of all their items."""
    rng, total = np.random.default_rng(number), 0.0
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for _ in range(arrays):
            array = rng.random((int(rng.integers(1, 17)), 256, 512), dtype="float64")
            sock.sendall(json.dumps({"shape": array.shape, "dtype": array.dtype.str}).encode() + b"\n")
            sock.sendall(array)
            total += float(array.sum())
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
    return total


async def main(clients: int = 4, arrays: int = 8) -> None:
    """Serve ``clients``, each of which sends so many arrays."""
    sums: list[float] = []

    async def handler(connection: AsyncConnection) -> None:
        reader, total = connection.reader(), 0.0
        for _ in range(arrays):
            head = json.loads(await reader.readuntil())
            array = await reader.read_array(tuple(head["shape"]), head["dtype"])
            total += float(array.sum())
        sums.append(total)

    with netmem.DmabufProvider(64 << 20, rx_page_size=65536) as memory, netmem.open_device() as device:
        device.ethtool.set_ringparam(tcp_data_split="on")
        with device.bind_rx([1], memory):
            device.steer(PORT, queue=1)
            async with AsyncStack(device.stack) as stack:
                port, start = device.forward("127.0.0.1", 0, PORT), time.monotonic()
                server = asyncio.create_task(stack.serve(PORT, handler, limit=clients))
                await asyncio.sleep(0)  # it listens
                work = [asyncio.to_thread(client, n, arrays, port) for n in range(clients)]
                sent = await asyncio.gather(*work)
                await server
            took = time.monotonic() - start
            right = np.allclose(sorted(sums), sorted(sent))
            print(f"{clients * arrays} arrays in {took:.2f} s, sums {'agree' if right else 'DIFFER'}")
    sys.exit(not right)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
