"""Google Virtual Ethernet (gve) as a device model: what the kernel's driver of that name drives.

Answers to drivers/net/ethernet/google/gve: gve_register.h, gve_adminq.h, gve_desc_dqo.h. Queue format DQO
with raw addressing (RDA) alone. Imports base and hw. Registers and doorbells come in by ``hw.vfio_user``,
frames by a wire.
"""

from netmem.hw.gve.device import Gve
from netmem.hw.gve.port import GveConfig

__all__ = ["Gve", "GveConfig"]
