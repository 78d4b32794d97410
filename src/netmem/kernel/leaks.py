"""Memory of the running kernel's page pools that does not come back, and who may hold it.

The kernel says of a pool how many netmems are out, not whose they are. Who has them is seen by where a
socket's packets came from last (SO_INCOMING_NAPI_ID), which root can ask of every process's sockets
(pidfd_getfd).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netmem.kernel.netdev_family import NetdevFamily

SO_INCOMING_NAPI_ID = 56
PIDFD_GETFD = 438
PROC = Path("/proc")
LIBC = ctypes.CDLL(None, use_errno=True)
Row = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """``pools`` with memory out; ``holders``: sockets and dma-bufs of processes.

    ``blind``: processes whose sockets could not be looked at.
    """

    pools: list[Row]
    holders: list[Row]
    blind: int


def look(older: float = 0.0) -> Found:
    """Pools that were destroyed and do not drain, and those of bound memory with netmems out.

    ``older``: only pools that were destroyed at least so many seconds ago. EOPNOTSUPP without the family.
    """
    with NetdevFamily() as family:
        queues, pools = family.queue_get(), family.page_pool_get()
    bound = {queue["dmabuf"] for queue in queues if "dmabuf" in queue}
    now, found = time.clock_gettime(time.CLOCK_BOOTTIME), []
    names = dict(socket.if_nameindex())
    for pool in pools:
        age = max(now - pool["detach_time"], 0.0) if "detach_time" in pool else None
        special = "dmabuf" in pool or "io_uring" in pool
        if not pool.get("inflight") or (age is None and (older or not special)) or (age or 0.0) < older:
            continue
        state = "destroyed" if age is not None else "bound" if pool.get("dmabuf") in bound else "in use"
        found.append({
            "device": names.get(pool.get("ifindex", 0)), "pool": pool["id"], "binding": pool.get("dmabuf"),
            "io_uring": "io_uring" in pool, "state": state, "inflight": pool["inflight"],
            "bytes": pool.get("inflight_mem"), "seconds": age,
        })  # fmt: skip
    devices = {one["device"] for one in found}
    napis: dict[int, int | None] = {
        queue["napi_id"]: queue["id"]
        if queue["type"] == 0 and names.get(queue["ifindex"]) in devices
        else None
        for queue in queues
        if "napi_id" in queue
    }
    restarted = any(one["state"] == "destroyed" for one in found)
    holders, blind = _holders(_Napis(napis, restarted)) if found else ([], 0)
    return Found(found, holders, blind)


@dataclass(frozen=True)
class _Napis:
    """NAPIs of queues: the queue where it matters. ``restarted``: some that are gone matter as well."""

    queues: dict[int, int | None]
    restarted: bool

    def queue(self, napi: int) -> tuple[bool, int | None]:
        """Whether a socket whose packets came by this NAPI may hold what is looked for, and its queue."""
        if napi in self.queues:
            return self.queues[napi] is not None, self.queues[napi]
        return napi > 0 and self.restarted, None  # a queue that is restarted gets a new NAPI


def _holders(napis: _Napis) -> tuple[list[Row], int]:
    rows, blind = [], 0
    for pid in sorted(int(entry) for entry in os.listdir(PROC) if entry.isdigit()):
        try:
            fds = os.listdir(PROC / str(pid) / "fd")
        except PermissionError:
            blind += 1
            continue
        except OSError:
            continue
        with contextlib.suppress(OSError):
            rows += list(_of_process(pid, fds, napis))
    return rows, blind


def _of_process(pid: int, fds: list[str], napis: _Napis) -> Iterator[Row]:
    folder = PROC / str(pid)
    name = (folder / "comm").read_text().strip()
    for fd in sorted(map(int, fds)):
        with contextlib.suppress(OSError):
            target = os.readlink(folder / "fd" / str(fd))
            if target.startswith("/dmabuf:"):
                size = _field(folder / "fdinfo" / str(fd), "size:")
                what = f"dma-buf of {_field(folder / 'fdinfo' / str(fd), 'exp_name:') or 'an exporter'}"
                yield {"pid": pid, "process": name, "fd": fd, "what": what, "queue": None,
                       "bytes": int(size) if size.isdigit() else None}  # fmt: skip
            elif target.startswith("socket:"):
                found = _socket(pid, fd, napis)
                if found is not None:
                    queue, ends = found
                    yield {"pid": pid, "process": name, "fd": fd, "what": f"TCP {ends}", "queue": queue,
                           "bytes": None}  # fmt: skip


def _socket(pid: int, fd: int, napis: _Napis) -> tuple[int | None, str] | None:
    """A TCP socket whose packets came by one of these NAPIs: its queue, and both ends."""
    pidfd = os.pidfd_open(pid)
    try:
        copy = LIBC.syscall(PIDFD_GETFD, pidfd, fd, 0)
        if copy < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
    finally:
        os.close(pidfd)
    with socket.socket(fileno=copy) as sock:
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
            return None
        napi = sock.getsockopt(socket.SOL_SOCKET, SO_INCOMING_NAPI_ID)
        matters, queue = napis.queue(napi)
        if not matters:
            return None
        ours = sock.getsockname()
        peer = "nobody"
        with contextlib.suppress(OSError):
            theirs = sock.getpeername()
            peer = f"{theirs[0]}:{theirs[1]}"
        note = "" if queue is not None else ", by a queue that was restarted since"
        return queue, f"{ours[0]}:{ours[1]} from {peer}{note}"


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return line.removeprefix(name).strip()
    return ""
