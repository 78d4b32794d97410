"""More of the kernel's devmem TCP: several queues and memories, everything under an IOMMU, resets and reloads."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Lab, boot
from netmem.lab.guest import sources, tests
from netmem.lab.guest.config import GuestConfig
from netmem.lab.guest.scripts import program

pytestmark = pytest.mark.timeout(600)
RECEIVER = Path(__file__).with_name("kernel_rx.py")


@pytest.fixture(scope="module", params=["plain", "iommu", "large"])
def machine(request, prepared) -> Iterator[Lab]:
    """A guest as it comes; one with an IOMMU; one with jumbo frames and sixteen queues."""
    config = {
        "plain": GuestConfig(), "iommu": GuestConfig(iommu=True), "large": GuestConfig(mtu=9000, queues=16),
    }[request.param]  # fmt: skip
    for lab in boot(prepared, config):
        code = base64.b64encode(RECEIVER.read_bytes()).decode()
        lab.run(f"echo {code} | base64 -d > /tmp/kernel_rx.py")
        yield lab


def last(lab: Lab) -> int:
    return lab.guest.config.queues - 1


@pytest.mark.parametrize("kind", ["udmabuf", "system-heap"])
def test_two_queues_of_one_dmabuf(lab, kind):
    """Two connections, steered to two queues that are bound to the same memory."""
    two, three = last(lab) - 1, last(lab)
    said = lab.run(f"""
{program()}
ethtool -X eth0 equal {two}
ethtool -N eth0 flow-type tcp4 dst-port 7001 action {two} > /tmp/rule1
ethtool -N eth0 flow-type tcp4 dst-port 7002 action {three} > /tmp/rule2
trap 'for f in /tmp/rule1 /tmp/rule2; do ethtool -N eth0 delete $(grep -o "[0-9]*$" $f); done; restore' EXIT
head -c 4000000 /dev/urandom > /tmp/one
head -c 4000001 /dev/urandom > /tmp/two
python3 /tmp/kernel_rx.py eth0 {kind} {two},{three} 7001 7002 > /tmp/result &
listening 7002
ip netns exec peer socat -u OPEN:/tmp/one TCP4:10.9.0.2:7001 &
sleep 0.2
ip netns exec peer socat -u OPEN:/tmp/two TCP4:10.9.0.2:7002
wait
cat /tmp/result
sha256sum /tmp/one /tmp/two
""", 200)  # fmt: skip
    lines = [line.split() for line in said.splitlines()]
    got = [line for line in lines if line[0] in ("7001", "7002")]
    sums = [line[0] for line in lines if line[-1].startswith("/tmp/")]
    assert [one[1] for one in got] == sums
    assert [[int(number) for number in one[2:5]] for one in got] == [[4_000_000, 0, 0], [4_000_001, 0, 0]]
    assert ["queues", str(two), str(three)] in lines


def test_kernel_s_script(lab):
    said = lab.run(f"cd {sources.FOLDER}/drivers/net/hw && ./devmem.py", 400)
    results = list(tests.read_ktap(said))
    assert len(results) >= 5
    assert [name for name, outcome, _ in results if outcome == "fail"] == []


def test_down_up_reload_reset(lab):
    lab.run("ip link set eth0 down; ip link set eth0 up")
    lab.run("rmmod gve && insmod /netmem/modules/gve.ko && . /netmem/config && . /netmem/nics")
    lab.run("ethtool --reset eth0 all")
    lab.run("for i in $(seq 20); do ping -c 1 -W 1 -q $REMOTE_V4 && exit 0; sleep 0.2; done; exit 1")
    lab.run(program("ncdevmem-bind"))


def test_no_page_pool_stays(lab):
    lab.run(sources.POOLS)
