"""A device of the kernel's with memory bound to one of its queues, and a connection that is led there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pyroute2 import IPRoute

from netmem.base.errors import NetmemError, errno_name
from netmem.base.ethtool import TcpDataSplit
from netmem.base.frags import DevmemMessage
from netmem.base.kernel_log import KernelLog
from netmem.contract.live.other_end import digest
from netmem.contract.live.peer import Peer
from netmem.contract.report import Unseen, Violation
from netmem.kernel.device import KernelBinding, KernelDevice
from netmem.kernel.devmem import KernelListener, KernelSocket
from netmem.kernel.explain import explain
from netmem.kernel.leaks import Row
from netmem.kernel.look import kernel_devices
from netmem.kernel.memory import Bytes, Dmabuf
from netmem.kernel.netdev_family import NetdevFamily
from netmem.kernel.rules import Ask, driver_willing, instance_lock, queue_management, split
from netmem.kernel.state import device_state, kernel_state

AREA = 16 << 20
WAIT_S = 6.0  # for a connection, or for more of its data
HEADERS = 60  # of IPv6 and TCP, about
SEGMENT = 1000  # bytes of payload that no header buffer has room for
DRAIN_S = 10.0  # for pools to be empty
NOWHERE: Bytes = np.zeros(0, np.uint8)
COMMAND_LINE = Path("/proc/cmdline")
GIVEN_UP = "page_pool_disable_direct_recycling"
UNIVERSE = 0  # rtnetlink's scope of addresses that others reach


# Rules whose breaking is the driver's.
OF_THE_DRIVER = (instance_lock, queue_management, split, driver_willing)


class Silence(Violation):
    """No connection comes up by a queue with memory."""


@dataclass
class Received:
    """What came by one connection."""

    bytes: int = 0
    linear: int = 0  # beside frags, in packets whose payload is not readable
    copied: int = 0  # without memory: by another queue, or of a queue that has none
    sizes: list[int] = field(default_factory=list)  # of frags
    unknown: int = 0  # tokens that the kernel did not know when they were given back
    outside: int = 0  # frags that do not lie in the memory
    digest: str = ""


class Rig:
    """What checks work with. ``queue`` is what memory is bound to: the device's last.

    Errors: ENODEV for a device that is not there, or where nothing exports a dma-buf; EOPNOTSUPP for one with
    a single queue, or no flow rules; EADDRNOTAVAIL for one without an address.
    """

    def __init__(self, device: KernelDevice, peer: Peer, log: KernelLog) -> None:
        self.device, self.peer, self.log = device, peer, log
        queues = device.queues()
        self._look_first(len(queues))
        self.queues, self.queue = queues, queues[-1]
        self.addresses = _addresses(device)
        self.memory: Dmabuf | None = None
        self._view = NOWHERE
        self._other = ""
        self.complaints: list[str] = []  # of the kernel's, not told yet
        self._seed = 0
        Dmabuf(1 << 20).close()  # there is an exporter, or this says so
        self._before = {pool["id"] for pool in self.pools() if "detach_time" in pool}
        device.isolate([self.queue])
        self.listener = self._listen()
        self.mtu = int(kernel_devices(device.name)[0]["mtu"])
        self._reach()

    def _listen(self) -> KernelListener:
        listener = self.device.listen(0)
        try:
            self.device.steer(listener.port, self.queue)
        except BaseException:
            listener.close()
            raise
        return listener

    # -- settings ---------------------------------------------------------------------------------

    def split(self, value: TcpDataSplit) -> int:
        """Set tcp-data-split (and no threshold with it); what the driver says of it then. Violation."""
        ethtool = self.device.ethtool
        try:
            ethtool.set_ringparam(tcp_data_split=value)
            if value == TcpDataSplit.ENABLED and ethtool.ringparam().get("hds_thresh"):
                ethtool.set_ringparam(hds_thresh=0)
        except NetmemError as error:
            text = f"tcp-data-split cannot be {value.name.lower()}: {errno_name(error.errno or 0)}"
            raise Violation("R2", text) from None
        return ethtool.ringparam().get("tcp_data_split", 0)

    def pools(self) -> list[Row]:
        """The device's page pools, and those that are of no device any more."""
        with NetdevFamily() as family:
            pools = family.page_pool_get()
        return [pool for pool in pools if pool.get("ifindex") in (self.device.ifindex, None)]

    def counters(self) -> list[Row]:
        """The device's page pools that count what is taken from them; empty where the kernel does not."""
        (found,) = kernel_devices(self.device.name)
        return [pool for pool in found["pools"] if "alloc_fast" in pool]

    def other(self) -> str:
        """The other end's address, as its connections had it."""
        if not self._other:
            self.receive(1)
        return self._other

    def napi(self) -> dict[int, set[int]]:
        """Receive queues by the NAPI that serves them."""
        with NetdevFamily() as family:
            queues = family.queue_get()
        found: dict[int, set[int]] = {}
        for one in queues:
            if one["ifindex"] == self.device.ifindex and one["type"] == 0 and "napi_id" in one:
                found.setdefault(one["napi_id"], set()).add(one["id"])
        return found

    def counted(self) -> dict[int, Row]:
        """What the driver counts of each receive queue; empty where it does not."""
        with contextlib.suppress(NetmemError), NetdevFamily() as family:
            rows = family.qstats_get(self.device.ifindex)
            return {row["queue_id"]: row for row in rows if row.get("queue_type") == 0}
        return {}

    # -- memory -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def bound(self, queue: int | None = None, size: int = AREA) -> Iterator[Dmabuf]:
        """Memory on a queue, for as long as the block. Errors: those of ``bind``."""
        queue = self.queue if queue is None else queue
        if self.split(TcpDataSplit.ENABLED) != TcpDataSplit.ENABLED:
            raise Violation("R2", "tcp-data-split was turned on, and the driver says that it is not")
        with Dmabuf(size) as memory:
            binding = self.bind(queue, memory)
            silent: Silence | None = None
            try:
                with self.into(memory):
                    yield memory
            except Silence as silence:
                silent = silence
            finally:
                binding.close()
        if silent is not None:
            raise self._silent_since_when(silent)

    def bind(self, queue: int, memory: Dmabuf) -> KernelBinding:
        """Memory on a queue. Violation for a refusal, of whom it tells; Unseen where it is nobody's fault."""
        try:
            return self.device.bind_rx([queue], memory)
        except NetmemError as error:
            raise self._refused(queue, error) from None

    @contextlib.contextmanager
    def into(self, memory: Dmabuf) -> Iterator[None]:
        """What comes within the block lies there."""
        self.memory, self._view = memory, memory.map()
        try:
            yield
        finally:
            self.memory, self._view = None, NOWHERE

    def _refused(self, queue: int, error: NetmemError) -> Exception:
        """Whose fault it is that memory was refused, though all that can be set was set."""
        code = error.errno or 0
        kernel = kernel_state()
        rule = explain(Ask(kernel, device_state(self.device.name, kernel), queue)).refused
        if rule is not None and rule.rule.errno == code and rule.rule.look not in OF_THE_DRIVER:
            return Unseen(error.strerror or str(error))  # a program, a socket, another process
        if "swiotlb=force" in COMMAND_LINE.read_text():
            return Unseen(
                "with swiotlb=force no dma-buf of this size can be mapped: boot without, and check again"
            )
        # A pool that is given up before its queue ran is complained of by the kernel, whoever refused.
        self.complaints += [text for text in self.log.complaints() if GIVEN_UP not in text]
        if any("gave up with errno" in line for line in self.complaints):
            flags = "it lacks PP_FLAG_DMA_MAP or PP_FLAG_DMA_SYNC_DEV"
            text = f"no page pool could be made for queue {queue}: {flags} ({errno_name(code)})"
            return Violation("R4", text)
        if code != errno.ENODATA:
            return Violation("R1", f"queue {queue} could not be opened with memory: {errno_name(code)}")
        accepted = [one for one in self.queues if one != queue and self._accepts(one)]
        if accepted:
            text = (
                f"the pool of queue {queue} was not made for it (queue_idx): ENODATA, and queue {accepted[0]}"
            )
            return Violation("R1", f"{text} takes memory")
        text = f"no pool with PP_FLAG_ALLOW_UNREADABLE_NETMEM was made for queue {queue}"
        return Violation("R4", f"{text}: ENODATA")

    def _accepts(self, queue: int) -> bool:
        """True when this queue's pool takes memory, whatever its driver says of it afterwards."""
        code = 0
        with Dmabuf(1 << 20) as memory, NetdevFamily() as family:
            try:
                family.bind_rx(self.device.ifindex, [queue], memory.fd)
            except NetmemError as error:
                code = error.errno or 0
        self.log.complaints()  # what the kernel says of a refusal that was asked for
        return code != errno.ENODATA

    # -- connections ------------------------------------------------------------------------------

    def _look_first(self, queues: int) -> None:
        """What makes a check impossible, whatever the driver does."""
        name, kernel = self.device.name, kernel_state()
        state = device_state(name, kernel)
        if not state.up:
            raise NetmemError(errno.ENETDOWN, f"{name} is down: ip link set {name} up")
        if state.queue_mgmt is False:
            why = f"{state.queue_mgmt_why}: no memory can be bound to it (netmem explain {name})"
            raise NetmemError(errno.EOPNOTSUPP, f"{name}: {why}")
        if queues < 2:
            text = f"{name} has {queues} receive queue(s), and two are needed, one for other traffic"
            raise NetmemError(errno.EOPNOTSUPP, f"{text}: ethtool -L {name} rx 2")
        for number, queue in state.queues.items():
            if queue.provider or queue.xsk:
                text = f"queue {number} of {name} has memory of another process: end that first"
                raise NetmemError(errno.EBUSY, f"{text} (netmem show --kernel {name})")

    def _reach(self) -> None:
        """Forget addresses of ours that the other end has no way to. EHOSTUNREACH when none is left."""
        for family, address in list(self.addresses.items()):
            try:
                self.receive(1, family=family)
            except Unseen as unseen:
                del self.addresses[family]
                if not self.addresses:
                    self.close()
                    raise NetmemError(errno.EHOSTUNREACH, f"{unseen}: is it at the other end?") from None
            except Violation:
                others = [one for one in self.addresses if one != family]
                if others and address:  # a driver's fault shows over the other family as well
                    del self.addresses[family]

    def seed(self) -> int:
        """Another one for each transfer: what lies in the memory from the last is not taken for this one."""
        self._seed += 1
        return self._seed

    @contextlib.contextmanager
    def connection(
        self, size: int, *, seed: int, piece: int = 1 << 16, family: int = 0
    ) -> Iterator[KernelSocket]:
        """A connection by which ``size`` bytes come. Violation when none comes up."""
        host = self.addresses.get(family) or next(iter(self.addresses.values()))
        order = self.peer.order("send", host=host, port=self.listener.port, size=size, seed=seed, piece=piece)
        try:
            sock = self.listener.accept(timeout=WAIT_S)
        except NetmemError:
            self.listener.close()
            self.listener = self._listen()  # what was too late must not be taken for another
            if why := self.peer.trouble(order):
                raise Unseen(f"the other end cannot connect to {host}: {why}") from None
            raise self._silent() from None
        self._other = sock.peer[0]
        with sock:
            yield sock
        self.peer.wait(order, WAIT_S)

    def _silent(self) -> Violation:
        """No connection came up."""
        if self.memory is None:
            return Violation("R1", f"no connection comes up by queue {self.queue}, which has ordinary memory")
        text = f"no connection comes up by queue {self.queue} with memory bound, "
        return Silence("R2", f"{text}not even packets without payload: headers stay with the payload")

    def _silent_since_when(self, silence: Silence) -> Violation:
        """Whose fault it is: of the memory, or of the restart, after which ordinary memory does not help."""
        try:
            self.receive(1)
        except (Violation, NetmemError):
            return Violation(
                "R1", f"queue {self.queue} is silent since it was restarted, whatever its memory"
            )
        return silence

    def receive(self, size: int, *, piece: int = 1 << 16, family: int = 0) -> Received:
        """Receive, give everything back at once, and hold what came against what was sent.

        Violation: nothing comes any more (R3), other bytes came than were sent (R3), they came by another
        queue (R1), or beside the memory (R2).
        """
        seed, found, mark = self.seed(), Received(), hashlib.sha256()
        with self.connection(size, seed=seed, piece=piece, family=family) as sock:
            while (message := self.message(sock, found)).size:
                self.take(message, found, mark)
                if len(message.frags):
                    tokens = message.frags["frag_token"]
                    found.unknown += len(tokens) - sock.devmem_dontneed(tokens)
        found.digest = mark.hexdigest()
        self.judge(found, size, seed, by_copy=min(piece, self.mtu - HEADERS) < SEGMENT)
        return found

    def message(self, sock: KernelSocket, found: Received) -> DevmemMessage:
        """The next message. Violation when none comes."""
        try:
            return sock.recvmsg_devmem(timeout=WAIT_S)
        except NetmemError as error:
            if error.errno == errno.ETIMEDOUT:
                text = f"nothing comes any more after {found.bytes} bytes, on a connection that came up"
            else:
                text = f"recvmsg after {found.bytes} bytes: {errno_name(error.errno or 0)}"
            raise Violation("R3", text) from None

    def take(self, message: DevmemMessage, found: Received, mark: hashlib._Hash) -> None:
        """Look at what a message brought, where it lies."""
        found.bytes += message.size
        if message.copied:
            found.copied += len(message.linear)
        else:
            found.linear += len(message.linear)
        mark.update(message.linear)
        if not len(message.frags):
            return
        assert self.memory is not None
        with self.memory.cpu_access():
            for at, size in message.frags[["frag_offset", "frag_size"]].tolist():
                found.sizes.append(size)
                if at + size > self.memory.size:
                    found.outside += 1
                else:
                    mark.update(self._view[at : at + size].data)

    def judge(self, found: Received, size: int, seed: int, *, by_copy: bool = False) -> None:
        """Violation for what is wrong with what came. ``by_copy``: packets may be so small that a NIC leaves
        them whole in its header buffers; the kernel says of these what it says of those by another queue.
        """
        if found.outside:
            raise Violation("R3", f"{found.outside} frags lie outside of the memory")
        if found.bytes != size:
            raise Violation("R3", f"{found.bytes} of {size} bytes came")
        if self.memory is not None and not by_copy and found.copied > size // 4:
            raise Violation("R1", f"{found.copied} of {size} bytes came by a queue without the memory")
        if found.linear:
            text = f"{found.linear} of {size} bytes lay beside the memory, with the headers"
            raise Violation("R2", text)
        if found.digest != digest(seed, size):
            where = "the memory" if self.memory is not None else "ordinary memory"
            raise Violation("R3", f"{size} bytes came into {where}, and they are not those that were sent")
        if found.unknown:
            raise Violation("R7", f"the kernel did not know {found.unknown} tokens that it had given")

    def drained(self) -> list[Row]:
        """Pools that were destroyed and still hold netmems, after waiting for them to be empty."""
        end = time.monotonic() + DRAIN_S
        while True:
            left = [pool for pool in self.pools() if "detach_time" in pool and pool["id"] not in self._before]
            if not left or time.monotonic() > end:
                return left
            _wake_softirqs()
            time.sleep(0.1)

    def close(self) -> None:
        self.listener.close()


def _wake_softirqs() -> None:
    """Have every CPU's NET_RX softirq run, by a datagram over loopback.

    What a socket was done with on another CPU is freed by the CPU that received it, when that softirq runs
    next (skb_attempt_defer_free): on an idle CPU, never.
    """
    mine = os.sched_getaffinity(0)
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stir:
        stir.setblocking(False)
        stir.bind(("127.0.0.1", 0))
        stir.connect(stir.getsockname())
        try:
            for cpu in range(os.cpu_count() or 1):
                with contextlib.suppress(OSError):  # a CPU that is not ours
                    os.sched_setaffinity(0, {cpu})
                    stir.send(b"")
        finally:
            os.sched_setaffinity(0, mine)


def _addresses(device: KernelDevice) -> dict[int, str]:
    """What others reach the device by: one address of each family (4, 6)."""
    found: dict[int, str] = {}
    with IPRoute() as route:
        for message in route.get_addr(index=device.ifindex):
            if message["scope"] == UNIVERSE:
                found.setdefault(6 if message["family"] == 10 else 4, str(message.get_attr("IFA_ADDRESS")))
    if not found:
        raise NetmemError(
            errno.EADDRNOTAVAIL, f"{device.name} has no address: ip addr add ... dev {device.name}"
        )
    return found
