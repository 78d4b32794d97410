"""Advice: duties of drivers beside the seven requirements. It has names of its own, and decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from netmem.contract.lint import api
from netmem.contract.lint.csource import Function
from netmem.contract.lint.model import Case, Evidence
from netmem.contract.lint.nodes import Call, Id, Init, Num, names, walk

UNREADABLE = api.FLAGS[3]
MARKS = {b"skb_mark_for_recycle", b"pp_recycle", b"xdp_build_skb_from_buff", b"xdp_build_skb_from_zc"}
UNMAPS = {b"netmem_dma_unmap_page_attrs", b"netmem_dma_unmap_addr_set", b"skb_frag_is_net_iov"}


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
)  # fmt: skip
BY_ID = {one.id: one for one in ADVICE}
