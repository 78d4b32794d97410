"""igb on an 82576 behind an emulated Intel IOMMU, through VFIO, in a guest: our driver, uncompiled."""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import debian
import pcapng
import pytest

import netmem
from conftest import Lab, boot
from netmem.lab.guest.config import GuestConfig

pytestmark = pytest.mark.timeout(600)
SCRIPT = Path(__file__).with_name("vfio_igb.py")
MODULES = ("irqbypass", "vfio", "vfio_iommu_type1", "vfio_pci_core", "vfio_pci", "failover", "net_failover")
NAMES = """
for one in /sys/bus/pci/devices/*; do [ "$(cat $one/device)" = 0x10c9 ] && IGB=$(basename $one); done
export NUMBA_DISABLE_JIT=1 PYTHONPATH=/share:/netmem/python
netmem="python3 -m netmem.cli.entry"
"""
RECEIVE = """
$netmem recv --nic igb --bus vfio:$IGB --memory-size 8M -o /tmp/got --count 1 > /tmp/log 2>&1 &
pid=$!
for _ in $(seq 300); do grep -q listening /tmp/log && break; sleep 0.1; done
ip link set $PEER up; ip addr replace 10.20.0.1/24 dev $PEER
"""


@pytest.fixture(scope="module")
def machine(prepared, tmp_path_factory) -> Iterator[Lab]:
    """A guest with a real driver's view of an 82576, whose cable leads to a NIC of the guest's own."""
    folder = tmp_path_factory.mktemp("vfio")
    share, modules = folder / "share", []
    for package in (netmem, pcapng, debian):
        source = Path(package.__file__).parent
        shutil.copytree(source, share / package.__name__, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*MODULES, "virtio_net"):
        content = prepared.kernel.module(name)
        assert content is not None
        path = (share if name == "virtio_net" else folder) / f"{name}.ko"
        path.write_bytes(content)
        modules += [path] if name in MODULES else []
    with contextlib.ExitStack() as ends:
        config = GuestConfig(
            iommu=True, memory=2048, share=prepared.images.share(share, ends),
            netdevs=("hubport,id=h0,hubid=0", "hubport,id=h1,hubid=0"),
            devices=("igb,netdev=h0,romfile=,bus=pcie.0,addr=0x8",
                     "virtio-net-pci,netdev=h1,romfile=,bus=pcie.0,addr=0x9"),
        )  # fmt: skip
        for lab in boot(prepared, config, modules=modules):
            lab.run("insmod /share/virtio_net.ko")  # now: it would be eth0 if it came first
            yield lab


class Vfio:
    """The guest, and how commands in it begin."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.run_any = lambda command: lab.guest.run(NAMES + command, 240)

    def run(self, command: str) -> str:
        peer = "PEER=$(basename /sys/bus/virtio/drivers/virtio_net/*/net/*)\n"
        return self._lab.run(NAMES + peer + command, 240)


@pytest.fixture
def vfio(lab) -> Vfio:
    return Vfio(lab)


def test_what_is_not_there_is_said(vfio):
    """Before anything is given to VFIO: each step says what comes next."""
    for function, why in (
        ("0000:00:1e.0", "there is no PCI function"), ("nonsense", "is no PCI function"),
        ("$IGB", "no driver has 0000:00:08.0; give it to VFIO: modprobe vfio-pci; echo vfio-pci > "),
    ):  # fmt: skip
        done = vfio.run_any(f"$netmem recv --nic igb --bus vfio:{function} --count 1")
        assert why in done.stderr.decode(), done.stderr
        assert done.status
    cure = re.search(r"modprobe vfio-pci; (.*) \[ENODEV\]", done.stderr.decode())
    assert cure
    vfio.run(cure[1])
    done = vfio.run_any("$netmem recv --nic igb --bus vfio:$IGB --count 1")
    assert "allow_unsafe_interrupts=1" in done.stderr.decode()
    vfio.run("echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")


def test_a_file_into_a_udmabuf(vfio):
    said = vfio.run(f"""
head -c 2000003 /dev/urandom > /tmp/sent
{RECEIVE}
timeout 60 socat -u OPEN:/tmp/sent TCP4:10.20.0.2:5001
wait $pid
cmp /tmp/sent /tmp/got
cat /tmp/log""")
    assert "memory dmabuf (udmabuf), driver can read it: no" in said
    assert "0 outstanding" in said


def test_killed_in_the_middle(vfio):
    """The kernel takes everything back, and the next one finds the NIC as it should be."""
    said = vfio.run(f"""
head -c 100000 /dev/urandom > /tmp/sent
{RECEIVE}
(head -c 20000000 /dev/zero | timeout 60 socat -u - TCP4:10.20.0.2:5001 2> /dev/null || true) &
for _ in $(seq 300); do [ $(stat -c %s /tmp/got.partial 2> /dev/null || echo 0) -gt 0 ] && break; sleep 0.1; done
kill -9 $pid
wait $pid || true
od -An -tx1 -j4 -N1 /sys/bus/pci/devices/$IGB/config
rm -f /tmp/got*
{RECEIVE}
timeout 60 socat -u OPEN:/tmp/sent TCP4:10.20.0.2:5001
wait $pid
cmp /tmp/sent /tmp/got && echo same""").split()
    assert not int(said[0], 16) & 4  # no bus master any more
    assert said[-1] == "same"


def test_an_address_that_nobody_mapped_is_stopped_and_told(vfio, machine):
    code = base64.b64encode(SCRIPT.read_bytes()).decode()
    said = vfio.run(f"""
echo {code} | base64 -d > /tmp/vfio_igb.py
python3 /tmp/vfio_igb.py $IGB""").splitlines()
    print(*said, sep="\n")
    assert "another process has it" in said[0]
    assert said[1] == "received 20000"
    assert re.search(r"stopped: DMAR: .*Write.*00:08\.0.*fault addr", said[2]), said[2]
    assert said[-1] == "done"
    assert any("DMAR" in line for line in machine.guest.complaints)
    machine.guest.complaints.clear()  # it was meant
