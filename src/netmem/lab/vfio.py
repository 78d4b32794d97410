"""An 82576 of this machine, behind an IOMMU: what ``open_device`` puts together for ``bus="vfio:..."``."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from netmem.base.errors import NetmemError
from netmem.drivers.igb import IgbDriver
from netmem.hw.vfio.bus import VfioBus
from netmem.lab.local import open_netdev
from netmem.netdev.device import NetDevice

DEFAULT_ADDRESS = "10.20.0.2/24"


@dataclass(frozen=True)
class Vfio:
    """A PCI function of this machine. ``addresses``: the stack's, ADDRESS/LENGTH; ``gateways``: routers."""

    function: str
    addresses: Sequence[str] = (DEFAULT_ADDRESS,)
    gateways: Sequence[str] = ()


def vfio_of(bus: str, addresses: Sequence[str] = (), gateways: Sequence[str] = ()) -> Vfio | None:
    """The function that ``vfio:0000:03:00.0`` names, None for ``qemu`` and ``qemu:PATH``. EINVAL."""
    kind, _, function = bus.partition(":")
    if kind not in ("qemu", "vfio") or (kind == "vfio" and not function):
        raise NetmemError(errno.EINVAL, f"unknown bus {bus!r}: qemu, or vfio:0000:03:00.0")
    if kind == "qemu":
        return None
    return Vfio(function, tuple(addresses) or (DEFAULT_ADDRESS,), tuple(gateways))


def open_vfio(
    wanted: Vfio, *, rx_queues: int, mtu: int, name: str, bounce: bool
) -> tuple[VfioBus, NetDevice]:
    """The function, and the net device on it, up and with a link: real ones are negotiated."""
    bus = VfioBus(wanted.function, bounce=bounce)
    try:
        driver = IgbDriver(bus)
    except BaseException:
        bus.close()
        raise
    return bus, open_netdev(driver, rx_queues=rx_queues, mtu=mtu, name=name)
