"""A TAP interface of this host as a wire: Linux itself is at the far end.

Answers to: drivers/net/tun.c with virtio-net headers.
May import: base, hw.
Frames enter and leave by readv and writev on the interface's descriptor.
"""

from netmem.hw.tap.wire import TapWire, open_tap

__all__ = ["TapWire", "open_tap"]
