"""`netmem explain` against a real kernel: for every rule that can be provoked, the errno that it predicts."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Lab, boot
from netmem.lab.guest.config import GuestConfig

pytestmark = pytest.mark.timeout(600)
SCRIPT = Path(__file__).with_name("explain_rules.py")
DOCUMENT = Path(__file__).parents[2] / "docs" / "kernel.md"
CHUNK = 48 << 10
BEGIN, END = "<!-- explain: begin -->\n", "<!-- explain: end -->"
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


@pytest.fixture(scope="module")
def machine(prepared, tmp_path_factory) -> Iterator[Lab]:
    """A guest with modules of other devices."""
    folder, modules = tmp_path_factory.mktemp("modules"), []
    for name in ("veth", "dummy"):
        content = prepared.kernel.module(name)
        assert content is not None
        modules.append(folder / f"{name}.ko")
        modules[-1].write_bytes(content)
    for lab in boot(prepared, GuestConfig(devices=("virtio-net-pci,romfile=",)), modules=modules):
        for name in ("failover", "net_failover", "virtio_net"):  # now: it would be eth0 if it came first
            content = prepared.kernel.module(name)
            assert content is not None
            for at in range(0, len(content), CHUNK):
                part = base64.b64encode(content[at : at + CHUNK]).decode()
                lab.run(f"echo {part} | base64 -d >> /tmp/{name}.ko")
            lab.run(f"insmod /tmp/{name}.ko")
        yield lab


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
    text = DOCUMENT.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    wanted = head + BEGIN + table(lines) + END + tail
    if os.environ.get("NETMEM_WRITE_DOCS"):
        DOCUMENT.write_text(wanted)
        return
    assert text == wanted, "NETMEM_WRITE_DOCS=1 writes the table anew"
