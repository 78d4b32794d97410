"""What a network driver must do, and the configuration it is asked to follow."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from netmem.base.arena import Arena
from netmem.base.dma import DmaDevice
from netmem.base.ethtool import SteeringRule, TcpDataSplit
from netmem.memory.page_pool import PagePool
from netmem.memory.params import PoolOwner
from netmem.netdev.batch import RxBatch
from netmem.netdev.tx import TxQueue


@dataclass(frozen=True, kw_only=True)
class RingParams:
    """struct ethtool_ringparam and kernel_ethtool_ringparam: descriptors, bytes, split, threshold.

    ``rx_buf_len`` 0: nobody set it. A buffer is as large as the queue's pages where the NIC fills them,
    else 4 KiB.
    """

    rx_pending: int = 1024
    tx_pending: int = 1024
    rx_buf_len: int = 0
    tcp_data_split: TcpDataSplit = TcpDataSplit.UNKNOWN
    hds_thresh: int = 0


@dataclass(frozen=True, kw_only=True)
class CoalesceParams:
    """struct ethtool_coalesce: how long a device gathers packets before it interrupts again.

    ``rx_usecs``: at most so long, from one interrupt to the next, in microseconds. ``use_adaptive_rx``: less
    than that while few packets come. What comes after a pause is told of at once in either case.
    """

    rx_usecs: int = 0
    use_adaptive_rx: bool = False


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """struct netdev_queue_config: what one receive queue is to be made with."""

    rx_page_size: int
    ring: RingParams


class NetmemTx(enum.IntEnum):
    """enum netdev_netmem_tx: which netmem a driver can transmit."""

    NONE = 0  # readable memory only
    DMA = 1  # any netmem that is mapped for its own device
    NO_DMA = 2  # unreadable netmem too, because it never touches nor maps it


class Netdev(PoolOwner, Protocol):
    """struct net_device as far as a driver uses it: what ``open`` is handed, and pools are made for.

    ``tx``: the transmit queue.
    """

    mtu: int
    tx: TxQueue

    @property
    def now(self) -> int:
        """Time of the last poll, ns."""

    def register_pool(self, pool: PagePool) -> int:
        """A handle for a pool, to travel with the buffers that come from it."""

    def set_queue_pool(self, index: int, pool: PagePool | None) -> None:
        """The driver started a queue with this payload pool, or stopped it."""

    def reap(self, now: int) -> None:
        """Pools were destroyed: forget those that came to their end."""


@runtime_checkable
class QueueMem(Protocol):
    """What ``queue_mem_alloc`` makes. ``arena``: begins with the queue's RxRingRecord, for tools."""

    arena: Arena


class NetDeviceOps(Protocol):
    """struct net_device_ops, NAPI and the interrupt.

    ``hw_features``: names of what ``set_features`` can turn on (rx_gro_hw). ``netmem_tx``: what it
    can transmit (TX2).
    """

    max_mtu: ClassVar[int]
    netmem_tx: ClassVar[NetmemTx]
    hw_features: ClassVar[frozenset[str]]

    def open(self, dev: Netdev) -> None:
        """ndo_open: set up the device; queues are started by netdev through the queue operations."""

    def stop(self) -> None:
        """ndo_stop: the device stops; queues were stopped before."""

    def dma_device(self) -> DmaDevice | None:
        """The device that does the DMA (netdev->dev.parent), None when it cannot."""

    def mac_address(self) -> int: ...

    def set_mtu(self, mtu: int) -> None: ...

    def link_up(self) -> bool:
        """True when there is a link (netif_carrier_ok)."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        """Move up to ``budget`` descriptors' packets into ``batch`` (GRO included); how many."""

    def rx_refill(self, queue: int, batch: RxBatch) -> None:
        """Post buffers: those that the stack left in ``batch`` and new ones from the pools."""

    def xmit(self) -> None:
        """ndo_start_xmit for all rows that wait in the transmit queue; clean completed ones."""

    def has_work(self) -> bool:
        """True when a received packet or a completed transmit row waits."""

    def irq_arm(self) -> None: ...
    def irq_ack(self) -> None: ...
    def irq_fd(self) -> int: ...
    def filenos(self) -> list[int]: ...
    def is_alive(self) -> bool: ...
    def close(self) -> None: ...

    def set_features(self, features: frozenset[str]) -> None:
        """ndo_set_features: those of ``hw_features`` that are to be on."""


class EthtoolOps(Protocol):
    """struct ethtool_ops. ``supported_ring_params``: names of RingParams fields it can set."""

    supported_ring_params: ClassVar[frozenset[str]]
    hds_thresh_max: ClassVar[int]
    max_rx_queues: int

    def set_ringparam(self, params: RingParams) -> None:
        """ethtool set_ringparam; netdev restarts the queues afterwards."""

    def set_rxfh(self, key: bytes, indirection: list[int]) -> None: ...
    def set_rules(self, rules: list[SteeringRule]) -> None: ...
    def get_ethtool_stats(self) -> dict[str, int]: ...
    def get_queue_stats(self, queue: int) -> dict[str, int]: ...


@runtime_checkable
class CoalesceOps(Protocol):
    """What of struct ethtool_ops is about interrupt moderation; a driver need not have it."""

    def get_coalesce(self) -> CoalesceParams: ...

    def set_coalesce(self, params: CoalesceParams) -> None:
        """EINVAL for what the device cannot have."""


class QueueMgmtOps(Protocol):
    """struct netdev_queue_mgmt_ops.

    ``queue_mgmt_ops``: False for a driver whose queues cannot be restarted one by one.
    ``supports_rx_page_size``: QCFG_RX_PAGE_SIZE. ``mem`` is what ``queue_mem_alloc`` made.
    """

    queue_mgmt_ops: ClassVar[bool]
    supports_rx_page_size: ClassVar[bool]

    def validate_qcfg(self, qcfg: QueueConfig, queue: int) -> None:
        """ndo_validate_qcfg: raise for a configuration that the device cannot have."""

    def queue_mem_alloc(self, qcfg: QueueConfig, queue: int) -> QueueMem:
        """ndo_queue_mem_alloc: rings and page pools for a queue, not yet seen by the device."""

    def queue_mem_free(self, mem: Any) -> None:
        """ndo_queue_mem_free."""

    def queue_start(self, mem: Any, queue: int) -> None:
        """ndo_queue_start: the device receives into ``mem``."""

    def queue_stop(self, queue: int) -> Any:
        """ndo_queue_stop: the device stops using the queue's memory, which is returned."""


class Driver(NetDeviceOps, EthtoolOps, QueueMgmtOps, Protocol):
    """The kernel's three tables of operations. ``device_ids``: (vendor, device) pairs it drives."""

    name: ClassVar[str]
    device_ids: ClassVar[tuple[tuple[int, int], ...]]
