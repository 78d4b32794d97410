"""Drivers that do worse than break a requirement: the kit must report on them all the same."""

from __future__ import annotations

import os

from netmem.drivers.softnic import SoftnicDriver
from netmem.netdev.batch import RxBatch
from netmem.netdev.driver import Netdev, RingParams


class RaisesInOpen(SoftnicDriver):
    """Fails in a way of its own."""

    def open(self, dev: Netdev) -> None:
        raise RuntimeError("this driver was never finished")


class HangsInPoll(SoftnicDriver):
    """Never comes back from its first poll."""

    def napi_poll(self, queue: int, budget: int, batch: RxBatch) -> int:
        while True:
            pass


class KillsItsProcess(SoftnicDriver):
    """Takes the process with it when the ring is changed."""

    def set_ringparam(self, params: RingParams) -> None:
        os._exit(3)
