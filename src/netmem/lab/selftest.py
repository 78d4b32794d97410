"""A small transfer through two NICs in this process: it compiles every kernel, and checks them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import numpy as np

from netmem.base import jit
from netmem.base.address import ip
from netmem.base.clock import MS, ManualClock
from netmem.base.ethtool import SteeringRule, TcpDataSplit
from netmem.base.frags import FRAG
from netmem.base.record import address_of
from netmem.drivers.igb import kernels as igb
from netmem.drivers.igb.regs import IgbTxRing
from netmem.hw.faults import PlainFrames
from netmem.hw.gve.steering import Steering
from netmem.hw.tap.kernels import VNET_BYTES
from netmem.hw.tap.wire import TapWire
from netmem.hw.wire import FrameRow
from netmem.inet.neighbour import arp_request
from netmem.inet.socket import TcpSocket
from netmem.inet.tcp import calls
from netmem.inet.tcp import receive as rx
from netmem.lab.local import LocalHost, pair
from netmem.lab.observe import OURS
from netmem.memory.layout import PoolRecord
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.memory.providers.pages import PagesProvider
from netmem.netdev.batch import RxBatch
from netmem.netdev.ring import RxRingRecord
from netmem.netdev.tx import TxQueueRecord

SIZE = 100_000
PORT = 7


def selftest() -> None:
    """Send bytes into dmabuf memory, bound pages and unbound pages. RuntimeError when they differ."""
    _compile_igb()
    clock = ManualClock()
    _compile_tap()
    compile_frames()
    for make in (DmabufProvider, PagesProvider, None):
        hosts = _unseen(*pair(clock))
        try:
            _transfer(hosts[0], hosts[1], clock, make)
        finally:
            for host in hosts:
                host.close()
    jit.mark_warm()


def warm_up(*, tap: bool = False) -> None:
    """Load compiled kernels before the first packet needs them, 0.3 s in all, by a transfer."""
    if not jit.COMPILED:
        return
    clock = ManualClock()
    hosts = _unseen(*pair(clock))
    try:
        _transfer(hosts[0], hosts[1], clock, DmabufProvider)
    finally:
        for host in hosts:
            host.close()
    if tap:
        _compile_tap()


def _unseen(*hosts: LocalHost) -> tuple[LocalHost, ...]:
    """Hosts that whoever looks into this process does not take for its devices."""
    for host in hosts:
        host.dev.name = OURS
        host.dev.publish()
    return hosts


def _compile_igb() -> None:
    """The igb driver's kernels on rings that hold nothing: an 82576 is not needed to compile them."""
    nothing, batch, queue = PoolRecord(), RxBatch(1), TxQueueRecord()
    at = address_of(nothing)
    rx = RxRingRecord(pool=at, header_pool=at, mask=-1)  # room for no descriptor
    igb.igb_rx(address_of(rx), batch.at, 0)
    igb.igb_refill(address_of(rx))
    igb.igb_pending(address_of(rx))
    igb.igb_post(address_of(rx))
    tx = IgbTxRing()
    tx.ring.queue = address_of(queue)
    igb.igb_xmit(address_of(tx))
    batch.arena.close()


def compile_frames() -> None:
    """What device models call from Python: a look at a frame, its hash, and its plain form.

    A model in another program's machine does so before it is attached: who waits for its answers, waits for
    seconds only.
    """
    ip4 = b"\x45" + bytes(8) + b"\x06" + bytes(10)
    frame = bytes(12) + b"\x08\x00" + ip4 + bytes(12) + b"\x50" + bytes(100)
    data = np.frombuffer(frame, np.uint8)
    row = FrameRow(header=data.ctypes.data, header_len=len(data))
    Steering(1).see(row)
    PlainFrames().of(row)


def _compile_tap() -> None:
    """A TAP wire whose other end is a socket of ours: an ARP request in, the answer out."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    clock = ManualClock()
    with ours, theirs:
        for scatter in (True, False):
            theirs.setblocking(False)
            wire = TapWire(os.dup(theirs.fileno()), scatter=scatter)
            (host,) = _unseen(LocalHost(wire, "10.0.2.15", clock=clock))
            try:
                asked = arp_request(0x026E6D000002, ip("10.0.2.2"), ip("10.0.2.15"))
                ours.send(bytes(VNET_BYTES) + asked.ljust(60, b"\0"))
                for _ in range(3):
                    host.step(clock.advance(MS))
                if scatter:
                    host.nic.run(0, 1)
                host.nic.interrupt(clock.now())
                answer = ours.recv(2048, socket.MSG_DONTWAIT)
                if answer[VNET_BYTES + 12 : VNET_BYTES + 14] != b"\x08\x06":
                    raise RuntimeError("self-test: a TAP wire gave no answer")
            finally:
                host.close()


def _more_of_tcp(host: LocalHost, sock: TcpSocket, run: Callable[[], None]) -> None:
    """What only happens on bad networks: each once, on a connection with nothing in flight."""
    conns, c = host.stack.conns, sock._c
    option = np.zeros(16, np.uint8)
    calls.sack_in(conns.at, c, option.ctypes.data, 2, 0, -1)
    calls.after_ack(conns.at, c, conns.tcbs[c].snd_una, False, False)
    calls.overtaken(conns.at, c)
    calls.all_lost(conns.at, c)
    calls.duplicate_in(conns.at, c, 0, 0)
    calls.loss_probe(conns.at, c)
    calls.probe(conns.at, c)
    calls.window_updates(conns.at)
    calls.idle_send_buffer(conns.at, 0)
    calls.send_buffer_unused(conns.at, c)
    run()
    calls.timed_out(conns.at, c)


def _both_ways(host: LocalHost, sock: TcpSocket) -> None:
    """What is Python's with the sanitiser or a capture, and a kernel's without; what only servers call."""
    host.stack.activity()
    calls.note_active(host.stack.conns.at, sock._c)
    host.stack.activity()
    table = sock._tokens.at
    rx.receive_frags(table, np.empty((0, 3), np.int64), 0)
    cmsg = np.zeros(2, FRAG)["frag_token"]
    for tokens in (cmsg, cmsg.copy(), np.zeros(2, np.int64)):
        rx.return_tokens(table, tokens)
    sock._tokens.give_back(host.stack.conns, sock._c, np.zeros(2, np.int64))
    host.stack._packets.func(host.dev.batch, 1, host.dev.queues.available(1))
    host.dev.poll(host.dev.now, host.stack._packets, 0)
    host.dev.xmit()


def _datagrams(ours: LocalHost, theirs: LocalHost, memory: DmabufProvider, run: Callable[[], None]) -> None:
    """UDP, and both kinds of send from device memory."""
    with ours.dev.bind_tx(memory) as binding:
        listener = theirs.stack.listen(PORT + 1)
        sock = ours.stack.connect_nowait("10.0.2.2", PORT + 1)
        run()
        peer = listener.accept(timeout=0)
        sock.sendmsg_devmem([(0, 3000)], binding)
        with theirs.stack.udp_socket(PORT) as receiver, ours.stack.udp_socket() as sender:
            sender.sendto(b"hello", ("10.0.2.2", PORT))
            sender.sendmsg_devmem([(0, 100)], binding, ("10.0.2.2", PORT))
            run()
            if len(peer.recv(4000)) != 3000 or receiver.recvmsg_devmem(timeout=0).linear != b"hello":
                raise RuntimeError("self-test: what arrived is not what was sent")
            run()
            sock.wait_zerocopy(0)
        for end in (sock, peer):
            end.close()
        listener.close()
        run()


def _transfer(
    ours: LocalHost,
    theirs: LocalHost,
    clock: ManualClock,
    make: type[DmabufProvider] | type[PagesProvider] | None,
) -> None:
    memory = make(4 << 20) if make else None
    if memory is not None:
        ours.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        binding = ours.dev.bind_rx([1], memory)
    ours.dev.ethtool.add_rule(SteeringRule(queue=1, dst_port=PORT))
    listener = ours.stack.listen(PORT)
    sender = theirs.stack.connect_nowait("10.0.2.15", PORT)

    def run(rounds: int = 4) -> None:
        for _ in range(rounds):
            now = clock.advance(MS)
            ours.step(now)
            theirs.step(now)

    run()
    receiver = listener.accept(timeout=0)
    data = bytes(i * 7 & 0xFF for i in range(SIZE))
    left, got = memoryview(data), bytearray()
    view = memory.map() if memory is not None else None
    while len(got) < SIZE:
        if len(left) and sender.writable():
            left = left[sender.send(left) :]
        run(1)
        if view is not None:
            message = receiver.recvmsg_devmem() if receiver.queued() else None
            if message is not None:
                got += message.linear
                for frag in message.frags:
                    start = int(frag["frag_offset"])
                    got += view[start : start + int(frag["frag_size"])].tobytes()
                receiver.devmem_dontneed(message.frags["frag_token"])
        elif receiver.queued():
            got += receiver.recv(SIZE)
    if got != data:
        raise RuntimeError("self-test: what arrived is not what was sent")
    _both_ways(ours, receiver)
    if isinstance(memory, DmabufProvider):
        _more_of_tcp(theirs, sender, run)
        _datagrams(ours, theirs, memory, run)
    receiver.sendall(b"done")
    run(60)  # long enough for delayed acknowledgements
    sender.recv(4)
    sender.close()
    run()
    receiver.close()
    run()
    if memory is not None:
        binding.close()
        if binding.outstanding():
            raise RuntimeError("self-test: netmem is missing")
        memory.close()
