"""Packets per second through the igb driver, against the ceiling of QEMU's device model."""

from __future__ import annotations

import ctypes
import errno
import select
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from netmem.base.address import ip4
from netmem.base.errors import NetmemError
from netmem.base.ethtool import TcpDataSplit
from netmem.base.record import clear
from netmem.bench import kernels as ck
from netmem.bench.figures import Figure
from netmem.drivers.igb import IgbDriver
from netmem.hw.process import python_argv
from netmem.inet.socket import TcpSocket
from netmem.inet.tcp.connections import TcpConfig
from netmem.lab.qemu import QemuHost
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.netdev.tx import SLOT_BYTES, TX_ROWS
from netmem.testing import frames
from netmem.testing.wire import StreamPackets

PORT, PEER_PORT = 5001, 40000
SEGMENT = 1460
ACK_BYTES = 60
DOORBELL = 64  # descriptors for each tail write of the bare loop: with fewer QEMU slows down
WAIT_MS = 1
WINDOW, BURST = 6 << 20, 32  # bytes: more than cable and ring hold; segments
LIMIT_S = 60.0


@dataclass
class PacketRate:
    """Packets per second by the stack and by the bare loop; acknowledgements per packet."""

    stack: Figure
    ceiling: Figure
    acks: float


def packet_rate(rounds: int, packets: int) -> PacketRate:
    """``rounds`` of both in turn, each with ``packets`` full-sized segments over the stream wire.

    Payload goes into unreadable memory. MissingError without a QEMU that has an 82576.
    """
    host = QemuHost(frames.OURS, rx_queues=1, config=TcpConfig(rcvbuf=16 << 20))
    try:
        with DmabufProvider(64 << 20, exporter="memfd") as provider:
            host.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
            binding = host.dev.bind_rx([0], provider)
            sock = _connect(host)
            frame = frames.tcp(
                bytes(SEGMENT), sport=PEER_PORT, dport=PORT, seq=0, ack=host.stack.conns.tcbs[0].snd_nxt
            )
            _open_window(host, sock, frame)
            by_stack, by_loop, acks = [], [], 0.0
            for _ in range(rounds):
                speed, acks = _stack_round(host, sock, frame, packets)
                by_stack.append(speed)
                by_loop.append(_ceiling_round(host, frame, packets, acks))
            sock.abort()
            binding.close()
    finally:
        host.close()
    return PacketRate(Figure(tuple(by_stack)), Figure(tuple(by_loop)), acks)


def _connect(host: QemuHost) -> TcpSocket:
    """A connection whose other end is this function, and later the blaster."""
    wire = StreamPackets(host.cable)
    listener = host.stack.listen(PORT)
    wire.inject(frames.arp())
    options = bytes.fromhex("020405b40103030a")  # MSS 1460, window scale 10
    wire.inject(frames.tcp(sport=PEER_PORT, dport=PORT, flags=2, seq=99, options=options))
    deadline = time.monotonic() + LIMIT_S
    while not listener.pending() and time.monotonic() < deadline:
        wire.exchange(0)
        host.settle(0)
        host.stack.poll()
        wire.exchange(0)
        while wire.sent:
            frame = wire.sent.popleft()
            if frame[12:14] == b"\x08\x00" and frame[47] & 2:
                ack = int.from_bytes(frame[38:42], "big") + 1
                wire.inject(frames.tcp(sport=PEER_PORT, dport=PORT, flags=16, seq=100, ack=ack))
    return listener.accept(timeout=0)


def _open_window(host: QemuHost, sock: TcpSocket, frame: bytes) -> None:
    """Send with acknowledgements until the window is as wide as the blaster needs it, which asks for none."""
    wire, c = StreamPackets(host.cable), 0
    size = 4 + len(frame)
    burst = np.frombuffer((len(frame).to_bytes(4, "big") + frame) * BURST, np.uint8).copy()
    deadline = time.monotonic() + LIMIT_S
    while sock.statistics()["window"] < WINDOW:
        if time.monotonic() > deadline:
            raise NetmemError(errno.ETIMEDOUT, f"the window is {sock.statistics()['window']} bytes")
        seq = host.stack.conns.tcbs[c].rcv_nxt
        ck.number_segments(burst.ctypes.data, BURST, size, seq, SEGMENT)
        for n in range(BURST):
            wire.inject(burst[n * size + 4 : (n + 1) * size].tobytes())
        wire.exchange(0)
        host.settle(0)
        host.stack.poll()
        wire.exchange(0)
        wire.sent.clear()
        while sock.queued():
            message = sock.recvmsg_devmem(max_frags=1024)
            sock.devmem_dontneed(message.frags["frag_token"])
    host.cable.setblocking(True)


def _blast(host: QemuHost, frame: bytes, packets: int, seq: int, run: Callable[[], float]) -> float:
    """Start the blaster, ``run`` until all its packets came; seconds from the first to the last."""
    argv = python_argv(
        "netmem.bench.blaster", "--fd", str(host.cable.fileno()), "--count", str(packets),
        "--seq", str(seq), "--frame", frame.hex(),
    )  # fmt: skip
    sender = subprocess.Popen(argv, pass_fds=[host.cable.fileno()])
    try:
        return run()
    finally:
        sender.kill()
        sender.wait()


def _stack_round(host: QemuHost, sock: TcpSocket, frame: bytes, packets: int) -> tuple[float, float]:
    """Packets per second from NIC to application and back to the pool; acknowledgements per packet."""
    before = host.stack.conns.counters()["out_acks"]

    def run() -> float:
        left, start = packets * SEGMENT, 0.0
        while left:
            message = sock.recvmsg_devmem(max_frags=1024, timeout=LIMIT_S)
            if not message.size:
                raise NetmemError(errno.ECONNRESET, "the connection ended")
            start = start or time.monotonic()
            sock.devmem_dontneed(message.frags["frag_token"])
            left -= message.size
        return time.monotonic() - start

    seconds = _blast(host, frame, packets, host.stack.conns.tcbs[0].rcv_nxt, run)
    return packets / seconds, (host.stack.conns.counters()["out_acks"] - before) / packets


def _ceiling_round(host: QemuHost, frame: bytes, packets: int, acks: float) -> float:
    """Packets per second of a loop that recycles descriptors and sends as many small frames back."""
    driver, tx = host.driver, host.dev.tx
    assert isinstance(driver, IgbDriver)
    ring = driver._rx[0]
    waiter = select.poll()
    waiter.register(driver.irq_fd(), select.POLLIN)
    small = (frames.MAC_THEIRS + frames.MAC_OURS + b"\x88\xb5").ljust(ACK_BYTES, b"\0")

    def send() -> None:
        if tx.record.filled - tx.record.completed < TX_ROWS:
            n, row = tx.record.filled, tx.row(tx.record.filled)
            ctypes.memmove(tx.record.slots + n % TX_ROWS * SLOT_BYTES, small, ACK_BYTES)
            clear(row)
            row.header_len = ACK_BYTES
            tx.record.filled += 1

    def run() -> float:
        taken, sent, start = 0, 0.0, 0.0
        deadline = time.monotonic() + LIMIT_S
        while taken < packets:
            got = ck.recycle(ring.at)
            if not got:
                if time.monotonic() > deadline:
                    raise NetmemError(errno.ETIMEDOUT, f"{taken} of {packets} packets came")
                if waiter.poll(WAIT_MS):
                    driver.irq_ack()
                continue
            start = start or time.monotonic()
            taken += got
            if ring.record.next_to_use - ring.record.tail >= DOORBELL:
                ring.record.tail = ring.record.next_to_use
                host.bus.post32(driver.regs.offset("RDT"), ring.record.next_to_use & ring.record.mask)
            while taken * acks - sent >= 1:
                sent += 1
                send()
            driver.xmit()
        return time.monotonic() - start

    seconds = _blast(host, frame, packets, ip4("0.0.0.1"), run)
    return packets / seconds
