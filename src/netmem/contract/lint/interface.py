"""What a call of the kernel's interfaces means for payload: what is noted, and what comes back of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from netmem.contract.lint import api
from netmem.contract.lint.labels import EMPTY, FLAGS, KINDS, SPLIT, Label, Labels, memory
from netmem.contract.lint.nodes import Addr, Expr, Field, Id, Index, names

FLAG_QUESTIONS = {
    "netmem_is_net_iov", "netmem_is_pfmemalloc", "page_is_pfmemalloc", "IS_ERR", "PTR_ERR", "test_bit",
}  # fmt: skip


class Meaning(NamedTuple):
    """Of a call. ``notes``: (event, labels, which argument is handled); ``result``: returned; ``stored``:
    into its first argument; ``about``: the argument whose memory the result is, -1 for none."""

    notes: tuple[tuple[str, Labels, int], ...] = ()
    result: Labels = EMPTY
    stored: Labels = EMPTY
    about: int = -1


NOTHING = Meaning()


class _Values:
    """The arguments' labels; empty beyond the last."""

    def __init__(self, values: list[Labels]) -> None:
        self._values = values

    def __getitem__(self, position: int) -> Labels:
        return self._values[position] if position < len(self._values) else EMPTY


def meaning_of(
    name: str, args: list[Expr], values: list[Labels], unknown_pool: Callable[[], Any], path: str, line: int
) -> Meaning | None:
    """What a call means; None when it is of no interface that we know. It stands at ``path``, ``line``."""
    given = _Values(values)
    for table, kind, what in (
        (api.ALLOC_NETMEM, "buf", "netmem"), (api.ALLOC_PAGE, "buf", "page"), (api.ALLOC_VA, "va", "page"),
    ):  # fmt: skip
        if name in table:
            pools = [x.of for x in given[0] if x.kind == "pool"] or [unknown_pool()]
            labels = frozenset(Label(kind, pool, what) for pool in pools)
            return Meaning((("alloc", labels, -1),), labels)
    if name in api.CREATE:
        pool = frozenset({Label("pool", ("made", path, line))})
        return Meaning((("create", pool, -1),), pool)
    if name in api.ALLOC_RAW:
        raw = frozenset({Label(api.ALLOC_RAW[name], ("raw", path, line), "raw")})
        return Meaning((("raw", raw, -1),), raw)
    for group in (_conversion, _dma, _reference, _access):
        meaning = group(name, args, given)
        if meaning is not None:
            return meaning
    if name in api.ASKS:
        return NOTHING
    if name in FLAG_QUESTIONS:
        return Meaning(result=given[0] & FLAGS)
    return None


def _conversion(name: str, args: list[Expr], given: _Values) -> Meaning | None:
    """From buffers to addresses, and back."""
    if name in api.DMA_ADDRESS:
        return Meaning((("posted", given[0], 0),), _as("dma", given[0]))
    if name in api.CPU_ADDRESS:
        of = given[api.CPU_ADDRESS[name]]
        return Meaning((("address", of, 0),) if name != "page_to_phys" else (), _as("va", of), about=0)
    if name in api.TO_PAGE:
        return Meaning((("topage", given[0], 0),), _as("buf", given[0]), about=0)
    if name in api.FROM_ADDRESS:
        return Meaning(result=_as("buf", given[0]), about=0)
    return None


def _dma(name: str, args: list[Expr], given: _Values) -> Meaning | None:
    """Fragments of packets, mapping and syncing."""
    if name in api.ATTACH_FRAG:
        return Meaning((("frag", given[api.ATTACH_FRAG[name]], api.ATTACH_FRAG[name]),))
    if name in api.POOL_SYNC:
        return Meaning((("pool_sync", given[1], 1),))
    if api.RAW_SYNC_CPU.match(name):
        return Meaning((("sync", given[1] | given[0], 1),))
    if api.RAW_SYNC_DEVICE.match(name):
        return Meaning((("sync_device", given[1], 1),))
    if api.UNMAP.match(name):
        said = _names(args)
        if any(one.endswith("TO_DEVICE") for one in said):
            return NOTHING  # transmit's
        if not given[1] and not any(one.endswith("FROM_DEVICE") for one in said):
            return NOTHING
        skips = api.UNMAP_ATTRS.search(name) and any("SKIP_CPU_SYNC" in n for n in _names(args[-1:]))
        return Meaning((("unmap_skip" if skips else "unmap", given[1], 1),))
    if api.MAP.match(name):
        if any(one.endswith("TO_DEVICE") for one in _names(args)):
            return NOTHING
        return Meaning((("map", given[1], 1),), _as("dma", given[1]))
    return None


def _names(args: list[Expr]) -> set[str]:
    return {one for arg in args for one in names(arg)}


def _reference(name: str, args: list[Expr], given: _Values) -> Meaning | None:
    """References and releases."""
    if name in api.COUNTS:
        return Meaning(result=frozenset(x._replace(kind="count", safe=False) for x in memory(given[0])))
    if name in api.CONTAINERS:
        return Meaning((("contained", given[api.CONTAINERS[name]], api.CONTAINERS[name]),))
    for table, what, position in (
        (api.REFCOUNT, "refcount", 0), (api.RELEASE_PAGE, "release_page", 1),
        (api.RELEASE_NETMEM, "release_netmem", 1), (api.BIAS, "bias", 0),
    ):  # fmt: skip
        if name in table:
            return Meaning(((what, given[position], position),))
    return None


def _access(name: str, args: list[Expr], given: _Values) -> Meaning | None:
    """Reads of payload, and what hands it on."""
    if name in api.READS:
        at = api.READS[name]
        notes, held = list[tuple[str, Labels, int]](), EMPTY
        if name in ("memcpy", "memmove") and args:
            notes.append(("copied", frozenset(x for x in given[0] if x.kind == "va"), 0))
            if isinstance(args[0], Id | Field | Index | Addr):  # an array of references
                held = frozenset(x for x in given[1] if x.kind in ("buf", "dma"))
        notes.append(("linear" if name in api.ATTACH_LINEAR else "read", given[at], at))
        return Meaning(tuple(notes), _as("va", given[at]) if name == "memmove" else EMPTY, held)
    if name in api.HEADER_PULL:
        return Meaning((("pull", EMPTY, 0),))
    if name in api.SPLIT_CALLS:
        return Meaning(result=SPLIT)
    if name in api.SAME:
        of = given[api.SAME[name]]
        notes_ = (("descriptor", of, api.SAME[name]),) if api.TO_DEVICE_ORDER.match(name) else ()
        return Meaning(notes_, of, about=api.SAME[name] if api.SAME[name] < len(args) else -1)
    if api.TO_DEVICE_ORDER.match(name):
        return Meaning((("descriptor", given[0], 0),))
    return None


def _as(kind: str, labels: Labels) -> Labels:
    """The same buffers as something else."""
    return frozenset(x if x.kind == kind else x._replace(kind=kind) for x in labels if x.kind in KINDS)


def is_out(type_: str, arg: Expr) -> bool:
    """True for a parameter that a function may write a result through: not for a pointer to a structure."""
    if "**" in type_.replace(" ", "") or "*[]" in type_.replace(" ", "") or not type_:
        return True
    if type_.endswith("[]") and "struct" not in type_:
        return True
    return "*" in type_ and "struct" not in type_ and (isinstance(arg, Addr) or "void" not in type_)
