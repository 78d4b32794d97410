"""Reports: what is on the page, when it is written, and what is said when it cannot be."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from conftest import need, payload, scaled
from netmem.base.errors import NetmemError
from netmem.base.history import History
from netmem.lab.device import open_device
from netmem.lab.report import page, reporting
from test_watch import device

pytestmark = pytest.mark.process
LIMIT = 60
NETMEM = [sys.executable, "-m", "netmem.cli.entry"]
PROGRAM = """
import sys, time, netmem
with netmem.open_device() as device:
    listener = device.listen(5001)
    print(device.forward("127.0.0.1", 0, 5001), flush=True)
    sock = listener.accept(60)
    while sock.recv(1 << 20, timeout=60):
        pass
    print("over", flush=True)
    sys.stdin.read()
"""


def in_a_browser(path) -> str:
    """The document of a page, after its scripts have run."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    need(chromium, "no Chromium is here")
    argv = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=4000",
        "--dump-dom",
    ]
    done = subprocess.run([*argv, f"file://{path}"], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def send(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as sock:
        sock.sendall(data)


def test_recv_writes_a_page(tmp_path):
    path, data = tmp_path / "report.html", payload(scaled(5_000_000))
    argv = [*NETMEM, "recv", "--listen", "127.0.0.1:0", "--count", "1", "--report", str(path), "-q"]
    argv += ["--exporter", "memfd"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        send(int(re.search(r":(\d+),", line).group(1)), data)
        _, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert f"report in {path}" in err
    text = path.read_text()
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="?http', text)  # nothing is fetched
    shown = in_a_browser(path)
    assert shown.count('class="gtitle"') or shown.count('class="annotation-text"') >= 8
    found = re.search(r"(\d+) bytes in \d+ packets, (\d+) of them split", shown)
    assert int(found.group(1)) >= len(data)
    assert int(found.group(2)) > 0
    assert shown.count("<path") > 10
    assert sorted(tmp_path.iterdir()) == [path]  # nothing beside it


@contextlib.contextmanager
def program(path):
    """A program that has received something, and has its device open still; the report is to be at ``path``."""
    environment = {**os.environ, "NETMEM_REPORT": str(path)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:  # fmt: skip
        send(int(process.stdout.readline()), payload(scaled(1_000_000)))
        assert process.stdout.readline() == "over\n"
        yield process


def test_any_program_by_its_environment(tmp_path):
    with program(tmp_path / "{pid}.html") as process:
        process.communicate("", timeout=LIMIT)
    assert process.returncode == 0
    (made,) = tmp_path.iterdir()
    assert made.name == f"{process.pid}.html"
    assert "pages, unbound" in made.read_text()


def test_a_program_that_is_killed_leaves_one(tmp_path):
    path = tmp_path / "report.html"
    with program(path) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=LIMIT)
    end = time.monotonic() + LIMIT
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert "nm0" in path.read_text()


def test_two_devices_are_on_one_page(tmp_path):
    path = tmp_path / "report.html"
    with reporting(str(path)), open_device() as first:
        with open_device() as second:
            names = {first.dev.name, second.dev.name}
        assert not path.exists()
    assert all(f"<h2>{name} of process" in path.read_text() for name in names)


@pytest.mark.parametrize(("name", "why"), [("nowhere/x.html", "no folder"), (".", "is a folder")])
def test_where_it_cannot_be_written(tmp_path, name, why):
    with pytest.raises(NetmemError, match=why), reporting(str(tmp_path / name)):
        raise AssertionError
    done = subprocess.run([*NETMEM, "recv", "--report", str(tmp_path / name)], capture_output=True, text=True)
    assert done.returncode == 2
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_recorder_that_is_gone_keeps_no_device_open(tmp_path, capsys):
    with reporting(str(tmp_path / "x.html")), open_device() as device_:
        from netmem.lab import report

        report._recorder._process.kill()
        report._recorder._process.wait()
    assert device_.stack.poller.closed
    assert "no report in" in capsys.readouterr().err


def test_a_start_that_fails_leaves_an_older_report(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("older")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        for words in (["--memory-size", "5000"], ["--listen", where]):
            done = subprocess.run(
                [*NETMEM, "recv", "--exporter", "memfd", "--report", str(path), *words], capture_output=True,
                text=True, timeout=LIMIT,
            )  # fmt: skip
            assert done.returncode in (1, 2)
            assert path.read_text() == "older" or "--listen" in words


def test_devices_one_after_the_other_are_on_the_programs_page(tmp_path):
    path = tmp_path / "report.html"
    text = "import netmem\nfor _ in range(2):\n    with netmem.open_device() as device: print(device.pid)\n"
    text += "import os; assert not os.path.exists(os.environ['NETMEM_REPORT'])\n"
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=LIMIT,
        env={**os.environ, "NETMEM_REPORT": str(path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert path.read_text().count("<h2>nm") >= 1


def test_a_page_of_nothing_says_so():
    history = History(10, forget=False)
    assert "No device was there" in page(history)
    history.add([{**device(1), "batches": [0] * 12, "waits": []}], 1.0)
    assert "not there long enough" in page(history)
