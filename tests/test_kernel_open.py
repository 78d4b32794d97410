"""A device of the kernel's as far as it goes without a capable NIC: refusals, and settings that are put back."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

import netmem
from conftest import need
from netmem.base.errors import NetmemError
from netmem.base.ethtool import SteeringRule
from netmem.base.frags import FRAG
from netmem.kernel import journal
from netmem.kernel.devmem import KernelSocket, _pieces
from netmem.kernel.ethtool_ioctl import EthtoolIoctl
from netmem.kernel.journal import Journal, left_behind, undo_all
from netmem.kernel.settings import KernelEthtool

HOLD = """
import sys, time
from netmem.kernel import journal
journal.FOLDER = journal.Path(sys.argv[1])
held = journal.Journal("eth7", 7)
held.note({"setting": "ntuple", "before": False, "after": True})
print("noted", flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "FOLDER", tmp_path / "netmem")
    return tmp_path / "netmem"


def test_a_journal_says_what_to_undo_the_last_first(folder):
    held, seen = Journal("eth7", 7), []
    for n in range(3):
        held.note({"setting": "x", "n": n})
    lines = [json.loads(line) for line in held.path.read_text().splitlines()]
    assert [line["n"] for line in lines] == [0, 1, 2]
    held.forget(held.entries[1])
    assert held.undo(lambda entry: seen.append(entry["n"])) == []
    assert seen == [2, 0]
    assert list(folder.iterdir()) == []


def test_what_cannot_be_undone_stays(folder):
    held = Journal("eth7", 7)
    for n in range(3):
        held.note({"setting": "x", "n": n})

    def undo(entry):
        if entry["n"] == 1:
            raise NetmemError(errno.EINVAL, "not now")

    assert [error.errno for error in held.undo(undo)] == [errno.EINVAL]
    (found,) = left_behind("eth7", 7)
    assert [entry["n"] for entry in found[1]] == [1]
    for _, entries in left_behind("eth7", 7):
        assert undo_all(entries, lambda entry: None) == []
    assert list(folder.iterdir()) == []


def test_a_journal_is_left_behind_when_its_process_is_killed(folder):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "noted\n"
        assert list(left_behind("eth7", 7)) == []  # it lives
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        assert list(left_behind("eth8", 7)) == []
        ((path, entries),) = left_behind("eth7", 7)
        assert entries == [{"setting": "ntuple", "before": False, "after": True}]
        assert path.exists()  # nobody has undone it
    finally:
        child.kill()
        child.wait(10)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe{", b"[1, 2]\nnull\n{", b'{"setting": "rings"}\n\0\0\0'])
def test_a_damaged_journal_does_no_harm(folder, content):
    folder.mkdir()
    inode = os.stat("/proc/self/ns/net").st_ino
    index = socket.if_nametoindex("lo")
    (folder / f"{inode}-{index}-lo-1.0").write_bytes(content)
    try:
        settings = KernelEthtool("lo", index)
    except NetmemError as error:
        need(False, f"the family ethtool: {error}")
    settings.close()


def test_there_is_no_such_interface():
    with pytest.raises(NetmemError, match=r"no interface 'nosuch0' here; there are .*lo") as caught:
        netmem.open_device("kernel:nosuch0")
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(TypeError, match="queues"):
        netmem.open_device("kernel:lo", queues=3)


@pytest.fixture
def loopback(folder):
    try:
        with netmem.open_device("kernel:lo") as device:
            yield device
    except NetmemError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip(f"this machine's own kernel: {error}")
    assert not folder.exists() or list(folder.iterdir()) == []


def test_loopback_can_do_none_of_it(loopback):
    memory = netmem.DmabufProvider(1 << 20, exporter="memfd")
    for call in (
        lambda: loopback.ethtool.set_ringparam(tcp_data_split=2),
        lambda: loopback.ethtool.set_rxfh_indir([0]),
        lambda: loopback.steer(5001, 0),
        lambda: loopback.bind_rx([0], memory),
        lambda: loopback.bind_tx(memory),
        lambda: loopback.ethtool.add_rule(SteeringRule(queue=0, src_port=1)),
    ):
        with pytest.raises(NetmemError) as caught:
            call()
        assert caught.value.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL)
        assert "\n" not in str(caught.value)
    memory.close()


def test_sockets_by_a_device(loopback):
    with loopback.listen(0) as listener, loopback.connect("127.0.0.1", listener.port, timeout=5) as ours:
        with listener.accept(timeout=5) as theirs:
            assert ours.send(b"hello") == 5
            assert theirs.recv(100, timeout=5) == b"hello"
            theirs.sendall(b"there")
            message = ours.recvmsg_devmem(timeout=5)
            assert (bytes(message.linear), message.copied) == (b"there", True)
            with pytest.raises(NetmemError) as caught:
                ours.sendmsg_devmem([(0, 100)], 77, timeout=5)
            assert caught.value.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EFAULT)
            assert ours.zerocopy_completions() == []
            assert ours.wait_zerocopy(0.1) == []
            theirs.abort()
        with pytest.raises(NetmemError) as caught:
            ours.recvmsg_devmem(timeout=5)
        assert caught.value.errno == errno.ECONNRESET
    with pytest.raises(NetmemError, match="cannot connect") as caught:
        loopback.connect("127.0.0.1", listener.port, timeout=5)
    assert caught.value.errno == errno.ECONNREFUSED


def test_a_timeout_waiting_for_completions():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sock = KernelSocket(ours, ("peer", 1))
        sock._calls = 1
        with pytest.raises(NetmemError) as caught:
            sock.wait_zerocopy(0.05)
        assert caught.value.errno == errno.ETIMEDOUT


def test_ioctls_name_the_device():
    ioctl = EthtoolIoctl("nosuch0")
    with pytest.raises(NetmemError, match="nosuch0: cannot count flow rules") as caught:
        ioctl.rules()
    assert caught.value.errno == errno.ENODEV
    ioctl.close()


def test_pieces():
    frags = np.zeros(2, FRAG)
    frags["frag_offset"], frags["frag_size"] = [4096, 0], [10, 20]
    assert _pieces(frags) == [(4096, 10), (0, 20)]
    assert _pieces([(1, 2)]) == _pieces(np.array([[1, 2]])) == [(1, 2)]
    assert _pieces([]) == []
    for wrong in ([1], [(1, 2, 3)], [(-1, 2)], [(0, -2)]):
        with pytest.raises(NetmemError) as caught:
            _pieces(wrong)
        assert caught.value.errno == errno.EINVAL


def test_a_signal_in_the_middle_leaves_the_setting_noted(loopback, folder):
    """It may have been made: only what was refused is forgotten."""
    settings = loopback.ethtool

    def cut():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        settings._made({"setting": "ntuple", "before": False, "after": True}, cut)
    (path,) = folder.iterdir()
    assert json.loads(path.read_text())["setting"] == "ntuple"

    def refuse():
        raise NetmemError(errno.EOPNOTSUPP, "no")

    with pytest.raises(NetmemError):
        settings._made({"setting": "ntuple", "before": True, "after": False}, refuse)
    assert len(path.read_text().splitlines()) == 1
