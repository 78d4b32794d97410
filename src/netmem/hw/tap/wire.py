"""A TAP interface as a wire, and how one is made and configured (ioctl and netlink)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from netmem.base.arena import Bytes
from netmem.base.errors import MissingError, NetmemError
from netmem.hw.tap import kernels as k
from netmem.hw.wire import FrameQueue

# include/uapi/linux/if_tun.h
TUN = "/dev/net/tun"
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
NAME_MAX = 15
IFA_F_NODAD = 2


def open_tap(name: str, *, offload: bool = True, vnet: bool = True) -> int:
    """Make (or attach to) the TAP interface ``name``; its descriptor. It goes when that is closed.

    ``offload``: the host may hand over frames with 64 KiB of TCP payload and checksums to be made.
    Errors: EPERM without CAP_NET_ADMIN; EBUSY when somebody else has it; EINVAL for a name that no
    interface can have; MissingError without /dev/net/tun.
    """
    if not name or len(name) > NAME_MAX or "/" in name or name.isspace():
        raise NetmemError(errno.EINVAL, f"{name!r} cannot be an interface's name: 1 to {NAME_MAX} characters")
    try:
        fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        text = f"a TAP interface needs {TUN}: {error.strerror}"
        raise MissingError(text) from None
    try:
        flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if vnet else 0)
        try:
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        except OSError as error:
            why = {
                errno.EPERM: "root (CAP_NET_ADMIN) is needed",
                errno.EBUSY: "another process has it",
                errno.EINVAL: "there is an interface of this name that is no TAP",
            }.get(error.errno or 0, error.strerror)
            raise NetmemError(error.errno or errno.EIO, f"TAP interface {name}: {why}") from None
        if vnet:
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", k.VNET_BYTES))
            fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 if offload else 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def configure_tap(name: str, ours: Sequence[str], *, mtu: int) -> list[str]:
    """Bring the interface up, with addresses beside ``ours`` unless it has some; the host's addresses.

    ``ours``: the stack's own, ``10.20.0.2/24``; the host gets the first other one of each network. Errors:
    EINVAL for what is no address or leaves no room for another; the kernel's own.
    """
    interfaces: list[tuple[Any, Any]] = []
    for text in ours:
        try:
            interface = ipaddress.ip_interface(text)
        except ValueError as error:
            raise NetmemError(errno.EINVAL, f"{text!r} is no address such as 10.20.0.2/24: {error}") from None
        host = next((a for a in interface.network.hosts() if a != interface.ip), None)
        if host is None:
            text = f"{text!r} leaves no room in its network for the host: give a prefix length, such as /24"
            raise NetmemError(errno.EINVAL, text)
        net, host_part = interface.network, interface.ip
        special = host_part.is_loopback or host_part.is_multicast or host_part.is_unspecified
        if special or host_part in (net.network_address, net.broadcast_address):
            raise NetmemError(errno.EINVAL, f"{text!r} is no address that a host can have on a link")
        if any(interface.ip == known.ip for known, _ in interfaces):
            raise NetmemError(errno.EINVAL, f"{text!r} is given twice")
        interfaces.append((interface, host))
    # In a thread of its own: the library runs an event loop, and the caller may be in one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_configure, name, interfaces, mtu).result()


def _configure(name: str, interfaces: list[tuple[Any, Any]], mtu: int) -> list[str]:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=name)
        try:
            netlink.link("set", index=index, mtu=mtu, state="up")
            have = [
                ipaddress.ip_address(message.get_attr("IFA_ADDRESS"))
                for message in netlink.get_addr(index=index)
            ]
            hosts = []
            for interface, host in interfaces:
                known = [a for a in have if a.version == interface.version and a in interface.network]
                if not known:
                    # Nobody else is on this link: the address need not wait for duplicate detection.
                    netlink.addr(
                        "add", index=index, address=str(host), prefixlen=interface.network.prefixlen,
                        flags=IFA_F_NODAD,
                    )  # fmt: skip
                hosts.append(str(known[0] if known else host))
            return hosts
        except NetlinkError as error:
            raise NetmemError(error.code, f"TAP interface {name}: {error.args[-1]}") from None


class TapWire:
    """netmem.hw.wire.Wire over a TAP interface's descriptor, which it closes in the end.

    ``scatter``: a NIC reads and writes frames by itself (``tap`` is the address of what it needs), into their
    buffers where it can guess them.
    """

    def __init__(self, fd: int, *, scatter: bool = True) -> None:
        self.fd = fd
        self.rx, self.tx = FrameQueue(), FrameQueue()
        self._slots: Bytes = np.zeros(k.SLOTS * k.SLOT_BYTES, np.uint8)
        self._scratch: Bytes = np.zeros(4096, np.uint8)
        self._zeros: Bytes = np.zeros(k.ZEROS, np.uint8)
        scratch = self._scratch.ctypes.data
        self.record = k.TapRecord(
            fd=fd, slots=self._slots.ctypes.data, zeros=self._zeros.ctypes.data,
            iov=scratch, vnet=scratch + 2048, header=scratch + 3072,
        )  # fmt: skip
        self._at = ctypes.addressof(self.record)
        self.tap = self._at if scatter else 0  # without: frames come whole, for a wire around this one

    def exchange(self, now: int) -> bool:
        """Write and read frames; True when there were any. With ``tap`` the NIC does both by itself."""
        if self.tap:
            return False
        moved = k.tap_tx(self._at, self.tx.at) if len(self.tx) else 0
        return bool(moved + k.tap_rx_all(self._at, self.rx.at))

    def filenos(self) -> list[int]:
        return [self.fd]

    def statistics(self) -> dict[str, int]:
        """Frames and bytes, and frames that the host refused."""
        names = ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes", "tx_refused")
        return {name: getattr(self.record, name) for name in names}

    def close(self) -> None:
        """Unplug: the interface goes, unless it is persistent."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1
            self.record.fd = -1
