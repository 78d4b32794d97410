"""One good connection beside a crowd: a thousand idle, tiny, unread or hostile ones on a small pool.

Simulated; ``python -m netmem.testing.crowd`` runs all profiles and compares with the connection alone.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass

from netmem.base.clock import MS, SEC, ManualClock
from netmem.base.ethtool import SteeringRule, TcpDataSplit
from netmem.base.headers import SYN
from netmem.inet.socket import TcpSocket
from netmem.inet.tcp.connections import TcpConfig
from netmem.lab.compiling import ensure_compiled
from netmem.lab.local import LocalHost
from netmem.memory import sanitizer
from netmem.memory.provider import AreaProvider
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.memory.providers.pages import PagesProvider
from netmem.testing import frames
from netmem.testing.wire import FaultyLink

SERVER, CLIENT, PORT = "10.0.2.15", "10.0.2.2", 5001
OTHER = "10.0.2.77"  # where raw peers send from
TICK, CROWD_TICK = MS // 5, 10 * MS
LIMIT_NS = 120 * SEC  # of virtual time: what is not done by then hangs
MSS_OPTION = bytes.fromhex("020405b4")


class Member:
    """One of the crowd: what its two ends do each ``CROWD_TICK``. ``server`` comes when it was accepted."""

    def __init__(self, crowd: Crowd, client: TcpSocket | None) -> None:
        self.crowd, self.client = crowd, client
        self.server: TcpSocket | None = None

    def act(self) -> None:
        """Nothing: an idle one."""

    def receive(self, *, keep: bool = False) -> None:
        """The server's application takes what came, and gives it back unless it is to ``keep`` it."""
        sock = self.server
        while sock is not None and sock.queued():
            message = sock.recvmsg_devmem()
            if len(message.frags) and not keep:
                sock.devmem_dontneed(message.frags["frag_token"])

    def say(self, data: bytes) -> None:
        """The client sends as much of ``data`` as there is room for."""
        sock = self.client
        if sock is not None and sock.can_send() and sock.writable():
            sock.send(data)


class Idle(Member):
    """Was busy once, and has nothing to say since."""

    done = False

    def act(self) -> None:
        if not self.done and self.server is not None:
            self.say(bytes(20_000))
            self.done = True
        self.receive()


class Tiny(Member):
    """A byte at a time, each in a segment of its own."""

    def act(self) -> None:
        if self.client is not None and self.client.can_send():
            self.client.set_nodelay()
            self.say(b"x")
        self.receive()


class TinyUnread(Tiny):
    """The same, and nobody reads it."""

    def receive(self, *, keep: bool = False) -> None:
        """Nobody does."""


class Unread(Member):
    """Sends all that the window takes; nobody reads it."""

    def act(self) -> None:
        self.say(bytes(64_000))


class Kept(Member):
    """Sends all the time; the application keeps every token."""

    def act(self) -> None:
        self.say(bytes(64_000))
        self.receive(keep=True)


class HalfClosed(Member):
    """One end has closed its direction after a while, the other lives on and says nothing."""

    shut = False

    def act(self) -> None:
        if not self.shut and self.server is not None:
            self.shut = True
            self.say(bytes(20_000))
            ends = (self.client, self.server)
            for sock in self.crowd.random.choice((ends[:1], ends[1:], ends)):
                if sock is not None and sock.can_send():
                    sock.shutdown()
        self.receive()


class Hostile(Member):
    """A raw peer: segments out of order and overlapping, short and long, none of which ever fills the gap."""

    def __init__(self, crowd: Crowd, client: TcpSocket | None) -> None:
        super().__init__(crowd, client)
        self.port = 1000 + len(crowd.members)
        self.ack = -1
        crowd.link.ends[0].inject(frames.arp(spa=OTHER))
        self.send(b"", flags=SYN, seq=99, options=MSS_OPTION)

    def send(self, data: bytes, **fields: object) -> None:
        self.crowd.link.ends[0].inject(frames.tcp(data, src=OTHER, sport=self.port, **fields))

    def act(self) -> None:
        conns = self.crowd.server.stack.conns
        if self.ack < 0:
            for c in range(conns.record.rows):
                if conns.tcbs[c].ports >> 16 == self.port and conns.tcbs[c].state:
                    self.ack = conns.tcbs[c].snd_nxt
                    self.send(b"", seq=100, ack=self.ack)
            return
        for _ in range(5):
            size = self.crowd.random.choice((1, 1, 100, 1400))
            self.send(bytes(size), seq=101 + self.crowd.random.randrange(30_000), ack=self.ack)


KINDS: dict[str, type[Member]] = {
    "idle": Idle, "tiny": Tiny, "tiny, unread": TinyUnread, "unread": Unread, "kept": Kept,
    "half-closed": HalfClosed, "hostile": Hostile,
}  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """A crowd: how many of each kind, and the memory that all share (bytes, unreadable or not)."""

    members: tuple[tuple[str, int], ...]
    size: int = 4 << 20
    unreadable: bool = True


PROFILES: dict[str, Profile] = {
    "alone": Profile(()),
    "1,000 idle": Profile((("idle", 1000),)),
    "1,000 half-closed": Profile((("half-closed", 1000),)),
    "1,000 tiny": Profile((("tiny", 1000),)),
    "20 tiny, unread": Profile((("tiny, unread", 20),)),
    "200 tiny, unread, readable memory": Profile((("tiny, unread", 200),), unreadable=False),
    "20 unread": Profile((("unread", 20),)),
    "1 kept": Profile((("kept", 1),)),
    "100 hostile": Profile((("hostile", 100),)),
    "1,000 of all": Profile(
        (
            ("idle", 500),
            ("tiny", 200),
            ("half-closed", 200),
            ("unread", 4),
            ("tiny, unread", 26),
            ("hostile", 70),
        ),
        size=8 << 20,
    ),
}


@dataclass
class Outcome:
    """``rate``: of the good connection, Mbit/s of virtual time; ``opened``: ms until it was open."""

    rate: float
    opened: float
    failed: str
    counters: dict[str, int]


class Crowd:
    """Two hosts on a link of 1 Gbit/s and 1 ms round trip, and the crowd between them."""

    def __init__(self, profile: Profile, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = ManualClock()
        self.link = FaultyLink(seed, delay=MS // 2, rate=1_000_000_000)
        hosts = []
        for end, address, sndbuf in zip(self.link.ends, (SERVER, CLIENT), (64 << 10, 256 << 10), strict=True):
            config = TcpConfig(connections=1200, sndbuf=sndbuf, secret=self.random.randbytes(16))
            hosts.append(LocalHost(end, address, clock=self.clock, config=config))  # type: ignore[arg-type]
        self.server, self.client = hosts
        maker = DmabufProvider if profile.unreadable else PagesProvider
        self.provider: AreaProvider = maker(profile.size)
        self.server.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED, rx_pending=256)
        self.server.dev.bind_rx([0], self.provider)
        self.server.dev.ethtool.add_rule(SteeringRule(queue=0, dst_port=PORT))
        self.listener = self.server.stack.listen(PORT, backlog=1200)
        self.members: list[Member] = []
        self.accepted: dict[int, TcpSocket] = {}
        self._act_at = 0

    def join(self, kind: str) -> None:
        """One more of a kind."""
        client = None if kind == "hostile" else self.client.stack.connect_nowait(SERVER, PORT)
        self.members.append(KINDS[kind](self, client))

    def tick(self, ns: int = TICK) -> None:
        """Everything that happens in the next ``ns``."""
        now = self.clock.advance(ns)
        self.link.move(now)
        self.server.step(now)
        self.client.step(now)
        self.link.move(now)
        while self.listener.pending():
            sock = self.listener.accept(timeout=0)
            self.accepted[sock.peer[1]] = sock
        if now < self._act_at:
            return
        self._act_at = now + CROWD_TICK
        for member in self.members:
            if member.server is None and member.client is not None:
                member.server = self.accepted.get(member.client.port)
            member.act()

    def transfer(self, size: int) -> Outcome:
        """A good connection opens, sends ``size`` bytes and closes."""
        start = self.clock.now()
        sock = self.client.stack.connect_nowait(SERVER, PORT)
        left, got, opened = memoryview(bytes(size)), 0, 0
        server: TcpSocket | None = None
        failed = ""
        while got < size and not failed:
            self.tick()
            if server is None:
                server = self.accepted.get(sock.port)
                opened = self.clock.now() - start
            if len(left) and sock.can_send() and sock.writable():
                left = left[sock.send(left) :]
            while server is not None and server.queued():
                message = server.recvmsg_devmem()
                got += message.size
                if len(message.frags):
                    server.devmem_dontneed(message.frags["frag_token"])
            if self.clock.now() - start > LIMIT_NS:
                failed = f"stalled after {got} of {size} bytes"
        took = self.clock.now() - start
        return Outcome(got * 8e3 / took, opened / MS, failed, self.server.stack.conns.counters())

    def close(self) -> str:
        """Close both hosts; what never came back, as text."""
        for sock in self.accepted.values():
            sock.close()
        for host in (self.server, self.client):
            host.close()
        missing = self.provider.area.count - self.provider.area.free
        self.provider.close()
        return f"{missing} netmems are missing" if missing else ""


def run(profile: Profile, seed: int = 1, *, size: int = 4_000_000, settle: int = 5 * SEC) -> Outcome:
    """Let a crowd gather and live for ``settle`` ns, then measure a good connection beside it."""
    crowd = Crowd(profile, seed)
    for kind, number in profile.members:
        for n in range(number):
            crowd.join(kind)
            if n % 20 == 19:
                crowd.tick()
    for _ in range(settle // MS if profile.members else 10):
        crowd.tick(MS)
    outcome = crowd.transfer(size)
    outcome.failed = outcome.failed or crowd.close()
    return outcome


def main() -> int:
    """Run all profiles; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m netmem.testing.crowd", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--profile", choices=list(PROFILES), action="append", help="only this one")
    args = parser.parse_args()
    sanitizer.enable()  # pledges are checked in every poll
    ensure_compiled()
    alone = run(PROFILES["alone"], args.seed)
    print("| beside | Mbit/s | of that alone | opened after, ms | dropped over share |")
    print("| --- | ---: | ---: | ---: | ---: |")
    bad = 0
    for name in args.profile or PROFILES:
        outcome = run(PROFILES[name], args.seed)
        share = outcome.rate / alone.rate
        good = not outcome.failed and share >= 0.5 and outcome.opened < 3000
        bad += not good
        note = "" if good else f" FAILED {outcome.failed}; --seed {args.seed} --profile '{name}' replays it"
        print(
            f"| {name} | {outcome.rate:.0f} | {share:.2f} | {outcome.opened:.1f} "
            f"| {outcome.counters['over_share']} |{note}", flush=True,
        )  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
