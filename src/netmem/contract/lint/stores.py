"""Assignments: what a place holds from now on, and what is known of it."""

from __future__ import annotations

from netmem.contract.lint import nodes
from netmem.contract.lint.labels import (
    ALL_READABLE,
    ANSWERS,
    ASIDE,
    ASKED,
    EMPTY,
    KINDS,
    NO_FACTS,
    READABLE,
    SPLIT,
    UNREADABLE,
    UNSPLIT,
    Answer,
    Facts,
    Label,
    Labels,
    memory,
    of_kind,
)
from netmem.contract.lint.nodes import (
    Addr,
    Assign,
    Call,
    Declare,
    Deref,
    Expr,
    Field,
    Id,
    Index,
    Init,
    Num,
    Other,
    Ternary,
    is_zero,
)
from netmem.contract.lint.places import path_of
from netmem.contract.lint.values import Evaluator, Frame


class Stores:
    """For ``walk``, which evaluates what is assigned."""

    def __init__(self, walk: Evaluator) -> None:
        self.walk, self.values, self.memory = walk, walk.values, walk.values.memory

    def store(self, f: Frame, left: Expr, right: Expr, line: int, op: str = "=") -> Labels:
        """An assignment; what was assigned."""
        if isinstance(right, Init):
            return self._fill(f, left, right)
        if self._copied(f, left, right):
            self.walk.eval(f, right)
            return EMPTY
        value = self.walk.eval(f, right) | self.walk.follows(f, right)
        values = self.values
        answer = None
        if not isinstance(right, Num | Id | Field):
            answer = values.answer(f, right)
            value |= self._kept_answer(f, right)
            if value >= UNSPLIT and value >= SPLIT and ALL_READABLE in (answer.true or ()):
                value -= SPLIT
        elif isinstance(right, Num) or (isinstance(right, Id) and right.name in f.point.answers):
            answer = values.answer(f, right)
        if isinstance(left, Id) and left.name in f.locals:
            if not isinstance(right, Id | Field) and "bool" not in f.types.get(left.name, "bool"):
                value = frozenset(
                    x for x in value if x not in ANSWERS
                )  # a length or an error answers no question
            alias = path_of(right, f.point.alias) if op == "=" else None
            self.write(f, left, value, op)
            if alias is not None and left.name not in alias:
                f.point.alias[left.name] = alias
            if answer is not None and op == "=":
                f.point.answers[left.name] = answer
            return value
        if is_zero(right) and op == "=" and isinstance(left, Field):
            f.point.forget("." + left.name)
            self._asked(f, value, left, op)
            return value  # clearing a field says nothing of when it is set
        if op == "|=" and isinstance(right, Id) and value & SPLIT:
            self.memory.add_constant(right.name, value & SPLIT)
        if isinstance(left, Field) and op != "&=":
            self._mode(f, left, right, answer)
        self.write(f, left, value, op)
        local = self.values.local_name(f, left)
        if answer is not None and op == "=" and local:
            f.point.answers[local] = answer
        return value

    def _copied(self, f: Frame, left: Expr, right: Expr) -> bool:
        """A whole structure is assigned: what its fields hold goes with it. False for anything else."""
        if not all(isinstance(one, Id | Field | Deref | Index) for one in (left, right)):
            return False
        tag = self.values.types.tag(f, right)
        if not (tag in self.memory.keeping or self.values.world.keeps_memory(tag)):
            return False
        if tag != self.values.types.tag(f, left):
            return False
        if not self._is_whole(f, left) or not self._is_whole(f, right):
            return False
        for name in self.values.world.structs.get(tag, ()):
            field = Field(right.line, right, name)
            held = memory(self.values.labels(f, field))
            if held:
                self.walk.taken(f, field)
                self.write(f, Field(left.line, left, name), held, "|=")
        return True

    def _is_whole(self, f: Frame, e: Expr) -> bool:
        """True for a structure itself, not a pointer to one."""
        stars = self.values.types.of(f, e).count("*") + self.values.types.of(f, e).count("[]")
        while isinstance(e, Deref | Index):
            stars, e = stars - 1, e.of if isinstance(e, Deref) else e.base
        return stars <= 0

    def _mode(self, f: Frame, left: Field, right: Expr, answer: Answer | None) -> None:
        """In which mode a field is set."""
        facts = f.point.facts
        site = f.key, left.line
        conds = frozenset((x.of, x.outcome) for x in facts if x.kind == "cond")
        aside = bool(facts & ASIDE) or (answer is not None and bool(ASIDE & (answer.true or NO_FACTS)))
        modes = self.values.modes
        for cell in self.memory.cells(f, f.point.env, left):
            modes.written(cell, site, aside, conds)
        for arm, said in self._arms(f, right):
            if isinstance(arm, Id) and arm.name.isupper():
                modes.stored(arm.name, site, bool((facts | said) & ASIDE))

    def _arms(self, f: Frame, e: Expr) -> list[tuple[Expr, Facts]]:
        """What an expression may be, and what holds when it is that."""
        if not isinstance(e, Ternary):
            return [(e, NO_FACTS)]
        return [
            (part, self.values.truth(f, e.cond, outcome))
            for outcome, part in ((True, e.then), (False, e.other))
        ]

    def _kept_answer(self, f: Frame, right: Expr) -> Labels:
        """What a value tells whoever asks it later."""
        found: set[Label] = set()
        here = f.point.facts
        for outcome in (True, False):
            said = self.values.truth(f, right, outcome) - here
            if ALL_READABLE in said:
                found |= UNSPLIT if outcome else SPLIT
            elif any(x.kind == "readable" for x in said):
                found.add(READABLE if outcome else UNREADABLE)
        return frozenset(found)

    def _fill(self, f: Frame, left: Expr, right: Init) -> Labels:
        """A structure is given its fields."""
        if isinstance(left, Id):
            f.point.forget(left.name)
        for name, one in right.items:
            value = self.walk.eval(f, one) | self.walk.follows(f, one)
            if name and value:
                self.write(f, Field(right.line, left, name.split(".")[-1]), value, "=")
        return EMPTY

    def write(self, f: Frame, left: Expr, value: Labels, op: str) -> None:
        """A place holds this from now on (``=``), or this too."""
        match left:
            case Id(name=name) if name in f.locals:
                held = f.point.env.get(name, EMPTY) if op != "=" else EMPTY
                f.point.forget(name)
                f.point.env[name] = value | held
                self.remember(f, name, value)
            case Id(name=name):
                self.memory.put(("global", name), self._asked(f, value, left, op))
            case Index(base=base) | Deref(of=base):
                if isinstance(base, Id) and base.name in f.locals:
                    f.point.env[base.name] = f.point.env.get(base.name, EMPTY) | value
                    self.remember(f, base.name, value)
                else:
                    self.write(f, base, value, "|=")
                path = self.values.path(f, left)
                if path is not None:
                    f.point.facts = frozenset(
                        x
                        for x in f.point.facts
                        if x.kind != "readable" or not x.of or x.of[: len(path)] != path
                    )
                held = self.walk.eval(f, base)
                if any(x.kind == "va" for x in held):
                    self.walk.note(f, "write", "=", held, left, base)
            case Addr(of=of):
                self.write(f, of, value, op)
            case Field(base=base, name=name):
                f.point.forget("." + name)
                if op == "=" and isinstance(base, Id) and any(x.kind == "pool" for x in value):
                    self._other_pool(f, base.name, left)
                value = self._asked(f, value, left, op)
                if f.point.facts & ASIDE and not self.values.keeps_aside:  # another mode's is not payload's
                    value -= memory(value)
                for cell in self.memory.cells(f, f.point.env, left):
                    pools = of_kind(value, "pool")
                    if pools:
                        self.values.modes.pool_kept(
                            frozenset((x.of, x.outcome) for x in f.point.facts if x.kind == "cond")
                        )
                    for pool in pools:
                        if pool.of != cell:
                            self.memory.holds[cell].add(pool.of)
                    self.memory.put(cell, value)
                    if any(x.kind in KINDS for x in value):
                        self.walk.note(f, "kept", name, value, left, left, cell)
            case Call(args=args):  # a macro that stands for a place
                for arg in args:
                    if isinstance(arg, Id | Field):
                        self.write(f, arg, value, "|=")
            case Other(parts=[*_, last]):
                self.write(f, last, value, op)

    def _asked(self, f: Frame, value: Labels, left: Id | Field, op: str) -> Labels:
        """What a user asked for is kept somewhere that lasts, or no more; what is kept, without that it was
        asked for."""
        conds = frozenset(x for x in f.point.facts if x.kind == "cond")
        word = left.name if isinstance(left, Id) else "." + left.name
        if ASKED in value:
            root = left
            while isinstance(root, Field | Index):
                root = root.base  # type: ignore[assignment]
            if isinstance(root, Id) and root.name in f.locals and "*" not in f.types.get(root.name, "*"):
                return value  # in a structure of its own: nothing comes of it yet
            self.walk.note(f, "acted", word, frozenset({ASKED}), left, None)
            f.kept[word] = conds
            return value - {ASKED}
        if op == "=" and f.kept.get(word) == conds:  # written again before anybody could look
            for events in f.events.values():
                events -= {x for x in events if x.what == "acted" and x.call == word}
            del f.kept[word]
        return value

    def remember(self, f: Frame, name: str, value: Labels) -> None:
        """A local holds payload at some time."""
        held = of_kind(value, "buf")
        if held:
            self.values.locals[f.function.path, f.function.name, name] |= held

    def _other_pool(self, f: Frame, name: str, left: Field) -> None:
        """A structure among the locals gets another pool: from here on it is another object."""
        held = f.point.env.get(name, EMPTY)
        mine = [x for x in held if x.kind == "obj" and x.of.startswith(f"{f.function.name}():{name}")]
        if not mine or "*" in f.types.get(name, "*"):
            return
        tag, made = self.values.world.tag(f.types[name]), f"{f.function.name}():{name}@{left.line}"
        later = {
            one.left.name for one in nodes.walk(f.function.body)
            if isinstance(one, Assign) and isinstance(one.left, Field) and one.line >= left.line
            and isinstance(one.left.base, Id) and one.left.base.name == name
        }  # fmt: skip
        for cell, values in list(self.memory.fields.items()):
            if any(cell[0] == one.of for one in mine) and cell[1] not in later and cell[0] != made:
                self.memory.put((made, cell[1]), values)
        self.memory.add_object(tag, made)
        f.point.env[name] = held - frozenset(mine) | {Label("obj", made)}

    def local_object(self, f: Frame, one: Declare) -> Labels:
        """A structure among the locals that keeps a pool or buffers is an object of its own."""
        if "*" in one.type or "[" in one.type:
            return EMPTY
        tag = self.values.world.tag(one.type)
        if not self.values.world.keeps_memory(tag):
            return EMPTY
        name = f"{f.function.name}():{one.name}"
        self.memory.add_object(tag, name)
        return frozenset({Label("obj", name)})
