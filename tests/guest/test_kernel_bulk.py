"""256 MiB each way through the Python API, over devmem and zcrx, bit for bit, with loss on the wire."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Lab, boot
from netmem.lab.guest.config import GuestConfig

pytestmark = pytest.mark.timeout(900)
HERE = Path(__file__).parent
MIB = int(os.environ.get("NETMEM_BULK_MIB", 256))


@pytest.fixture(scope="module")
def machine(prepared) -> Iterator[Lab]:
    for lab in boot(prepared, GuestConfig(faults={"loss": 0.001}, seed=11)):
        for path in (HERE / "kernel_bulk.py", HERE.parent / "socket_layer.py"):
            code = base64.b64encode(path.read_bytes()).decode()
            lab.run(f"echo {code} | base64 -d > /tmp/{path.name}")
        yield lab


@pytest.mark.parametrize("exporter", ["udmabuf", "system-heap"])
@pytest.mark.parametrize("api", ["devmem", "zcrx"])
def test_each_way(lab, exporter, api):
    said = lab.run(
        f"python3 /tmp/kernel_bulk.py {exporter} {api} $LOCAL_V4 $REMOTE_V4 {MIB}", 400
    ).splitlines()
    print(*said, sep="\n")
    assert [line.split()[0] for line in said] == ["held", "received", "sent", "done"]
    assert int(said[0].split()[1]) > 100_000
    assert said[1].split()[1] == said[2].split()[1] == str(MIB << 20)
