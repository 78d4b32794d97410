"""The driver for the software NIC.

Answers to: what a driver in drivers/net/ethernet does, in the same order.
May import: base, memory, hw, netdev.
Read driver.py first, then kernels.py.
"""

from netmem.drivers.softnic.driver import SoftnicDriver

__all__ = ["SoftnicDriver"]
