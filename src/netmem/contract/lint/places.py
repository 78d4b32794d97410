"""Places: types of expressions, and the cells that values are read from."""

from __future__ import annotations

from netmem.contract.lint import api
from netmem.contract.lint.conditions import Conditions
from netmem.contract.lint.csource import Function
from netmem.contract.lint.labels import EMPTY, FLAGS, MAX_PATH, SPLIT, Frame, Labels, split_name
from netmem.contract.lint.lowering import Expr


class Places(Conditions):
    """Locals by name; fields by structure, or by object where it is known which one."""

    def _quiet(self, f: Frame, e: Expr) -> Labels:
        """The labels of an expression, without noting what happens in it."""
        kind = e[0]
        if kind == "call":
            if e[1][0] == "id" and e[1][1] in api.SPLIT_CALLS:
                return SPLIT
            found = EMPTY
            for arg in e[2]:
                found |= self._quiet(f, arg) & FLAGS
            target = self.world.function(e[1][1], f.function.path) if e[1][0] == "id" else None
            if target is not None:
                found |= self._returned[id(target)]
            return found
        if kind in ("id", "field", "index", "deref", "addr"):
            return self._load(f, e)
        if kind == "bin":
            return self._quiet(f, e[2]) | self._quiet(f, e[3])
        if kind in ("un", "cond"):
            return self._quiet(f, e[-1]) | (self._quiet(f, e[2]) if kind == "cond" else EMPTY)
        if kind == "assign":
            return self._load(f, e[2])
        return EMPTY

    def type_of(self, f: Frame, e: Expr) -> str:
        """Declared type of an expression, "" when unknown."""
        known = self._types.get(id(e))
        if known is None:
            known = self._type(f, e)
            if known and f.function.returns:  # a macro's parameters have no types of their own
                self._types[id(e)] = known
        return known

    def _type(self, f: Frame, e: Expr) -> str:
        kind = e[0]
        if kind == "id":
            known = f.types.get(e[1])
            return known if known is not None else self.world.globals.get(e[1], ("",))[0]
        if kind == "field":
            return self.world.field_type(self.world.tag(self.type_of(f, e[1])), e[2])
        if kind in ("index", "deref", "addr"):
            return self.type_of(f, e[1])
        if kind == "call" and e[1][0] == "id":
            if e[1][1] in api.SAME and len(e[2]) > api.SAME[e[1][1]]:
                return self.type_of(f, e[2][api.SAME[e[1][1]]])
            target = self.world.function(e[1][1], f.function.path)
            if target is not None and target.returns:
                return target.returns
            return self._macro_type(f, target, e[2])
        if kind == "bin":
            return self.type_of(f, e[2]) or self.type_of(f, e[3])
        if kind == "cond":
            return self.type_of(f, e[2]) or self.type_of(f, e[3])
        if kind == "assign":
            return self.type_of(f, e[2])
        return ""

    def _macro_type(self, f: Frame, target: Function | None, args: list[Expr]) -> str:
        if (
            target is None
            or len(target.body) != 1
            or target.body[0][0] != "return"
            or target.body[0][1] is None
        ):
            return ""
        inner = Frame(target, False, False)
        for (_, name), arg in zip(target.params, args, strict=False):
            inner.types[name] = self.type_of(f, arg)
        return self.type_of(inner, target.body[0][1]) if f.function is not target else ""

    def cells(self, f: Frame, e: Expr) -> list[tuple[str, str]]:
        """Where a field expression's value is kept: (structure or object, field)."""
        base, name = e[1], e[2]
        objects = [label[1] for label in self._base(f, base) if label[0] == "obj"]
        tag = self.world.tag(self.type_of(f, base))
        return [(one, name) for one in objects] or [(tag, name)]

    def _base(self, f: Frame, base: Expr) -> Labels:
        """Objects that an expression denotes or points to."""
        while base[0] in ("addr", "deref", "index"):
            base = base[1]
        if base[0] == "id":
            return frozenset(x for x in f.env.get(base[1], EMPTY) if x[0] == "obj")
        if base[0] == "field":
            tag = self.world.tag(self.type_of(f, base[1]))
            inner = self.world.field_type(tag, base[2])
            outer = [x[1] for x in self._base(f, base[1]) if x[0] == "obj"]
            of = self.world.tag(inner)
            if of and self.world.places.get(of, 0) > 1:
                made = [f"{one}.{base[2]}" for one in outer] or [f"{tag}.{base[2]}"]
                if "*" in inner:  # what was put there, too
                    made += [x[1] for x in self._cell_values(f, base) if x[0] == "obj"]
            elif outer and of:
                made = [f"{one}.{base[2]}" for one in outer]  # what the object's pointer leads to
            else:
                return frozenset(x for x in self._cell_values(f, base) if x[0] == "obj")
            made = [one if one.count(".") <= MAX_PATH else f"{tag}.{base[2]}" for one in made]
            self.objects[of].update(made)
            return frozenset(("obj", one) for one in made)
        if base[0] in ("call", "bin", "cond", "assign"):
            return frozenset(x for x in self._quiet(f, base) if x[0] == "obj")
        return EMPTY

    def _cell_values(self, f: Frame, e: Expr) -> Labels:
        found = EMPTY
        for cell in self.cells(f, e):
            found |= self._read(cell, f, e)
        return found

    def _read(self, cell: tuple[str, str], f: Frame, e: Expr) -> Labels:
        owner, name = cell
        found = self.fields.get(cell, EMPTY)
        tag = self.world.tag(self.type_of(f, e[1]))
        if owner != tag and (tag, name) in self.fields:
            found |= self.fields[tag, name]  # written where the object was not known
        elif owner == tag:
            for one in self.objects.get(tag, ()):
                if (one, name) in self.fields:
                    found |= self.fields[one, name]
        if owner and ("", name) in self.fields:
            found |= self.fields["", name]
        if any(label[0] == "pool" for label in found):
            # A pool is known by the field it is kept in.
            kept = frozenset(x for x in found if x[0] != "pool")
            return kept | {("pool", cell)}
        return found

    def _load(self, f: Frame, e: Expr) -> Labels:
        kind = e[0]
        if kind == "id":
            found = f.env.get(e[1])
            if found is None:
                found = self.constants.get(e[1], EMPTY)
                if e[1] in self.selection.known:
                    found |= {("fn", e[1])}
                elif e[1].isupper() and not e[1].startswith("ETHTOOL_") and split_name(e[1]):
                    found |= SPLIT
            return found
        if kind == "field":
            found = self._cell_values(f, e) | self._base(f, e)
            if e[2] in api.SPLIT_FIELDS or split_name(e[2]):
                found |= SPLIT
            return found
        if kind in ("index", "deref", "addr"):
            return self._load(f, e[1]) | (self._base(f, e) if kind == "addr" else EMPTY)
        if kind in ("bin", "cond", "call", "assign", "un"):
            return self._quiet(f, e)
        return EMPTY
