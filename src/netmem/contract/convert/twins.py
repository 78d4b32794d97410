"""Which of the kernel's page calls have a netmem twin: read from the headers of the tree at hand.

Two functions are twins when their names differ in `page` and `netmem` only and their signatures in
`struct page *` and `netmem_ref` only. What a tree does not have is not written: Linux 6.12 has no
page_pool_dev_alloc_netmems(), and needs the longer call that is behind it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from netmem.contract.lint import api, csource, tree
from netmem.contract.lint.lowering import declared, node_text, spaced

HEADERS = (
    "net/netmem.h", "net/page_pool/helpers.h", "net/page_pool/types.h", "linux/skbuff.h", "linux/mm.h",
    "linux/page_ref.h", "net/xdp.h",
)  # fmt: skip
# Macros, which have no signature: their twins are used where the tree has them.
MACROS = {"virt_to_page": "virt_to_netmem", "compound_head": "netmem_compound_head"}
# Where a tree has no twin: the call that is behind the page call, and what it wants beside.
_GFP = ", GFP_ATOMIC | __GFP_NOWARN"
LONGER = {
    "page_pool_dev_alloc_frag": ("page_pool_alloc_frag_netmem", _GFP),
    "page_pool_dev_alloc_pages": ("page_pool_alloc_netmems", _GFP),
    "page_pool_dev_alloc": ("page_pool_alloc_netmem", _GFP),
    "page_pool_recycle_direct": ("page_pool_put_full_netmem", ", true"),
}
POOL_OF = "netmem_get_pp"  # instead of the field page->pp
CASTS = {"page_to_netmem", "netmem_to_page", "__netmem_to_page"}
_PAGE = re.compile(r"^(?:const )?struct page \*$")
_NETMEM = re.compile(r"^(?:const )?netmem_ref$")
_ANY_PAGE = re.compile(r"^page(s?)$|^netmem(s?)$")


@dataclass
class Twins:
    """``takes``: page call -> (position of the page, twin); ``gives``: a call whose result is a page -> twin;
    ``more``: arguments that the twin wants beside; ``known``: netmem calls there are."""

    takes: dict[str, tuple[int, str]] = field(default_factory=dict)
    gives: dict[str, str] = field(default_factory=dict)
    more: dict[str, str] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Signature:
    name: str
    result: str
    params: tuple[str, ...]


def _plain(name: str) -> tuple[str, ...]:
    """What is left of a name without `page` and `netmem`; a plural stays one."""
    words = name.replace("page_pool", "pool").split("_")
    kept = []
    for word in words:
        match = _ANY_PAGE.match(word)
        if match is None:
            kept.append(word)
        elif match[1] or match[2]:
            kept.append("#")
    return tuple(kept)


def _signatures(path: Path) -> list[_Signature]:
    text = tree.load(str(path))
    found: list[_Signature] = []
    if text is None:
        return found
    source = csource.prepared(text)
    todo: list[Any] = [csource.parsed(source).root_node]
    while todo:
        node = todo.pop()
        if node.type in ("function_definition", "declaration"):
            made = _signature(node, source)
            if made is not None:
                found.append(made)
        elif node.type.startswith("preproc_") or node.type in ("translation_unit", "ERROR"):
            todo += node.named_children
    return found


def _signature(node: Any, source: bytes) -> _Signature | None:
    type_, one = node.child_by_field_name("type"), node.child_by_field_name("declarator")
    stars = ""
    while one is not None and one.type == "pointer_declarator":
        stars += " *"
        one = one.child_by_field_name("declarator")
    if type_ is None or one is None or one.type != "function_declarator":
        return None
    name, params = one.child_by_field_name("declarator"), one.child_by_field_name("parameters")
    if name is None or name.type != "identifier" or params is None:
        return None
    types = []
    for param in params.named_children:
        if param.type == "parameter_declaration":
            said = param.child_by_field_name("type")
            suffix = declared(param.child_by_field_name("declarator"), source)[1]
            types.append(spaced(node_text(said, source)) + suffix if said is not None else "")
    return _Signature(node_text(name, source), spaced(node_text(type_, source)) + stars, tuple(types))


def _fits(page: str, netmem: str) -> bool:
    """True for the same type, or a page where the other has a netmem_ref."""
    return page.removeprefix("const ") == netmem.removeprefix("const ") or bool(
        _PAGE.match(page) and _NETMEM.match(netmem)
    )


@lru_cache(4)
def twins_of(root: Path | None) -> Twins:
    """Those of a kernel tree; of Linux 7.3 where there is none."""
    found = Twins()
    if root is None or tree.load(str(root / "include/net/netmem.h")) is None:
        found.takes.update((name, (api.PAGE_AT[name], twin)) for name, twin in api.TWINS.items()
                           if name in api.PAGE_AT)  # fmt: skip
        found.gives.update((name, twin) for name, twin in api.TWINS.items() if name not in api.PAGE_AT)
        found.known |= {*api.TWINS.values(), POOL_OF, "virt_to_netmem"}
        _longer(found)
        found.gives.update(virt_to_page="virt_to_netmem")
        found.takes.update(compound_head=(0, "netmem_compound_head"))
        return found
    by_name: dict[tuple[str, ...], list[_Signature]] = defaultdict(list)
    for header in HEADERS:
        for one in _signatures(root / "include" / header):
            by_name[_plain(one.name)].append(one)
            if "netmem" in one.name:
                found.known.add(one.name)
    for several in by_name.values():
        for page in several:
            for netmem in several:
                if page.name not in CASTS and netmem.name not in CASTS:
                    _pair(found, page, netmem)
    for name, twin in MACROS.items():
        if twin in found.known:
            if name == "virt_to_page":
                found.gives[name] = twin
            else:
                found.takes[name] = 0, twin
    _longer(found)
    return found


def _longer(found: Twins) -> None:
    for name, (twin, more) in LONGER.items():
        if name not in found.takes and name not in found.gives and twin in found.known:
            if name == "page_pool_recycle_direct":
                found.takes[name] = 1, twin
            else:
                found.gives[name] = twin
            found.more[name] = more


def _pair(found: Twins, page: _Signature, netmem: _Signature) -> None:
    pairs = list(zip((page.result, *page.params), (netmem.result, *netmem.params), strict=False))
    if len(page.params) != len(netmem.params) or not all(_fits(one, other) for one, other in pairs):
        return
    differing = [at for at, (one, other) in enumerate(pairs) if _PAGE.match(one) and _NETMEM.match(other)]
    if differing == [0]:
        found.gives.setdefault(page.name, netmem.name)
    elif len(differing) == 1:
        found.takes.setdefault(page.name, (differing[0] - 1, netmem.name))
