"""Linux at the far end of a TAP interface: the kernel's TCP, in both directions, in a network namespace."""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import make_provider, need, payload, scaled, take
from netmem.base.errors import NetmemError
from netmem.base.ethtool import TcpDataSplit
from netmem.hw.tap import TapWire, open_tap
from netmem.hw.tap import kernels as tap
from netmem.hw.wrap import FaultyWire, TraceWire
from netmem.inet.tcp.connections import TcpConfig
from netmem.inet.tcp.tcb import TcpState
from netmem.lab.device import steer
from netmem.lab.local import LocalHost

OURS4, HOST4, OURS6, HOST6 = "10.20.0.2", "10.20.0.1", "fd00::2", "fd00::1"
PORT = 5001
LIMIT_S = 40
NAMES = iter(range(1000))
HELPERS = """
import hashlib, json, os, socket, struct, sys
def connect(host, port):
    s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET)
    s.settimeout(30)
    s.connect((host, port))
    return s
def drain(s):
    digest, n = hashlib.sha256(), 0
    while data := s.recv(1 << 16):
        digest.update(data)
        n += len(data)
    return n, digest.hexdigest()
def say(*what):
    print(json.dumps(what), flush=True)
"""


@pytest.fixture
def namespace():
    """A network namespace of our own, with loopback up."""
    need(os.geteuid() == 0, "a TAP interface needs root")
    need(os.path.exists("/dev/net/tun"), "there is no /dev/net/tun")
    need(shutil.which("ip"), "the command ip (iproute2) is not there")
    name = f"nmtest{os.getpid()}-{next(NAMES)}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    need(done.returncode == 0, f"network namespaces cannot be made here: {done.stderr.strip()}")
    ip(name, "link", "set", "lo", "up")
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


def ip(namespace, *words):
    subprocess.run(["ip", "-n", namespace, *words], check=True, capture_output=True)


class Linux:
    """Our stack on a TAP interface whose other end is the kernel of a namespace."""

    def __init__(
        self, namespace, *, offload=True, scatter=True, wrap=None, memory="dmabuf", mtu=1500, **config
    ):
        self.namespace = namespace
        name = f"nmt{next(NAMES)}x{os.getpid() % 10000}"
        fd = open_tap(name, offload=offload)
        try:
            subprocess.run(["ip", "link", "set", name, "netns", namespace], check=True, capture_output=True)
            ip(namespace, "addr", "add", f"{HOST4}/24", "dev", name)
            ip(namespace, "addr", "add", f"{HOST6}/64", "dev", name, "nodad")
            ip(namespace, "link", "set", name, "up", "mtu", str(mtu))
        except BaseException:
            os.close(fd)
            raise
        self.tap = TapWire(fd, scatter=scatter and wrap is None)
        self.wire = wrap(self.tap) if wrap else self.tap
        self.host = LocalHost(self.wire, OURS4, rx_queues=2, mtu=mtu, config=TcpConfig(**config))
        self.stack, dev = self.host.stack, self.host.dev
        dev.ethtool.set_features(rx_gro_hw=True)
        self.provider = make_provider(memory)
        dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        if self.provider is not None:
            dev.bind_rx([1], self.provider)
        steer(dev, PORT, 1)
        self.processes = []
        self.poll = select.poll()  # select() cannot have descriptors beyond 1023
        self.poll.register(self.tap.fd, select.POLLIN)

    def kernel(self, script, *args):
        """A Python process in the namespace: ``script`` after HELPERS, ``args`` in sys.argv[1:]."""
        return self.run([sys.executable, "-c", HELPERS + script, *map(str, args)])

    def run(self, argv, **more):
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        process = subprocess.Popen(["ip", "netns", "exec", self.namespace, *argv], text=True, **options)
        self.processes.append(process)
        return process

    def step(self):
        """One round; waits a moment for the kernel when nothing moved."""
        if not self.host.step(time.monotonic_ns()):
            self.poll.poll(1)

    def until(self, ready, what="it"):
        deadline = time.monotonic() + LIMIT_S
        while not ready():
            assert time.monotonic() < deadline, f"{what} did not happen in {LIMIT_S} s"
            self.step()

    def accept(self, listener):
        self.until(listener.pending, "a connection")
        return listener.accept(timeout=0)

    def connect(self, port, host=HOST4):
        """A connection to the kernel, once it listens."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            sock = self.stack.connect_nowait(host, port)
            self.until(lambda s=sock: s.state() not in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED))
            if sock.state() == TcpState.ESTABLISHED:
                return sock
            sock.close()
        raise AssertionError(f"nobody listens on port {port}")

    def receive(self, sock, size=None):
        """What arrives, up to ``size`` bytes or the end of the stream."""
        got = bytearray()
        while size is None or len(got) < size:
            self.until(sock.readable, "data")
            part = take(sock, self.provider)
            if not part and sock.at_end() and not sock.queued():
                break
            got += part
        return bytes(got)

    def send(self, sock, data):
        left = memoryview(data)
        while len(left):
            self.until(sock.writable, "room")
            left = left[sock.send(left) :]

    def said(self, process):
        """What a process printed, once it ended well."""
        self.until(lambda: process.poll() is not None, "the end of the kernel's side")
        out, err = process.communicate()
        assert process.returncode == 0, err
        return [json.loads(line) for line in out.splitlines()]

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        pools = list(self.host.dev.pools.values())
        self.host.close()
        missing = {pool.id: pool.inflight() for pool in pools if pool.inflight()}
        assert not missing
        if self.provider is not None:
            assert self.provider.area.free == self.provider.area.count
            self.provider.close()


@pytest.fixture
def linux(namespace):
    """Makes a ``Linux``; its accounts are checked in the end."""
    made = []

    def make(**options):
        made.append(Linux(namespace, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


SEND = """
s = connect(sys.argv[1], 5001)
data = os.urandom(int(sys.argv[2]))
step = int(sys.argv[3])
if step < 1000:
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for at in range(0, len(data), step):
    s.sendall(data[at:at + step])
s.shutdown(socket.SHUT_WR)
say(hashlib.sha256(data).hexdigest())
s.recv(1)
"""
RECEIVE = """
l = socket.create_server((sys.argv[1], 7000), family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)
l.settimeout(30)
s, _ = l.accept()
s.settimeout(30)
say(*drain(s))
s.sendall(b'thanks')
"""


@pytest.mark.parametrize("host", [OURS4, OURS6])
@pytest.mark.parametrize(("offload", "scatter"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("memory", ["dmabuf", "none"])
def test_the_kernel_sends(linux, host, offload, scatter, memory):
    import hashlib

    net = linux(offload=offload, scatter=scatter, memory=memory)
    listener = net.stack.listen(PORT)
    process = net.kernel(SEND, host, scaled(20_000_000), 1 << 20)
    sock = net.accept(listener)
    got = net.receive(sock)
    sock.close()
    assert net.said(process) == [[hashlib.sha256(got).hexdigest()]]
    assert len(got) == scaled(20_000_000)
    merged = net.host.dev.batch.counters()["rx_merged_by_nic"]
    assert (merged > 0) == offload
    if offload and scatter and memory == "dmabuf":
        assert net.host.nic.nic.landed > 0  # read straight into their buffers


def test_the_kernel_sends_tiny_writes(linux):
    import hashlib

    net = linux()
    listener = net.stack.listen(PORT)
    process = net.kernel(SEND, OURS4, scaled(3000), 1)
    sock = net.accept(listener)
    got = net.receive(sock)
    sock.close()
    assert net.said(process) == [[hashlib.sha256(got).hexdigest()]]


@pytest.mark.parametrize("host", [HOST4, HOST6])
@pytest.mark.parametrize("how", ["send", "sendmsg_devmem"])
@pytest.mark.parametrize("mtu", [1500, 9000])
def test_the_kernel_receives(linux, host, how, mtu):
    import hashlib

    net = linux(mtu=mtu)
    process = net.kernel(RECEIVE, host)
    data = payload(scaled(4_000_000))
    sock = net.connect(7000, host)
    if how == "send":
        net.send(sock, data)
    else:
        memory = make_provider("dmabuf")
        memory.map(writable=True)[: len(data)] = np.frombuffer(data, np.uint8)
        binding = net.host.dev.bind_tx(memory)
        at = 0
        while at < len(data):
            net.until(sock.writable, "room")
            at += sock.sendmsg_devmem([(at, len(data) - at)], binding)
        net.until(sock.zerocopy_done, "the completions")
        assert sock.zerocopy_completions()[0][0] == 0
        binding.close()
        memory.close()
    sock.shutdown()
    assert net.receive(sock) == b"thanks"  # half-closed: the other direction still works
    sock.close()
    assert net.said(process) == [[len(data), hashlib.sha256(data).hexdigest()]]


MUCH = 1 << 30 if os.environ.get("NETMEM_SOAK") else scaled(8 << 20)
BOTH = """
import threading
s = connect(sys.argv[1], 5001)
data, size = os.urandom(1 << 20), int(sys.argv[2])
def send():
    digest = hashlib.sha256()
    for at in range(0, size, len(data)):
        part = data[:size - at]
        s.sendall(part)
        digest.update(part)
    s.shutdown(socket.SHUT_WR)
    say(digest.hexdigest())
thread = threading.Thread(target=send)
thread.start()
got = drain(s)
thread.join()
say(*got)
"""


def test_both_directions_at_once_bit_for_bit_in_flat_memory(linux):
    """With NETMEM_SOAK=1 a GiB each way."""
    import hashlib

    def resident():
        with open("/proc/self/status") as status:
            return int(next(line for line in status if line.startswith("VmRSS")).split()[1])

    net = linux()
    listener = net.stack.listen(PORT)
    process = net.kernel(BOTH, OURS4, MUCH)
    sock = net.accept(listener)
    reader = sock.reader()
    block = np.frombuffer(payload(1 << 20), np.uint8)
    ours, theirs = hashlib.sha256(), hashlib.sha256()
    sent = came = 0
    marks = []
    while sent < MUCH or came < MUCH:
        read, write = came < MUCH, sent < MUCH
        net.until(lambda r=read, w=write: (r and sock.readable()) or (w and sock.writable()), "data or room")
        while sent < MUCH and sock.writable():
            at = sent % len(block)
            n = sock.send(memoryview(block)[at : at + min(len(block) - at, MUCH - sent)])
            ours.update(block[at : at + n])
            sent += n
            if sent == MUCH:
                sock.shutdown()
        while ready := min(sock.queued(), MUCH - came):
            theirs.update(reader.read_array(ready))
            came += ready
            if came >> 23 != (came - ready) >> 23:
                marks.append(resident())
    assert sock.at_end() or net.receive(sock) == b""
    sock.close()
    said = net.said(process)
    assert sorted(said, key=len) == [[theirs.hexdigest()], [MUCH, ours.hexdigest()]]
    if len(marks) > 16:
        assert max(marks) - marks[8] < 32 << 10  # KiB, after 64 MiB


def test_faults_in_both_directions(linux):
    import hashlib

    faults = []

    def wrap(wire):
        faults.append(FaultyWire(wire, 11, loss=0.01, reorder=0.02, duplicate=0.01, damage=0.005))
        return faults[0]

    net = linux(wrap=wrap)
    listener = net.stack.listen(PORT)
    process = net.kernel(SEND, OURS4, scaled(1_500_000), 1 << 16)
    sock = net.accept(listener)
    got = net.receive(sock)
    sock.close()
    assert net.said(process) == [[hashlib.sha256(got).hexdigest()]]
    process = net.kernel(RECEIVE, HOST4)
    data = payload(scaled(1_500_000))
    sock = net.connect(7000)
    net.send(sock, data)
    sock.shutdown()
    assert net.receive(sock) == b"thanks"
    sock.close()
    assert net.said(process) == [[len(data), hashlib.sha256(data).hexdigest()]]
    if scaled(100) == 100:
        assert faults[0].counts["lost"] > 0
        assert faults[0].counts["reordered"] > 0
        assert faults[0].counts["duplicated"] > 0
        assert faults[0].counts["damaged"] > 0
        assert net.stack.conns.counters()["retrans"] > 0


def test_resets_from_either_side(linux):
    net = linux()
    listener = net.stack.listen(PORT)
    process = net.kernel(
        """
s = connect(sys.argv[1], 5001)
s.sendall(b'last words')
sys.stdin.readline()
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
s.close()
t = connect(sys.argv[1], 5001)
t.sendall(b'x')  # connect() itself fails when the reset comes before this process gets to run
try:
    t.recv(1)
except ConnectionResetError:
    say('reset')
""",
        OURS4,
    )
    sock = net.accept(listener)
    assert net.receive(sock, 10) == b"last words"
    process.stdin.write("go\n")
    process.stdin.flush()
    net.until(sock.at_end)
    with pytest.raises(NetmemError) as error:
        sock.recv(1)
    assert error.value.errno == errno.ECONNRESET
    other = net.accept(listener)
    assert net.receive(other, 1) == b"x"
    other.abort()
    assert net.said(process) == [["reset"]]


def test_a_closed_window_opens_again(linux):
    net = linux()
    process = net.kernel(
        """
l = socket.create_server((sys.argv[1], 7000))
l.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
s, _ = l.accept()
sys.stdin.readline()
say(drain(s)[0])
""",
        HOST4,
    )
    sock = net.connect(7000)
    data = payload(200_000)
    left = memoryview(data)
    left = left[sock.send(left) :]
    net.until(lambda: net.stack.conns.counters()["probes"] >= 1, "a probe of the closed window")
    process.stdin.write("go\n")
    process.stdin.flush()
    net.send(sock, left)
    sock.shutdown()
    assert net.said(process) == [[len(data)]]
    sock.close()


def test_many_connections_at_once(linux):
    net = linux(memory="none")
    count = scaled(100)
    listener = net.stack.listen(PORT, backlog=count + 1)
    process = net.kernel(
        """
socks = [connect(sys.argv[1], 5001) for _ in range(int(sys.argv[2]))]
for n, s in enumerate(socks):
    s.sendall(b'%d' % n * 1000)
    s.shutdown(socket.SHUT_WR)
say([drain(s)[0] for s in socks])
""",
        OURS4,
        count,
    )
    socks = [net.accept(listener) for _ in range(count)]
    for sock in socks:
        data = net.receive(sock)
        net.send(sock, data[:100])
        sock.close()
    assert net.said(process) == [[[100] * count]]
    net.until(lambda: not net.stack.statistics()["connections"], "the end of all connections")


def test_ping_of_both_families_is_answered(linux):
    need(shutil.which("ping"), "the command ping is not there")
    net = linux(memory="none")
    for address in (OURS4, OURS6):
        process = net.run(["ping", "-c", "2", "-i", "0.2", "-W", "5", address])
        net.until(lambda p=process: p.poll() is not None, "the end of ping")
        assert ", 0% packet loss" in process.stdout.read()


def test_udp_with_the_kernel(linux):
    net = linux()
    ours = net.stack.udp_socket(PORT)
    steer(net.host.dev, PORT, 1, 17)
    process = net.kernel(
        """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(30)
s.connect((sys.argv[1], 5001))
s.send(b'x' * 1400)
say(len(s.recv(2000)))
t = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
t.settimeout(30)
t.connect((sys.argv[1], 9))
t.send(b'anybody?')
try:
    t.recv(1)
except ConnectionRefusedError:
    say('refused')
""",
        OURS4,
    )
    net.until(ours.pending, "a datagram")
    message = ours.recvmsg_devmem(timeout=0)
    assert message.size == 1400
    assert len(message.frags) == 1
    ours.devmem_dontneed(message.frags["frag_token"])
    ours.sendto(b"y" * 1400, message.peer)
    assert net.said(process) == [[1400], ["refused"]]
    ours.close()


def test_a_trace_says_what_passes(linux):
    lines = []
    net = linux(memory="none", wrap=lambda wire: TraceWire(wire, lambda way, text: lines.append((way, text))))
    listener = net.stack.listen(PORT)
    process = net.kernel(SEND, OURS4, 100_000, 100_000)
    sock = net.accept(listener)
    assert len(net.receive(sock)) == 100_000
    sock.close()
    net.said(process)
    assert {way for way, _ in lines} == {"in", "out"}
    assert any("segments of 1448" in text for way, text in lines if way == "in")


@pytest.mark.parametrize("ring", [1024, 64])
def test_wrong_guesses_cost_a_copy_and_no_byte(linux, ring):
    """Two flows on two queues in turn: the next frame is often not the expected one.

    A small ring holds the wire now and then: frames that wait were not looked at, and say nothing of the next.
    """
    net = linux()
    net.host.dev.ethtool.set_ringparam(rx_pending=ring)
    steer(net.host.dev, PORT + 1, 0)
    listeners = [net.stack.listen(PORT), net.stack.listen(PORT + 1)]
    process = net.kernel(
        """
socks = [connect(sys.argv[1], 5001), connect(sys.argv[1], 5002)]
data = os.urandom(int(sys.argv[2]))
for at in range(0, len(data), 60000):
    for s in socks:
        s.sendall(data[at:at + 60000])
say(hashlib.sha256(data).hexdigest())
for s in socks:
    s.shutdown(socket.SHUT_WR)
[s.recv(1) for s in socks]
""",
        OURS4,
        scaled(6_000_000),
    )
    import hashlib

    socks = [net.accept(listener) for listener in listeners]
    got = [bytearray(), bytearray()]
    ended = [False, False]
    while not all(ended):
        net.until(lambda: any(s.readable() and not e for s, e in zip(socks, ended, strict=True)))
        for n, sock in enumerate(socks):
            if sock.readable() and not ended[n]:
                part = take(sock, net.provider)
                got[n] += part
                ended[n] = not part and sock.at_end() and not sock.queued()
    for sock in socks:
        sock.close()
    ((want,),) = net.said(process)
    assert [hashlib.sha256(part).hexdigest() for part in got] == [want, want]
    assert net.host.dev.batch.counters()["rx_runt"] == 0


def test_names_and_rights(monkeypatch):
    for name in ("", "x" * 16, "a/b"):
        with pytest.raises(NetmemError) as error:
            open_tap(name)
        assert error.value.errno == errno.EINVAL


def test_a_wire_header_is_what_virtio_says():
    assert tap.VNET_BYTES == 12
    assert (tap.VNET_GSO_SIZE, tap.VNET_CSUM_START, tap.VNET_CSUM_OFFSET) == (4, 6, 8)


NETMEM = [sys.executable, "-m", "netmem.cli.entry"]


@pytest.mark.process
@pytest.mark.parametrize("nic", ["softnic", "igb"])
def test_recv_on_a_tap_with_nc_and_socat(namespace, tmp_path, nic):
    from conftest import need_nic

    need_nic(nic)
    need(shutil.which("nc") and shutil.which("socat"), "nc and socat are not there")
    data = payload(scaled(3_000_000))
    (tmp_path / "in").write_bytes(data)
    inside = ["ip", "netns", "exec", namespace]
    receiver = subprocess.Popen(
        [
            *inside,
            *NETMEM,
            "recv",
            "--nic",
            nic,
            "--wire",
            "tap:nm0",
            "--address",
            "10.20.0.2/24",
            "--address",
            "fd20::2/64",
            "--count",
            "2",
            "-o",
            str(tmp_path / "out{n}"),
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "listening" in receiver.stdout.readline(), receiver.communicate()[1]
        with open(tmp_path / "in", "rb") as source:
            subprocess.run(
                [*inside, "nc", "-N", "10.20.0.2", "5001"], stdin=source, check=True, timeout=LIMIT_S
            )
        subprocess.run(
            [*inside, "socat", "-u", f"FILE:{tmp_path / 'in'}", "TCP6:[fd20::2]:5001"],
            check=True,
            timeout=LIMIT_S,
        )
        out, err = receiver.communicate(timeout=LIMIT_S)
    finally:
        receiver.kill()
    assert receiver.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["bytes"] == 2 * len(data)
    assert summary["outstanding"] == 0
    assert Path(tmp_path / "out1").read_bytes() == Path(tmp_path / "out2").read_bytes() == data
    left = subprocess.run(["ip", "-n", namespace, "link", "show", "nm0"], capture_output=True, text=True)
    assert left.returncode != 0, "the interface is still there"


@pytest.mark.process
@pytest.mark.parametrize("options", [[], ["-P", "4"], ["-R"], ["-6"]])
def test_iperf3_in_both_directions(namespace, options):
    need(shutil.which("iperf3"), "iperf3 is not there")
    inside = ["ip", "netns", "exec", namespace]
    example = Path(__file__).parent.parent / "examples" / "iperf3_server.py"
    wire = ["tap:nm0", "1", "10.20.0.2/24", "fd20::2/64"]
    server = subprocess.Popen(
        [*inside, sys.executable, str(example), *wire],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout.readline() == "ready\n", server.communicate()[1]
        host = "fd20::2" if "-6" in options else "10.20.0.2"
        done = subprocess.run(
            [*inside, "iperf3", "-c", host, "-t", "1", "-J", *options],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        out, err = server.communicate(timeout=LIMIT_S)
    finally:
        server.kill()
    assert server.returncode == 0, err
    result = json.loads(done.stdout)
    assert "error" not in result
    assert result["end"]["sum_received"]["bytes"] > 0
    assert "Gbit/s" in out


@pytest.mark.process
@pytest.mark.parametrize("memory", ["none", "pages", "dmabuf"])
def test_send_to_nc(namespace, tmp_path, memory):
    need(shutil.which("nc"), "nc is not there")
    data = payload(scaled(5_000_000))
    (tmp_path / "in").write_bytes(data)
    inside = ["ip", "netns", "exec", namespace]
    with open(tmp_path / "out", "wb") as out:
        server = subprocess.Popen(
            [*inside, "nc", "-l", "-N", "127.0.0.1", "5002"], stdout=out, stdin=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + LIMIT_S
            while (
                "5002" not in subprocess.run([*inside, "ss", "-tln"], capture_output=True, text=True).stdout
            ):
                assert time.monotonic() < deadline
            done = subprocess.run(
                [
                    *inside,
                    *NETMEM,
                    "send",
                    "--memory",
                    memory,
                    "--json",
                    str(tmp_path / "in"),
                    "127.0.0.1:5002",
                ],
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
            )
            server.wait(LIMIT_S)
        finally:
            server.kill()
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["bytes"] == len(data)
    assert summary.get("in_flight", 0) == 0
    assert (tmp_path / "out").read_bytes() == data
