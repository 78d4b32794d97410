"""What CI sees of the real kernel: one boot, devmem both ways, a flow on a bad wire."""

from __future__ import annotations

import json

import pytest
from test_rules import check, compared

from netmem.lab.guest import sources, tests
from netmem.lab.guest.scripts import program

pytestmark = pytest.mark.timeout(300)

FLOW = """
head -c {size} /dev/urandom > /tmp/sent
ip netns exec peer socat -u TCP4-LISTEN:5300,reuseaddr OPEN:/tmp/got,creat,trunc &
for _ in $(seq 100); do ip netns exec peer ss -Htln 'sport = :5300' | grep -q . && break; sleep 0.1; done
socat -u OPEN:/tmp/sent TCP4:$REMOTE_V4:5300
wait $!
cmp /tmp/sent /tmp/got
"""


def test_the_driver_is_the_kernel_s(lab):
    said = lab.run("ethtool -i eth0; uname -r; modinfo -F intree gve 2>/dev/null || :")
    assert "driver: gve" in said
    lab.run("ping -c 2 -i 0.2 -q $REMOTE_V4; ping -c 2 -i 0.2 -q $REMOTE_V6")


@pytest.mark.parametrize("test", list(tests.PROGRAMS["ncdevmem"]))
def test_devmem_tcp(lab, test):
    lab.run(program(*tests.PROGRAMS["ncdevmem"][test]))


@pytest.mark.parametrize("test", list(tests.PROGRAMS["iou-zcrx"]))
def test_zcrx(lab, test):
    lab.run(program(*tests.PROGRAMS["iou-zcrx"][test]))


def test_a_flow_on_a_wire_that_loses_frames(lab):
    lab.guest.fault("loss", 0.02)
    try:
        lab.run(FLOW.format(size=3_000_000))
    finally:
        lab.guest.fault("loss", 0.0)
    (first, _) = lab.guest.statistics()
    assert first["wire"]["lost"] > 10
    assert int(lab.run("nstat -az TcpRetransSegs | awk '/Retrans/ {print $2}'")) > 0


def test_explain_predicts_what_the_kernel_says(lab):
    check(compared(lab, "eth0:1 lo"))


def test_a_running_driver_is_checked(lab):
    """Debian's gve keeps the contract, as far as it shows without an IOMMU and bouncing DMA."""
    found = json.loads(lab.run("netmem check --live eth0 --format json", 200))["requirements"]
    print(json.dumps(found, indent=1))
    assert {name: one["outcome"] for name, one in found.items()} == {
        **dict.fromkeys(("R1", "R2", "R3", "R4", "R5", "R7", "TX1", "TX2"), "pass"), "R6": "unknown",
    }  # fmt: skip
    assert lab.run("ls /run/netmem; ethtool -g eth0 | awk '/split/ {print $4}'").split() == ["off"]


def test_no_page_pool_stays(lab):
    lab.run(sources.POOLS)
