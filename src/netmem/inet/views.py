"""Received payload where it lies: arrays over the memory itself, and copies of it, for its application.

A view holds references to the netmems it lies in until the last array over it is gone, so it outlives its
socket. Views keep at most a quarter of a memory; what would go beyond is copied, so that whoever keeps all
that he reads does not stop his peers.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from netmem.base.arena import Region, Words
from netmem.base.errors import NetmemError
from netmem.base.frags import DevmemMessage
from netmem.base.place import HOST, Host, Place
from netmem.inet.later import Later
from netmem.memory.calls import gather, hold_frags, run_of
from netmem.memory.layout import NetmemRecord
from netmem.memory.page_pool import PagePool
from netmem.memory.provider import AreaProvider
from netmem.netdev.device import NetDevice

PART = 4  # of a memory, at most one in so many bytes is in views
PATIENCE, AGAIN = 4, 16  # arrays that had to be copied, until views are tried for one in so many only


class GpuPlace(Place, Protocol):
    """A place that sees the memory on its device, and gathers there (``gpu.py``)."""

    def base(self, provider: AreaProvider) -> int:
        """Where this place sees a memory of its device."""

    def gather(self, provider: AreaProvider, base: int, rows: Words, to: int) -> int:
        """Frags of a memory end to end to an address; bytes. ``base``: of the memory here, 0: elsewhere."""


class Mapped:
    """The application's mapping of a provider's memory: one for all readers of the process.

    ``address``: of the memory's first byte, on the device that it is on.
    """

    def __init__(self, provider: AreaProvider, place: GpuPlace | Host) -> None:
        self.held = 0  # references to netmems, in views
        self.writable = True
        if not isinstance(place, Host):
            self.address = place.base(provider)
            return
        try:
            self.region = Region(provider.fd, provider.size)
        except (OSError, ValueError):
            self.writable = False
            self.region = Region(provider.fd, provider.size, writable=False)
        self.address = self.region.address

    @classmethod
    def of(cls, provider: AreaProvider, place: GpuPlace | Host = HOST) -> Mapped:
        """The mapping, made when it is first asked for."""
        found = _mapped.get(provider)
        if found is None:
            found = _mapped[provider] = cls(provider, place)
        return found


_mapped: weakref.WeakKeyDictionary[AreaProvider, Mapped] = weakref.WeakKeyDictionary()


class Hold:
    """References to the netmems of one pool that a view lies in; views hold ``room`` bytes of a memory."""

    def __init__(self, dev: NetDevice, pool: PagePool, mapped: Mapped, provider: AreaProvider) -> None:
        self._dev, self.pool, self.mapped, self.room = dev, pool, mapped, provider.size // PART
        self.refs: list[Words] = []
        self.count = 0
        self._provider, self._access = provider, contextlib.ExitStack()

    def add(self, rows: Words) -> bool:
        """Hold the netmems of frags too. False: another pool's are among them, or it would be too much.

        Under the device's lock.
        """
        n = len(rows)
        if (self.mapped.held + n) << self.pool.area.shift > self.room:
            return False
        refs = np.empty(n, np.int64)
        if not hold_frags(self.pool.at, rows, n, refs):
            return False
        self.refs.append(refs)
        self.count += n
        self.mapped.held += n
        return True

    def open(self) -> None:
        """All has come that was to come: the application's access begins."""
        self._access.enter_context(self._provider.cpu_access(write=True))

    def release(self) -> None:
        """Give them up. Under the device's lock."""
        refs, self.refs = self.refs, []
        self.mapped.held -= self.count
        self.count = 0
        with contextlib.suppress(OSError, ValueError):  # the memory's descriptor may be closed by now
            self._access.close()
        if refs:
            self.pool.put_netmem_bulk(np.concatenate(refs) if len(refs) > 1 else refs[0])
        if not self._dev.queues.running:  # nobody polls: look here for pools that this ends
            self._dev.reap(self._dev.now)


class View:
    """Memory from ``address`` on, up to ``size`` bytes, of which a Hold keeps what was received.

    What arrays over it are based on: the last of them lets it go.
    """

    def __init__(self, address: int, size: int, hold: Hold, later: Later, place: Place) -> None:
        self.hold, self._later, self._place, self.address = hold, later, place, address
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": (size,), "data": (address, False),
        }  # fmt: skip

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _finalizing():  # in whatever thread and place that is: the next poll does it
            self._place.settle()
            self._later.add(self.hold.release)


class Gatherer:
    """Makes arrays of what was received: views where it lies end to end, copies elsewhere.

    ``later``: what is to be done at the next poll.
    """

    def __init__(self, dev: NetDevice, later: Later, place: GpuPlace | Host = HOST) -> None:
        self.dev, self.later, self.lock, self.place = dev, later, dev.lock, place
        self._memory: dict[int, tuple[AreaProvider, Mapped | None]] = {}  # by dmabuf_id
        self._copied = 0  # arrays since the last view

    def run(self, align: int) -> Run | None:
        """None when arrays had to be copied of late: to try costs a tenth of the copy."""
        return Run(self, align) if self._copied < PATIENCE or self._copied % AGAIN == 0 else None

    def made(self, view: bool) -> None:
        """An array was made."""
        self._copied = 0 if view else self._copied + 1

    def memory(self, binding: int) -> tuple[AreaProvider, Mapped | None]:
        """The memory that frags lie in, and its mapping if it is where the arrays are. EOPNOTSUPP."""
        found = self._memory.get(binding)
        if found is None:
            with self.lock:
                pools = [pool for pool in self.dev.pools.values() if pool.record.binding == binding]
            provider = pools[0].provider if pools else None
            if not isinstance(provider, AreaProvider) or (provider.fd < 0 and provider not in _mapped):
                raise NetmemError(
                    errno.EOPNOTSUPP, f"the memory of binding {binding} cannot be mapped to be read"
                )
            mapped = Mapped.of(provider, self.place) if provider.device == self.place.device else None
            found = self._memory[binding] = provider, mapped
        return found

    def put(self, message: DevmemMessage, to: int) -> int:
        """Copy a message's bytes to address ``to``; how many. Its tokens are not given back."""
        done = len(message.linear)
        if done:
            self.place.store(to, message.linear)
        if len(message.frags):
            rows = rows_of(message)
            provider, mapped = self.memory(binding_of(rows))
            base = mapped.address if mapped is not None else 0
            if not isinstance(self.place, Host):
                done += self.place.gather(provider, base, rows, to + done)
            elif mapped is None:
                done += provider.gather(rows, to + done)
            else:
                with provider.cpu_access():
                    done += gather(base, rows, len(rows), to + done)
        return done

    def pool_of(self, provider: AreaProvider, offset: int) -> PagePool | None:
        """The pool that the netmem at an offset of a memory came from. Under the lock."""
        index = offset >> provider.area.shift
        owner = NetmemRecord.nth(provider.area.record.netmems, index).pool
        return next((pool for pool in self.dev.pools.values() if pool.id == owner), None)


def rows_of(message: DevmemMessage) -> Words:
    """A message's frags as int64, shape (n, 3): offset, size | token << 32, dmabuf_id."""
    return message.frags.view(np.int64).reshape(-1, 3)


def binding_of(rows: Words) -> int:
    """The dmabuf_id of the first of ``rows_of``."""
    return int(rows.item(0, 2) & 0xFFFFFFFF)


class Run:
    """Frags that lie end to end: the beginning of an array that needs no copy."""

    def __init__(self, gatherer: Gatherer, align: int) -> None:
        self._gatherer, self._align = gatherer, align
        self._view: View | None = None
        self._start = self.size = self._binding = 0

    def add(self, message: DevmemMessage) -> bool:
        """Take a message's frags too. False: they lie elsewhere, or must be copied for another reason."""
        if message.linear or not len(message.frags):
            return False
        rows = rows_of(message)
        size = run_of(rows, len(rows), self._start + self.size if self._view is not None else -1)
        if size < 0 or (self._view is not None and binding_of(rows) != self._binding):
            return False
        with self._gatherer.lock:
            if self._view is None and not self._begin(rows):
                return False
            if self._view is None or not self._view.hold.add(rows):
                return False
        self.size += size
        return True

    def _begin(self, rows: Words) -> bool:
        """The first frags decide where the array would lie. False: it cannot lie there."""
        self._binding = binding_of(rows)
        provider, mapped = self._gatherer.memory(self._binding)
        offset = rows.item(0, 0)
        pool = self._gatherer.pool_of(provider, offset)
        if pool is None or mapped is None or not mapped.writable:
            return False
        address = mapped.address + offset
        if address % self._align:
            return False
        self._start = offset
        hold = Hold(self._gatherer.dev, pool, mapped, provider)
        later, place = self._gatherer.later, self._gatherer.place
        self._view = View(address, provider.size - offset, hold, later, place)
        return True

    def array(self) -> Any:
        """What was taken so far, as bytes, which keep it."""
        if self._view is None:
            return self._gatherer.place.empty(0)
        self._view.hold.open()
        return self._gatherer.place.view(self._view, self.size)


def gatherers(dev: NetDevice, later: Later, device: str) -> tuple[Gatherer, Gatherer | None]:
    """For a reader: to this host, and to a GPU ("cuda:0") where arrays are to be there. EINVAL; ENODEV."""
    host = Gatherer(dev, later)
    if not device:
        return host, None
    from netmem.inet.gpu import OnGpu  # with all of CUDA: for those only who want it

    return host, Gatherer(dev, later, OnGpu(device))
