"""Conditions: what holds at a place, and what it says about payload."""

from __future__ import annotations

from netmem.contract.lint import api
from netmem.contract.lint.labels import (
    EMPTY,
    FLAGS,
    READABLE,
    SPLIT,
    UNREADABLE,
    UNSPLIT,
    Frame,
    Labels,
    State,
    names,
)  # fmt: skip
from netmem.contract.lint.lowering import Expr


class Conditions(State):
    """Pushed where they begin to hold, popped where they end."""

    def _push(self, f: Frame, cond: Expr, positive: bool) -> None:
        """From here on a condition holds."""
        readable, xdp, split = f.marks[-1]
        if cond[0] != "case":
            readable = readable or self._says_readable(f, cond, positive)
            xdp = xdp or self._is_xdp(cond, positive) or self._says_no_pool(f, cond, positive)
        self.conditions[id(cond)] = (
            self._is_split(f, cond),
            cond[0] != "case" and self._says_readable(f, cond, True),
            cond[0] != "case" and self._says_readable(f, cond, False),
        )
        f.conds.append((cond, positive))
        f.marks.append((readable, xdp, split or self._is_split(f, cond)))

    def _is_xdp(self, cond: Expr, positive: bool) -> bool:
        known = self._xdp.get((id(cond), positive))
        if known is None:
            known = self._xdp[id(cond), positive] = _xdp_condition(cond, positive)
        return known

    def _pop(self, f: Frame) -> None:
        f.conds.pop()
        f.marks.pop()

    def _control(self, f: Frame, value: Expr) -> Labels:
        """A constant chosen by what follows split follows it too, or its opposite."""
        if not f.marks[-1][2] or value[0] not in ("num", "id"):
            return EMPTY
        if value[1] in ("0", "1", "true", "false"):
            return SPLIT if (value[1] in ("1", "true")) != f.marks[-1][0] else UNSPLIT
        return SPLIT if value[1].isupper() else EMPTY

    def _conclude(self, f: Frame, value: Expr) -> None:
        """What a caller may conclude from a true, and from a false, result: (readable, mode not judged)."""
        for outcome in (True, False):
            if value[0] == "num" and (value[1] in ("0", "false", "NULL")) == outcome:
                continue
            known = (
                (f.marks[-1][0] and not f.marks[0][0]) or self._says_readable(f, value, outcome),
                (f.marks[-1][1] and not f.marks[0][1]) or self._says_no_pool(f, value, outcome),
            )
            before = self._concluded.get((id(f.function), outcome))
            self._concluded[id(f.function), outcome] = (
                known if before is None else (known[0] and before[0], known[1] and before[1])
            )

    def _implied(self, f: Frame, call: Expr, outcome: bool, which: int) -> bool:
        """The same, for a condition that is a call."""
        target = self.world.function(call[1][1], f.function.path) if call[1][0] == "id" else None
        if target is None or (target.returns and "bool" not in target.returns):
            return False  # a count or an error is no answer to the question
        known = self._implies.get((id(target), outcome))
        return known is not None and known[which]

    def _is_split(self, f: Frame, cond: Expr) -> bool:
        if cond[0] == "case":
            return self._is_split(f, cond[1])
        return bool(self._quiet(f, cond) & FLAGS)

    def _says_no_pool(self, f: Frame, cond: Expr, positive: bool) -> bool:
        """True when a condition holds only in a mode without page pool."""
        kind = cond[0]
        if kind == "un" and cond[1] == "!":
            return self._says_no_pool(f, cond[2], not positive)
        if kind == "bin":
            if cond[1] in ("&&", "||"):
                parts = [self._says_no_pool(f, part, positive) for part in cond[2:]]
                return any(parts) if (cond[1] == "&&") == positive else all(parts)
            if cond[1] in ("==", "!=") and cond[3][0] in ("num", "id") and cond[3][1] in ("0", "NULL"):
                return self._says_no_pool(f, cond[2], positive == (cond[1] == "!="))
            return False
        if kind == "call" and cond[1][0] == "id" and cond[1][1] in ("likely", "unlikely") and cond[2]:
            return self._says_no_pool(f, cond[2][0], positive)
        if kind == "call" and self._implied(f, cond, positive, 1):
            return True
        if positive:
            return kind == "field" and any(self._excludes_pool(cell) for cell in self.cells(f, cond))
        if kind not in ("id", "field"):
            return False
        return "page_pool *" in self.type_of(f, cond)

    def _excludes_pool(self, cell: tuple[str, str]) -> bool:
        """True for a field that is only ever set where the pool is not: if (a) pool = ...; else field = "
        "...;"""
        writes = self._field_conds.get(cell, [])
        return bool(writes) and all(
            any((one, not positive) in self._pool_conds for one, positive in conds) for conds in writes
        )

    def _says_readable(self, f: Frame, cond: Expr, positive: bool) -> bool:
        kind = cond[0]
        if kind == "un" and cond[1] == "!":
            return self._says_readable(f, cond[2], not positive)
        if kind == "bin":
            if cond[1] == ("&&" if positive else "||"):
                return any(self._says_readable(f, part, positive) for part in cond[2:])
            if cond[1] in ("==", "!=") and cond[3][0] in ("num", "id"):
                zero = cond[3][1] in ("0", "NULL", "false")
                if zero:
                    return self._says_readable(f, cond[2], positive == (cond[1] == "!="))
                if self._is_split(f, cond[2]) and cond[3][1].endswith("DISABLED"):
                    return positive == (cond[1] == "==")
                if self._is_split(f, cond[2]) and cond[3][1].endswith("ENABLED"):
                    return positive == (cond[1] == "!=")
            return False
        if kind == "call" and cond[1][0] == "id":
            name = cond[1][1]
            if name in ("likely", "unlikely", "READ_ONCE", "WARN_ON", "WARN_ON_ONCE", "bool"):
                return bool(cond[2]) and self._says_readable(f, cond[2][0], positive)
            if name in api.NET_IOV_TESTS:
                return not positive
            if name in ("netmem_address", "skb_frags_readable", "skb_frag_readable"):
                return positive
            if self._implied(f, cond, positive, 0):
                return True
        if kind == "assign":
            return self._says_readable(f, cond[2], positive)
        if kind in ("id", "field", "call"):
            labels = self._quiet(f, cond)
            if positive and any(label[0] == "va" for label in labels):
                return True
            if (READABLE if positive else UNREADABLE) in labels:
                return True
            return ("unsplit" if positive else "split",) in labels
        return False


def _xdp_condition(cond: Expr, positive: bool) -> bool:
    """True when a condition holds with an XDP program or an AF_XDP socket only."""
    kind = cond[0]
    if kind == "un" and cond[1] == "!":
        return _xdp_condition(cond[2], not positive)
    if kind == "bin" and cond[1] in ("&&", "||"):
        parts = [_xdp_condition(part, positive) for part in cond[2:]]
        return any(parts) if (cond[1] == "&&") == positive else all(parts)
    if (
        kind == "bin"
        and cond[1] in ("==", "!=")
        and cond[3][0] in ("num", "id")
        and cond[3][1] in ("0", "NULL")
    ):
        return _xdp_condition(cond[2], positive == (cond[1] == "!="))
    return positive and any(api.XDP_NAME.search(name) or name in api.XDP_LOCALS for name in names(cond))
