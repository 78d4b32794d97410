"""R1: payload comes from a page pool that was made for the queue, and goes back to it."""

from __future__ import annotations

import errno

from netmem.base.errors import NetmemError
from netmem.contract.report import Violation
from netmem.contract.rig import PORT, QUEUE, MakeDriver, Rig, device_model, payload
from netmem.memory.ref import tag_of
from netmem.testing import frames

BUFFERS, SENT = (1024, 2048, 4096), 30_000
JUMBO = 9000
RING = 64
ODD = {"softnic": (97, 23), "igb": (768, 32)}  # netmems; what QEMU's bus can map is a power of two, or in MiB


def check_r1_page_pool(make_driver: MakeDriver, memory: str = "dmabuf") -> str:
    """A bound provider's memory is what the NIC writes to, and all of it is there again after unbinding."""
    with Rig(make_driver, memory, alone=True) as rig:
        try:
            rig.bind()
        except NetmemError as error:
            if error.errno == errno.ENODATA:
                raise Violation("R1", f"no page pool with the provider: {error}") from None
            raise
        provider = rig.provider
        assert provider is not None
        posted = provider.area.count - provider.area.free
        if not posted:
            raise Violation("R1", "the queue runs, and no netmem was taken from the provider")
        rig.lead(QUEUE)
        rows = rig.rows(frames.tcp(payload(1000)))
        used = [row.netmem for row in rows if row.size]
        if not used:
            raise Violation("R1", "1000 bytes of payload came in no buffer")
        if any(tag_of(ref) != provider.area.record.tag for ref in used):
            raise Violation("R1", "payload came in memory that is not the provider's")
        rig.inspect()
        rig.unbind()
        rig.inspect()
        _raise_own(rig)
    _raise_own(rig)
    return f"{posted} netmems taken from the provider for queue {QUEUE}, all back after unbinding"


def check_r1_buffer_sizes(make_driver: MakeDriver, memory: str = "dmabuf") -> str:
    """Whatever size of buffer is set, a queue receives into it."""
    with Rig(make_driver, memory) as rig:
        if "rx_buf_len" not in rig.dev.driver.supported_ring_params:
            return "no size of buffers to set, and none claimed"
        rig.bind()
        ours, theirs, _ = rig.net.connect(PORT)
        for size in BUFFERS:
            rig.dev.ethtool.set_ringparam(rx_buf_len=size)
            got, _ = rig.send(theirs, ours, payload(SENT, size))
            if got != payload(SENT, size):
                raise AssertionError("what arrived is not what was sent")
    return f"{SENT} bytes each through buffers of {', '.join(map(str, BUFFERS))} bytes"


def check_r1_jumbo_frames(make_driver: MakeDriver, memory: str = "dmabuf") -> str:
    """The largest frames come through, each in as many buffers as it takes."""
    mtu = min(JUMBO, int(getattr(make_driver, "max_mtu", 1500)))
    if mtu <= BUFFERS[-1]:
        return f"frames of up to {mtu} bytes, and no more claimed"
    with Rig(make_driver, memory, mtu=mtu) as rig:
        rig.bind()
        ours, theirs, _ = rig.net.connect(PORT)
        for seed in (1, 2):
            got, _ = rig.send(theirs, ours, payload(10 * SENT, seed))
            if got != payload(10 * SENT, seed):
                raise AssertionError("what arrived is not what was sent")
            if "rx_buf_len" in rig.dev.driver.supported_ring_params:
                rig.dev.ethtool.set_ringparam(rx_buf_len=BUFFERS[0])
    return f"{20 * SENT} bytes in frames of {mtu}"


def check_r1_scarce_memory(make_driver: MakeDriver, memory: str = "dmabuf") -> str:
    """Memory of odd sizes, and less than the ring has places: what comes back is posted again."""
    counts = ODD[device_model(make_driver)]
    for count in counts:
        with Rig(make_driver, memory) as rig:
            rig.dev.ethtool.set_ringparam(rx_pending=RING)
            rig.bind(size=4096 * count)
            ours, theirs, _ = rig.net.connect(PORT)
            for seed in (1, 2):  # the application has most of it, and gives all back
                got, tokens = rig.send(theirs, ours, payload(8 * 1024, seed), keep=True)
                more, _ = rig.send(theirs, ours, payload(SENT, seed))
                if got + more != payload(8 * 1024, seed) + payload(SENT, seed):
                    raise AssertionError("what arrived is not what was sent")
                ours.devmem_dontneed(tokens)
            ours.close()
            rig.net.run(3)
            rig.unbind()
    return f"{' and '.join(map(str, counts))} netmems serve a ring of {RING}, and all come back"


def _raise_own(rig: Rig) -> None:
    for requirement, text in rig.notes:
        if requirement == "R1":
            raise Violation("R1", text)
