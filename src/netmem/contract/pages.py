"""Where a driver keeps the pages of its payload: fields, and locals, parameters and results of functions."""

from __future__ import annotations

from typing import Any

from netmem.contract.lint.model import Case
from netmem.contract.lint.nodes import Field, Stmt, walk
from netmem.contract.patch import Refused

PAGE = "struct page *"
PAGE_AT = {
    "page_pool_get_dma_addr": 0, "page_pool_put_page": 1, "page_pool_put_full_page": 1,
    "page_pool_put_unrefed_page": 1, "page_pool_recycle_direct": 1, "page_pool_fragment_page": 0,
    "page_pool_ref_page": 0, "page_pool_unref_page": 0, "page_pool_dma_sync_for_cpu": 1, "skb_add_rx_frag": 2,
    "skb_fill_page_desc": 2, "__skb_fill_page_desc": 2, "skb_frag_fill_page_desc": 1,
    "page_is_pfmemalloc": 0, "page_address": 0,
}  # fmt: skip
SAME_ARGUMENTS = {
    "page_pool_alloc_pages", "page_pool_dev_alloc_pages", "page_pool_alloc_frag", "page_pool_alloc",
    "page_pool_dev_alloc",
}  # fmt: skip
WITH_GFP = {"page_pool_dev_alloc_frag": "page_pool_alloc_frag_netmem"}


class Holders:
    """Of one driver. ``cells``: (structure, field); ``locals``: (file, function, name).

    The name is "" for what a function returns. Refused for what holds pages of headers too.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self.cells = self._cells()
        self.locals = {
            key for key, held in case.flow.locals.items()
            if self._is_payload(held, f"{key[2] or 'what is returned'} in {key[1]}()")
        }  # fmt: skip

    def _is_payload(self, held: Any, what: str) -> bool:
        """True when only payload's pages are there. Refused for what headers share with payload."""
        mine = {x for x in held if x.kind == "buf" and x.of in self._case.payload and x.api == "page"}
        if mine and len(mine) < sum(x.kind == "buf" and x.api != "raw" for x in held):
            raise Refused(
                f"{what} holds pages of payload and of headers: they must be told apart by hand first"
            )
        return bool(mine)

    def _cells(self) -> set[tuple[str, str]]:
        found = set()
        for (owner, name), held in self._case.flow.fields.items():
            tags = [owner] if owner in self._case.world.structs else [
                tag for tag, objects in self._case.flow.objects.items() if owner in objects
            ]  # fmt: skip
            for tag in tags:
                if self._case.world.field_type(tag, name).startswith(PAGE.rstrip(" *")) and self._is_payload(
                    held, f"struct {tag}.{name}"
                ):
                    found.add((tag, name))
        return found

    def names_cell(self, body: list[Stmt]) -> bool:
        """True for statements that name a field which holds pages of payload."""
        names = {name for _, name in self.cells}
        return any(isinstance(one, Field) and one.name in names for one in walk(body))
