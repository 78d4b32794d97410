"""R5: the driver never looks at payload, and hands on what was not split as it is."""

from __future__ import annotations

from netmem.contract.report import Violation
from netmem.contract.rig import PORT, QUEUES, MakeDriver, Rig, never_mapped, payload
from netmem.testing import frames

SIZE = 300_000
SMALL = (1, 5, 100, 150, 1448, 3, 700, 42)


def check_r5_unreadable(make_driver: MakeDriver, memory: str = "dmabuf") -> str:
    """Traffic into memory that is not mapped here: looking at it faults, and ends the check."""
    with Rig(make_driver, memory) as rig:
        rig.bind()
        ours, theirs, _ = rig.net.connect(PORT)
        assert rig.provider is not None
        nic = 1 if rig.nic == "softnic" else 0  # one that is in this process has its own
        with never_mapped(rig.provider, nic):
            sent = memoryview(payload(SIZE))
            held = 0
            for _ in range(2000):
                if len(sent) and theirs.writable():
                    sent = sent[theirs.send(sent) :]
                rig.net.run(1)
                if ours.readable():
                    message = ours.recvmsg_devmem()
                    held += message.size
                    ours.devmem_dontneed(message.frags["frag_token"])
                if held == SIZE:
                    break
        if held != SIZE:
            raise TimeoutError(f"{held} of {SIZE} bytes arrived")
        got, _ = rig.send(theirs, ours, payload(50_000, 3))
        if got != payload(50_000, 3):
            raise Violation("R5", "payload in unreadable memory is not what was sent")
    return f"{SIZE} bytes through memory that this process never mapped"


def check_r5_not_split(make_driver: MakeDriver, memory: str = "none") -> str:
    """Frames that the device does not split, or only in part: ARP, short segments, many sizes in a row."""
    with Rig(make_driver, memory) as rig:
        rig.bind()
        if memory == "none" and "hds_thresh" in rig.dev.driver.supported_ring_params:
            rig.dev.ethtool.set_ringparam(hds_thresh=200)  # shorter frames come whole
        ours, theirs, _ = rig.net.connect(PORT)  # ARP, not split, has come through
        total = 0
        for n, size in enumerate(SMALL):
            data = payload(size, n)
            got, _ = rig.send(theirs, ours, data)
            if got != data:
                raise Violation("R5", f"a segment of {size} bytes did not come through as it was sent")
            total += size
        stats = [rig.dev.driver.get_queue_stats(queue) for queue in range(QUEUES)]
        misses = sum(s["hds_miss"] for s in stats)
    with Rig(make_driver, memory, alone=True, rx_queues=1) as rig:
        rig.split()
        rig.net.wire.inject(frames.arp())
        rig.net.run(2)
        if not any(frame[12:14] == b"\x08\x06" for frame in rig.net.wire.sent):
            raise Violation("R5", "an ARP request, which has no TCP header to split off, is not answered")
    return f"{len(SMALL)} sizes and ARP, {misses} frames not split"
