"""What a driver has set up on a gve by its commands: interrupts, queues, steering, settings."""

from __future__ import annotations

from functools import partial

from netmem.hw.gve import layout as ly
from netmem.hw.gve.port import NotifyBlock, Port
from netmem.hw.gve.rx import RxQueue
from netmem.hw.gve.steering import Steering
from netmem.hw.gve.tx import TxQueue


class Setup:
    """Empty after a reset. ``stats_report``: address and bytes of the driver's memory for it.

    ``management``: interrupt vector for what is no queue's business, -1 before there is one.
    """

    def __init__(self, port: Port) -> None:
        self._port = port
        self.steering = Steering(port.config.queues)
        self.driver_info: ly.DriverInfo | None = None
        self.mtu = port.config.mtu
        self.stats_report: tuple[int, int] | None = None
        self.blocks: list[NotifyBlock] = []
        self.deconfigure()

    def configure(self, count: int, base: int) -> None:
        """Set up ``count`` notify blocks from vector ``base`` on; the one behind them is for management."""
        self.blocks = [NotifyBlock(partial(self._port.interrupt, base + i)) for i in range(count)]
        self.management = base + count

    def deconfigure(self) -> None:
        """Queues and notify blocks are gone."""
        self.blocks = []
        self.management = -1
        self.tx_queues: dict[int, TxQueue] = {}
        self.rx_queues: dict[int, RxQueue] = {}
