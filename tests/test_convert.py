"""The converter: a small driver that keeps pages, its conversion, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from netmem.contract.convert import Refused, convert
from netmem.contract.lint import tree
from test_lint import HEAD, MAIN, RX, edited, judged, verdicts

NETMEM = [sys.executable, "-m", "netmem.cli.entry"]
# The small driver as it might have been before: payload in pages, from the same pools.
PAGES = [
    (HEAD, "\tunion {\n\t\tnetmem_ref netmem;\n\t\tstruct page *page;\n\t};\n", "\tstruct page *page;\n"),
    (RX, "netmem_ref netmem;", "struct page *page;"),
    (RX, "netmem = page_pool_dev_alloc_netmems(q->page_pool);", "page = page_pool_dev_alloc_pages(q->page_pool);"),
    (RX, "if (!netmem)", "if (page == NULL)"),
    (RX, "buf->netmem = netmem;", "buf->page = page;"),
    (RX, "page_pool_get_dma_addr_netmem(netmem)", "page_pool_get_dma_addr(page)"),
    (RX, "static bool tiny_readable(const struct tiny_buf *buf)\n{\n\treturn !netmem_is_net_iov(buf->netmem);\n}\n\n", ""),
    (RX, "page_pool_dma_sync_netmem_for_cpu(q->page_pool, buf->netmem,", "page_pool_dma_sync_for_cpu(q->page_pool, buf->page,"),
    (RX, "skb_add_rx_frag_netmem(skb, skb_shinfo(skb)->nr_frags, buf->netmem,", "skb_add_rx_frag(skb, skb_shinfo(skb)->nr_frags, buf->page,"),
    (RX, "buf->netmem = 0;", "buf->page = NULL;"),
    (RX, "page_pool_put_full_netmem(q->page_pool, buf->netmem, true);", "page_pool_put_full_page(q->page_pool, buf->page, true);"),
    (RX, "\t\tif (tiny_readable(buf))\n\t\t\tprefetch(netmem_address(buf->netmem));\n", "\t\tprefetch(page_address(buf->page));\n"),
    (MAIN, "\t\tpp.flags |= PP_FLAG_ALLOW_UNREADABLE_NETMEM;\n", ""),
]  # fmt: skip


def git(folder, *words, **options):
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=60, **options)


def fresh(path):
    tree.load.cache_clear()
    tree._called.cache_clear()
    return convert(path)


def test_conversion(tmp_path, monkeypatch):
    """The patch applies; R3 holds afterwards; header buffers are as they were; a second one does nothing."""
    monkeypatch.chdir(tmp_path)
    path = edited(tmp_path, *PAGES)
    before = verdicts(judged(path))
    assert (before["R3"], before["R4"], before["R5"]) == ("fail", "partial", "fail")
    made = fresh(path)
    git(tmp_path, "init", "-q")
    done = git(tmp_path, "apply", "-", input=made.patch)
    assert done.returncode == 0, done.stderr
    text = (path / RX).read_text()
    for line in (
        "netmem_ref page;", "page = page_pool_dev_alloc_netmems(q->page_pool);", "if (page == 0)",
        "buf->dma = page_pool_get_dma_addr_netmem(page);", "buf->page = 0;",
        "page_pool_dma_sync_netmem_for_cpu(q->page_pool, buf->page, buf->offset, len);",
        "skb_add_rx_frag_netmem(skb, skb_shinfo(skb)->nr_frags, buf->page, buf->offset, len, PAGE_SIZE);",
        "page_pool_put_full_netmem(q->page_pool, buf->page, true);", "prefetch(netmem_address(buf->page));",
    ):  # fmt: skip
        assert line in text, line
    assert "struct page *page = page_pool_dev_alloc_pages(q->head_pool);" in text
    assert "void *va = page_address(head->page);" in text
    header = (path / HEAD).read_text()
    assert "struct tiny_buf {\n\tnetmem_ref page;" in header
    assert "struct tiny_head {\n\t\tstruct page *page;" in header
    after = verdicts(judged(path))
    assert (after["R3"], after["R6"]) == ("pass", "pass")
    assert [(Path(one.file).name, one.reason[:16]) for one in made.remaining] == [(RX, "netmem_address()")]
    assert fresh(path).patch == ""


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        ([(RX, "buf->page = NULL;", "dma_sync_page(q, page_to_pfn(buf->page));\n\tbuf->page = NULL;")], "page_to_pfn(netmem_to_page(buf->page))"),
        ([(RX, "buf->page = NULL;", "buf->page->index = 0;\n\tbuf->page = NULL;")], "netmem_to_page(buf->page)->index = 0;"),
        ([(RX, "buf->page = NULL;", "put_page(buf->page);\n\tbuf->page = NULL;")], "put_page(netmem_to_page(buf->page));"),
        ([(RX, "page = page_pool_dev_alloc_pages(q->page_pool);", "page = page_pool_dev_alloc_frag(q->page_pool, &buf->offset, 2048);")],
         "page = page_pool_alloc_frag_netmem(q->page_pool, &buf->offset, 2048, GFP_ATOMIC | __GFP_NOWARN);"),
        ([(RX, "if (page == NULL)", "if (!page)\n\t\t\tpage = alloc_page(GFP_ATOMIC);\n\t\tif (page == NULL)")],
         "page = page_to_netmem(alloc_page(GFP_ATOMIC));"),
    ],
)  # fmt: skip
def test_what_has_no_twin_goes_through_a_page_and_is_listed(edits, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = edited(tmp_path, *PAGES, *edits)
    made = fresh(path)
    git(tmp_path, "init", "-q")
    assert git(tmp_path, "apply", "-", input=made.patch).returncode == 0
    assert text in (path / RX).read_text()
    assert len(made.remaining) >= 1
    lines = (path / RX).read_text().splitlines()
    assert all(0 < one.line <= len(lines) for one in made.remaining)


@pytest.mark.parametrize(
    ("edits", "why"),
    [
        ([(RX, "if (page == NULL)", "fill(&page);\n\t\tif (page == NULL)")], "the address of a page"),
        ([(RX, "struct page *page;\n\n\t\tif", "struct page *page, *other = alloc_page(GFP_ATOMIC);\n\n\t\tif")], "declared together"),
        ([(RX, "static int tiny_fill_head", "static void tiny_keep(struct page **where, struct page *page)\n{\n\tget(page);\n}\n\n"
               "static int tiny_fill_head"),
          (RX, "q->heads[i].page = page;", "q->heads[i].page = page;\n\ttiny_keep(NULL, page);"),
          (RX, "buf->page = page;", "buf->page = page;\n\t\ttiny_keep(NULL, page);")], "must be told apart"),
        ([(RX, "if (page == NULL)", "page++;\n\t\tif (page == NULL)")], "calculated with"),
        ([(HEAD, "int tiny_rx_refill", "#define TINY_CLEAR(b) ((b)->page = NULL)\n\nint tiny_rx_refill")], "names a field"),
        ([(RX, "if (page == NULL)", "if (!page)\n\t\t\tpage = ERR_PTR(-ENOMEM);\n\t\tif (page == NULL)")], "no place in a netmem_ref"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_to_be_safe_is_refused(edits, why, tmp_path):
    with pytest.raises(Refused, match=why):
        fresh(edited(tmp_path, *PAGES, *edits))


def test_the_command(tmp_path, monkeypatch):
    path = edited(tmp_path, *PAGES)
    words = [*NETMEM, "convert", str(path), "-o", str(tmp_path / "series")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, "1 things remain" in done.stdout) == (0, True), done.stderr
    assert (tmp_path / "series/0001-tiny-netmem.patch").read_text().startswith("diff --git a/tiny/")
    assert "netmem_address() may be NULL" in (tmp_path / "series/tiny-remaining.txt").read_text()
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    assert git(tmp_path, "apply", "series/0001-tiny-netmem.patch").returncode == 0
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, "nothing to convert" in done.stderr) == (0, True)
    done = subprocess.run(
        [*NETMEM, "convert", str(tmp_path / "series")], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, f"netmem: refused: {tmp_path}/series: no C files\n")


def test_results_and_arguments_are_converted_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    helper = (
        "static struct page *tiny_get(struct tiny_queue *q)\n{\n\tif (!q->index)\n\t\treturn NULL;\n"
        "\treturn page_pool_dev_alloc_pages(q->page_pool);\n}\n\n"
        "static void tiny_set(struct tiny_buf *buf, struct page *page)\n{\n\tbuf->page = page;\n}\n\nint tiny_rx_refill("
    )
    edits = [(RX, "int tiny_rx_refill(", helper), (RX, "page = page_pool_dev_alloc_pages(q->page_pool);", "page = tiny_get(q);"),
             (RX, "buf->page = page;\n\t\tbuf->dma", "tiny_set(buf, page);\n\t\tbuf->dma"), (RX, "buf->page = NULL;", "tiny_set(buf, NULL);")]  # fmt: skip
    pages = [edit for edit in PAGES if edit[1] != "buf->netmem = 0;"]
    pages.append((RX, "buf->netmem = 0;", "buf->page = NULL;"))
    path = edited(tmp_path, *pages, *edits)
    made = fresh(path)
    git(tmp_path, "init", "-q")
    assert git(tmp_path, "apply", "-", input=made.patch).returncode == 0
    text = (path / RX).read_text()
    for line in ("static netmem_ref tiny_get(struct tiny_queue *q)", "return 0;", "return page_pool_dev_alloc_netmems(q->page_pool);",
                 "struct tiny_buf *buf, netmem_ref page)", "tiny_set(buf, 0);"):  # fmt: skip
        assert line in text, line
