"""An iperf3 server whose payload never leaves device memory, on asyncio.

    sudo python examples/iperf3_server.py tap:nm0 &           # or: python examples/iperf3_server.py &
    iperf3 -c 10.20.0.2 [-P 4] [-R]                           #     iperf3 -c 127.0.0.1

Without a wire it serves clients of this host on 127.0.0.1:5201. With -R it sends, straight from the memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time

import netmem

PORT = 5201
PARAM_EXCHANGE, CREATE_STREAMS, TEST_START, TEST_RUNNING, TEST_END = 9, 10, 1, 2, 4
EXCHANGE_RESULTS, DISPLAY_RESULTS = 13, 14
COOKIE = 37


class Stream:
    """One data connection."""

    def __init__(self, number: int, connection: netmem.AsyncConnection) -> None:
        self.id = 1 if number == 0 else number + 2  # as iperf3 counts
        self.connection, self.bytes = connection, 0

    async def receive(self) -> None:
        """Count what arrives, and give it back unread."""
        async for message in self.connection:
            self.bytes += message.size
            if len(message.frags):
                self.connection.devmem_dontneed(message.frags["frag_token"])

    async def send(self, binding) -> None:
        """Send the memory again and again; its contents do not matter here."""
        while True:
            self.bytes += await self.connection.sendmsg_devmem([(0, 1 << 20)], binding)
            self.connection.sock.zerocopy_completions()


async def exactly(connection: netmem.AsyncConnection, size: int, view) -> bytes:
    """``size`` bytes, or EOFError. They are in device memory: ``view`` is our own mapping of it."""
    data = b""
    while len(data) < size:
        message = await connection.recvmsg_devmem(size - len(data), timeout=30)
        if not message.size:
            raise EOFError("the client is gone")
        data += message.linear
        for frag in message.frags:
            start = int(frag["frag_offset"])
            data += view[start : start + int(frag["frag_size"])].tobytes()
        connection.devmem_dontneed(message.frags["frag_token"])
    return data


async def read_json(connection: netmem.AsyncConnection, view) -> dict:
    """A message of the control connection."""
    size = int.from_bytes(await exactly(connection, 4, view), "big")
    return json.loads(await exactly(connection, size, view))


async def serve_test(stack: netmem.AsyncStack, listener: netmem.TcpListener, binding, view) -> None:
    """One test, from its control connection to its results."""
    control = await stack.accept(listener)
    cookie = await exactly(control, COOKIE, view)
    await control.sendall(bytes([PARAM_EXCHANGE]))
    params = await read_json(control, view)
    await control.sendall(bytes([CREATE_STREAMS]))
    streams: list[Stream] = []
    while len(streams) < params.get("parallel", 1):
        connection = await stack.accept(listener, timeout=30)
        if await exactly(connection, COOKIE, view) == cookie:
            streams.append(Stream(len(streams), connection))
    await control.sendall(bytes([TEST_START]))
    await control.sendall(bytes([TEST_RUNNING]))
    start = time.monotonic()
    work = [s.send(binding) if params.get("reverse") else s.receive() for s in streams]
    tasks = [asyncio.create_task(one) for one in work]
    state = await exactly(control, 1, view)
    seconds = time.monotonic() - start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if params.get("reverse"):
        for stream in streams:
            stream.connection.close()  # a client that receives reads to the end before it says more
    if state != bytes([TEST_END]):
        raise EOFError("the client broke the test off")
    await control.sendall(bytes([EXCHANGE_RESULTS]))
    await read_json(control, view)
    rows = [
        {"id": s.id, "bytes": s.bytes, "retransmits": 0, "jitter": 0, "errors": 0, "packets": 0,
         "start_time": 0, "end_time": seconds}
        for s in streams
    ]  # fmt: skip
    results = {"cpu_util_total": 0, "cpu_util_user": 0, "cpu_util_system": 0, "sender_has_retransmits": 0,
               "streams": rows}  # fmt: skip
    body = json.dumps(results).encode()
    await control.sendall(len(body).to_bytes(4, "big") + body)
    await control.sendall(bytes([DISPLAY_RESULTS]))
    with contextlib.suppress(EOFError, TimeoutError):
        await exactly(control, 1, view)
    total = sum(s.bytes for s in streams)
    print(f"{total} bytes in {seconds:.2f} s, {total * 8 / seconds / 1e9:.2f} Gbit/s", flush=True)
    for stream in streams:
        stream.connection.sock.abort()
    control.close()


async def main(wire: str = "user", tests: str = "1", *addresses: str) -> None:
    """Serve ``tests`` tests, one after the other; ``addresses`` are the stack's on a TAP wire."""
    plug = netmem.Tap(wire.removeprefix("tap:"), addresses) if addresses else wire
    with (
        netmem.DmabufProvider(64 << 20) as memory,
        netmem.open_device(wire=plug, config=netmem.TcpConfig(sndbuf=4 << 20)) as device,
    ):
        device.ethtool.set_ringparam(tcp_data_split="on")
        with device.bind_rx([1], memory), device.bind_tx(memory) as binding:
            device.steer(PORT, queue=1)
            listener = device.listen(PORT)
            if wire == "user":
                device.forward("127.0.0.1", PORT, PORT)
            print("ready", flush=True)
            async with netmem.AsyncStack(device.stack) as stack:
                for _ in range(int(tests)):
                    try:
                        await serve_test(stack, listener, binding, memory.map())
                    except (OSError, EOFError) as error:
                        print(f"a test broke off: {error}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
