"""vfio_igb.py FUNCTION: an igb behind an IOMMU whose driver lets it write where nothing is mapped any more.

A line for each thing that came true. Runs uncompiled, with NumPy alone.
"""

import subprocess
import sys
import time

import netmem
from netmem.base.errors import NetmemError
from netmem.base.ethtool import TcpDataSplit
from netmem.memory.providers.dmabuf import DmabufProvider

FUNCTION, PEER = sys.argv[1], "10.20.0.1"
COMMAND = f"/sys/bus/pci/devices/{FUNCTION}/config"
SEND = (
    "import socket; s = socket.create_connection(('10.20.0.2', 5001), 20); s.sendall(bytes(20000)); s.recv(1)"
)


def is_master() -> bool:
    with open(COMMAND, "rb") as config:
        return bool(config.read(6)[4] & 4)


def main() -> None:
    with netmem.open_device("igb", bus=f"vfio:{FUNCTION}") as device:
        assert is_master()
        try:
            netmem.open_device("igb", bus=f"vfio:{FUNCTION}")
        except NetmemError as error:
            print("busy:", error, flush=True)
        provider = DmabufProvider(4 << 20, exporter="udmabuf")
        device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        binding = device.bind_rx([1], provider)
        device.steer(5001, 1)
        with device.listen(5001) as listener:
            sender = subprocess.Popen([sys.executable, "-c", SEND])
            with listener.accept(timeout=30) as sock:
                got = 0
                while got < 20000:
                    message = sock.recvmsg_devmem(timeout=20)
                    got += message.size
                    sock.devmem_dontneed(message.frags["frag_token"])
            sender.wait(20)
            assert device.dma_faults() == [], device.dma_faults()
            print("received", got, flush=True)
            # What a driver must not do: the queue goes on, and its memory is not mapped any more.
            io = provider.io_address(device.bus)
            device.bus._detach(io)
            sender = subprocess.Popen([sys.executable, "-c", SEND], stderr=subprocess.DEVNULL)
            end = time.monotonic() + 30
            while not device.dma_faults() and time.monotonic() < end:
                time.sleep(0.1)
            sender.kill()
            sender.wait()
        print("stopped:", device.dma_faults()[0], flush=True)
        device.bus._iovas[io] = provider.size  # so that what follows undoes what it believes to have made
        device.bus._container.map_dma(id(device) & ~4095, io, 4096, 2)
        device.bus._iovas[io] = 4096
        binding.close()
        provider.close()
    assert not is_master()
    with netmem.open_device("igb", bus=f"vfio:{FUNCTION}") as again:  # the first one has given it back
        assert is_master()
        assert again.dev.running
    assert not is_master()
    print("done", flush=True)


main()
