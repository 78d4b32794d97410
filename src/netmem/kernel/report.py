"""What a device of the kernel's is and can do, for somebody who does not have it.

Nothing tells whose it is: no address, no name of the machine, no serial number.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import platform
import re
from typing import Any

from netmem.base.errors import NetmemError
from netmem.kernel.ethtool_family import EthtoolFamily
from netmem.kernel.ethtool_ioctl import EthtoolIoctl
from netmem.kernel.explain import explain
from netmem.kernel.look import SYS, kernel_devices
from netmem.kernel.rules import Ask
from netmem.kernel.state import device_state, kernel_state

PCI = ("vendor", "device", "subsystem_vendor", "subsystem_device", "revision")
TOLD = ("queues", "napi", "pools")


def describe(name: str) -> dict[str, Any]:
    """Machine, NIC, settings, and for each receive queue what a binding would get: all of it read. ENODEV."""
    kernel = kernel_state()
    device = device_state(name, kernel)
    queues = [explain(Ask(kernel, device, queue)) for queue in range(device.rx_queues)]
    (looked,) = _devices(name)
    return {
        "python": platform.python_version(),
        "kernel": kernel.release,
        "machine": platform.machine(),
        "page_size": kernel.page_size,
        "exporters": kernel.exporters,
        "nic": {**_driver(name, device.driver), "pci": _pci(name), "rx_queues": device.rx_queues},
        "ring": _ring(device.ifindex),
        "explain": [one.plain() for one in queues],
        **{part: looked[part] for part in TOLD},
    }


def nameless(text: str) -> str:
    """A text without the IP and MAC addresses in it."""
    text = re.sub(r"\b([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b", "(address)", text)
    return re.sub(r"[0-9A-Fa-f:.]{3,}", _nameless, text)


def _nameless(match: re.Match[str]) -> str:
    whole = match[0]
    for start in range(min(2, len(whole) - len(whole.lstrip(":")) + 1)):  # behind a colon of the text's
        word = whole[start:].rstrip(".:")
        for address in (word, word.rpartition(":")[0]):  # with a port, perhaps
            with contextlib.suppress(ValueError):
                ipaddress.ip_address(address)
                return f"{whole[:start]}(address){whole[start + len(address) :]}"
    return whole


def _devices(name: str) -> list[dict[str, Any]]:
    try:
        return kernel_devices(name)
    except NetmemError:  # a kernel without the family
        return [{one: [] for one in TOLD}]


def _driver(name: str, driver: str) -> dict[str, str]:
    with contextlib.suppress(NetmemError):
        ioctl = EthtoolIoctl(name)
        try:
            return ioctl.drvinfo()
        finally:
            ioctl.close()
    return {"driver": driver}


def _pci(name: str) -> dict[str, str]:
    """The numbers that say what it is, of a PCI function."""
    found = {}
    for one in PCI:
        with contextlib.suppress(OSError):
            found[one] = (SYS / name / "device" / one).read_text().strip()
    return found if os.path.realpath(SYS / name / "device").count(":") else {}


def _ring(ifindex: int) -> dict[str, Any]:
    with contextlib.suppress(OSError), EthtoolFamily() as family:
        return family.rings_get(ifindex)
    return {}
