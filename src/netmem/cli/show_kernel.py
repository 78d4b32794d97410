"""The running kernel's devices for people."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from netmem.cli.tables import table

STATS = (
    "alloc_fast", "alloc_slow", "alloc_empty", "recycle_cached", "recycle_ring", "recycle_ring_full",
    "recycle_released_refcnt",
)  # fmt: skip


def render_kernel(devices: list[dict[str, Any]]) -> RenderableType:
    """All devices, those without a NIC below in a word."""
    parts: list[RenderableType] = []
    for device in devices:
        parts += [*_device(device), Text("")]
    return Group(*parts)


def _memory(thing: dict[str, Any]) -> str:
    """What memory a queue or pool was given, as far as the kernel says."""
    if "dmabuf" in thing:
        return f"dmabuf, binding {thing['dmabuf']}"
    if "io_uring" in thing:
        return "io_uring zcrx"
    return "AF_XDP" if "xsk" in thing else "pages, unbound"


def _device(device: dict[str, Any]) -> list[RenderableType]:
    head = Text()
    if device["ifindex"] is None:
        head.append("pools whose device is gone", style="bold")
    else:
        head.append(f"{device['name']}: {device['driver']}", style="bold")
        head.append(
            f", link {'up' if device['link'] else 'down'}, mtu {device['mtu']}, "
            f"{', '.join(device['addresses'] or ['no address'])}, {device['mac']}"
        )
    parts: list[RenderableType] = [head]
    napi = {one["id"]: one for one in device["napi"]}
    rows = [
        [queue["type"], queue["id"], _memory(queue) if queue["type"] == "rx" else "",
         queue.get("napi_id", ""), napi.get(queue.get("napi_id"), {}).get("irq", "")]
        for queue in device["queues"]
    ]  # fmt: skip
    if rows:
        parts.append(table("<direction|queue|<memory|NAPI|irq", rows))
    pools = [
        [pool["id"], pool.get("napi_id", ""), _memory(pool), pool.get("inflight", ""),
         f"{pool.get('inflight_mem', 0) >> 10} KiB", *(pool.get(name, "") for name in STATS),
         f"since {pool['detach_time']} s" if "detach_time" in pool else ""]
        for pool in device["pools"]
    ]  # fmt: skip
    if pools:
        parts.append(
            table("pool|NAPI|<memory|out|bytes|fast|slow|empty|cached|ring|full|freed|<destroyed", pools)
        )
    return parts
