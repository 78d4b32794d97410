"""What recv, demo and bench have in common: a device with memory bound, and its connections."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from netmem.base.arena import Bytes
from netmem.base.errors import NetmemError
from netmem.base.ethtool import TcpDataSplit
from netmem.base.frags import DevmemMessage
from netmem.base.transfer import CHUNK, Connection, Totals
from netmem.inet.listener import TcpListener
from netmem.lab import report
from netmem.lab.device import Device, network_of, open_device
from netmem.memory import sanitizer
from netmem.memory.netmem import netmem_address
from netmem.memory.page_pool import PagePool
from netmem.memory.provider import AreaProvider, check_size
from netmem.memory.providers.cuda import CudaProvider
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.memory.providers.pages import PagesProvider

PORT = 5001
BACKLOG = 1024
MAX_FRAGS = 1024


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How to receive: the options of `netmem recv`."""

    nic: str = "softnic"
    memory: str = "dmabuf"
    memory_size: int = 64 << 20
    rx_page_size: int = 4096
    exporter: str = "auto"
    tcp_data_split: bool = True
    hds_thresh: int = 0
    rx_gro_hw: bool = True
    rx_usecs: int | None = None
    mtu: int = 1500
    queues: int = 2
    wire: str = "user"
    bus: str = "qemu"
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    drop_privileges: bool = False
    report: str = ""


def make_memory(
    device: Device, nic: str, memory: str, size: int, rx_page_size: int, exporter: str
) -> AreaProvider | None:
    """Memory of the kind that --memory names; None for none."""
    if memory == "bar":
        return device.bar_memory(size, rx_page_size=rx_page_size)
    if memory == "none":
        return None
    if memory.startswith("cuda:"):
        return CudaProvider(size, device=int(memory.removeprefix("cuda:")), rx_page_size=rx_page_size)
    if memory == "pages":
        return PagesProvider(size, rx_page_size=rx_page_size)
    if (nic, exporter) == ("igb", "auto"):
        # A dma-buf is known to the kernel's drivers alone: what stands behind a udmabuf is reached as well.
        with contextlib.suppress(NetmemError):
            return DmabufProvider(size, exporter="udmabuf", rx_page_size=rx_page_size)
        exporter = "memfd"
    return DmabufProvider(size, exporter=exporter, rx_page_size=rx_page_size)


class Sink:
    """Where payload goes: nowhere (``write`` None), or through a mapping of the application's own."""

    def __init__(self, provider: AreaProvider | None, write: Callable[[memoryview], Any] | None) -> None:
        self._provider, self._write = provider, write
        self._staging: Bytes = np.empty(0, np.uint8)

    def message(self, message: DevmemMessage) -> None:
        """Take the payload of a message, in stream order."""
        if self._write is None:
            return
        if message.linear:
            self._write(memoryview(message.linear))
        if not len(message.frags):
            return
        assert self._provider is not None
        size = int(message.frags["frag_size"].sum())
        if len(self._staging) < size:
            self._staging = np.empty(size, np.uint8)
        rows = message.frags.view(np.int64).reshape(-1, 3)
        self._provider.gather(rows, self._staging.ctypes.data)
        self._write(self._staging[:size].data)

    def bytes(self, data: memoryview) -> None:
        """Take bytes that were copied out."""
        if self._write is not None:
            self._write(data)


class Receiver:
    """An open device with memory bound to its queues, all steered there, and a forwarded port."""

    def __init__(self, setup: Setup, address: tuple[str, int], *, allow_remote: bool = False) -> None:
        self.setup, self.totals = setup, Totals()
        # On a TAP wire, or a NIC of this machine's, the port is the stack's own.
        user = setup.wire == "user" and not setup.bus.startswith("vfio:")
        self.address, self.port = address[0], address[1] or (0 if user else PORT)
        self.provider: AreaProvider | None = None
        self.device: Device | None = None
        self.connections: list[Connection] = []
        self.outstanding: int | None = None
        self.warnings: list[str] = []
        self._faults = 0  # that were told
        self._recording = self.reported = False  # whether a report is to be written; whether it was
        if setup.memory != "none":
            check_size(setup.memory_size, setup.rx_page_size)
        try:
            self._recording = report.begin(setup.report) if setup.report else False
            self.device = open_device(
                setup.nic, queues=setup.queues, mtu=setup.mtu,
                **network_of(setup.wire, setup.bus, setup.addresses, setup.gateways),
                drop_privileges=setup.drop_privileges,
            )  # fmt: skip
            self.provider = make_memory(
                self.device, setup.nic, setup.memory, setup.memory_size, setup.rx_page_size, setup.exporter
            )
            self.bound = [0] if setup.queues == 1 else list(range(1, setup.queues))
            # The stack's port is the host's: who looks at it sees the one that was asked for. Where any will
            # do, the host says which, and whoever connects knows it later than the stack.
            if user and not self.port:
                self.port = self.device.forward(*address, allow_remote=allow_remote)
            self._configure(self.device)
            self.listener: TcpListener = self.device.listen(self.port, backlog=BACKLOG)
            if not user:
                self.address = self.device.stack.ip.addresses[0]
            elif address[1]:
                self.device.forward(*address, allow_remote=allow_remote)
        except BaseException:
            self.close()
            raise
        self.device.stack.activity()
        self._by_row: dict[int, Connection] = {}
        self._ready: dict[int, Connection] = {}  # by number: what may have something to receive

    def sink(self, write: Callable[[memoryview], Any] | None) -> Sink:
        """For the payload of a connection."""
        return Sink(self.provider, write)

    def pending(self) -> bool:
        """True when a connection can be accepted."""
        return self.listener.pending() > 0

    def check_alive(self) -> None:
        """What the device died of, if it did, and nobody is left to be told."""
        if self.device is not None and self.device.stack.gone is not None and not self.connections:
            raise self.device.stack.gone

    def exporter(self) -> tuple[str, str]:
        """Where dmabuf memory comes from, and why not from elsewhere; empty for other memory."""
        memory = self.provider
        return (memory.exporter_used, memory.fallback) if isinstance(memory, DmabufProvider) else ("", "")

    def _configure(self, device: Device) -> None:
        """Ring settings, binding, and steering of the port to the bound queues."""
        split = TcpDataSplit.ENABLED if self.setup.tcp_data_split else TcpDataSplit.DISABLED
        device.ethtool.set_ringparam(tcp_data_split=split)
        if not self.setup.rx_gro_hw and "rx_gro_hw" in device.dev.driver.hw_features:
            device.ethtool.set_features(rx_gro_hw=False)
        if self.setup.rx_usecs is not None:
            device.ethtool.set_coalesce(rx_usecs=self.setup.rx_usecs, use_adaptive_rx=False)
        if self.setup.hds_thresh:  # not every device has a threshold to set
            device.ethtool.set_ringparam(hds_thresh=self.setup.hds_thresh)
        if self.provider is not None:
            device.bind_rx(self.bound, self.provider)
        if len(self.bound) == 1:
            device.steer(self.port, self.bound[0])
        else:
            device.ethtool.set_rxfh_indir(self.bound)

    def client(self, connection: Connection) -> tuple[str, int] | None:
        """``Device.client``; None as well when the NIC is gone."""
        assert self.device is not None
        with contextlib.suppress(OSError):
            return self.device.client(connection.sock)
        return None

    def capture(self, path: str) -> None:
        """Write what the device receives and sends to a pcapng file from now on."""
        assert self.device is not None
        dev = self.device.dev
        with dev.lock:
            dev.start_capture(open(path, "wb"))

    @property
    def pools(self) -> list[PagePool]:
        """Payload pools of the queues that receive."""
        assert self.device is not None
        queues = self.device.dev.rx_queues
        return [pool for i in self.bound if (pool := queues[i].pool) is not None]

    def driver_can_read(self) -> bool:
        """netmem_address() of the payload: what the driver would see."""
        return netmem_address(self.pools[0].area.record.tag) is not None

    def level(self) -> float:
        """Part of the payload memory that can still be received into, 0 to 1."""
        assert self.device is not None
        have = sum(self.device.dev.queues.available(i) for i in self.bound)
        total = {id(pool.area): pool.area.count * pool.record.buffers_per_netmem for pool in self.pools}
        return min(1.0, have / sum(total.values()))

    def wait(self, timeout: float) -> bool:
        """Until something can be accepted or received; False when ``timeout`` seconds passed."""
        assert self.device is not None
        self._tell_faults()
        try:
            self.device.stack.wait(
                lambda: bool(self.listener.pending() or self._look()),
                timeout,
                "traffic",
            )
        except TimeoutError:
            return False
        return True

    def _tell_faults(self) -> None:
        """A warning for each access of the NIC's that an IOMMU stopped since."""
        assert self.device is not None
        found = self.device.dma_faults()
        self.warnings += [f"the NIC was stopped: {text}" for text in found[self._faults :]]
        self._faults = len(found)

    def _look(self) -> dict[int, Connection]:
        """Connections that can be received from, of those at which something happened."""
        for row in self.device.stack.activity() if self.device is not None else ():
            connection = self._by_row.get(row)
            if connection is not None and connection.sock.readable():
                self._ready[connection.number] = connection
        return self._ready

    def ready(self) -> list[Connection]:
        """Connections to receive from, by number."""
        found = [c for _, c in sorted(self._look().items()) if not c.done]
        self._ready.clear()
        return found

    def accept(
        self, number: int, sink: Any, close: Callable[[bool], None] = lambda complete: None
    ) -> Connection:
        """Take the next connection; ``close`` is called when it ends, with True when all came."""
        connection = Connection(number, self.listener.accept(timeout=0), sink, close)
        self.connections.append(connection)
        self._by_row[connection.sock.row] = self._ready[number] = connection
        self.totals.connections += 1
        return connection

    def receive(self, connection: Connection) -> None:
        """Take what one connection has; at its end, or on an error, close it."""
        try:
            size = self._receive(connection)
        except sanitizer.SanitizerError:
            raise
        except OSError as error:
            what = str(error) if isinstance(error, NetmemError) else f"{error.strerror or error}"
            connection.error = f"{error.filename}: {what}" if error.filename else what
            self.totals.failed += 1
            self._finish(connection, abort=True)
            return
        now = time.monotonic()
        if not size:
            self._finish(connection)
            return
        totals = self.totals
        totals.started = totals.started or now
        totals.ended = now
        totals.bytes += size
        connection.bytes += size
        if connection.sock.readable():  # one call does not take everything
            self._ready[connection.number] = connection

    def _receive(self, connection: Connection) -> int:
        sock, sink = connection.sock, connection.sink
        if self.provider is None:
            if not connection.buffer:
                connection.buffer = bytearray(CHUNK)
            n = sock.recv_into(connection.buffer)
            sink.bytes(memoryview(connection.buffer)[:n])
            self.totals.linear += n
            connection.flow.copied += n
            return n
        message = sock.recvmsg_devmem(max_frags=MAX_FRAGS)
        sink.message(message)
        assert self.device is not None
        if (
            connection.flow.take(message) and not self.device.stack.conns.stats.left_queue
        ):  # which is told there
            queues = ", ".join(map(str, self.bound))
            text = f"comes by copy: its flow is not led to queue {queues}"
            peer = f"{connection.sock.peer[0]}:{connection.sock.peer[1]}"
            self.warnings.append(f"connection {connection.number} from {peer} {text}")
        if len(message.frags):
            sock.devmem_dontneed(message.frags["frag_token"])
        self.totals.linear += len(message.linear)
        self.totals.frags += len(message.frags)
        return message.size

    def refuse(self, connection: Connection, why: str) -> None:
        """Reset a connection that nothing can be done with."""
        connection.error = why
        self.totals.failed += 1
        self._finish(connection, abort=True)

    def _finish(self, connection: Connection, *, abort: bool = False) -> None:
        self.connections.remove(connection)
        if self._by_row.get(connection.sock.row) is connection:
            del self._by_row[connection.sock.row]
        self.totals.failed += connection.finish(abort=abort) and not abort

    def summary(self) -> dict[str, Any]:
        """Everything worth reporting, for people and machines."""
        assert self.device is not None
        t, dev = self.totals, self.device.dev
        queues = [dev.driver.get_queue_stats(i) for i in self.bound]
        pools = [pool.get_stats() for pool in self.pools]
        recycled = ("recycle_cached", "recycle_ring")
        return {
            "nic": self.setup.nic,
            "memory": self.setup.memory,
            "exporter": self.exporter()[0] or None,
            "fallback": self.exporter()[1] or None,
            "driver_can_read": self.driver_can_read(),
            "sanitized": sanitizer.ON,
            "connections": t.connections,
            "failed": t.failed,
            "bytes": t.bytes,
            "linear_bytes": t.linear,
            "frags": t.frags,
            "frags_per_mib": t.frags_per_mib,
            "seconds": round(t.seconds, 6),
            "goodput_gbit": round(t.bytes * 8 / t.seconds / 1e9, 3) if t.seconds else 0.0,
            "hds_hit": sum(q["hds_hit"] for q in queues),
            "hds_miss": sum(q["hds_miss"] for q in queues),
            "rx_no_desc": sum(q["rx_no_desc"] for q in queues),
            "alloc_fast": sum(p["alloc_fast"] for p in pools),
            "alloc_slow": sum(p["alloc_slow"] for p in pools),
            "recycled": sum(p[name] for p in pools for name in recycled),
            "tcp": {name: n for name, n in self.device.stack.conns.counters().items() if n},
        }

    def close(self) -> None:
        """Close everything; afterwards ``outstanding`` is what never came back (it must be 0)."""
        try:
            self._close()
        finally:
            if self._recording:
                self._recording = False
                self.reported = report.end()

    def _close(self) -> None:
        if self.device is None:
            return
        for connection in list(self.connections):
            self._finish(connection, abort=True)
        pools = list(self.device.dev.pools.values())
        self.device.close()
        self.device.dev.stop_capture()
        self.outstanding = sum(pool.inflight() for pool in pools)
        self.device = None
        if self.provider is not None:
            self.outstanding += self.provider.area.count - self.provider.area.free
            self.provider.close()


def hashing_sink(provider: AreaProvider | None) -> tuple[Sink, Any]:
    """A sink that works out the SHA-256 of what arrives."""
    digest = hashlib.sha256()
    return Sink(provider, digest.update), digest
