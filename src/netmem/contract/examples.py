"""Why each requirement is there, and what code keeps it and what breaks it: for `netmem explain R5`.

The code is made up: a ring ``q`` of buffers ``buf``, each with a netmem.
"""

from __future__ import annotations

from dataclasses import dataclass

DOCUMENT = "Documentation/networking/netmem.rst"


@dataclass(frozen=True)
class Example:
    """``document``: where the kernel's document asks for it."""

    why: str
    good: str
    bad: str
    document: str


EXAMPLES: dict[str, Example] = {
    "R1": Example(
        "A memory provider hands out its memory through the page pool of the queue that it is bound to, and "
        "nowhere else: a buffer from another place is host memory, whatever was bound.",
        """struct page_pool_params pp = { .queue_idx = q->index, .netdev = netdev, ... };

q->page_pool = page_pool_create(&pp);
buf->netmem = page_pool_dev_alloc_netmems(q->page_pool);
desc->addr = cpu_to_le64(page_pool_get_dma_addr_netmem(buf->netmem));""",
        """buf->page = dev_alloc_page();            /* host memory, always */
buf->dma = dma_map_page(dev, buf->page, 0, PAGE_SIZE, DMA_FROM_DEVICE);""",
        "Driver Requirements, 1",
    ),
    "R2": Example(
        "The stack reads headers, and payload may be memory that it cannot read: the device has to put them "
        "apart, and whoever binds memory has to be able to ask for that.",
        """static const struct ethtool_ops ops = {
	.supported_ring_params = ETHTOOL_RING_USE_TCP_DATA_SPLIT,
	.set_ringparam = my_set_ringparam,
};

	/* in my_set_ringparam() */
	on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;
	if (on && !priv->can_split)
		return -EOPNOTSUPP;
	priv->split_on = on;                     /* and the rings are made again with it */""",
        """	/* in my_get_ringparam(), and nothing in the setter */
	kernel_ring->tcp_data_split = ETHTOOL_TCP_DATA_SPLIT_ENABLED;""",
        "Driver Requirements, 2",
    ),
    "R3": Example(
        "A netmem_ref stands for a page or for a net_iov, and only the netmem calls know which; what is "
        "called with a struct page that is none reads the wrong memory.",
        """netmem_ref netmem = page_pool_dev_alloc_netmems(q->page_pool);

skb_add_rx_frag_netmem(skb, nr_frags, buf->netmem, offset, len, truesize);
page_pool_put_full_netmem(q->page_pool, buf->netmem, true);""",
        """struct page *page = page_pool_dev_alloc_pages(q->page_pool);

skb_add_rx_frag(skb, nr_frags, buf->page, offset, len, truesize);
page_pool_put_full_page(q->page_pool, buf->page, true);""",
        "Driver Requirements, 3",
    ),
    "R4": Example(
        "Only the pool knows how its memory is mapped and when a sync is due; and a pool that may hold "
        "unreadable memory while headers are not split would lose them there.",
        """pp.flags = PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV;
if (priv->split_on)
	pp.flags |= PP_FLAG_ALLOW_UNREADABLE_NETMEM;""",
        """pp.flags = PP_FLAG_DMA_MAP | PP_FLAG_ALLOW_UNREADABLE_NETMEM;   /* always; no DMA_SYNC_DEV */""",
        "Driver Requirements, 4",
    ),
    "R5": Example(
        "Payload may lie in a GPU or another device. netmem_address() is NULL then, there is no struct page, "
        "and a read through either is a fault, or somebody else's memory.",
        """if (!netmem_is_net_iov(buf->netmem))
	prefetch(netmem_address(buf->netmem));

if (!has_header(desc) && netmem_is_net_iov(buf->netmem))
	goto drop;                               /* what was not split cannot be looked at */""",
        """va = page_address(netmem_to_page(buf->netmem));
if (len <= priv->copybreak)
	memcpy(skb_put(skb, len), va, len);      /* for every packet */""",
        "Driver Requirements, 5",
    ),
    "R6": Example(
        "A netmem's address need not be one that can be synced, and coherent memory needs no sync: the pool "
        "knows, the driver does not.",
        """page_pool_dma_sync_netmem_for_cpu(q->page_pool, buf->netmem, offset, len);""",
        """dma_sync_single_range_for_cpu(dev, buf->dma, offset, len, DMA_FROM_DEVICE);""",
        "Driver Requirements, 6",
    ),
    "R7": Example(
        "The pool decides from its own counts when memory is free; a second opinion, or a second store of "
        "buffers, keeps a provider's memory from it. Users may hold netmem for as long as they like.",
        """page_pool_fragment_netmem(buf->netmem, BIAS);   /* parts of a buffer: the pool's own count */
page_pool_put_full_netmem(q->page_pool, buf->netmem, false);""",
        """if (page_ref_count(buf->page) == 1)      /* nobody else has it: post it again */
	reuse(q, buf);
else
	q->spare[q->spares++] = buf->netmem;     /* for the next refill */""",
        "Driver Requirements, 7",
    ),
    "TX1": Example(
        "A net_iov has its DMA address already, for this device: to map it again, or to unmap it, is wrong.",
        """dma = skb_frag_dma_map(dev, frag, 0, size, DMA_TO_DEVICE);
netmem_dma_unmap_addr_set(skb_frag_netmem(frag), buf, dma, dma);

netmem_dma_unmap_page_attrs(dev, dma_unmap_addr(buf, dma), len, DMA_TO_DEVICE, 0);""",
        """dma = dma_map_page(dev, skb_frag_page(frag), offset, size, DMA_TO_DEVICE);
dma_unmap_page(dev, dma, len, DMA_TO_DEVICE);""",
        "TX Requirements, 1",
    ),
    "TX2": Example(
        "The stack hands a driver unreadable frags only when it says that it can send them.",
        """netdev->netmem_tx = NETMEM_TX_DMA;""",
        """/* nothing is declared, and TX1 is kept: nobody can send */""",
        "TX Requirements, 2",
    ),
}
