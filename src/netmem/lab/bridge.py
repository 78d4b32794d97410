"""One connection through the gateway: a kernel socket on one side, a connection of our stack on the other."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys

from netmem.inet.socket import TcpSocket
from netmem.inet.tcp.tcb import TcpState

CHUNK = 2 << 20
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST

# struct tcp_info (linux/tcp.h): tcpi_state, and tcpi_bytes_acked, which counts SYN and FIN of ours, too.
TCP_CLOSE = 7
BYTES_ACKED = 120


class Bridge:
    """One connection: kernel socket on one side, ours on the other. ``active``: the kernel's connects."""

    def __init__(self, kernel: socket.socket, ours: TcpSocket, *, active: bool) -> None:
        self.kernel, self.ours, self._active = kernel, ours, active
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # urgent bytes are bytes (RFC 6093)
        self.readable = self.writable = True  # until the kernel says that it would block
        self.thorough = False  # behind a short read there may be more: an end, or what follows urgent data
        self.again = False  # whether the last ``pump`` may have left something behind
        self.in_done = self.out_done = False
        self.held = memoryview(b"")
        self.taken = 0  # bytes that the kernel took
        self.moved = 0  # bytes, both ways, of the last ``pump``

    def pump(self, buffer: bytearray) -> bool:
        """Move bytes both ways; True when any moved. OSError ends the bridge."""
        state = self.ours.state()
        self.moved, self.again = 0, False
        if state in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED):
            return False
        came = went = False
        if not self.in_done and self.readable:
            came = self._inward()
        if not self.out_done and self.writable:
            went = self._outward(buffer)
        elif not self.out_done and state == TcpState.CLOSED:
            self.ours.check_error()  # a reset does not wait until the host reads
        self.again = went or (came and self.readable)
        return came or went

    def _inward(self) -> bool:
        if not self.ours.can_send():
            self.in_done = True  # the stack behind the NIC closed its end for good
            return False
        window = self.ours.send_window()[:CHUNK]
        if not len(window):
            return False
        try:
            n = self.kernel.recv_into(window)
        except BlockingIOError:
            self.ours.commit(0)
            self.readable = False
            return False
        self.ours.commit(n)
        self.moved += n
        self.readable = n == len(window) or self.thorough or not n
        if not n:
            self.in_done = True
            self.ours.shutdown()
        return True

    def _outward(self, buffer: bytearray) -> bool:
        if not len(self.held):
            if self.ours.queued():
                n = self.ours.recv_into(buffer)
                self.held = memoryview(bytes(memoryview(buffer)[:n]))
            elif self.ours.at_end():
                self.ours.recv(1)  # raises what ended it, if anything did
                self.out_done = True
                self.kernel.shutdown(socket.SHUT_WR)
                return True
            else:
                return False
        try:
            sent = self.kernel.send(self.held)
        except BlockingIOError:
            self.writable = False
            return False
        self.held = self.held[sent:]
        self.taken += sent
        self.moved += sent
        return True

    def _told(self) -> tuple[int, int]:
        """State of the kernel's connection, and bytes that the far end's host has acknowledged."""
        info = self.kernel.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_ACKED + 8)
        acknowledged = int.from_bytes(info[BYTES_ACKED : BYTES_ACKED + 8], sys.byteorder) - self._active
        return info[0], max(0, min(self.taken, acknowledged))

    def handed(self) -> int:
        """Bytes that the far end's host has acknowledged, also after it has reset the connection."""
        return self._told()[1]

    def left(self) -> int:
        """Bytes that the stack sent before it closed its end, and that are still on their way."""
        if self.out_done:
            return self.taken - self.handed()
        return len(self.held) + self.ours.queued() + 1 if self.ours.at_end() else 0

    def finished(self) -> bool:
        """True when both directions are done, and the host has everything. ECONNRESET when it never will."""
        if not (self.in_done and self.out_done):
            return False
        state, handed = self._told()
        if handed < self.taken and state == TCP_CLOSE:
            raise ConnectionResetError(errno.ECONNRESET, "the host reset the connection")
        return handed == self.taken

    def close(self) -> None:
        self.ours.close()
        with contextlib.suppress(OSError):  # what is left unread would turn the end into a reset
            while self.kernel.recv(CHUNK):
                pass
        self.kernel.close()

    def reset(self) -> None:
        """One side failed: reset both."""
        self.ours.abort()
        with contextlib.suppress(OSError):  # it may be gone already
            self.kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.kernel.close()
