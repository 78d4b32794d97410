"""R3: payload is allocated, addressed and released by the netmem calls, and tracked by reference."""

from __future__ import annotations

from netmem.contract.rig import PORT, QUEUE, MakeDriver, Rig, payload

SIZE = 200_000


def check_r3_netmem(make_driver: MakeDriver, memory: str = "dmabuf") -> str:
    """Traffic, a restart and unbinding, without a page call on payload or a reference not the pool's."""
    with Rig(make_driver, memory) as rig:
        rig.bind()
        ours, theirs, _ = rig.net.connect(PORT)
        for seed in (1, 2):
            got, _ = rig.send(theirs, ours, payload(SIZE, seed))
            if got != payload(SIZE, seed):
                raise AssertionError("what arrived is not what was sent")
            rig.inspect()
            rig.dev.queues.restart(rig.dev.rx_queues[QUEUE])
        if rig.net.binding is not None:
            ours.close()
            rig.net.run(3)
            rig.net.binding.close()
        rig.inspect()
    return f"{2 * SIZE} bytes, a restart and unbinding without a page call; every reference the pool's own"
