"""The NIC in a process of its own: real clients, the map list, death, and nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import netmem
from conftest import need, payload, scaled
from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.base.ethtool import TcpDataSplit
from netmem.base.jit import COMPILED

pytestmark = pytest.mark.process
LIMIT = 60.0


@pytest.fixture
def device(nic):
    """An open device of each kind, its NIC in a process of its own, header split on."""
    before = children()
    with netmem.open_device(nic, queues=2) as made:
        made.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        yield made
    assert children() == before


def children() -> set[int]:
    """Processes that belong to a NIC of ours: the NIC itself, and whoever looks after it."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent == os.getpid() and any(part in words for part in (b"nic_main", b"qemu", b"read line")):
                found.add(int(entry.name))
    return found


def serve(device, provider=None):
    """Bind, steer and listen; (listener, host port)."""
    if provider is not None:
        device.bind_rx([1], provider)
    device.steer(5001, 1)
    return device.listen(5001), device.forward("127.0.0.1", 0, 5001)


def client(port: int, data: bytes) -> threading.Thread:
    """Send ``data`` from a thread over a kernel socket, and close."""

    def run() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("nic", "memory"), [("softnic", "dmabuf"), ("igb", "dmabuf"), ("igb", "bar")], indirect=["nic"]
)
def test_driver_pool_and_stack_never_map_the_payload(device, memory):
    if memory == "bar":
        provider = device.bar_memory(16 << 20)
    else:
        provider = netmem.DmabufProvider(16 << 20, exporter="memfd")
    name, inode = f"memfd:netmem:{memory}", str(os.fstat(provider.fd).st_ino)
    listener, port = serve(device, provider)
    data = payload(scaled(20_000_000))
    thread = client(port, data)
    sock = listener.accept(LIMIT)
    total = looks = 0
    while (message := sock.recvmsg_devmem(timeout=LIMIT)).size:
        total += message.size
        looks += 1
        if looks % 8 == 1:
            maps = Path("/proc/self/maps").read_text()
            assert not [line for line in maps.splitlines() if inode in line.split() or name in line]
        sock.devmem_dontneed(message.frags["frag_token"])
    assert total == len(data)
    assert looks > 8 or not COMPILED
    assert name in Path(f"/proc/{device.pid}/maps").read_text()  # the NIC does map it
    view = provider.map()
    assert name in Path("/proc/self/maps").read_text()  # and so does who asks for a view
    del view
    sock.close()
    thread.join(LIMIT)


def test_two_connections_at_once_and_answers(device):
    listener, port = serve(device, netmem.PagesProvider(16 << 20))
    data = [payload(scaled(3_000_000), seed) for seed in (1, 2)]
    threads = [client(port, part) for part in data]
    socks = [listener.accept(LIMIT) for _ in data]
    got = [bytearray() for _ in socks]
    open_ = [0, 1]
    while open_:
        device.stack.wait(lambda: any(socks[i].readable() for i in open_), LIMIT, "data")
        for i in list(open_):
            if socks[i].readable():
                part = socks[i].recv(1 << 20)
                got[i] += part
                if not part:
                    open_.remove(i)
    assert sorted(map(bytes, got)) == sorted(data)
    for sock in socks:
        sock.sendall(b"thanks")
        sock.close()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()


def test_connecting_out_is_refused_by_a_gateway_without_listener(device):
    with pytest.raises(NetmemError) as error:
        device.connect("10.0.2.2", 9, timeout=LIMIT)
    assert error.value.errno == errno.ECONNREFUSED


def test_a_closed_port_of_this_host_refuses_at_connect(device):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gateway = device.reach("127.0.0.1", free.getsockname()[1])
        for _ in range(20):
            with pytest.raises(ConnectionRefusedError) as error:
                device.connect(*gateway, timeout=LIMIT)
            assert error.value.errno == errno.ECONNREFUSED
        free.listen()
        with device.connect(*gateway, timeout=LIMIT) as sock:
            there, _ = free.accept()
            sock.sendall(b"at last")
            assert there.recv(100) == b"at last"
            there.close()


def test_a_host_that_does_not_answer_yet_is_waited_for(device):
    """Its backlog is full: the kernel says nothing, and neither does the gateway, until somebody accepts."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(server.getsockname())
        gateway = device.reach("127.0.0.1", server.getsockname()[1])
        with pytest.raises(TimeoutError):
            device.connect(*gateway, timeout=0.3)
        found = []
        thread = threading.Thread(target=lambda: found.append(device.connect(*gateway, timeout=LIMIT)))
        thread.start()
        server.settimeout(LIMIT)
        taken = []
        while thread.is_alive():
            with contextlib.suppress(TimeoutError):
                server.settimeout(0.2)
                taken.append(server.accept()[0])
        thread.join(LIMIT)
        found[0].sendall(b"x")
        found[0].close()
        for one in [*others, *taken]:
            one.close()


def test_time_outs_say_what_they_waited_for(device):
    listener, port = serve(device)
    with pytest.raises(TimeoutError, match="connection to port 5001"):
        listener.accept(0.05)
    thread = client(port, b"x")
    sock = listener.accept(LIMIT)
    assert sock.recv(1, timeout=LIMIT) == b"x"
    assert sock.recv(1, timeout=LIMIT) == b""
    sock.close()
    thread.join(LIMIT)


def test_service_thread_answers_while_the_application_does_nothing(device):
    listener, port = serve(device)
    thread = client(port, b"hello")
    deadline = time.monotonic() + LIMIT
    while not listener.pending() and time.monotonic() < deadline:
        threading.Event().wait(0.01)  # nobody polls but the service thread
    with listener.accept(0.0) as sock:
        assert sock.recv(5, timeout=LIMIT) == b"hello"
    thread.join(LIMIT)


def test_others_may_call_in_while_one_waits(device):
    """A blocked receive holds no lock: another thread sends what it waits for."""
    listener, port = serve(device)
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as peer:
        sock = listener.accept(LIMIT)
        got = []
        reader = threading.Thread(target=lambda: got.append(sock.recv(10, timeout=LIMIT)), daemon=True)
        reader.start()
        threading.Event().wait(0.1)
        sock.sendall(b"ping", timeout=LIMIT)
        assert peer.recv(4) == b"ping"
        peer.sendall(b"pong")
        reader.join(LIMIT)
        assert got == [b"pong"]
        failed = []

        def blocked():
            try:
                sock.recv(1, timeout=LIMIT)
            except OSError as error:
                failed.append(error.errno)

        waiter = threading.Thread(target=blocked, daemon=True)
        waiter.start()
        threading.Event().wait(0.1)
        sock.close()  # ends the wait at once
        waiter.join(5)
        assert failed == [errno.EBADF]


def test_death_of_the_nic_is_reported_at_once_and_what_arrived_stays(device):
    provider = netmem.DmabufProvider(16 << 20, exporter="memfd")
    listener, port = serve(device, provider)
    sender = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
    sender.sendall(payload(5000))
    sock = listener.accept(LIMIT)
    device.stack.wait(lambda: sock.queued() == 5000, LIMIT, "data")
    os.kill(device.pid, signal.SIGKILL)
    message = sock.recvmsg_devmem(timeout=LIMIT)
    assert message.size == 5000
    start = time.monotonic()
    with pytest.raises(DeviceGoneError):
        sock.recvmsg_devmem(timeout=LIMIT)
    assert time.monotonic() - start < 1.0
    with pytest.raises(NetmemError):
        sock.send(b"x")
    with pytest.raises(DeviceGoneError):
        listener.accept(LIMIT)
    assert sock.devmem_dontneed(message.frags["frag_token"]) == len(message.frags)
    sock.close()
    sender.close()
    with pytest.raises(DeviceGoneError):
        device.forward("127.0.0.1", 0, 5002)
    with pytest.raises(DeviceGoneError):
        device.connect("10.0.2.2", 80, timeout=LIMIT)


def test_death_in_the_middle_of_a_blocking_call(device):
    listener, port = serve(device)
    sender = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
    sock = listener.accept(LIMIT)
    timer = threading.Timer(0.2, os.kill, (device.pid, signal.SIGKILL))
    timer.start()
    start = time.monotonic()
    with pytest.raises(DeviceGoneError, match="gone"):
        sock.recv(1, timeout=LIMIT)
    assert time.monotonic() - start < 1.5
    timer.join()
    sender.close()


def test_a_client_that_resets_is_reported(device):
    listener, port = serve(device, netmem.DmabufProvider(16 << 20, exporter="memfd"))
    sender = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
    sender.sendall(payload(2500))
    sock = listener.accept(LIMIT)
    device.stack.wait(lambda: sock.queued() == 2500, LIMIT, "data")
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sender.close()
    message = sock.recvmsg_devmem(timeout=LIMIT)
    assert message.size == 2500
    with pytest.raises(NetmemError) as error:
        sock.recvmsg_devmem(timeout=LIMIT)
    assert error.value.errno == errno.ECONNRESET
    sock.close()


def test_bad_arguments_start_nothing():
    before = children()
    for options in ({"nic": "e1000"}, {"queues": 0}, {"queues": 17}, {"mtu": 100}, {"mtu": 9001}):
        with pytest.raises(NetmemError) as error:
            netmem.open_device(**options)
        assert error.value.errno == errno.EINVAL
    assert children() == before


def test_listening_beyond_loopback_must_be_said(device):
    for address in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(NetmemError) as error:
            device.forward(address, 0, 5001)
        assert error.value.errno == errno.EACCES
    with pytest.raises(NetmemError) as error:
        device.forward("not-an-address", 0, 5001)
    assert error.value.errno == errno.EINVAL


@pytest.mark.parametrize("tool", ["nc", "socat", "python"])
def test_files_arrive_bit_for_bit_from_any_client(tmp_path, tool, nic):
    command = {
        "nc": ["nc", "-N", "127.0.0.1", "PORT"],
        "socat": ["socat", "-u", "FILE:IN", "TCP:127.0.0.1:PORT"],
        "python": [sys.executable, "-c", ODD_SIZES, "PORT", "IN"],
    }[tool]
    package = {"nc": "netcat-openbsd", "socat": "socat"}.get(tool, tool)
    need(shutil.which(command[0]), f"{package} is not installed")
    source, copy = tmp_path / "in", tmp_path / "out"
    source.write_bytes(payload(scaled(20_000_000)))
    receiver = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "netmem.cli.entry",
            "recv",
            "--listen",
            "127.0.0.1:0",
            "--count",
            "1",
            "--nic",
            nic,
            "--memory",
            "bar" if nic == "igb" else "dmabuf",
            "--json",
            "-o",
            str(copy),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = receiver.stdout.readline().split('"port": ')[1].split(",")[0]
        words = [word.replace("PORT", port).replace("IN", str(source)) for word in command]
        with source.open("rb") as file:
            subprocess.run(words, stdin=file, timeout=LIMIT, check=True)
        assert receiver.wait(LIMIT) == 0
    finally:
        receiver.kill()
        receiver.wait()
        receiver.stdout.close()
    assert copy.read_bytes() == source.read_bytes()


ODD_SIZES = """
import random, socket, sys
data = open(sys.argv[2], 'rb').read()
random.seed(1)
with socket.create_connection(('127.0.0.1', int(sys.argv[1]))) as sock:
    at = 0
    while at < len(data):
        n = random.choice([1, 3, 7, 100, 1447, 5000, 70001, 300000])
        sock.sendall(data[at:at + n])
        at += n
"""


def test_the_example_prints_the_sum(nic):
    data = payload(scaled(2_000_000) // 1460 * 1460 + 7)  # the last seven come with their headers (igb)
    path = Path(__file__).parent.parent / "examples" / "receive.py"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    example = subprocess.Popen([sys.executable, str(path), str(port), nic], stdout=subprocess.PIPE, text=True)
    try:
        assert example.stdout.readline() == f"listening on port {port}\n"
        client(port, data).join(LIMIT)
        assert example.stdout.readline() == f"sum of all bytes: {sum(data)}\n"
        assert example.wait(LIMIT) == 0
    finally:
        example.kill()
        example.wait()
        example.stdout.close()


def test_what_a_device_is_closed_for_comes_first(monkeypatch):
    """An error while closing hides neither an error nor a signal; without one it is told."""

    def used(raised):
        with netmem.open_device() as device:
            real = device.stack.close

            def fails():
                real()
                raise OSError(errno.EIO, "the end went wrong")

            monkeypatch.setattr(device.stack, "close", fails)
            if raised:
                raise raised

    for raised in (KeyError, None):
        with pytest.raises(raised or OSError):
            used(raised)


def test_words_of_ethtool(device):
    device.ethtool.set_ringparam(tcp_data_split="on")
    assert device.ethtool.describe()["tcp_data_split"] == "enabled"
    device.ethtool.set_ringparam(tcp_data_split="off")
    wrong = [(device.ethtool.set_ringparam, {"tcp_data_split": "yes"})]
    if device.dev.driver.hw_features:  # an 82576 has none, and nothing to gather by
        device.ethtool.set_features(rx_gro_hw="off")
        assert "rx_gro_hw" not in device.ethtool.features
        device.ethtool.set_features(rx_gro_hw="on")
        device.ethtool.set_coalesce(use_adaptive_rx="off")
        assert not device.ethtool.get_coalesce().use_adaptive_rx
        wrong += [(device.ethtool.set_features, {"rx_gro_hw": "maybe"})]
        wrong += [(device.ethtool.set_coalesce, {"use_adaptive_rx": ""})]
    for call, words in wrong:
        with pytest.raises(NetmemError, match=r"on(,| or) off") as error:
            call(**words)
        assert error.value.errno == errno.EINVAL


def test_who_is_behind_the_gateway(device):
    listener = device.listen(5009)
    port = device.forward("127.0.0.1", 0, 5009)
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as client:
            sock = listener.accept(LIMIT)
            assert sock.peer[0] == "10.0.2.2"
            mine = device.dev.driver.name == "softnic"  # QEMU's gateway does not say
            assert device.client(sock) == (client.getsockname() if mine else None)
        sock.close()


def test_another_machine_is_refused_in_words(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(NetmemError, match="not on aarch64") as error:
        netmem.open_device()
    assert error.value.errno == errno.EOPNOTSUPP


def test_more_connections_at_once_than_wait_for_an_answer(device):
    """Beyond a listener's half-open ones a SYN is answered with a cookie: those connections are made, too."""
    count = 200
    with socket.create_server(("127.0.0.1", 0), backlog=2 * count) as server:
        gateway = device.reach("127.0.0.1", server.getsockname()[1])
        made = [device.stack.connect_nowait(*gateway) for _ in range(count)]
        for sock in made:
            sock.wait_connected(LIMIT)
        for sock in made:
            sock.sendall(b"x")
        server.settimeout(LIMIT)
        for _ in range(count):
            there, _ = server.accept()
            there.settimeout(LIMIT)
            assert there.recv(10) == b"x"
            there.close()
        for sock in made:
            sock.close()


def test_who_gives_up_before_the_host_answers_leaves_nothing(device):
    """No socket of the kernel's stays: the host sees the end of the connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        server.settimeout(LIMIT)
        first = socket.create_connection(server.getsockname(), timeout=LIMIT)  # fills the backlog
        gateway = device.reach("127.0.0.1", server.getsockname()[1])
        with pytest.raises(TimeoutError):
            device.connect(*gateway, timeout=0.3)
        ends, deadline = 0, time.monotonic() + LIMIT
        server.settimeout(2.5)
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < deadline:
                there, _ = server.accept()
                there.settimeout(LIMIT)
                first.close()
                with contextlib.suppress(ConnectionResetError):
                    assert there.recv(1) == b""
                there.close()
                ends += 1
        assert ends >= 1
