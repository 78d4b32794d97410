"""Advice: duties of drivers beside the seven requirements. It has names of its own, and decides nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from netmem.contract.lint import api, tree
from netmem.contract.lint.csource import Function
from netmem.contract.lint.labels import split_name
from netmem.contract.lint.model import Case, Evidence
from netmem.contract.lint.nodes import (
    Assign,
    Binary,
    Call,
    Declare,
    Expr,
    Field,
    Id,
    Init,
    Num,
    Stmt,
    names,
    walk,
)
from netmem.contract.lint.rules.r2 import BIT

UNREADABLE = api.FLAGS[3]
MARKS = {b"skb_mark_for_recycle", b"pp_recycle", b"xdp_build_skb_from_buff", b"xdp_build_skb_from_zc"}
UNMAPS = {b"netmem_dma_unmap_page_attrs", b"netmem_dma_unmap_addr_set", b"skb_frag_is_net_iov"}
DIRECT = {"page_pool_recycle_direct", "page_pool_recycle_direct_netmem"}
DIRECT_AT = {  # position of allow_direct
    "page_pool_put_page": 3, "page_pool_put_netmem": 3, "page_pool_put_full_page": 2,
    "page_pool_put_full_netmem": 2, "page_pool_put_unrefed_page": 3, "page_pool_put_unrefed_netmem": 3,
}  # fmt: skip
DIRECT_WORDS = {name.encode() for name in (*DIRECT, *DIRECT_AT)}
OPERATIONS = re.compile(r"\b(net_device|ethtool|netdev_queue_mgmt|dev_pm)_ops\b|_driver\b")
STOPS = {b"napi_disable", b"__napi_disable", b"page_pool_disable_direct_recycling"}
SYNCS = {name.encode() for name in api.POOL_SYNC}


@dataclass(frozen=True)
class Advice:
    """``find`` yields a place for each case; ``text``: what is asked, and where the kernel says so."""

    id: str
    title: str
    text: str
    find: Callable[[Case], Iterator[Evidence]]


def _functions(case: Case, own: bool = True) -> Iterator[Function]:
    for found in case.world.named.values():
        yield from (f for f in found if not own or f.path in case.world.own_paths)


def _bound(case: Case) -> Iterator[Evidence]:
    words = {word for f in _functions(case) for word in f.words}
    texts = [one.text for one in case.world.own]
    for pool in case.creates.values():
        if not pool.has(UNREADABLE):
            continue
        missing = [one for one in ("netdev", "queue_idx") if one.encode() not in words]
        if missing:
            said = " and ".join(f"page_pool_params.{one}" for one in missing)
            yield Evidence(pool.path, pool.line, f"a pool with {UNREADABLE} without {said}", f"set {said}")
        if not any(b"queue_mgmt_ops" in text for text in texts):
            yield Evidence(
                pool.path, pool.line, f"a pool with {UNREADABLE}, and no queue_mgmt_ops",
                "without netdev_queue_mgmt_ops no memory can be bound to a queue",
            )  # fmt: skip


def _recycled(case: Case) -> Iterator[Evidence]:
    attached = case.judged("frag", "linear")
    if not attached or any(not MARKS.isdisjoint(f.words) for f in _functions(case, own=False)):
        return
    first = attached[0]
    yield Evidence(
        first.path, first.line, f"{first.call}() attaches a pool's buffer, and nothing marks the packet",
        "call skb_mark_for_recycle(): without it each buffer leaves the pool for good",
    )  # fmt: skip


def _transmitted(case: Case) -> Iterator[Evidence]:
    for function in _functions(case):
        if b"netmem_tx" not in function.words or any(
            not UNMAPS.isdisjoint(f.words) for f in _functions(case, own=False)
        ):
            continue
        lines = case.world.files[function.path].lines[function.line - 1 : function.end]
        line = next((n for n, text in enumerate(lines, function.line) if "netmem_tx" in text), function.line)
        yield Evidence(
            function.path, line, "netmem_tx is set, and transmit unmaps as if all were pages",
            "unmap with netmem_dma_unmap_page_attrs() what netmem_dma_unmap_addr_set() has kept",
        )  # fmt: skip


def _threshold(case: Case) -> Iterator[Evidence]:
    for name, (type_, expr, path, line) in case.world.globals.items():
        if "ethtool_ops" not in type_ or not isinstance(expr, Init) or path not in case.world.own_paths:
            continue
        offered = dict(expr.items).get("supported_ring_params", Num(0, "0"))
        if "ETHTOOL_RING_USE_HDS_THRS" not in names(offered):
            continue
        if not any(b"hds_thresh_max" in f.words for f in _functions(case)):
            at = next((one.line for one in walk(offered) if isinstance(one, Id | Call)), line)
            yield Evidence(
                path, at, f"{name} offers a threshold of header split, and no hds_thresh_max",
                "fill kernel_ring->hds_thresh_max in get_ringparam: without it every threshold is refused",
            )  # fmt: skip


def _reached(case: Case, names: set[str]) -> set[tuple[str, str]]:
    """(file, name) of functions that those with these names may call, or hand on."""
    starts = [f for name in names for f in case.world.named.get(name, ())]
    return {(f.path, f.name) for f in case.world.reached(starts)}


def _operation(case: Case, field: str) -> dict[str, tuple[str, int]]:
    """Functions that the driver's tables have in a field, and where they say so."""
    return {
        one.name: (path, one.line) for _, expr, path, _ in case.world.globals.values()
        if isinstance(expr, Init) and path in case.world.own_paths
        for name, one in expr.items if name == field and isinstance(one, Id)
    }  # fmt: skip


def _handed_on(case: Case) -> set[str]:
    """Functions that are exported or handed on as pointers, but for the device's own operations."""
    found = {name.decode() for one in case.world.own for name in tree.EXPORT.findall(one.text)}
    tables = [expr for type_, expr, _, _ in case.world.globals.values()
              if isinstance(expr, Init) and not OPERATIONS.search(type_)]  # fmt: skip
    parts: list[Init | list[Stmt]] = [*tables, *(f.body for f in _functions(case) if not f.macro)]
    for part in parts:
        called = set()
        for one in walk(part):
            if isinstance(one, Call):
                called.add(one.function)
            elif isinstance(one, Id) and one not in called and one.name in case.world.named:
                found.add(one.name)
    return found


def _direct(call: Call) -> bool:
    """True for a buffer that is put into the pool's own cache, which belongs to NAPI."""
    at = DIRECT_AT.get(call.name)
    if at is None:
        return call.name in DIRECT
    said = call.args[at] if at < len(call.args) else None
    return isinstance(said, Num | Id) and (said.text if isinstance(said, Num) else said.name) in ("true", "1")


def _outside_napi(case: Case) -> Iterator[Evidence]:
    polls = {
        one.args[2].name for f in _functions(case) if any(w.startswith(b"netif_napi_add") for w in f.called)
        for one in walk(f.body)
        if isinstance(one, Call) and one.name.startswith("netif_napi_add") and len(one.args) > 2
        and isinstance(one.args[2], Id)
    }  # fmt: skip
    if not polls:
        return  # NAPI is another module's
    reached = _reached(case, polls)
    puts = [
        f for f in _functions(case)
        if not f.macro and not DIRECT_WORDS.isdisjoint(f.called) and STOPS.isdisjoint(f.called)
    ]  # fmt: skip
    if all((f.path, f.name) in reached for f in puts):
        return
    reached |= _reached(case, _handed_on(case))
    for function in (f for f in puts if (f.path, f.name) not in reached):
        for one in walk(function.body):
            if isinstance(one, Call) and _direct(one):
                yield Evidence(
                    function.path, one.line, f"{one.name}() in {function.name}(), which no NAPI poll calls",
                    "put it with allow_direct false, unless NAPI is stopped: the pool's cache has no lock",
                )  # fmt: skip


def _with_programs(case: Case) -> Iterator[Evidence]:
    attach = _operation(case, "ndo_bpf")
    offers = any(
        "ethtool_ops" in type_ and isinstance(expr, Init)
        and BIT in names(dict(expr.items).get("supported_ring_params", Num(0, "0")))
        for type_, expr, path, _ in case.world.globals.values() if path in case.world.own_paths
    )  # fmt: skip
    if not attach or not offers:
        return
    reached = _reached(case, set(attach))
    functions = [f for f in _functions(case) if (f.path, f.name) in reached]
    kept = {e.call.lstrip(".") for e in case.of("acted")}  # where what the user asks for is kept
    if any(word in kept or split_name(word) for f in functions for word in map(bytes.decode, f.words)):
        return
    for name, (path, line) in sorted(attach.items()):
        yield Evidence(
            path, line, f"{name}() attaches programs whether header split is on or not",
            "refuse while split is on: the core does so where the user has turned it on, and for "
            "programs without fragments, not where the driver splits by itself",
        )  # fmt: skip


def _offset_twice(case: Case) -> Iterator[Evidence]:
    own: set[str] = set()
    for function in _functions(case):
        if b"page_pool_params" not in function.words:
            continue
        for one in walk(function.body):
            match one:
                case Assign(left=Field(base=Id(name=name), name="offset"), right=right):
                    if "page_pool_params" in function.types.get(name, ""):
                        own |= _terms(right)
                case Declare(type=type_, init=Init() as init) if "page_pool_params" in type_:
                    own |= _terms(dict(init.items).get("offset", Num(0, "0")))
    if not own:
        return
    for function in _functions(case):
        if SYNCS.isdisjoint(function.called):
            continue
        for one in walk(function.body):
            if isinstance(one, Call) and one.name.encode() in SYNCS and len(one.args) > 2:
                both = sorted(own & _terms(one.args[2]))
                if both:
                    yield Evidence(
                        function.path, one.line, f"{one.name}() adds {both[0]}, which the pool adds already",
                        "count from where the pool's buffers begin: the call adds page_pool_params.offset",
                    )  # fmt: skip


def _terms(e: Expr) -> set[str]:
    """Constants that a sum adds."""
    if isinstance(e, Binary) and e.op == "+":
        return _terms(e.left) | _terms(e.right)
    return {e.name} if isinstance(e, Id) and e.name.isupper() else set()


ADVICE = (
    Advice(
        "A1", "a pool that memory can be bound to",
        "A pool with PP_FLAG_ALLOW_UNREADABLE_NETMEM knows its netdev and queue_idx, and the device has "
        "queue_mgmt_ops: page_pool_init() and netdev_rx_queue_restart() look there.", _bound,
    ),
    Advice(
        "A2", "packets are marked for recycling",
        "Who attaches a pool's buffers to a packet calls skb_mark_for_recycle().", _recycled,
    ),
    Advice(
        "A3", "transmit unmaps as netmem",
        "With netdev->netmem_tx the netmem variants of dma_unmap_addr_set() and dma_unmap_page() are used.",
        _transmitted,
    ),
    Advice(
        "A4", "the largest threshold is told",
        "Who offers ETHTOOL_RING_USE_HDS_THRS fills hds_thresh_max.", _threshold,
    ),
    Advice(
        "A5", "direct recycling is NAPI's",
        "page_pool_recycle_direct_netmem(), and puts with allow_direct, are for the pool's own NAPI: its "
        "cache has no lock.", _outside_napi,
    ),
    Advice(
        "A6", "no program sees half a packet",
        "Who offers tcp-data-split and XDP looks at split before a program is attached; the core does so "
        "for what the user has set (netif_xdp_propagate()).", _with_programs,
    ),
    Advice(
        "A7", "the pool's offset counts once",
        "page_pool_dma_sync_netmem_for_cpu() adds page_pool_params.offset itself.", _offset_twice,
    ),
)  # fmt: skip
BY_ID = {one.id: one for one in ADVICE}
