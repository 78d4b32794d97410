"""What is followed, and what is known of it: the vocabulary of flow."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

from netmem.contract.lint import api

Path = tuple[
    str, ...
]  # a place as it is written: ("buf", ".netmem"); fields have a dot, elements stand in brackets


class Label(NamedTuple):
    """Part of a value. ``kind``:

    pool     a page pool; ``of``: the field it is kept in, or the place that made it
    buf      a page (``api`` page), netmem (netmem), or memory of no pool (raw), from the pool ``of``
    dma, va  its I/O address, its address for the CPU; ``safe``: made where it was known to be readable
    obj      a structure that lies in another one (there may be several of its type)
    fn       a function
    split    follows tcp-data-split, or whether there is a memory provider; unsplit: the other way round
    readable, unreadable  the result of a guard, kept for later
    asked    the setting that a user asks set_ringparam for
    packet   what the device says of a packet: no configuration
    const    true or false, of an argument
    count    how many references to a buffer there are
    program  what an XDP program decided
    """

    kind: str
    of: Any = None
    api: str = ""
    safe: bool = False


Labels = frozenset[Label]
EMPTY: Labels = frozenset()
SPLIT: Labels = frozenset({Label("split")})
UNSPLIT: Labels = frozenset({Label("unsplit")})
READABLE, UNREADABLE, PACKET, ASKED = Label("readable"), Label("unreadable"), Label("packet"), Label("asked")
PROGRAM = Label("program")
FLAGS: Labels = SPLIT | UNSPLIT
ANSWERS: Labels = FLAGS | {READABLE, UNREADABLE}
CARRIED: Labels = ANSWERS | {PACKET, ASKED, PROGRAM}  # what goes through arithmetic and comparisons
KINDS = ("buf", "dma", "va")
FOLLOWED = {*KINDS, "pool"}  # a field that holds one of these makes whoever names it worth a look
MAX_CALLS = 25
MAX_CONTEXTS = 12
MAX_PATH = 2  # fields in the name of an object


class Fact(NamedTuple):
    """What holds at a place. ``kind``:

    readable  the buffer at the path ``of`` can be read; every buffer, when the path is ()
    xdp       an XDP program or an AF_XDP socket is at work, or a self test
    nopool    this is a mode without page pool
    first     the packet has no memory yet: what comes is its head
    cond      the condition ``of`` was true, or not
    """

    kind: str
    of: Any = ()
    outcome: bool = True


Facts = frozenset[Fact]
NO_FACTS: Facts = frozenset()
ALL_READABLE, XDP, NO_POOL, FIRST = Fact("readable"), Fact("xdp"), Fact("nopool"), Fact("first")
ASIDE: Facts = frozenset({XDP, NO_POOL})


class Event(NamedTuple):
    """Something that a rule may care about. ``what``: see the calls of ``note``."""

    what: str
    call: str
    labels: Labels
    path: str
    line: int
    function: str
    readable: bool = False  # a guard says that the memory is readable
    xdp: bool = False  # only for XDP, AF_XDP or self tests, or in a mode without page pool
    first: bool = False  # only of memory that a packet begins with
    cell: tuple[str, str] | None = None  # where a buffer is kept, or taken from


@functools.cache
def split_name(name: str) -> bool:
    """True for names that speak of header split or of a memory provider."""
    return bool(api.SPLIT_NAME.search(name))


def memory(labels: Labels) -> Labels:
    """Those of buffers and their addresses."""
    return frozenset(x for x in labels if x.kind in KINDS) if labels else labels


def of_kind(labels: Labels, *kinds: str) -> Labels:
    return frozenset(x for x in labels if x.kind in kinds) if labels else labels


def covers(guarded: Path, used: Path) -> bool:
    """True when a guard on one place speaks of another: the same, a part of it, or its neighbour in one
    structure."""
    if guarded == used[: len(guarded)]:
        return True
    return (
        len(guarded) > 1 and len(guarded) == len(used) and guarded[:-1] == used[:-1]
        and guarded[-1][0] == "." == used[-1][0]
    )  # fmt: skip


def without_place(facts: Iterable[Fact], word: str) -> Facts:
    """Facts that survive when a local (``name``) or a field (``.name``) is assigned."""
    return frozenset(x for x in facts if x.kind != "readable" or word not in x.of)


class Answer(NamedTuple):
    """What follows when a value turns out to be true, and when not; None: it cannot be."""

    true: Facts | None
    false: Facts | None

    def joined(self, other: Answer) -> Answer:
        """Where two ways meet."""
        return Answer(meet(self.true, other.true), meet(self.false, other.false))


def both(a: Facts, b: Facts) -> Facts:
    """What holds where two ways meet. A way of a mode that is not judged takes nothing from the other."""
    if a == b:
        return a
    aside = bool(a & ASIDE)
    if aside == bool(b & ASIDE):
        return a & b
    kept, other = (b, a) if aside else (a, b)
    return frozenset(x for x in kept if x.kind != "cond" or x in other)


def meet(a: Facts | None, b: Facts | None) -> Facts | None:
    """The same, where None is a way that is never taken."""
    if a is None:
        return b
    return a if b is None else both(a, b)


class Point:
    """What is known between two statements: values of locals, facts, and what locals stand for."""

    __slots__ = ("alias", "answers", "env", "facts")

    def __init__(
        self, env: dict[str, Labels], facts: Facts, alias: dict[str, Path], answers: dict[str, Answer]
    ) -> None:
        self.env, self.facts, self.alias, self.answers = env, facts, alias, answers

    def copy(self) -> Point:
        return Point(dict(self.env), self.facts, dict(self.alias), dict(self.answers))

    def joined(self, other: Point) -> Point:
        """Where two ways meet."""
        env = dict(self.env)
        for name, held in other.env.items():
            mine = env.get(name)
            env[name] = held if mine is None else mine if mine >= held else mine | held
        alias = {k: v for k, v in self.alias.items() if other.alias.get(k) == v}
        answers = {k: v.joined(other.answers[k]) for k, v in self.answers.items() if k in other.answers}
        return Point(env, both(self.facts, other.facts), alias, answers)

    def same(self, other: Point) -> bool:
        return (
            self.env == other.env and self.facts == other.facts and self.alias == other.alias
            and self.answers == other.answers
        )  # fmt: skip

    def forget(self, word: str) -> None:
        """A local (``name``) or a field (``.name``) gets another value: what was known of it is gone."""
        if any(x.kind == "readable" and word in x.of for x in self.facts):
            kept = without_place(self.facts, word)
            for name, path in self.alias.items():  # what was taken from there before is still what it was
                if word in path and name != word:
                    at = len(path)
                    kept |= {Fact("readable", (name, *x.of[at:])) for x in self.facts
                             if x.kind == "readable" and x.of and x.of[:at] == path[: len(x.of)]}  # fmt: skip
            self.facts = kept
        for name in [k for k, v in self.alias.items() if word in v or k == word]:
            del self.alias[name]
        for name, (true, false) in list(self.answers.items()):
            if name == word or name.startswith(word + ".") or (word[0] == "." and name.endswith(word)):
                del self.answers[name]
            elif any(x.kind == "readable" and word in x.of for part in (true, false) if part for x in part):
                self.answers[name] = Answer(
                    None if true is None else without_place(true, word),
                    None if false is None else without_place(false, word),
                )
