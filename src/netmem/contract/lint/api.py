"""The kernel's calls that the rules and the converter know: data, said once.

Names and argument positions as in include/net/page_pool/helpers.h, include/net/netmem.h,
include/linux/skbuff.h and include/linux/dma-mapping.h.
"""

from __future__ import annotations

import re

CREATE = {"page_pool_create": 0, "page_pool_create_percpu": 0}  # position of the parameters

# Page call -> its netmem twin. What has none stays by hand.
TWINS = {
    "page_pool_alloc_pages": "page_pool_alloc_netmems",
    "page_pool_dev_alloc_pages": "page_pool_dev_alloc_netmems",
    "page_pool_alloc_frag": "page_pool_alloc_frag_netmem",
    "page_pool_alloc": "page_pool_alloc_netmem",
    "page_pool_dev_alloc": "page_pool_dev_alloc_netmem",
    "page_pool_get_dma_addr": "page_pool_get_dma_addr_netmem",
    "page_pool_put_page": "page_pool_put_netmem",
    "page_pool_put_full_page": "page_pool_put_full_netmem",
    "page_pool_put_unrefed_page": "page_pool_put_unrefed_netmem",
    "page_pool_recycle_direct": "page_pool_recycle_direct_netmem",
    "page_pool_fragment_page": "page_pool_fragment_netmem",
    "page_pool_ref_page": "page_pool_ref_netmem",
    "page_pool_unref_page": "page_pool_unref_netmem",
    "page_pool_dma_sync_for_cpu": "page_pool_dma_sync_netmem_for_cpu",
    "skb_add_rx_frag": "skb_add_rx_frag_netmem",
    "skb_fill_page_desc": "skb_fill_netmem_desc",
    "__skb_fill_page_desc": "__skb_fill_netmem_desc",
    "skb_frag_fill_page_desc": "skb_frag_fill_netmem_desc",
    "skb_can_coalesce": "skb_can_coalesce_netmem",
    "page_is_pfmemalloc": "netmem_is_pfmemalloc",
    "page_address": "netmem_address",
}
# Position of the page in those that take one; the others' result is the page.
PAGE_AT = {
    "page_pool_get_dma_addr": 0, "page_pool_put_page": 1, "page_pool_put_full_page": 1,
    "page_pool_put_unrefed_page": 1, "page_pool_recycle_direct": 1, "page_pool_fragment_page": 0,
    "page_pool_ref_page": 0, "page_pool_unref_page": 0, "page_pool_dma_sync_for_cpu": 1, "skb_add_rx_frag": 2,
    "skb_fill_page_desc": 2, "__skb_fill_page_desc": 2, "skb_frag_fill_page_desc": 1, "skb_can_coalesce": 2,
    "page_is_pfmemalloc": 0, "page_address": 0,
}  # fmt: skip

ALLOC_NETMEM = {
    "page_pool_alloc_netmems", "page_pool_dev_alloc_netmems", "page_pool_alloc_netmem",
    "page_pool_dev_alloc_netmem", "page_pool_alloc_frag_netmem",
}  # fmt: skip
ALLOC_PAGE = {
    "page_pool_alloc_pages", "page_pool_dev_alloc_pages", "page_pool_alloc_frag", "page_pool_dev_alloc_frag",
    "page_pool_alloc", "page_pool_dev_alloc",
}  # fmt: skip
ALLOC_VA = {"page_pool_alloc_va", "page_pool_dev_alloc_va"}

DMA_ADDRESS = {"page_pool_get_dma_addr": 0, "page_pool_get_dma_addr_netmem": 0, "netmem_get_dma_addr": 0}
CPU_ADDRESS = {
    "page_address": 0, "page_to_virt": 0, "lowmem_page_address": 0, "netmem_address": 0, "__netmem_address":
    0,
    "kmap_local_page": 0, "kmap_atomic": 0, "kmap": 0, "skb_frag_address": 0, "skb_frag_address_safe": 0,
    "page_to_phys": 0,
    "phys_to_virt": 0, "pfn_to_kaddr": 0, "bus_to_virt": 0,
}  # fmt: skip
TO_PAGE = {"netmem_to_page": 0, "__netmem_to_page": 0, "skb_frag_page": 0}
FROM_ADDRESS = {"virt_to_page": 0, "virt_to_head_page": 0, "virt_to_netmem": 0, "virt_to_folio": 0,
"phys_to_page": 0,
                "pfn_to_page": 0}  # fmt: skip
# The value of the call is that of one argument.
SAME = {
    "page_to_netmem": 0, "compound_head": 0, "page_folio": 0, "netmem_compound_head": 0, "READ_ONCE": 0,
    "likely": 0, "unlikely": 0, "ERR_CAST": 0, "PTR_ALIGN": 0, "rcu_dereference": 0, "rtnl_dereference": 0,
    "cpu_to_le64": 0, "cpu_to_le32": 0, "cpu_to_be64": 0, "cpu_to_be32": 0, "le64_to_cpu": 0, "le32_to_cpu":
    0,
    "lower_32_bits": 0, "upper_32_bits": 0, "be64_to_cpu": 0, "smp_load_acquire": 0,
    "rcu_dereference_bh": 0, "rcu_access_pointer": 0, "rcu_dereference_raw": 0, "iommu_iova_to_phys": 1,
    "dma_to_phys": 1, "PHYS_PFN": 0, "PFN_PHYS": 0,
    "rcu_dereference_protected": 0, "xchg": 0, "FIELD_PREP": 1, "__pp_page_to_nmdesc": 0,
    "pp_page_to_nmdesc": 0, "netmem_to_nmdesc": 0, "__netmem_to_nmdesc": 0,
    "WARN_ON": 0, "WARN_ON_ONCE": 0, "ALIGN": 0, "IS_ERR_OR_NULL": 0, "FIELD_GET": 1,
}  # fmt: skip
TO_DEVICE_ORDER = re.compile(
    r"^(cpu_to_[lb]e(16|32|64)|write[bwlq](_relaxed)?|iowrite\w+|lower_32_bits|upper_32_bits)$"
)

# A virtqueue gives back what it was given with a buffer: position of that, and the calls that return it.
COOKIE_IN = {"virtqueue_add_inbuf": 3, "virtqueue_add_inbuf_ctx": 3, "virtqueue_add_inbuf_premapped": 3}
COOKIE_OUT = {"virtqueue_get_buf", "virtqueue_get_buf_ctx", "virtqueue_detach_unused_buf"}
SUBJECT = {**DMA_ADDRESS, **CPU_ADDRESS, **TO_PAGE, **FROM_ADDRESS, "skb_frag_netmem": 0, "skb_frag_page": 0}
# Memory of no pool: what kind of value it is.
ALLOC_RAW = {
    "alloc_page": "buf", "alloc_pages": "buf", "alloc_pages_node": "buf", "dev_alloc_page": "buf",
    "dev_alloc_pages": "buf", "__dev_alloc_page": "buf", "__dev_alloc_pages": "buf",
    "__page_frag_alloc_align": "va",
    "napi_alloc_frag": "va", "netdev_alloc_frag": "va", "napi_alloc_frag_align": "va",
    "netdev_alloc_frag_align": "va",
    "page_frag_alloc": "va", "page_frag_alloc_align": "va", "__get_free_page": "va", "__get_free_pages": "va",
    "get_zeroed_page": "va",
}  # fmt: skip

# Where a buffer goes: position of page, netmem or address.
ATTACH_FRAG = {
    "skb_add_rx_frag": 2, "skb_add_rx_frag_netmem": 2, "skb_fill_page_desc": 2, "__skb_fill_page_desc": 2,
    "skb_fill_page_desc_noacc": 2, "__skb_fill_page_desc_noacc": 2, "skb_fill_netmem_desc": 2,
    "__skb_fill_netmem_desc": 2, "skb_frag_fill_page_desc": 1, "skb_frag_fill_netmem_desc": 1,
    "xdp_buff_add_frag": 1, "skb_can_coalesce_netmem": 2, "skb_can_coalesce": 2, "skb_frag_set_page": 1,
    "__skb_frag_set_page": 1, "__xdp_buff_add_frag": 1,
}  # fmt: skip
PAGE_ATTACH = {name for name in ATTACH_FRAG if "page" in name or name == "skb_add_rx_frag"}
ATTACH_LINEAR = {
    "build_skb": 0, "napi_build_skb": 0, "build_skb_around": 1, "slab_build_skb": 0, "xdp_prepare_buff": 1,
    "__build_skb": 0,
}  # fmt: skip
# Reads through an address: its position.
READS = {
    "memcpy": 1, "skb_copy_to_linear_data": 1, "skb_copy_to_linear_data_offset": 2, "skb_put_data": 1,
    "__skb_put_data": 1, "eth_get_headlen": 1, "prefetch": 0, "net_prefetch": 0, "prefetchw": 0,
    "net_prefetchw": 0,
    "memmove": 1, "memcpy_fromio": 1, "flush_dcache_page": 0, "dcache_inval_poc": 0, "skb_header_pointer": 2,
    "memcmp": 0, "get_unaligned_le32": 0, "arch_sync_dma_for_cpu": 0, "copy_page":
    1,
    "invalidate_dcache_range": 0, "dma_cache_inv": 0,
}  # fmt: skip
READS |= {
    "memset": 0,
    "memzero_explicit": 0,
    "kmemdup": 0,
    "print_hex_dump": 5,
    "memchr_inv": 0,
    "crc32_le": 1,
}
READS |= ATTACH_LINEAR

# Functions of the kernel's that are given an address for the CPU and do not look behind it.
KEEPS_OUT = {
    "BUG_ON", "IS_ALIGNED", "IS_ERR", "PTR_ERR", "PTR_ERR_OR_ZERO", "WARN", "__free_page", "__free_pages",
    "__xdp_return", "devm_kfree", "dma_mapping_error", "folio_put", "free_page", "free_pages",
    "is_vmalloc_addr", "kfree", "kvfree", "max", "max_t", "min", "min_t", "offset_in_page",
    "page_frag_free", "page_pool_free_va", "put_page", "sg_init_one", "sg_set_buf", "sizeof",
    "skb_free_frag", "virt_addr_valid", "virt_to_phys", "virtqueue_add_inbuf", "virtqueue_add_inbuf_ctx",
    "virtqueue_add_inbuf_premapped", "xdp_init_buff", "xdp_return_buff",
}  # fmt: skip
RAW_SYNC_CPU = re.compile(
    r"^_*(dma|pci_dma|ssb_dma|bcma_dma|swiotlb|pci|dma_direct|arch|virtqueue|virtqueue_dma|virtqueue_map)_sync_\w*(for_cpu|_cpu)\w*$"
)
POOL_SYNC = {"page_pool_dma_sync_for_cpu", "page_pool_dma_sync_netmem_for_cpu"}
RAW_SYNC_DEVICE = re.compile(r"^_*(dma|pci_dma)_sync_\w*for_device\w*$")
UNMAP = re.compile(
    r"^_*(dma|pci|netmem_dma)_unmap_(page|single|addr|phys|sg|sgtable|page_attrs|single_attrs|page_attrs)$"
)
UNMAP_ATTRS = re.compile(r"unmap_\w*attrs$")
MAP = re.compile(r"^_*(dma|pci)_map_(page|single|page_attrs|single_attrs|phys)$")
RELEASE_PAGE = {"page_pool_put_page", "page_pool_put_full_page", "page_pool_recycle_direct",
"page_pool_put_unrefed_page",
                "page_pool_free_va"}  # fmt: skip
RELEASE_NETMEM = {"page_pool_put_netmem", "page_pool_put_full_netmem", "page_pool_recycle_direct_netmem",
                  "page_pool_put_unrefed_netmem"}  # fmt: skip
# What keeps a buffer for later: position of the buffer, or of a list's node in it.
CONTAINERS = {
    "list_add": 0, "list_add_tail": 0, "list_move": 0, "list_move_tail": 0, "llist_add": 0,
    "hlist_add_head": 0,
    "ptr_ring_produce": 1, "__ptr_ring_produce": 1, "ptr_ring_produce_any": 1, "ptr_ring_produce_bh": 1,
    "kfifo_put": 1, "kfifo_in": 1, "xa_store": 2, "__xa_store": 2, "radix_tree_insert": 2,
}  # fmt: skip
BIAS = {"page_pool_fragment_page", "page_pool_fragment_netmem", "page_pool_unref_page",
"page_pool_unref_netmem",
        "page_pool_ref_page", "page_pool_ref_netmem"}  # fmt: skip
# Counts that are looked at or changed: not the plain frees, which keep nothing.
COUNTS = {"page_ref_count", "page_count", "folio_ref_count", "page_mapcount", "netmem_ref_count"}
REFCOUNT = {
    "page_ref_add", "page_ref_sub", "page_ref_inc", "page_ref_dec",
    "get_page",
    "set_page_count", "init_page_count", "page_ref_dec_and_test", "page_ref_sub_and_test",
    "put_page_testzero",
    "folio_get", "get_netmem", "page_ref_dec_return",
    "page_ref_sub_return", "page_ref_add_unless", "get_page_unless_zero",
}  # fmt: skip
HEADER_PULL = {"__pskb_pull_tail", "pskb_may_pull", "skb_linearize", "__skb_linearize"}
# Asked of a buffer: it goes nowhere by that.
ASKS = {
    "netmem_get_pp", "netmem_is_net_iov", "netmem_is_pfmemalloc", "netmem_is_pref_nid", "page_is_pfmemalloc",
    "page_to_nid", "page_size", "dev_page_is_reusable",
}  # fmt: skip
NET_IOV_TESTS = {"netmem_is_net_iov", "skb_frag_is_net_iov", "net_is_devmem_iov"}  # of one buffer
READABLE_TESTS = {"netmem_address", "skb_frag_readable"}  # the other way round
FRAG_READ = {"skb_frag_page", "skb_frag_address", "skb_frag_address_safe", "skb_frag_netmem"}
RECEIVES = {
    b"napi_gro_receive", b"napi_gro_frags", b"netif_receive_skb", b"napi_build_skb", b"build_skb",
    b"eth_type_trans", b"skb_add_rx_frag", b"skb_add_rx_frag_netmem",
}  # fmt: skip
POOL_TESTS = {
    "page_pool_is_unreadable",
    "netif_rxq_has_unreadable_mp",
    "netif_rxq_has_mp",
    "rxq_is_memory_provider",
}
WHOLE_TESTS = {"skb_frags_readable"}  # of all that a packet has
TESTS_BIT = {"test_bit", "__test_bit", "test_and_clear_bit", "test_and_set_bit"}
RUNS_XDP = {"bpf_prog_run_xdp", "bpf_prog_run", "xdp_do_redirect", "xdp_do_redirect_frame",
"xdp_convert_buff_to_frame",
            "do_xdp_generic", "bpf_prog_run_generic_xdp"}  # fmt: skip
XDP_TYPE = re.compile(r"\b(bpf_prog|xsk_buff_pool|xdp_umem|xdp_frame) \*")
# Fields of tables of functions through which XDP, self tests and transmit begin.
ASIDE_OPS = re.compile(r"^(ndo_bpf|ndo_xdp\w*|ndo_xsk_wakeup|xmo_\w+|self_test)$")
TRANSMITS = "ndo_start_xmit"
PRINTS = re.compile(r"print|_dbg|_info|_warn|_err|_notice|NL_SET", re.IGNORECASE)
SPLIT_CALLS = {"netif_rxq_has_unreadable_mp", "netif_rxq_has_mp", "rxq_is_memory_provider"}
SPLIT_FIELDS = {"tcp_data_split", "hds_config", "mp_params", "mp_priv", "mp_ops"}
ASKED_FIELDS = {"tcp_data_split", "hds_config"}
SPLIT_NAME = re.compile(
    r"hds|hdr_?split|header_?(data_)?split|data_split|split_h|h(ea)?d(e)?r_?data_?split|shampo|unreadable|"
    r"memory_provider|mem_provider|_mp_?(priv|params)|devmem|tcp_?data|hsplit|sph_?(en|cap|active)|\bsph\b",
    re.I,
)  # fmt: skip
FLAGS = ("PP_FLAG_DMA_MAP", "PP_FLAG_DMA_SYNC_DEV", "PP_FLAG_SYSTEM_POOL", "PP_FLAG_ALLOW_UNREADABLE_NETMEM")
FLAG_GROUPS = {"PP_FLAG_ALL": FLAGS}
RELEVANT = re.compile(
    rb"page_pool|netmem|libeth_(rx|fq|xdp)|_sync_\w*for_cpu|tcp_data_split|TCP_DATA_SPLIT|supported_ring_params"
)
MAKES = re.compile(rb"page_pool|libeth_rx")  # without these there is no payload to follow
RING = re.compile(rb"tcp_data_split|TCP_DATA_SPLIT|supported_ring_params")
SPLITS = re.compile(rb"tcp_data_split|TCP_DATA_SPLIT")
POOLS = re.compile(rb"page_pool_create|libeth_rx_fq_create|mt76_create_page_pool")
