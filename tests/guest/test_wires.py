"""The wires of a guest: the host's loopback by a gateway, the host's kernel by TAP, faults, captures."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading

import pytest

pytestmark = pytest.mark.timeout(300)
NETMEM = [sys.executable, "-m", "netmem.cli.entry", "guest", "run"]
LIMIT = 150


def test_a_client_of_the_host_reaches_the_guest():
    data = random.Random(1).randbytes(8_000_000)
    process = subprocess.Popen(
        [*NETMEM, "--wire", "user", "--forward", "0:5201", "--", "socat -u TCP-LISTEN:5201 - | sha256sum"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    port = 0
    while not port:
        line = process.stderr.readline()
        assert line
        match = re.search(r"127\.0\.0\.1:(\d+) leads", line)
        port = int(match[1]) if match else 0
    for _ in range(100):  # the guest's program has to start listening
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as sock:
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""
                break
            except ConnectionError:
                threading.Event().wait(0.1)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert out.split()[0] == hashlib.sha256(data).hexdigest()


@pytest.mark.skipif(os.geteuid() != 0, reason="a TAP interface needs root")
def test_the_host_s_kernel_is_the_peer(tmp_path):
    data = random.Random(2).randbytes(8_000_000)
    (tmp_path / "data").write_bytes(data)
    # In a network namespace of its own.
    inside = (
        f"cd {tmp_path}; ip link set lo up; (sleep 1; for i in $(seq 300); do "
        "socat -u OPEN:data TCP4:10.9.0.2:5201,connect-timeout=1 2>/dev/null && break; sleep 0.2; done) & "
        f"{' '.join(NETMEM)} --wire tap:nmg0 -- 'ping -c 1 -q 10.9.0.1 >&2; socat -u TCP-LISTEN:5201 - | sha256sum'; wait"
    )
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", inside], capture_output=True, text=True, timeout=LIMIT
    )
    assert done.stdout.split()[0] == hashlib.sha256(data).hexdigest(), done.stderr
    assert " 0% packet loss" in done.stderr


def test_a_capture_and_a_bad_wire(tmp_path):
    capture = tmp_path / "x.pcapng"
    done = subprocess.run(
        [*NETMEM, "--capture", str(capture), "--fault", "loss=3%,reorder=2%,duplicate=1%,seed=7", "--",
         "(ip netns exec peer socat -u TCP-LISTEN:5300 - | sha256sum) & sleep 1; head -c 2000000 /dev/urandom > /tmp/d; "
         "socat -u OPEN:/tmp/d TCP:10.9.0.1:5300; wait; sha256sum /tmp/d"],
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sums = {line.split()[0] for line in done.stdout.splitlines()}
    assert len(sums) == 1
    tool = shutil.which("tshark")
    if tool is None:
        pytest.fail("tshark is not there; CI installs it") if os.environ.get("CI") else pytest.skip(
            "no tshark"
        )
    fields = ["-T", "fields", "-e", "tcp.len", "-e", "tcp.analysis.retransmission"]
    said = subprocess.run(
        [tool, "-r", str(capture), "-Y", "tcp.dstport == 5300", *fields],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = [line.split("\t") for line in said.splitlines()]
    assert sum(int(row[0] or 0) for row in rows) >= 2_000_000
    assert any(row[1] for row in rows)  # what was lost was sent again
