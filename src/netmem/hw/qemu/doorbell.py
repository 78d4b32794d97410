"""Interrupts as eventfds: what an ivshmem server says to QEMU's ivshmem-doorbell device.

A write to the device's doorbell register signals a peer's eventfd; the NIC's MSI-X message is such a
write. Protocol: QEMU's documentation, "Device Specification for Inter-VM shared memory device".
"""

from __future__ import annotations

import os
import socket
import struct

from netmem.base.arena import PAGE_SIZE
from netmem.base.memfd import memfd

PEER = 1  # our number; QEMU's device is 0
REGISTER = 12  # of the doorbell, in BAR 0
MESSAGE = PEER << 16  # vector 0 of that peer


def serve(sock: socket.socket, irq_fd: int) -> None:
    """Say everything that the device waits for when it starts; the socket buffers it."""
    shared, own = memfd("doorbell", PAGE_SIZE), os.eventfd(0, os.EFD_CLOEXEC)
    try:
        sock.sendall(struct.pack("<qq", 0, 0))  # protocol version, the device's number
        for number, fd in ((-1, shared), (PEER, irq_fd), (0, own)):
            socket.send_fds(sock, [struct.pack("<q", number)], [fd])
    finally:
        os.close(shared)
        os.close(own)
