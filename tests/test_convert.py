"""The converter: a small driver that keeps pages, its conversion, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from netmem.contract.convert import Refused, convert
from netmem.contract.convert.edits import Edit, apply
from netmem.contract.convert.twins import twins_of
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


def fresh(path, **options):
    tree.forget()
    return convert(path, **options)


def applied(folder, made):
    """Commit what is there, and take the series as a maintainer would."""
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    name = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
    assert git(folder, *name, "commit", "-q", "-m", "before").returncode == 0
    done = git(folder, *name, "am", "-q", input="".join(patch.text for patch in made.series))
    assert done.returncode == 0, done.stderr
    tree.forget()


def test_conversion(tmp_path, monkeypatch):
    """The series applies; R3 holds afterwards; header buffers are as they were; a second one does nothing."""
    monkeypatch.chdir(tmp_path)
    path = edited(tmp_path, *PAGES)
    before = verdicts(judged(path))
    assert (before["R3"], before["R4"], before["R5"]) == ("fail", "partial", "fail")
    made = fresh(path)
    applied(tmp_path, made)
    text = (path / RX).read_text()
    for line in (
        "netmem_ref page;", "page = page_pool_dev_alloc_netmems(q->page_pool);", "if (page == 0)",
        "buf->dma = page_pool_get_dma_addr_netmem(page);", "buf->page = 0;",
        "page_pool_dma_sync_netmem_for_cpu(q->page_pool, buf->page, buf->offset,\n\t\t\t\t\t  len);",
        "page_pool_put_full_netmem(q->page_pool, buf->page,\n\t\t\t\t\t\t  true);",
        "\t\tif (!netmem_is_net_iov(buf->page))\n\t\t\tprefetch(netmem_address(buf->page));",
        "skb_add_rx_frag_netmem(skb, skb_shinfo(skb)->nr_frags, buf->page, buf->offset, len,\n\t\t\t       PAGE_SIZE);",
    ):  # fmt: skip
        assert line in text, line
    assert "struct page *page = page_pool_dev_alloc_pages(q->head_pool);" in text
    assert "void *va = page_address(head->page);" in text
    header = (path / HEAD).read_text()
    assert "struct tiny_buf {\n\tnetmem_ref page;" in header
    assert "struct tiny_head {\n\t\tstruct page *page;" in header
    after = verdicts(judged(path))
    assert after == made.after
    assert {one.requirement: (one.before, one.after) for one in made.moved} == {
        "R3": ("fail", "pass"),
        "R5": ("fail", "pass"),
    }
    assert [(one.file, one.rule) for one in made.remaining] == [(f"tiny/{MAIN}", "R4")]
    assert fresh(path).series == []


def test_the_series(tmp_path, monkeypatch):
    """One patch a step, each with a subject, a message and a diffstat; what holds a netmem is called so."""
    monkeypatch.chdir(tmp_path)
    doc = "/**\n * tiny_put() - give up\n * @page: which\n */\nstatic void tiny_put(struct tiny_queue *q, struct page *page)\n{\n" \
          "\tpage_pool_put_full_page(q->page_pool, page, true);\n}\n\nint tiny_rx_poll("  # fmt: skip
    path = edited(tmp_path, *PAGES, (RX, "int tiny_rx_poll(", doc),
                  (RX, "page_pool_put_full_page(q->page_pool, buf->page, true);", "tiny_put(q, buf->page);"))  # fmt: skip
    made = fresh(path, rename=True)
    assert [one.name for one in made.series] == [
        "0001-net-tiny-keep-payload-as-netmem.patch", "0002-net-tiny-name-netmem-as-such.patch",
        "0003-net-tiny-ask-before-payload-is-fetched-early.patch",
    ]  # fmt: skip
    assert "Subject: [PATCH 1/3] net: tiny: keep payload as netmem" in made.series[0].text
    assert "tiny/tiny_rx.c |" in made.series[0].text
    assert "struct page *, and" in made.series[0].text.replace("\n", " ")
    applied(tmp_path, made)
    text, header = (path / RX).read_text(), (path / HEAD).read_text()
    assert "struct tiny_buf {\n\tnetmem_ref netmem;" in header
    assert "struct page *page;" in header
    for line in (
        "netmem = page_pool_dev_alloc_netmems(q->page_pool);", "buf->netmem = netmem;", " * @netmem: which",
        "static void tiny_put(struct tiny_queue *q, netmem_ref netmem)", "if (!netmem_is_net_iov(buf->netmem))",
        "q->heads[i].page = page;",
    ):  # fmt: skip
        assert line in text, line
    log = git(tmp_path, "log", "--format=%s", "-3").stdout.split("\n")
    assert log[2] == "net: tiny: keep payload as netmem"


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        ([(RX, "buf->page = NULL;", "dma_sync_page(q, page_to_pfn(buf->page));\n\tbuf->page = NULL;")], "page_to_pfn(netmem_to_page(buf->page))"),
        ([(RX, "buf->page = NULL;", "buf->page->index = 0;\n\tbuf->page = NULL;")], "netmem_to_page(buf->page)->index = 0;"),
        ([(RX, "buf->page = NULL;", "put_page(buf->page);\n\tbuf->page = NULL;")], "put_page(netmem_to_page(buf->page));"),
        ([(RX, "buf->page = NULL;", "q->page_pool = buf->page->pp;\n\tbuf->page = NULL;")], "q->page_pool = netmem_get_pp(buf->page);"),
        ([(RX, "buf->page = NULL;", "buf->page->pp = NULL;\n\tbuf->page = NULL;")], "netmem_to_page(buf->page)->pp = NULL;"),
        ([(RX, "buf->page = NULL;", "put_page(len ? buf->page : q->heads[0].page);\n\tbuf->page = NULL;")],
         "put_page(netmem_to_page(len ? buf->page : page_to_netmem(q->heads[0].page)));"),
        ([(RX, "buf->page = NULL;", "buf->page = buf->page ?: alloc_page(GFP_ATOMIC);")], "buf->page = buf->page ?: page_to_netmem(alloc_page(GFP_ATOMIC));"),
        ([(RX, "prefetch(page_address(buf->page));", "done++; prefetch(page_address(buf->page));")], "\t\tdone++; prefetch(netmem_address(buf->page));"),
        ([(RX, "struct page *page;\n\n\t\tif", "void *page;\n\n\t\tif")], "buf->page = page_to_netmem((struct page *)page);"),
        ([(RX, "page = page_pool_dev_alloc_pages(q->page_pool);", "page = page_pool_dev_alloc_frag(q->page_pool, &buf->offset, 2048);")],
         "page = page_pool_alloc_frag_netmem(q->page_pool, &buf->offset, 2048,\n\t\t\t\t\t\t   GFP_ATOMIC | __GFP_NOWARN);"),
        ([(RX, "if (page == NULL)", "if (!page)\n\t\t\tpage = alloc_page(GFP_ATOMIC);\n\t\tif (page == NULL)")],
         "page = page_to_netmem(alloc_page(GFP_ATOMIC));"),
    ],
)  # fmt: skip
def test_what_has_no_twin_goes_through_a_page_and_is_listed(edits, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = edited(tmp_path, *PAGES, *edits)
    made = fresh(path)
    applied(tmp_path, made)
    assert text in (path / RX).read_text()
    assert len(made.remaining) >= 1
    lines = (path / RX).read_text().splitlines()
    assert all(0 < one.line <= len(lines) for one in made.remaining)


@pytest.mark.parametrize(
    ("edits", "why"),
    [
        ([(RX, "if (page == NULL)", "fill(&page);\n\t\tif (page == NULL)")], "handed on whole"),
        ([(RX, "struct page *page;\n\n\t\tif", "struct page *page, *other = alloc_page(GFP_ATOMIC);\n\n\t\tif")], "declared together"),
        ([(RX, "if (page == NULL)", "page++;\n\t\tif (page == NULL)")], "calculated with"),
        ([(HEAD, "int tiny_rx_refill", "#define TINY_CLEAR(b) ((b)->page = NULL)\n\nint tiny_rx_refill")], "names a field"),
        ([(RX, "buf->page = NULL;", "{ typeof(buf->page) p = buf->page; get(p); }\n\tbuf->page = NULL;")], "taken from payload by typeof"),
        ([(RX, "buf->page = NULL;", "get(({ len++; buf->page; }));\n\tbuf->page = NULL;")], "statement expression"),
        ([(RX, "buf->page = NULL;", "buf->page = ({ len++; pick(len); });")], "statement expression"),
        ([(RX, "buf->page = NULL;", "get(((struct other *)buf)->x.page);\n\tbuf->page = NULL;")], "not known here"),
        ([(RX, "buf->page = NULL;", "{ struct tiny_buf two[2] = { [1].page = buf->page }; get(two); }\n\tbuf->page = NULL;")], "inside of another"),
        ([(RX, "buf->page = NULL;", "{ struct tiny_buf one = { buf->page, 1 }; get(&one); }\n\tbuf->page = NULL;")], "without names"),
        ([(RX, "buf->page = NULL;", "swap(buf->page, q->heads[0].page);")], "changes places with another page"),
        ([(HEAD, "int tiny_rx_refill", "#define TINY_FIRST(q) first(&(q)->bufs[0])\n#define TINY_SPARE (spare.page)\n\nint tiny_rx_refill")], "where the converter does not look"),
        ([(RX, "static void tiny_add_frag", "static struct page *tiny_get(struct tiny_queue *q)\n{\n\treturn page_pool_dev_alloc_pages(q->page_pool);\n}\n\n"
               "static const struct tiny_ways tiny_ways = { .get = tiny_get };\n\nstatic void tiny_add_frag")], "through a pointer"),
        ([(RX, "if (page == NULL)", "if (q->index) {\n\t\t\tint page = 5;\n\n\t\t\tput(page);\n\t\t}\n\t\tif (page == NULL)")], "and not in another"),
        ([(RX, "int tiny_rx_refill", "#define TINY_SAY() say(page_address(page))\n\nint tiny_rx_refill"),
          (RX, "if (page == NULL)", "TINY_SAY();\n\t\tif (page == NULL)")], "macro TINY_SAY names page"),
        ([(RX, "buf->page = NULL;", "put_page(" + "(" * 3000 + "buf->page" + ")" * 3000 + ");")], "nested too deep"),
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
    assert (done.returncode, "R3 fail -> pass, R5 fail -> pass; 1 things remain" in done.stdout) == (
        0,
        True,
    ), done
    assert (
        "tiny_main.c:23: R4: flags: DMA_MAP, DMA_SYNC_DEV: set PP_FLAG_ALLOW"
        in (tmp_path / "series/tiny-remaining.txt").read_text()
    )
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    for name in (
        "0001-net-tiny-keep-payload-as-netmem.patch",
        "0002-net-tiny-ask-before-payload-is-fetched-early.patch",
    ):
        assert git(tmp_path, "apply", f"series/{name}").returncode == 0
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, "nothing to convert" in done.stderr) == (0, True)
    for name in ("series", "nowhere"):
        done = subprocess.run(
            [*NETMEM, "convert", str(tmp_path / name)], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (1, f"netmem: refused: {tmp_path}/{name}: no C files\n")


def test_a_driver_of_several_is_named(tmp_path, monkeypatch):
    """As `check --list` names it; where one of several makes a pool, the folder's name is enough."""
    monkeypatch.chdir(tmp_path)
    path = edited(tmp_path, *PAGES)
    (path / "other.c").write_text("int other(void)\n{\n\treturn 0;\n}\n")
    (path / "Makefile").write_text(
        "obj-m += tiny.o other.o\ntiny-y := tiny_main.o tiny_rx.o tiny_ethtool.o\n"
    )
    assert len(fresh(path).series) == len(fresh(path / "tiny").series) == 2
    with pytest.raises(Refused, match="no payload"):
        fresh(path / "other")
    (path / "other.c").write_text(
        '#include "tiny.h"\nvoid other(struct page_pool_params *p)\n{\n\tpage_pool_create(p);\n}\n'
    )
    with pytest.raises(Refused, match=r"holds 2 drivers \(tiny, other\): name one"):
        fresh(path)


def test_what_other_modules_use_does_not_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = edited(tmp_path, *PAGES)
    (path / "Makefile").write_text(
        "obj-m += tiny.o other.o\ntiny-y := tiny_main.o tiny_rx.o tiny_ethtool.o\n"
    )
    other = '#include "tiny.h"\nbool other_has(struct tiny_head *head, struct tiny_buf *buf)\n{\n\treturn head->page;\n}\n'
    (path / "other.c").write_text(other)
    assert len(fresh(path / "tiny").series) == 2  # a header's page is not payload's
    (path / "other.c").write_text(other.replace("head->page", "buf->page"))
    with pytest.raises(Refused, match=r"other.c is of another module and uses struct tiny_buf.page"):
        fresh(path / "tiny")


def test_twins_are_those_of_the_tree(tmp_path):
    """Names may differ in page and netmem only, signatures in struct page * and netmem_ref only."""
    headers = tmp_path / "include/net/page_pool"
    headers.mkdir(parents=True)
    (tmp_path / "include/net/netmem.h").write_text(
        "void *netmem_address(netmem_ref netmem);\nbool netmem_is_odd(netmem_ref netmem, int how);\n"
    )
    (headers / "helpers.h").write_text(
        "struct page *page_pool_get_pages(struct page_pool *pool, gfp_t gfp);\n"
        "netmem_ref page_pool_get_netmems(struct page_pool *pool, gfp_t gfp);\n"
        "netmem_ref page_pool_get_netmem(struct page_pool *pool, gfp_t gfp, int n);\n"
        "netmem_ref page_pool_alloc_netmems(struct page_pool *pool, gfp_t gfp);\n"
        "void page_pool_put_it_page(struct page_pool *pool,\n\t\t   const struct page *page);\n"
        "static inline void page_pool_put_it_netmem(struct page_pool *pool, netmem_ref netmem)\n{\n}\n"
    )
    (tmp_path / "include/linux").mkdir()
    (tmp_path / "include/linux/mm.h").write_text(
        "#ifdef HASHED\nvoid *page_address(const struct page *page);\n#endif\nbool page_is_odd(struct page *page);\n"
    )
    found = twins_of(tmp_path)
    assert found.takes == {
        "page_pool_put_it_page": (1, "page_pool_put_it_netmem"),
        "page_address": (0, "netmem_address"),
    }
    assert found.gives["page_pool_get_pages"] == "page_pool_get_netmems"
    assert found.gives["page_pool_dev_alloc_pages"] == "page_pool_alloc_netmems"  # the call behind it
    assert found.more == {"page_pool_dev_alloc_pages": ", GFP_ATOMIC | __GFP_NOWARN"}


def test_lines_stay_aligned():
    """What is aligned with a parenthesis goes with it; what gets too long is broken, and joined again."""
    before = b"\tput(one, two,\n\t    three(four,\n\t\t  five));\n\treturn;\n"
    at = before.index(b"put")
    assert apply(before, [Edit(at, at + 3, "put_longer", 1)]).decode() == (
        "\tput_longer(one, two,\n\t\t   three(four,\n\t\t\t five));\n\treturn;\n"
    )
    at = before.index(b"three")
    assert b"three_of_them(four,\n\t\t\t  five));" in apply(before, [Edit(at, at + 5, "three_of_them", 1)])
    before = b"\ta(" + b"b" * 56 + b", ccc,\n\t  ddd);\n"
    assert apply(before, [Edit(1, 2, "much_longer", 1)]).decode() == (
        "\tmuch_longer(" + "b" * 56 + ",\n\t\t    ccc, ddd);\n"
    )
    wide = b"\ta(" + b"b" * 78 + b", ccc);\n"  # was too wide before
    assert apply(wide, [Edit(1, 2, "ab", 1)]) == wide.replace(b"a(", b"ab(")
    assert apply(b"x(a,\n  b)", []) == b"x(a,\n  b)"


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
    applied(tmp_path, fresh(path))
    text = (path / RX).read_text()
    for line in ("static netmem_ref tiny_get(struct tiny_queue *q)", "return 0;", "return page_pool_dev_alloc_netmems(q->page_pool);",
                 "struct tiny_buf *buf, netmem_ref page)", "tiny_set(buf, 0);"):  # fmt: skip
        assert line in text, line


def test_pages_of_headers_and_payload_in_one_place(tmp_path, monkeypatch):
    """A netmem_ref holds any page: where both go through one function, headers become netmem there and pages again."""
    monkeypatch.chdir(tmp_path)
    helper = (
        "static struct page *tiny_get(struct page_pool *pool)\n{\n\treturn page_pool_dev_alloc_pages(pool);\n}\n\n"
        "static int tiny_fill_head"
    )
    edits = [(RX, "static int tiny_fill_head", helper), (RX, "page = page_pool_dev_alloc_pages(q->page_pool);", "page = tiny_get(q->page_pool);"),
             (RX, "struct page *page = page_pool_dev_alloc_pages(q->head_pool);", "struct page *page = tiny_get(q->head_pool);")]  # fmt: skip
    path = edited(tmp_path, *PAGES, *edits)
    made = fresh(path)
    applied(tmp_path, made)
    text = (path / RX).read_text()
    assert "static netmem_ref tiny_get(struct page_pool *pool)" in text
    assert "struct page *page = netmem_to_page(tiny_get(q->head_pool));" in text
    assert "\t\tpage = tiny_get(q->page_pool);" in text


def test_pages_by_reference(tmp_path, monkeypatch):
    """An argument that a page comes back in, and an array that is handed on, become those of netmems."""
    monkeypatch.chdir(tmp_path)
    helper = (
        "static int tiny_get(struct tiny_queue *q, struct page **out)\n{\n\t*out = page_pool_dev_alloc_pages(q->page_pool);\n"
        "\treturn *out ? 0 : -ENOMEM;\n}\n\nint tiny_rx_refill("
    )
    edits = [
        (RX, "int tiny_rx_refill(", helper),
        (RX, "page = page_pool_dev_alloc_pages(q->page_pool);", "tiny_get(q, &page);"),
    ]
    path = edited(tmp_path, *PAGES, *edits)
    made = fresh(path)
    applied(tmp_path, made)
    text = (path / RX).read_text()
    assert "static int tiny_get(struct tiny_queue *q, netmem_ref *out)" in text
    assert "\t*out = page_pool_dev_alloc_netmems(q->page_pool);" in text
    assert "\t\ttiny_get(q, &page);" in text
    assert "netmem_to_page" not in text


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        ([(RX, "buf->page = NULL;", "WRITE_ONCE(buf->page, NULL);")], "WRITE_ONCE(buf->netmem, 0);"),
        ([(RX, "buf->page = NULL;", "swap(buf->page, q->spare.page);")], "swap(buf->netmem, q->spare.netmem);"),
        ([(RX, "buf->page = NULL;", "q->spare = (struct tiny_buf){ .page = buf->page, .bias = 1 };")],
         "(struct tiny_buf){ .netmem = buf->netmem, .bias = 1 };"),
        ([(RX, "buf->page = NULL;", "{ struct page *two[] = { buf->page, NULL }; kfree(two); }")],
         "struct page *two[] = { netmem_to_page(buf->netmem), NULL };"),
        ([(HEAD, "\tstruct page *page;\n\tdma_addr_t dma;\n\tunsigned", "\tstruct  page  *page;\n\tdma_addr_t dma;\n\tunsigned")], "buf->netmem = netmem;"),
        ([(RX, "page_pool_put_full_page(q->page_pool, buf->page, true);",
           "page_pool_put_full_page(q->page_pool, buf->page, // which one of them it is, for us,\n\t\t\t\t\t\ttrue);")],
         "page_pool_put_full_netmem(q->page_pool, buf->netmem, // which one of them it is, for us,\n\t\t\t\t\t\t  true);"),
        ([(RX, "static int tiny_fill_head", "static void tiny_drop(struct tiny_queue *, struct page *), tiny_none(void);\n\nstatic int tiny_fill_head"),
          (RX, "int tiny_rx_poll(", "static void tiny_drop(struct tiny_queue *q, struct page *page)\n{\n\tpage_pool_put_full_page(q->page_pool, page, true);\n}\n\n"
               "int tiny_rx_poll("),
          (RX, "\t\t\tpage_pool_put_full_page(q->page_pool, buf->page, true);", "\t\t\ttiny_drop(q, buf->page);")],
         "static void tiny_drop(struct tiny_queue *, netmem_ref), tiny_none(void);"),
    ],
)  # fmt: skip
def test_what_is_written_in_other_ways(edits, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = edited(tmp_path, *PAGES, *edits)
    made = fresh(path, rename=True)
    applied(tmp_path, made)
    assert text in (path / RX).read_text()


def test_bytes_of_the_source_stay_as_they_are(tmp_path, monkeypatch):
    """Lines that end in CR LF, and what is no UTF-8, go through the series."""
    monkeypatch.chdir(tmp_path)
    path = edited(tmp_path, *PAGES)
    for name in (RX, HEAD):
        text = (
            (path / name).read_bytes().replace(b"\n", b"\r\n").replace(b"TINY_H\r", b"TINY_H /* caf\xe9 */\r")
        )
        (path / name).write_bytes(text)
    made = fresh(path)
    git(tmp_path, "init", "-q")
    text = "".join(one.text for one in made.series).encode("utf-8", "surrogateescape")
    done = subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=text, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    after = (path / RX).read_bytes()
    assert b"page = page_pool_dev_alloc_netmems(q->page_pool);\r\n" in after
    assert after.count(b"\n") == after.count(b"\r\n")


def test_a_folder_with_another_series_is_left_alone(tmp_path):
    path = edited(tmp_path, *PAGES)
    (tmp_path / "series").mkdir()
    (tmp_path / "series/0002-net-other.patch").touch()
    words = [*NETMEM, "convert", str(path), "-o", str(tmp_path / "series")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, "holds patches of another series" in done.stderr) == (1, True)
