"""Sends from device memory, from the call until the NIC is done with them (net/core/skbuff.c: ubuf_info).

The kernel numbers a socket's zero-copy sends from 0 and tells by ranges which are over
(SO_EE_ORIGIN_ZEROCOPY); only then may the memory be written anew.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from netmem.base.arena import Words
from netmem.base.errors import NetmemError
from netmem.inet.tcp import calls
from netmem.inet.tcp.connections import Connections
from netmem.netdev.binding import TxBinding
from netmem.netdev.device import NetDevice


@dataclass
class Completions:
    """A socket's numbers: those given out, and those whose sends are over but not told of yet."""

    given: int = 0
    pending: int = 0
    done: list[tuple[int, int]] = field(default_factory=list)

    def over(self, number: int) -> None:
        """A send is over; neighbours become one range."""
        self.pending -= 1
        if self.done and self.done[-1][1] + 1 == number:
            self.done[-1] = (self.done[-1][0], number)
        else:
            self.done.append((number, number))

    def take(self) -> list[tuple[int, int]]:
        """What was not told of yet, as ranges (first, last)."""
        told, self.done = self.done, []
        return told


@dataclass
class _Call:
    """One sendmsg_devmem() call whose spans are not all over."""

    number: int
    completions: Completions
    binding: TxBinding
    ranges: list[tuple[int, int]] = field(default_factory=list)  # that it holds
    left: int = 0  # spans

    def hold(self, offset: int, size: int, now: int) -> None:
        """Keep memory for the NIC to read."""
        self.binding.hold(offset, size, now)
        self.ranges.append((offset, size))

    def release(self, now: int) -> None:
        """Let go of what was held last."""
        self.binding.release(*self.ranges.pop(), now)


def as_ranges(frags: npt.ArrayLike, size: int) -> list[tuple[int, int]]:
    """(offset, size) pairs of an array of FRAG, or of shape (n, 2). EFAULT beyond ``size``; EINVAL."""
    array = np.asarray(frags)
    if not array.size:
        return []
    if array.dtype == object:  # a number that no memory has
        raise NetmemError(errno.EFAULT, f"these ranges do not lie in a binding of {size} bytes")
    if not array.dtype.names and array.dtype.kind not in "iu":
        raise NetmemError(errno.EINVAL, "offsets and sizes are integers")
    if array.dtype.names:
        array = np.stack([array["frag_offset"], array["frag_size"]], -1).astype(np.int64)
    if array.ndim == 1 and len(array) == 2:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != 2:
        raise NetmemError(errno.EINVAL, "frags are an array of FRAG, or pairs of offset and size")
    ranges: list[tuple[int, int]] = []
    for offset, length in array.astype(np.int64).tolist():
        if offset < 0 or length < 0 or offset + length > size:
            text = f"{length} bytes at offset {offset} do not lie in a binding of {size} bytes"
            raise NetmemError(errno.EFAULT, text)
        if length:
            ranges.append((offset, length))
    return ranges


class Zerocopy:
    """All sends from device memory of a stack."""

    def __init__(self, dev: NetDevice, conns: Connections) -> None:
        self._dev, self._conns = dev, conns
        self._calls: dict[int, _Call] = {}
        self._next = 1
        self._out: Words = np.zeros(256, np.int64)

    def check(self, binding: object) -> TxBinding:
        """The binding that a send names: EINVAL for one that is none, ENODEV for another device's."""
        if isinstance(binding, int):
            found = [b for b in self._dev.tx_bindings if b.id == binding]
            binding = found[0] if found else None
        if not isinstance(binding, TxBinding) or binding.closed:
            raise NetmemError(errno.EINVAL, "no transmit binding has this id: bind the memory with bind_tx")
        if not binding.is_of(self._dev.queues):
            raise NetmemError(
                errno.ENODEV, f"the memory is bound to {binding.ifname}, not to {self._dev.name}"
            )
        return binding

    def send(
        self, c: int, binding: TxBinding, ranges: list[tuple[int, int]], room: int, to: Completions
    ) -> int:
        """Queue up to ``room`` bytes of ``ranges`` on a connection; how many. ENOBUFS without an entry."""
        conns = self._conns
        number, call = self._begin(binding, to)
        taken = 0
        for offset, length in ranges:
            part = min(length, room - taken)
            if part <= 0:
                break
            call.hold(offset, part, conns.now)
            added = calls.add_span(conns.at, c, binding.io + offset, part, number)
            if added < 0:
                call.release(conns.now)
                break
            call.left += added
            taken += part
        if not taken:
            self._forget(number)
            raise NetmemError(errno.ENOBUFS, "no entry is left to note a send in")
        return taken

    def datagram(self, binding: TxBinding, ranges: list[tuple[int, int]], mark: int, to: Completions) -> None:
        """A datagram from device memory was put into the transmit queue, before row ``mark``."""
        conns = self._conns
        number, call = self._begin(binding, to)
        for offset, length in ranges:
            call.hold(offset, length, conns.now)
        call.left = 1
        if not calls.note_sent(conns.at, number, mark):
            self._forget(number)
            raise NetmemError(errno.ENOBUFS, "no entry is left to note a send in")

    def _begin(self, binding: TxBinding, to: Completions) -> tuple[int, _Call]:
        """A call's number in this stack, and the call.

        It is noted, and its memory held, before the NIC can read that: a signal's handler may raise anywhere.
        """
        number, self._next = self._next, self._next + 1
        call = self._calls[number] = _Call(to.given, to, binding)
        to.given += 1
        to.pending += 1
        return number, call

    def _forget(self, number: int) -> None:
        """Take a call back of which nothing was sent."""
        call = self._calls.pop(number)
        while call.ranges:
            call.release(self._conns.now)
        call.completions.given -= 1
        call.completions.pending -= 1

    def poll(self) -> bool:
        """Sends that the NIC is done with are over; True when there were any."""
        conns = self._conns
        found = False
        while True:
            n = calls.spans_done(conns.at, self._out)
            for number in self._out[:n].tolist():
                if (call := self._calls.get(number)) is None:
                    continue  # what a signal cut short may have more spans than were counted
                call.left -= 1
                if call.left <= 0:
                    self._over(number)
                    found = True
            if n < len(self._out):
                return found

    def _over(self, number: int) -> None:
        call = self._calls.pop(number)
        while call.ranges:
            call.release(self._conns.now)
        call.completions.over(call.number)
        self._conns.stats.zc_done += 1

    def close(self) -> None:
        """The stack goes away: what the NIC may still read is over when the device has stopped."""
        self.poll()
        if self._calls:
            self._dev.after_stop.append(self.poll)
