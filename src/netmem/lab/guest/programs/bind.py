"""bind.py INTERFACE QUEUE MIB COMMAND...: binds a udmabuf to a queue, then becomes the command.

Run in the selftests' folder drivers/net, whose library speaks netlink. The binding lives as long as its
socket, which the command inherits.
"""

import fcntl
import os
import socket
import struct
import sys

sys.path.insert(0, ".")
from lib.py import NetdevFamily

UDMABUF_CREATE = 0x40187542  # include/uapi/linux/udmabuf.h

interface, queue, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) << 20
memory = os.memfd_create("devmem", os.MFD_ALLOW_SEALING)
os.truncate(memory, size)
fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
with open("/dev/udmabuf", "rb+", buffering=0) as device:
    fd = fcntl.ioctl(device, UDMABUF_CREATE, bytearray(struct.pack("=IIQQ", memory, 1, 0, size)))
netdev = NetdevFamily()
queues = [{"id": queue, "type": "rx"}]
netdev.bind_rx({"ifindex": socket.if_nametoindex(interface), "fd": fd, "queues": queues})
netdev.sock.set_inheritable(True)
os.execv(sys.argv[4], sys.argv[4:])
