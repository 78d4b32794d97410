"""The socket layer's one source (``socket_layer.py``) on our own NICs, each in a process of its own."""

from __future__ import annotations

import socket

import pytest

from conftest import NICS, need_nic
from netmem.base.ethtool import TcpDataSplit
from netmem.lab.device import open_device
from netmem.memory import sanitizer
from netmem.memory.providers.dmabuf import DmabufProvider
from socket_layer import CHECKS, World

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", params=NICS)
def world(request):
    memory = DmabufProvider(16 << 20, exporter="memfd")
    with open_device(need_nic(request.param)) as device:
        device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        device.bind_rx([1], memory)
        device.steer(5800, queue=1)
        listener = device.listen(5800)
        port = device.forward("127.0.0.1", 0, 5800)

        def serve():
            server = socket.create_server(("127.0.0.1", 0))
            return server, *device.reach("127.0.0.1", server.getsockname()[1])

        def spare(size):
            return DmabufProvider(size, exporter="memfd")

        def connect():
            return socket.create_connection(("127.0.0.1", port), timeout=30)

        world = World(device, memory, listener, connect, serve, spare)
        world.repeats = not sanitizer.ON
        if request.param == "igb":  # slirp sends short segments too, and closes what was reset
            world.linear, world.resets = 10_000, False
        yield world
    memory.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_the_socket_layer(world, check):
    check(world)
