"""The driver for Intel's 82576 Gigabit Ethernet controller.

Answers to: drivers/net/ethernet/intel/igb. Sections named are those of Intel's 82576EB data sheet.
May import: base, memory, hw, netdev.
Read driver.py first, then kernels.py; regs.py is the table of registers.
"""

from netmem.drivers.igb.driver import IgbDriver

__all__ = ["IgbDriver"]
