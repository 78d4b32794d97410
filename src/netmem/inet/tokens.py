"""What an application holds of received payload: frags, and the tokens with which it gives them back."""

from __future__ import annotations

import ctypes
import errno
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from netmem.base.arena import Arena, Words
from netmem.base.errors import NetmemError
from netmem.base.frags import FRAG
from netmem.inet.tcp.connections import Connections
from netmem.inet.tcp.receive import (
    Returned,
    TokenSlot,
    TokenTable,
    return_tokens,
    tokens_back,
    tokens_repeated,
)
from netmem.memory import sanitizer
from netmem.memory.page_pool import PagePool
from netmem.netdev.device import NetDevice

TOKEN = FRAG["frag_token"]
MAX_TOKENS = (1 << 31) - 1
RELEASED, OTHERS = int(Returned.RELEASED), int(Returned.OTHERS)


def named_tokens(tokens: npt.ArrayLike, capacity: int) -> Words:
    """The tokens that a call is asked to free, of a table of ``capacity``. EINVAL for what names none."""
    wanted = np.asarray(tokens)
    if wanted.dtype.kind not in "iu" and wanted.size:
        raise NetmemError(errno.EINVAL, "tokens are integers, or (first, count) ranges of them")
    if wanted.ndim == 2:
        if wanted.shape[1] != 2:
            raise NetmemError(errno.EINVAL, f"ranges are (first, count), not {wanted.shape[1]} numbers")
        pieces = []
        for first, number in wanted.tolist():
            begin, end = max(first, 1), min(first + max(number, 0), capacity + 1)
            pieces.append(np.arange(begin, max(begin, end)))
        wanted = np.concatenate(pieces) if pieces else np.zeros(0)
    return np.atleast_1d(wanted).astype(np.int64)


def is_plain(tokens: object) -> TypeGuard[npt.NDArray[Any]]:
    """True for arrays that a kernel takes as they are: such as a message's ``frags["frag_token"]``."""
    if type(tokens) is not np.ndarray or tokens.ndim != 1:
        return False
    kind, flags = tokens.dtype, tokens.flags
    return flags.writeable and (kind is TOKEN or kind == TOKEN or (kind == np.int64 and flags.c_contiguous))


def blame_caller(dev: NetDevice, queue: int) -> None:
    """For the sanitiser: it is who called us that works on a queue's memory."""
    pool = dev.rx_queues[queue].pool if queue < len(dev.rx_queues) else None
    if pool is not None:
        sanitizer.called(pool.area.record)


def pool_of(dev: NetDevice, handle: int) -> PagePool:
    """A pool by the handle that travels with its buffers; the sanitiser notes who asks."""
    pool = dev.pools[handle]
    if sanitizer.ON:
        sanitizer.called(pool.area.record)
    return pool


class Tokens:
    """A socket's token table; grows as tokens are held. ``c``: its connection, -1 without one."""

    def __init__(self, conns: Connections, c: int, capacity: int = 1024) -> None:
        self._owner = conns.at, c
        self._arena = self._lay_out(capacity)
        stack = self._stack()
        stack[:] = np.arange(capacity, 0, -1)
        self.record.free = capacity

    def _lay_out(self, capacity: int) -> Arena:
        """An arena for so many tokens, which ``record``, ``at`` its address, describes."""
        slots = ctypes.sizeof(TokenTable)
        stack = slots + capacity * ctypes.sizeof(TokenSlot)
        arena = Arena("tcp:tokens", stack + 8 * capacity)
        self.at = arena.address
        self.record = arena.record(TokenTable)
        self.record.capacity = capacity
        self.record.owner, self.record.connection = self._owner
        self.record.slots, self.record.stack = self.at + slots, self.at + stack
        return arena

    def _slots(self) -> npt.NDArray[Any]:
        return self._arena.table(TokenSlot, ctypes.sizeof(TokenTable), self.record.capacity)

    def _stack(self) -> Words:
        return self._arena.bytes[self.record.stack - self.at :].view(np.int64)[: self.record.capacity]

    def reserve(self, n: int) -> None:
        """Have at least ``n`` free tokens (or as many as there can ever be)."""
        free, capacity = self.record.free, self.record.capacity
        if free >= n:
            return
        spare, used, before = self._stack()[:free].copy(), self._slots(), self._arena
        new = min(2 * max(capacity, n), MAX_TOKENS)
        self._arena = self._lay_out(new)
        self._slots()[:capacity] = used
        stack, fresh = self._stack(), new - capacity
        stack[:fresh] = np.arange(new, capacity, -1)
        stack[fresh : fresh + free] = spare
        self.record.free = fresh + free
        before.close()

    @property
    def fd(self) -> int:
        """Descriptor of the arena."""
        return self._arena.fd

    def held(self) -> int:
        """Tokens that the application has."""
        return self.record.capacity - self.record.free

    def all(self) -> npt.NDArray[np.int64]:
        """The tokens that the application has."""
        return np.flatnonzero(self._slots()["netmem"]) + 1

    def close(self) -> None:
        self._arena.close()

    def dontneed(self, conns: Connections, c: int, tokens: npt.ArrayLike) -> int:
        """SO_DEVMEM_DONTNEED: free what ``tokens`` names; how many. EINVAL, SanitizerError.

        ``c``: the connection whose window that may open, or -1; TokenTable.due says that it should be told.
        """
        freed, left, repeated = 0, True, 0
        if sanitizer.ON:
            tokens = named_tokens(tokens, self.record.capacity)
            repeated = tokens_repeated(self.at, tokens)
        if c >= 0 and is_plain(tokens):
            if sanitizer.ON:
                blame_caller(conns.dev, conns.tcbs[c].queue)
            got = return_tokens(self.at, tokens)
            if got < RELEASED and not sanitizer.ON:
                return got
            freed, left = got & (RELEASED - 1), got >= OTHERS
            if got & RELEASED:
                conns.dev.pools[conns.record.accounts[conns.tcbs[c].queue].pool].flush()
        if left:
            freed += self.give_back(conns, c, named_tokens(tokens, self.record.capacity))
        if sanitizer.ON:
            conns.dev.watch.check()
            if repeated:
                sanitizer.token_twice(repeated)
        return freed

    def give_back(self, conns: Connections, c: int, tokens: Words) -> int:
        """Free tokens; how many there were. ``c``: the connection whose window that may open, or -1."""
        freed, n = 0, len(tokens)
        while n:
            handle = self._pool_of(tokens, n)
            if not handle:
                break
            pool = pool_of(conns.dev, handle)
            freed += tokens_back(conns.at, c, self.at, tokens, n, pool.at)
            if pool.record.released:
                pool.flush()
            n = self.record.left
        return int(freed)

    def _pool_of(self, tokens: Words, n: int) -> int:
        """Handle of the pool that the first known of ``n`` tokens belongs to, 0 when none is known."""
        wanted, capacity, slots = tokens.data, self.record.capacity, self.record.slots
        for i in range(n):
            if 1 <= wanted[i] <= capacity:
                slot = TokenSlot.nth(slots, wanted[i] - 1)
                if slot.netmem:
                    return slot.pool
        return 0
