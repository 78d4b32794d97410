"""Devices of the running kernel: queues, what is bound to them, NAPI instances, page pools."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from netmem.base.errors import NetmemError
from netmem.kernel.netdev_family import NetdevFamily, QueueType

SYS = Path("/sys/class/net")


def kernel_devices(name: str | None = None) -> list[dict[str, Any]]:
    """Devices of this network namespace, or one: name, ifindex, driver, mtu, link, mac, addresses, and
    ``queues``, ``napi``, ``pools``. Page pools whose device is gone are of a device without ifindex.

    Queues are those of receive and transmit, by ``type``. Pools have their counters where the kernel keeps
    some (CONFIG_PAGE_POOL_STATS), and ``detach_time`` in seconds since boot once nobody allocates from them.
    ENODEV for a name that no device has; EOPNOTSUPP for a kernel without the netdev family.
    """
    with IPRoute() as route, NetdevFamily() as family:
        links = route.get_links()
        addresses: dict[int, list[str]] = {}
        for message in route.get_addr():
            addresses.setdefault(message["index"], []).append(
                f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}"
            )
        queues, napi, pools = family.queue_get(), family.napi_get(), _pools(family)
    devices = [
        {
            "name": link.get_attr("IFLA_IFNAME"),
            "ifindex": link["index"],
            "driver": driver_of(link),
            "mtu": link.get_attr("IFLA_MTU"),
            "link": link.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN") and bool(link["flags"] & 1),
            "mac": link.get_attr("IFLA_ADDRESS"),
            "addresses": addresses.get(link["index"], []),
            "queues": [_queue(queue) for queue in _of(queues, link["index"])],
            "napi": _of(napi, link["index"]),
            "pools": _of(pools, link["index"]),
        }
        for link in links
    ]
    if name is not None:
        devices = [device for device in devices if device["name"] == name]
        if not devices:
            raise NetmemError(errno.ENODEV, f"there is no device {name} in this network namespace")
    elif gone := [pool for pool in pools if "ifindex" not in pool]:
        devices.append({"name": "(gone)", "ifindex": None, "pools": gone, "queues": [], "napi": []})
    return devices


def _of(objects: list[dict[str, Any]], ifindex: int) -> list[dict[str, Any]]:
    """Those of one device, in order."""
    return sorted((one for one in objects if one.get("ifindex") == ifindex), key=lambda one: one["id"])


def _queue(queue: dict[str, Any]) -> dict[str, Any]:
    return {**queue, "type": QueueType(queue["type"]).name.lower()}


def _pools(family: NetdevFamily) -> list[dict[str, Any]]:
    """Page pools, with their counters where there are any."""
    pools = family.page_pool_get()
    counters: dict[int, dict[str, Any]] = {}
    with contextlib.suppress(NetmemError):  # EOPNOTSUPP: the kernel was built without
        for row in family.page_pool_stats_get():
            counters[row.pop("info")["id"]] = row
    return [{**pool, **counters.get(pool["id"], {})} for pool in pools]


def sysfs(link: Any) -> Path:
    """A device's folder in sysfs; one that is not there where /sys is another namespace's."""
    folder = SYS / str(link.get_attr("IFLA_IFNAME"))
    with contextlib.suppress(OSError):
        if int((folder / "ifindex").read_text()) == link["index"]:
            return folder
    return Path("/nonexistent")


def driver_of(link: Any) -> str:
    """The driver below, or what kind of device it is by itself."""
    with contextlib.suppress(OSError):
        return os.path.basename(os.readlink(sysfs(link) / "device" / "driver"))
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
    return kind or ("loopback" if link["flags"] & 8 else "no driver")
