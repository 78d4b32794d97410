"""Stream tensors of a known shape from plain TCP senders into device memory, and compute while more arrive.

stream_tensors.py [--memory cuda|host] [--senders 4] [--tensors 64] [--area-mib 256]
torchrun --nproc-per-node 2 examples/stream_tensors.py ...

A sender is a socket of the kernel that writes one tensor after the other. With torchrun each rank is a
receiver with a GPU of its own (or one that it shares, where there are fewer), and the senders are sharded
over the ranks. On the GPU tensors are torch's, and no CPU copies payload between the NIC and them; on the
host they are NumPy's. The sum of all products is known, and compared.
"""

import argparse
import asyncio
import os
import socket
import sys
import time

import numpy as np

import netmem
from netmem import AsyncConnection, AsyncStack

PORT = 5001
SHAPE = (1024, 1024)  # float32: 4 MiB
KINDS = 7  # different tensors that a sender sends, in turn


def tensor(sender: int, number: int) -> np.ndarray:
    """What ``sender`` sends as its ``number``-th: small whole numbers, so that sums are exact."""
    items = np.arange(SHAPE[0] * SHAPE[1], dtype=np.int64) * 31 + sender + number
    return (items % KINDS).astype(np.float32).reshape(SHAPE)


def weights() -> np.ndarray:
    """What tensors are multiplied by."""
    return (np.arange(SHAPE[1] * 64, dtype=np.int64) % 5).astype(np.float32).reshape(SHAPE[1], 64)


def expected(sender: int, tensors: int) -> float:
    """The sum of a sender's products."""
    sums = [float(tensor(sender, n).sum(0, dtype=np.float64) @ weights().sum(1)) for n in range(KINDS)]
    return sum(sums[n % KINDS] for n in range(tensors))


def send(sender: int, tensors: int, port: int) -> None:
    """One sender."""
    kinds = [tensor(sender, n) for n in range(KINDS)]
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for n in range(tensors):
            sock.sendall(kinds[n % KINDS])
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)


class OnGpu:
    """Products and their sum on a GPU; nothing waits until ``total``."""

    def __init__(self, device: str) -> None:
        import torch

        self.torch, self.device = torch, device
        torch.cuda.set_device(device)
        self.weights = torch.from_numpy(weights()).to(device)
        self.sum = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, array: object) -> object:
        """Ask for one more product; what must be kept until the next."""
        taken = self.torch.from_dlpack(array)
        self.sum += (taken @ self.weights).sum(dtype=self.torch.float64)
        return taken

    def total(self) -> float:
        """The sum of all."""
        return float(self.sum)


class OnHost:
    """The same by NumPy."""

    device = ""

    def __init__(self) -> None:
        self.weights, self.sum = weights(), 0.0

    def add(self, array: np.ndarray) -> object:
        """Make one more product."""
        self.sum += float((array @ self.weights).sum(dtype=np.float64))
        return array

    def total(self) -> float:
        """The sum of all."""
        return self.sum


async def receive(work: OnGpu | OnHost, memory: object, senders: list[int], tensors: int) -> float:
    """Receive all that ``senders`` send; seconds from the first connection to the end."""
    start = 0.0

    async def handler(connection: AsyncConnection) -> None:
        nonlocal start
        start = start or time.monotonic()
        reader, kept = connection.reader(work.device), None
        for _ in range(tensors):
            kept = work.add(await reader.read_array(SHAPE, "f4"))  # the one before is let go of now
        del kept

    with netmem.open_device() as device:
        device.ethtool.set_ringparam(tcp_data_split="on")
        with device.bind_rx([1], memory):
            device.steer(PORT, queue=1)
            async with AsyncStack(device.stack) as stack:
                port = device.forward("127.0.0.1", 0, PORT)
                server = asyncio.create_task(stack.serve(PORT, handler, limit=len(senders)))
                await asyncio.sleep(0)  # it listens
                argv = [sys.executable, __file__, "--tensors", str(tensors), "--port", str(port), "--send"]
                others = [await asyncio.create_subprocess_exec(*argv, str(sender)) for sender in senders]
                await server
                took = time.monotonic() - start
                await asyncio.gather(*(other.wait() for other in others))
    return took


def reduced(numbers: list[float], ranks: int) -> list[float]:
    """Sums over all ranks; the last number's most."""
    if ranks == 1:
        return numbers
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    sums, most = torch.tensor(numbers, dtype=torch.float64), torch.tensor(numbers[-1], dtype=torch.float64)
    dist.all_reduce(sums)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    dist.destroy_process_group()
    return [*sums.tolist()[:-1], float(most)]


def main() -> None:
    """Receive, compute, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--memory", choices=("cuda", "host"), default="cuda")
    parser.add_argument("--senders", type=int, default=4, help="of all ranks together")
    parser.add_argument("--tensors", type=int, default=64, help="from each sender")
    parser.add_argument("--area-mib", type=int, default=256, help="memory of each receiver")
    parser.add_argument("--send", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.send is not None:
        send(args.send, args.tensors, args.port)
        return
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    mine = list(range(rank, args.senders, ranks))
    memory: netmem.CudaProvider | netmem.DmabufProvider
    work: OnGpu | OnHost
    if args.memory == "cuda":
        import torch

        number = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
        memory, work = netmem.CudaProvider(args.area_mib << 20, device=number), OnGpu(f"cuda:{number}")
    else:
        memory, work = netmem.DmabufProvider(args.area_mib << 20, rx_page_size=65536), OnHost()
    with memory:
        took = asyncio.run(receive(work, memory, mine, args.tensors))
        total = work.total()
    wanted = sum(expected(sender, args.tensors) for sender in mine)
    size = len(mine) * args.tensors * SHAPE[0] * SHAPE[1] * 4
    total, wanted, size, took = reduced([total, wanted, float(size), took], ranks)
    if rank == 0:
        where = f"{ranks} receiver{'s' * (ranks > 1)}, {args.senders} senders, {args.memory} memory"
        verdict = "agree" if total == wanted else f"DIFFER: {total} and {wanted}"
        rate = f"{size / took / 1e9:.2f} GB/s"
        print(f"{where}: {size / (1 << 20):.0f} MiB, {rate}; sums {verdict}")
    sys.exit(total != wanted)


if __name__ == "__main__":
    main()
