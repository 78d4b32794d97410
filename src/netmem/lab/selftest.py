"""A small transfer through two NICs in this process: it compiles every kernel, and checks them."""

from __future__ import annotations

import sys

import numpy as np

from netmem.base import jit
from netmem.base.clock import MS, ManualClock
from netmem.base.errors import NetmemError
from netmem.drivers.igb import kernels as igb
from netmem.lab.local import LocalHost, pair
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.memory.providers.pages import PagesProvider
from netmem.netdev.driver import SteeringRule, TcpDataSplit

SIZE = 100_000
PORT = 7


def selftest() -> None:
    """Send bytes into dmabuf memory, bound pages and unbound pages. RuntimeError when they differ."""
    _compile_igb()
    clock = ManualClock()
    for make in (DmabufProvider, PagesProvider, None):
        hosts = pair(clock)
        try:
            _transfer(*hosts, clock, make)
        finally:
            for host in hosts:
                host.close()
    jit.mark_warm()


def _compile_igb() -> None:
    """The igb driver's kernels on rings that hold nothing: an 82576 is not needed to compile them."""
    words, rows = np.zeros(64, np.int64), np.zeros((1, 64), np.int64)
    igb.igb_rx(words, words, words, words, words, rows, 0)
    igb.igb_refill(words, words, words, words, words)
    igb.igb_pending(words)
    igb.igb_xmit(words, words, rows)


def _transfer(
    ours: LocalHost,
    theirs: LocalHost,
    clock: ManualClock,
    make: type[DmabufProvider] | type[PagesProvider] | None,
) -> None:
    memory = make(4 << 20) if make else None
    if memory is not None:
        ours.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        binding = ours.dev.bind_rx([1], memory)
    ours.dev.ethtool.add_rule(SteeringRule(queue=1, dst_port=PORT))
    listener = ours.stack.listen(PORT)
    sender = theirs.stack.connect_nowait("10.0.2.15", PORT)

    def run(rounds: int = 4) -> None:
        for _ in range(rounds):
            now = clock.advance(MS)
            ours.step(now)
            theirs.step(now)

    run()
    receiver = listener.accept(timeout=0)
    data = bytes(i * 7 & 0xFF for i in range(SIZE))
    left, got = memoryview(data), bytearray()
    view = memory.map() if memory is not None else None
    while len(got) < SIZE:
        if len(left) and (not sender.statistics()["bytes_out"] or sender.room()):
            left = left[sender.send(left) :]
        run(1)
        if view is not None:
            message = receiver.recvmsg_devmem() if receiver.queued() else None
            if message is not None:
                got += message.linear
                for frag in message.frags:
                    start = int(frag["frag_offset"])
                    got += view[start : start + int(frag["frag_size"])].tobytes()
                receiver.devmem_dontneed(message.frags["frag_token"])
        elif receiver.queued():
            got += receiver.recv(SIZE)
    if got != data:
        raise RuntimeError("self-test: what arrived is not what was sent")
    receiver.sendall(b"done")
    run(60)  # long enough for delayed acknowledgements
    sender.recv(4)
    sender.close()
    run()
    receiver.close()
    run()
    if memory is not None:
        binding.close()
        if binding.outstanding():
            raise RuntimeError("self-test: netmem is missing")
        memory.close()


def ensure_compiled() -> None:
    """Compile everything before it is needed; says so, because it takes a while the first time."""
    if jit.is_warm():
        return
    print("netmem: compiling (once for each version, up to a minute) ...", file=sys.stderr, flush=True)
    try:
        selftest()
    except OSError as error:
        raise NetmemError(error.errno or 5, f"self-test failed: {error.strerror}") from None
