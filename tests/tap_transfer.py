"""A transfer from this kernel over a TAP into memory that only a copy engine reaches; run in a namespace."""

import hashlib
import socket
import sys
import threading

from conftest import payload
from netmem import CudaProvider, TcpDataSplit, open_device
from netmem.memory.providers.dmabuf import DmabufProvider


class StagedProvider(DmabufProvider):
    """A memfd that the NIC is told to treat as out of its reach."""

    exporter = "staged"
    mappable = False


def main(memory: str, size: int) -> None:
    data = payload(size, 17)
    made = CudaProvider(64 << 20) if memory == "cuda" else StagedProvider(64 << 20, exporter="memfd")
    with made as provider, open_device(wire="tap:nm0") as device:
        device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        with device.bind_rx([1], provider):
            device.steer(5001, queue=1)
            listener = device.listen(5001)
            client = socket.create_connection(("10.20.0.2", 5001), timeout=30)
            sender = threading.Thread(target=lambda: (client.sendall(data), client.close()))
            sender.start()
            digest, total = hashlib.sha256(), 0
            with listener.accept(timeout=30) as sock:
                while message := sock.recvmsg_devmem(timeout=30):
                    if not message.size:
                        break
                    digest.update(message.linear)
                    for frag in message.frags:
                        digest.update(provider.read(int(frag["frag_offset"]), int(frag["frag_size"])))
                    total += message.size
                    sock.devmem_dontneed(message.frags["frag_token"])
            sender.join(30)
    assert (total, digest.digest()) == (size, hashlib.sha256(data).digest())
    print("bit for bit", total)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
