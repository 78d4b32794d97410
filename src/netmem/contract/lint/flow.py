"""Where payload goes: flow of pools, buffers and their addresses through a whole driver.

Values are sets of labels:

    ("pool", holder)       a page pool: the field it is kept in, or the place that made it
    ("buf", holder, api)   a page (api "page") or netmem ("netmem") allocated from it
    ("dma", holder, api)   its I/O address          ("va", holder, api)   its address for the CPU
    ("obj", name)          a structure that lies in another one (there may be several of its type)
    ("split",)             follows tcp-data-split, or whether there is a memory provider

Locals are followed statement by statement; fields are one cell for each structure type and name, and for each
embedded object where that is known. A function is looked at once for each combination of pools and
objects that its callers pass. What happens is noted as events, with whether a guard stands before it, here
or in all callers.
"""

from __future__ import annotations

from typing import Any

from netmem.contract.lint.csource import Function
from netmem.contract.lint.interface import is_out, meaning_of
from netmem.contract.lint.labels import (  # fmt: skip
    ANSWERS,
    EMPTY,
    FLAGS,
    FOLLOWED,
    KINDS,
    MAX_CALLS,
    MAX_CONTEXTS,
    MAX_ROUNDS,
    READABLE,
    SPLIT,
    UNREADABLE,
    UNSPLIT,
    Event,
    Frame,
    Labels,
    Summary,
    line_of,
    merge,
)
from netmem.contract.lint.lowering import Expr, Stmt, callee
from netmem.contract.lint.places import Places
from netmem.contract.lint.selection import is_aside

__all__ = ["Event", "Flow"]


class Flow(Places):
    """Run with ``run``; then ``events``, ``fields`` and ``holds`` say what was found."""

    # -- which functions ---------------------------------------------------------------------

    def run(self) -> None:
        """Until nothing changes any more."""
        words: set[bytes] = set()
        last: Any = None
        chosen: list[Function] = []
        everything = [f for found in self.world.named.values() for f in found]
        for self.number in range(1, MAX_ROUNDS + 1):
            self._changed = False
            words |= {
                name.encode()
                for (_, name), held in self.fields.items()
                if any(x[0] in FOLLOWED for x in held)
            }
            chosen = self.selection.choose(everything, words)
            self.events.clear()
            self._operations()
            self._next = {}
            self._implies, self._concluded = self._concluded, {}
            own = [f for f in chosen if f.path in self.world.own_paths]
            # A library's functions when they are called, or handed on as pointers.
            others = [f for f in chosen if f.path not in self.world.own_paths]
            chosen = own + [f for f in others if self.selection.is_handed_on(f)]
            self._roots(chosen)
            self._guards, before = self._next, self._guards
            followed = sum(x[0] in FOLLOWED for held in self.fields.values() for x in held)
            state = frozenset(self.events), followed
            if (not self._changed and self._guards == before) or (self.number > 2 and state == last):
                return
            last = state

    def _roots(self, chosen: list[Function]) -> None:
        """Start with functions that nobody else calls; others are reached with what they are given."""
        left = {id(f): f for f in chosen}
        while left:
            tops = [f for f in left.values() if not (self.selection.callers.get(id(f), set()) & left.keys())]
            for function in tops or [next(iter(left.values()))]:  # a circle is entered anywhere
                if self._round.get(id(function)) != self.number:
                    self._look(function, [EMPTY] * len(function.params), False, False)
            before = len(left)
            left = {k: f for k, f in left.items() if self._round.get(k) != self.number}
            if len(left) == before:
                return

    def _operations(self) -> None:
        """Tables of functions: what a call through such a field may reach."""
        for type_, expr, _, _ in self.world.globals.values():
            if expr[0] != "init":
                continue
            for name, one in expr[1]:
                one = one[1] if one[0] == "addr" else one
                if name and one[0] == "id" and one[1] in self.selection.known:
                    self._put((self.world.tag(type_), name), frozenset({("fn", one[1])}))

    # -- functions ---------------------------------------------------------------------------

    def _look(self, function: Function, args: list[Labels], readable: bool, xdp: bool) -> Summary:
        """Look at a function with these arguments; what it returns and writes through pointers."""
        xdp = xdp or is_aside(function.name)
        now = self._next.get(id(function))
        self._next[id(function)] = (readable, xdp) if now is None else (now[0] and readable, now[1] and xdp)
        context = tuple(frozenset(x for x in arg if x[0] in ("pool", "obj")) for arg in args)
        contexts = self._contexts[id(function)]
        if context not in contexts:
            if len(contexts) >= MAX_CONTEXTS:
                context = ()  # too many callers to tell apart
            contexts.add(context)
        key = id(function), context
        summary = self._summaries.get(key)
        if summary is None:
            summary = self._summaries[key] = Summary(EMPTY, (EMPTY,) * len(args), list(args))
        else:
            for at, given in enumerate(args):
                if given - summary.args[at]:
                    summary.args[at] |= given
                    if self._round.get(key) == self.number:
                        self._changed = True  # was looked at with less
        args = summary.args
        if self._round.get(key) == self.number or self._depth > MAX_CALLS:
            return summary
        self._round[key] = self._round[id(function)] = self.number
        guard = self._guards.get(id(function), (readable, xdp))
        frame = Frame(function, *guard)
        for (_, name), given in zip(function.params, args, strict=False):
            frame.env[name] = given
            if not frame.types.get(name):
                frame.types[name] = self.parameter_types.get((id(function), name), "")
            self._remember(frame, name, given)
        self._depth += 1
        self._block(frame, function.body)
        self._depth -= 1
        outs = tuple(frame.env.get(name, EMPTY) for _, name in function.params)
        merged = tuple(a | b for a, b in zip(outs, summary.outs, strict=True))
        if merged != summary.outs or frame.returns - summary.returns:
            summary.returns |= frame.returns
            summary.outs = merged
            self._returned[id(function)] |= frame.returns
            self._changed = True
        return summary

    # -- statements ----------------------------------------------------------------------------

    def _block(self, f: Frame, stmts: list[Stmt]) -> None:
        mark = len(f.conds)
        for stmt in stmts:
            self._stmt(f, stmt)
        while len(f.conds) > mark:
            self._pop(f)

    def _stmt(self, f: Frame, stmt: Stmt) -> None:
        kind = stmt[0]
        if kind == "expr":
            self._eval(f, stmt[1])
        elif kind == "decl":
            f.types[stmt[2]] = stmt[1]
            if stmt[3] is not None:
                self._store(f, ("id", stmt[2], stmt[4]), stmt[3], stmt[4])
            else:
                f.env[stmt[2]] = EMPTY
        elif kind == "if":
            self._if(f, stmt)
        elif kind == "loop":
            for _ in range(2):  # what the body leaves is there when it starts again
                if stmt[1] is not None:
                    self._eval(f, stmt[1])
                before = dict(f.env)
                if stmt[1] is not None:
                    self._push(f, stmt[1], True)
                self._block(f, stmt[2])
                if stmt[1] is not None:
                    self._pop(f)
                f.dead = False
                f.env = merge(before, f.env)
        elif kind == "switch":
            self._eval(f, stmt[1])
            before, out = dict(f.env), dict(f.env)
            for labels, body in stmt[2]:
                f.env = dict(before)
                self._push(f, ("case", stmt[1], labels or []), True)
                self._block(f, body)
                self._pop(f)
                f.dead = False
                out = merge(out, f.env)
            f.env = out
        elif kind == "return":
            if stmt[1] is not None:
                f.returns |= self._eval(f, stmt[1])
                if "bool" in f.function.returns:
                    f.returns |= self._control(f, stmt[1])
                self._conclude(f, stmt[1])
                self._remember(f, "", f.returns)
            f.dead = True
        elif kind == "jump":
            f.dead = True
        elif kind == "label":
            f.dead = False
        elif kind == "block":
            self._block(f, stmt[1])

    def _if(self, f: Frame, stmt: Stmt) -> None:
        _, cond, then, other, _line = stmt
        self._eval(f, cond)
        before = dict(f.env)
        ends = []
        for polarity, body in ((True, then), (False, other)):
            f.env, f.dead = dict(before), False
            self._push(f, cond, polarity)
            self._block(f, body)
            self._pop(f)
            ends.append((f.dead, f.env))
        (dead_then, then_env), (dead_else, else_env) = ends
        f.dead = dead_then and dead_else
        if dead_then and not dead_else:
            f.env = else_env
            self._push(f, cond, False)  # holds for what follows
        elif dead_else and not dead_then:
            f.env = then_env
            if other:
                self._push(f, cond, True)
        else:
            f.env = merge(then_env, else_env)

    # -- expressions -----------------------------------------------------------------------------

    def _eval(self, f: Frame, e: Expr) -> Labels:
        kind = e[0]
        if kind in ("num", "str"):
            return EMPTY
        if kind == "id":
            return self._load(f, e)
        if kind in ("field", "index", "deref"):
            return self._access(f, e)
        if kind == "addr":
            self._eval(f, e[1])
            return self._load(f, e)
        if kind == "call":
            return self._call(f, e)
        if kind == "assign":
            return self._store(f, e[2], e[3], e[4], e[1])
        if kind == "bin":
            left = self._eval(f, e[2])
            if e[1] in ("&&", "||"):
                self._push(f, e[2], e[1] == "&&")
                right = self._eval(f, e[3])
                self._pop(f)
            else:
                right = self._eval(f, e[3])
            if e[1] in ("==", "!=", "<", ">", "<=", ">=", "&&", "||"):
                return (left | right) & FLAGS
            return left | right
        if kind == "un":
            return self._eval(f, e[2])
        if kind == "cond":
            self._eval(f, e[1])
            found = EMPTY
            for polarity, part in ((True, e[2]), (False, e[3])):
                self._push(f, e[1], polarity)
                value = self._eval(f, part) | self._control(f, part)
                if f.marks[-1][0]:  # behind a guard: what comes out may be read
                    value = frozenset(x for x in value if x[0] != "va")
                found |= value
                self._pop(f)
            return found
        if kind == "init":
            for _, one in e[1]:
                self._eval(f, one)
            return EMPTY
        if kind == "block":
            self._block(f, e[1])
            return self._eval(f, e[1][-1][1]) if e[1] and e[1][-1][0] == "expr" else EMPTY
        found = EMPTY
        for one in e[1]:
            found = self._eval(f, one)
        return found

    def _access(self, f: Frame, e: Expr) -> Labels:
        """A field, an element, what a pointer points to: reading through payload's address is noted."""
        kind = e[0]
        if kind == "field" and e[1][0] == "id":
            base = f.env.get(e[1][1], EMPTY)
        elif kind == "field" and e[1][0] == "field" and e[1][1][0] in ("id", "field"):
            base = EMPTY  # nothing happens on the way along fields
        else:
            base = self._eval(f, e[1])
        if kind == "index":
            self._eval(f, e[2])
        if kind != "field" and e[1][0] != "addr":
            self._note(f, "read", "*", base, e)
        elif kind == "field" and any(label[0] == "va" for label in base):
            self._note(f, "read", "->", base, e)
        return self._load(f, e)

    def _store(self, f: Frame, left: Expr, right: Expr, line: int, op: str = "=") -> Labels:
        value = self._eval(f, right) if right[0] != "init" else self._eval_init(f, left, right)
        value |= self._control(f, right)
        if right[0] in ("bin", "un", "call"):
            when_true, when_false = self._says_readable(f, right, True), self._says_readable(f, right, False)
            if when_true and value & SPLIT:
                value = value - SPLIT | UNSPLIT
            value |= {READABLE} if when_true else EMPTY
            value |= {UNREADABLE} if when_false else EMPTY
        if left[0] == "id" and right[0] not in ("id", "field") and "bool" not in f.types.get(left[1], "bool"):
            value = frozenset(
                x for x in value if x not in ANSWERS
            )  # a length or an error answers no question
        if right[0] == "num" and right[1] in ("0", "NULL") and op == "=" and left[0] == "field":
            return value  # clearing a field says nothing of when it is set
        if op in ("|=",) and right[0] == "id" and value & SPLIT:
            self._add_constant(right[1], SPLIT)
        self._write(f, left, value, op)
        return value

    def _add_constant(self, name: str, value: Labels) -> None:
        if value - self.constants[name]:
            self.constants[name] |= value
            self._changed = True

    def _eval_init(self, f: Frame, left: Expr, right: Expr) -> Labels:
        for name, one in right[1]:
            value = self._eval(f, one)
            if name and value:
                self._write(f, ("field", left, name.split(".")[-1], 0), value, "=")
        return EMPTY

    def _write(self, f: Frame, left: Expr, value: Labels, op: str) -> None:
        kind = left[0]
        if kind == "id":
            keep = f.env.get(left[1], EMPTY) if op != "=" else EMPTY
            if left[1] in f.types or left[1] in f.env:
                f.env[left[1]] = value | keep
                self._remember(f, left[1], value)
            else:
                self._put(("global", left[1]), value)
        elif kind in ("index", "deref"):
            base = left[1]
            if base[0] == "id":
                f.env[base[1]] = f.env.get(base[1], EMPTY) | value
                self._remember(f, base[1], value)
            else:
                self._write(f, base, value, "|=")
            self._note(f, "write", "=", value, left)
        elif kind == "addr":
            self._write(f, left[1], value, op)
        elif kind == "field":
            for cell in self.cells(f, left):
                self._note_conds(f, cell, value)
                pools = frozenset(x for x in value if x[0] == "pool")
                for pool in pools:
                    if pool[1] != cell:
                        if pool[1] not in self.holds[cell]:
                            self.holds[cell].add(pool[1])
                            self._changed = True
                self._put(cell, value)
            if any(label[0] in KINDS for label in value):
                self._note(f, "kept", left[2], value, left)
        elif kind == "call":  # a macro that stands for a place
            for arg in left[2]:
                if arg[0] in ("id", "field"):
                    self._write(f, arg, value, "|=")

    def _remember(self, f: Frame, name: str, value: Labels) -> None:
        held = frozenset(x for x in value if x[0] == "buf")
        if held:
            self.locals[f.function.path, f.function.name, name] |= held

    def _note_conds(self, f: Frame, cell: tuple[str, str], value: Labels) -> None:
        if not f.conds:
            if cell in self._field_conds or not any(x[0] == "pool" for x in value):
                self._field_conds[cell].append(frozenset())
            return
        conds = frozenset((id(cond), positive) for cond, positive in f.conds)
        if any(x[0] == "pool" for x in value):
            self._pool_conds |= conds
        elif len(self._field_conds[cell]) < 8 and conds not in self._field_conds[cell]:
            self._field_conds[cell].append(conds)

    def _put(self, cell: tuple[str, str], value: Labels) -> None:
        value = frozenset(x for x in value if x[0] != "obj") if len(value) > 12 else value
        if value - self.fields[cell]:
            self.fields[cell] |= value
            self._changed = True

    # -- calls -------------------------------------------------------------------------------------

    def _call(self, f: Frame, e: Expr) -> Labels:
        _, function, args, line = e
        if function[0] != "id" or function[1] in f.env:
            found = EMPTY
            values = [self._eval(f, arg) for arg in args]
            for label in self._load(f, callee(function)):
                target = self.world.function(label[1], f.function.path) if label[0] == "fn" else None
                if target is not None and target is not f.function:
                    found |= self._enter(f, target, args, values)
            return found
        name = self._meant(function[1])
        if (
            name in ("dma_unmap_addr_set", "netmem_dma_unmap_addr_set", "dma_unmap_len_set")
            and len(args) >= 3
        ):
            at = args[-2][1] if args[-2][0] == "id" else "?"
            return self._store(f, ("field", args[-3], at, line), args[-1], line)
        if name in ("dma_unmap_addr", "dma_unmap_len") and len(args) == 2:
            return self._load(f, ("field", args[0], args[1][1] if args[1][0] == "id" else "?", line))
        if name == "container_of":
            self._eval(f, args[0])
            return EMPTY
        if (
            name in ("WRITE_ONCE", "smp_store_release", "rcu_assign_pointer", "RCU_INIT_POINTER")
            and len(args) == 2
        ):
            return self._store(f, args[0], args[1], line)
        if name in ("__set_bit", "set_bit", "__assign_bit", "assign_bit") and args[0][0] == "id":
            on = self._control(f, args[0]) | (self._eval(f, args[2]) & FLAGS if len(args) > 2 else EMPTY)
            if on:
                self._add_constant(args[0][1], on)
        values = [self._eval(f, arg) for arg in args]
        meaning = meaning_of(name, args, values, lambda: self._unknown_pool(f, args), f.function.path, line)
        if meaning is not None:
            for what, labels in meaning.notes:
                self._note(f, what, name, labels, e)
            if meaning.stored:
                self._write(f, args[0], meaning.stored, "|=")
            return meaning.result
        target = self.world.function(name, f.function.path)
        if target is None or target is f.function:
            given = EMPTY
            for value in values:
                given |= frozenset(x for x in value if x[0] in KINDS)
            if given:
                self._note(f, "passed", name, given, e)
            return EMPTY
        return self._enter(f, target, args, values)

    def _meant(self, name: str) -> str:
        """What a call's name is when it is another name for a function."""
        for _ in range(4):
            text = self.world.macros.get(name, "").strip()
            if not text.isidentifier():
                break
            name = text
        return name

    def _enter(self, f: Frame, target: Function, args: list[Expr], values: list[Labels]) -> Labels:
        """A call of a function that is known here."""
        values = values[: len(target.params)] + [EMPTY] * (len(target.params) - len(values))
        if target.macro:  # its parameters have the types of what it is given
            for (_, name), arg in zip(target.params, args, strict=False):
                known = self.type_of(f, arg)
                if known:
                    self.parameter_types[id(target), name] = known
        summary = self._look(target, values, *f.marks[-1][:2])
        for (type_, _), arg, out, given in zip(target.params, args, summary.outs, values, strict=False):
            written = out - given
            if written and is_out(type_, arg):
                inner = arg[1] if arg[0] == "addr" else arg
                if inner[0] in ("id", "field"):
                    self._write(f, inner, written, "|=")
        return summary.returns

    def _unknown_pool(self, f: Frame, args: list[Expr]) -> Any:
        if args and args[0][0] == "field":
            return self.cells(f, args[0])[0]
        return ("unknown", f.function.path, args[0][1] if args and args[0][0] == "id" else "")

    # -- events ------------------------------------------------------------------------------------

    def _note(self, f: Frame, what: str, call: str, labels: Labels, e: Expr) -> None:
        labels = frozenset(x for x in labels if x[0] in KINDS or x[0] == "pool")
        if what in ("read", "linear", "write"):
            labels = frozenset(x for x in labels if x[0] == "va") if what != "linear" else labels
            if not labels:
                return
        if not labels and what not in ("sync", "unmap", "pull"):
            return
        line = e[-1] if isinstance(e[-1], int) else line_of(e)
        conds = tuple(f.conds) if what == "create" else ()
        self.events.add(
            Event(what, call, labels, f.function.path, line, f.function.name,
                  *f.marks[-1][:2], conds)
        )  # fmt: skip
