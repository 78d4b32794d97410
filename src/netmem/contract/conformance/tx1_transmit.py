"""TX1: device memory is transmitted by the address it has; the driver neither maps, syncs nor unmaps it."""

from __future__ import annotations

from netmem.base.errors import NetmemError
from netmem.contract.report import Violation
from netmem.contract.rig import PORT, MakeDriver, Rig, never_mapped, payload
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.netdev.driver import NetmemTx

SIZE = 60_000
MEMORY_BYTES = 1 << 20
ROUNDS = 4000
PATIENCE = 20


def check_tx1_transmit(make_driver: MakeDriver, memory: str = "dmabuf") -> str:
    """Sends from memory that nobody here maps, and looks at bytes, DMA calls and completions."""
    with Rig(make_driver, "none") as rig:
        if rig.dev.driver.netmem_tx == NetmemTx.NONE:
            return "netmem_tx is NONE: no device memory reaches the driver"
        data = payload(SIZE)
        provider = DmabufProvider(MEMORY_BYTES, exporter="memfd")
        try:
            provider.write(0, data)
            try:
                binding = rig.dev.bind_tx(provider)
            except NetmemError as error:
                raise Violation("TX1", f"bind-tx is refused: {error}") from None
            rig.transmit = (binding.io, binding.io + binding.size)
            ours, theirs, _ = rig.net.connect(PORT)
            with never_mapped(provider):
                sent, got = 0, bytearray()
                for _ in range(ROUNDS):
                    if sent < SIZE and ours.writable():
                        sent += ours.sendmsg_devmem([(sent, SIZE - sent)], binding)
                        if sent == SIZE and rig.nic == "softnic":
                            _held(rig)
                    rig.net.run(1)
                    if theirs.queued():
                        got += theirs.recv(SIZE)
                    if len(got) == SIZE:
                        break
            if bytes(got) != data:
                same = sum(a == b for a, b in zip(got, data, strict=False))
                raise Violation("TX1", f"{len(got)} of {SIZE} bytes arrived, {same} of them right")
            rig.net.run(200)
            if binding.in_flight:
                raise Violation("TX1", f"{binding.in_flight} sends are never completed")
            segments = rig.net.ours.stack.conns.counters()["out_segs"]
            binding.close()
        finally:
            provider.close()
    return f"{SIZE} bytes in {segments} segments from memory that the driver has no mapping of"


def _held(rig: Rig) -> None:
    """While the wire takes nothing, nothing may be called done: the memory may be written anew then."""
    host = rig.net.ours
    for _ in range(PATIENCE):
        host.step(rig.net.clock.advance(1000))
    waiting = len(host.nic.wire.tx)  # type: ignore[union-attr]
    queue = rig.dev.tx.record
    undone = queue.sent - queue.completed
    if undone < waiting:
        raise Violation("TX1", f"{waiting - undone} packets are called done that the wire has not taken")
