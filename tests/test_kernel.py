"""What the running kernel tells of its devices: netlink's netdev family, as far as this kernel has it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys

import pytest
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from conftest import need
from netmem.base.errors import NetmemError
from netmem.kernel import look
from netmem.kernel.netdev_family import NetdevFamily, netdev_page_pool_stats, netdev_queue, plain

NETMEM = [sys.executable, "-m", "netmem.cli.entry"]
NAMES = itertools.count(1)
LIMIT_S = 60


def has_family():
    try:
        NetdevFamily().close()
    except NetmemError:
        return False
    return True


@pytest.fixture
def family():
    """Skips where this machine's kernel is too old: nothing installs another one."""
    if not has_family():
        pytest.skip("this kernel has no netdev family")


@pytest.fixture
def veth():
    """A namespace with a veth pair, up, of 3 queues: its name."""
    need(os.geteuid() == 0 and shutil.which("ip"), "a network namespace needs root and iproute2")
    name = f"nmkern{os.getpid()}-{next(NAMES)}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    need(done.returncode == 0, f"network namespaces cannot be made here: {done.stderr.strip()}")
    queues = ["numrxqueues", "3", "numtxqueues", "3"]
    for words in (
        ["link", "add", "v0", *queues, "type", "veth", "peer", "name", "v1", *queues],
        ["addr", "add", "10.9.0.1/24", "dev", "v0"],
        ["link", "set", "v0", "up"],
        ["link", "set", "v1", "up"],
    ):
        subprocess.run(["ip", "-n", name, *words], check=True, capture_output=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


def show(*words, inside=()):
    command = [*inside, *NETMEM, "show", "--kernel", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)


def attribute(kind, data):
    data = struct.pack("=HH", 4 + len(data), kind) + data
    return data + bytes(-len(data) % 4)


def decoded(message, *attributes):
    data = struct.pack("=BBH", 10, 1, 0) + b"".join(attributes)
    data = struct.pack("=IHHII", 16 + len(data), 20, 0, 0, 0) + data
    one = message(data)
    one.decode()
    return one["attrs"]


def test_numbers_are_as_wide_as_the_kernel_made_them():
    """``uint`` is of 4 or 8 bytes; a pool's counters begin at attribute 8."""
    info = attribute(1, struct.pack("=I", 7)) + attribute(5, struct.pack("=Q", 1 << 33))
    rows = plain(
        decoded(
            netdev_page_pool_stats,
            attribute(1 | 0x8000, info),
            attribute(8, struct.pack("=I", 11)),
            attribute(18, struct.pack("=Q", 1 << 40)),
        ),
        "NETDEV_A_PAGE_POOL_STATS_",
    )
    assert rows == {
        "info": {"id": 7, "inflight_mem": 1 << 33}, "alloc_fast": 11, "recycle_released_refcnt": 1 << 40,
    }  # fmt: skip


def test_an_empty_nest_says_that_it_is_there():
    rows = decoded(netdev_queue, attribute(1, struct.pack("=I", 3)), attribute(6 | 0x8000, b""))
    assert plain(rows, "NETDEV_A_QUEUE_") == {"id": 3, "io_uring": True}


def test_loopback_is_always_there(family):
    (lo,) = look.kernel_devices("lo")
    assert lo["driver"] == "loopback"
    assert {queue["type"] for queue in lo["queues"]} == {"rx", "tx"}
    with pytest.raises(NetmemError) as caught:
        look.kernel_devices("nosuch0")
    assert caught.value.errno == errno.ENODEV


def test_queues_of_a_veth_pair_as_text_and_json(family, veth):
    inside = ["ip", "netns", "exec", veth]
    done = show("--json", inside=inside)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "netmem.show-kernel/1"
    devices = {device["name"]: device for device in document["devices"]}
    assert devices["v0"]["driver"] == "veth"
    assert "10.9.0.1/24" in devices["v0"]["addresses"]
    assert [queue["id"] for queue in devices["v0"]["queues"] if queue["type"] == "rx"] == [0, 1, 2]
    text = show(inside=inside).stdout
    assert "v1: veth" in text
    assert "pages, unbound" in text


def test_no_privileges_are_needed(family):
    need(os.geteuid() == 0 and shutil.which("setpriv"), "only root can give up its privileges, by setpriv")
    done = show("--json", inside=["setpriv", "--bounding-set=-all", "--inh-caps=-all"])
    assert done.returncode == 0, done.stderr
    assert "lo" in {device["name"] for device in json.loads(done.stdout)["devices"]}


def test_watched_until_interrupted(family):
    command = [*NETMEM, "show", "--kernel", "--json", "--watch", "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(2):
            assert json.loads(process.stdout.readline())["devices"]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert err == "netmem: interrupted by SIGINT\n"


def test_an_old_kernel_and_a_process_are_refused_in_a_line(monkeypatch):
    done = show("123")
    assert done.returncode == 2
    assert "a process has none" in done.stderr

    def bind(self, name, message):
        raise NetlinkError(errno.ENOENT, "no such family")

    monkeypatch.setattr(GenericNetlinkSocket, "bind", bind)
    with pytest.raises(NetmemError, match=r"no netlink family netdev: Linux 6\.3") as caught:
        NetdevFamily()
    assert caught.value.errno == errno.EOPNOTSUPP
