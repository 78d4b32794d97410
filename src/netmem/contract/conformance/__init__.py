"""The conformance kit: checks that drive a driver on its device model and look at what happened.

Each check takes ``make_driver`` (a driver class, or what makes a driver from a bus, with ``device_ids``) and
a kind of memory, returns evidence in one line, and raises ``Violation`` when the requirement is broken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from netmem.contract.conformance.r1_page_pool import (
    check_r1_buffer_sizes,
    check_r1_jumbo_frames,
    check_r1_page_pool,
    check_r1_scarce_memory,
)
from netmem.contract.conformance.r2_data_split import check_r2_data_split, check_r2_threshold
from netmem.contract.conformance.r3_netmem import check_r3_netmem
from netmem.contract.conformance.r4_pp_flags import check_r4_pp_flags
from netmem.contract.conformance.r5_unreadable import check_r5_not_split, check_r5_unreadable
from netmem.contract.conformance.r6_sync import check_r6_sync
from netmem.contract.conformance.r7_recycling import (
    check_r7_fragments,
    check_r7_pool_destroyed_while_held,
    check_r7_restarts_under_load,
    check_r7_tokens_held,
)
from netmem.contract.conformance.tx1_transmit import check_tx1_transmit
from netmem.contract.conformance.tx2_declared import check_tx2_declared
from netmem.contract.report import Violation
from netmem.contract.rig import MakeDriver, Rig

__all__ = [
    "CHECKS", "Check", "MakeDriver", "Rig", "Violation", "check_r1_buffer_sizes", "check_r1_jumbo_frames",
    "check_r1_page_pool", "check_r1_scarce_memory", "check_r2_data_split", "check_r2_threshold",
    "check_r3_netmem", "check_r4_pp_flags", "check_r5_not_split", "check_r5_unreadable", "check_r6_sync",
    "check_r7_fragments", "check_r7_pool_destroyed_while_held", "check_r7_restarts_under_load",
    "check_r7_tokens_held", "check_tx1_transmit", "check_tx2_declared",
]  # fmt: skip

BOUND = ("pages", "dmabuf", "bar", "cuda")
EVERY = ("none", *BOUND)


@dataclass(frozen=True)
class Check:
    """A check, the requirement it is for, and the kinds of memory it runs with."""

    requirement: str
    run: Callable[[MakeDriver, str], str]
    memory: tuple[str, ...]

    @property
    def name(self) -> str:
        """As it is called in reports."""
        return self.run.__name__.removeprefix("check_")


# In this order: what later ones need comes first.
CHECKS = (
    Check("R2", check_r2_data_split, ("none",)),
    Check("R2", check_r2_threshold, ("none",)),
    Check("R4", check_r4_pp_flags, ("none",)),
    Check("R1", check_r1_page_pool, BOUND),
    Check("R1", check_r1_buffer_sizes, ("none", "dmabuf")),
    Check("R1", check_r1_jumbo_frames, ("none", "dmabuf")),
    Check("R1", check_r1_scarce_memory, ("pages", "dmabuf", "cuda")),  # a BAR's size is a power of two
    Check("R3", check_r3_netmem, EVERY),
    Check("R5", check_r5_unreadable, ("dmabuf", "bar", "cuda")),
    Check("R5", check_r5_not_split, EVERY),
    Check("R6", check_r6_sync, EVERY),
    Check("R7", check_r7_tokens_held, BOUND),
    Check("R7", check_r7_fragments, BOUND),
    Check("R7", check_r7_pool_destroyed_while_held, BOUND),
    Check("R7", check_r7_restarts_under_load, ("pages", "dmabuf", "cuda")),
    Check("TX2", check_tx2_declared, ("none",)),
    Check("TX1", check_tx1_transmit, ("dmabuf",)),
)
