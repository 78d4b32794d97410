"""Binding a memory provider to receive queues (net/core/netdev-genl.c, netdev_rx_queue.c)."""

from __future__ import annotations

import contextlib
import errno
import itertools

from netmem.base.dma import DmaDevice, DmaDirection
from netmem.base.errors import NetmemError
from netmem.base.ethtool import TcpDataSplit
from netmem.memory import calls
from netmem.memory.area import Area
from netmem.memory.provider import MemoryProvider, check_size
from netmem.netdev.driver import NetmemTx
from netmem.netdev.queues import RxQueue, RxQueues

PAGE_SHIFT = 12
_ids = itertools.count(1)  # dma-buf binding ids: a cyclic u32 from 1, one space for the process


def bind_rx(rxqs: RxQueues, queues: list[int], provider: MemoryProvider) -> Binding:
    """netdev_nl_bind_rx_doit(): give ``queues`` of a device a provider, all or none.

    Errors in the kernel's order: EINVAL no queues; ERANGE, EINVAL for the rx page size; ENODEV
    device gone; EOPNOTSUPP no queue management; EINVAL queue out of range; EOPNOTSUPP no DMA; EBADF
    provider closed; then per queue what ``open_rxq`` refuses. The same memory may be bound again, to other
    queues, for sending, or to another device: its netmem is shared.
    """
    if not queues:
        raise NetmemError(errno.EINVAL, "bind-rx: attribute queues is missing")
    check_size(provider.size, 1 << provider.area.shift)
    if not rxqs.is_present():
        raise NetmemError(errno.ENODEV, f"{rxqs.name}: the device is not present")
    if not rxqs.driver.queue_mgmt_ops:
        raise NetmemError(errno.EOPNOTSUPP, f"{rxqs.driver.name} has no queue management operations")
    for index in queues:
        if not 0 <= index < len(rxqs.queues):
            raise NetmemError(
                errno.EINVAL, f"{rxqs.name} has no receive queue {index}: it has {len(rxqs.queues)}"
            )
    dma = rxqs.driver.dma_device()
    if dma is None:
        raise NetmemError(errno.EOPNOTSUPP, f"{rxqs.name} does not support DMA")
    if provider.unreadable:
        provider.attach(dma)
    binding = Binding(rxqs, provider, dma)
    rxqs.bindings.append(binding)
    try:
        for index in dict.fromkeys(queues):  # a queue named twice is accepted, as in the kernel
            open_rxq(rxqs, index, provider, binding.id)
            binding.queues.append(index)
    except BaseException:
        binding.close()
        raise
    return binding


def open_rxq(rxqs: RxQueues, index: int, provider: MemoryProvider, binding: int = 0) -> None:
    """netif_mp_open_rxq(): check, set the provider, restart the queue; undone when that fails.

    ERANGE index out of range; EINVAL tcp-data-split not enabled; EINVAL hds-thresh not 0;
    EOPNOTSUPP rx page size unsupported; EEXIST provider already there; then the driver's own.
    """
    if index >= len(rxqs.queues):
        raise NetmemError(errno.ERANGE, f"rx queue index {index} out of range")
    ring = rxqs.ring
    if ring.tcp_data_split != TcpDataSplit.ENABLED:
        raise NetmemError(errno.EINVAL, "tcp-data-split is disabled: turn it on before binding memory")
    if ring.hds_thresh:
        raise NetmemError(errno.EINVAL, f"hds-thresh is {ring.hds_thresh}: set it to 0 before binding memory")
    if provider.area.shift != 12 and not rxqs.driver.supports_rx_page_size:
        text = f"{rxqs.driver.name} takes netmems of 4096 bytes only: leave the rx page size at that"
        raise NetmemError(errno.EOPNOTSUPP, text)
    queue = rxqs.queues[index]
    if queue.mp_params is not None:
        raise NetmemError(errno.EEXIST, f"receive queue {index} already has a memory provider bound")
    queue.mp_params, queue.binding_id = provider, binding
    try:
        rxqs.restart(queue)
    except BaseException:
        queue.mp_params, queue.binding_id = None, 0
        raise


def close_rxq(rxqs: RxQueues, queue: RxQueue) -> None:
    """netif_mp_close_rxq(): back to ordinary pages."""
    queue.mp_params, queue.binding_id = None, 0
    if rxqs.is_present():
        rxqs.restart(queue)


class Binding:
    """struct net_devmem_dmabuf_binding: memory bound to queues; ``close`` unbinds.

    ``id`` is what received frags name (dmabuf_id). The mapping for the device ends when the last
    page pool with it is gone, that is when all tokens came back.
    """

    def __init__(self, rxqs: RxQueues, provider: MemoryProvider, dma: DmaDevice) -> None:
        self._rxqs, self.provider, self._dma = rxqs, provider, dma
        self.id = next(_ids)
        self.queues: list[int] = []
        self._closed = False

    def close(self) -> None:
        """Unbind all queues; they restart with ordinary pages."""
        with self._rxqs.lock:
            if self._closed:
                return
            self._closed = True
            with contextlib.ExitStack() as ends:  # every queue is unbound, even if one before it failed
                ends.callback(self._rxqs.changed)
                ends.callback(self._rxqs.reap, self._rxqs.now)
                for index in reversed(self.queues):
                    if index < len(self._rxqs.queues):
                        ends.callback(close_rxq, self._rxqs, self._rxqs.queues[index])

    def is_over(self) -> bool:
        """True once it is closed and nobody uses the memory any more."""
        return self._closed and all(pool.binding_id != self.id for pool in self._rxqs.pools.values())

    def end(self) -> None:
        """It is over: end the mapping."""
        if self.provider.unreadable:
            self.provider.detach(self._dma)

    def outstanding(self) -> int:
        """Netmems of this memory that no pool and no free list has."""
        area = self.provider.area
        held = area.count - area.free
        for pool in self._rxqs.pools.values():
            if pool.provider is self.provider:
                held -= pool.inflight() - pool.outstanding()
        return held

    def __enter__(self) -> Binding:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def bind_tx(rxqs: RxQueues, bindings: list[TxBinding], provider: MemoryProvider) -> TxBinding:
    """netdev_nl_bind_tx_doit(): let sockets of a device send straight from ``provider``'s memory.

    ENODEV device gone; EOPNOTSUPP for a driver that cannot transmit netmem, or a device without DMA.
    The memory may be bound for receiving too; the two bindings know nothing of each other.
    """
    if not rxqs.is_present():
        raise NetmemError(errno.ENODEV, f"{rxqs.name}: the device is not present")
    if rxqs.driver.netmem_tx == NetmemTx.NONE:
        raise NetmemError(errno.EOPNOTSUPP, f"{rxqs.driver.name} does not support netmem TX")
    dma = rxqs.driver.dma_device()
    if dma is None or rxqs.driver.netmem_tx == NetmemTx.NO_DMA:
        raise NetmemError(errno.EOPNOTSUPP, f"{rxqs.name}: no DMA-capable device found")
    binding = TxBinding(rxqs, bindings, provider, dma, provider.attach(dma, DmaDirection.TO_DEVICE))
    bindings.append(binding)
    return binding


class TxBinding:
    """struct net_devmem_dmabuf_binding for transmit: memory that sockets may send from.

    ``id`` is what sendmsg names (SCM_DEVMEM_DMABUF). ``area`` has one net_iov for each page, with the
    references that sends in flight hold. The mapping ends when the last of them is done.
    """

    def __init__(
        self, rxqs: RxQueues, bindings: list[TxBinding], provider: MemoryProvider, dma: DmaDevice, io: int
    ) -> None:
        self._rxqs, self._all = rxqs, bindings
        self.provider, self.io, self.size = provider, io, provider.size
        self._dma = dma
        self.id = next(_ids)
        self.area = Area(f"{provider.name}-tx", provider.size >> PAGE_SHIFT, PAGE_SHIFT, net_iov=True)
        self.in_flight = 0  # ranges that were sent and may still be read by the device
        self.closed = self._gone = False

    @property
    def ifname(self) -> str:
        """Name of the device that can send from the memory."""
        return self._rxqs.name

    def is_of(self, rxqs: RxQueues) -> bool:
        """True when that device is the one with these queues."""
        return self._rxqs is rxqs

    def hold(self, offset: int, size: int, now: int) -> None:
        """A send that names this range is in flight (net_devmem_get_net_iov)."""
        self.in_flight += 1
        calls.hold_range(self.area.at, offset, size, 1, now)

    def release(self, offset: int, size: int, now: int) -> None:
        """It is over: the device reads the range no more (net_devmem_put_net_iov)."""
        self.in_flight -= 1
        calls.hold_range(self.area.at, offset, size, -1, now)
        self.reap()

    def close(self) -> None:
        """Unbind: no new sends; the mapping ends with the last that is in flight."""
        with self._rxqs.lock:
            self.closed = True
            self.reap()

    def reap(self) -> None:
        """End the mapping once nothing is in flight."""
        if self.closed and not self.in_flight:
            self.end()

    def end(self) -> None:
        """End the mapping: the device reads nothing any more."""
        if self._gone:
            return
        self.closed = self._gone = True
        self._all.remove(self)
        self.provider.detach(self._dma, DmaDirection.TO_DEVICE)
        self.area.close()
        self._rxqs.changed()

    def __enter__(self) -> TxBinding:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
