"""io_uring by its system calls, and zero-copy receive as far as it goes without a capable NIC."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest

from netmem.base.errors import NetmemError
from netmem.base.frags import FRAG
from netmem.kernel.io_uring import CQE, Ring
from netmem.kernel.memory import Dmabuf
from netmem.kernel.zcrx import COMPLETIONS, ENTRIES, PAGE_SHIFT, REFILL, SQE, Zcrx, ZcrxSocket

NOP, TIMEOUT = 0, 11


@pytest.fixture
def ring():
    try:
        made = Ring(8, 16)
    except NetmemError as error:
        pytest.skip(f"this machine's own kernel: {error}")
    yield made
    made.close()
    made.close()


def request(opcode: int, user_data: int) -> bytes:
    return SQE.pack(opcode, 0, 0, -1, 0, 0, 0, 0, user_data, 0, 0, 0, 0, 0)


def test_requests_and_completions(ring):
    for first in range(0, 120, 12):  # around the rings, several times
        for n in range(12):
            ring.submit(request(NOP, first + n))
        assert ring.wait(5)
        found = ring.completions()
        assert found.dtype == CQE
        assert found["user_data"].tolist() == list(range(first, first + 12))
        assert not found["res"].any()
    assert not ring.wait(0)
    assert len(ring.completions()) == 0


def test_a_wait_ends(ring):
    start = time.monotonic()
    assert not ring.wait(0.2)
    assert 0.15 < time.monotonic() - start < 5


def test_the_event_descriptor_tells(ring):
    poll = select.poll()
    poll.register(ring.event_fd, select.POLLIN)
    assert not poll.poll(0)
    ring.submit(request(NOP, 1))
    assert poll.poll(1000)
    assert ring.wait(0)
    ring.completions()
    assert not poll.poll(0)


def test_a_refusal_leaves_nothing(ring):
    before = len(os.listdir("/proc/self/fd"))
    fd = os.memfd_create("x")
    os.ftruncate(fd, 1 << 20)
    memory = Dmabuf.__new__(Dmabuf)
    memory.fd, memory.size = fd, 1 << 20
    with pytest.raises(NetmemError, match="is refused") as caught:
        Zcrx(socket.if_nametoindex("lo"), 0, memory)
    assert caught.value.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF, errno.ENODEV)
    os.close(fd)
    memory.fd = -1
    del caught
    assert len(os.listdir("/proc/self/fd")) == before


class Fake:
    """The part of a Zcrx that sockets see, on memory that no NIC writes."""

    id, ring, memory = 7, SimpleNamespace(fd=-1), None

    def __init__(self, pages: int) -> None:
        self.pages, self.asked, self.given = pages, [], []

    def attach(self, sock: ZcrxSocket) -> int:
        return 1

    def detach(self, number: int) -> None: ...

    def unread_most(self) -> int:
        return 100_000

    def receive(self, number: int, size: int) -> None:
        self.asked.append(size)

    def refill(self, pages) -> None:
        self.given += pages.tolist()

    def wait(self, timeout) -> bool:
        return False


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    fake = Fake(64)
    sock = ZcrxSocket(fake, ours, ("peer", 1))
    yield fake, sock
    sock.close()
    theirs.close()


def frags_of(*pieces):
    found = np.zeros(len(pieces), FRAG)
    for frag, (offset, size) in zip(found, pieces, strict=True):
        frag["frag_offset"], frag["frag_size"], frag["frag_token"] = offset, size, offset >> PAGE_SHIFT
    return found


def test_a_piece_at_a_time_and_each_page_back_once(pair):
    """A frag that is cut has one reference at the NIC: it goes back with its last piece."""
    fake, sock = pair
    assert fake.asked == [100_000]
    sock.put(frags_of((0, 4096), (4096, 4096), (8192, 100)))
    got, tokens = [], []
    while sock.has_ready():
        message = sock.recvmsg_devmem(1000)
        assert 0 < message.size <= 1000
        got += message.frags[["frag_offset", "frag_size"]].tolist()
        tokens += message.frags["frag_token"].tolist()
    at = 0
    for offset, size in got:
        assert offset == at
        at += size
    assert at == 8292
    returned = [sock.devmem_dontneed(token) for token in tokens]
    assert sum(returned) == len(tokens)
    assert sorted(fake.given) == [0, 1, 2]
    assert sock.devmem_dontneed(tokens) == 0  # nothing is given back twice
    assert sock.devmem_dontneed([-1, 64, 1 << 20]) == 0


@pytest.mark.parametrize("seed", range(20))
def test_any_cutting_gives_every_reference_back(pair, seed):
    fake, sock = pair
    rng = np.random.default_rng(seed)
    expected = deque()
    for _ in range(30):
        pages = rng.permutation(64)[: rng.integers(1, 20)]
        pieces = [
            (int(page) * 4096 + int(rng.integers(0, 100)), int(rng.integers(1, 3000))) for page in pages
        ]
        sock.put(frags_of(*pieces))
        expected += [offset >> PAGE_SHIFT for offset, _ in pieces]
    held, messages = [], []
    while sock.has_ready():
        size = int(rng.integers(1, 9000)) if rng.random() < 0.5 else 1 << 20
        message = sock.recvmsg_devmem(size, max_frags=int(rng.integers(1, 9)))
        if rng.random() < 0.5:  # as they came, later, in any order
            messages.append(message.frags["frag_token"])
        else:
            held += message.frags["frag_token"].tolist()
        if messages and rng.random() < 0.6:
            tokens = messages.pop(int(rng.integers(0, len(messages))))
            assert sock.devmem_dontneed(tokens) == len(tokens)
        if rng.random() < 0.5:
            some = [held.pop(int(rng.integers(0, len(held)))) for _ in range(len(held) // 2)]
            assert sock.devmem_dontneed(some) == len(some)
    sock.close()  # takes back what is still held
    assert sorted(fake.given) == sorted(expected)


def test_what_nobody_reads_is_not_asked_for(pair):
    fake, sock = pair
    sock.put(frags_of(*((n * 4096, 4096) for n in range(20))))
    sock._asked = 0
    sock.ended(0)  # all that was asked for has come
    assert fake.asked == [100_000]  # more than half of it is unread
    while sock.has_ready():
        sock.devmem_dontneed(sock.recvmsg_devmem(8192).frags["frag_token"])
    assert len(fake.asked) == 2
    sock.ended(errno.ENOSPC)
    assert len(fake.asked) == 3
    sock.ended(0)  # less came than was asked for: the end
    assert sock.recvmsg_devmem().size == 0
    assert len(fake.asked) == 3


def test_errors_come_after_the_payload(pair):
    _, sock = pair
    sock.put(frags_of((0, 10)))
    sock.ended(errno.ENOMEM)
    assert sock.recvmsg_devmem().size == 10
    with pytest.raises(NetmemError) as caught:
        sock.recvmsg_devmem()
    assert caught.value.errno == errno.ENOMEM


def test_a_timeout(pair):
    _, sock = pair
    with pytest.raises(NetmemError) as caught:
        sock.recvmsg_devmem(timeout=0.05)
    assert caught.value.errno == errno.ETIMEDOUT


def test_layouts():
    assert SQE.size == 64
    assert REFILL.itemsize == 16
    assert CQE.itemsize == 32
    assert ENTRIES <= COMPLETIONS


def test_a_closed_ring_is_looked_at_by_nobody(ring):
    ring.close()
    with pytest.raises(NetmemError, match="closed") as caught:
        ring.wait(0)
    assert caught.value.errno == errno.EBADF


def test_who_watches_is_told(pair):
    _, sock = pair
    told = []
    sock.watch(lambda: told.append(1))
    sock.put(frags_of((0, 10)))
    sock.ended(errno.EBADF)
    assert len(told) == 2
    sock.watch(None)
    sock.put(frags_of((4096, 10)))
    assert len(told) == 2
