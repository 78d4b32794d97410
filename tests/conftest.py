"""Fixtures shared by all tests: kinds of memory, networks whose accounts are checked at the end."""

from __future__ import annotations

import os

os.environ.setdefault("NETMEM_SANITIZE", "1")  # before netmem is imported: also in processes we start

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from netmem.base.errors import NetmemError
from netmem.base.jit import COMPILED
from netmem.hw.qemu.find import find_qemu
from netmem.inet.socket import TcpSocket
from netmem.lab.compiling import ensure_compiled
from netmem.lab.qemu import QemuHost, bar_memory
from netmem.memory.provider import AreaProvider
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.memory.providers.pages import PagesProvider
from netmem.testing.net import Network

settings.register_profile(
    "netmem",
    derandomize=True,
    deadline=None,
    max_examples=200 if COMPILED else 25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("netmem")

# What is started by nohup inherits an ignored SIGHUP, and so would what the tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

MEMORY = ("none", "pages", "dmabuf", "bar")
NICS = ("softnic", "igb")
# A software NIC is no PCI device: no other device's BAR lies beside it.
NIC_MEMORY = [(nic, memory) for nic in NICS for memory in MEMORY if (nic, memory) != ("softnic", "bar")]


def scaled(size: int) -> int:
    """A size for the compiled run, a fiftieth of it for the uncompiled one."""
    return size if COMPILED else max(1, size // 50)


def in_ci() -> bool:
    """True where everything that the suite can use must be installed."""
    return bool(os.environ.get("CI"))


def need(found: object, what: str) -> None:
    """Skip loudly when a part is missing; in CI that is a failure."""
    if found:
        return
    if in_ci():
        pytest.fail(f"{what}; CI installs it")
    pytest.skip(f"{what}")


def make_provider(
    memory: str, net: Network | None = None, *, size: int = 8 << 20, rx_page_size: int = 4096
) -> AreaProvider | None:
    """A provider of one of MEMORY; None leaves the queue unbound. ``bar`` lies beside ``net``'s NIC."""
    if memory == "none":
        return None
    if memory == "pages":
        return PagesProvider(size, rx_page_size=rx_page_size)
    if memory == "bar":
        assert net is not None
        assert isinstance(net.ours, QemuHost)
        return bar_memory(net.ours.bus, size, rx_page_size=rx_page_size)
    return DmabufProvider(size, exporter="memfd", rx_page_size=rx_page_size)


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Compile before the first test, so that no test's time or output depends on the cache."""
    ensure_compiled()


@pytest.fixture(params=MEMORY[:3])
def memory(request: pytest.FixtureRequest) -> str:
    """Each kind of memory in turn."""
    return request.param


def need_qemu() -> None:
    """Skip loudly without a QEMU that has an 82576; in CI that is a failure."""
    try:
        find_qemu()
    except NetmemError as error:
        need(False, str(error))


def need_nic(nic: str) -> str:
    """The NIC's name, when it can be had here."""
    if nic == "igb":
        need_qemu()
    return nic


@pytest.fixture(params=NICS)
def nic(request: pytest.FixtureRequest) -> str:
    """Each NIC in turn."""
    return need_nic(request.param)


@pytest.fixture
def network() -> Iterator[Callable[..., Network]]:
    """Makes networks; each is closed, and its accounts checked, when the test passed."""
    made: list[Network] = []

    def make(**options: object) -> Network:
        made.append(Network(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def payload(size: int, seed: int = 1) -> bytes:
    """Reproducible bytes."""
    return np.random.default_rng(seed).bytes(size)


def take(sock: TcpSocket, provider: AreaProvider | None, **options: int) -> bytes:
    """What a socket has now, read as an application would; tokens are given back."""
    if not sock.readable():
        return b""
    if provider is None:
        return sock.recv(1 << 20)
    message = sock.recvmsg_devmem(**options)
    view = provider.map()
    parts = [message.linear]
    for frag in message.frags:
        start = int(frag["frag_offset"])
        parts.append(view[start : start + int(frag["frag_size"])].tobytes())
    if len(message.frags):
        assert sock.devmem_dontneed(message.frags["frag_token"]) == len(message.frags)
    return b"".join(parts)


def over_a_tap(memory: str, size: int) -> None:
    """``tap_transfer.py`` in a network namespace of its own."""
    need(os.geteuid() == 0 and os.path.exists("/dev/net/tun"), "a TAP interface needs root and /dev/net/tun")
    need(shutil.which("unshare"), "the command unshare (util-linux) is not there")
    argv = [
        "unshare",
        "-n",
        sys.executable,
        str(Path(__file__).parent / "tap_transfer.py"),
        memory,
        str(size),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"bit for bit {size}\n"


def offer(sock: TcpSocket, left: memoryview) -> memoryview:
    """Send what there is room for now; the rest."""
    if len(left) and sock.writable():
        return left[sock.send(left) :]
    return left


def transfer(
    net: Network, sender: TcpSocket, receiver: TcpSocket, data: bytes, provider: AreaProvider | None
) -> bytes:
    """Send ``data``, close the sender's direction, and return what the receiver got."""
    left, got = memoryview(data), bytearray()
    shut = False
    for _ in range(200_000):
        left = offer(sender, left)
        if not len(left) and not shut:
            sender.shutdown()
            shut = True
        net.run(1)
        got += take(receiver, provider)
        if shut and receiver.at_end() and not receiver.queued():
            return bytes(got)
    raise AssertionError(f"{len(got)} of {len(data)} bytes after 200,000 rounds")
