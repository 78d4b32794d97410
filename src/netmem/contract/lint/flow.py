"""Where payload goes: flow of pools, buffers and their addresses through a whole driver.

Locals are followed statement by statement along each function's graph (``walk``), fields as one cell for
each structure type and name, and for each embedded object where that is known (``places``). A function is
looked at once for each combination of pools and objects that its callers pass, and again when what it was
given, what it read, or what a function that it calls returns has changed: until nothing does. What is known
at every call of a function (guards, XDP) is known inside it. What happens is noted as events, with whether a
guard stands before it.
"""

from __future__ import annotations

import functools
import heapq
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from netmem.contract.lint import api
from netmem.contract.lint.csource import CFile, Function
from netmem.contract.lint.labels import (
    EMPTY,
    FOLLOWED,
    KINDS,
    MAX_CALLS,
    MAX_CONTEXTS,
    NO_FACTS,
    XDP,
    Answer,
    Event,
    Facts,
    Label,
    Labels,
    both,
    of_kind,
)
from netmem.contract.lint.nodes import Addr, Assign, Call, Expr, Field, Id, Init, names, walk
from netmem.contract.lint.places import Cell, Scope
from netmem.contract.lint.selection import PREDICATE_LINES, Selection
from netmem.contract.lint.values import Conditions, Frame, Key, Summary, Values
from netmem.contract.lint.walk import Walk
from netmem.contract.lint.world import World

__all__ = ["Event", "Flow"]
MAX_LOOKS = 40  # at one function in one context
MAX_CHOICES = 8
MAX_MODES = 3
ROOT: Key = (0, "root")


class Flow:
    """``keeps_aside``: what XDP and modes without pool keep is followed, too.

    Run with ``run``; then ``events``, ``fields``, ``locals`` and ``holds`` say what was found."""

    def __init__(self, world: World, keeps_aside: bool = False) -> None:
        self.world = world
        self.selection = Selection(world)
        self.values = Values(world, self.selection, keeps_aside)
        self.walk = Walk(self.values, self._called)
        self.events: set[Event] = set()
        self.conditions: Conditions = {}
        self.asked: dict[Expr, Labels] = {}  # conditions on what a user asks set_ringparam for
        self._known: dict[Key, Summary] = {}
        self._contexts: dict[int, set[Any]] = defaultdict(set)
        self._todo: set[Key] = set()
        self._transmit: set[str] = set()
        self._held: set[Cell] = set()
        self._tags: tuple[set[Cell], dict[str, set[str]]] | None = None
        self._named_by: dict[int, set[Cell]] = {}
        self._depth = 0
        self._answers: dict[int, dict[Key, Answer | None]] = defaultdict(dict)
        self._kinds: dict[int, dict[Key, dict[str, Facts]]] = defaultdict(dict)
        self._ready: list[
            tuple[bool, int, int, Key]
        ] = []  # callees before their callers, news of fields last
        self._waking = False
        self._count = 0

    @property
    def locals(self) -> dict[tuple[str, str, str], Labels]:
        """(file, function, local or parameter) -> what it holds at any time; "" is what is returned."""
        return self.values.locals

    @property
    def fields(self) -> dict[Cell, Labels]:
        """What fields hold."""
        return self.values.memory.fields

    @property
    def holds(self) -> dict[Any, set[Any]]:
        """Which pools a field may hold."""
        return self.values.memory.holds

    @property
    def types_of(self) -> dict[str, set[str]]:
        """Embedded object -> structure types."""
        return self.values.memory.types_of

    @property
    def objects(self) -> dict[str, set[str]]:
        """Structure type -> embedded objects."""
        return self.values.memory.objects

    # -- which functions ---------------------------------------------------------------------

    def run(self, more: Callable[[set[str]], list[CFile]] = lambda names: []) -> None:
        """Until nothing changes any more.

        ``more``: the driver's files that define these functions, which payload is passed to.
        """
        held: set[Cell] = set()
        asked: set[str] = set()
        aside = self._operations()
        for _ in range(MAX_CHOICES):
            before = self.selection.known
            everything = [f for found in self.world.named.values() for f in found]
            self._held = held
            chosen = self.selection.choose(everything, {name.encode() for _, name in held}, self._names_held)
            self._again(self.selection.known - before)
            self._roots(chosen, aside)
            self._settle()
            for _ in range(MAX_MODES):
                news = self.values.modes.conclude(self._is_called, self._stored_unseen)
                if not news:
                    break
                for name in news:
                    for reader in self.values.memory.readers.get(name, ()):
                        self._later(reader)
                self._settle()
            last, held = held, {
                cell for cell, values in self.fields.items() if any(x.kind in FOLLOWED for x in values)
            }  # fmt: skip
            passed = self._passed() - asked
            asked |= passed
            files = more(passed) if passed else []
            self.world.add(files)
            for key in list(self._known) if files else ():
                if not asked.isdisjoint(name.decode() for name in self._known[key].function.called):
                    self._later(key)
            aside |= self._operations() if files else set()
            if held == last and not files:
                break
        self._take_in([known for known in self._known.values() if known.sites])

    def _take_in(self, looked_at: list[Summary]) -> None:
        """What the last looks at all functions found."""
        self.events = {one for known in looked_at for one in known.events}
        for known in looked_at:
            for cond, held in known.asked.items():
                self.asked[cond] = self.asked.get(cond, EMPTY) | held
            for cond, (true, false) in known.conditions.items():
                before = self.conditions.get(cond, (False, False))
                self.conditions[cond] = true or before[0], false or before[1]

    def _is_called(self, key: Key) -> bool:
        return bool(self._known[key].sites)

    def _stored_unseen(self, constant: str) -> bool:
        """True for a constant that is stored, too, where nobody has looked."""
        word = constant.encode()
        seen = {key[0] for key, known in self._known.items() if known.looks}
        return any(
            _stores(f, constant) for found in self.world.named.values() for f in found
            if word in f.words and id(f) not in seen
        )  # fmt: skip

    def _passed(self) -> set[str]:
        """Functions that payload is passed to and nobody has seen."""
        events = (e for known in self._known.values() if known.sites for e in known.events)
        passed = {e.call for e in events if e.what == "passed"}
        return {name for name in passed | self.values.handed_on if name not in self.world.named}

    def _names_held(self, function: Function) -> bool:
        """True for a function that names a field in which something is kept that is followed."""
        known = self._named_by.get(id(function))
        if known is None:
            scope = Scope(function)
            scope.types.update(function.types)
            known = self._named_by[id(function)] = {
                (self.values.types.tag(scope, one.base), one.name)
                for one in walk(function.body) if isinstance(one, Field)
            }  # fmt: skip
        tags = self._tags_of_held()
        return any(name in tags and (not tag or tag in tags[name] or "" in tags[name]) for tag, name in known)

    def _tags_of_held(self) -> dict[str, set[str]]:
        """Field -> structures in which it holds something; "" when that is not known."""
        if self._tags is None or self._tags[0] is not self._held:
            owners = self.values.memory.types_of
            made: dict[str, set[str]] = defaultdict(set)
            for owner, name in self._held:
                made[name] |= owners.get(owner) or {owner if owner != "global" else ""}
            self._tags = self._held, made
        return self._tags[1]

    def _operations(self) -> set[str]:
        """Tables of functions: what a call through such a field may reach; names of those that serve XDP or
        tests."""
        aside: set[str] = set()
        for variable, (type_, expr, _, _) in self.world.globals.items():
            if isinstance(expr, Init):
                self._table(variable, self.world.tag(type_), expr, aside)
        return aside

    def _table(self, variable: str, tag: str, init: Init, aside: set[str]) -> None:
        for name, one in init.items:
            one = one.of if isinstance(one, Addr) else one
            if isinstance(one, Init):
                self._table(variable, tag, one, aside)
            if not isinstance(one, Id) or one.name not in self.world.named:
                continue
            function = frozenset({Label("fn", one.name)})
            if not name or name[0].isdigit() or name.isupper():  # an array of functions
                self.values.memory.add_constant(variable, function)
                continue
            self.values.memory.put((tag, name.split(".")[-1]), function)
            if api.ASIDE_OPS.match(name):
                aside.add(one.name)
            if name == api.TRANSMITS:
                self._transmit.add(one.name)

    def _roots(self, chosen: list[Function], aside: set[str]) -> None:
        """Start with functions that nobody else calls; others are reached with what they are given."""
        own = [f for f in chosen if f.path in self.world.own_paths]
        # A library's functions when they are called, or handed on as pointers.
        others = [f for f in chosen if f.path not in self.world.own_paths]
        left = {id(f): f for f in (*own, *(f for f in others if self.selection.is_handed_on(f)))
                if f.name not in self._transmit}  # fmt: skip
        callers = self.selection.callers
        self._without_transmit(left, chosen)
        tops = {k: f for k, f in left.items() if not (callers.get(k, set()) & left.keys())}
        for key, known in self._known.items():
            if ROOT in known.sites and key[0] not in tops:
                self._leave(key, ROOT)
        for function in tops.values():
            self._root(function, aside)
        self._settle()
        while True:  # a circle is entered anywhere; others are handed on as pointers
            reached = {key[0] for key, known in self._known.items() if known.sites}
            alone = [f for k, f in left.items() if k not in reached]
            if not alone:
                return
            self._root(alone[0], aside)
            self._settle()

    def _without_transmit(self, left: dict[int, Function], chosen: list[Function]) -> None:
        """Take out what only transmit reaches."""
        gone = {id(f) for f in chosen if f.name in self._transmit}
        callers = self.selection.callers
        while gone:
            more = {k for k in left if callers.get(k) and callers[k] <= gone}
            if not more:
                return
            for key in more:
                del left[key]
            gone |= more

    def _root(self, function: Function, aside: set[str]) -> None:
        facts = frozenset({XDP}) if function.name in aside else NO_FACTS
        args = [EMPTY] * len(function.params)
        self._enter(ROOT, self._context(function, args), function, args, facts)

    # -- until nothing changes -----------------------------------------------------------------

    def _later(self, key: Key | None) -> None:
        """Look at a function again."""
        if key is not None and key != ROOT and key not in self._todo:
            self._todo.add(key)
            self._count += 1
            heapq.heappush(self._ready, (self._waking, -self._known[key].depth, self._count, key))

    def _settle(self) -> None:
        while self._ready:
            key = heapq.heappop(self._ready)[3]
            if key in self._todo:
                self._look(key)

    def _again(self, names: set[str]) -> None:
        """Functions with these names are followed from now on: whoever calls them is looked at again."""
        words = {name.encode() for name in names}
        for key, known in self._known.items():
            if not words.isdisjoint(known.function.called):
                self._later(key)

    def _look(self, key: Key) -> None:
        """Look at a function once more, with what is known by now."""
        known = self._known[key]
        self._todo.discard(key)
        if known.busy or known.looks >= MAX_LOOKS or not known.sites:
            return
        known.looks += 1
        known.busy = True
        memory, function = self.values.memory, known.function
        frame = Frame(function, key, known.entry)
        for (_, name), given in zip(function.params, known.args, strict=False):
            frame.point.env[name] = given
            if not frame.types.get(name):
                frame.types[name] = self.values.types.parameters.get((id(function), name), "")
            self.walk.stores.remember(frame, name, given)
        before, memory.reader = memory.reader, key
        end = self.walk.function(frame)
        memory.reader = before
        known.busy = False
        for old in known.calls - frame.sites.keys():
            self._leave(old, key)
        known.calls, known.events = (
            set(frame.sites),
            [one for found in frame.events.values() for one in found],
        )
        known.conditions, known.asked = frame.conditions, frame.asked
        for callee, facts in frame.sites.items():
            self._site(callee, key, facts)
        self._conclude(known, key, frame, end.env)
        self._wake()

    def _conclude(self, known: Summary, key: Key, frame: Frame, env: dict[str, Labels]) -> None:
        """What callers learn; they are looked at again when it is news."""
        outs = tuple(
            env.get(name, EMPTY) | held
            for (_, name), held in zip(known.function.params, known.outs, strict=False)
        )
        answers = self._answers[id(known.function)]
        kinds = self._kinds[id(known.function)]
        news = outs != known.outs or not frame.returns <= known.returns or answers.get(key) != frame.answer
        if not news and kinds.get(key, {}) == frame.kinds:
            return
        kinds[key] = frame.kinds
        known.outs, known.returns = outs, known.returns | frame.returns
        answers[key] = frame.answer
        id_ = id(known.function)
        more = not frame.returns <= self.values.returned[id_]
        self.values.returned[id_] |= frame.returns
        if not self._answered(id_, more):
            for caller in known.sites:
                self._later(caller)

    def _answered(self, id_: int, news: bool) -> bool:
        """What a function says by its results, whoever calls it; when that is news, all who do are woken."""
        said = [one for one in self._answers[id_].values() if one is not None]
        joined = functools.reduce(Answer.joined, said) if said else None
        before = self.values.answers.get(id_)
        if joined is not None:
            self.values.answers[id_] = joined
        kinds: dict[str, Facts] = {}
        for one in self._kinds[id_].values():
            for name, facts in one.items():
                kinds[name] = both(kinds[name], facts) if name in kinds else facts
        news |= kinds != self.values.kinds.get(id_, {})
        if kinds:
            self.values.kinds[id_] = kinds
        if not news and (joined is None or joined == before):
            return False
        for context in self._contexts[id_]:
            for caller in self._known[id_, context].sites:
                self._later(caller)
        return True

    def _wake(self) -> None:
        """Whoever read what holds more by now is looked at again."""
        memory = self.values.memory
        self._waking = True
        for name in memory.changed:
            for reader in memory.readers.get(name, ()):
                self._later(reader)
        self._waking = False
        memory.changed.clear()

    def _leave(self, key: Key, caller: Key) -> None:
        """A caller does not call a function any more as it did."""
        known = self._known[key]
        if known.sites.pop(caller, None) is None:
            return
        if known.sites:
            entry = functools.reduce(both, known.sites.values())
            if entry != known.entry:
                known.entry = entry
                self._later(key)
            return
        if self._answers[id(known.function)].pop(key, None) is not None:
            self._answered(id(known.function), False)
        for one in known.calls:
            self._leave(one, key)

    # -- calls ---------------------------------------------------------------------------------

    def _called(self, f: Frame, target: Function, args: list[Labels], facts: Facts) -> Summary | None:
        """A function of ``f``'s calls another; what is known of that one. None: it has nothing to do with
        payload."""
        if (
            target.name not in self.selection.known
            and target.end - target.line > PREDICATE_LINES
            and not any(args)
        ):
            return None
        key = self._context(target, args)
        before = f.sites.get(key)
        f.sites[key] = facts if before is None else both(before, facts)
        return self._enter(f.key, key, target, args, facts)

    def _context(self, target: Function, args: list[Labels]) -> Key:
        """Functions are told apart by the pools and objects that they are given, and by whether they are
        given buffers."""
        context: Any = tuple(
            of_kind(arg, "pool", "obj", "const") | {Label("buffer", x.api) for x in arg if x.kind in KINDS}
            for arg in args
        )
        contexts = self._contexts[id(target)]
        if context not in contexts:
            if len(contexts) >= MAX_CONTEXTS:
                context = ()  # too many callers to tell apart
            contexts.add(context)
        return id(target), context

    def _enter(self, caller: Key, key: Key, target: Function, args: list[Labels], facts: Facts) -> Summary:
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Summary(
                target, list(args), (EMPTY,) * len(target.params), depth=self._depth
            )
            known.sites[caller], known.entry = facts, facts
            fresh = True
        else:
            fresh = not known.sites
            for at, given in enumerate(args):
                if not given <= known.args[at]:
                    known.args[at] |= given
                    fresh = True
            if caller not in known.sites:
                self._site(key, caller, facts)
        if fresh:
            if known.busy or self._depth >= MAX_CALLS or caller == ROOT:
                self._later(key)
            else:
                self._depth += 1
                self._look(key)
                self._depth -= 1
        return known

    def _site(self, key: Key, caller: Key, facts: Facts) -> None:
        """What is known where a caller calls a function."""
        known = self._known[key]
        if known.sites.get(caller) == facts:
            return
        known.sites[caller] = facts
        entry = functools.reduce(both, known.sites.values())
        if entry != known.entry:
            known.entry = entry
            self._later(key)


def _stores(function: Function, constant: str) -> bool:
    """True for a function that assigns a constant, or sets it in a mask."""
    for one in walk(function.body):
        match one:
            case Assign(op="=" | "|=", right=right) if constant in names(right):
                return True
            case Call(args=[Id(name=name), *_]) if name == constant and "set_bit" in one.name:
                return True
    return False
