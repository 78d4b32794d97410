"""A kernel socket that receives into pinned memory and copies to a GPU: what GPU memory is measured against.

Two halves take turns: while one is received into, the copy engine empties the other.
"""

from __future__ import annotations

import json
import socket
import sys
import time

from netmem.base.cuda import Allocation, Gpu, PinnedMemory, call

HALF = 1 << 20
AREA = 64 << 20


def main() -> None:
    """``python -m netmem.bench.gpu_receiver [ADDRESS]``: a line with the port, one with what came."""
    gpu = Gpu(0)
    memory, pinned = Allocation.make(gpu, AREA), PinnedMemory(gpu, 2 * HALF)
    with gpu, socket.create_server((sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1", 0)) as server:
        streams = [call("cuStreamCreate", 1) for _ in range(2)]
        view = pinned.bytes.data
        print(json.dumps({"port": server.getsockname()[1]}), flush=True)
        sock, _ = server.accept()
        total = turn = 0
        start = end = 0.0
        more = True
        while more:
            half = turn % 2
            call("cuStreamSynchronize", streams[half])  # its last copy is over
            have = 0
            while have < HALF:
                n = sock.recv_into(view[half * HALF + have : (half + 1) * HALF])
                start = start or time.monotonic()
                have += n
                if not n:
                    more = False
                    break
            if have:
                to = memory.address + turn * HALF % AREA
                call("cuMemcpyHtoDAsync", to, pinned.address + half * HALF, have, streams[half])
            total, turn = total + have, turn + 1
        call("cuCtxSynchronize")
        end = time.monotonic()
        sock.close()
    print(json.dumps({"bytes": total, "seconds": end - start}), flush=True)
    pinned.close()
    memory.close()


if __name__ == "__main__":
    main()
