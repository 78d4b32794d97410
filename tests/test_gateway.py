"""The gateway: peers that send single bytes do not take the time of those that send much; no byte is passed over."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time

import pytest

import netmem
from conftest import payload, scaled
from netmem.base.clock import FAR, MS, US
from netmem.lab.gateway import Gateway
from netmem.lab.local import pair
from netmem.lab.turns import LOOKS, MOST_NS, MUCH, RECENT_NS, SHARE, Turns

EVENTS = select.EPOLLIN | select.EPOLLET
NOW = 1000 * MS
LIMIT = 60.0


class Watched:
    """An epoll, turns on it, and pairs of sockets of which one end is watched."""

    def __init__(self, number):
        self.epoll = select.epoll()
        self.turns = Turns(self.epoll, EVENTS)
        self.pairs = [socket.socketpair() for _ in range(number)]
        self.fds = [ours.fileno() for ours, _ in self.pairs]
        for fd in self.fds:
            self.turns.add(fd)

    def told(self, now):
        """Which of them something happened to."""
        ready = self.epoll.poll(0)
        if any(fd == self.turns.fd for fd, _ in ready):
            ready += self.turns.heard(now)
        return {self.fds.index(fd) for fd, _ in ready if fd in self.fds}

    def send(self, *numbers):
        for number in numbers:
            self.pairs[number][1].send(b"x")

    def set_apart(self, now, *numbers):
        """The first one brings much, these have brought little for a while."""
        for _ in range(LOOKS):
            self.turns.note(self.fds[0], MUCH, now)
            for number in numbers:
                self.turns.note(self.fds[number], 1, now)
        assert self.turns.apart == {self.fds[number] for number in numbers}

    def close(self):
        self.turns.close()
        self.epoll.close()
        for ours, theirs in self.pairs:
            ours.close()
            theirs.close()


@pytest.fixture
def watched(request):
    made = Watched(getattr(request, "param", 3))
    yield made
    made.close()


def test_nobody_waits_while_none_brings_much(watched):
    turns = watched.turns
    for i in range(1000):
        now = NOW + i * 10 * US
        assert turns.is_due(now)
        for fd in watched.fds:
            turns.note(fd, 1, now)
        turns.took(now, now + 9 * US)
    assert not turns.apart
    assert turns.timer() == FAR


@pytest.mark.parametrize("look", [2 * US, 20 * US, 500 * US])
@pytest.mark.parametrize("watched", [1, 20], indirect=True)
def test_looks_at_single_bytes_take_a_part_of_the_time(watched, look):
    """One brings much, the others have a byte whenever they are looked at."""
    turns, now, little = watched.turns, NOW, 0
    big, *small = *watched.fds[:1], *watched.fds[1:]
    while now < NOW + 2000 * MS:
        turns.note(big, 1 << 20, now)
        now += 70 * US
        if turns.is_due(now) and small:
            start = now
            for fd in small:
                turns.note(fd, 1, now)
                now += look
            turns.took(start, now)
            little += now - start
        assert turns.apart <= set(small)
    part = little / (now - NOW)
    turn = look * len(small)
    most = max(1 / SHARE, turn / (turn + MOST_NS))  # nobody waits longer than that
    assert part <= most * 1.1
    assert part >= 0.5 / SHARE if small else part == 0


def test_who_brings_much_is_not_set_apart_for_what_comes_between(watched):
    turns = watched.turns
    for i in range(1000):
        now = NOW + i * 50 * US
        turns.note(watched.fds[0], MUCH, now)
        turns.note(watched.fds[1], MUCH if i % LOOKS == 0 else 100, now)
    assert not turns.apart
    turns.note(watched.fds[1], MUCH, now)
    for _ in range(1000):  # the other one has ended: it alone brought much
        turns.note(watched.fds[1], 100, now)
    assert not turns.apart


def test_one_that_asks_and_waits_beside_much_does_not_wait(watched):
    """15 us of looks in each millisecond are less than its part."""
    turns = watched.turns
    for i in range(1000):
        now = NOW + i * MS
        turns.note(watched.fds[0], MUCH, now)
        assert turns.is_due(now)
        turns.note(watched.fds[1], 1, now)
        turns.took(now, now + 15 * US)
        assert turns.timer() == FAR  # it is heard at once


def test_what_happens_between_turns_is_told_at_the_turn(watched):
    turns, now = watched.turns, NOW
    watched.told(now)
    watched.set_apart(now, 1, 2)
    watched.told(now)
    turns.took(now, now + 900 * US)  # much more than their part
    assert not turns.is_due(now + 910 * US)
    watched.send(0, 1, 2)
    assert watched.told(now + 910 * US) == {0}
    due = turns.timer()
    assert now + 910 * US < due <= now + 900 * US + MOST_NS
    assert turns.is_due(due)
    assert watched.told(due) == {1, 2}
    assert watched.told(due) == set()


def test_who_waits_is_heard_again_when_none_brings_much(watched):
    turns, now = watched.turns, NOW
    watched.set_apart(now, 1)
    turns.took(now, now + RECENT_NS - MOST_NS // 2)  # its next turn would be after that
    later = turns.timer()
    assert later == now + RECENT_NS
    assert turns.is_due(later)
    assert turns.timer() == FAR
    watched.send(1)
    assert 1 in watched.told(later)
    assert not turns.apart  # it is watched like the others
    for _ in range(3):
        watched.told(later)
        watched.send(1)
        assert watched.told(later) == {1}


def test_who_brings_much_leaves_at_once_and_nothing_is_missed(watched):
    turns, now = watched.turns, NOW
    watched.set_apart(now, 1)
    turns.took(now, now + 2 * MS)
    watched.told(now)
    watched.send(1)  # while nobody hears of it
    turns.note(watched.fds[1], MUCH, now)
    assert not turns.apart
    assert watched.told(now) >= {1}


def test_who_ends_while_it_waits_keeps_nobody_awake(watched):
    turns, now = watched.turns, NOW
    watched.set_apart(now, 1)
    turns.took(now, now + 2 * MS)
    turns.forget(watched.fds[1])
    later = turns.timer()
    assert later < FAR
    assert turns.is_due(later)
    assert turns.timer() == FAR


def test_a_descriptor_that_comes_again_starts_afresh(watched):
    turns = watched.turns
    watched.set_apart(NOW, 1)
    turns.forget(watched.fds[1])
    ours, theirs = watched.pairs[1]
    number = ours.fileno()
    ours.close()
    theirs.close()
    watched.pairs[1] = socket.socketpair()
    again = watched.pairs[1][0].fileno()
    assert again == number
    turns.add(again)
    watched.told(NOW)
    watched.send(1)
    assert not turns.apart
    assert watched.told(NOW) == {1}


def test_who_is_not_due_has_a_time_to_wait_for(watched):
    """A turn ends when nobody brings much any more, and then somebody does."""
    turns, now = watched.turns, NOW
    watched.set_apart(now, 1)
    end = now + RECENT_NS + 100 * US
    turns.took(end - 1500 * US, end)
    assert turns.timer() == FAR
    turns.note(watched.fds[0], MUCH, end)
    watched.told(end)
    watched.send(1)
    assert not turns.is_due(end + 10 * US)
    assert end < turns.timer() <= end + MOST_NS
    assert 1 not in watched.told(end + 10 * US)
    assert turns.is_due(turns.timer())
    assert 1 in watched.told(turns.timer())


class Between:
    """Clients on this host, the gateway, and a stack behind it, moved on round by round."""

    def __init__(self, number):
        self.ours, self.host = pair()
        self.gateway, self.epoll = Gateway(self.host, "10.0.2.15"), select.epoll()
        self.gateway.watch(self.epoll)
        listener = self.ours.stack.listen(5001)
        port = self.gateway.forward("127.0.0.1", 0, 5001)
        self.clients, self.socks = [], []
        for _ in range(number):
            self.clients.append(socket.create_connection(("127.0.0.1", port), timeout=LIMIT))
            self.clients[-1].setblocking(False)
            self.until(listener.pending)
            self.socks.append(listener.accept(timeout=0))
        self.bridges = list(self.gateway._bridges.values())
        self.apart = self.gateway._turns.apart

    def round(self):
        now = time.monotonic_ns()
        self.gateway.events(self.epoll.poll(0))
        self.gateway.pump(now)
        for host in (self.host, self.ours, self.host):
            host.step(now)

    def until(self, done):
        deadline = time.monotonic() + LIMIT
        while not done():
            assert time.monotonic() < deadline
            self.round()

    def much(self):
        """The first client sends all that there is room for, and it is read."""
        with contextlib.suppress(BlockingIOError):
            self.clients[0].send(bytes(MUCH + scaled(1 << 20)))
        if self.socks[0].queued():
            self.socks[0].recv(1 << 20)

    def set_others_apart(self):
        """The other clients send single bytes beside the first one."""
        wanted = {bridge.kernel.fileno() for bridge in self.bridges[1:]}

        def apart():
            self.much()
            for client, sock in zip(self.clients[1:], self.socks[1:], strict=True):
                if sock.queued():
                    sock.recv(100)
                client.send(b"x")
            return self.apart == wanted

        self.until(apart)

    def close_gateway(self):
        gateway, self.gateway = self.gateway, None
        if gateway is not None:
            gateway.close()

    def close(self):
        self.close_gateway()
        for client in self.clients:
            client.close()
        self.epoll.close()
        self.host.close()
        self.ours.close()


@pytest.fixture
def between():
    made = Between(3)
    yield made
    made.close()


def test_turns_that_others_use_up_do_not_starve_one(between, monkeypatch):
    """What goes outward on one connection takes more than the part of all that are apart; another sends a byte."""
    between.set_others_apart()
    busy, pump = between.bridges[2], between.bridges[2].pump

    def slow(buffer):
        until = time.monotonic_ns() + 200 * US
        while time.monotonic_ns() < until:
            pass
        return pump(buffer)

    monkeypatch.setattr(busy, "pump", slow)
    quiet = between.socks[1]

    def rounds():
        between.much()
        between.socks[2].send(b"y" * 100)
        with contextlib.suppress(BlockingIOError):
            between.clients[2].recv(1 << 20)
        if quiet.queued():
            came.append(quiet.recv(1000))
        return sum(map(len, came))

    came = []
    start = time.monotonic()
    between.until(lambda: rounds() is None or time.monotonic() - start > 0.2)  # what was sent before comes
    before = rounds()
    between.clients[1].send(b"z")
    between.until(lambda: rounds() > before)
    assert came[-1] == b"z"


def test_closing_does_not_wait_for_turns_and_resets_nobody_that_is_done(between):
    between.set_others_apart()
    turns, now = between.gateway._turns, time.monotonic_ns()
    turns.note(between.bridges[0].kernel.fileno(), MUCH, now)
    turns.took(now - 5 * MS, now)
    between.socks[1].send(b"the last words")
    between.socks[1].shutdown()
    for host in (between.ours, between.host, between.ours):
        host.step(time.monotonic_ns())
    assert not turns.is_due(now)
    between.close_gateway()
    client = between.clients[1]
    client.settimeout(LIMIT)
    assert client.recv(100) == b"the last words"
    assert client.recv(100) == b""


@pytest.mark.process
@pytest.mark.parametrize("ends", [True, False])
def test_urgent_bytes_stay_where_they_were_sent(ends):
    """A read of the kernel stops at urgent data: what follows must not wait for what never comes."""
    pieces = [payload(1 + 997 * i % 5000, seed=i) for i in range(60)]
    whole = b"".join(piece + b"!" for piece in pieces)

    def send():
        for piece in pieces:
            sock.sendall(piece)
            sock.send(b"!", socket.MSG_OOB)
        if ends:
            sock.shutdown(socket.SHUT_WR)

    with netmem.open_device() as device:
        listener, port = device.listen(5001), device.forward("127.0.0.1", 0, 5001)
        with (
            socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as sock,
            listener.accept(LIMIT) as ours,
        ):
            thread = threading.Thread(target=send)
            thread.start()
            got = b""
            while len(got) < len(whole):
                got += ours.recv(1 << 16, timeout=LIMIT)
            thread.join()
            assert got == whole
            if ends:
                assert ours.recv(1, timeout=LIMIT) == b""
