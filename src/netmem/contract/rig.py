"""A driver on its device model, with instruments that notice which requirement it breaks, and how."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from netmem.base.clock import MS
from netmem.base.errors import NetmemError
from netmem.base.ethtool import TcpDataSplit
from netmem.contract.report import Violation
from netmem.drivers.igb import IgbDriver
from netmem.drivers.softnic import SoftnicDriver
from netmem.inet.socket import TcpSocket
from netmem.lab.qemu import bar_memory
from netmem.memory.layout import (
    PP_FLAG_ALLOW_UNREADABLE_NETMEM,
    PP_FLAG_DMA_MAP,
    PP_FLAG_DMA_SYNC_DEV,
    Holder,
)
from netmem.memory.page_pool import PagePool
from netmem.memory.provider import AreaProvider
from netmem.memory.providers.cuda import CudaProvider
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.memory.providers.pages import PagesProvider
from netmem.netdev.batch import RxBatch, RxRow
from netmem.netdev.napi import PacketType
from netmem.testing.net import Network

# The rigs that a check makes, so that whoever runs it can read their notes however it ended.
MADE: ContextVar[list[Rig] | None] = ContextVar("MADE", default=None)
MakeDriver = Callable[..., Any]
MODELS = {id_: cls.name for cls in (SoftnicDriver, IgbDriver) for id_ in cls.device_ids}
QUEUES = 4
QUEUE = QUEUES - 1  # the one that checks bind memory to
PORT = 5001
MAX_ROUNDS = 5000
PATIENCE = 20  # rounds without data before time passes faster
MEMORY_BYTES = 16 << 20
IDLE_HOLD = 2  # netmems that a driver may keep in ring slots it has not posted yet


class SpyBus:
    """A bus that notes who maps, unmaps and syncs; everything else goes through to the real one."""

    def __init__(self, bus: Any, rig: Rig) -> None:
        self._bus, self._rig = bus, rig

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def dma_map(self, fd: int, offset: int, length: int, direction: int, **more: Any) -> int:
        io: int = self._bus.dma_map(fd, offset, length, direction, **more)
        self._rig.mapped[io] = (os.fstat(fd).st_ino, length, _caller())
        return io

    def dma_unmap(self, io_address: int) -> None:
        if self._rig.is_transmit("dma_unmap_single", io_address, _caller()):
            return  # it is the binding's to unmap
        if io_address not in self._rig.mapped and io_address not in self._rig.resources:
            self._rig.note("R4", f"{_caller()} unmaps {io_address:#x}, which is not mapped (any more)")
        self._rig.mapped.pop(io_address, None)
        self._rig.resources.discard(io_address)
        self._bus.dma_unmap(io_address)

    def dma_map_resource(self, address: int, length: int) -> int:
        io: int = self._bus.dma_map_resource(address, length)
        self._rig.resources.add(io)
        return io

    def sync_for_cpu(self, io_address: int, length: int) -> None:
        self._rig.raw_sync("dma_sync_single_for_cpu", io_address, length, _caller())
        self._bus.sync_for_cpu(io_address, length)

    def sync_for_device(self, io_address: int, length: int) -> None:
        self._rig.raw_sync("dma_sync_single_for_device", io_address, length, _caller())
        self._bus.sync_for_device(io_address, length)


OURS = ("netmem.netdev", "netmem.memory")  # bindings and providers map and unmap, not drivers


def _caller() -> str:
    """Module of whoever called the bus."""
    return str(sys._getframe(2).f_globals.get("__name__", "?"))


def device_model(make_driver: MakeDriver) -> str:
    """Which NIC the driver is for: softnic or igb, by its ``device_ids``. ValueError for neither."""
    ids: tuple[tuple[int, int], ...] = getattr(make_driver, "device_ids", ())
    for one in ids:
        if one in MODELS:
            return MODELS[one]
    known = ", ".join(f"{name} ({vendor:04x}:{device:04x})" for (vendor, device), name in MODELS.items())
    raise ValueError(f"no device model has the device ids {ids!r}; there are {known}")


class Rig:
    """One driver, its NIC, and a peer (or, ``alone``, frames by hand).

    ``notes`` are the violations that the instruments saw. Use as a context manager: at its end the
    accounts are looked at.
    """

    def __init__(self, make_driver: MakeDriver, memory: str = "none", **options: Any) -> None:
        self.notes: list[tuple[str, str]] = []
        made = MADE.get()
        if made is not None:
            made.append(self)
        self.mapped: dict[int, tuple[int, int, str]] = {}
        self.resources: set[int] = set()
        self.transmit = (0, 0)  # I/O addresses of memory that is sent from
        self.memory = memory
        self.nic = device_model(make_driver)
        self._payload: set[PagePool] = set()  # every payload pool that was seen
        self._splits: dict[int, TcpDataSplit] = {}
        options_of: dict[str, Any] = {}
        with contextlib.suppress(TypeError, ValueError):
            if "autoneg" in inspect.signature(make_driver).parameters:
                options_of["autoneg"] = False  # which would take the emulated PHY half a second

        def driver(bus: Any) -> Any:
            return make_driver(SpyBus(bus, self), **options_of)

        self.net = Network(nic=self.nic, driver=driver, **{"rx_queues": QUEUES, **options})
        self.dev = self.net.ours.dev
        self.provider: AreaProvider | None = None

    # -- what the instruments say ---------------------------------------------------------------

    def note(self, requirement: str, text: str) -> None:
        """A violation that need not end the check."""
        if (requirement, text) not in self.notes:
            self.notes.append((requirement, text))

    def payload_pools(self) -> list[PagePool]:
        """The payload pools of the queues as they are now."""
        return [queue.pool for queue in self.dev.rx_queues if queue.pool is not None]

    def is_transmit(self, call: str, io: int, caller: str) -> bool:
        """Note a driver's own DMA call on memory that is sent from; True for such a call."""
        mine = self.transmit[0] <= io < self.transmit[1] and not caller.startswith(OURS)
        if mine:
            self.note("TX1", f"{caller} calls {call}() on netmem that is transmitted ({io:#x})")
        return mine

    def raw_sync(self, call: str, io: int, length: int, caller: str) -> None:
        """A driver's own sync is right for its own buffers only."""
        if self.is_transmit(call, io, caller):
            return
        for pool in self.payload_pools():
            start = pool.record.dma
            if start <= io < start + pool.area.size and not caller.startswith("netmem.memory"):
                self.note("R6", f"{caller} calls {call}() on payload ({length} bytes at {io:#x})")

    def inspect(self) -> None:
        """Look at pools, flags, mappings and counters; notes what is wrong."""
        split = self.dev.queues.ring.tcp_data_split
        payload = self.payload_pools()
        self._payload.update(payload)
        for pool in payload:
            self._flags(pool, split)
            if pool.page_calls:
                self.note("R3", f"{pool.page_calls} page calls on payload; their netmem twins are due")
        for pool in self.dev.page_pools:
            counters = pool.record.counters
            if counters.foreign:
                self.note("R3", f"{counters.foreign} references given to a pool are not its own")
            if counters.dead:
                self.note("R7", f"{counters.dead} netmems were put that nobody held")
            if pool in payload and pool.record.buffers_per_netmem == 1:
                netmems = pool.area.netmems()
                extra = (netmems["holder"] == Holder.NIC) & (netmems["pp_ref_count"] > 1)
                if extra.any():
                    many = int(extra.sum())
                    self.note("R7", f"the driver has {many} references too many to posted netmems")
        inodes = {os.fstat(pool.provider.fd if pool.provider else pool._page_fd()).st_ino: pool
                  for pool in payload if pool.provider is None or pool.provider.fd >= 0}  # fmt: skip
        for inode, length, caller in self.mapped.values():
            if inode in inodes and not caller.startswith("netmem.memory"):
                self.note("R4", f"{caller} maps payload memory itself ({length} bytes); the pool does that")

    def header_pools(self) -> list[PagePool]:
        """Pools of the driver's that were never a queue's payload pool."""
        return [
            pool for pool in self.dev.page_pools if pool not in self._payload and pool.destroyed_at is None
        ]

    def _flags(self, pool: PagePool, split: TcpDataSplit) -> None:
        flags = pool.params.flags
        for bit, name in ((PP_FLAG_DMA_MAP, "DMA_MAP"), (PP_FLAG_DMA_SYNC_DEV, "DMA_SYNC_DEV")):
            if not flags & bit:
                self.note("R4", f"the payload pool of queue {pool.params.queue_idx} lacks PP_FLAG_{name}")
        unreadable = bool(flags & PP_FLAG_ALLOW_UNREADABLE_NETMEM)
        if unreadable != (split == TcpDataSplit.ENABLED):
            have, name = "has" if unreadable else "lacks", split.name.lower()
            self.note("R4", f"the payload pool {have} PP_FLAG_ALLOW_UNREADABLE_NETMEM with split {name}")

    def note_hoard(self, tokens: int = 0) -> None:
        """After traffic: does the driver keep netmems of its own?"""
        pool = self.dev.rx_queues[QUEUE].pool
        assert pool is not None
        kept = pool.outstanding() - pool.record.posted - tokens
        if kept > IDLE_HOLD:
            self.note("R7", f"the driver keeps {kept} netmems that are neither posted nor in use")

    # -- what checks do ---------------------------------------------------------------------------

    def split(self, value: TcpDataSplit = TcpDataSplit.ENABLED, **more: int) -> None:
        """ethtool -G tcp-data-split, as a user would; a driver that refuses breaks R2."""
        try:
            self.dev.ethtool.set_ringparam(tcp_data_split=value, **more)
        except NetmemError as error:
            self.inspect()
            for requirement, text in self.notes:
                if requirement in ("R3", "R7"):  # what the driver did when its queues restarted
                    raise Violation(requirement, text) from None
            raise Violation("R2", f"tcp-data-split {value.name.lower()} is refused: {error}") from None

    def make_provider(self, rx_page_size: int = 4096, size: int = MEMORY_BYTES) -> AreaProvider | None:
        """Memory of the kind that the check is about."""
        if self.memory == "pages":
            return PagesProvider(size, rx_page_size=rx_page_size)
        if self.memory == "dmabuf":
            return DmabufProvider(size, exporter="memfd", rx_page_size=rx_page_size)
        if self.memory == "cuda":
            return CudaProvider(size, rx_page_size=rx_page_size)
        if self.memory == "bar":
            return bar_memory(self.net.ours.bus, size, rx_page_size=rx_page_size)  # type: ignore[arg-type]
        return None

    def bind(self, rx_page_size: int = 4096, size: int = MEMORY_BYTES) -> None:
        """Turn split on, bind the check's memory (if any) to the last queue, and lead the port there."""
        self.split()
        self.inspect()
        self.provider = self.make_provider(rx_page_size, size)
        if self.provider is not None:
            self.net.provider, self.net.binding = self.provider, self.dev.bind_rx([QUEUE], self.provider)
        self.net.steer(PORT, QUEUE)

    def lead(self, queue: int) -> None:
        """All flows to a queue, on every NIC."""
        self.dev.ethtool.set_rxfh_indir([queue])

    def rows(self, *frames: bytes) -> list[RxRow]:
        """Receive frames: the batch's rows, in order, as copies. Nothing is taken from the driver."""
        got: list[RxRow] = []

        def capture(batch: RxBatch, queue: int, available: int) -> None:
            got.extend(RxRow.from_buffer_copy(row) for row in batch.used())

        for frame in frames:
            self.net.wire.inject(frame)  # type: ignore[call-arg, unused-ignore]
        self.net.settle()
        self.dev.poll(self.net.clock.now(), PacketType(capture), 64)
        return got

    def send(
        self, theirs: TcpSocket, ours: TcpSocket, data: bytes, *, keep: bool = False
    ) -> tuple[bytes, list[int]]:
        """Have ``data`` sent; (what arrived, tokens kept). TimeoutError when it does not all arrive."""
        left, got, tokens = memoryview(data), bytearray(), list[int]()
        idle = 0
        for _ in range(MAX_ROUNDS):
            if len(left) and theirs.writable():
                left = left[theirs.send(left) :]
            # A NIC may drop bursts that its ring cannot take: let time pass for their retransmission.
            self.net.run(1, MS // 10 if idle < PATIENCE else 20 * MS)
            idle += 1
            if ours.readable():
                idle = 0
                if self.provider is None:
                    got += ours.recv(1 << 20)
                    continue
                message = ours.recvmsg_devmem()
                got += message.linear
                for frag in message.frags:
                    start = int(frag["frag_offset"])
                    got += self.provider.read(start, int(frag["frag_size"]))
                if keep:
                    tokens += message.frags["frag_token"].tolist()
                elif len(message.frags):
                    ours.devmem_dontneed(message.frags["frag_token"])
            if len(got) >= len(data):
                return bytes(got), tokens
        self.inspect()
        raise TimeoutError(f"{len(got)} of {len(data)} bytes arrived, then no more")

    def __enter__(self) -> Rig:
        return self

    def unbind(self) -> None:
        """Unbind the check's memory; all of it must be there again (Violation)."""
        assert self.net.binding is not None
        self.net.binding.close()
        self.dev.reap(self.net.clock.now())
        missing = self.missing()
        if missing:
            raise Violation(*missing)

    def missing(self) -> tuple[str, str] | None:
        """Netmems of the provider that are not free, and whose fault that is; None when all are.

        What leaks is R7's; a pool that stays, with what it has at hand, is R1's.
        """
        assert self.provider is not None
        area = self.provider.area
        if area.free == area.count:
            return None
        holders = area.netmems()["holder"]
        in_ring = int((holders == Holder.NIC).sum())
        hoard = next((note for note in self.notes if note[0] == "R7"), None)
        if hoard:
            return hoard
        if in_ring:
            return "R7", f"{in_ring} netmems in the ring never came back after the queue was unbound"
        held = int((holders > Holder.RING).sum())
        if held:
            return "R7", f"{held} netmems never came back: the driver still has references to them"
        return "R1", f"{area.count - area.free} netmems are in a pool that was never destroyed"

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        with contextlib.suppress(Exception):
            self.inspect()
        try:
            self.net.close()
        except AssertionError as error:
            if kind is None:
                self.note("R7", str(error))
        except Exception:
            if kind is None:
                raise
        finally:
            with contextlib.suppress(Exception):
                self.inspect()  # what closing showed
        own = [length for _, length, caller in self.mapped.values() if not caller.startswith(OURS)]
        if kind is None and own:  # a pool that stays keeps its mapping, for which it is blamed already
            self.note("R4", f"{len(own)} mappings of {sum(own)} bytes are never unmapped")


@contextlib.contextmanager
def never_mapped(provider: AreaProvider, theirs: int | None = None) -> Iterator[None]:
    """Notice when somebody maps the provider's memory here who may not, or has already (Violation R5).

    ``theirs``: how many mappings there may be; those that there are now, if nothing is said.
    """
    theirs = _times_mapped(provider) if theirs is None else theirs
    for when in ("before anything came", "when something came"):
        if _times_mapped(provider) > theirs:
            raise Violation("R5", f"the driver has mapped the payload memory {when}")
        if when.startswith("before"):
            yield


def _times_mapped(provider: AreaProvider) -> int:
    if not provider.mappable:
        return 0
    inode = str(os.fstat(provider.fd).st_ino)
    return sum(inode in line.split() for line in Path("/proc/self/maps").read_text().splitlines())


def payload(size: int, seed: int = 7) -> bytes:
    """Reproducible bytes."""
    return np.random.default_rng(seed).bytes(size)
