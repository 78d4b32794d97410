"""Header split that is not the user's to set: R2."""

from __future__ import annotations

from typing import ClassVar

from netmem.base.record import publish
from netmem.contract.mutants.base import LATER, breaks
from netmem.drivers.base import RingDriver
from netmem.drivers.softnic import SoftnicDriver
from netmem.hw.softnic import regs as r
from netmem.netdev.rx import RxRing

# -- R2 ---------------------------------------------------------------------------------------------


@breaks("R2")
class SplitNotOffered(RingDriver):
    """Splits in hardware, and does not let users say so."""

    supported_ring_params: ClassVar[frozenset[str]] = frozenset({"rx_pending", "rx_buf_len"})


@breaks("R2")
class SplitNotProgrammed(RingDriver):
    """Accepts the setting, and never tells the device."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        mem.record.header_len = 0
        super().queue_start(mem, queue)


@breaks("R2")
class SplitStuck(SoftnicDriver):
    """Once on, split stays on in the device."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        super().queue_start(mem, queue)
        self._was_on = getattr(self, "_was_on", False) or mem.split
        if self._was_on and not mem.split:
            mem.record.header_len = 256
            publish(self.bus.regs.rxq[queue], "header_len", 256)
            publish(self.bus.regs.rxq[queue], "hds", r.HDS_ON)


@breaks("R2")
class ThresholdIgnored(SoftnicDriver):
    """Claims a threshold, and splits everything."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        super().queue_start(mem, queue)
        if mem.split:
            publish(self.bus.regs.rxq[queue], "hds", r.HDS_ON)


@breaks("R2")
class SplitOnTwoQueues(RingDriver):
    """Splits on the first two queues only."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        if queue >= LATER:
            mem.record.header_len = 0
        super().queue_start(mem, queue)


@breaks("R2")
class SplitLostOnRestart(RingDriver):
    """A queue that is restarted while split stays on does not split any more."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        before = self.__dict__.setdefault("_split", {})
        again, before[queue] = mem.split and before.get(queue, False), mem.split
        if again:
            mem.record.header_len = 0
        super().queue_start(mem, queue)


@breaks("R2")
class ThresholdTooLow(SoftnicDriver):
    """Forgets that the threshold is of the whole frame: it is 40 bytes off."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        super().queue_start(mem, queue)
        if mem.split and mem.params.hds_thresh:
            publish(self.bus.regs.rxq[queue], "hds", r.HDS_ON | max(mem.params.hds_thresh - 40, 0) << 8)


@breaks("R2")
class ThresholdOneOff(SoftnicDriver):
    """Splits what is longer than the threshold by more than one."""

    def queue_start(self, mem: RxRing, queue: int) -> None:
        super().queue_start(mem, queue)
        if mem.split and mem.params.hds_thresh:
            publish(self.bus.regs.rxq[queue], "hds", r.HDS_ON | (mem.params.hds_thresh + 1) << 8)
