"""Who holds a netmem, one test for each kind of holder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from conftest import make_provider, payload
from netmem.lab.leaks import leaks
from netmem.testing import frames
from netmem.testing.net import PORT, Network
from test_gro import established


def held(memory="dmabuf"):
    """(holder, whose) -> netmems, for one kind of memory."""
    found = Counter()
    for row in leaks(os.getpid()):
        if row["memory"] == memory:
            found[row["holder"], row["who"]] += row["count"]
    return dict(found)


@pytest.fixture
def net(network):
    """Our host alone, device memory bound to queue 1."""
    made = network(alone=True)
    made.bind(make_provider("dmabuf"))
    return made


PEER = "10.0.2.2:40000"


def test_ring_slots_of_an_idle_device(net):
    assert held() == {("ring slot", ""): 1024}
    assert held("pages, unbound")[("ring slot", "")] >= 1024


def test_a_received_batch(net):
    net.wire.inject(frames.tcp(payload(1000)))
    net.settle()
    net.ours.dev.batch.clear()
    net.ours.driver.napi_poll(1, 64, net.ours.dev.batch)
    assert held()[("received batch", "")] == 1
    net.ours.driver.rx_refill(1, net.ours.dev.batch)


def test_the_socket_queue_then_tokens_then_nobody(net):
    sock, iss = established(net)
    for i in range(3):
        net.wire.inject(frames.tcp(payload(1000), seq=100 + 1000 * i, ack=iss))
    net.run(2)
    assert held()[("socket queue", PEER)] == 3
    frags = sock.recvmsg_devmem(1500).frags
    # The cut frag is in two hands: the application's come first.
    assert held()[("user token", PEER)] == 2
    assert held()[("socket queue", PEER)] == 1
    rest = sock.recvmsg_devmem().frags
    assert held()[("user token", PEER)] == 3
    assert ("socket queue", PEER) not in held()
    sock.devmem_dontneed(frags["frag_token"])
    sock.devmem_dontneed(rest["frag_token"])
    assert held() == {("ring slot", ""): 1024}


def test_out_of_order_data(net):
    _, iss = established(net)
    net.wire.inject(frames.tcp(payload(1000), seq=1100, ack=iss))
    net.wire.inject(frames.tcp(payload(1000), seq=3100, ack=iss))
    net.run(2)
    assert held()[("out-of-order queue", PEER)] == 2


def test_the_driver_itself(net):
    pool = net.ours.dev.rx_queues[1].pool
    mine = pool.alloc_netmems(5)
    assert held()[("driver", "")] == 5
    pool.put_full_netmem(mine)
    assert ("driver", "") not in held()


def test_tokens_that_outlive_their_binding(network):
    net = network()
    net.bind(make_provider("dmabuf"))
    ours, theirs, _ = net.connect(PORT)
    theirs.send(payload(5000))
    net.until(lambda: ours.queued() == 5000)
    frags = ours.recvmsg_devmem().frags
    net.binding.close()
    (((holder, _), count),) = held().items()
    assert (holder, count) == ("user token", len(frags))
    ours.devmem_dontneed(frags["frag_token"])


def test_the_command_names_holder_and_age(net):
    sock, iss = established(net)
    net.wire.inject(frames.tcp(payload(1000), seq=100, ack=iss))
    net.run(2)
    words = [sys.executable, "-m", "netmem.cli.entry", "leaks", str(os.getpid())]
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["schema"] == "netmem.leaks/1"
    rows = said["netmems"]
    (row,) = [row for row in rows if row["holder"] == "socket queue"]
    assert (row["memory"], row["who"], row["count"], row["bytes"]) == ("dmabuf", PEER, 1, 4096)
    assert row["oldest"] >= row["youngest"]
    people = subprocess.run(words, capture_output=True, text=True, timeout=60).stdout
    assert "socket queue" in people
    assert PEER in people
    assert sock.queued() == 1000


def test_a_test_whose_accounts_do_not_balance_says_who_held_what():
    made = Network(alone=True)
    made.bind(make_provider("dmabuf"))
    made.ours.dev.rx_queues[1].pool.alloc_netmems(3)
    with pytest.raises(AssertionError, match=r": 3\}; before closing: driver 3"):
        made.close()


def test_nobody_to_look_at():
    words = [sys.executable, "-m", "netmem.cli.entry", "leaks", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "netmem: process 1 has no netmem device\n")
