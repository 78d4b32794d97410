"""What can be read of the running kernel and its devices that bears on binding memory to a queue.

Nothing is changed, and no privilege is needed. What this kernel or driver does not tell is None: unknown.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from netmem.base.dmabuf import DEVICES
from netmem.base.errors import NetmemError
from netmem.kernel.ethtool_family import EthtoolFamily
from netmem.kernel.look import driver_of, sysfs
from netmem.kernel.netdev_family import NetdevFamily, QueueType

PROC = Path("/proc")
CAP_NET_ADMIN = 12
Symbols = dict[str, list[str]]
QUEUE_MGMT = re.compile(r"queue_mgmt_ops|queue_mem_alloc")  # netdev_queue_mgmt_ops, and ndo_queue_mem_alloc
SPLIT = {0: "unknown", 1: "disabled", 2: "enabled"}


@dataclass(frozen=True)
class KernelState:
    """The kernel. ``exporters``: what makes dma-bufs here, and whether this process may use it."""

    release: str
    netdev_family: bool
    devmem: bool | None  # CONFIG_NET_DEVMEM
    net_admin: bool  # CAP_NET_ADMIN in this process's user namespace
    page_size: int
    exporters: dict[str, bool]
    symbols: Symbols | None = field(default=None, repr=False)  # kernel_symbols()


@dataclass(frozen=True)
class QueueState:
    """A receive queue. ``provider``: dmabuf or io_uring; ``xsk``: an AF_XDP pool; ``leased`` to a device."""

    provider: str = ""
    binding: int = 0
    xsk: bool = False
    leased: bool = False


@dataclass(frozen=True)
class DeviceState:
    """A device. ``queue_mgmt``: whether its driver has netdev_queue_mgmt_ops, with what tells so."""

    name: str
    ifindex: int
    driver: str
    up: bool
    rx_queues: int
    queue_mgmt: bool | None
    queue_mgmt_why: str
    dma: bool | None  # a device that does DMA is below it
    dma_why: str
    tcp_data_split: str | None  # enabled, disabled; None: the driver does not tell
    hds_thresh: int | None
    xdp: str  # how a program is attached, "" for none
    queues: dict[int, QueueState] = field(default_factory=dict)
    own: bool = False  # netmem's, not the kernel's

    def queue(self, index: int) -> QueueState:
        """What is known of a queue: nothing is bound to one that the kernel does not list."""
        return self.queues.get(index, QueueState())


def kernel_state() -> KernelState:
    """The running kernel, for this process."""
    try:
        NetdevFamily().close()
        family = True
    except NetmemError:
        family = False
    symbols = kernel_symbols()
    return KernelState(
        release=os.uname().release,
        netdev_family=family,
        devmem=None if symbols is None else any("net_devmem_bind_dmabuf" in name for name in symbols[""]),
        net_admin=bool(_capabilities() >> CAP_NET_ADMIN & 1),
        page_size=os.sysconf("SC_PAGESIZE"),
        exporters={
            name: os.access(path, os.R_OK | os.W_OK) for name, path in DEVICES.items() if os.path.exists(path)
        },
        symbols=symbols,
    )


def _capabilities() -> int:
    for line in (PROC / "self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def kernel_symbols() -> Symbols | None:
    """Symbols that bear on netmem, by module, "" for the kernel itself; None when it does not say.

    Whoever may read them, addresses are not needed.
    """
    wanted = re.compile(rf"{QUEUE_MGMT.pattern}|net_devmem_bind_dmabuf$|io_register_zcrx")
    found: Symbols = {"": []}
    lines_read = False
    try:
        with open(PROC / "kallsyms") as lines:
            for line in lines:
                lines_read = True
                parts = line.split()
                module = parts[3].strip("[]") if len(parts) > 3 else ""
                found.setdefault(module, [])
                if wanted.search(parts[2]):
                    found[module].append(parts[2])
    except (OSError, IndexError):
        return None
    return found if lines_read else None  # empty where somebody hides it


def queue_mgmt(driver: str, module: str, symbols: Symbols | None) -> tuple[bool | None, str]:
    """Whether a driver has netdev_queue_mgmt_ops, by the names of its functions; and why."""
    if symbols is None:
        return None, f"{PROC}/kallsyms cannot be read"
    for name in (module, driver):
        if name and name in symbols:
            mine = [symbol for symbol in symbols[name] if QUEUE_MGMT.search(symbol)]
            what = f"has {mine[0]}" if mine else "has no function to restart one queue"
            return bool(mine), f"module {name} {what}"
    # Built in: whose a function is only its name says, which begins with the driver's.
    known = [symbol for symbol in symbols[""] if QUEUE_MGMT.search(symbol)]
    mine = [symbol for symbol in known if symbol.startswith((f"{driver}_", driver.split("_")[0] + "_"))]
    if mine:
        return True, f"the kernel has {mine[0]}"
    if known:
        return None, f"the kernel has {known[0]}, of a driver that is built in, and {driver} is, too"
    return False, f"the kernel has no function of {driver} to restart one queue"


def device_names() -> list[str]:
    """The devices of this network namespace."""
    with IPRoute() as route:
        return [str(link.get_attr("IFLA_IFNAME")) for link in route.get_links()]


def device_state(name: str, kernel: KernelState) -> DeviceState:
    """A device of this network namespace, below ``kernel``. ENODEV for a name that none has."""
    with IPRoute() as route:
        links = [link for link in route.get_links() if link.get_attr("IFLA_IFNAME") == name]
    if not links:
        raise NetmemError(errno.ENODEV, f"there is no device {name} in this network namespace")
    link, index, driver = links[0], links[0]["index"], driver_of(links[0])
    has, why = queue_mgmt(driver, _module_of(link), kernel.symbols)
    dma, dma_why = _dma(link)
    rings = _rings(index)
    queues, listed = _queues(index)
    return DeviceState(
        name=name,
        ifindex=index,
        driver=driver,
        up=bool(link["flags"] & 1),
        rx_queues=listed or _rx_queues(link) or link.get_attr("IFLA_NUM_RX_QUEUES") or 0,
        queue_mgmt=has,
        queue_mgmt_why=why,
        dma=dma,
        dma_why=dma_why,
        tcp_data_split=SPLIT.get(rings.get("tcp_data_split", -1)),
        hds_thresh=rings.get("hds_thresh"),
        xdp=_xdp(link),
        queues=queues,
    )


def _module_of(link: Any) -> str:
    with contextlib.suppress(OSError):
        return os.path.basename(os.readlink(sysfs(link) / "device/driver/module"))
    return ""


def _dma(link: Any) -> tuple[bool | None, str]:
    """Whether there is a device below that does DMA, which the kernel takes a mapping for."""
    parent, bus = link.get_attr("IFLA_PARENT_DEV_NAME"), link.get_attr("IFLA_PARENT_DEV_BUS_NAME")
    if parent is None:
        return False, "no device is below it"
    if bus == "pci":
        return True, f"PCI device {parent}"
    return None, f"below it is {parent} on bus {bus}, of which nobody says whether it does DMA"


def _rx_queues(link: Any) -> int:
    """real_num_rx_queues; 0 where that is not told."""
    with contextlib.suppress(OSError):
        return sum(one.startswith("rx-") for one in os.listdir(sysfs(link) / "queues"))
    return 0


def _rings(index: int) -> dict[str, Any]:
    with contextlib.suppress(OSError), EthtoolFamily() as family:
        return family.rings_get(index)
    return {}


def _queues(index: int) -> tuple[dict[int, QueueState], int]:
    """Receive queues with something bound, by id; and how many there are."""
    with contextlib.suppress(OSError), NetdevFamily() as family:
        mine = [
            queue
            for queue in family.queue_get()
            if queue["ifindex"] == index and queue["type"] == QueueType.RX
        ]
        return {queue["id"]: _queue(queue) for queue in mine}, len(mine)
    return {}, 0


def _queue(queue: dict[str, Any]) -> QueueState:
    provider = "dmabuf" if "dmabuf" in queue else "io_uring" if "io_uring" in queue else ""
    return QueueState(provider, queue.get("dmabuf", 0), "xsk" in queue, "lease" in queue)


def _xdp(link: Any) -> str:
    """How an XDP program is attached."""
    nest = link.get_attr("IFLA_XDP")
    mode = nest.get_attr("IFLA_XDP_ATTACHED") if nest is not None else None
    return str(mode).lower() if mode else ""
