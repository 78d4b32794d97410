"""What devices did over time: samples of ``observe`` made into rates and levels, by device and socket.

Both the live view (`netmem show --watch`) and reports (`netmem recv --report`) are drawn from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

QUIET = {  # counters that tell of nothing that was refused
    "rx_packets", "rx_bytes", "rx_tcp", "rx_udp", "rx_arp", "rx_icmp", "rx_icmp6", "gro_merged",
    "rx_merged_by_nic",
}  # fmt: skip
RATES = ("bytes", "packets", "split", "miss", "drops")  # of totals: as they grow, in a second
LEVELS = ("free", "window", "tokens", "unread", "sockets")
Socket = tuple[str, int]  # peer, port


def level(pool: dict[str, Any]) -> float:
    """Part of its share of the memory that a pool can still receive into, 0 to 1."""
    mine = max(pool["buffers"] // max(pool["share"], 1), 1)
    return min(1.0, float(pool["available"]) / mine)


def trouble(device: dict[str, Any]) -> dict[str, int]:
    """What was refused or dropped on the way to a socket, by cause."""
    found = {name: n for name, n in device["counters"].items() if n and name not in QUIET}
    tcp = {name: device.get("tcp", {}).get(name, 0) for name in ("over_share", "no_socket", "beyond_window")}
    return found | {name: n for name, n in tcp.items() if n}


def totals(device: dict[str, Any]) -> dict[str, float]:
    """One sample in numbers: what grows, and what is."""
    queues, sockets = device["queues"], device["sockets"]
    pools = [queue["pool"] for queue in queues if queue["pool"] and queue["provider"]]
    pools = pools or [queue["pool"] for queue in queues if queue["pool"]]
    tcp = [one for one in sockets if one["window"] is not None]
    return {
        "bytes": sum(queue.get("bytes", 0) for queue in queues),
        "packets": sum(queue.get("packets", 0) for queue in queues),
        "split": sum(queue.get("hds_hit", 0) for queue in queues),
        "miss": sum(queue.get("hds_miss", 0) for queue in queues),
        "drops": sum(trouble(device).values()),
        "free": min((level(pool) for pool in pools), default=1.0),
        "window": sum(one["window"] for one in tcp),
        "tokens": sum(one["tokens"] for one in sockets),
        "unread": sum(one["queued"] for one in sockets),
        "sockets": len(sockets),
    }


class DeviceHistory:
    """The samples of one device.

    ``now``: the last of ``observe``; ``series``: the last ``keep`` values by name. Values of RATES are in a
    second; the first sample gives none.
    """

    def __init__(self, keep: int) -> None:
        self.now: dict[str, Any] = {}
        self.times: deque[float] = deque(maxlen=keep)
        self.series = {name: deque[float](maxlen=keep) for name in (*RATES, *LEVELS)}
        self.socket_rates: dict[Socket, float] = {}  # bytes in a second, either way
        self._before: dict[str, float] = {}
        self._socket_bytes: dict[Socket, int] = {}
        self._at = 0.0

    def add(self, device: dict[str, Any], at: float) -> None:
        """One sample, taken ``at`` (seconds)."""
        found, past = totals(device), max(at - self._at, 1e-6)
        if self._before:
            self.times.append(at)
            for name in RATES:
                self.series[name].append(max(found[name] - self._before[name], 0.0) / past)
            for name in LEVELS:
                self.series[name].append(found[name])
        known, self._socket_bytes = self._socket_bytes, {}
        for one in device["sockets"]:
            key, count = (one["peer"], one["port"]), (one["bytes_in"] or 0) + (one["bytes_out"] or 0)
            self._socket_bytes[key] = count
            self.socket_rates[key] = max(count - known.get(key, count if not self._before else 0), 0) / past
        for key in self.socket_rates.keys() - self._socket_bytes.keys():
            del self.socket_rates[key]
        self._before, self._at, self.now = found, at, device

    def busiest(self, only: str = "") -> list[dict[str, Any]]:
        """Sockets with their ``rate``, the busiest first; those in whose peer, port, state is ``only``."""
        found = []
        for one in self.now.get("sockets", ()):
            text = f"{one['peer']} {one['port']} {one['state']} q{one['queue']}".lower()
            if only.lower() in text:
                found.append({**one, "rate": self.socket_rates.get((one["peer"], one["port"]), 0.0)})
        return sorted(found, key=lambda one: (-one["rate"], -(one["bytes_in"] or 0), one["peer"]))

    def thin(self) -> None:
        """Make one sample of two, as their mean: for longer histories in the same room."""
        for values in (self.times, *self.series.values()):
            pairs = list(values)
            values.clear()
            values.extend((a + b) / 2 for a, b in zip(pairs[::2], pairs[1::2], strict=False))


class History:
    """Histories of all devices by process and name, up to ``keep`` samples each.

    ``forget``: those of devices that are gone.
    """

    def __init__(self, keep: int = 600, *, forget: bool = True) -> None:
        self.keep, self.forget = keep, forget
        self.devices: dict[tuple[int, str], DeviceHistory] = {}

    def add(self, devices: Iterable[dict[str, Any]], at: float) -> None:
        """Samples of all devices that there are now."""
        seen = set()
        for device in devices:
            key = (device["pid"], device["name"])
            seen.add(key)
            self.devices.setdefault(key, DeviceHistory(self.keep)).add(device, at)
        for key in self.devices.keys() - seen if self.forget else ():
            del self.devices[key]
