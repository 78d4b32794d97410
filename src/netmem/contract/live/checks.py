"""The live checks: each returns evidence in one line; Violation, or Unseen for what cannot be seen."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from netmem.base.errors import NetmemError, errno_name
from netmem.base.ethtool import TcpDataSplit
from netmem.base.frags import DevmemMessage
from netmem.contract.live.other_end import digest
from netmem.contract.live.rig import AREA, COMMAND_LINE, WAIT_S, Received, Rig
from netmem.contract.report import Unseen, Violation
from netmem.kernel.devmem import KernelSocket
from netmem.kernel.memory import Dmabuf

MiB = 1 << 20
PIECES = (1, 17, 100, 1400, 1 << 16)
RESTARTS = 4
IOMMU_TYPE = "/sys/class/net/{}/device/iommu_group/type"


def split_can_be_set(rig: Rig) -> str:
    """R2: on, off and on again, as told; what comes meanwhile is whole."""
    for value in (TcpDataSplit.ENABLED, TcpDataSplit.DISABLED, TcpDataSplit.ENABLED):
        word = value.name.lower()
        told = rig.split(value)
        if told != value:
            raise Violation(
                "R2", f"tcp-data-split was {word}, and the driver tells {TcpDataSplit(told).name.lower()}"
            )
        rig.receive(MiB)
    return "on, off, and on again as told; 1 MiB is whole each time"


def split_is_bound_to(rig: Rig) -> str:
    """R2: without it a binding is refused, and with a binding it stays on."""
    rig.split(TcpDataSplit.DISABLED)
    with Dmabuf(MiB) as memory:
        try:
            rig.device.bind_rx([rig.queue], memory).close()
            raise Violation("R2", "memory was bound while tcp-data-split was off")
        except NetmemError as error:
            refused = errno_name(error.errno or 0)
            if error.errno != errno.EINVAL:
                raise Violation(
                    "R2", f"with tcp-data-split off a binding is refused by {refused}, not EINVAL"
                ) from None
    with rig.bound():
        try:
            rig.device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.DISABLED)
        except NetmemError as error:
            held = errno_name(error.errno or 0)
            return f"off: binding refused ({refused}); bound: turning it off refused ({held})"
    raise Violation("R2", "tcp-data-split could be turned off while memory was bound")


def split_is_obeyed(rig: Rig) -> str:
    """R2: with memory bound, headers stay out of it, and nothing of the payload lies with them."""
    with rig.bound():
        found = rig.receive(MiB)
    return f"{found.bytes} bytes in {len(found.sizes)} frags, none with the headers"


def split_off_is_obeyed(rig: Rig) -> str:
    """R2: what the device does with split off."""
    raise Unseen("where headers land while split is off only the device shows")


def pools_take_memory(rig: Rig) -> str:
    """R4: with split on a pool is made that takes memory: all three flags."""
    with rig.bound():
        pass
    return f"queue {rig.queue} takes a dma-buf while tcp-data-split is on"


def flag_goes_with_split(rig: Rig) -> str:
    """R4: without split no pool has the flag."""
    raise Unseen(
        "flags of pools are told by nobody while split is off; `netmem check` of the sources sees them"
    )


def every_queue_has_a_pool(rig: Rig) -> str:
    """R1: a page pool for each receive queue."""
    served = rig.napi()
    having = {queue for pool in rig.pools() for queue in served.get(pool.get("napi_id", 0), ())}
    if not rig.pools():
        raise Violation("R1", f"{rig.device.name} has {len(rig.queues)} receive queues and no page pool")
    without = sorted(set(rig.queues) - having)
    if served and without:
        raise Violation("R1", f"queues {', '.join(map(str, without))} have no page pool")
    return f"{len(rig.pools())} page pools for {len(rig.queues)} queues"


def every_queue_takes_memory(rig: Rig) -> str:
    """R1: each queue's pool is its own: memory bound to it is what it allocates from.

    Not the first queue's, by which packets come that nobody leads anywhere: drivers may keep it as it is.
    """
    for queue in rig.queues[1:]:
        with rig.bound(queue, 4 * MiB):
            mine = [pool for pool in rig.pools() if "dmabuf" in pool and "detach_time" not in pool]
            if not mine:
                raise Violation("R1", f"memory is bound to queue {queue}, and no pool of the device has it")
            if not any(pool.get("inflight") for pool in mine):
                raise Violation("R1", f"the pool of queue {queue} has the memory, and takes nothing from it")
    return f"bound to queues {rig.queues[1]} to {rig.queues[-1]} in turn, and taken from by its pool"


def bound_memory_is_written(rig: Rig) -> str:
    """R1: payload lands in the memory, and the queue counts it."""
    with rig.bound():
        before = rig.counted()  # here: a queue that restarts may count from 0 again
        found = rig.receive(4 * MiB)
        after = rig.counted()
    if not before or "rx_bytes" not in before.get(rig.queue, {}):
        return f"{found.bytes} bytes in the memory; the driver counts nothing by queue"
    more = {queue: after[queue]["rx_bytes"] - row["rx_bytes"] for queue, row in before.items()}
    if more[rig.queue] < found.bytes:
        text = f"{found.bytes} bytes came by queue {rig.queue}, which counts {more[rig.queue]}"
        raise Violation("R1", text)
    return f"{found.bytes} bytes in the memory; queue {rig.queue} counts {more[rig.queue]}"


def queues_restart_under_load(rig: Rig) -> str:
    """R1: memory comes and goes on a queue while a connection receives by it."""
    size, seed, mark, found = 24 * MiB, rig.seed(), hashlib.sha256(), Received()
    times, step = 0, 0
    rig.split(TcpDataSplit.ENABLED)
    with rig.connection(size, seed=seed) as sock, Dmabuf(AREA) as memory, rig.into(memory):
        binding = None
        try:
            while (message := _more(rig, sock, found, times)).size:
                rig.take(message, found, mark)
                if len(message.frags):
                    sock.devmem_dontneed(message.frags["frag_token"])
                if found.bytes >= step and times < 2 * RESTARTS:
                    times, step = times + 1, found.bytes + size // (2 * RESTARTS + 1)
                    if binding is None:
                        binding = rig.bind(rig.queue, memory)
                    else:
                        binding.close()
                        binding = None
        finally:
            if binding is not None:
                binding.close()
    if found.bytes != size:
        raise Violation("R1", f"{found.bytes} of {size} bytes came while the queue restarted")
    if mark.hexdigest() != digest(seed, size):
        raise Violation(
            "R3", f"{size} bytes came while the queue restarted, and they are not those that were sent"
        )
    return f"{size // MiB} MiB are whole over {times} restarts: {sum(found.sizes)} bytes in the memory"


def _more(rig: Rig, sock: KernelSocket, found: Received, times: int) -> DevmemMessage:
    try:
        return rig.message(sock, found)
    except Violation as violation:
        raise Violation("R1", f"after restart {times} of the queue: {violation.text}") from None


def payload_comes_as_frags(rig: Rig) -> str:
    """R3: pieces of all sizes, over both families, bit for bit where the frags say."""
    total = frags = 0
    with rig.bound():
        for family, piece in itertools.product(sorted(rig.addresses), PIECES):
            found = rig.receive(min(MiB, 300 * piece), piece=piece, family=family)
            total, frags = total + found.bytes, frags + len(found.sizes)
    families = " and ".join(f"IPv{family}" for family in sorted(rig.addresses))
    return f"{total} bytes in pieces of 1 to {PIECES[-1]} over {families}: {frags} frags, all as sent"


def small_payload_is_not_looked_at(rig: Rig) -> str:
    """R5: what a driver would copy rather than hand on, if it could read it."""
    with rig.bound():
        found = rig.receive(2000, piece=10)
    return f"{found.bytes} bytes in packets of 10: {len(found.sizes)} frags, {found.copied} bytes by copy"


def other_packets_do_no_harm(rig: Rig) -> str:
    """R5: packets that are not split, UDP's, by a queue whose memory nobody can read."""
    with rig.bound():
        port = rig.listener.port
        try:
            rig.device.steer(port, rig.queue, proto=17)
        except NetmemError as error:
            raise Unseen(f"UDP cannot be led to a queue: {errno_name(error.errno or 0)}") from None
        for size in (0, 1, 100, 1400):
            host = next(iter(rig.addresses.values()))
            rig.peer.wait(rig.peer.order("datagrams", host=host, port=port, count=20, size=size), WAIT_S)
        rig.receive(MiB)
    return "80 datagrams of 0 to 1,400 bytes; the queue goes on"


def synced_for_the_cpu(rig: Rig) -> str:
    """R6: through bounce buffers nothing is there that was not synced."""
    if "swiotlb=force" not in COMMAND_LINE.read_text():
        raise Unseen("a missing sync shows only where DMA bounces: boot with swiotlb=force, and check again")
    rig.split(TcpDataSplit.ENABLED)
    try:
        for piece in PIECES[2:]:
            rig.receive(min(MiB, 300 * piece), piece=piece)
    except Violation as violation:
        raise Violation("R6", f"through bounce buffers: {violation.text}") from None
    return "DMA bounces, and what comes is whole"


def tokens_can_be_held(rig: Rig) -> str:
    """R7: all tokens are held until the memory is used up; what comes then waits for them."""
    size, seed, mark, found = AREA + 4 * MiB, rig.seed(), hashlib.sha256(), Received()
    held: list[int] = []
    with rig.bound() as memory, rig.connection(size, seed=seed) as sock:
        while True:
            try:
                message = sock.recvmsg_devmem(timeout=1.0)
            except NetmemError:
                break
            if not message.size:
                break
            rig.take(message, found, mark)
            held += message.frags["frag_token"].tolist()
        most, counted = found.bytes, rig.pools()
        bound = [pool for pool in counted if "dmabuf" in pool and "detach_time" not in pool]
        if bound and not most <= sum(pool.get("inflight_mem", 0) for pool in bound) <= memory.size:
            raise Violation("R7", f"{most} bytes are held of {memory.size}, and the pool counts {bound}")
        freed = sock.devmem_dontneed(np.array(held))
        found.unknown += len(held) - freed
        while (message := rig.message(sock, found)).size:
            rig.take(message, found, mark)
            found.unknown += len(message.frags) - sock.devmem_dontneed(message.frags["frag_token"])
        found.digest = mark.hexdigest()
        rig.judge(found, size, seed)
    return f"{len(held)} tokens for {most} bytes of {AREA} held at once; the rest came when they were back"


def memory_comes_back(rig: Rig) -> str:
    """R7: after unbinding, and when pools are made anew, none of the old ones holds a netmem."""
    with rig.bound():
        rig.receive(4 * MiB)
    rig.receive(4 * MiB)
    rig.split(TcpDataSplit.DISABLED)  # other pools for all queues
    left = rig.drained()
    if left:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        held = ", ".join(
            f"pool {pool['id']}, {'bound memory' if 'dmabuf' in pool else 'pages'} given up "
            f"{now - pool['detach_time']:.0f} s ago, holds {pool.get('inflight', '?')} netmems"
            for pool in left
        )
        raise Violation("R7", f"after its queue was restarted, and all tokens were back: {held}")
    return "8 MiB later all pools that were replaced are gone"


def counters_add_up(rig: Rig) -> str:
    """R7: no pool got more back than was taken from it."""
    rig.split(TcpDataSplit.ENABLED)
    rig.receive(4 * MiB)
    pools = rig.counters()
    if not pools:
        raise Unseen("this kernel counts nothing of page pools: CONFIG_PAGE_POOL_STATS")
    total = 0
    for pool in pools:
        if "dmabuf" in pool or "io_uring" in pool:
            continue  # what a provider hands out is not counted
        taken = sum(pool.get(f"alloc_{one}", 0) for one in ("fast", "slow", "slow_high_order", "refill"))
        back = pool.get("recycle_cached", 0) + pool.get("recycle_ring", 0)
        if back > taken:
            raise Violation("R7", f"{taken} netmems were taken from pool {pool['id']}, and {back} came back")
        total += back
    return f"{total} netmems were recycled, in no pool more than were taken from it"


def transmit_is_declared(rig: Rig) -> str:
    """TX2: what the driver declares of netmem to send."""
    return "netmem is taken to be sent" if _sends(rig) else "it declares none (EOPNOTSUPP), which it may"


def _sends(rig: Rig) -> bool:
    with Dmabuf(MiB) as memory:
        try:
            rig.device.bind_tx(memory).close()
            return True
        except NetmemError as error:
            if error.errno == errno.EOPNOTSUPP:
                return False
            raise Violation("TX2", f"bind-tx: {errno_name(error.errno or 0)}") from None


def _connected(rig: Rig, port: int) -> KernelSocket:
    try:
        return rig.device.connect(rig.other(), port, timeout=WAIT_S)
    except NetmemError as error:
        raise Unseen(f"there is no connection to send by: {errno_name(error.errno or 0)}") from None


def sent_as_it_is_mapped(rig: Rig) -> str:
    """TX1: twice the same memory, bit for bit at the other end, each call done once."""
    if not _sends(rig):
        raise Unseen("the driver takes no netmem to send")
    taker = rig.peer.order("take", port=0)
    port = rig.peer.wait(taker, WAIT_S)["listening"]
    data, mark, calls, over, sent, size = os.urandom(MiB), hashlib.sha256(), 0, [], 0, 8 * MiB
    with Dmabuf(MiB) as memory:
        with memory.cpu_access(write=True):
            memory.map(writable=True)[:] = np.frombuffer(data, np.uint8)
        with rig.device.bind_tx(memory) as binding, _connected(rig, port) as sock:
            try:
                while sent < size:
                    at = sent % MiB
                    n = sock.sendmsg_devmem([(at, min(MiB - at, size - sent))], binding, timeout=WAIT_S)
                    mark.update(data[at : at + n])
                    sent, calls = sent + n, calls + 1
                over += sock.wait_zerocopy(WAIT_S)
            except NetmemError as error:
                raise Violation("TX1", f"after {sent} bytes: {error.strerror}") from None
            sock.shutdown()
            got = rig.peer.wait(taker, WAIT_S)["done"]
    if got != {"size": size, "digest": mark.hexdigest()}:
        raise Violation("TX1", f"{sent} bytes were sent, {got['size']} arrived, and they are not the same")
    if sum(last - first + 1 for first, last in over) != calls:
        raise Violation("TX1", f"{calls} calls were made, and {over} are done")
    return f"{size} bytes from 1 MiB of memory are as they were, and {calls} calls done once each"


def unmapped_by_its_binding(rig: Rig) -> str:
    """TX1: the driver does not unmap what it has not mapped."""
    kind = Path(IOMMU_TYPE.format(rig.device.name))
    if not kind.exists() or kind.read_text().strip() == "identity":
        raise Unseen(
            "who unmaps what it has not mapped is seen by an IOMMU: there is none before this device"
        )
    started = time.monotonic()
    sent_as_it_is_mapped(rig)
    return f"behind an IOMMU the same memory is sent again ({time.monotonic() - started:.1f} s)"


@dataclass(frozen=True)
class Check:
    """A check, the requirement that it is for, and the kind of memory it looks at."""

    requirement: str
    run: Callable[[Rig], str]
    memory: str

    @property
    def name(self) -> str:
        """As it is called in reports."""
        return self.run.__name__


# In this order: what later ones need comes first.
CHECKS = (
    Check("R2", split_can_be_set, "pages"),
    Check("R4", pools_take_memory, "dmabuf"),
    Check("R4", flag_goes_with_split, "pages"),
    Check("R2", split_is_bound_to, "dmabuf"),
    Check("R2", split_is_obeyed, "dmabuf"),
    Check("R2", split_off_is_obeyed, "pages"),
    Check("R1", every_queue_has_a_pool, "pages"),
    Check("R1", every_queue_takes_memory, "dmabuf"),
    Check("R1", bound_memory_is_written, "dmabuf"),
    Check("R1", queues_restart_under_load, "dmabuf"),
    Check("R3", payload_comes_as_frags, "dmabuf"),
    Check("R5", small_payload_is_not_looked_at, "dmabuf"),
    Check("R5", other_packets_do_no_harm, "dmabuf"),
    Check("R6", synced_for_the_cpu, "pages"),
    Check("R7", tokens_can_be_held, "dmabuf"),
    Check("R7", memory_comes_back, "dmabuf"),
    Check("R7", counters_add_up, "pages"),
    Check("TX2", transmit_is_declared, "dmabuf"),
    Check("TX1", sent_as_it_is_mapped, "dmabuf"),
    Check("TX1", unmapped_by_its_binding, "dmabuf"),
)
