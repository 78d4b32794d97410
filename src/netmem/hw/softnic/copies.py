"""Memory that the NIC does not reach itself: what its copy engine has to do, and who is told then (kernels).

Such a mapping has staging of the same size, which the rest of the NIC reads and writes as it does memory.
What was written there is queued to be copied, and completions wait until it was; so do frames to be sent.
There are two queues: while the engine works on one, the NIC goes on and fills the other.

Payload of frames that lie in memory which the engine reads as well (``NicState.near``) is not staged: it goes
from there, and the frames are not taken, and their sender's memory is not used again, until it was.
"""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.native import memcpy, store_release
from netmem.base.record import address_of
from netmem.hw.softnic.look import payload_copy, payload_piece
from netmem.hw.softnic.state import COPIES, COPIES_LEAST, CopyQueue, NicState
from netmem.hw.wire import FQ_HEAD, FQ_TAIL, FrameQueueRecord, FrameRow


@inline_kernel
def filling(nic: NicState) -> CopyQueue:
    """The queue that the NIC fills."""
    return nic.queues[nic.filling]


@inline_kernel
def no_room(nic: NicState) -> bool:
    """True when so much is queued that the engine must work first."""
    queue = filling(nic)
    return max(queue.copies, queue.told) > COPIES - COPIES_LEAST


@inline_kernel
def is_waiting(nic: NicState) -> bool:
    """True while somebody waits for copies: what comes next must wait as well, to keep its place."""
    queue = filling(nic)
    return nic.flying != 0 or queue.copies > 0 or queue.told > 0 or queue.frames > 0


@kernel
def queue_copy(nic: NicState, to: int, source: int, n: int) -> bool:
    """Have ``n`` bytes copied at the end of this round. False: there is no room for more."""
    queue = filling(nic)
    at = queue.copies
    if at > 0:
        size = queue.size[at - 1]
        if queue.to[at - 1] + size == to and queue.source[at - 1] + size == source:
            queue.size[at - 1] = size + n
            return True
    if at == COPIES:
        return False
    queue.to[at], queue.source[at], queue.size[at] = to, source, n
    queue.copies = at + 1
    return True


@inline_kernel
def to_memory(nic: NicState, number: int, host: int, n: int) -> bool:
    """``n`` bytes were written at ``host``, which ``translate`` gave for mapping ``number``."""
    mapped = nic.maps[number]
    return mapped.far == 0 or queue_copy(nic, mapped.far + host - mapped.host, host, n)


@kernel
def payload_to_memory(nic: NicState, frame: FrameRow, offset: int, n: int, number: int, host: int) -> bool:
    """``n`` payload bytes from ``offset`` of a frame go to ``host``, an address in mapping ``number``."""
    mapped = nic.maps[number]
    if mapped.far == 0 or nic.near_end == 0:
        payload_copy(frame, offset, n, host)
        return to_memory(nic, number, host, n)
    for piece in range(3):
        at, size = payload_piece(frame, piece)
        take = min(n, size - offset)
        if take > 0:
            source = at + offset
            if source < nic.near or source + take > nic.near_end:
                memcpy(host, source, take)
                source = host
            if not queue_copy(nic, mapped.far + host - mapped.host, source, take):
                return False
            host, n = host + take, n - take
        offset = max(offset - size, 0)
    return True


@inline_kernel
def from_memory(nic: NicState, number: int, host: int, n: int) -> bool:
    """``n`` bytes at ``host`` are about to be sent."""
    mapped = nic.maps[number]
    return mapped.far == 0 or queue_copy(nic, host, mapped.far + host - mapped.host, n)


@inline_kernel
def tell(nic: NicState, at: int, status: int) -> None:
    """Write a descriptor's status, once all that it speaks of is where it belongs."""
    if is_waiting(nic):
        queue = filling(nic)
        queue.tell_at[queue.told], queue.tell[queue.told] = at, status
        queue.told += 1
    else:
        store_release(at, status)


@inline_kernel
def taken_to(nic: NicState, queue: FrameQueueRecord) -> int:
    """The end of what was taken from transmit rings, on the wire or not."""
    return queue.tail + nic.queues[0].frames + nic.queues[1].frames


@inline_kernel
def send_to(nic: NicState, queue: FrameQueueRecord, tail: int) -> None:
    """Put frames up to ``tail`` on the wire, once their bytes are here."""
    if is_waiting(nic):
        filling(nic).frames += tail - taken_to(nic, queue)
    else:
        store_release(address_of(queue) + FQ_TAIL, tail)


@inline_kernel
def first_frame(nic: NicState, queue: FrameQueueRecord) -> int:
    """The first frame of the wire that was not looked at; somebody else may have taken some."""
    return max(nic.rx_head, queue.head)


@inline_kernel
def take(nic: NicState, head: int) -> None:
    """Frames before ``head`` are taken: their sender may use their memory again."""
    if head > FrameQueueRecord.at(nic.rx).head:
        store_release(nic.rx + FQ_HEAD, head)


@inline_kernel
def take_to(nic: NicState, head: int) -> None:
    """Frames of the wire before ``head`` were delivered: they are taken once nobody reads them any more."""
    nic.rx_head = head
    if nic.near_end != 0 and is_waiting(nic):
        filling(nic).taken = head
    else:
        take(nic, head)


@kernel
def nic_fly(nic_at: int) -> None:
    """The engine starts with what is queued: fill the other queue."""
    nic = NicState.at(nic_at)
    nic.filling, nic.flying = 1 - nic.filling, 1


@kernel
def nic_copied(nic_at: int) -> None:
    """The engine is done: tell of it."""
    nic = NicState.at(nic_at)
    done = nic.queues[1 - nic.filling]
    for i in range(done.told):
        store_release(done.tell_at[i], done.tell[i])
    if done.frames > 0:
        queue = FrameQueueRecord.at(nic.tx)
        store_release(address_of(queue) + FQ_TAIL, queue.tail + done.frames)
    take(nic, done.taken)
    done.copies = done.told = done.frames = done.taken = 0
    nic.flying = 0
    if not is_waiting(nic):  # frames that were dropped meanwhile: nothing else would take them
        take(nic, filling(nic).taken)
        filling(nic).taken = 0


@kernel
def is_any_waiting(nic_at: int) -> bool:
    """``is_waiting``, for Python."""
    return is_waiting(NicState.at(nic_at))
