"""A deterministic simulator: two stacks on a faulty link, and time that jumps from event to event.

``simulate(seed, path)`` runs connections to their end and says what became of them; the same seed gives the
same run, byte for byte and nanosecond for nanosecond. ``python -m netmem.testing.simulate`` runs many.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path as Path_

from netmem.base.clock import MS, SEC, ManualClock
from netmem.base.ethtool import SteeringRule, TcpDataSplit
from netmem.inet.socket import TcpSocket
from netmem.inet.tcp.connections import TcpConfig
from netmem.inet.tcp.tcb import TcpState
from netmem.lab.compiling import ensure_compiled
from netmem.lab.local import LocalHost
from netmem.memory.provider import AreaProvider
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.testing.wire import FaultyLink

SERVER, CLIENT, PORT = "10.0.2.15", "10.0.2.2", 5001
CHUNK = 500  # seeds between two lines of progress
LIMIT_NS = 3600 * SEC  # of virtual time: a connection that is not done by then hangs


@dataclass(frozen=True, kw_only=True)
class Path:
    """The network between the two: see ``FaultyLink``. ``delay`` one way, ns; ``rate`` in bits a second."""

    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    damage: float = 0.0
    delay: int = 1 * MS
    late: int = 3 * MS
    rate: int = 0
    queue: int = 1000
    mtu: int = 1500


@dataclass
class Outcome:
    """What a simulation came to. ``failed``: what went wrong, empty when nothing did."""

    seed: int
    connections: int
    bytes: int = 0
    ns: int = 0  # of virtual time, until the last byte was read
    failed: str = ""
    link: dict[str, int] = field(default_factory=dict)
    sender: dict[str, int] = field(default_factory=dict)
    receiver: dict[str, int] = field(default_factory=dict)

    @property
    def goodput(self) -> float:
        """Payload bits a second of virtual time, all connections together."""
        return self.bytes * 8e9 / self.ns if self.ns else 0.0


class _Transfer:
    """One connection: the client sends ``up``, the server ``down``; both close when they have all."""

    def __init__(self, client: TcpSocket, up: bytes, down: bytes) -> None:
        self.client = client
        self.server: TcpSocket | None = None
        self.up, self.down = up, down
        self.left = {True: memoryview(up), False: memoryview(down)}
        self.got: dict[bool, bytearray] = {True: bytearray(), False: bytearray()}
        self.shut = {True: False, False: False}
        self.closed = False

    def ends(self) -> list[tuple[bool, TcpSocket]]:
        """The sockets there are: (True, client), (False, server)."""
        both = [(True, self.client)]
        return [*both, (False, self.server)] if self.server is not None else both


class Simulation:
    """Two hosts, a link, and connections between them. ``memory``: bound to the server's queue, or None."""

    def __init__(self, seed: int, path: Path, *, bound: bool = True, connections: int = 64) -> None:
        self.random = random.Random(seed)
        self.clock = ManualClock()
        self.link = FaultyLink(
            seed, loss=path.loss, reorder=path.reorder, duplicate=path.duplicate, damage=path.damage,
            delay=path.delay, late=path.late, rate=path.rate, queue=path.queue,
        )  # fmt: skip
        self.hosts: list[LocalHost] = []
        for end, address in zip(self.link.ends, (SERVER, CLIENT), strict=True):
            config = TcpConfig(
                connections=connections, entries=1 << 13, rcvbuf=1 << 20, sndbuf=1 << 20,
                time_wait_ns=2 * SEC, secret=self.random.randbytes(16),
            )  # fmt: skip
            host = LocalHost(end, address, mtu=path.mtu, clock=self.clock, config=config)  # type: ignore[arg-type]
            self.hosts.append(host)
        self.server, self.client = self.hosts
        self.provider: AreaProvider | None = None
        if bound:
            self.provider = DmabufProvider(4 << 20, exporter="memfd")
            self.server.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED, rx_pending=256)
            self.server.dev.bind_rx([0], self.provider)
            self.server.dev.ethtool.add_rule(SteeringRule(queue=0, dst_port=PORT))
        self.listener = self.server.stack.listen(PORT, backlog=connections)
        self._view = self.provider.map() if self.provider is not None else None
        self.transfers: list[_Transfer] = []

    def start(self, up: bytes, down: bytes) -> None:
        """Open one more connection from the client."""
        self.transfers.append(_Transfer(self.client.stack.connect_nowait(SERVER, PORT), up, down))

    def step(self) -> bool:
        """Everything that happens now, then on to the next event. False when nothing ever will."""
        now = self.clock.now()
        for _ in range(1000):
            moved = self.link.move(now)
            for host in self.hosts:
                moved |= host.step(now)
            if not moved:
                break
            self._applications()
        self._applications()
        for host in self.hosts:
            host.step(now)
        self.link.move(now)
        due = [host.stack.conns.record.timer for host in self.hosts]
        following = self.link.due()
        if following is not None:
            due.append(following)
        at = min(due)
        if at >= 1 << 61:
            return False
        self.clock.advance(max(at - now, 1))
        return True

    def _applications(self) -> None:
        while self.listener.pending():
            sock = self.listener.accept(timeout=0)
            port = sock.peer[1]
            for transfer in self.transfers:
                if transfer.client.port == port:
                    transfer.server = sock
        for transfer in self.transfers:
            if not transfer.closed:
                self._drive(transfer)

    def _drive(self, transfer: _Transfer) -> None:
        done = True
        for client, sock in transfer.ends():
            if sock.state() < TcpState.ESTABLISHED and sock.state() != TcpState.CLOSED:
                done = False
                continue
            if sock.queued():
                transfer.got[client] += self._read(client, sock)
            left = transfer.left[client]
            if len(left) and sock.can_send() and sock.writable():
                transfer.left[client] = left[sock.send(left) :]
            if not len(transfer.left[client]) and not transfer.shut[client] and sock.can_send():
                sock.shutdown()
                transfer.shut[client] = True
            done &= transfer.shut[client] and sock.at_end() and not sock.queued()
        if done and transfer.server is not None:
            transfer.closed = True
            for _, sock in transfer.ends():
                sock.close()

    def _read(self, client: bool, sock: TcpSocket) -> bytes:
        if client or self._view is None:
            return sock.recv(1 << 20)
        message = sock.recvmsg_devmem()
        parts = [message.linear]
        for frag in message.frags:
            start = int(frag["frag_offset"])
            parts.append(self._view[start : start + int(frag["frag_size"])].tobytes())
        if len(message.frags):
            sock.devmem_dontneed(message.frags["frag_token"])
        return b"".join(parts)

    def problem(self) -> str:
        """What is wrong now that everything should be over; empty when nothing is."""
        for n, transfer in enumerate(self.transfers):
            for client, name in ((False, "to the server"), (True, "to the client")):
                want = transfer.down if client else transfer.up
                got = transfer.got[client]
                if got != want:
                    same = next(
                        (i for i, (x, y) in enumerate(zip(got, want, strict=False)) if x != y), len(got)
                    )
                    return f"connection {n}, {name}: {len(got)} of {len(want)} bytes, right up to {same}"
            if not transfer.closed:
                return f"connection {n} never ended"
        for host in self.hosts:
            rows = host.stack.statistics()["connections"]
            if rows:
                return f"{len(rows)} connections of {host.stack.ip.addresses[0]} are left: {rows[0]['state']}"
            missing = host.stack.conns.config.entries - host.stack.conns.record.free_entries
            if missing:
                return f"{missing} entries are missing at {host.stack.ip.addresses[0]}"
        return ""

    def close(self) -> str:
        """Close both hosts; netmems that never came back, as text."""
        pools = {pool for host in self.hosts for pool in host.dev.pools.values()}
        for host in self.hosts:
            host.close()
        missing = {pool.id: pool.inflight() for pool in pools if pool.inflight()}
        text = f"netmems that never came back, by pool: {missing}" if missing else ""
        if self.provider is not None:
            if self.provider.area.free != self.provider.area.count:
                text = (
                    f"{self.provider.area.count - self.provider.area.free} netmems of the memory are missing"
                )
            self._view = None
            self.provider.close()
        return text


def simulate(
    seed: int, path: Path, *, connections: int = 1, up: int = 50_000, down: int = 2_000, bound: bool = True
) -> Outcome:
    """Run ``connections`` at once, ``up`` bytes to the server and ``down`` back on each, to their end."""
    simulation = Simulation(seed, path, bound=bound, connections=connections + 8)
    outcome = Outcome(seed, connections, connections * (up + down))
    for _ in range(connections):
        simulation.start(simulation.random.randbytes(up), simulation.random.randbytes(down))
    start, finished = simulation.clock.now(), 0
    while simulation.clock.now() - start < LIMIT_NS and simulation.step():
        if not finished and all(transfer.closed for transfer in simulation.transfers):
            finished = simulation.clock.now()
        # A FIN is sent again after as much as 127 and 247 s; the other side may be silent for 128 s first.
        if finished and simulation.clock.now() - finished > 400 * SEC:
            break
    outcome.ns = (finished or simulation.clock.now()) - start
    outcome.failed = simulation.problem()
    outcome.link = dict(simulation.link.counts)
    outcome.sender = simulation.client.stack.conns.counters()
    outcome.receiver = simulation.server.stack.conns.counters()
    leaked = simulation.close()
    outcome.failed = outcome.failed or leaked
    return outcome


def rough_path(seed: int) -> Path:
    """A path with up to a tenth of loss, reordering and duplication, from a seed."""
    rng = random.Random(seed)
    return Path(
        loss=rng.choice((0.0, 0.01, 0.05, 0.1)), reorder=rng.choice((0.0, 0.02, 0.1)),
        duplicate=rng.choice((0.0, 0.02, 0.1)), damage=rng.choice((0.0, 0.0, 0.01)),
        delay=rng.choice((50_000, MS, 20 * MS)), late=rng.choice((200_000, 5 * MS)),
        rate=rng.choice((0, 10_000_000, 1_000_000_000)), queue=rng.choice((20, 1000)),
        mtu=rng.choice((576, 1500, 9000)),
    )  # fmt: skip


def rough(seed: int, connections: int = 10) -> Outcome:
    """One simulation on a rough path; sizes and memory come from the seed too."""
    rng = random.Random(~seed)
    up, down = rng.choice((1, 3_000, 30_000, 100_000)), rng.choice((0, 1, 20_000))
    return simulate(
        seed, rough_path(seed), connections=connections, up=up, down=down, bound=rng.random() < 0.7
    )


LOSSES = (0.0, 0.0001, 0.001, 0.01, 0.02, 0.05, 0.1)


def goodput_table() -> str:
    """Goodput by loss rate, as Markdown: what a change of the sender does shows in its diff."""
    lines = [
        "# Goodput by loss rate", "",
        "Made by `python -m netmem.testing.simulate --table`; a test makes it again and compares. Two",
        "stacks, MTU 1500, one connection of 2 MB (half that from 5 % loss on), buffers of 1 MiB, a queue of",
        "200 frames; Mbit/s of payload, and what the sender did.", "",
        "| rate, round trip | loss | goodput | sent again | timeouts | recoveries | loss probes |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for rate, delay, reorder, text in (
        (100_000_000, 5 * MS, 0.0, "100 Mbit/s, 10 ms"),
        (100_000_000, 5 * MS, 0.05, "100 Mbit/s, 10 ms, 5 % reordered"),
        (1_000_000_000, 20 * MS, 0.0, "1 Gbit/s, 40 ms"),
    ):
        for loss in LOSSES:
            path = Path(loss=loss, rate=rate, delay=delay, reorder=reorder, queue=200)
            size = 2_000_000 if loss < 0.05 else 1_000_000
            outcome = simulate(7, path, up=size, down=0)
            if outcome.failed:
                raise RuntimeError(f"seed 7, {path}: {outcome.failed}")
            s = outcome.sender
            lines.append(
                f"| {text} | {loss:.2%} | {outcome.goodput / 1e6:.2f} | {s['retrans']} | {s['rto']} "
                f"| {s['fast_retrans']} | {s['loss_probes']} |"
            )
    return "\n".join(lines) + "\n"


def _many(seeds: list[int]) -> tuple[list[Outcome], int, int]:
    failed, done, total = [], 0, 0
    for seed in seeds:
        outcome = rough(seed)
        done += outcome.connections
        total += outcome.bytes
        if outcome.failed:
            failed.append(outcome)
    return failed, done, total


def main() -> int:
    """Run many rough simulations, or make the table; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m netmem.testing.simulate", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="simulations of ten connections each")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--resume", metavar="FILE", help="keep the next seed there, and go on from it")
    parser.add_argument("--table", action="store_true", help="print the goodput by loss rate instead")
    args = parser.parse_args()
    ensure_compiled()
    if args.table:
        print(goodput_table(), end="")
        return 0
    start, jobs = time.monotonic(), os.cpu_count() or 1
    first, end = args.seed, args.seed + args.runs
    place = Path_(args.resume) if args.resume else None
    if place is not None and place.exists():
        first = max(first, int(place.read_text()))
        print(f"going on at seed {first}", flush=True)
    done = total = failures = 0
    with ProcessPoolExecutor(jobs) as pool:
        while first < end:
            stop = min(first + CHUNK, end)
            parts = list(pool.map(_many, [list(range(first + i, stop, jobs)) for i in range(jobs)]))
            failed = [outcome for part in parts for outcome in part[0]]
            for outcome in failed:
                print(f"seed {outcome.seed}: {outcome.failed}; --seed {outcome.seed} --runs 1 replays it")
            failures += len(failed)
            done, total = done + sum(part[1] for part in parts), total + sum(part[2] for part in parts)
            print(f"seeds {first} to {stop - 1}: {len(failed)} failed", flush=True)
            first = stop
            if place is not None and not failures:  # a seed that failed is run again
                place.write_text(str(first))
    took = time.monotonic() - start
    print(f"{done} connections, {total / 1e6:.0f} MB, {failures} simulations failed, {took:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
