"""Frames from a TAP interface straight into posted buffers, where queue and header length can be guessed.

A flow that sends much sends again: the frame after one of 64 KiB is expected on the same queue, with
headers as long. It is read with its payload going to that queue's next buffers, and only then looked at. A
wrong guess costs a copy; a frame that nothing was guessed for costs one too.
"""

from __future__ import annotations

from netmem.base.jit import kernel
from netmem.base.native import load64, load_acquire, memcpy, readv, store_release
from netmem.hw.softnic.kernels import (
    FROM_DEVICE,
    IP_MAX,
    nic_done,
    nic_header,
    nic_rx,
    translate,
)
from netmem.hw.softnic.look import look
from netmem.hw.softnic.regs import (
    C_RX_BYTES,
    C_RX_FRAMES,
    HDS_ON,
    Q_BUFLEN,
    Q_HDRLEN,
    Q_HDS,
    Q_MERGE,
    Q_SPLIT_HIT,
    Q_TAIL,
    R_COUNTERS,
    R_MTU,
    R_RXQ,
    RXD_HDR,
    RXD_PKT,
    RXQ_STRIDE,
    RXS_SPH,
)
from netmem.hw.softnic.state import (
    D_LAND_HEADER,
    D_LAND_QUEUE,
    D_LANDED,
    D_MISLANDED,
    D_RXQ,
    D_STRIDE,
    DQ_HEAD,
    DQ_MASK,
    DQ_RING,
)
from netmem.hw.tap.kernels import (
    IOV_MAX,
    SLOT_BYTES,
    SLOTS,
    VNET_BYTES,
    W_FD,
    W_IOV,
    W_VNET,
    W_ZEROS,
    ZEROS,
    iovec,
    next_slot,
    tap_row,
    tap_rx,
)
from netmem.hw.wire import (
    F_FLAGS,
    F_GSO,
    F_HDR,
    F_HLEN,
    F_L3,
    F_L4,
    F_PLEN,
    F_QUEUE,
    F_SEEN,
    F_SPLIT,
    F_STATUS,
    FQ_FRAMES,
    FQ_HEAD,
    FQ_TAIL,
)


@kernel
def landing(d, bar, maps, w):
    """Point the read vector at the buffers that the expected frame would go to; how many, 0: do not."""
    queue = d[D_LAND_QUEUE] - 1
    if queue < 0:
        return 0
    q, dq = R_RXQ + RXQ_STRIDE * queue, D_RXQ + D_STRIDE * queue
    ring, mask, at = d[dq + DQ_RING], d[dq + DQ_MASK], d[dq + DQ_HEAD]
    buflen = bar[q + Q_BUFLEN]
    count = (IP_MAX + buflen - 1) // buflen
    if ring == 0 or bar[q + Q_HDS] != HDS_ON or bar[q + Q_MERGE] == 0 or bar[q + Q_HDRLEN] < d[D_LAND_HEADER]:
        return 0
    if count + 3 > IOV_MAX or 2 * count > mask + 1:
        return 0
    if load_acquire(bar.ctypes.data + 8 * (q + Q_TAIL)) - at < count:
        return 0
    slot = ring + (at & mask) * 32
    if translate(d, maps, load64(slot + 8 * RXD_HDR), d[D_LAND_HEADER], FROM_DEVICE) == 0:
        return 0
    for i in range(count):
        slot = ring + ((at + i) & mask) * 32
        host = translate(d, maps, load64(slot + 8 * RXD_PKT), buflen, FROM_DEVICE)
        if host == 0:
            return 0
        iovec(w[W_IOV], 2 + i, host, buflen)
    return count


@kernel
def collect(w, slot, header, size):
    """A wrong guess: payload from the buffers it was read to behind its headers."""
    at, i = slot + header, 2
    while size > 0:
        take = min(size, load64(w[W_IOV] + 16 * i + 8))
        host = load64(w[W_IOV] + 16 * i)
        memcpy(at, host, take)
        for done in range(0, take, ZEROS):  # it may be somebody else's memory: leave nothing there
            memcpy(host + done, w[W_ZEROS], min(ZEROS, take - done))
        at, size, i = at + take, size - take, i + 1


@kernel
def expect(d, row):
    """After a frame: what the next one is guessed to be."""
    if row[F_SEEN] and row[F_GSO] > 0 and row[F_L4] != 0:
        d[D_LAND_QUEUE], d[D_LAND_HEADER] = row[F_QUEUE] + 1, row[F_SPLIT]
    else:
        d[D_LAND_QUEUE] = 0


@kernel
def nic_scatter(d, bar, maps, state, rows, w, now, budget):
    """Take up to ``budget`` frames from the interface; packets delivered or dropped."""
    handled = 0
    for _ in range(budget):
        if state[FQ_HEAD] < state[FQ_TAIL]:
            handled += nic_rx(d, bar, maps, state, rows, now)
            if state[FQ_TAIL] - state[FQ_HEAD] >= SLOTS >> 1:
                break  # the wire is held
        row = rows[state[FQ_TAIL] & (FQ_FRAMES - 1)]
        count = 0
        if state[FQ_HEAD] == state[FQ_TAIL]:
            count = landing(d, bar, maps, w)
        if count == 0:
            if not tap_rx(w, row):
                break
            state[FQ_TAIL] += 1
            handled += nic_rx(d, bar, maps, state, rows, now)
            expect(d, row)
            continue
        slot, header = next_slot(w), d[D_LAND_HEADER]
        iovec(w[W_IOV], 0, w[W_VNET], VNET_BYTES)
        iovec(w[W_IOV], 1, slot, header)
        iovec(w[W_IOV], 2 + count, slot + header + IP_MAX, SLOT_BYTES - header - IP_MAX)
        size = readv(w[W_FD], w[W_IOV], 3 + count) - VNET_BYTES
        if size <= 0:
            break
        tap_row(w, row, slot, size, min(size, header))
        if row[F_PLEN] > 0 and row[F_FLAGS] and row[F_GSO] > 0:
            look(d, bar, row)
            fits = header - row[F_L3] + row[F_GSO] <= bar[R_MTU] and row[F_PLEN] + header <= IP_MAX
            if row[F_L4] != 0 and row[F_SPLIT] == header and row[F_QUEUE] == d[D_LAND_QUEUE] - 1 and fits:
                nic_landed(d, bar, maps, row)
                d[D_LANDED] += 1
                handled += 1
                continue
        if row[F_PLEN] > 0:
            collect(w, slot, header, row[F_PLEN])
            d[D_MISLANDED] += 1
        gso, flags = row[F_GSO], row[F_FLAGS]
        row[:] = 0
        row[F_HDR], row[F_HLEN], row[F_GSO], row[F_FLAGS] = slot, size, gso, flags
        state[FQ_TAIL] += 1
        handled += nic_rx(d, bar, maps, state, rows, now)
        expect(d, row)
    store_release(state.ctypes.data + 8 * FQ_TAIL, state[FQ_TAIL])
    return handled


@kernel
def nic_landed(d, bar, maps, row):
    """The payload lies where it belongs: its headers, and the descriptors."""
    queue = row[F_QUEUE]
    q, dq = R_RXQ + RXQ_STRIDE * queue, D_RXQ + D_STRIDE * queue
    ring, mask, at = d[dq + DQ_RING], d[dq + DQ_MASK], d[dq + DQ_HEAD]
    size = row[F_PLEN]
    slot = ring + (at & mask) * 32
    host = translate(d, maps, load64(slot + 8 * RXD_HDR), row[F_SPLIT], FROM_DEVICE)
    nic_header(row, host, size, True)
    bar[q + Q_SPLIT_HIT] += 1
    segments = (size + row[F_GSO] - 1) // row[F_GSO]
    bar[R_COUNTERS + C_RX_FRAMES] += segments
    bar[R_COUNTERS + C_RX_BYTES] += segments * row[F_SPLIT] + size
    buflen = bar[q + Q_BUFLEN]
    need = (size + buflen - 1) // buflen
    nic_done(d, bar, q, dq, row, need, row[F_SPLIT], row[F_STATUS] | RXS_SPH, size)
