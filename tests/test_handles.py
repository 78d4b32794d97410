"""Handles that outlive what they stand for: sockets, listeners, stacks, bindings, calls to the NIC's process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import make_provider, need_qemu, payload, transfer
from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.base.ethtool import TcpDataSplit
from netmem.drivers.softnic import SoftnicDriver
from netmem.hw.process import Child
from netmem.inet.aio import AsyncStack
from netmem.inet.stack import Stack
from netmem.inet.tcp.connections import TcpConfig
from netmem.inet.tcp.tcb import TcpState
from netmem.inet.tokens import Tokens
from netmem.lab.device import open_device
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.memory.providers.pages import PagesProvider
from netmem.memory.sanitizer import SanitizerError
from netmem.netdev.napi import PacketType
from netmem.testing.net import OURS, PORT


def refused(code, call, *args, **words):
    with pytest.raises(OSError) as error:
        call(*args, **words)
    assert error.value.errno == code, error.value
    return error.value


# -- sockets ----------------------------------------------------------------------------------------


def test_a_closed_socket_says_nothing_of_whoever_has_its_row(network):
    net = network()
    ours, theirs, _ = net.connect()
    theirs.send(b"abc")
    net.until(ours.queued)
    assert ours.recv(3) == b"abc"
    c = ours._c
    ours.abort()
    theirs.abort()
    net.run(5)
    other, peer, _ = net.connect()
    assert other._c == c  # the row is another connection's now
    peer.send(b"not for the closed one")
    net.until(other.queued)
    assert ours.state() == TcpState.CLOSED
    assert ours.queued() == 0
    assert ours.statistics()["bytes_in"] == 3
    assert ours.acknowledged() == 0
    assert not ours.can_send()
    assert ours.drained()
    ours.wait_drained(0)
    for call in (ours.recv, ours.recvmsg_devmem):
        refused(errno.EBADF, call, 1)
    refused(errno.EBADF, ours.send, b"x")
    assert other.state() == TcpState.ESTABLISHED


def test_wait_drained_after_close_waits_for_the_last_acknowledgement(network):
    net = network()
    ours, theirs, _ = net.connect()
    ours.send(payload(1000))
    ours.close()
    assert not ours.drained()
    net.until(ours.drained)
    assert theirs.queued() == 1000


def test_errors_are_the_builtin_ones_too(network):
    net = network()
    ours, theirs, _ = net.connect()
    theirs.abort()
    net.run(5)
    with pytest.raises(ConnectionResetError) as error:
        ours.recv(1)
    assert isinstance(error.value, NetmemError)
    sock = net.peer.stack.connect_nowait("10.0.2.15", 9)
    net.run(10)
    with pytest.raises(ConnectionRefusedError):
        sock.recv(1)
    for code, builtin in ((errno.EPIPE, BrokenPipeError), (errno.ETIMEDOUT, TimeoutError)):
        made = NetmemError(code, "text")
        assert isinstance(made, builtin)
        assert (made.errno, made.strerror) == (code, "text")
    assert type(DeviceGoneError("gone")) is DeviceGoneError
    assert DeviceGoneError("gone").errno == errno.ENODEV


# -- asyncio ----------------------------------------------------------------------------------------


@pytest.fixture
def device():
    with open_device() as opened:
        yield opened


def test_accept_on_a_closed_listener_ends(device):
    async def main():
        async with AsyncStack(device.stack) as stack:
            listener = device.listen(7)
            waiting = asyncio.create_task(stack.accept(listener))
            await asyncio.sleep(0)
            listener.close()
            with pytest.raises(NetmemError) as error:
                await asyncio.wait_for(waiting, 5)
            assert error.value.errno == errno.EBADF

    asyncio.run(main())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_closing_the_stack_ends_every_wait(elsewhere):
    async def main():
        device = open_device()
        async with AsyncStack(device.stack) as stack:
            listener = device.listen(7)
            waiting = [asyncio.create_task(stack.accept(listener)) for _ in range(3)]
            await asyncio.sleep(0)
            start = time.monotonic()
            if elsewhere:
                await asyncio.get_running_loop().run_in_executor(None, device.close)
            else:
                device.close()
            assert time.monotonic() - start < 5
            for one in waiting:
                with pytest.raises(NetmemError) as error:
                    await asyncio.wait_for(one, 5)
                assert error.value.errno == errno.EBADF
            with pytest.raises(NetmemError):
                await stack.wait(lambda: False, None, "anything")
        # leaving the block does not touch descriptors that are others' by now

    asyncio.run(main())


def test_one_handler_that_raises_ends_nobody_else(device):
    port = device.forward("127.0.0.1", 0, 7)
    failed, served = [], []

    async def handler(connection):
        data = await connection.recv(10)
        if data == b"bad":
            raise ValueError("no")
        served.append(data)
        await connection.sendall(data)

    def talk(data):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(data)
            return sock.recv(10)

    async def main():
        async with AsyncStack(device.stack) as stack:
            loop = asyncio.get_running_loop()
            serving = asyncio.create_task(stack.serve(7, handler, limit=3, failed=failed.append))
            await asyncio.sleep(0)  # it listens
            await loop.run_in_executor(None, talk, b"bad")
            assert await loop.run_in_executor(None, talk, b"good") == b"good"
            assert await loop.run_in_executor(None, talk, b"fine") == b"fine"
            await asyncio.wait_for(serving, 20)

    asyncio.run(main())
    assert served == [b"good", b"fine"]
    (one,) = failed
    assert isinstance(one.error, ValueError)


# -- stack and device -------------------------------------------------------------------------------


def children():
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def test_a_stack_that_cannot_be_made_leaves_no_process(monkeypatch):
    before = children()

    def broken(*args, **words):
        raise NetmemError(errno.EINVAL, "broken")

    monkeypatch.setattr(Stack, "__init__", broken)
    refused(errno.EINVAL, open_device)
    assert children() <= before


def test_an_error_in_the_service_thread_is_the_applications_to_see(device, monkeypatch):
    stack = device.stack
    real = stack.dev.begin_poll
    hit = threading.Event()

    def poll(*args, **words):
        if threading.current_thread().name == "netmem-stack" and not hit.is_set():
            hit.set()
            raise OSError(errno.EIO, "a broken driver")
        return real(*args, **words)

    monkeypatch.setattr(stack.dev, "begin_poll", poll)
    assert hit.wait(20)
    listener = device.listen(7)
    refused(errno.EIO, listener.accept, 5)
    monkeypatch.undo()
    port = device.forward("127.0.0.1", 0, 7)  # and the thread serves on
    with socket.create_connection(("127.0.0.1", port), timeout=20):
        listener.accept(20).close()


def test_an_exception_while_receiving_hands_nothing_up_twice(network, monkeypatch):
    net = network()
    net.bind(make_provider("dmabuf"))
    ours, theirs, _ = net.connect()
    theirs.send(payload(5000))
    stack = net.ours.stack
    real, seen = stack._packets, []

    def receive(batch, queue, available):
        seen.append(len(batch))
        if len(seen) == 1:
            raise ValueError("a broken stack")
        real.func(batch, queue, available)

    monkeypatch.setattr(stack, "_packets", PacketType(receive, at=real.at))
    with pytest.raises(ValueError, match="broken"):
        net.run(5)
    net.until(lambda: ours.queued() == 5000)  # the peer sends it again, each segment arrives once
    assert stack.conns.counters()["dup_dropped"] == 0
    message = ours.recvmsg_devmem()
    ours.devmem_dontneed(message.frags["frag_token"])


def test_a_poll_that_is_broken_off_leaves_nothing_to_another_queue(network, monkeypatch):
    net = network()
    net.bind(make_provider("dmabuf"))
    ours, theirs, _ = net.connect()
    dev, pool = net.ours.dev, net.ours.dev.rx_queues[1].pool
    real, hit = dev.poll_stage, []

    def broken(stage, who):
        if not hit and dev.napi.queue.index == 1:
            hit.append(stage)
            raise KeyboardInterrupt  # while compiled code ran: it is raised when that comes back
        real(stage, who)

    theirs.send(payload(5000))
    theirs.shutdown()  # for the state machine: Python's share
    monkeypatch.setattr(dev, "poll_stage", broken)
    with pytest.raises(KeyboardInterrupt):
        net.run(20)
    with net.peer.stack.udp_socket() as other:
        for port in range(7000, 7032):  # some of them to queue 0: no rule steers those
            other.sendto(bytes(1000), (OURS, port))
        for _ in range(4):
            net.peer.step(net.clock.now())
            net.ours.settle(net.clock.now())
    assert dev.driver.pending_kernel(dev.driver._rx[0].at)
    net.until(lambda: ours.at_end() and ours.queued() == 5000)
    assert hit
    message = ours.recvmsg_devmem()
    assert message.size == 5000
    ours.devmem_dontneed(message.frags["frag_token"])
    net.run(3)
    record = pool.record
    kept = record.alloc.count + record.ring.producer - record.ring.consumer
    assert pool.area.count - pool.area.free - kept == record.posted
    assert net.ours.stack.conns.counters()["left_queue"] == 0


@pytest.mark.parametrize("end", ["unbind", "stop"])
def test_tokens_of_a_pool_that_is_gone_are_nobodys(network, end):
    net = network()
    net.bind(make_provider("dmabuf"))
    ours, theirs, _ = net.connect()
    theirs.send(payload(5000))
    net.until(lambda: ours.queued() == 5000)
    tokens = ours.recvmsg_devmem().frags["frag_token"].copy()
    assert ours.devmem_dontneed(tokens) == len(tokens)
    if end == "unbind":
        net.binding.close()
    else:
        net.ours.dev.stop()
    gc.collect()
    with contextlib.suppress(SanitizerError):  # it says that they were returned before
        assert ours.devmem_dontneed(tokens) == 0
    assert ours.devmem_dontneed(np.zeros(0, np.uint32)) == 0


class PostsInPython(SoftnicDriver):
    """Tells its device of buffers in a way of its own."""

    @staticmethod
    def post_kernel(ring_at):
        return 1

    def post(self, ring, queue):
        self.bus.doorbell()


def test_a_driver_that_is_compiled_in_part_works(network):
    net = network(driver=PostsInPython)
    net.bind(make_provider("dmabuf"))
    ours, theirs, _ = net.connect()
    data = payload(200_000)
    assert transfer(net, theirs, ours, data, net.provider) == data
    assert net.ours.driver.netdev_ops().refill == 0


# -- memory bound more than once --------------------------------------------------------------------


@pytest.mark.parametrize("nic", ["softnic", "igb"])
def test_memory_may_be_bound_twice_and_closed_with_a_send_in_flight(nic, network):
    if nic == "igb":
        need_qemu()
    net = network(nic=nic, rx_queues=3)
    provider = make_provider("bar" if nic == "igb" else "dmabuf", net)
    net.bind(provider, queue=1)
    again = net.ours.dev.bind_rx([2], provider)
    sending = net.ours.dev.bind_tx(provider)
    assert len({net.binding.id, again.id, sending.id}) == 3
    ours, theirs, _ = net.connect()
    theirs.send(payload(3000))
    net.until(lambda: ours.queued() == 3000)
    frags = ours.recvmsg_devmem().frags
    assert set(frags["dmabuf_id"].tolist()) == {net.binding.id}
    ours.sendmsg_devmem([(0, 3000)], sending)
    again.close()
    provider.close()  # its users go on
    refused(errno.EBADF, net.ours.dev.bind_tx, provider)
    net.until(lambda: theirs.queued() == 3000)
    ours.devmem_dontneed(frags["frag_token"])
    net.until(ours.zerocopy_done)
    sending.close()
    net.binding.close()
    net.provider = None  # closed: nothing to count any more
    ours.close()
    net.run(5)
    net.ours.dev.reap(net.clock.now())
    assert net.ours.dev.queues.bindings == net.ours.dev.tx_bindings == []


# -- the control socket -----------------------------------------------------------------------------

ECHO = """
import json, socket, sys, time
sock = socket.socket(fileno=int(sys.argv[-1]))
sock.send(json.dumps({"event": "ready"}).encode())
while data := sock.recv(1 << 16):
    request = json.loads(data)
    time.sleep(request.get("sleep", 0))
    sock.send(json.dumps({"id": request["id"], "result": request["what"]}).encode())
"""


@pytest.fixture
def child():
    made = Child([sys.executable, "-c", ECHO])
    made.wait_ready()
    yield made
    made.close()


def test_threads_get_their_own_answers(child):
    wrong = []

    def call(n):
        for i in range(100):
            if child.call({"op": "echo", "what": [n, i]}) != [n, i]:
                wrong.append((n, i))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_an_answer_that_comes_too_late_is_nobodys(child):
    refused(errno.ETIMEDOUT, child.call, {"op": "echo", "what": "late", "sleep": 0.5}, timeout=0.1)
    assert child.call({"op": "echo", "what": "mine"}) == "mine"


# -- accounts ---------------------------------------------------------------------------------------


def test_accounts_are_checked_with_optimisation_on():
    """Not by assert statements, which ``python -O`` takes out."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from netmem.testing.net import Network
from netmem.memory.providers.dmabuf import DmabufProvider
net = Network()
net.bind(DmabufProvider(8 << 20, exporter="memfd"))
pool = net.ours.dev.rx_queues[1].pool
pool.alloc_netmems(1)
try:
    net.close()
except AssertionError as error:
    print("caught", error)
"""
    import subprocess

    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("caught netmems that never came back"), done.stderr


def test_tokens_that_outlive_their_device_let_the_memory_go():
    memory = DmabufProvider(4 << 20, exporter="memfd")
    device = open_device()
    device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
    device.bind_rx([1], memory)
    device.steer(5001, 1)
    listener, port = device.listen(5001), device.forward("127.0.0.1", 0, 5001)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        sock = listener.accept(10)
        client.sendall(payload(20_000))
        message = sock.recvmsg_devmem(timeout=10)
        device.close()
    assert len(message.frags)
    sock.close()
    assert sock._conns.tcbs[sock._c].user >= 0
    assert not memory._mapped
    assert memory.area.free == memory.area.count
    memory.close()
    assert memory.fd == -1


def test_closed_memory_is_refused_for_what_it_is():
    with open_device() as device:
        device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        for memory in (PagesProvider(1 << 20), DmabufProvider(1 << 20, exporter="memfd")):
            memory.close()
            with pytest.raises(NetmemError, match="provider is closed") as caught:
                device.bind_rx([1], memory)
            assert caught.value.errno == errno.EBADF
        assert device.dev.queues.is_present()


def test_nothing_is_lost_when_tokens_cannot_be_had(network, monkeypatch):
    net = network()
    sock, theirs, _ = net.connect()
    theirs.send(b"x" * 5000)
    net.until(lambda: sock.queued() == 5000)

    def reserve(self, n):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Tokens, "reserve", reserve)
        with pytest.raises(OSError, match="Too many"):
            sock.recvmsg_devmem(max_frags=5000)
    assert sock.queued() == 5000
    assert sock.recvmsg_devmem(max_frags=5000).linear == b"x" * 5000


def test_an_application_that_holds_a_closed_device_lets_its_memory_go():
    with open_device() as device, DmabufProvider(1 << 20, exporter="memfd") as memory:
        device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        device.bind_rx([1], memory)
        fd = memory.fd
    gc.collect()
    assert memory.fd == -1
    assert not os.path.exists(f"/proc/self/fd/{fd}") or "dmabuf" not in os.readlink(f"/proc/self/fd/{fd}")
    assert json.dumps(memory.describe())
    assert TcpConfig().connections > 0
    assert PORT
