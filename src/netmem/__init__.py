"""netmem: receive TCP straight into memory that the network driver cannot read.

The names below are handed on lazily, so that ``import netmem`` costs nothing that is not used.
"""

from __future__ import annotations

# What type checkers know by this name; the module typing would be a tenth of what `netmem` needs to start.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from netmem.base.errors import DeviceGoneError, MissingError, NetmemError
    from netmem.base.ethtool import SteeringRule, TcpDataSplit
    from netmem.base.frags import FRAG, DevmemMessage
    from netmem.inet.aio import AsyncConnection, AsyncStack
    from netmem.inet.listener import TcpListener
    from netmem.inet.socket import TcpSocket
    from netmem.inet.stack import Stack
    from netmem.inet.tcp.connections import TcpConfig
    from netmem.inet.udp import DATAGRAM, UdpSocket
    from netmem.lab.device import Device, Tap
    from netmem.lab.observe import observe
    from netmem.lab.report import reporting
    from netmem.memory.page_pool import PagePool
    from netmem.memory.params import PagePoolParams
    from netmem.memory.providers.bar import BarProvider
    from netmem.memory.providers.cuda import CudaProvider
    from netmem.memory.providers.dmabuf import DmabufProvider
    from netmem.memory.providers.pages import PagesProvider
    from netmem.netdev.device import NetDevice
    from netmem.opening import open_device

__version__ = "0.1.0"

_WHERE = {
    "DeviceGoneError": "base.errors",
    "MissingError": "base.errors",
    "NetmemError": "base.errors",
    "FRAG": "base.frags",
    "DevmemMessage": "base.frags",
    "TcpListener": "inet.listener",
    "TcpSocket": "inet.socket",
    "AsyncConnection": "inet.aio",
    "AsyncStack": "inet.aio",
    "DATAGRAM": "inet.udp",
    "UdpSocket": "inet.udp",
    "Stack": "inet.stack",
    "TcpConfig": "inet.tcp.connections",
    "Device": "lab.device",
    "Tap": "lab.device",
    "open_device": "opening",
    "observe": "lab.observe",
    "reporting": "lab.report",
    "PagePool": "memory.page_pool",
    "PagePoolParams": "memory.params",
    "BarProvider": "memory.providers.bar",
    "CudaProvider": "memory.providers.cuda",
    "DmabufProvider": "memory.providers.dmabuf",
    "PagesProvider": "memory.providers.pages",
    "NetDevice": "netdev.device",
    "SteeringRule": "base.ethtool",
    "TcpDataSplit": "base.ethtool",
}

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'netmem' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"netmem.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
