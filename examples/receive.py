"""Receive TCP into memory that the driver never maps, and look at it without a copy.

Run it (receive.py [PORT [softnic|igb]]), then from another terminal:  nc -N 127.0.0.1 5001 < some-file
"""

import sys

import netmem

port = int(sys.argv[1]) if len(sys.argv) > 1 else 5001
nic = sys.argv[2] if len(sys.argv) > 2 else "softnic"
with netmem.open_device(nic, queues=2) as device, netmem.DmabufProvider(64 << 20) as memory:
    device.ethtool.set_ringparam(tcp_data_split="on")
    with device.bind_rx([1], memory):  # queue 0 keeps ordinary pages
        device.steer(port, queue=1)
        listener = device.listen(port)
        print("listening on port", device.forward("127.0.0.1", port, port), flush=True)
        with listener.accept() as sock:
            view, total = memory.map(), 0  # the application's own mapping: uint8, shape (67108864,)
            while (message := sock.recvmsg_devmem()).size:
                total += sum(message.linear)  # short frames: the NIC left them with their headers
                for frag in message.frags:
                    start, size = int(frag["frag_offset"]), int(frag["frag_size"])
                    total += int(view[start : start + size].sum(dtype="uint64"))
                sock.devmem_dontneed(message.frags["frag_token"])
            print("sum of all bytes:", total)
