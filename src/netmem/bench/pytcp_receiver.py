"""A receiver on PyTCP, for `netmem bench`: run by a Python that has pmd-pytcp, never imported here."""

import asyncio
import inspect
import json
import os
import subprocess
import sys
import time


async def done(value):
    """PyTCP's calls are coroutines in some versions and plain calls in others."""
    return await value if inspect.isawaitable(value) else value


async def main(name):
    """Receive one connection on TAP ``name``; says what `netmem recv --json` says."""
    from pmd_net_addr import Ip4IfAddr
    from pmd_pytcp import stack
    from pmd_pytcp.socket import AddressFamily, SocketType, socket

    for words in ("tuntap add {} mode tap", "addr add 10.20.0.1/24 dev {}", "link set {} up"):
        subprocess.run(["ip", *words.format(name).split()], check=True)
    tap = await done(stack.initialize_interface__tap(name))
    await done(stack.init(**tap, ip4_host=Ip4IfAddr("10.20.0.2/24"), ip6_support=False))
    await done(stack.start())
    listener = await done(socket(AddressFamily.INET4, SocketType.STREAM))
    for _ in range(300):
        try:  # the address is its own only after conflict detection
            await done(listener.bind(("10.20.0.2", 5001)))
            break
        except OSError:
            await asyncio.sleep(0.1)
    await done(listener.listen())
    print(json.dumps({"port": 5001}), flush=True)
    sock, _ = await done(listener.accept())
    total, start = 0, 0.0
    while data := await done(sock.recv(1 << 16)):
        start = start or time.monotonic()
        total += len(data)
    end = time.monotonic()
    await done(sock.close())
    await asyncio.sleep(1)
    print(json.dumps({"bytes": total, "seconds": end - start}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
