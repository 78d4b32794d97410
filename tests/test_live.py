"""What of the live check needs no NIC: the other end, the kernel's words, verdicts, reports, usage."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as xml

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmem.base.errors import NetmemError
from netmem.base.kernel_log import COMPLAINT, REFUSAL
from netmem.contract import report
from netmem.contract.live import guest, other_end
from netmem.contract.live.checks import CHECKS
from netmem.contract.live.peer import Peer, default_peer
from netmem.contract.live.run import blame, wanted
from netmem.contract.report import BLOCKED, FAIL, PASS, UNKNOWN, Result
from netmem.contract.requirements import BY_ID
from netmem.kernel.journal import Journal
from netmem.kernel.report import nameless
from netmem.lab.guest.config import GuestError

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")


def netmem(*words, cwd=None):
    argv = [sys.executable, "-m", "netmem.cli.entry", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=cwd)


# -- the other end ------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 9), size=st.integers(0, 3 << 20), piece=st.sampled_from([1 << 10, 1 << 16, 1 << 20])
)
def test_what_is_sent_is_what_is_expected(seed, size, piece):
    got = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = ("127.0.0.1", server.getsockname()[1], size, seed, piece)
        sender = threading.Thread(target=other_end.send, args=words)
        sender.start()
        sock, _ = server.accept()
        with sock:
            while data := sock.recv(1 << 18):
                got += data
        sender.join(10)
    assert len(got) == size
    assert other_end.hashlib.sha256(got).hexdigest() == other_end.digest(seed, size)


@pytest.fixture
def namespace():
    name = f"nmpeer{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


@root_only
def test_a_namespace_does_as_told(namespace):
    """Orders at once, answers in any order, errors by order, and nothing left behind."""
    with Peer(f"netns:{namespace}") as peer:
        taker = peer.order("take", port=0)
        port = peer.wait(taker, 10)["listening"]
        wrong = peer.order("send", host="127.0.0.1", port=1, size=1, seed=0, piece=1)
        sender = peer.order("send", host="127.0.0.1", port=port, size=100_000, seed=3, piece=777)
        with pytest.raises(NetmemError, match="refused"):
            peer.wait(wrong, 10)
        assert peer.wait(taker, 10)["done"] == {"size": 100_000, "digest": other_end.digest(3, 100_000)}
        assert peer.wait(sender, 10)["done"]["sent"] == 100_000
        with pytest.raises(NetmemError, match="did not answer"):
            peer.wait(sender, 0.1)
        pid = peer._child.pid
    assert not os.path.exists(f"/proc/{pid}")


@root_only
def test_a_peer_that_is_killed(namespace):
    with Peer(f"netns:{namespace}") as peer:
        number = peer.order("take", port=0)
        peer.wait(number, 10)
        peer._child.kill()
        with pytest.raises(NetmemError, match="the other end has ended"):
            peer.wait(number, 10)


@pytest.mark.parametrize(
    ("where", "why"),
    [("nowhere", "is not netns:NAME or ssh:HOST"), ("netns:", "is not netns:NAME"),
     ("netns:there-is-none", "peer netns:there-is-none: ")],
)  # fmt: skip
def test_a_peer_that_is_none(where, why):
    with pytest.raises(NetmemError, match=why):
        Peer(where)


def test_the_peer_of_the_kernels_selftests():
    assert default_peer({"REMOTE_TYPE": "netns", "REMOTE_ARGS": "peer"}) == "netns:peer"
    assert default_peer({"REMOTE_TYPE": "carrier", "REMOTE_ARGS": "pigeon"}) == default_peer({}) == ""


# -- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "requirement"),
    [
        ("page_pool_create_percpu() gave up with errno -95", "R4"),
        ("WARNING: include/net/netmem.h:165 at gve_rx_poll_dqo+0x51b/0x1170 [gve], CPU#1", "R5"),
        ("BUG: kernel NULL pointer dereference, address: 0000000000000000", "R5"),
        ("DMA-API: driver has not synced for CPU (sync)", "R6"),
        ("DMAR: [DMA Write NO_PASID] Request device [00:10.0] fault addr 0x0", "R4"),
        ("eth0: RX queue 3 may be unhealthy", "R1"),
        ("WARNING: net/core/page_pool.c:710 at page_pool_inflight+0x1/0x2", "R7"),
        ("refcount_t: underflow; use-after-free.", "R7"), ("NETDEV WATCHDOG: eth0", ""),
    ],
)  # fmt: skip
def test_whose_fault_a_complaint_is(line, requirement):
    assert COMPLAINT.search(line) or REFUSAL.search(line)
    assert blame(line) == requirement


def test_every_requirement_is_looked_at():
    assert {check.requirement for check in CHECKS} == set(BY_ID)
    assert [check.requirement for check in wanted(("R6",))] == ["R6"]
    order = [check.requirement for check in CHECKS]
    for check in CHECKS:
        for need in BY_ID[check.requirement].needs:
            assert order.index(need) < order.index(check.requirement)


def test_what_cannot_be_seen_fails_nothing_and_is_named():
    results = [
        Result("R6", "synced", "pages", UNKNOWN, "nothing bounces"), Result("R2", "set", "pages", PASS, "on, off"),
        Result("R2", "off", "pages", UNKNOWN, "nobody tells"),
    ]  # fmt: skip
    found = {one.requirement: one.outcome for one in report.verdicts(results)}
    assert found == {"R2": PASS, "R6": UNKNOWN}
    suite = xml.fromstring(report.as_junit("d", report.verdicts(results), []))
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "2")
    assert "ok 2 R6 # SKIP unknown: nothing bounces" in report.as_ktap("d", report.verdicts(results), [])


def test_a_kernel_that_died_is_judged_by_its_last_words():
    done = [Result("R2", "split_can_be_set", "pages", PASS, "")]
    console = [
        "[    9.1] BUG: kernel NULL pointer dereference, address: 0",
        "[    9.2] RIP: 0010:gve_rx+0x1 Code: 1",
    ]
    ended = GuestError(errno.EIO, "it ended")
    found = guest._died(("R1", "R2", "R5"), done, "bound_memory_is_written", console, ended)
    outcomes = {(one.requirement, one.outcome, one.by) for one in found}
    assert ("R5", FAIL, "") in outcomes
    assert {("R1", BLOCKED, "R5"), ("R2", BLOCKED, "R5")} <= outcomes
    assert "split_can_be_set" not in {one.check for one in found}
    assert "gve_rx+0x1" in found[-1].evidence
    with pytest.raises(GuestError):
        guest._died(("R1",), done, "tokens_can_be_held", [], GuestError(errno.ETIMEDOUT, "the time was over"))
    late = guest._died(("R1", "R7"), done, "tokens_can_be_held", ["devmem: fine"], ended)
    assert {(one.requirement, one.outcome) for one in late} == {("R1", BLOCKED), ("R7", FAIL)}
    assert guest._stopped(["port 0: DMA read of 8", "port 0: DMA write of 8"])[0].requirement == "TX1"


# -- as a user has it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--live", "lo"], "needs somebody at the other end"),
        (["--live", "lo", "--peer", "mars"], "is not netns:NAME or ssh:HOST"),
        (["--live", "lo", "drivers"], "--live takes"), (["--live", "lo", "--format", "sarif"], "--live takes"),
        (["--peer", "netns:x", "drivers"], "--peer goes with --live"),
    ],
)  # fmt: skip
def test_usage(words, why, monkeypatch):
    monkeypatch.delenv("REMOTE_TYPE", raising=False)
    done = netmem("check", *words)
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1


@root_only
def test_a_device_that_cannot_be_checked(namespace):
    done = netmem("check", "--live", "lo", "--peer", f"netns:{namespace}")
    assert done.returncode == 2
    assert "to restart one queue: no memory can be bound" in done.stderr or "no netlink family" in done.stderr


def test_a_report_is_a_file_that_names_nobody(tmp_path):
    done = netmem("report", "lo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    assert path.name in done.stdout
    found = json.loads(path.read_text())
    assert found["schema"] == "netmem.report/1"
    assert found["explain"][0]["refused"]
    assert (found["check"], found["check_error"]) == ([], None)
    text = path.read_text()
    assert socket.gethostname() not in text or len(socket.gethostname()) < 4
    assert "127.0.0.1" not in text
    assert netmem("report", "there-is-none", cwd=tmp_path).returncode == 1
    unchecked = netmem("report", "lo", "-o", "-", "--peer", "ssh:", cwd=tmp_path)
    assert unchecked.returncode == 2
    assert "'peer'" in json.loads(unchecked.stdout)["check_error"]
    refused = netmem("report", "lo", "-o", "nowhere/report.json", cwd=tmp_path)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)


@root_only
def test_settings_that_are_equal_are_undone_each_by_itself():
    """One that was refused is forgotten, and not another that says the same."""
    journal = Journal("nothing", 0)
    try:
        noted = [{"setting": "rings", "after": n % 2} for n in range(4)]
        for entry in noted:
            journal.note(entry)
        journal.forget(noted[3])
        assert [id(one) for one in journal.entries] == [id(one) for one in noted[:3]]
        undone = []
        assert journal.undo(undone.append) == []
        assert [id(one) for one in undone] == [id(one) for one in reversed(noted[:3])]
    finally:
        journal.path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("from ::ffff:10.9.0.1:38877.", "from (address):38877."), ("to 10.9.0.1:5001", "to (address):5001"),
        ("fd09::2 and 192.0.2.1", "(address) and (address)"),
        ("at ::ffff:10.9.0.1 peer:fd00::2, 42:01:0a:09:00:02", "at (address) peer:(address), (address)"),
        ("PCI device 0000:00:05.0, Linux 7.3.4, 12:30:01", "PCI device 0000:00:05.0, Linux 7.3.4, 12:30:01"),
    ],
)  # fmt: skip
def test_addresses_are_taken_out(text, wanted):
    assert nameless(text) == wanted
