"""A receiver of 1 MiB arrays, for the benchmark: as `netmem recv`, into the application's own memory."""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from netmem.base.ethtool import TcpDataSplit
from netmem.lab.device import open_device
from netmem.memory.providers.dmabuf import DmabufProvider

PORT, ITEMS = 5001, 1 << 17  # of 8 bytes


def main() -> None:
    """``python -m netmem.bench.arrays [PAGE-SIZE]``: a line with the port, one with what came."""
    page = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    memory = DmabufProvider(64 << 20, exporter="memfd", rx_page_size=page)
    with memory, open_device() as device:
        device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        with device.bind_rx([1], memory):
            device.steer(PORT, queue=1)
            listener = device.listen(PORT)
            print(json.dumps({"port": device.forward("127.0.0.1", 0, PORT)}), flush=True)
            with listener.accept(60) as sock:
                sock.timeout = 60
                reader, arrays = sock.reader(), 0
                start = end = time.monotonic()
                try:
                    while True:
                        first = arrays == 0
                        array = reader.read_array(ITEMS, np.float64)
                        start = time.monotonic() if first else start
                        arrays += 1
                        end = time.monotonic()
                except EOFError:
                    pass
    size = arrays * array.nbytes
    rest = {
        "seconds": max(end - start, 1e-9) * arrays / max(arrays - 1, 1)
    }  # the first one started the clock
    print(json.dumps({"bytes": size, **rest}), flush=True)


if __name__ == "__main__":
    main()
