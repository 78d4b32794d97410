"""The static checker: each convention with cases that keep it and cases that break it, on a small driver of ours."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import need
from netmem.cli import check as check_command
from netmem.cli import explain as explain_command
from netmem.contract.lint import api, csource, tree
from netmem.contract.lint.check import check, understand
from netmem.contract.lint.rules import RULES, advice

TINY = Path(__file__).parent / "lint/tiny"
KEPT = dict.fromkeys([rule.id for rule in RULES], "pass")
NETMEM = [sys.executable, "-m", "netmem.cli.entry"]


def edited(folder, *edits):
    """A copy of the small driver with (file, old, new) edits."""
    target = folder / "tiny"
    shutil.copytree(TINY, target)
    for name, old, new in edits:
        path = target / name
        text = path.read_text()
        assert text.count(old) >= 1, (name, old)
        path.write_text(text.replace(old, new))
    return target


def judged(path, **options):
    """The report on one driver."""
    tree.forget()
    problems = []
    (report,) = check([path], problems, jobs=1, **options)
    assert problems == []
    return report


def verdicts(report):
    return {id_: v.verdict for id_, v in report.requirements.items()}


def lines(report, id_):
    """The source lines that evidence points at."""
    root = Path.cwd()
    return [
        (root / e.file).read_text().splitlines()[e.line - 1].strip()
        for e in report.requirements[id_].evidence
    ]


RX, MAIN, TOOL, HEAD = "tiny_rx.c", "tiny_main.c", "tiny_ethtool.c", "tiny.h"
SYNC = "page_pool_dma_sync_netmem_for_cpu(q->page_pool, buf->netmem, buf->offset, len);"
FLAG = "pp.flags |= PP_FLAG_ALLOW_UNREADABLE_NETMEM;"

# An enumeration of buffers, which a function returns and another decides by.
TINY_KINDS = (
    "enum tiny_kind {\n\tTINY_PAGE,\n\tTINY_REMOTE,\n};\n\nstatic enum tiny_kind tiny_kind_of(const struct tiny_buf *buf)\n{\n"
    "\treturn netmem_is_net_iov(buf->netmem) ? TINY_REMOTE : TINY_PAGE;\n}\n\nstatic bool tiny_may_look(enum tiny_kind kind)\n{\n"
    "\tswitch (kind) {\n\tcase %s:\n\t\treturn true;\n\tdefault:\n\t\tbreak;\n\t}\n\treturn false;\n}\n\nint tiny_rx_poll("
)

# What is broken by one edit, the verdict, and lines of evidence (exactly these).
BAD = {
    "no bit in supported_ring_params": (
        [(TOOL, ".supported_ring_params = ETHTOOL_RING_USE_TCP_DATA_SPLIT,", "")], "R2", "fail", None),
    "set_ringparam that does not look": (
        [(TOOL, "priv->split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;", "")],
        "R2 R4", "fail partial", None),
    "payload allocated as pages": (
        [(RX, "netmem = page_pool_dev_alloc_netmems(q->page_pool);",
          "netmem = page_to_netmem(page_pool_dev_alloc_pages(q->page_pool));")],
        "R3", "fail", ["netmem = page_to_netmem(page_pool_dev_alloc_pages(q->page_pool));"]),
    "payload attached as a page": (
        [(RX, "skb_add_rx_frag_netmem(skb, skb_shinfo(skb)->nr_frags, buf->netmem,",
          "skb_add_rx_frag(skb, skb_shinfo(skb)->nr_frags, buf->netmem,")],
        "R3", "partial",
        ["skb_add_rx_frag(skb, skb_shinfo(skb)->nr_frags, buf->netmem, buf->offset, len, PAGE_SIZE);"]),
    "no DMA_SYNC_DEV": (
        [(HEAD, "(PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV)", "(PP_FLAG_DMA_MAP)")], "R4", "fail",
        ["pool = page_pool_create(&pp);"]),
    "unreadable never allowed": ([(MAIN, FLAG, "")], "R4", "partial", None),
    "unreadable always allowed": (
        [(MAIN, ".flags = TINY_PP_FLAGS,", ".flags = TINY_PP_FLAGS | PP_FLAG_ALLOW_UNREADABLE_NETMEM,"),
         (MAIN, FLAG, "")], "R4", "partial", None),
    "unreadable the wrong way round": (
        [(MAIN, "if (q->priv->split_on) {", "if (!q->priv->split_on) {")], "R4", "partial", None),
    "unreadable under another condition": (
        [(MAIN, "if (q->priv->split_on) {", "if (q->priv->fancy) {")], "R4", "partial", None),
    "the driver maps payload": (
        [(RX, "buf->dma = page_pool_get_dma_addr_netmem(netmem);",
          "buf->dma = dma_map_page(q->priv->dev, netmem_to_page(netmem), 0, PAGE_SIZE, DMA_FROM_DEVICE);")],
        "R4 R5", "fail fail", None),
    "the setting is kept in a copy": (
        [(TOOL, "priv->split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;",
          "struct tiny_priv wanted = *priv;\n\n\twanted.split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;\n"
          "\tpriv->fancy = wanted.fancy;")],
        "R2", "fail", None),
    "the setting is kept after it was handed on": (
        [(TOOL, "static int tiny_set_ringparam", "static int tiny_restart(struct tiny_priv *priv, const struct tiny_priv *wanted)\n{\n"
                "\tpriv->split_on = wanted->split_on;\n\treturn 0;\n}\n\nstatic int tiny_set_ringparam"),
         (TOOL, "priv->split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;\n\treturn 0;",
          "struct tiny_priv wanted = *priv;\n\tint err = tiny_restart(priv, &wanted);\n\n"
          "\twanted.split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;\n\treturn err;")],
        "R2", "fail", None),
    "the setting is forgotten while the device is up": (
        [(TOOL, "priv->split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;\n\treturn 0;",
          "int err = 0;\n\n\tif (ring->rx_pending > 4096)\n\t\terr = -EINVAL;\n\telse if (!netif_running(netdev))\n"
          "\t\tpriv->split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;\n\treturn err;")],
        "R2", "partial", None),
    "rings are made by whether split is known, not by whether it is on": (
        [(MAIN, "static int tiny_make_pools", "static u8 tiny_split(const struct tiny_priv *priv)\n{\n\treturn priv->split_on ? "
                "ETHTOOL_TCP_DATA_SPLIT_ENABLED : ETHTOOL_TCP_DATA_SPLIT_DISABLED;\n}\n\nstatic int tiny_make_pools"),
         (MAIN, "if (q->priv->split_on) {", "if (tiny_split(q->priv) != ETHTOOL_TCP_DATA_SPLIT_UNKNOWN) {")],
        "R2", "fail", None),
    "a kind of buffer is asked for, and the wrong one looked at": (
        [(RX, "int tiny_rx_poll(", TINY_KINDS % "TINY_REMOTE"), (RX, "if (tiny_readable(buf))", "if (tiny_may_look(tiny_kind_of(buf)))")],
        "R5", "fail", ["prefetch(netmem_address(buf->netmem));"]),
    "another queue is asked for its provider": (
        [(MAIN, "if (q->priv->split_on) {", "if (netif_rxq_has_unreadable_mp(q->priv->netdev, 0)) {")],
        "R4", "partial", None),
    "buffers kept beside the ring by helpers, in structures assigned whole": (
        [(RX, "int tiny_rx_refill(", "static bool tiny_keep(struct tiny_queue *q, const struct tiny_buf *buf)\n{\n\tif (q->spare.netmem)\n"
              "\t\treturn false;\n\tq->spare = *buf;\n\treturn true;\n}\n\n"
              "static void tiny_take(struct tiny_queue *q, struct tiny_buf *buf)\n{\n\tif (!buf->netmem)\n\t\t*buf = q->spare;\n}\n\n"
              "int tiny_rx_refill("),
         (RX, "if (tiny_fill_head(q, i))", "tiny_take(q, buf);\n\t\tif (tiny_fill_head(q, i))"),
         (RX, "page_pool_put_full_netmem(q->page_pool, buf->netmem, true);",
          "if (!tiny_keep(q, buf))\n\t\t\t\tpage_pool_put_full_netmem(q->page_pool, buf->netmem, true);")],
        "R7", "fail", ["q->spare = *buf;"]),
    "payload read that came back in an array": (
        [(RX, "int tiny_rx_poll(", "static void tiny_take(struct tiny_buf *buf, netmem_ref out[])\n{\n\tout[0] = buf->netmem;\n}\n\n"
              "int tiny_rx_poll("),
         (RX, "struct sk_buff *skb;\n\n\t\tskb = tiny", "netmem_ref got[1];\n\t\tstruct sk_buff *skb;\n\n\t\ttiny_take(buf, got);\n"
              "\t\tprefetch(netmem_address(got[0]));\n\t\tskb = tiny")],
        "R5", "fail", ["prefetch(netmem_address(got[0]));"]),
    "prefetch without a guard": (
        [(RX, "if (tiny_readable(buf))\n", "")], "R5", "fail", ["prefetch(netmem_address(buf->netmem));"]),
    "the guard the wrong way round": (
        [(RX, "return !netmem_is_net_iov(buf->netmem);", "return netmem_is_net_iov(buf->netmem);")],
        "R5", "fail", ["prefetch(netmem_address(buf->netmem));"]),
    "copybreak": (
        [(RX, "\tbuf->netmem = 0;\n", "\tif (len < 256)\n\t\tskb_copy_to_linear_data(skb, netmem_address(buf->netmem), len);\n"
          "\tbuf->netmem = 0;\n")],
        "R5", "fail", ["skb_copy_to_linear_data(skb, netmem_address(buf->netmem), len);"]),
    "payload becomes a page": (
        [(RX, "\tbuf->netmem = 0;\n", "\tflush_dcache_page(netmem_to_page(buf->netmem));\n\tbuf->netmem = 0;\n")],
        "R5", "fail", ["flush_dcache_page(netmem_to_page(buf->netmem));"]),
    "raw sync": (
        [(RX, SYNC, "dma_sync_single_for_cpu(q->priv->dev, buf->dma, len, DMA_FROM_DEVICE);")],
        "R6", "fail", ["dma_sync_single_for_cpu(q->priv->dev, buf->dma, len, DMA_FROM_DEVICE);"]),
    "raw sync through a helper of the header": (
        [(RX, SYNC, "dma_sync_single_range_for_cpu(q->priv->dev, tiny_buf_dma(buf), 0, len, DMA_FROM_DEVICE);")],
        "R6", "fail",
        ["dma_sync_single_range_for_cpu(q->priv->dev, tiny_buf_dma(buf), 0, len, DMA_FROM_DEVICE);"]),
    "raw sync beside the pool's": (
        [(RX, SYNC, SYNC + "\n\tdma_sync_single_for_cpu(q->priv->dev, page_pool_get_dma_addr_netmem(buf->netmem), len, 2);")],
        "R6", "fail",
        ["dma_sync_single_for_cpu(q->priv->dev, page_pool_get_dma_addr_netmem(buf->netmem), len, 2);"]),
    "an unmap that syncs": (
        [(RX, SYNC, "dma_unmap_page(q->priv->dev, buf->dma, PAGE_SIZE, DMA_FROM_DEVICE);")],
        "R6", "fail", ["dma_unmap_page(q->priv->dev, buf->dma, PAGE_SIZE, DMA_FROM_DEVICE);"]),
    "page count": (
        [(RX, "\tbuf->netmem = 0;\n", "\tif (page_ref_count(buf->page) == 1)\n\t\treturn;\n\tbuf->netmem = 0;\n"),
         (RX, "buf->netmem = netmem;", "buf->netmem = netmem;\n\t\tbuf->page = __netmem_to_page(netmem);")],
        "R5 R7", "fail fail", None),
    "a reference of its own": (
        [(RX, "\tbuf->netmem = 0;\n", "\tget_netmem(buf->netmem);\n\tbuf->netmem = 0;\n")],
        "R7", "fail", ["get_netmem(buf->netmem);"]),
    "a place beside the ring": (
        [(RX, "page_pool_put_full_netmem(q->page_pool, buf->netmem, true);", "q->spare.netmem = buf->netmem;"),
         (RX, "netmem = page_pool_dev_alloc_netmems(q->page_pool);",
              "netmem = q->spare.netmem;\n\t\tif (!netmem)\n\t\t\tnetmem = page_pool_dev_alloc_netmems(q->page_pool);")],
        "R7", "fail", ["q->spare.netmem = buf->netmem;"]),
    "a whole buffer put aside": (
        [(RX, "page_pool_put_full_netmem(q->page_pool, buf->netmem, true);", "q->spare = *buf;"),
         (RX, "struct tiny_buf *buf = &q->bufs[i];\n", "struct tiny_buf *buf = &q->bufs[i];\n\n\t\tif (q->spare.netmem) {\n\t\t\t*buf = q->spare;\n\t\t\tcontinue;\n\t\t}\n")],
        "R7", "fail", ["q->spare = *buf;"]),
    "a list of pages": (
        [(RX, "\tbuf->netmem = 0;\n", "\tlist_add(&netmem_to_page(buf->netmem)->lru, &q->priv->spares);\n\tbuf->netmem = 0;\n")],
        "R5 R7", "fail fail", None),
    "a table of functions": (
        [(RX, "static int tiny_fill_head", "static void tiny_nothing(struct tiny_buf *buf)\n{\n}\n\nstatic void tiny_look(struct tiny_buf *buf)\n{\n"
              "\tprefetch(netmem_address(buf->netmem));\n}\n\nstatic void (*const tiny_ways[])(struct tiny_buf *buf) = { tiny_nothing, tiny_look };\n\n"
              "static int tiny_fill_head"),
         (RX, "if (tiny_readable(buf))\n\t\t\tprefetch(netmem_address(buf->netmem));", "tiny_ways[len > 64](buf);")],
        "R5", "fail", ["prefetch(netmem_address(buf->netmem));"]),
    "read back from the packet": (
        [(RX, "\tbuf->netmem = 0;\n", "\tbuf->netmem = 0;\n\tmemcpy(skb->data, skb_frag_address(&skb_shinfo(skb)->frags[0]), 64);\n")],
        "R5", "fail", None),
    "one of two ways takes pages": (
        [(RX, "netmem = page_pool_dev_alloc_netmems(q->page_pool);",
          "netmem = i & 1 ? page_to_netmem(page_pool_dev_alloc_pages(q->page_pool)) : page_pool_dev_alloc_netmems(q->page_pool);")],
        "R3", "partial", None),
    "raw sync hidden in a macro": (
        [(HEAD, "int tiny_rx_refill", "#define tiny_see(q, b, l) dma_sync_single_for_cpu((q)->priv->dev, (b)->dma, l, 2)\n\nint tiny_rx_refill"),
         (RX, SYNC, "tiny_see(q, buf, len);")], "R6", "fail", None),
    "another name for the raw sync": (
        [(HEAD, "int tiny_rx_refill", "#define tiny_see dma_sync_single_for_cpu\n\nint tiny_rx_refill"),
         (RX, SYNC, "tiny_see(q->priv->dev, buf->dma, len, 2);")], "R6", "fail", ["tiny_see(q->priv->dev, buf->dma, len, 2);"]),
    "the setting only named in a comment": (
        [(TOOL, "priv->split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;", "/* tcp_data_split is ignored */")],
        "R2 R4", "fail partial", None),
    "the setting only printed": (
        [(TOOL, "priv->split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;",
          'netdev_dbg(netdev, "%d", kernel_ring->tcp_data_split);')], "R2 R4", "fail partial", None),
    "kept the wrong way round by the setter": (
        [(TOOL, "kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED", "kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_DISABLED")],
        "R4", "partial", None),
    "a guard on another buffer": (
        [(RX, "if (tiny_readable(buf))\n", "if (tiny_readable(&q->spare))\n")], "R5", "fail",
        ["prefetch(netmem_address(buf->netmem));"]),
    "a guard before the buffer was taken": (
        [(RX, "\t\tif (tiny_readable(buf))\n\t\t\tprefetch(netmem_address(buf->netmem));\n",
              "\t\tif (!tiny_readable(buf))\n\t\t\tcontinue;\n\t\tbuf = &q->bufs[done + 1];\n\t\tprefetch(netmem_address(buf->netmem));\n")],
        "R5", "fail", ["prefetch(netmem_address(buf->netmem));"]),
    "a guard before the netmem was exchanged": (
        [(RX, "\t\tif (tiny_readable(buf))\n\t\t\tprefetch(netmem_address(buf->netmem));\n",
              "\t\tif (tiny_readable(buf)) {\n\t\t\tbuf->netmem = q->spare.netmem;\n\t\t\tprefetch(netmem_address(buf->netmem));\n\t\t}\n")],
        "R5", "fail", ["prefetch(netmem_address(buf->netmem));"]),
    "a bit of the packet is no guard": (
        [(HEAD, "\t__le32 len;", "\t__le32 len;\n\t__le32 hdr_split;"),
         (RX, "if (tiny_readable(buf))\n", "if (!(q->ring[done].hdr_split & cpu_to_le32(1)))\n")],
        "R5", "fail", ["prefetch(netmem_address(buf->netmem));"]),
    "a guard on one of two ways": (
        [(RX, "\t\tif (tiny_readable(buf))\n", "\t\tif (tiny_readable(buf) || len > 64)\n")], "R5", "fail",
        ["prefetch(netmem_address(buf->netmem));"]),
    "a jump past the guard": (
        [(RX, "\t\tif (tiny_readable(buf))\n\t\t\tprefetch(netmem_address(buf->netmem));\n",
              "\t\tif (len > 64)\n\t\t\tgoto look;\n\t\tif (tiny_readable(buf)) {\nlook:\n\t\t\tprefetch(netmem_address(buf->netmem));\n\t\t}\n")],
        "R5", "fail", ["prefetch(netmem_address(buf->netmem));"]),
    "a name says XDP and no path does": (
        [(RX, "int tiny_rx_poll", "static void tiny_xdp_touch(struct tiny_buf *buf)\n{\n\tprefetch(netmem_address(buf->netmem));\n}\n\nint tiny_rx_poll"),
         (RX, "\t\tif (tiny_readable(buf))\n\t\t\tprefetch(netmem_address(buf->netmem));\n", "\t\ttiny_xdp_touch(buf);\n")],
        "R5", "fail", ["prefetch(netmem_address(buf->netmem));"]),
    "unreadable masked out again": (
        [(MAIN, FLAG, FLAG + "\n\t\tpp.flags &= ~PP_FLAG_ALLOW_UNREADABLE_NETMEM;")], "R4", "partial", None),
    "a mask without sync": (
        [(MAIN, "\tpool = page_pool_create(&pp);\n\tif", "\tpp.flags &= PP_FLAG_DMA_MAP;\n\tpool = page_pool_create(&pp);\n\tif")],
        "R4", "fail", ["pool = page_pool_create(&pp);"]),
    "mapping toggled off": (
        [(MAIN, "\tpool = page_pool_create(&pp);\n\tif", "\tpp.flags ^= PP_FLAG_DMA_MAP;\n\tpool = page_pool_create(&pp);\n\tif")],
        "R4", "fail", ["pool = page_pool_create(&pp);"]),
    "one of two conditions is another": (
        [(MAIN, FLAG, FLAG + "\n\t} else if (q->priv->fancy) {\n\t\t" + FLAG)], "R4", "partial", None),
    "the setting overwritten": (
        [(TOOL, "== ETHTOOL_TCP_DATA_SPLIT_ENABLED;\n\treturn 0;", "== ETHTOOL_TCP_DATA_SPLIT_ENABLED;\n\tpriv->split_on = false;\n\treturn 0;")],
        "R2", "fail", None),
    "the setting kept where nobody looks": (
        [(HEAD, "\tbool fancy;", "\tbool fancy;\n\tbool wanted;"),
         (TOOL, "priv->split_on = kernel", "priv->wanted = kernel")], "R2 R4", "fail partial", None),
    "the setting in a structure of its own": (
        [(TOOL, "\tpriv->split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;",
                "\tstruct tiny_priv next = {};\n\n\tnext.split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;")],
        "R2", "fail", None),
    "both ways the same": (
        [(TOOL, "priv->split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;",
                'if (kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED)\n\t\tnetdev_dbg(netdev, "on");')],
        "R2 R4", "fail partial", None),
    "sync in one configuration only": (
        [(MAIN, ".flags = TINY_PP_FLAGS,", ".flags = PP_FLAG_DMA_MAP\n#ifdef CONFIG_TINY_SYNC\n\t\t\t | PP_FLAG_DMA_SYNC_DEV\n#endif\n\t\t\t,")],
        "R4", "fail", None),
    "no sync in one configuration": (
        [(MAIN, "\t\t.flags = TINY_PP_FLAGS,", "#ifndef CONFIG_TINY_COHERENT\n\t\t.flags = TINY_PP_FLAGS,\n#else\n\t\t.flags = PP_FLAG_DMA_MAP,\n#endif")],
        "R4", "fail", None),
    "sync under an #ifdef of statements": (
        [(MAIN, ".flags = TINY_PP_FLAGS,", ".flags = PP_FLAG_DMA_MAP,"),
         (MAIN, "\tpool = page_pool_create(&pp);\n\tif", "#ifdef CONFIG_TINY_SYNC\n\tpp.flags |= PP_FLAG_DMA_SYNC_DEV;\n#endif\n\tpool = page_pool_create(&pp);\n\tif")],
        "R4", "partial", None),
    "the bit in one configuration only": (
        [(TOOL, "= ETHTOOL_RING_USE_TCP_DATA_SPLIT,", "= 0\n#ifdef CONFIG_TINY_SPLIT\n\t\t| ETHTOOL_RING_USE_TCP_DATA_SPLIT\n#endif\n\t\t,")],
        "R2", "fail", None),
    "split or something else": (
        [(MAIN, "if (q->priv->split_on) {", "if (q->priv->split_on || q->priv->fancy) {")], "R4", "partial", None),
}  # fmt: skip
NO_POOL = {
    "payload of the page allocator": (
        [(RX, "netmem = page_pool_dev_alloc_netmems(q->page_pool);\n\t\tif (!netmem)\n\t\t\treturn -ENOMEM;",
              "struct page *page = dev_alloc_page();\n\n\t\tif (!page)\n\t\t\treturn -ENOMEM;\n\t\tnetmem = page_to_netmem(page);"),
         (RX, "buf->dma = page_pool_get_dma_addr_netmem(netmem);",
              "buf->dma = dma_map_page(q->priv->dev, page, 0, PAGE_SIZE, DMA_FROM_DEVICE);")],
        "R1", "fail", ["struct page *page = dev_alloc_page();"]),
}  # fmt: skip

# Edits that change nothing that matters.
GOOD = {
    "the setting goes to whoever makes the rings, in a structure of its own": [
        (TOOL, "static int tiny_set_ringparam", "static int tiny_restart(struct tiny_priv *priv, const struct tiny_priv *wanted)\n{\n"
               "\tpriv->split_on = wanted->split_on;\n\treturn 0;\n}\n\nstatic int tiny_set_ringparam"),
        (TOOL, "priv->split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;\n\treturn 0;",
         "struct tiny_priv wanted = *priv;\n\tbool on = false;\n\n\tswitch (kernel_ring->tcp_data_split) {\n"
         "\tcase ETHTOOL_TCP_DATA_SPLIT_ENABLED:\n\t\ton = true;\n\t\tbreak;\n\tdefault:\n\t\tbreak;\n\t}\n"
         "\tif (on == priv->split_on)\n\t\treturn 0;\n\twanted.split_on = on;\n\treturn tiny_restart(priv, &wanted);")],
    "rings are made by what a function says of split": [
        (MAIN, "static int tiny_make_pools", "static u8 tiny_split(const struct tiny_priv *priv)\n{\n\treturn priv->split_on ? "
               "ETHTOOL_TCP_DATA_SPLIT_ENABLED : ETHTOOL_TCP_DATA_SPLIT_DISABLED;\n}\n\nstatic int tiny_make_pools"),
        (MAIN, "if (q->priv->split_on) {", "if (tiny_split(q->priv) == ETHTOOL_TCP_DATA_SPLIT_ENABLED) {")],
    "an #ifdef among arguments that have nothing to do with it": [
        (RX, "static void tiny_add_frag(struct tiny_queue *q, struct sk_buff *skb, struct tiny_buf *buf, u32 len)\n{\n",
         "static void tiny_add_frag(struct tiny_queue *q, struct sk_buff *skb, struct tiny_buf *buf, u32 len)\n{\n"
         "\ttiny_note(q,\n#ifdef CONFIG_TINY\n\t\t  1,\n#else\n\t\t  2,\n#endif\n\t\t  true);\n")],
    "a kind of buffer is asked for by a switch": [
        (RX, "int tiny_rx_poll(", TINY_KINDS % "TINY_PAGE"), (RX, "if (tiny_readable(buf))", "if (tiny_may_look(tiny_kind_of(buf)))")],
    "a kind of buffer is compared": [
        (RX, "int tiny_rx_poll(", TINY_KINDS % "TINY_PAGE"), (RX, "if (tiny_readable(buf))", "if (tiny_kind_of(buf) != TINY_REMOTE)")],
    "the pool's own queue is asked for its provider": [
        (MAIN, "if (q->priv->split_on) {", "if (netif_rxq_has_unreadable_mp(q->priv->netdev, q->index)) {")],
    "flags in another order": [(HEAD, "(PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV)", "(PP_FLAG_DMA_SYNC_DEV | PP_FLAG_DMA_MAP)")],
    "flags by assignment": [(MAIN, "\t\t.flags = TINY_PP_FLAGS,\n", ""),
                            (MAIN, "\tpool = page_pool_create(&pp);\n\tif", "\tpp.flags = PP_FLAG_DMA_MAP;\n\tpp.flags |= PP_FLAG_DMA_SYNC_DEV;\n"
                                   "\tpool = page_pool_create(&pp);\n\tif")],
    "flags by a conditional": [(MAIN, FLAG, "pp.flags = TINY_PP_FLAGS | (q->priv->split_on ? PP_FLAG_ALLOW_UNREADABLE_NETMEM : 0);")],
    "flags by a helper": [
        (MAIN, "static int tiny_make_pools", "static void tiny_allow(struct page_pool_params *params)\n{\n\tparams->flags |= "
               "PP_FLAG_ALLOW_UNREADABLE_NETMEM;\n}\n\nstatic int tiny_make_pools"),
        (MAIN, FLAG, "tiny_allow(&pp);")],
    "the provider asked": [(MAIN, "if (q->priv->split_on) {", "if (netif_rxq_has_unreadable_mp(q->priv->netdev, q->index)) {")],
    "the setting compared": [(MAIN, "if (q->priv->split_on) {", "if (q->priv->netdev->cfg->hds_config == ETHTOOL_TCP_DATA_SPLIT_ENABLED) {")],
    "comments that name calls": [(RX, SYNC, "/* dma_sync_single_for_cpu(dev, buf->dma) was here; page_ref_count() too */\n\t" + SYNC)],
    "dead code": [(RX, SYNC, SYNC + "\n#if 0\n\tdma_sync_single_for_cpu(q->priv->dev, buf->dma, len, 2);\n\tget_netmem(buf->netmem);\n#endif")],
    "renamed variables": [(RX, "netmem_ref netmem;", "netmem_ref ref;"), (RX, "netmem = page_pool_dev", "ref = page_pool_dev"),
                          (RX, "if (!netmem)", "if (!ref)"), (RX, "buf->netmem = netmem;", "buf->netmem = ref;"),
                          (RX, "addr_netmem(netmem)", "addr_netmem(ref)")],
    "a renamed field": [(RX, "q->page_pool", "q->rx_pool"), (MAIN, "q->page_pool", "q->rx_pool"),
                        (HEAD, "struct page_pool *page_pool;", "struct page_pool *rx_pool;")],
    "header fields that are called payload": [(RX, "q->head_pool", "q->payload_pool"), (MAIN, "q->head_pool", "q->payload_pool"),
                                              (HEAD, "struct page_pool *head_pool;", "struct page_pool *payload_pool;")],
    "a macro that releases": [
        (HEAD, "int tiny_rx_refill", "#define tiny_put(q, b) page_pool_put_full_netmem((q)->page_pool, (b)->netmem, true)\n\nint tiny_rx_refill"),
        (RX, "page_pool_put_full_netmem(q->page_pool, buf->netmem, true);", "tiny_put(q, buf);")],
    "a NULL test of the address": [(RX, "if (tiny_readable(buf))\n", "if (netmem_address(buf->netmem))\n")],
    "the address kept and tested": [
        (RX, "\t\tif (tiny_readable(buf))\n\t\t\tprefetch(netmem_address(buf->netmem));\n",
             "\t\tvoid *va = netmem_address(buf->netmem);\n\n\t\tif (va)\n\t\t\tprefetch(va);\n")],
    "a guard that leaves": [
        (RX, "\tbuf->netmem = 0;\n", "\tif (netmem_is_net_iov(buf->netmem))\n\t\treturn;\n\tprefetch(netmem_address(buf->netmem));\n")],
    "a guard in the caller": [
        (RX, "int tiny_rx_poll", "static void tiny_touch(struct tiny_buf *buf)\n{\n\tprefetch(netmem_address(buf->netmem));\n}\n\nint tiny_rx_poll"),
        (RX, "prefetch(netmem_address(buf->netmem));\n\t\ttiny_add", "tiny_touch(buf);\n\t\ttiny_add")],
    "only while split is off": [(RX, "if (tiny_readable(buf))\n", "if (!q->priv->split_on)\n")],
    "only for XDP": [(RX, "if (tiny_readable(buf))\n", "if (q->xdp_prog)\n")],
    "an unmap that does not sync": [
        (RX, SYNC, SYNC + "\n\tdma_unmap_page_attrs(q->priv->dev, buf->dma, len, 2, DMA_ATTR_SKIP_CPU_SYNC);")],
    "a bias of the pool's": [
        (RX, "buf->netmem = netmem;", "buf->netmem = netmem;\n\t\tpage_pool_fragment_netmem(netmem, 64);")],
    "a self test": [
        (TOOL, "const struct ethtool_ops", "static void tiny_diag(struct net_device *netdev, struct ethtool_test *test, u64 *data)\n{\n\t"
               "struct tiny_priv *priv = netdev_priv(netdev);\n\n\tdma_sync_single_for_cpu(priv->dev, priv->rx[0].bufs[0].dma, 64, 2);\n}\n\n"
               "const struct ethtool_ops"),
        (TOOL, ".get_ringparam", ".self_test = tiny_diag,\n\t.get_ringparam")],
    "a mode without the pool": [
        (RX, SYNC, "if (q->page_pool)\n\t\t" + SYNC + "\n\telse\n\t\tdma_sync_single_for_cpu(q->priv->dev, buf->dma, len, 2);")],
    "functions in another order": [
        (RX, "static bool tiny_readable(const struct tiny_buf *buf)\n{\n\treturn !netmem_is_net_iov(buf->netmem);\n}\n\n", ""),
        (RX, "static int tiny_fill_head", "static bool tiny_readable(const struct tiny_buf *buf)\n{\n\treturn !netmem_is_net_iov(buf->netmem);\n}\n\n"
             "static int tiny_fill_head")],
    "a guard's result kept": [
        (RX, "if (tiny_readable(buf))\n", "bool ok = tiny_readable(buf);\n\n\t\tif (ok)\n")],
    "a conditional expression as guard": [
        (RX, "\t\tif (tiny_readable(buf))\n\t\t\tprefetch(netmem_address(buf->netmem));\n",
             "\t\tprefetch(tiny_readable(buf) ? netmem_address(buf->netmem) : NULL);\n")],
    "the setting by a conditional expression": [
        (TOOL, "== ETHTOOL_TCP_DATA_SPLIT_ENABLED;", "== ETHTOOL_TCP_DATA_SPLIT_ENABLED ? true : false;")],
    "the setting by branches": [
        (TOOL, "priv->split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;",
               "if (kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_DISABLED)\n\t\tpriv->split_on = false;\n\telse\n\t\tpriv->split_on = true;")],
    "a guard and a goto": [
        (RX, "\t\tif (tiny_readable(buf))\n\t\t\tprefetch(netmem_address(buf->netmem));\n",
             "\t\tif (netmem_is_net_iov(buf->netmem))\n\t\t\tgoto add;\n\t\tprefetch(netmem_address(buf->netmem));\nadd:\n")],
    "a guard by switch": [
        (RX, "\t\tif (tiny_readable(buf))\n\t\t\tprefetch(netmem_address(buf->netmem));\n",
             "\t\tswitch (tiny_readable(buf)) {\n\t\tcase true:\n\t\t\tprefetch(netmem_address(buf->netmem));\n\t\t\tbreak;\n"
             "\t\tdefault:\n\t\t\tbreak;\n\t\t}\n")],
    "not with a pool and unreadable": [
        (RX, "if (tiny_readable(buf))\n", "if (!(q->page_pool && netmem_is_net_iov(buf->netmem)))\n")],
    "a doubly negated guard": [(RX, "if (tiny_readable(buf))\n", "if (likely(!!tiny_readable(buf)))\n")],
    "a guard on a copy": [
        (RX, "\t\tif (tiny_readable(buf))\n\t\t\tprefetch(netmem_address(buf->netmem));\n",
             "\t\tnetmem_ref mine = buf->netmem;\n\n\t\tif (!netmem_is_net_iov(mine))\n\t\t\tprefetch(netmem_address(mine));\n")],
    "a flag set behind the guard": [
        (RX, "\t\tif (tiny_readable(buf))\n\t\t\tprefetch(netmem_address(buf->netmem));\n",
             "\t\tint look = 0;\n\n\t\tif (tiny_readable(buf))\n\t\t\tlook = 1;\n\t\tif (look)\n\t\t\tprefetch(netmem_address(buf->netmem));\n")],
    "XDP by a mode of the buffer": [
        (HEAD, "\tunsigned int bias;", "\tunsigned int bias;\n\tint mode;"),
        (HEAD, "int tiny_rx_refill", "enum { TINY_PLAIN, TINY_PROGRAM };\n\nint tiny_rx_refill"),
        (RX, "buf->netmem = netmem;", "buf->netmem = netmem;\n\t\tbuf->mode = q->xdp_prog ? TINY_PROGRAM : TINY_PLAIN;"),
        (RX, "if (tiny_readable(buf))\n", "if (buf->mode == TINY_PROGRAM)\n")],
    "XDP renamed": [
        (HEAD, "struct bpf_prog *xdp_prog;", "struct bpf_prog *filter;\n\tbool filtered;"),
        (RX, "int i;\n", "int i;\n\n\tq->filtered = !!q->filter;\n"),
        (RX, "if (tiny_readable(buf))\n", "if (q->filtered)\n")],
    "flags toggled on": [(MAIN, FLAG, "pp.flags ^= PP_FLAG_ALLOW_UNREADABLE_NETMEM;")],
    "flags by a macro inside the function": [
        (MAIN, "\tstruct page_pool *pool;\n", "\tstruct page_pool *pool;\n#define TINY_MORE PP_FLAG_ALLOW_UNREADABLE_NETMEM\n"),
        (MAIN, FLAG, "pp.flags |= TINY_MORE;")],
    "flags by an early return": [
        (MAIN, "static int tiny_make_pools", "static unsigned int tiny_flags(struct tiny_queue *q)\n{\n\tif (!q->priv->split_on)\n\t\t"
               "return TINY_PP_FLAGS;\n\treturn TINY_PP_FLAGS | PP_FLAG_ALLOW_UNREADABLE_NETMEM;\n}\n\nstatic int tiny_make_pools"),
        (MAIN, FLAG, "pp.flags = tiny_flags(q);")],
    "the setting checked": [
        (TOOL, "\tpriv->split_on = kernel", "\tif (kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_UNKNOWN)\n\t\treturn -EINVAL;\n\tpriv->split_on = kernel")],
    "a count that is printed": [
        (RX, SYNC, SYNC + '\n\tpr_debug("%d", page_ref_count(q->heads[0].page));\n\tpr_debug("%d", netmem_ref_count(buf->netmem));')],
    "read back from the packet behind a guard": [
        (RX, "\tbuf->netmem = 0;\n", "\tbuf->netmem = 0;\n\tif (skb_frags_readable(skb))\n\t\tmemcpy(skb->data, skb_frag_address(&skb_shinfo(skb)->frags[0]), 64);\n")],
    "flags that are the same both ways": [
        (MAIN, ".flags = TINY_PP_FLAGS,", ".flags = PP_FLAG_DMA_MAP\n#ifdef CONFIG_TINY\n\t\t\t | PP_FLAG_DMA_SYNC_DEV\n#else\n\t\t\t | (PP_FLAG_DMA_SYNC_DEV)\n#endif\n\t\t\t,")],
    "flags as an enumerator": [
        (HEAD, "#define TINY_PP_FLAGS\t\t(PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV)", "enum { TINY_PP_FLAGS = PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV };")],
}  # fmt: skip


def test_the_small_driver_keeps_the_contract():
    report = judged(TINY)
    assert verdicts(report) == KEPT
    assert report.passes
    assert report.advice == {}
    assert report.facts["separate_header_pool"] is True
    assert all(v.confidence == "high" for v in report.requirements.values())
    assert lines(report, "R6") == [SYNC]
    assert lines(report, "R4") == ["pool = page_pool_create(&pp);"]
    assert [e.line for e in report.requirements["R4"].evidence] == [24]  # the second one, which is payload's


@pytest.mark.parametrize("name", BAD)
def test_one_edit_breaks_one_requirement(name, tmp_path):
    edits, ids, outcome, evidence = BAD[name]
    report = judged(edited(tmp_path, *edits))
    broken = dict(zip(ids.split(), outcome.split(), strict=True))
    assert verdicts(report) == {**KEPT, **broken}
    for id_ in broken:
        assert report.requirements[id_].evidence or id_ == "R2"
        assert all(e.cure for e in report.requirements[id_].evidence)
    if evidence is not None:
        assert lines(report, ids) == evidence


@pytest.mark.parametrize("name", GOOD)
def test_edits_that_change_nothing_change_no_verdict(name, tmp_path):
    assert verdicts(judged(edited(tmp_path, *GOOD[name]))) == KEPT


@pytest.mark.parametrize("name", [*BAD, *GOOD])
def test_nothing_is_left_to_find(name, tmp_path):
    """Each function looked at once more: what is known of it, and what callers learn, stays as it is."""
    edits = BAD[name][0] if name in BAD else GOOD[name]
    path = edited(tmp_path, *edits)
    tree.forget()
    (driver,) = tree.find(path, [])
    flow = understand(driver, None, {}).flow

    def found():
        known = {
            key: (one.returns, one.outs, one.entry, dict(one.sites))
            for key, one in flow._known.items()
            if one.sites
        }
        return known, {id_: dict(answers) for id_, answers in flow._answers.items()}, set(flow.fields)

    before = found()
    for key in list(before[0]):
        flow._later(key)
    flow._settle()
    assert found() == before


ADVISED = {
    "A1": [(MAIN, ".queue_idx = q->index,", "")],
    "A2": [(RX, "\tif (skb)\n\t\tskb_mark_for_recycle(skb);\n", "")],
    "A3": [(MAIN, "netdev->netdev_ops = &tiny_ops;", "netdev->netdev_ops = &tiny_ops;\n\tnetdev->netmem_tx = true;")],
    "A4": [(TOOL, "= ETHTOOL_RING_USE_TCP_DATA_SPLIT,", "= ETHTOOL_RING_USE_TCP_DATA_SPLIT | ETHTOOL_RING_USE_HDS_THRS,")],
    "A5": [(MAIN, "static const struct net_device_ops tiny_ops = {\n", "static int tiny_stop(struct net_device *netdev)\n{\n"
                  "\tstruct tiny_priv *priv = netdev_priv(netdev);\n\n"
                  "\tpage_pool_put_full_netmem(priv->rx[0].page_pool, priv->rx[0].bufs[0].netmem, true);\n\treturn 0;\n}\n\n"
                  "static const struct net_device_ops tiny_ops = {\n\t.ndo_stop = tiny_stop,\n")],
    "A6": [(MAIN, "static const struct net_device_ops tiny_ops = {\n", "static int tiny_bpf(struct net_device *netdev, "
                  "struct netdev_bpf *bpf)\n{\n\tstruct tiny_priv *priv = netdev_priv(netdev);\n\n"
                  "\tpriv->rx[0].xdp_prog = bpf->prog;\n\treturn 0;\n}\n\n"
                  "static const struct net_device_ops tiny_ops = {\n\t.ndo_bpf = tiny_bpf,\n")],
    "A7": [(MAIN, ".max_len = PAGE_SIZE,", ".max_len = PAGE_SIZE,\n\t\t.offset = TINY_PAD,"),
           (RX, "buf->netmem, buf->offset, len);\n\tskb", "buf->netmem, TINY_PAD + buf->offset, len);\n\tskb")],
}  # fmt: skip


@pytest.mark.parametrize("id_", ADVISED)
def test_advice_has_names_of_its_own_and_decides_nothing(id_, tmp_path):
    report = judged(edited(tmp_path, *ADVISED[id_]))
    assert verdicts(report) == KEPT
    assert report.passes
    assert list(report.advice) == [id_]
    assert all(one.line and one.cure for one in report.advice[id_])


def test_the_command_knows_all_advice():
    assert [one.id for one in advice.ADVICE] == list(check_command.ADVICE) == list(ADVISED)
    for one in advice.ADVICE:
        done = CliRunner().invoke(explain_command.command, [one.id.lower()])
        assert (done.exit_code, done.output.startswith(f"{one.id}: {one.title}\n")) == (0, True)
        body = json.loads(CliRunner().invoke(explain_command.command, [one.id, "--json"]).output)
        assert (body["schema"], body["text"]) == ("netmem.advice/1", one.text)


@pytest.mark.parametrize("name", NO_POOL)
def test_payload_that_comes_from_elsewhere(name, tmp_path):
    """Then there is nothing to judge of R3 to R7: the pool's buffers are headers."""
    edits, ids, outcome, evidence = NO_POOL[name]
    report = judged(edited(tmp_path, *edits))
    assert verdicts(report) == {**dict.fromkeys(KEPT, "n/a"), "R2": "pass", ids: outcome}
    assert lines(report, ids) == evidence


def test_the_configuration_is_told(tmp_path):
    """Both ways of an #if are judged, and the worse one is reported with what it takes."""
    report = judged(edited(tmp_path, *BAD["sync in one configuration only"][0]))
    assert report.requirements["R4"].why.endswith("PP_FLAG_DMA_SYNC_DEV (without CONFIG_TINY_SYNC)")


def test_no_pool_at_all(tmp_path):
    path = tmp_path / "none.c"
    path.write_text(
        "int f(void) { return 0; }\nstatic const struct ethtool_ops none_ops = { .get_link = f };\n"
    )
    report = judged(path)
    assert verdicts(report) == {"R1": "fail", "R2": "fail"} | dict.fromkeys(
        ["R3", "R4", "R5", "R6", "R7"], "n/a"
    )


@pytest.mark.parametrize(
    ("edit", "outcome"),
    [
        ((RX, "netmem = page_pool_dev_alloc_netmems(q->page_pool);", "netmem = q->bufs[i].netmem;"), "pass"),
        ((MAIN, "err = tiny_rx_refill(q);", "err = q->xdp_prog ? tiny_rx_refill(q) : 0;"), "partial"),
    ],
)
def test_pools_for_something_else(edit, outcome, tmp_path):
    """Without payload from it the header pool is what there is; and a pool for XDP is no normal mode's."""
    path = edited(tmp_path, edit, (MAIN, "return tiny_rx_refill(&priv->rx[index]);", "return 0;"))
    assert judged(path).requirements["R1"].verdict == outcome


def test_the_text_filter_changes_no_verdict(tmp_path):
    for edits in (BAD["raw sync"][0], BAD["copybreak"][0], []):
        path = edited(tmp_path / str(len(edits)) / str(id(edits)), *edits)
        assert verdicts(judged(path)) == verdicts(judged(path, everything=True))


def test_files_that_the_filter_leaves_out_are_read_when_payload_goes_there(tmp_path):
    path = edited(tmp_path, (RX, SYNC, "tiny_make_visible(q->priv->dev, buf->dma, len);"),
                  ("Makefile", "tiny_ethtool.o", "tiny_ethtool.o tiny_util.o"))  # fmt: skip
    util = "void tiny_make_visible(struct device *dev, dma_addr_t where, u32 len)\n{\n\tdma_sync_single_for_cpu(dev, where, len, 2);\n}\n"
    (path / "tiny_util.c").write_text(util)
    report = judged(path)
    assert verdicts(report) == {**KEPT, "R6": "fail"}
    assert lines(report, "R6") == ["dma_sync_single_for_cpu(dev, where, len, 2);"]


def test_a_missing_file_still_gives_verdicts(tmp_path):
    path = edited(tmp_path)
    (path / "tiny.h").unlink()
    (path / "tiny_ethtool.c").unlink()
    assert set(verdicts(judged(path))) == set(KEPT)


def test_suppressions(tmp_path):
    path = edited(
        tmp_path, (RX, SYNC, "/* netmem: ignore R6 the device is coherent */\n\tdma_sync_single_for_cpu(q->priv->dev, buf->dma, len, 2);"),
        (RX, "int tiny_rx_poll", "/* netmem: ignore R5 nothing here */\nint tiny_rx_poll"),
    )  # fmt: skip
    report = judged(path)
    assert verdicts(report) == KEPT
    assert [e.message for e in report.suppressed] == [
        "dma_sync_single_for_cpu() syncs payload past the pool (ignored: the device is coherent)"
    ]
    assert ["R5" in e.message for e in report.unused_suppressions] == [True]


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ("/*\n\t * netmem: ignore R6 coherent\n\t * on this board\n\t */\n\t", "", "pass"),
        ("", " /* netmem: ignore R6 coherent */", "pass"),
        ("int x; /* netmem: ignore R6 of the line before */\n\t", "", "fail"),
        ('pr_info("netmem: ignore R6 not a comment");\n\t', "", "fail"),
    ],
)
def test_what_a_suppression_covers(before, after, outcome, tmp_path):
    raw = "dma_sync_single_for_cpu(q->priv->dev, buf->dma, len, 2);"
    report = judged(edited(tmp_path, (RX, SYNC, before + raw + after)))
    assert report.requirements["R6"].verdict == outcome


def test_the_tables_have_no_holes():
    """Each page call has a twin of another name, and no name is in two tables that exclude each other."""
    assert all(a != b for a, b in api.TWINS.items())
    assert not api.ALLOC_NETMEM & (api.ALLOC_PAGE | api.ALLOC_VA)
    assert set(api.ATTACH_FRAG) >= api.PAGE_ATTACH
    assert not any(api.RAW_SYNC_CPU.match(name) for name in api.POOL_SYNC)
    for name in (
        "dma_sync_single_for_cpu",
        "dma_sync_single_range_for_cpu",
        "dma_sync_sg_for_cpu",
        "pci_dma_sync_single_for_cpu",
    ):
        assert api.RAW_SYNC_CPU.match(name)


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(0, 60),
    st.sampled_from([b"", b"{", b"}", b"(", b"*", b"#if 0\n", b"\x00", b"\xff\xfe", b"->", b";", b'"']),
)
def test_garbled_c_never_raises(at, length, insert):
    text = (TINY / RX).read_bytes()
    at %= len(text)
    made = csource.read("x.c", text[:at] + insert + text[at + length :])
    for function in made.functions:
        assert isinstance(function.body, list)


def test_endless_macros_and_deep_nesting_end(tmp_path):
    path = edited(tmp_path, (HEAD, "#define TINY_RING		256", "#define TINY_A TINY_B\n#define TINY_B TINY_A\n#define TINY_F(x) TINY_F((x))\n"
                                   "#define TINY_RING		256"),
                  (MAIN, ".flags = TINY_PP_FLAGS,", ".flags = TINY_PP_FLAGS | TINY_A | TINY_F(0),"),
                  (RX, "int done = 0;", f"int done = {'(' * 600}0{')' * 600};"))  # fmt: skip
    assert verdicts(judged(path))["R6"] == "pass"


# -- a real tree, where there is one -------------------------------------------------------------------

KNOWN = {  # read by hand, with the conventions in mind
    "drivers/net/ethernet/meta/fbnic": "pass pass pass pass pass pass pass",
    "drivers/net/ethernet/google/gve": "pass pass pass pass pass pass pass",
    "drivers/net/ethernet/broadcom/bnxt": "pass pass pass partial pass pass pass",
    "drivers/net/ethernet/huawei/hinic3": "pass fail fail partial fail pass pass",
    "drivers/net/ethernet/broadcom/genet": "pass fail fail fail fail pass pass",
}


@pytest.mark.parametrize("name", KNOWN)
def test_drivers_of_linux_that_were_read_by_hand(name):
    linux = Path(__file__).parent.parent / "build/linux"
    need((linux / name).exists(), "no kernel tree: make check-tree gets one")
    assert " ".join(verdicts(judged(linux / name)).values()) == KNOWN[name]


def test_the_documentation_says_what_the_rules_say():
    text = (Path(__file__).parent.parent / "docs/c-drivers.md").read_text()
    for rule in RULES:
        assert f"| {rule.id} | {rule.convention} |" in text
