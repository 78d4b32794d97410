"""What mutants have in common: which requirement each breaks, on which NICs; rings with other pools."""

from __future__ import annotations

import dataclasses
from typing import Any

from netmem.base.dma import DmaDevice
from netmem.base.ethtool import TcpDataSplit
from netmem.drivers.base import RingDriver
from netmem.drivers.igb import IgbDriver
from netmem.drivers.softnic import SoftnicDriver
from netmem.memory.params import PagePoolParams
from netmem.netdev.batch import RxBatch, RxRow
from netmem.netdev.driver import Netdev, QueueConfig
from netmem.netdev.rx import RxRing

BREAKS: dict[str, str] = {}  # by a mutant's name
SOFTNIC: dict[str, type[SoftnicDriver]] = {}
IGB: dict[str, type[IgbDriver]] = {}  # those that are about no NIC's registers
PACKAGE = "netmem.contract.mutants"
LATER = 2  # the first queue that a rig with two queues does not have


def breaks(requirement: str, *, on_igb: bool = True) -> Any:
    """Note which requirement a mutant breaks. One of ``RingDriver`` is made for both NICs, if ``on_igb``."""

    def note(cls: type[RingDriver]) -> type[RingDriver]:
        name, about = cls.__name__, {"__doc__": cls.__doc__}
        BREAKS[name] = requirement
        if issubclass(cls, SoftnicDriver):
            SOFTNIC[name] = cls
            return cls
        if on_igb:
            IGB[name] = type(name, (cls, IgbDriver), {**about, "__module__": f"{PACKAGE}.igb"})
        SOFTNIC[name] = type(name, (cls, SoftnicDriver), {**about, "__module__": PACKAGE})
        return SOFTNIC[name]

    return note


def ring_with(**changes: Any) -> type[RxRing]:
    """A receive ring whose payload pool has other parameters."""

    class Ring(RxRing):
        @staticmethod
        def pool_params(dev: Netdev, dma: DmaDevice, qcfg: QueueConfig, queue: int) -> PagePoolParams:
            return dataclasses.replace(RxRing.pool_params(dev, dma, qcfg, queue), **changes)

    return Ring


def ring_of_later_queues(**changes: Any) -> type[RxRing]:
    """A receive ring whose payload pool has other parameters from queue 2 on."""

    class Ring(RxRing):
        @staticmethod
        def pool_params(dev: Netdev, dma: DmaDevice, qcfg: QueueConfig, queue: int) -> PagePoolParams:
            params = RxRing.pool_params(dev, dma, qcfg, queue)
            return dataclasses.replace(params, **changes) if queue >= LATER else params

    return Ring


def flags_by_split(on: int, off: int) -> type[RxRing]:
    """A receive ring whose payload pool has these extra bits (negative: lacks them) with split on and off."""

    class Ring(RxRing):
        @staticmethod
        def pool_params(dev: Netdev, dma: DmaDevice, qcfg: QueueConfig, queue: int) -> PagePoolParams:
            params = RxRing.pool_params(dev, dma, qcfg, queue)
            change = on if qcfg.ring.tcp_data_split == TcpDataSplit.ENABLED else off
            flags = params.flags | change if change >= 0 else params.flags & ~-change
            return dataclasses.replace(params, flags=flags)

    return Ring


def payload_rows(batch: RxBatch) -> list[RxRow]:
    """Rows with payload in a buffer of its own."""
    return [row for row in batch.used() if row.netmem and row.size]
