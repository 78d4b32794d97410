"""The requirements as data: checkers, reports and documentation derive from this table.

Source: Documentation/networking/netmem.rst; TX1 and TX2 from netdevices.rst and the netmem transmit series.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Requirement:
    """One requirement. ``kernel``: the names concerned; ``needs``: what must hold to judge this one."""

    id: str
    title: str
    text: str
    kernel: tuple[str, ...]
    run_time: str
    source: str
    needs: tuple[str, ...] = ()


REQUIREMENTS: tuple[Requirement, ...] = (
    Requirement(
        "R1",
        "payload comes from a page pool",
        "Payload buffers are allocated from a page pool made for the queue and returned to it, so that a "
        "memory provider bound to the queue is what the NIC writes to.",
        ("page_pool_create", "page_pool_params.queue_idx", "page_pool_check_memory_provider"),
        "binds a provider, receives, looks where the payload lies, and counts what came back; with small and "
        "large frames and buffers, and less memory than the ring has places",
        "page_pool_create() in the receive path, and its buffers reach a descriptor",
        ("R2", "R4"),
    ),
    Requirement(
        "R2",
        "tcp-data-split can be set",
        "Users turn header split on and off through ethtool; the driver does as told and refuses what the "
        "device cannot do.",
        ("ETHTOOL_RING_USE_TCP_DATA_SPLIT", "set_ringparam", "tcp_data_split", "hds_thresh"),
        "sets split on, off, unknown and a threshold, and looks where headers and payload land",
        "supported_ring_params and set_ringparam",
    ),
    Requirement(
        "R3",
        "payload is tracked by netmem_ref",
        "Payload is allocated, addressed and released by the netmem calls, and remembered by reference; a "
        "page call on it would be wrong for memory that is no page.",
        ("netmem_ref", "page_pool_alloc_netmem", "page_pool_get_dma_addr_netmem", "page_pool_put_netmem"),
        "counts page calls on payload pools and references that are not the pool's",
        "types of the fields that hold payload, and the calls made with them",
        ("R2", "R4", "R1"),
    ),
    Requirement(
        "R4",
        "page pool flags",
        "PP_FLAG_DMA_MAP and PP_FLAG_DMA_SYNC_DEV always; PP_FLAG_ALLOW_UNREADABLE_NETMEM if and only if "
        "header split is on. The pool maps, not the driver.",
        ("PP_FLAG_DMA_MAP", "PP_FLAG_DMA_SYNC_DEV", "PP_FLAG_ALLOW_UNREADABLE_NETMEM"),
        "looks at every pool made with split on, off and unknown, and at who asked the bus to map",
        "flags that reach the payload pool, and the condition of the third",
        ("R2",),
    ),
    Requirement(
        "R5",
        "payload may be unreadable",
        "The driver never looks at payload: netmem_address() may be NULL. What the device did not split "
        "lies in header memory and is handed on as it is.",
        ("netmem_address", "netmem_is_net_iov", "skb_frags_readable"),
        "receives into memory that is not mapped, where looking faults, and packets that are not split",
        "payload turned into a page or an address without a guard",
        ("R2", "R4", "R1"),
    ),
    Requirement(
        "R6",
        "the pool syncs for the CPU",
        "page_pool_dma_sync_netmem_for_cpu() for all that the device wrote, and no sync of the driver's "
        "own on payload: the pool knows when one is due.",
        ("page_pool_dma_sync_netmem_for_cpu", "dma_sync_single_range_for_cpu"),
        "receives over a bus that bounces, and records raw sync calls",
        "dma_sync_*_for_cpu() on payload",
        ("R2", "R4", "R1"),
    ),
    Requirement(
        "R7",
        "no recycling beside the pool",
        "The driver keeps no netmem of its own: what it does not post goes back to the pool, and who "
        "needs it longer takes a fragment or a reference. Users may hold netmem for long.",
        ("page_pool_fragment_netmem", "page_pool_ref_netmem", "page_pool_put_netmem"),
        "holds tokens across many turns of the ring, destroys pools while they are held, restarts queues "
        "while packets come, and counts",
        "page reference counts, and arrays or lists of pages beside the pool",
        ("R2", "R4", "R1", "R3"),
    ),
    Requirement(
        "TX1",
        "netmem is transmitted as it is mapped",
        "A netmem's DMA address goes into the descriptor as it is and never into the DMA mapping calls; the "
        "packet is called done when the device has read it, and not before.",
        ("netmem_dma_unmap_addr_set", "netmem_dma_unmap_page_attrs", "skb_frag_dma_map", "net_iov"),
        "sends from memory that is mapped for the device only; looks at bytes, DMA calls and completions",
        "netmem_dma_unmap_page_attrs() in the transmit path",
        ("TX2",),
    ),
    Requirement(
        "TX2",
        "netmem transmit is declared",
        "The driver says which kind of netmem it can transmit, none included, so that nothing reaches it "
        "that it cannot handle.",
        ("netdev.netmem_tx", "NETMEM_TX_NONE", "NETMEM_TX_DMA", "NETMEM_TX_NO_DMA"),
        "looks at what the driver declares",
        "netmem_tx",
    ),
)

BY_ID = {requirement.id: requirement for requirement in REQUIREMENTS}
