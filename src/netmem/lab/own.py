"""Our own devices in the terms that the kernel's are explained in."""

from __future__ import annotations

from netmem import __version__
from netmem.base.arena import PAGE_SIZE
from netmem.kernel.state import DeviceState, KernelState, QueueState
from netmem.lab.observe import observe


def own_device(name: str, pid: int | None = None) -> tuple[KernelState, DeviceState] | None:
    """The device of a running receiver, or of process ``pid``; None when none has this name."""
    for device in observe(pid):
        if device["name"] != name:
            continue
        queues = {
            queue["id"]: QueueState("dmabuf", queue["provider"]["binding"])
            for queue in device["queues"]
            if queue["provider"]
        }
        kernel = KernelState(f"netmem {__version__}", True, True, True, PAGE_SIZE, {"memfd": True})
        return kernel, DeviceState(
            name=name,
            ifindex=0,
            driver=device["driver"],
            up=device["running"],
            rx_queues=len(device["queues"]),
            queue_mgmt=True,
            queue_mgmt_why="drivers of ours restart queues one by one",
            dma=True,
            dma_why="its NIC is a process, or QEMU's",
            tcp_data_split=device["ring"]["tcp_data_split"],
            hds_thresh=device["ring"]["hds_thresh"],
            xdp="",
            queues=queues,
            own=True,
        )
    return None
