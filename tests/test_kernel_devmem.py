"""The kernel's devmem sockets: how control messages are read and tokens given back. The real thing: tests/guest."""

from __future__ import annotations

import errno
import os
import socket
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmem.base.errors import ETOOSMALL, NetmemError
from netmem.kernel import devmem
from netmem.kernel.devmem import CMSG, RANGE, SO_DEVMEM_DMABUF, SO_DEVMEM_LINEAR, KernelListener, KernelSocket
from netmem.kernel.memory import Dmabuf

LIMIT_S = 30


@pytest.fixture
def pair():
    """A connection of the running kernel's TCP: a plain socket, and ours."""
    with KernelListener(0) as listener:
        plain = socket.create_connection(("127.0.0.1", listener.port), timeout=LIMIT_S)
        with plain, listener.accept(timeout=LIMIT_S) as ours:
            ours.timeout = LIMIT_S
            yield plain, ours


def test_readable_data_comes_by_copy(pair):
    """As the kernel does it: no control message at all."""
    plain, ours = pair
    data = os.urandom(300_000)
    sender = threading.Thread(target=lambda: (plain.sendall(data), plain.shutdown(socket.SHUT_WR)))
    sender.start()
    got = b""
    while (message := ours.recvmsg_devmem()).size:
        assert message.copied
        assert not len(message.frags)
        got += message.linear
    sender.join()
    assert got == data
    assert not ours.recvmsg_devmem().copied
    ours.sendall(b"back")
    assert plain.recv(10) == b"back"


def test_waits_have_an_end(pair):
    _, ours = pair
    with pytest.raises(NetmemError) as error:
        ours.recvmsg_devmem(timeout=0.01)
    assert error.value.errno == errno.ETIMEDOUT
    with KernelListener(0) as listener, pytest.raises(NetmemError) as error:
        listener.accept(timeout=0.01)
    assert error.value.errno == errno.ETIMEDOUT


def test_the_kernel_s_errno_is_passed_on(pair):
    plain, ours = pair
    assert ours.devmem_dontneed([]) == 0
    assert ours.devmem_dontneed([7, 8, 9]) == 0  # of tokens that were never out
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    plain.close()
    with pytest.raises(ConnectionResetError):
        ours.recvmsg_devmem()
    assert "no room for a control message" in devmem._text(ETOOSMALL)


def test_a_connection_that_is_reset_before_it_is_accepted():
    with KernelListener(0) as listener:
        plain = socket.create_connection(("127.0.0.1", listener.port), timeout=LIMIT_S)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        plain.close()
        with listener.accept(timeout=LIMIT_S) as ours, pytest.raises(ConnectionResetError):
            ours.recvmsg_devmem()


# -- what a call brings, against the slow reading of it ---------------------------------------------

CONTROL = st.lists(st.tuples(st.booleans(), st.integers(1, 5000)), max_size=40)


@given(CONTROL)
def test_linear_data_and_frags_keep_their_order(control):
    """(linear?, bytes) in the order of the stream."""
    sock = KernelSocket.__new__(KernelSocket)
    size = sum(n for linear, n in control if linear)
    sock._linear = memoryview(np.random.default_rng(1).bytes(size))
    found = np.zeros(len(control), CMSG)
    sock._control = memoryview(found).cast("B") if control else memoryview(b"")
    sock._ready = devmem.deque()
    for i, (linear, n) in enumerate(control):
        found[i]["type"] = SO_DEVMEM_LINEAR if linear else SO_DEVMEM_DMABUF
        found[i]["frag"] = (i * 4096, n, 0 if linear else i + 1, 0 if linear else 3, 0)
    messages = [sock._sorted(sum(n for _, n in control), found.nbytes), *sock._ready]
    stream, at = [], 0
    for linear, n in control:
        if linear:
            stream += list(sock._linear[at : at + n])
            at += n
        else:
            stream.append(("frag", n))
    got = []
    for message in messages:
        assert message.size or not control
        got += list(message.linear)
        got += [("frag", int(n)) for n in message.frags["frag_size"]]
        assert not message.copied
    assert got == stream


@given(st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 3000)), min_size=1, max_size=300))
def test_tokens_go_back_in_runs_that_the_kernel_takes(runs):
    """What SO_DEVMEM_DONTNEED takes at once: 128 ranges, of which it looks at 1,024 tokens."""
    tokens = np.concatenate([np.arange(first, first + n) for first, n in runs])
    calls = []
    sock = KernelSocket.__new__(KernelSocket)

    def taken(data):
        calls.append(np.frombuffer(data, RANGE))
        return int(calls[-1]["token_count"].sum())

    sock._dontneed = taken
    assert sock.devmem_dontneed(tokens) == len(tokens)
    assert all(1 <= len(call) <= 128 and call["token_count"].sum() <= 1024 for call in calls)
    back = [
        np.arange(int(first), int(first) + int(n))
        for call in calls
        for first, n in call
    ]  # fmt: skip
    assert np.array_equal(np.concatenate(back), tokens)
    calls.clear()
    assert sock.devmem_dontneed(np.array(runs)) == len(tokens)
    assert sock.devmem_dontneed(np.zeros((0, 2), int)) == 0


def test_only_dma_bufs_are_bound():
    if os.path.exists("/dev/udmabuf") or os.path.exists("/dev/dma_heap/system"):
        pytest.skip("this kernel exports dma-bufs: tests/guest has more")
    with pytest.raises(NetmemError) as error:
        Dmabuf(1 << 20)
    assert error.value.errno == errno.ENODEV
    fd = os.memfd_create("x")
    os.truncate(fd, 4096)
    with pytest.raises(NetmemError) as error:
        Dmabuf(fd=fd)
    assert error.value.errno == errno.ENODEV
    os.fstat(fd)
    os.close(fd)
    for size in (0, 5000, -4096):
        with pytest.raises(NetmemError) as error:
            Dmabuf(size)
        assert error.value.errno == errno.EINVAL
