"""Done means done: what `netmem send` and `netmem recv` say of transfers that went well, and of others."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

from conftest import need_nic, payload, scaled
from netmem.base.transfer import FileSink
from netmem.lab.device import open_device
from netmem.lab.gateway import RESERVE
from test_cli import LIMIT, NETMEM, Receiver, run

SIZE = scaled(12_000_000)


class Reader(threading.Thread):
    """A server that reads ``limit`` bytes at ``rate`` bytes a second, then does what ``end`` says."""

    def __init__(self, rate=0.0, *, limit=None, end="close", early=False):
        super().__init__(daemon=True)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(LIMIT)
        self.port = self.server.getsockname()[1]
        self.rate, self.limit, self.end, self.early = rate, limit, end, early
        self.arrived = 0  # bytes that this host had when it reset the connection
        self.digest, self.size = hashlib.sha256(), 0
        self.started, self.over = threading.Event(), threading.Event()
        self.start()

    def run(self):
        with contextlib.suppress(ConnectionResetError), self.server, self.server.accept()[0] as sock:
            sock.settimeout(LIMIT)
            if self.early:
                sock.shutdown(socket.SHUT_WR)
            start = time.monotonic()
            while self.limit is None or self.size < self.limit:
                data = sock.recv(1 << 16)
                if not data:
                    break
                self.digest.update(data)
                self.size += len(data)
                self.started.set()
                if self.rate:
                    self.over.wait(max(0.0, self.size / self.rate - (time.monotonic() - start)))
            if self.end == "reset":
                time.sleep(0.5)  # until its buffer is full, and that is acknowledged
                self.arrived = (
                    self.size + struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]
                )
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            elif self.end == "hang":
                self.over.wait(LIMIT)

    def done(self):
        self.over.set()
        self.join(LIMIT)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(payload(SIZE))
    return path


def send(file, port, *words):
    return run("send", *words, str(file), f"127.0.0.1:{port}")


@pytest.mark.parametrize(("nic", "memory"), [("softnic", "dmabuf"), ("softnic", "none"), ("igb", "bar")])
def test_a_slow_reader_gets_all_of_it(nic, memory, file):
    """Slower than all the buffers on the way, which hold most of the file when the sender is through."""
    need_nic(nic)
    reader = Reader(SIZE / 1.5)
    done = send(file, reader.port, "--nic", nic, "--memory", memory)
    reader.done()
    assert done.returncode == 0, done.stderr
    assert reader.size == SIZE
    assert reader.digest.digest() == hashlib.sha256(file.read_bytes()).digest()


def test_a_reader_that_resets_is_a_failure_that_says_how_much_it_has(file):
    reader = Reader(limit=SIZE // 2, end="reset")
    done = send(file, reader.port)
    reader.done()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    found = re.search(r"reset the connection; it has (\d+) of (\d+) bytes", done.stderr)
    assert found, done.stderr
    assert int(found[2]) == SIZE
    assert 0 < int(found[1]) <= reader.arrived


@pytest.mark.parametrize("memory", ["none", "dmabuf"])
def test_a_reader_that_closes_its_end_early_has_not_read_everything(memory, file):
    """As servers do that have nothing to say: its FIN means nothing of what it has read."""
    reader = Reader(SIZE / 1.5, early=True)
    done = send(file, reader.port, "--memory", memory)
    reader.done()
    assert done.returncode == 0, done.stderr
    assert reader.size == SIZE
    reader = Reader(limit=1000, end="reset", early=True)
    done = send(file, reader.port, "--memory", memory)
    reader.done()
    assert done.returncode == 1, done.stdout
    found = re.search(r"reset the connection; it has (\d+) of (\d+) bytes", done.stderr)
    assert found, done.stderr
    assert 0 < int(found[1]) <= reader.arrived < SIZE


def test_two_connections_cannot_write_one_file(tmp_path):
    out = tmp_path / "out"
    one = FileSink(str(out))
    one.write(memoryview(b"A" * 8))
    with pytest.raises(OSError, match="another connection is writing it"):
        FileSink(str(out))
    one.write(memoryview(b"A" * 8))
    one.close(True)
    assert out.read_bytes() == b"A" * 16
    two = FileSink(str(out))
    two.write(memoryview(b"B"))
    two.close(True)
    assert out.read_bytes() == b"B"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("reads", [False, True])
def test_a_signal_does_not_wait_for_who_reads_what_is_written(number, reads, tmp_path):
    """A FIFO that nobody opens, and one whose reader does nothing."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK) if reads else -1
    with Receiver("-o", str(fifo), "--count", "1") as receiver:
        client = socket.create_connection(("127.0.0.1", receiver.port), timeout=LIMIT)
        client.sendall(payload(300_000))
        waits_in(receiver.process.pid, "pipe_write" if reads else "wait_for_partner")
        receiver.process.send_signal(number)
        status, events, _ = receiver.end()
        client.close()
    if reads:
        os.close(end)
    assert status == 128 + number
    assert events[-1]["outstanding"] == 0


def waits_in(pid, where):
    """Until the process sleeps in a kernel function, as far as the kernel tells; in any system call, else."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/wchan") as file:
            name = file.read()
        if where in name:
            return
        if name in ("", "0") and time.monotonic() > deadline - LIMIT + 3:
            return
        time.sleep(0.02)


def test_a_gateway_without_descriptors_refuses_and_lives_on():
    with open_device() as device:
        used = len(os.listdir(f"/proc/{device.pid}/fd"))
        device.listen(5001, backlog=1000)
        out = socket.create_server(("127.0.0.1", 0), backlog=1000)
        port, outward = device.forward("127.0.0.1", 0, 5001), out.getsockname()[1]
        gateway = device.reach("127.0.0.1", outward)
        assert device.reach("127.0.0.1", outward) == gateway
        for room in range(RESERVE + 2, RESERVE + 6):
            resource.prlimit(device.pid, resource.RLIMIT_NOFILE, (used + room, used + 4096))
            clients, ours = [], []
            for _ in range(30):
                with contextlib.suppress(ConnectionResetError):  # before connect() had returned
                    clients.append(socket.create_connection(("127.0.0.1", port), timeout=LIMIT))
                with contextlib.suppress(ConnectionResetError, ConnectionRefusedError, TimeoutError):
                    ours.append(device.connect(*gateway, timeout=0.3))
            for one in [*clients, *ours]:
                one.close()
        resource.prlimit(device.pid, resource.RLIMIT_NOFILE, (used + 4096, used + 4096))
        listener = device.listen(5002)
        with socket.create_connection(
            ("127.0.0.1", device.forward("127.0.0.1", 0, 5002)), timeout=LIMIT
        ) as client:
            client.sendall(b"still there")
            assert listener.accept(LIMIT).recv(100, timeout=LIMIT) == b"still there"
        out.close()


def test_a_reader_that_stops_reading_is_a_failure_in_time(file):
    reader = Reader(limit=SIZE // 4, end="hang")
    start = time.monotonic()
    done = send(file, reader.port, "--timeout", "1.5")
    assert time.monotonic() - start < 30
    reader.done()
    assert done.returncode == 1
    assert re.search(r"took nothing more in time; it has \d+ of \d+ bytes", done.stderr), done.stderr
    assert done.stderr.count("\n") == 1


def test_nobody_there_is_one_line(file):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = send(file, port)
    assert done.returncode == 1
    assert "does anybody listen there?" in done.stderr
    assert done.stderr.count("\n") == 1


TAKEN_APART = """
import os, signal, threading
from netmem.cli.signals import Interrupted, raise_on_signals

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(1000))

raise_on_signals()
try:
    Last()
    threading.Event().wait(60)
except Interrupted as stop:
    print(stop, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)  # the second one ends it as by default
"""


def test_a_signal_is_not_lost_while_an_object_is_taken_apart():
    done = subprocess.run([sys.executable, "-c", TAKEN_APART], capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "interrupted by SIGTERM\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_sending_says_how_much_was_handed_over(number, file):
    reader = Reader(SIZE / 30)
    process = subprocess.Popen(
        [*NETMEM, "send", str(file), f"127.0.0.1:{reader.port}"], stderr=subprocess.PIPE, text=True
    )
    assert reader.started.wait(LIMIT)
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT)
    reader.done()
    assert process.returncode == 128 + number, err
    assert err.count("\n") == 1, err
    assert re.search(rf"interrupted by {number.name}: .* has \d+ of {SIZE} bytes", err), err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("words", [(), ("--count", "1")])
def test_a_signal_in_the_middle_of_receiving_is_a_failure(number, words, tmp_path):
    out = tmp_path / "out"
    with Receiver("-o", str(out), *words) as receiver:
        client = socket.create_connection(("127.0.0.1", receiver.port), timeout=LIMIT)
        client.sendall(payload(100_000))
        partial = tmp_path / "out.partial"
        deadline = time.monotonic() + LIMIT
        while (not partial.exists() or partial.stat().st_size < 100_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        receiver.process.send_signal(number)
        status, events, err = receiver.end()
        client.close()
    assert status == 128 + number
    assert events[0]["error"] == f"cut short by {number.name} after 100000 bytes"
    assert events[0]["partial"] == str(partial)
    assert events[-1]["failed"] == 1
    assert events[-1]["outstanding"] == 0
    assert err.count("\n") == 1
    assert str(partial) in err
    assert not out.exists()
    assert partial.read_bytes() == payload(100_000)


def test_a_signal_before_the_count_is_reached_is_a_failure():
    with Receiver("--count", "1") as receiver:
        receiver.process.send_signal(signal.SIGINT)
        status, events, _ = receiver.end()
    assert (status, events[-1]["interrupted"]) == (130, True)


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    out = tmp_path / "out"
    out.write_bytes(b"before")
    with Receiver("-o", str(out), "--count", "1") as receiver:
        receiver.send(payload(50_000), reset=True)
        assert receiver.end()[0] == 1
    assert out.read_bytes() == b"before"
    with Receiver("-o", str(out), "--count", "1") as receiver:
        receiver.send(payload(50_000))
        assert receiver.end()[0] == 0
    assert out.read_bytes() == payload(50_000)
    assert sorted(os.listdir(tmp_path)) == ["out", "out.partial"] or os.listdir(tmp_path) == ["out"]


def test_what_was_sent_before_closing_reaches_a_slow_client():
    """A server that answers, closes the socket, and then the device."""
    size = scaled(6_000_000)
    data = payload(size)
    got = bytearray()

    def client(port):
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as sock:
            while part := sock.recv(1 << 14):
                got.extend(part)
                time.sleep(len(part) / (size / 1.5))

    with open_device() as device:
        listener = device.listen(7000)
        port = device.forward("127.0.0.1", 0, 7000)
        thread = threading.Thread(target=client, args=(port,))
        thread.start()
        with listener.accept(LIMIT) as sock:
            sock.sendall(data)
    thread.join(LIMIT)
    assert bytes(got) == data


def test_a_client_that_takes_nothing_does_not_hold_the_device_up():
    with socket.socket() as client:
        device = open_device()
        listener = device.listen(7000)
        port = device.forward("127.0.0.1", 0, 7000)
        client.connect(("127.0.0.1", port))
        with listener.accept(LIMIT) as sock:
            sock.sendall(payload(200_000))
        start = time.monotonic()
        device.close(linger=0.3)
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("after", [0.05, 0.1, 0.15, 0.25])
def test_ctrl_c_in_the_first_moment_is_no_traceback(after):
    process = subprocess.Popen(
        [*NETMEM, "recv", "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which what runs behind & ignores
    )  # fmt: skip
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT)
    # Before Python has come to our first line, it says what it wants.
    assert "Traceback" not in err or "src/netmem" not in err, err
    assert process.returncode != 0 or "bytes in" in err


def test_nohup_is_respected():
    code = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); import os; os.execv(sys.executable, sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *NETMEM, "recv", "--json", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.7)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=LIMIT)[0]
