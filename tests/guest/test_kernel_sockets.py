"""The socket layer's one source on the kernel's own devmem sockets, and on io_uring's zero-copy receive."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)
SCRIPT = Path(__file__).parents[1] / "socket_layer.py"


@pytest.mark.parametrize("api", ["devmem", "zcrx"])
def test_the_socket_layer(lab, api):
    code = base64.b64encode(SCRIPT.read_bytes()).decode()
    said = lab.run(f"""
echo {code} | base64 -d > /tmp/socket_layer.py
python3 /tmp/socket_layer.py eth0 3 $LOCAL_V4 $REMOTE_V4 {api} 2>&1
""", 240)  # fmt: skip
    print(said, file=sys.stderr)
    lines = said.splitlines()
    assert not [line for line in lines if line.endswith("failed")]
    assert lines[-2:] == ["asyncio ok", "done"]
    assert sum(line.endswith(" ok") for line in lines) >= 9
