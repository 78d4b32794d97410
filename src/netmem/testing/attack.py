"""Real processes under attack: what a good connection keeps beside idle, tiny, flooding and hostile peers.

``python -m netmem.testing.attack`` (as root) runs everything in a network namespace of its own and prints a
table; its exit status is 1 when anything was lost, stuck or let in. Attackers are processes of this module.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netmem.base.commit import commit_at_hand
from netmem.base.headers import SYN
from netmem.hw.process import python_argv, raise_file_limit
from netmem.testing import frames

TAP, STACK, HOST, OTHER, PORT = "nm0", "10.20.0.2", "10.20.0.1", "10.20.0.77", 5001
MSS_OPTION = bytes.fromhex("020405b4")
LIMIT_S = 60.0
OPEN_S = 3.0
SIZE, TIMES = 128 << 20, 3  # bytes of a transfer: one of some milliseconds tells how processes were scheduled
KEPT, WORST = 0.5, 0.2  # of its goodput


# -- attackers: each says "ready" on stdout once it has begun ---------------------------------------


def _connected(address: tuple[str, int], number: int) -> list[socket.socket]:
    found = []
    for _ in range(number):
        sock = socket.create_connection(address, timeout=LIMIT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.append(sock)
    return found


def idle(address: tuple[str, int]) -> Iterator[None]:
    """A thousand connections that were busy once."""
    socks = _connected(address, 1000)
    for sock in socks:
        sock.sendall(bytes(20_000))
    time.sleep(2)
    yield
    while socks:
        time.sleep(1)


def tiny(address: tuple[str, int]) -> Iterator[None]:
    """Two hundred that send a byte a segment, a hundred times a second each."""
    socks = _connected(address, 200)
    yield
    while True:
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.send(b"x", socket.MSG_DONTWAIT)
        time.sleep(0.01)


def flood(address: tuple[str, int]) -> Iterator[None]:
    """Twenty that send single bytes as fast as they can."""
    socks = _connected(address, 20)
    yield
    while True:
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.send(b"x", socket.MSG_DONTWAIT)


def short(address: tuple[str, int]) -> Iterator[None]:
    """One ordinary client: 4 MB, then 300 writes of one byte, then silence."""
    (sock,) = _connected(address, 1)
    sock.sendall(bytes(4_000_000))
    for _ in range(300):
        sock.sendall(b"x")
        time.sleep(0.001)
    yield
    while True:
        time.sleep(1)


def half(address: tuple[str, int]) -> Iterator[None]:
    """Five hundred that have closed their direction and never take note of the other end's."""
    socks = _connected(address, 500)
    for sock in socks:
        sock.sendall(bytes(5_000))
        sock.shutdown(socket.SHUT_WR)
    time.sleep(1)
    yield
    while socks:
        time.sleep(1)


def _wire() -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    sock.bind((TAP, 0))
    return sock


def syn(address: tuple[str, int]) -> Iterator[None]:
    """Four thousand SYNs a second from invented addresses and ports."""
    wire, rng = _wire(), random.Random(1)
    made = [
        frames.tcp(
            src=f"10.20.0.{rng.randrange(100, 250)}", dst=STACK, sport=rng.randrange(1024, 65536), dport=PORT,
            flags=SYN, seq=rng.getrandbits(32), options=MSS_OPTION,
        )
        for _ in range(20_000)
    ]  # fmt: skip
    start, sent = time.monotonic(), 0
    told = False
    while True:
        due = int((time.monotonic() - start) * 4000)
        for n in range(sent, due):
            with contextlib.suppress(OSError):
                wire.send(made[n % len(made)])
        sent = due
        if not told and sent > 8000:
            told = True
            yield
        time.sleep(0.002)


def land(address: tuple[str, int]) -> Iterator[None]:
    """SYNs that claim to come from the stack itself."""
    wire = _wire()
    frame = frames.tcp(src=STACK, dst=STACK, sport=PORT, dport=PORT, flags=SYN, seq=1, options=MSS_OPTION)
    yield
    while True:
        with contextlib.suppress(OSError):
            wire.send(frame)
        time.sleep(0.001)


def raw(address: tuple[str, int]) -> Iterator[None]:
    """Five raw peers: segments out of order and overlapping, two thousand a second, no gap ever filled."""
    wire, rng = _wire(), random.Random(2)
    wire.settimeout(5)
    acks = []
    wire.send(frames.arp(spa=OTHER, tpa=STACK))
    for port in range(2000, 2005):
        flow: dict[str, Any] = {"src": OTHER, "dst": STACK, "sport": port, "dport": PORT}
        wire.send(frames.tcp(**flow, flags=SYN, seq=99, options=MSS_OPTION))
        while True:
            frame = wire.recv(2000)
            ends = int.from_bytes(frame[34:36], "big"), int.from_bytes(frame[36:38], "big")
            if frame[23] == 6 and ends == (PORT, port) and frame[47] & SYN:
                break
        acks.append(int.from_bytes(frame[38:42], "big") + 1)
        wire.send(frames.tcp(**flow, seq=100, ack=acks[-1]))
    yield
    while True:
        for port, ack in zip(range(2000, 2005), acks, strict=True):
            data, seq = bytes(rng.choice((1, 1, 100, 1400))), 101 + rng.randrange(30_000)
            frame = frames.tcp(data, src=OTHER, dst=STACK, sport=port, dport=PORT, seq=seq, ack=ack)
            with contextlib.suppress(OSError):
                wire.send(frame)
        time.sleep(0.0025)


ROLES: dict[str, Callable[[tuple[str, int]], Iterator[None]]] = {
    f.__name__: f for f in (idle, tiny, flood, short, half, syn, land, raw)
}
ON = {"user": (idle, tiny, flood, short, half), "tap": (idle, tiny, short, raw, syn, land)}


# -- the receiver, the good connection, and what is measured ----------------------------------------


class Receiver:
    """`netmem recv` on the user wire, or on a TAP."""

    def __init__(self, wire: str) -> None:
        words = ["--listen", "127.0.0.1:0"]
        if wire == "tap":
            words = ["--wire", f"tap:{TAP}", "--listen", f"{STACK}:{PORT}"]
        argv = python_argv("netmem.cli.entry", "recv", "--json", "-q", "--exporter", "memfd", *words)
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = json.loads(self.process.stdout.readline())
        self.address = (STACK, PORT) if wire == "tap" else ("127.0.0.1", int(line["port"]))
        # A pipe that nobody reads would fill up with the ends of connections.
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self.lines += self.process.stdout or ()

    def end(self) -> dict[str, Any]:
        """Its summary. RuntimeError when it does not end."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise RuntimeError("the receiver did not end") from None
        self._reader.join(5)
        found: dict[str, Any] = json.loads(self.lines[-1])
        return found


def good(address: tuple[str, int], size: int) -> tuple[float, float]:
    """(seconds until a connection with one byte was served, MB/s of one with ``size`` bytes)."""
    start = time.monotonic()
    for data in (b"x", b""):
        with socket.create_connection(address, timeout=LIMIT_S) as sock:
            if data:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1)
                opened = time.monotonic() - start
                continue
            start, left, block = time.monotonic(), size, bytes(1 << 20)
            while left > 0:
                left -= sock.send(block[: min(left, len(block))])
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)
    return opened, size / 1e6 / (time.monotonic() - start)


def _median(address: tuple[str, int]) -> tuple[float, float]:
    found = [good(address, SIZE) for _ in range(TIMES)]
    return max(o for o, _ in found), statistics.median(r for _, r in found)


@dataclass
class Row:
    """One line of the table."""

    attack: str
    figure: str
    verdict: str

    @property
    def bad(self) -> bool:
        return self.verdict != "ok"


def under(wire: str, role: str, least: float) -> Row:
    """A good connection alone, beside an attacker, and afterwards: it must keep ``least`` of its goodput."""
    what = f"{wire}: {(ROLES[role].__doc__ or '').strip().rstrip('.')}"
    receiver = Receiver(wire)
    attacker = None
    try:
        good(receiver.address, SIZE)
        _, alone = _median(receiver.address)
        where = ":".join(map(str, receiver.address))
        argv = python_argv("netmem.testing.attack", "--role", role, "--address", where)
        attacker = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert attacker.stdout is not None
        if not select.select([attacker.stdout], [], [], LIMIT_S)[0] or not attacker.stdout.readline():
            return Row(what, "", "the attack did not begin")
        opened, beside = _median(receiver.address)
        attacker.kill()
        attacker.wait()
        again, after = _median(receiver.address)
    except OSError as error:
        return Row(what, "", f"FAILED: {error}")
    finally:
        if attacker is not None:
            attacker.kill()
            attacker.wait()
        summary = receiver.end()
    figure = (
        f"{alone:.0f} MB/s alone, {beside:.0f} beside ({beside / alone:.2f}), {after:.0f} afterwards; "
        f"a new one served in {opened:.2f} s, afterwards {again:.2f} s"
    )
    fine = beside / alone >= least and max(opened, again) < OPEN_S and summary["outstanding"] == 0
    return Row(what, figure, "ok" if fine else "FAILED")


# Here attacker and victim share two CPUs, and the attacker takes all that it gets.
CPU_BOUND = {"flood"}


def slow_readers(size: int) -> Iterator[Row]:
    """`netmem send` to readers that are slower than every buffer on the way."""
    path = Path(f"/tmp/netmem-attack-{os.getpid()}")
    path.write_bytes(random.Random(3).randbytes(size))
    want = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        for rate in (1, 4, 60):
            got, digest = 0, hashlib.sha256()
            with socket.create_server(("127.0.0.1", 0)) as server:
                argv = python_argv(
                    "netmem.cli.entry", "send", str(path), f"127.0.0.1:{server.getsockname()[1]}"
                )
                sender = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
                server.settimeout(LIMIT_S)
                with server.accept()[0] as sock:
                    start = time.monotonic()
                    while data := sock.recv(1 << 16):
                        got += len(data)
                        digest.update(data)
                        time.sleep(max(0.0, got / (rate * 1e6) - (time.monotonic() - start)))
            status = sender.wait(LIMIT_S)
            fine = (status, got, digest.hexdigest()) == (0, size, want)
            text = f"{got} of {size} bytes arrived, exit status {status}"
            yield Row(f"`netmem send` to a reader of {rate} MB/s", text, "ok" if fine else "FAILED")
    finally:
        path.unlink()


def _descendants(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def kills(number: int, seed: int) -> Row:
    """Receivers, NICs and clients that are killed or stopped at random moments of a transfer."""
    rng, stuck, left = random.Random(seed), 0, 0
    for _ in range(number):
        receiver = Receiver("user")
        nic = _descendants(receiver.process.pid)
        sock = socket.create_connection(receiver.address, timeout=LIMIT_S)
        sock.settimeout(LIMIT_S)
        until = time.monotonic() + rng.random()
        kind = rng.choice(("receiver", "nic", "client", "stop nic", "signal"))
        with contextlib.suppress(OSError):
            while time.monotonic() < until:
                sock.send(bytes(1 << 16))
        if kind == "receiver":
            receiver.process.kill()
        elif kind == "nic":
            os.kill(nic[0], signal.SIGKILL)
        elif kind == "stop nic":
            os.kill(nic[0], signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(nic[0], signal.SIGCONT)
        elif kind == "signal":
            receiver.process.send_signal(rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)))
        sock.close()
        if kind in ("client", "stop nic"):
            receiver.process.send_signal(signal.SIGTERM)
        try:
            receiver.process.wait(20)
        except subprocess.TimeoutExpired:
            stuck += 1
            receiver.process.kill()
            receiver.process.wait()
        deadline = time.monotonic() + 5
        while any(_runs(pid) for pid in nic) and time.monotonic() < deadline:
            time.sleep(0.02)
        left += sum(_runs(pid) for pid in nic)
    text = f"seed {seed}: {stuck} hung, {left} processes left over"
    return Row(f"{number} kills and stops at random moments", text, "ok" if not stuck + left else "FAILED")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


TITLE = """# Reliability

Made by `make attack`: real processes in a network namespace of their own, on this machine's {cpus} CPUs,
which victim, attacker and measuring client share. A row is ok when a good connection keeps half of its
goodput (a fifth where the attacker burns a CPU), a new one is served within 3 s, during the attack and after
it, every netmem comes back, and nothing hangs. Medians of three; measured at commit {commit}, {date}.

| attack | figures | verdict |
| --- | --- | --- |
"""


def _table(rows: Iterator[Row], output: str | None) -> int:
    """Print rows as they come; write them to a file, whose part behind "## Before" stays."""
    lines, bad = [], 0
    for row in rows:
        line = f"| {row.attack} | {row.figure} | {row.verdict} |"
        print(line, flush=True)
        lines.append(line)
        bad += row.bad
    if output:
        path = Path(output)
        before = path.read_text().partition("\n## ") if path.exists() else ("", "", "")
        text = TITLE.format(cpus=os.cpu_count(), commit=commit_at_hand(), date=time.strftime("%Y-%m-%d"))
        path.write_text(text + "\n".join(lines) + "\n" + before[1] + before[2])
    return 1 if bad else 0


def _rows(args: argparse.Namespace) -> Iterator[Row]:
    wanted = {"user": (short, flood), "tap": (raw, syn)} if args.smoke else ON
    for wire, attacks in wanted.items():
        for attack in attacks:
            if not args.only or attack.__name__ in args.only:
                least = WORST if args.smoke or attack.__name__ in CPU_BOUND else KEPT
                yield under(wire, attack.__name__, least)
    if not args.only:
        yield from slow_readers(2_000_000 if args.smoke else 24_000_000)
        yield kills(3 if args.smoke else 60, args.seed)


def main() -> int:
    """Attack, and say what came of it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m netmem.testing.attack", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few of them, for seconds")
    parser.add_argument("--only", action="append", choices=list(ROLES), help="this attack only (repeatable)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", help="write the table to this file as well")
    parser.add_argument("--role", choices=list(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    raise_file_limit()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # below nohup, receivers would rightly ignore it
    if args.role:
        host, _, port = args.address.rpartition(":")
        for _ in ROLES[args.role]((host, int(port))):
            print("ready", flush=True)
        return 0
    if os.geteuid():
        print("netmem: attacks need root: they run in a network namespace of their own", file=sys.stderr)
        return 2
    if not args.inside:
        again = python_argv("netmem.testing.attack", "--inside", *sys.argv[1:])
        return subprocess.run(["unshare", "--net", *again]).returncode
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return _table(_rows(args), args.output)


if __name__ == "__main__":
    sys.exit(main())
