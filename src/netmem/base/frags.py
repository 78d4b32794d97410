"""What an application gets of received payload: frags, as the kernel's control messages have them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FRAG = np.dtype(
    [
        ("frag_offset", "<u8"),
        ("frag_size", "<u4"),
        ("frag_token", "<u4"),
        ("dmabuf_id", "<u4"),
        ("flags", "<u4"),
    ]
)
"""struct dmabuf_cmsg (include/uapi/linux/uio.h)."""
assert FRAG.itemsize == 24
assert FRAG.fields is not None
assert FRAG.fields["dmabuf_id"][1] == 16

Frags = npt.NDArray[np.void]
NO_FRAGS = np.zeros(0, FRAG)


class DevmemMessage(NamedTuple):
    """What recvmsg_devmem received: ``linear`` bytes first in the stream, then ``frags``.

    ``copied``: the linear bytes came by a queue without bound memory, not with their headers; where memory is
    bound for the flow, it has left its queue (counter ``left_queue``, and a warning). ``received``: payload
    bytes, where whoever made the message knew them.
    """

    linear: bytes
    frags: Frags
    copied: bool = False
    received: int = -1

    @property
    def size(self) -> int:
        """Payload bytes of the message; 0 at the end of the stream."""
        if self.received >= 0:
            return self.received
        return len(self.linear) + int(self.frags["frag_size"].sum())
