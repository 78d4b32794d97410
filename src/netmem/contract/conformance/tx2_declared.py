"""TX2: the driver declares what kind of netmem it can transmit."""

from __future__ import annotations

from netmem.contract.report import Violation
from netmem.contract.rig import MakeDriver, Rig
from netmem.netdev.driver import NetmemTx


def check_tx2_declared(make_driver: MakeDriver, memory: str = "none") -> str:
    """``netmem_tx`` is there, and one of the three kinds."""
    with Rig(make_driver, alone=True, rx_queues=1) as rig:
        declared = getattr(rig.dev.driver, "netmem_tx", None)
    if declared is None:
        raise Violation("TX2", "the driver does not say what netmem it can transmit (netmem_tx)")
    if not isinstance(declared, NetmemTx):
        raise Violation("TX2", f"netmem_tx is {declared!r}, which is no NetmemTx")
    return f"netmem_tx is {declared.name}"
