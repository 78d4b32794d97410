"""`netmem explain` against a real kernel: for every rule that can be provoked, the errno that it predicts."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Lab, boot, say
from netmem.lab.guest.config import GuestConfig
from netmem.lab.guest.prepare import Prepared, prepare

pytestmark = pytest.mark.timeout(600)
SCRIPT = Path(__file__).with_name("explain_rules.py")
DOCUMENT = Path(__file__).parents[2] / "docs" / "kernel.md"
LATER = "for one in $(cat /share/order); do insmod /share/$one.ko; done"  # what came first would be eth0
RUN = """
echo {code} | base64 -d > /tmp/explain_rules.py
{setup}
python3 /tmp/explain_rules.py {devices}
"""


def compared(lab: Lab, devices: str, setup: str = "") -> list[dict[str, str]]:
    """What the script says in the guest, to its end."""
    code = base64.b64encode(SCRIPT.read_bytes()).decode()
    *lines, last = lab.run(RUN.format(code=code, setup=setup, devices=devices), 240).splitlines()
    assert last == "done"
    return [json.loads(line) for line in lines]


def check(lines: list[dict[str, str]]) -> None:
    """Everything that was predicted came true; what was not known is said."""
    assert [line for line in lines if line["agrees"] is False] == []
    old = [line for line in lines if line["state"] == "rx-page-size 100" and line["agrees"] is None]
    assert {line["state"] for line in lines if line["agrees"] is None} <= {
        "tcp-data-split on, with XDP for single buffers", "XDP for single buffers, tcp-data-split on",
        "rx-page-size 16384", "device down",
        *(["rx-page-size 100", "rx-page-size 5000"] if old else []),  # before 7.3 there is no such attribute
    }  # fmt: skip
    returned = {line["returned"] for line in lines}
    assert {"accepted", "EINVAL", "EPERM", "EEXIST", "EBUSY", "EOPNOTSUPP"} <= returned
    assert old or "ERANGE" in returned


def machine_with(
    prepared: Prepared, folder: Path, modules: tuple[str, ...], devices: tuple[str, ...]
) -> Iterator[Lab]:
    """A guest with devices of other drivers."""
    needed = prepared.kernel.with_dependencies(*modules)
    assert {*modules} <= {*needed}
    for name, content in needed.items():
        (folder / f"{name}.ko").write_bytes(content)
    (folder / "order").write_text(" ".join(needed))
    with contextlib.ExitStack() as ends:
        config = GuestConfig(devices=devices, share=prepared.images.share(folder, ends))
        for lab in boot(prepared, config):
            lab.run(LATER)
            yield lab


@pytest.fixture(scope="module")
def machine(prepared, tmp_path_factory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("modules")
    yield from machine_with(
        prepared, folder, ("veth", "dummy", "virtio_net"), ("virtio-net-pci,romfile=,bus=pcie.0",)
    )


@pytest.fixture(scope="module")
def with_all_drivers(tmp_path_factory) -> Iterator[Lab]:
    """Debian's other kernel, whose modules are fifteen times as many."""
    prepared = prepare(say, kernel="7.3-amd64")
    folder = tmp_path_factory.mktemp("more")
    yield from machine_with(
        prepared, folder, ("igb", "e1000e"), ("igb,romfile=,bus=pcie.0", "e1000e,romfile=,bus=pcie.0")
    )


def table(lines: list[dict[str, str]]) -> str:
    rows = ["| device | state | predicted | the kernel said |", "| --- | --- | --- | --- |"]
    for line in lines:
        kind = line.get("driver") or lines[0]["driver"]
        rows.append(f"| {kind} | {line['state']} | {line['predicted']} | {line['returned']} |")
    return "\n".join(rows) + "\n"


def test_every_prediction_comes_true(lab):
    setup = """ip link add v0 type veth peer name v1; ip link add type netkit
virtio=$(basename /sys/bus/virtio/drivers/virtio_net/*/net/*)
"""
    lines = compared(lab, "eth0:1 lo v0 dummy0 nk0 $virtio", setup)
    check(lines)
    assert {line["driver"] for line in lines if line["returned"] == "EOPNOTSUPP"} == {
        "loopback", "veth", "dummy", "netkit", "virtio_net",
    }  # fmt: skip
    document("explain", table(lines))


@pytest.mark.skipif("CI" in os.environ, reason="121 MB of modules: make guest-verify")
def test_every_prediction_comes_true_of_other_drivers(with_all_drivers):
    setup = """igb=$(basename /sys/bus/pci/drivers/igb/*/net/*); e1000e=$(basename /sys/bus/pci/drivers/e1000e/*/net/*)
ip link set $igb up
"""
    lines = compared(with_all_drivers, "- $igb $e1000e", setup)
    assert [line["driver"] for line in lines] == ["igb", "e1000e"]
    assert all(line["agrees"] for line in lines)
    with_all_drivers.clean()
    document("explain-more", table(lines))


def document(name: str, rows: str) -> None:
    """The page has this table; NETMEM_WRITE_DOCS puts it there."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    text = DOCUMENT.read_text()
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    wanted = head + begin + rows + end + tail
    if os.environ.get("NETMEM_WRITE_DOCS"):
        DOCUMENT.write_text(wanted)
        return
    assert text == wanted, "NETMEM_WRITE_DOCS=1 writes the table anew"
