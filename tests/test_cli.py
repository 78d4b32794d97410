"""The command line: help, bad input in one line, summaries, Ctrl-C, a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import payload, scaled

LIMIT = 90
NETMEM = [sys.executable, "-m", "netmem.cli.main"]


def run(*words, **options):
    """Run `netmem` to its end."""
    return subprocess.run([*NETMEM, *words], capture_output=True, text=True, timeout=LIMIT, **options)


class Receiver:
    """`netmem recv --json` in the background."""

    def __init__(self, *words):
        self.process = subprocess.Popen(
            [*NETMEM, "recv", "--json", "--listen", "127.0.0.1:0", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
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


@pytest.mark.parametrize("words", [["--help"], ["recv", "--help"], ["demo", "--help"], ["bench", "--help"]])
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
        (["recv", "--hds-thresh", "100"], 2, "hds-thresh is not zero"),
        (["recv", "--mtu", "9001"], 2, "576 to 9000"),
        (["recv", "-o", "/no/such/folder/file"], 2, "no folder"),
        (["recv", "-o", "x", "--count", "2"], 2, "{n}"),
        (["recv", "--exporter", "system-heap"], 1, "ENODEV"),
        (["recieve"], 2, "No such command"),
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


def test_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = run("recv", "--listen", f"127.0.0.1:{server.getsockname()[1]}")
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("memory", ["none", "pages", "dmabuf"])
def test_counting_into_each_memory(memory):
    data = payload(scaled(5_000_000))
    with Receiver("--memory", memory, "--count", "2", "--queues", "3") as receiver:
        receiver.send(data)
        receiver.send(data)
        status, events, _ = receiver.end()
    summary = events[-1]
    assert status == 0
    assert [event["event"] for event in events] == ["closed", "closed", "summary"]
    assert summary["bytes"] == 2 * len(data)
    assert summary["outstanding"] == 0
    assert summary["driver_can_read"] == (memory != "dmabuf")
    assert summary["hds_hit"] > 0
    assert (summary["frags"] > 0) == (memory != "none")


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_with_a_summary(number):
    with Receiver() as receiver:
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


def test_demo_with_a_small_file():
    done = run("demo", "--size", str(scaled(4_000_000)))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].split()[0] for row in rows][:2] == ["none", "pages"]
    assert rows[2].split("│")[2].strip() == "no"
    assert all(row.split("│")[10].strip() == "0" and " ok" in row for row in rows)
    assert done.stdout.splitlines()[-1].startswith("The driver source is the same in each row")
