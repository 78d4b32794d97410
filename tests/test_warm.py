"""After the self-test nothing is compiled any more: a process that has to would stall for seconds."""

import os
import subprocess
import sys

import pytest

from netmem.base.jit import COMPILED
from netmem.lab.compiling import ensure_compiled

PROGRAM = """
import sys, threading, socket, numpy as np
from numba.core import event
names = []

class Listener(event.Listener):
    def on_start(self, e):
        names.append(f"{e.data['dispatcher'].py_func.__qualname__}{e.data['args']}")

    def on_end(self, e):
        pass

event.register("numba:compile", Listener())
from netmem.lab.local import LocalHost, pair
from netmem.lab.gateway import Gateway
from netmem.base.clock import ManualClock
from netmem.memory.providers.dmabuf import DmabufProvider
from netmem.base.ethtool import SteeringRule, TcpDataSplit

clock = ManualClock()
ours, theirs = pair(clock)
memory = DmabufProvider(4 << 20, exporter="memfd")
ours.dev.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
binding = ours.dev.bind_rx([1], memory)
ours.dev.ethtool.add_rule(SteeringRule(queue=1, dst_port=7))
listener = ours.stack.listen(7)
for host in (ours, theirs):
    host.stack.activity()
sender = theirs.stack.connect_nowait("10.0.2.15", 7)

def run(rounds=4):
    for _ in range(rounds):
        now = clock.advance(1_000_000)
        ours.step(now)
        theirs.step(now)

run()
sock = listener.accept(timeout=0)
assert ours.stack.activity() == [sock.row]
for kind in ("array", "copy", "words", "list", "ranges", "one"):
    sender.send(bytes(3000))
    run()
    tokens = sock.recvmsg_devmem(timeout=0).frags["frag_token"]
    tokens = {"array": tokens, "copy": tokens.copy(), "words": tokens.astype(np.int64), "list": tokens.tolist(),
              "ranges": [(int(t), 1) for t in tokens], "one": int(tokens[0])}[kind]
    assert sock.devmem_dontneed(tokens) > 0
sock.sendall(b"x" * 3000)
run(60)
assert sender.recv(3000)
sender.close()
run()
sock.close()
run(60)
binding.close()
print(names)
"""


@pytest.mark.skipif(not COMPILED, reason="the compiler is off")
@pytest.mark.parametrize("sanitize", ["", "1"])
def test_nothing_is_compiled_after_the_self_test(sanitize):
    ensure_compiled()
    environment = {**os.environ, "NETMEM_SANITIZE": sanitize}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100, env=environment
    )
    assert done.stdout == "[]\n", done.stderr[-2000:]
