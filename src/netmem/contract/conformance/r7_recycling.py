"""R7: no recycling beside the pool; users may hold netmem for long."""

from __future__ import annotations

from typing import Any

from netmem.base.clock import MS
from netmem.contract.report import Violation
from netmem.contract.rig import PORT, QUEUE, MakeDriver, Rig, payload
from netmem.memory.provider import AreaProvider

RING = 64
KEPT, TURNS = 40_000, 1_200_000
RESTARTS, ROUNDS = 20, 5000


def check_r7_tokens_held(make_driver: MakeDriver, memory: str = "dmabuf") -> str:
    """Tokens kept while the ring turns many times: their bytes stay, and nothing else is kept."""
    with Rig(make_driver, memory) as rig:
        rig.dev.ethtool.set_ringparam(rx_pending=RING)
        rig.bind()
        ours, theirs, _ = rig.net.connect(PORT)
        provider = rig.provider
        assert provider is not None
        theirs.send(payload(KEPT))
        rig.net.until(lambda: ours.queued() == KEPT, 2000)
        messages = [ours.recvmsg_devmem()]
        while ours.queued():
            messages.append(ours.recvmsg_devmem())
        frags = [frag for message in messages for frag in message.frags]
        before = [_bytes(provider, frag) for frag in frags]
        got, _ = rig.send(theirs, ours, payload(TURNS, 9))
        changed = sum(_bytes(provider, frag) != was for frag, was in zip(frags, before, strict=True))
        if changed:
            raise Violation("R7", f"{changed} of {len(frags)} frags changed while the application held them")
        if got != payload(TURNS, 9):
            raise AssertionError("what arrived is not what was sent")
        rig.net.run(5)
        rig.note_hoard(tokens=len(frags))
        if ours.devmem_dontneed([int(frag["frag_token"]) for frag in frags]) != len(frags):
            raise Violation("R7", "tokens that were held are not known any more")
        rig.net.run(5)
        rig.note_hoard()
        turns = TURNS // 1460 // RING
    return f"{len(frags)} tokens held over {turns} turns of the ring; nothing kept beside the pool"


def check_r7_fragments(make_driver: MakeDriver, memory: str = "dmabuf") -> str:
    """Netmems larger than a buffer are shared by fragments, and each part counts."""
    with Rig(make_driver, memory) as rig:
        if not rig.dev.driver.supports_rx_page_size:
            return "no large rx pages, and none claimed"
        rig.dev.ethtool.set_ringparam(rx_pending=RING)
        rig.bind(rx_page_size=16384)
        ours, theirs, _ = rig.net.connect(PORT)
        got, _ = rig.send(theirs, ours, payload(300_000))
        if got != payload(300_000):
            raise Violation("R7", "fragments of one netmem overwrite each other")
        ours.close()
        rig.net.run(3)
        rig.unbind()
    return "16 KiB netmems cut into buffers, all back at the end"


def check_r7_restarts_under_load(make_driver: MakeDriver, memory: str = "dmabuf") -> str:
    """The queue restarts again and again while packets come: what lay in its ring comes back, all of it."""
    data, got = payload(TURNS // 4, 11), bytearray()
    with Rig(make_driver, memory) as rig:
        rig.bind()
        ours, theirs, _ = rig.net.connect(PORT)
        left, restarts = memoryview(data), 0
        provider = rig.provider
        assert provider is not None
        for turn in range(ROUNDS):
            if len(left) and theirs.writable():
                left = left[theirs.send(left) :]
            # time passes faster once nothing is left to lose: what a restart lost is sent again
            rig.net.run(1, MS // 10 if restarts < RESTARTS else 20 * MS)
            while ours.readable():
                message = ours.recvmsg_devmem()
                got += message.linear
                got += b"".join(_bytes(provider, frag) for frag in message.frags)
                if len(message.frags):
                    ours.devmem_dontneed(message.frags["frag_token"])
            if len(got) >= len(data):
                break
            if restarts < RESTARTS and turn % 3 == 0:
                rig.net.settle()  # packets that nobody has polled
                rig.dev.queues.restart(rig.dev.rx_queues[QUEUE])
                restarts += 1
        if bytes(got) != data or restarts < RESTARTS:
            raise AssertionError(f"{len(got)} of {len(data)} bytes arrived over {restarts} restarts")
        ours.close()
        rig.net.run(3)
        rig.unbind()
    return f"{len(data)} bytes over {restarts} restarts, and every netmem back"


def check_r7_pool_destroyed_while_held(make_driver: MakeDriver, memory: str = "dmabuf") -> str:
    """The queue is unbound while the application holds tokens; these, and only these, are still out."""
    with Rig(make_driver, memory) as rig:
        rig.bind()
        ours, theirs, _ = rig.net.connect(PORT)
        got, tokens = rig.send(theirs, ours, payload(30_000), keep=True)
        assert rig.net.binding is not None
        assert rig.provider is not None
        rig.net.binding.close()
        out = rig.provider.area.count - rig.provider.area.free
        if out != len(tokens):
            raise Violation("R7", f"{out} netmems are out after unbinding; the application has {len(tokens)}")
        ours.devmem_dontneed(tokens)
        rig.dev.reap(rig.net.clock.now())
        if rig.provider.area.free != rig.provider.area.count:
            raise Violation("R7", "netmems did not come back with their tokens")
        if got != payload(30_000) or rig.dev.rx_queues[QUEUE].mp_params is not None:
            raise AssertionError("unbinding did not go as it should")
    return f"{len(tokens)} tokens outlived their binding"


def _bytes(provider: AreaProvider, frag: Any) -> bytes:
    return provider.read(int(frag["frag_offset"]), int(frag["frag_size"]))
