"""What rules look at, and what they answer."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from netmem.contract.lint import api
from netmem.contract.lint.flags import Conds, FlagReader, Flags
from netmem.contract.lint.flow import Event, Flow
from netmem.contract.lint.labels import KINDS
from netmem.contract.lint.world import World

READS = ("topage", "address", "read", "linear")  # also of what is in a packet already
PASS, PARTIAL, FAIL, NA = "pass", "partial", "fail", "n/a"
RANK = {FAIL: 0, PARTIAL: 1, NA: 2, PASS: 3}  # worse before better


@dataclass
class Evidence:
    """One place, and what is there. ``cure``: how to mend it."""

    file: str
    line: int
    message: str
    cure: str = ""


@dataclass
class Verdict:
    """One requirement's. ``confidence``: high, or low with ``needs``: what it would take to know."""

    verdict: str
    why: str
    evidence: list[Evidence] = field(default_factory=list)
    confidence: str = "high"
    needs: str = ""


@dataclass
class Pool:
    """One call of page_pool_create(): what it is given, and under which conditions it is made."""

    path: str
    line: int
    flags: Flags
    conds: Conds

    def has(self, name: str) -> bool:
        """True when a flag may be set."""
        return name in self.flags.sure or name in self.flags.maybe


class Case:
    """One driver, understood: pools, which of them are payload's, and what happens to payload."""

    def __init__(self, world: World, flow: Flow) -> None:
        self.world, self.flow = world, flow
        reader = FlagReader(world)
        self.creates = {
            (e.path, e.line): Pool(e.path, e.line, *reader.at_create(e.path, e.line))
            for e in flow.events if e.what == "create"
        }  # fmt: skip
        self.events = sorted(flow.events, key=lambda e: (e.path, e.line, e.what, e.call))

    def of(self, *what: str) -> list[Event]:
        """Events of these kinds, in the order of the source."""
        return [e for e in self.events if e.what in what]

    @functools.cached_property
    def own_pools(self) -> dict[Any, set[Any]]:
        """holder -> its own pools: two fields may share one when no provider is bound."""
        holds = {holder: set(places) for holder, places in self._made().items()}
        for _ in range(3):
            for holder, places in holds.items():
                for other, theirs in holds.items():
                    if other != holder and theirs and theirs < places:
                        holds[holder] = places = places - theirs
        return holds

    def _made(self) -> dict[Any, set[Any]]:
        """holder -> places of page_pool_create() whose pool it may hold, through other holders."""
        holders = {label.of for e in self.events for label in e.labels if label.kind in KINDS}
        holders |= set(self.flow.holds)
        found: dict[Any, set[Any]] = {}
        by_name: dict[Any, list[Any]] = defaultdict(list)
        for cell in self.flow.holds:
            if len(cell) == 2:
                by_name[cell[1]].append(cell)
        for holder in holders:
            seen, todo, made = set(), [holder], set()
            while todo:
                one = todo.pop()
                if one in seen:
                    continue
                seen.add(one)
                if one[0] == "made":
                    made.add(one)
                todo += self.flow.holds.get(one, ())
                if len(one) == 2:  # kept where the object was not known, or is one of several
                    tag, name = one
                    todo += [
                        c
                        for c in by_name[name]
                        if (c[0] in self.flow.objects.get(tag, ()) or tag in self.flow.objects.get(c[0], ()))
                    ]
            found[holder] = made
        return found

    def field_of(self, holder: Any) -> Any:
        """The structure's field that a pool is kept in, whichever object it is of."""
        if not isinstance(holder, tuple):
            return holder
        return (min(self.flow.types_of.get(holder[0]) or {holder[0]}), *holder[1:])

    def pools_of(self, holder: Any) -> list[Pool]:
        """What made the pools that a holder has of its own."""
        return [
            self.creates[place[1:]] for place in self.own_pools.get(holder, ()) if place[1:] in self.creates
        ]

    @functools.cached_property
    def payload(self) -> set[Any]:
        """Holders of pools that payload comes from; the others' buffers are headers."""
        allocs = [e for e in self.of("alloc") if not e.xdp] or self.of("alloc")
        holders = {label.of for e in allocs for label in e.labels}
        frags, linear = self._holders("frag"), self._holders("linear")
        if holders & (frags | linear):  # the others' buffers are in no packet: a management channel's
            holders &= frags | linear
        flagged = {h for h in holders if any(p.has(api.FLAGS[3]) for p in self.pools_of(h))}
        if flagged and flagged != holders:
            return flagged
        written = self._holders("copied")  # the driver writes there: made for the CPU
        if written and holders - written and holders & written:
            holders -= written
        both = holders & frags
        if both and holders - both and (holders - both) & linear:
            return both
        return holders

    def _holders(self, *what: str) -> set[Any]:
        """Whose buffers these events are about."""
        return {label.of for e in self.of(*what) if not e.xdp for label in e.labels if label.kind in KINDS}

    @functools.cached_property
    def api(self) -> str:
        """netmem when any payload is allocated so outside of XDP: of several modes the best is judged."""
        kinds = {
            label.api for e in self.of("alloc") if not e.xdp for label in e.labels if label.of in self.payload
        }
        return "netmem" if "netmem" in kinds else "page"

    def mine(self, event: Event, *kinds: str) -> bool:
        """True when an event is about payload in the mode that is judged."""
        holders = self.payload
        if event.what in READS:
            holders = self.payload | {("frag", holder) for holder in self.payload}
        return any(
            label.of in holders and label.api == self.api
            for label in event.labels if label.kind != "pool" and (not kinds or label.kind in kinds)
        )  # fmt: skip

    def judged(self, *what: str) -> list[Event]:
        """Events about payload, without XDP and tests, in the driver's own files or a library's."""
        return [
            e for e in self.of(*what)
            if not e.xdp and self.mine(e) and not any(label.of in self.management for label in e.labels)
        ]  # fmt: skip

    @functools.cached_property
    def management(self) -> set[Any]:
        """Holders of pools whose buffers come in no packet: a management channel's."""
        holders = {label.of for e in self.of("alloc") for label in e.labels}
        packets = self._holders("frag", "linear")
        return holders - packets if holders & packets else set()

    @functools.cached_property
    def receives(self) -> set[tuple[str, str]]:
        """(file, name) of functions that handle payload or received packets, and of whoever they call."""
        functions = [f for found in self.world.named.values() for f in found]
        events = self.judged("frag", "linear", "read", "topage", "taken", "pool_sync")
        handles = {(e.path, e.function) for e in events}
        handles |= {(f.path, f.name) for f in functions if not api.RECEIVES.isdisjoint(f.called)}
        callees = {name for f in functions if (f.path, f.name) in handles for name in f.called}
        return handles | {
            (f.path, f.name) for f in functions
            if f.path in self.world.own_paths and f.name.encode() in callees
        }  # fmt: skip

    @functools.cached_property
    def payload_pools(self) -> list[Pool]:
        """The creations of payload's pools; all that there are when none can be told."""
        found = {id(p): p for holder in self.payload for p in self.pools_of(holder)}
        return list(found.values()) or list(self.creates.values())

    def evidence(self, events: Iterable[Event], message: str, cure: str = "") -> list[Evidence]:
        """A place for each event; ``message`` may say {call} and {function}."""
        found: dict[tuple[str, int], Evidence] = {}
        for e in (one for one in events if one.line):
            text = message.format(call=e.call, function=e.function)
            found.setdefault((e.path, e.line), Evidence(e.path, e.line, text, cure.format(call=e.call)))
        return list(found.values())


@dataclass(frozen=True)
class Rule:
    """One requirement's rule. ``judge`` looks at a case; ``convention`` says what decides."""

    id: str
    convention: str
    judge: Callable[[Case], Verdict]
