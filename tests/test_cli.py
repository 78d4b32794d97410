"""The command line: help, bad input in one line, summaries, Ctrl-C, a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conftest import NIC_MEMORY, need, need_qemu, payload, scaled
from netmem.base.ethtool import TcpDataSplit
from netmem.base.jit import COMPILED
from netmem.lab.device import open_device
from netmem.lab.observe import observe
from netmem.memory.providers.dmabuf import DmabufProvider

LIMIT = 90
NETMEM = [sys.executable, "-m", "netmem.cli.entry"]


def run(*words, **options):
    """Run `netmem` to its end."""
    return subprocess.run([*NETMEM, *words], capture_output=True, text=True, timeout=LIMIT, **options)


class Receiver:
    """`netmem recv --json` in the background."""

    def __init__(self, *words, **env):
        self.process = subprocess.Popen(
            [*NETMEM, "recv", "--json", "--listen", "127.0.0.1:0", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.port = json.loads(line)["port"]

    def send(self, data, *, reset=False):
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT)
        sock.sendall(data)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
            return
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(LIMIT)
        with contextlib.suppress(OSError):
            sock.recv(1)
        sock.close()

    def end(self):
        out, err = self.process.communicate(timeout=LIMIT)
        events = [json.loads(line) for line in out.splitlines()]
        return self.process.returncode, events, err

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize(
    "words", [["--help"], ["recv", "--help"], ["demo", "--help"], ["bench", "--help"], ["show", "--help"]]
)
def test_help(words):
    done = run(*words)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: netmem")
    assert done.stderr == ""


def test_version():
    assert run("--version").stdout.startswith("netmem, version 0.")


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["recv", "--memory", "tape"], 2, "'tape' is not one of"),
        (["recv", "--memory-size", "5000"], 2, "not a positive multiple of 4096"),
        (["recv", "--memory-size", "lots"], 2, "is not a size"),
        (["recv", "--rx-page-size", "6000"], 2, "not a power of two"),
        (["recv", "--rx-page-size", "4M", "--memory-size", "8M"], 2, "outside"),
        (["recv", "--listen", "0.0.0.0:0"], 2, "--allow-remote"),
        (["recv", "--listen", "5001"], 2, "is not HOST:PORT"),
        (["recv", "--tcp-data-split", "off"], 2, "tcp-data-split is disabled"),
        (["recv", "--hds-thresh", "100"], 2, "hds-thresh is 100: set it to 0"),
        (["recv", "--mtu", "9001"], 2, "576 to 9000"),
        (["recv", "-o", "/no/such/folder/file"], 2, "no folder"),
        (["recv", "-o", "x", "--count", "2"], 2, "{n}"),
        (["recv", "--exporter", "system-heap"], 1, "ENODEV"),
        (["recieve"], 2, "No such command"),
        (["recv", "--memory", "bar"], 2, "softnic has no other PCI devices"),
        (["recv", "--nic", "igb", "--qemu", "/no/such/qemu"], 2, "no program is there"),
        (["recv", "--nic", "igb", "--qemu", sys.executable], 2, "this is no QEMU"),
        (["show", "1"], 1, "process 1 has no netmem device"),
        (["show", "--interval", "0"], 2, "0"),
        (["demo", "--size", "-1"], 2, "is not a size"),
    ],
)
def test_bad_input_is_one_line_and_the_right_status(words, status, text):
    if "system-heap" in words and os.path.exists("/dev/dma_heap/system"):
        pytest.skip("this machine has the system heap")
    done = run(*words)
    assert done.returncode == status, done.stderr
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--memory", "bar", "--memory-size", "48M"], "must be a power of two"),
        (["--hds-thresh", "5"], "cannot set hds_thresh"),
        (["--listen", "[::1]:0"], "IPv4 only"),
    ],
)
def test_bad_input_for_igb(words, text):
    need_qemu()
    done = run("recv", "--nic", "igb", *words)
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_igb_without_qemu_is_one_line_and_status_2(tmp_path):
    done = run("recv", "--nic", "igb", env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 2
    assert "qemu-system-x86_64 is not installed" in done.stderr
    assert done.stderr.count("\n") == 1


def test_port_in_use(nic):
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = run("recv", "--nic", nic, "--listen", f"127.0.0.1:{server.getsockname()[1]}")
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("nic", "memory"), NIC_MEMORY, indirect=["nic"])
def test_counting_into_each_memory(nic, memory):
    data = payload(scaled(5_000_000))
    with Receiver("--nic", nic, "--memory", memory, "--count", "2", "--queues", "3") as receiver:
        receiver.send(data)
        receiver.send(data)
        status, events, _ = receiver.end()
    summary = events[-1]
    assert status == 0
    assert [event["event"] for event in events] == ["closed", "closed", "summary"]
    assert summary["nic"] == nic
    assert summary["bytes"] == 2 * len(data)
    assert summary["outstanding"] == 0
    assert summary["driver_can_read"] == (memory in ("none", "pages"))
    assert summary["hds_hit"] > 0
    assert (summary["frags"] > 0) == (memory != "none")
    for closed in events[:2]:  # how each of them came
        told = [closed[name] for name in ("frag_bytes", "linear_bytes", "copied_bytes")]
        assert sum(told) == closed["bytes"] == len(data)
        assert (closed["copied_bytes"] == len(data)) == (memory == "none")
        assert len(closed["bindings"]) == (memory != "none")


def test_unbound_memory_may_go_without_split():
    data = payload(scaled(1_000_000))
    with Receiver("--memory", "none", "--tcp-data-split", "off", "--mtu", "9000", "--count", "1") as receiver:
        receiver.send(data)
        status, events, _ = receiver.end()
    assert (status, events[-1]["bytes"], events[-1]["hds_hit"]) == (0, len(data), 0)


def test_numbered_files(tmp_path):
    parts = [payload(scaled(500_000), seed) for seed in (1, 2)]
    with Receiver("--count", "2", "-o", str(tmp_path / "out{n}")) as receiver:
        for part in parts:
            receiver.send(part)
        assert receiver.end()[0] == 0
    assert [(tmp_path / f"out{n}").read_bytes() for n in (1, 2)] == parts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly_with_a_summary(number, nic):
    with Receiver("--nic", nic) as receiver:
        receiver.process.send_signal(number)
        status, events, err = receiver.end()
    assert status == 0
    assert events[-1]["interrupted"] is True
    assert events[-1]["outstanding"] == 0
    assert err == ""


def test_a_client_that_resets_is_one_line_and_status_1():
    with Receiver("--count", "1") as receiver:
        receiver.send(payload(100_000), reset=True)
        status, events, err = receiver.end()
    assert status == 1
    assert "reset the connection" in err
    assert err.count("\n") == 1
    assert events[-1]["outstanding"] == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_one_line_and_status_1():
    with Receiver("--count", "1", "-o", "/dev/full") as receiver:
        receiver.send(payload(100_000))
        status, events, err = receiver.end()
    assert status == 1
    assert "/dev/full: No space left on device" in err
    assert err.count("\n") == 1
    assert events[-1]["outstanding"] == 0


def test_killed_nic_ends_recv_with_one_line():
    with Receiver() as receiver:
        children = Path(f"/proc/{receiver.process.pid}/task/{receiver.process.pid}/children")
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        status, events, err = receiver.end()
    assert status == 1
    assert "the NIC is gone" in err
    assert "Traceback" not in err


def descendants(pid):
    """Processes below ``pid``: (process id, command) each."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [(int(c), Path(f"/proc/{c}/cmdline").read_bytes()) for c in children]


def send_until_broken(sock):
    """Send zeros until the connection breaks."""
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(bytes(1 << 16))


def test_qemu_killed_in_the_middle_of_a_transfer(tmp_path):
    """An error within a second, no hang, nothing left."""
    need_qemu()
    folder = tmp_path / "temporary"  # of its own: other tests leave things in the usual one meanwhile
    folder.mkdir()
    with Receiver(
        "--nic", "igb", "--memory", "bar", "-o", str(tmp_path / "out"), TMPDIR=str(folder)
    ) as receiver:
        below = descendants(receiver.process.pid)
        (qemu,) = [pid for pid, command in below if b"qemu" in command]
        sock = socket.create_connection(("127.0.0.1", receiver.port), timeout=LIMIT)
        sender = threading.Thread(target=send_until_broken, args=(sock,))
        sender.start()
        out = tmp_path / "out.partial"
        while not out.exists() or out.stat().st_size < scaled(1_000_000):
            select.select([], [], [], 0.005)
        start = time.monotonic()
        os.kill(qemu, signal.SIGKILL)
        status, events, err = receiver.end()
        assert time.monotonic() - start < 3  # the interpreter's own end included
        sender.join(LIMIT)
        sock.close()
    assert status == 1, err
    assert "Traceback" not in err
    assert events, err
    assert events[0]["error"].startswith("nm0: the NIC is gone")
    assert "Traceback" not in err
    assert not [pid for pid, _ in below if Path(f"/proc/{pid}").exists()]
    assert not os.listdir(folder)


def test_a_killed_receiver_takes_qemu_with_it():
    need_qemu()
    with Receiver("--nic", "igb") as receiver:
        below = descendants(receiver.process.pid)
        assert len(below) == 2  # QEMU, and the shell that watches over it
        receiver.process.kill()
        deadline = time.monotonic() + 5
        while any(Path(f"/proc/{pid}").exists() for pid, _ in below) and time.monotonic() < deadline:
            select.select([], [], [], 0.01)
        # A zombie waits for init, where there is one: what counts is that it runs no more.
        states = [
            Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            for pid, _ in below
            if Path(f"/proc/{pid}").exists()
        ]
        assert set(states) <= {"Z", "X"}


@pytest.mark.parametrize(("nic", "memory"), [("softnic", "dmabuf"), ("igb", "bar")], indirect=["nic"])
def test_show_looks_into_a_running_receiver(nic, memory):
    """While an application holds tokens of a connection."""
    with open_device(nic, queues=2) as device:
        provider = (
            device.bar_memory(8 << 20) if memory == "bar" else DmabufProvider(8 << 20, exporter="memfd")
        )
        device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        if "rx_gro_hw" in device.dev.driver.hw_features:
            device.ethtool.set_features(rx_gro_hw=False)  # each segment is a packet of its own
        binding = device.bind_rx([1], provider)
        device.steer(5001, 1)
        listener, port = device.listen(5001), device.forward("127.0.0.1", 0, 5001)
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as client:
            client.sendall(payload(50_000))
            sock = listener.accept(LIMIT)
            device.stack.wait(lambda: sock.queued() == 50_000, LIMIT, "data")
            frags = sock.recvmsg_devmem(20_000).frags
            done = run("show", "--json", str(os.getpid()))
            (seen,) = json.loads(done.stdout)["devices"]
            people = run("show", str(os.getpid()))
            sock.devmem_dontneed(frags["frag_token"])
            (after,) = observe(os.getpid())
            sock.close()
        binding.close()
        assert device.dev.board.fd >= 0
    assert (seen["driver"], seen["link"], seen["addresses"][0]) == (nic, True, "10.0.2.15")
    assert seen["ring"]["tcp_data_split"] == "enabled"
    queue = seen["queues"][1]
    assert (queue["provider"]["memory"], queue["provider"]["binding"]) == (memory, binding.id)
    assert queue["hds_hit"] >= 50_000 // 1460
    (one,) = seen["sockets"]
    assert (one["state"], one["port"], one["queued"], one["tokens"]) == (
        "ESTABLISHED",
        5001,
        30_000,
        len(frags),
    )
    assert queue["pool"]["outstanding"] >= len(frags)
    assert after["sockets"][0]["tokens"] == 0
    assert people.returncode == 0
    for text in (nic, memory, "ESTABLISHED", "10.0.2.15", "link up", "10.0.2.2 is the gateway"):
        assert text in people.stdout
    assert observe(os.getpid()) == []  # a closed device says nothing


@pytest.mark.parametrize("nic", ["softnic", "igb"], indirect=True)
def test_the_port_that_is_listened_on_is_the_stacks(nic, tmp_path):
    """In show, in what is told of a connection, and in captures; and who connected is told."""
    path = tmp_path / "x.pcapng"
    with Receiver("--nic", nic, "--count", "1", "--capture", str(path)) as receiver:
        client = socket.create_connection(("127.0.0.1", receiver.port), timeout=LIMIT)
        client.sendall(payload(100_000))
        ports = set()
        deadline = time.monotonic() + LIMIT
        while not ports and time.monotonic() < deadline:
            ports = {s["port"] for d in observe(receiver.process.pid) for s in d["sockets"]}
        mine = "127.0.0.1:" + str(client.getsockname()[1])
        client.close()
        status, events, _ = receiver.end()
    assert status == 0
    assert ports == {receiver.port}
    closed = next(event for event in events if event["event"] == "closed")
    assert closed["peer"].startswith("10.0.2.2:")
    assert closed["client"] == (mine if nic == "softnic" else None)
    assert 1 < events[-1]["frags_per_mib"] < 2000
    assert tshark(path, receiver.port)


def tshark(path, port):
    need(shutil.which("tshark"), "tshark is not there")
    argv = ["tshark", "-r", str(path), "-Y", f"tcp.dstport == {port}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout


def test_compile_says_that_nothing_is_left_to_do():
    done = run("compile")
    assert done.returncode == 0, done.stderr
    assert "compiled already" in done.stdout if COMPILED else "nothing to compile" in done.stdout


@pytest.mark.parametrize("with_qemu", [True, False])
def test_demo_with_a_small_file(tmp_path, with_qemu):
    environment = dict(os.environ)
    if with_qemu:
        need_qemu()
    else:
        environment["PATH"] = str(tmp_path)
    done = run("demo", "--no-guest", "--size", str(scaled(4_000_000)), env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith("No rows")) <= 80  # which has a path
    rows = [line.split() for line in lines if line.startswith(("softnic ", "igb "))]
    memory = [(row[0], row[1].split("/")[0]) for row in rows]
    assert memory[:2] == [("softnic", "none"), ("softnic", "pages")]
    assert (("igb", "bar") in memory) == with_qemu
    assert all(row[2] == ("yes" if row[1] in ("none", "pages") else "no") for row in rows)
    assert all(row[7:] == ["0", "ok"] for row in rows)
    assert all((float(row[6]) > 0) == (row[1] != "none") for row in rows)  # frags in a MiB
    if with_qemu:
        assert "The driver is the same in each of its rows: netmem.drivers.igb.driver" in done.stdout
    else:
        assert "No rows for igb: qemu-system-x86_64 is not installed" in done.stdout
