"""Netmem that is sent: TX1 and TX2."""

from __future__ import annotations

from netmem.contract.mutants.base import breaks
from netmem.drivers.base import RingDriver
from netmem.netdev.tx import Tx

# -- TX1 --------------------------------------------------------------------------------------------


class _Transmits(RingDriver):
    """What drivers that do too much on transmit have in common."""

    def payload_rows(self) -> list[int]:
        """I/O addresses of the device memory that waits to be sent."""
        tx = self.dev.tx
        rows = (tx.row(n) for n in range(tx.record.sent, tx.record.filled))
        return [row.payload for row in rows if row.flags & Tx.NETMEM]


@breaks("TX1")
class UnmapsPayload(_Transmits):
    """Unmaps what it sent as if it had mapped it (dma_unmap_page() on every fragment)."""

    def xmit(self) -> None:
        sent = self.payload_rows()
        super().xmit()
        for io in sent:
            self.bus.dma_unmap(io)


@breaks("TX1")
class SyncsPayload(_Transmits):
    """Syncs payload for the device before it sends it."""

    def xmit(self) -> None:
        for io in self.payload_rows():
            self.bus.sync_for_device(io, 1)
        super().xmit()


@breaks("TX1", on_igb=False)  # QEMU's reads a packet when it is posted: nothing can be too early
class CompletesEarly(_Transmits):
    """Calls packets done when they are posted, not when the device has read them."""

    def xmit(self) -> None:
        super().xmit()
        tx = self.dev.tx
        tx.record.completed = tx.record.sent


@breaks("TX1")
class NeverCompletes(_Transmits):
    """Never calls a packet with netmem done."""

    def xmit(self) -> None:
        sent, before = self.payload_rows(), self.dev.tx.record.completed
        super().xmit()
        self._stuck = getattr(self, "_stuck", False) or bool(sent)
        if self._stuck:
            self.dev.tx.record.completed = before


@breaks("TX1")
class SendsTheNextByte(_Transmits):
    """Adds one to a netmem's address, as if it had a pad before it."""

    def xmit(self) -> None:
        tx = self.dev.tx
        for n in range(tx.record.sent, tx.record.filled):
            row = tx.row(n)
            if row.flags & Tx.NETMEM:
                row.payload += 1
        super().xmit()


# -- TX2 --------------------------------------------------------------------------------------------


@breaks("TX2")
class SaysNothing(RingDriver):
    """Does not declare netmem_tx."""

    netmem_tx = None  # type: ignore[assignment]


@breaks("TX2")
class SaysYes(RingDriver):
    """Declares netmem_tx as if it were a switch."""

    netmem_tx = True  # type: ignore[assignment]


@breaks("TX2")
class SaysSomethingElse(RingDriver):
    """Declares a kind of transmit that does not exist."""

    netmem_tx = 7  # type: ignore[assignment]


@breaks("TX2")
class SaysAWord(RingDriver):
    """Declares netmem_tx by a name of its own."""

    netmem_tx = "dma"  # type: ignore[assignment]
