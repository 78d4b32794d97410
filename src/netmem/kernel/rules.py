"""What Linux refuses when memory is bound to a receive queue, and around it: rules, in the kernel's order.

Each rule is looked at on state that was read (``netmem.kernel.state``), and holds, refuses, or is not known
from outside. The first that refuses decides the errno. Sources are those of Linux 7.3.
"""

from __future__ import annotations

import enum
import errno
import re
from collections.abc import Callable
from dataclasses import dataclass

from netmem.base.errors import errno_name
from netmem.kernel.state import DeviceState, KernelState


class Verdict(enum.Enum):
    """What a rule says here."""

    HOLDS = "ok"
    REFUSES = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Ask:
    """What is asked for: memory on a receive queue of a device. ``rx_page_size`` 0: the kernel's page."""

    kernel: KernelState
    device: DeviceState
    queue: int
    rx_page_size: int = 0


Answer = tuple[Verdict, str, str]  # why, and the cure


def holds(why: str = "") -> Answer:
    return Verdict.HOLDS, why, ""


def refuses(why: str, cure: str = "") -> Answer:
    return Verdict.REFUSES, why, cure


def unknown(why: str, cure: str = "") -> Answer:
    return Verdict.UNKNOWN, why, cure


@dataclass(frozen=True)
class Rule:
    """A rule of the kernel: the errno of what breaks it, and the ``source`` that says so."""

    text: str
    errno: int
    source: str
    look: Callable[[Ask], Answer]

    @property
    def error(self) -> str:
        """The errno's name."""
        return errno_name(self.errno)


def family(ask: Ask) -> Answer:
    if not ask.kernel.netdev_family:
        return refuses(f"Linux {ask.kernel.release} has none", "a kernel from 6.12 on")
    return holds(f"Linux {ask.kernel.release}")


def privilege(ask: Ask) -> Answer:
    if ask.kernel.net_admin:
        return holds("this process has it")
    return refuses("this process lacks it", "run as root, or with CAP_NET_ADMIN (the answers below are read)")


def page_size_known(ask: Ask) -> Answer:
    found = re.match(r"(\d+)\.(\d+)", ask.kernel.release)
    if ask.rx_page_size and found and (int(found[1]), int(found[2])) < (7, 3):
        return unknown(f"Linux 7.3 has the attribute, {ask.kernel.release} need not", "no rx page size")
    return holds()


def page_size_range(ask: Ask) -> Answer:
    if 0 < ask.rx_page_size < ask.kernel.page_size:
        return refuses(f"{ask.rx_page_size}", f"an rx page size of {ask.kernel.page_size}, or none")
    return holds()


def page_size_power(ask: Ask) -> Answer:
    size = ask.rx_page_size
    return refuses(f"{size}", "a power of two") if size & (size - 1) else holds()


def instance_lock(ask: Ask) -> Answer:
    if ask.device.queue_mgmt:
        return holds("drivers that manage queues have it")
    return unknown("drivers that do not manage queues may have it for another reason")


def queue_management(ask: Ask) -> Answer:
    why = ask.device.queue_mgmt_why
    if ask.device.queue_mgmt is None:
        return unknown(why)
    if ask.device.queue_mgmt:
        return holds(why)
    return refuses(
        why, f"another NIC, or another driver: {ask.device.driver} cannot restart one queue with other memory"
    )


def queue_exists(ask: Ask) -> Answer:
    have = ask.device.rx_queues
    if ask.queue < have:
        return holds(f"{ask.device.name} has {have} receive queue{'s' if have > 1 else ''}")
    cure = f"take one of these, or ethtool -L {ask.device.name} rx {ask.queue + 1}"
    return refuses(f"{ask.device.name} has receive queues 0 to {have - 1}", cure)


def dma_device(ask: Ask) -> Answer:
    if ask.device.dma is False and ask.device.queue(ask.queue).leased:
        return unknown("the queue is leased from another device, which decides")
    if ask.device.dma is None:
        return unknown(ask.device.dma_why)
    return holds(ask.device.dma_why) if ask.device.dma else refuses(ask.device.dma_why, "a device with DMA")


def devmem(ask: Ask) -> Answer:
    if ask.kernel.devmem is None:
        return unknown("/proc/kallsyms cannot be read")
    if ask.kernel.devmem:
        return holds()
    return refuses(f"Linux {ask.kernel.release} was built without it", "a kernel with CONFIG_NET_DEVMEM=y")


def exporter(ask: Ask) -> Answer:
    have = ask.kernel.exporters
    usable = [name for name, allowed in have.items() if allowed]
    if usable:
        return holds(", ".join(usable))
    if have:
        return unknown(f"this process may not open {', '.join(have)}", "run as root, or a GPU's dma-buf")
    return unknown(
        "this kernel has neither /dev/udmabuf nor /dev/dma_heap/system",
        "a GPU's dma-buf, or a kernel with CONFIG_UDMABUF or CONFIG_DMABUF_HEAPS_SYSTEM",
    )


def pieces(ask: Ask) -> Answer:
    if ask.rx_page_size <= ask.kernel.page_size:
        return holds()
    return unknown(
        "pages are scattered in memory, unless their exporter takes care",
        "a dma-buf of huge pages, or of a device's memory",
    )


def leased(ask: Ask) -> Answer:
    if ask.device.queue(ask.queue).leased and ask.device.dma is not False:
        return refuses("this queue is leased", "bind at the device that leases it, or take another queue")
    return holds()


def ring(device: DeviceState, name: str, value: object) -> str:
    """How a ring parameter is set: by ethtool, or in Python for a device of ours."""
    if device.own:
        return f"device.ethtool.set_ringparam({name.replace('-', '_')}={value})"
    return f"ethtool -G {device.name} {name} {value}"


def split(ask: Ask) -> Answer:
    device = ask.device
    cure = ring(device, "tcp-data-split", "TcpDataSplit.ENABLED" if device.own else "on")
    if device.tcp_data_split is None:
        return refuses(f"{device.driver} does not tell it", f"{cure} (where the driver offers it)")
    if device.tcp_data_split != "enabled":
        return refuses(f"it is {device.tcp_data_split}", cure)
    return unknown("it is enabled: whether it was set, or the driver says so by itself, nobody tells", cure)


def threshold(ask: Ask) -> Answer:
    device = ask.device
    if device.hds_thresh:
        return refuses(f"it is {device.hds_thresh}", ring(device, "hds-thresh", 0))
    return holds("0" if device.hds_thresh == 0 else f"{device.driver} has none")


def xdp_off(device: DeviceState) -> str:
    """How a program is taken away: in the way that it was attached, since none other is looked at."""
    how = device.xdp if device.xdp.startswith("xdp") else "xdp"
    return f"ip link set {device.name} {how} off"


def no_xdp(ask: Ask) -> Answer:
    if ask.device.xdp:
        return refuses(f"one is attached ({ask.device.xdp})", xdp_off(ask.device))
    return holds()


def page_size_offered(ask: Ask) -> Answer:
    if ask.rx_page_size in (0, ask.kernel.page_size):
        return holds()
    return unknown("no kernel tells which drivers take other sizes (QCFG_RX_PAGE_SIZE)")


def no_provider(ask: Ask) -> Answer:
    queue = ask.device.queue(ask.queue)
    if not queue.provider:
        return holds()
    what = f"dma-buf, binding {queue.binding}" if queue.provider == "dmabuf" else "io_uring zcrx"
    return refuses(f"{what} is bound", "take another queue, or end the process that bound it")


def no_xsk(ask: Ask) -> Answer:
    if ask.device.queue(ask.queue).xsk:
        return refuses("an AF_XDP socket has it", "take another queue, or end the process")
    return holds()


def driver_willing(ask: Ask) -> Answer:
    if not ask.device.up:
        why = "the device is down: some drivers open no queue then, each with an errno of its own"
        return unknown(why, f"ip link set {ask.device.name} up")
    return unknown("only the driver knows: memory, its own limits, a pool it makes without the provider")


NETLINK, RXQ, DEVMEM = "netdev-genl.c", "netdev_rx_queue.c", "devmem.c"

MEMORY = Rule("something exports a dma-buf", errno.EBADF, DEVMEM, exporter)

BIND_RX = (
    Rule("the kernel has the netlink family netdev", errno.EOPNOTSUPP, "net/netlink/genetlink.c", family),
    Rule("CAP_NET_ADMIN", errno.EPERM, "net/netlink/genetlink.c", privilege),
    Rule("the kernel knows rx-page-size", errno.EINVAL, "net/netlink/genetlink.c", page_size_known),
    Rule("rx-page-size is a page at least", errno.ERANGE, NETLINK, page_size_range),
    Rule("rx-page-size is a power of two", errno.EINVAL, NETLINK, page_size_power),
    Rule("the device is locked by itself (ops lock)", errno.EOPNOTSUPP, NETLINK, instance_lock),
    Rule("the queue is there", errno.EINVAL, NETLINK, queue_exists),
    Rule("the device does DMA", errno.EOPNOTSUPP, DEVMEM, dma_device),
    Rule("the kernel has CONFIG_NET_DEVMEM", errno.EOPNOTSUPP, DEVMEM, devmem),
    MEMORY,
    Rule("its pieces are multiples of rx-page-size", errno.EINVAL, DEVMEM, pieces),
    Rule("the queue is not leased", errno.EBUSY, RXQ, leased),
    Rule("the driver manages queues (netdev_queue_mgmt_ops)", errno.EOPNOTSUPP, RXQ, queue_management),
    Rule("tcp-data-split is enabled", errno.EINVAL, RXQ, split),
    Rule("hds-thresh is 0", errno.EINVAL, RXQ, threshold),
    Rule("no XDP program", errno.EEXIST, RXQ, no_xdp),
    Rule("the driver takes this rx-page-size", errno.EOPNOTSUPP, RXQ, page_size_offered),
    Rule("no other memory is bound to the queue", errno.EEXIST, RXQ, no_provider),
    Rule("no AF_XDP socket has the queue", errno.EBUSY, RXQ, no_xsk),
    Rule("the driver opens the queue with it", errno.ENODATA, RXQ, driver_willing),
)
"""bind-rx of a dma-buf: netdev_nl_bind_rx_doit, net_devmem_bind_dmabuf, netif_mp_open_rxq."""


def bound(ask: Ask) -> list[int]:
    """Queues of the device that have memory bound."""
    return sorted(index for index, queue in ask.device.queues.items() if queue.provider)


def split_stays(ask: Ask) -> Answer:
    if bound(ask):
        return refuses(f"queues {bound(ask)} have memory bound", "unbind first")
    return holds()


def split_on(ask: Ask) -> Answer:
    if ask.device.xdp:
        return unknown("an XDP program is attached: one that takes single buffers only refuses (EINVAL)",
                       xdp_off(ask.device))  # fmt: skip
    return holds()


def xdp_with_split(ask: Ask) -> Answer:
    if ask.device.tcp_data_split == "enabled":
        return unknown("a program for single buffers is refused, one for fragments (xdp.frags) is not",
                       f"ethtool -G {ask.device.name} tcp-data-split off")  # fmt: skip
    return holds()


def channels(ask: Ask) -> Answer:
    mine = bound(ask)
    if not mine:
        return holds()
    # dev_get_min_mp_channel_count() is the last index + 1, and a total that is not more is refused.
    least = mine[-1] + 2
    return refuses(f"queue {mine[-1]} has memory bound: fewer than {least} are refused", "unbind first")


AROUND = (
    Rule("tcp-data-split can be turned on", errno.EINVAL, "ethtool/rings.c", split_on),
    Rule("tcp-data-split can be turned off", errno.EINVAL, "ethtool/rings.c", split_stays),
    Rule("hds-thresh can be other than 0", errno.EINVAL, "ethtool/rings.c", split_stays),
    Rule("an XDP program can be attached, as to bound memory", errno.EBUSY, "core/dev.c", split_stays),
    Rule("an XDP program can be attached, as to header split", errno.EBUSY, "core/dev.c", xdp_with_split),
    Rule("AF_XDP zero copy can be had on any queue", errno.EBUSY, "xdp/xsk_buff_pool.c", split_stays),
    Rule("channels can be made fewer", errno.EINVAL, "ethtool/channels.c", channels),
)
"""What memory on a queue excludes, and is excluded by."""
