"""Calls: of the kernel's interfaces, which mean something, and of functions that are known here."""

from __future__ import annotations

from typing import Any

from netmem.contract.lint import api
from netmem.contract.lint.interface import is_out, meaning_of
from netmem.contract.lint.labels import (
    ASIDE,
    ASKED,
    EMPTY,
    FLAGS,
    XDP,
    Label,
    Labels,
    memory,
    of_kind,
)
from netmem.contract.lint.nodes import (
    Addr,
    Call,
    Deref,
    Expr,
    Field,
    Id,
    Index,
    Num,
)
from netmem.contract.lint.stores import Stores
from netmem.contract.lint.values import Called, Evaluator, Frame

COOKIES = ("", "virtqueue data")  # what comes back from a virtqueue
FRAGS = ("", "skb frags")  # what is attached to packets


class Calls:
    """For ``walk``, which evaluates the arguments."""

    def __init__(self, walk: Evaluator, stores: Stores, called: Called) -> None:
        self.walk, self.values, self.memory = walk, walk.values, walk.values.memory
        self.stores, self._called = stores, called

    def call(self, f: Frame, e: Call) -> Labels:
        name = e.name
        if not name or name in f.locals:
            return self._through_pointer(f, e)
        name = self.values.world.meant(name)
        args, line = e.args, e.line
        special = self._special(f, name, args, line)
        if special is not None:
            return special
        values = [self._given(f, arg) for arg in args]
        if name in api.RUNS_XDP:
            f.point.facts |= {XDP}
            return self.values.labels(f, e)
        at = api.CONTAINERS.get(name, len(args))
        if at < len(args):  # a list's node in the buffer
            match args[at]:
                case Addr(of=Field(base=node)) if self.values.types.tag(f, node) in ("page", "folio", ""):
                    values[at] |= memory(self.walk.eval(f, node))
        if name in api.FRAG_READ:
            kept = self.memory.load(f, f.point.env, Field(line, Id(line, "skb"), FRAGS[1]))
            values[0] = values[0] | kept if values else kept
        if name in api.ATTACH_FRAG:
            for value in values[api.ATTACH_FRAG[name] : api.ATTACH_FRAG[name] + 1]:
                self.memory.put(
                    FRAGS, frozenset(x._replace(of=("frag", x.of)) for x in of_kind(value, "buf"))
                )
        if name in api.COOKIE_IN:
            for value in values[api.COOKIE_IN[name] : api.COOKIE_IN[name] + 1]:
                self.memory.put(COOKIES, memory(value))
        elif name in api.COOKIE_OUT:
            return self.memory.load(f, f.point.env, Field(line, Id(line, "virtqueue"), COOKIES[1]))
        meaning = meaning_of(name, args, values, lambda: self._unknown_pool(f, args), f.function.path, line)
        if meaning is not None:
            for what, labels, at in meaning.notes:
                self.walk.note(f, what, name, labels, e, args[at] if 0 <= at < len(args) else None)
            if meaning.stored:
                self.stores.write(f, args[0], meaning.stored, "|=")
            result = meaning.result
            if meaning.about >= 0 and self.values.is_readable(f, args[meaning.about]):
                result = frozenset(x._replace(safe=True) for x in result)
            return result
        target = self.values.world.function(name, f.function.path)
        if target is not None and target is not f.function:
            return self._enter(f, target, args, values)
        given = EMPTY
        for at, value in enumerate(values):
            given |= memory(value)
            if name not in api.KEEPS_OUT and not api.PRINTS.search(name):  # what else is an address for?
                self.walk.note(f, "read", name, value, e, args[at])
            if ASKED in value and not api.PRINTS.search(name):
                self.walk.note(f, "acted", name, frozenset({ASKED}), e, None)
        if given:
            self.walk.note(f, "passed", name, given, e, None)
        elif any(self.values.types.tag(f, arg) in self.memory.keeping for arg in args):
            self.values.handed_on.add(name)
        return EMPTY

    def _given(self, f: Frame, arg: Expr) -> Labels:
        """What an argument is; true and false are told apart."""
        held = self.walk.eval(f, arg)
        if isinstance(arg, Num) and arg.text in ("true", "false"):
            return held | {Label("const", arg.text == "true")}
        return held

    def _through_pointer(self, f: Frame, e: Call) -> Labels:
        """A call through a field of a table of functions."""
        found = EMPTY
        values = [self.walk.eval(f, arg) for arg in e.args]
        function = e.function
        while isinstance(function, Deref):
            function = function.of
        for label in self.values.labels(f, function):
            target = self.values.world.function(label.of, f.function.path) if label.kind == "fn" else None
            if target is not None and target is not f.function:
                found |= self._enter(f, target, e.args, values)
        return found

    def _special(self, f: Frame, name: str, args: list[Expr], line: int) -> Labels | None:
        """Macros of the kernel that assign, or name a place."""
        if (
            name in ("dma_unmap_addr_set", "netmem_dma_unmap_addr_set", "dma_unmap_len_set")
            and len(args) >= 3
        ):
            at = args[-2].name if isinstance(args[-2], Id) else "?"
            return self.stores.store(f, Field(line, args[-3], at), args[-1], line)
        if name in ("dma_unmap_addr", "dma_unmap_len") and len(args) == 2:
            at = args[1].name if isinstance(args[1], Id) else "?"
            return self.values.labels(f, Field(line, args[0], at))
        if name == "container_of" and args:
            return memory(self.walk.eval(f, args[0]))
        if (
            name in ("WRITE_ONCE", "smp_store_release", "rcu_assign_pointer", "RCU_INIT_POINTER")
            and len(args) == 2
        ):
            return self.stores.store(f, args[0], args[1], line)
        if (
            name in ("__set_bit", "set_bit", "__assign_bit", "assign_bit")
            and args
            and isinstance(args[0], Id)
        ):
            on = self.walk.follows(f, args[0])
            if len(args) > 2:
                on |= self.walk.eval(f, args[2]) & FLAGS
            if on:
                self.memory.add_constant(args[0].name, on)
            self.values.modes.stored(args[0].name, (f.key, line), bool(f.point.facts & ASIDE))
        return None

    def _enter(self, f: Frame, target: Any, args: list[Expr], values: list[Labels]) -> Labels:
        """A call of a function that is known here."""
        count = len(target.params)
        values = values[:count] + [EMPTY] * (count - len(values))
        if target.macro:  # its parameters have the types of what it is given
            for (_, name), arg in zip(target.params, args, strict=False):
                known = self.values.types.of(f, arg)
                if known:
                    self.values.types.parameters[id(target), name] = known
        summary = self._called(f, target, values, self.values.handed(f, target, args))
        if summary is None:
            return EMPTY
        for (type_, _), arg, out, given in zip(target.params, args, summary.outs, values, strict=False):
            written = out - given
            if written and is_out(type_, arg):
                inner = arg.of if isinstance(arg, Addr) else arg
                if isinstance(inner, Id | Field | Index | Deref):
                    self.stores.write(f, inner, written, "|=")
            elif isinstance(arg, Addr) and isinstance(arg.of, Id):
                f.point.answers.pop(arg.of.name, None)
        return summary.returns

    def _unknown_pool(self, f: Frame, args: list[Expr]) -> Any:
        if args and isinstance(args[0], Field):
            return self.memory.cells(f, f.point.env, args[0])[0]
        return ("unknown", f.function.path, args[0].name if args and isinstance(args[0], Id) else "")
