"""Sends in-order TCP segments over a stream cable as fast as it takes them, for the benchmarks.

It knows no TCP: it never waits for an acknowledgement and sends nothing twice. Started by ``bench.igb``.
"""

from __future__ import annotations

import argparse
import contextlib
import socket

import numpy as np

from netmem.bench.kernels import number_segments

BATCH = 64
DRAIN = 1 << 18


def main() -> None:
    """Entry point of ``python -m netmem.bench.blaster``."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("fd", "count", "seq"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--frame", required=True, help="the frame, in hexadecimal, with sequence number 0")
    args = parser.parse_args()
    frame = bytes.fromhex(args.frame)
    record = len(frame).to_bytes(4, "big") + frame
    batch = np.frombuffer(record * BATCH, np.uint8).copy()
    cable = socket.socket(fileno=args.fd)
    cable.setblocking(True)
    payload = len(frame) - 54
    scrap = bytearray(DRAIN)
    left, seq = args.count, args.seq
    while left:
        n = min(left, BATCH)
        number_segments(batch.ctypes.data, n, len(record), seq, payload)
        cable.sendall(batch[: n * len(record)].data)
        with contextlib.suppress(BlockingIOError):
            while cable.recv_into(scrap, 0, socket.MSG_DONTWAIT) == DRAIN:
                pass
        left, seq = left - n, (seq + n * payload) & 0xFFFFFFFF
    # What the NIC still sends must not fill the cable: read on until the parent is done with us.
    while cable.recv_into(scrap):
        pass


if __name__ == "__main__":
    main()
