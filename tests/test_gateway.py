"""The gateway: peers that send single bytes do not take the time of those that send much; no byte is passed over."""

from __future__ import annotations

import select
import socket
import threading

import pytest

import netmem
from conftest import payload
from netmem.base.clock import FAR, MS, US
from netmem.lab.turns import LOOKS, MOST_NS, MUCH, RECENT_NS, SHARE, Turns

EVENTS = select.EPOLLIN | select.EPOLLET
NOW = 1000 * MS


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

    def few(self, *numbers):
        """They have brought little for a while."""
        for number in numbers:
            for _ in range(LOOKS):
                self.turns.note(self.fds[number], 1, NOW - MS)

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
    watched.few(1, 2)
    turns.note(watched.fds[0], MUCH, now)
    for fd in watched.fds[1:]:
        turns.note(fd, 1, now)
    assert turns.apart == set(watched.fds[1:])
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
    watched.few(1)
    turns.note(watched.fds[0], MUCH, now)
    turns.note(watched.fds[1], 1, now)
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
    watched.few(1)
    turns.note(watched.fds[0], MUCH, now)
    turns.note(watched.fds[1], 1, now)
    turns.took(now, now + 2 * MS)
    watched.told(now)
    watched.send(1)  # while nobody hears of it
    turns.note(watched.fds[1], MUCH, now)
    assert not turns.apart
    assert watched.told(now) >= {1}


def test_who_ends_while_it_waits_keeps_nobody_awake(watched):
    turns, now = watched.turns, NOW
    watched.few(1)
    turns.note(watched.fds[0], MUCH, now)
    turns.note(watched.fds[1], 1, now)
    turns.took(now, now + 2 * MS)
    turns.forget(watched.fds[1])
    later = turns.timer()
    assert later < FAR
    assert turns.is_due(later)
    assert turns.timer() == FAR


def test_a_descriptor_that_comes_again_starts_afresh(watched):
    turns = watched.turns
    watched.few(1)
    turns.note(watched.fds[0], MUCH, NOW)
    turns.note(watched.fds[1], 1, NOW)
    assert turns.apart
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
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock, listener.accept(60) as ours:
            thread = threading.Thread(target=send)
            thread.start()
            got = b""
            while len(got) < len(whole):
                got += ours.recv(1 << 16, timeout=60)
            thread.join()
            assert got == whole
            if ends:
                assert ours.recv(1, timeout=60) == b""
