"""Uses of payload in a function: each by what it is and by what its surroundings want.

An expression has a level: 1 for what becomes a netmem_ref, 2 for a pointer to one or an array of them. Where
one with a level meets a place without, or the other way round, a conversion goes between, and on the list.
"""

from __future__ import annotations

import re
from typing import Any

from netmem.contract.convert.edits import Refused
from netmem.contract.convert.holders import level, netmem_level
from netmem.contract.convert.sheet import GUARD, RENAME, Sheet
from netmem.contract.convert.syntax import CONDITIONS, HOLDERS, TYPEOF, arguments, is_value, ways
from netmem.contract.convert.twins import POOL_OF
from netmem.contract.lint import api, csource
from netmem.contract.lint.csource import Function
from netmem.contract.lint.nodes import Expr, Field
from netmem.contract.lint.places import Scope

SAME_VALUE = {"READ_ONCE", "WARN_ON", "WARN_ON_ONCE", "unlikely", "likely", "xchg"}
WHOLE = {  # take an array or a pointer whatever it is of
    "kfree", "kvfree", "vfree", "kfree_sensitive", "devm_kfree", "memset", "memcpy",
    "struct_size", "array_size", "kfree_rcu", "kmemdup", "kmemdup_array", "memmove", "krealloc",
    "prefetch", "prefetchw", "swap",
}  # fmt: skip
OF_A_TYPE = re.compile(r"^(k[vmz]*alloc_(obj|objs|flex)|sizeof|typeof|ARRAY_SIZE)$")  # not evaluated
FETCHES = {"prefetch", "prefetchw", "net_prefetch", "net_prefetchw"}  # nothing is lost without them
DESCRIPTORS = {"pp_page_to_nmdesc": "netmem_to_nmdesc", "page_to_nmdesc": "netmem_to_nmdesc"}


class Uses:
    """Of one function."""

    def __init__(self, sheet: Sheet, function: Function, scope: Scope) -> None:
        self.sheet, self.function, self.scope = sheet, function, scope
        self.key = function.path, function.name
        self.returns = (*self.key, "") in sheet.holders.locals and level(function.returns) > 0
        self._kept: list[Expr] = []  # types are remembered by identity
        self._levels: dict[int, int] = {}

    # -- what an expression is ---------------------------------------------------------------------

    def level(self, node: Any) -> int:
        """0 for what stays as it is."""
        known = self._levels.get(node.id)
        if known is None:
            known = self._levels[node.id] = self._level(node)
        return known

    def _level(self, node: Any) -> int:
        kind = node.type
        if kind == "parenthesized_expression" and node.named_child_count == 1:
            return self.level(node.named_children[0])
        if kind == "identifier":
            return self.of_local(self.sheet.text(node))
        if kind == "field_expression":
            tag, name = self.field(node)
            return (
                level(self.sheet.world.field_type(tag, name))
                if (tag, name) in self.sheet.holders.cells
                else 0
            )
        if kind == "subscript_expression":
            return self._down(node, node.child_by_field_name("argument"))
        if kind == "pointer_expression":
            inner = node.child_by_field_name("argument")
            if self.sheet.text(node).startswith("&"):
                return self.level(inner) + 1 if self.level(inner) else 0
            return self._down(node, inner)
        if kind == "call_expression":
            return self._result(node)
        if kind == "assignment_expression":
            return self.level(node.child_by_field_name("left"))
        if kind == "conditional_expression":
            return max(self.level(one) for one in ways(node))
        if kind == "comma_expression":
            return self.level(node.child_by_field_name("right"))
        if kind == "binary_expression":
            left = node.child_by_field_name("left")
            operator = self.sheet.text(node.child_by_field_name("operator"))
            return self.level(left) if operator in "+-" and self.level(left) > 1 else 0
        return 0

    def of_local(self, name: str) -> int:
        """The level of a local or parameter."""
        ours = (*self.key, name) in self.sheet.holders.locals
        return level(self.scope.types.get(name, "")) if ours else 0

    def _down(self, node: Any, inner: Any) -> int:
        found = self.level(inner)
        if found == 1:
            raise Refused(f"{self.sheet.where(node)}: a page of payload is calculated with")
        return found - 1 if found else 0

    def _result(self, node: Any) -> int:
        name = self.sheet.text(node.child_by_field_name("function"))
        given = arguments(node)
        if name in ("READ_ONCE", "xchg") and given:
            return self.level(given[0])
        if name in api.SAME and name in self.sheet.twins.takes and given:  # compound_head()
            return self.level(given[api.SAME[name]])
        if name == "page_to_netmem":
            return 1
        target = self.sheet.world.function(name, self.sheet.path)
        if target is None:
            return 0
        if netmem_level(target.returns):
            return netmem_level(target.returns)
        return level(target.returns) if (target.path, name, "") in self.sheet.holders.locals else 0

    def field(self, node: Any) -> tuple[str, str]:
        """(structure, field) of a field expression."""
        expr = csource.expression(node, self.sheet.source)
        self._kept.append(expr)
        if not isinstance(expr, Field):
            return "", ""
        return self.sheet.case.flow.values.types.tag(self.scope, expr.base), expr.name

    def is_param(self, target: Function | None, at: int) -> bool:
        """True for a parameter that is, or becomes, a netmem_ref or a pointer to one."""
        if target is None or at >= len(target.params):
            return False
        type_, name = target.params[at]
        mine = (target.path, target.name, name) in self.sheet.holders.locals
        return netmem_level(type_) > 0 or (level(type_) > 0 and mine)

    # -- walking -----------------------------------------------------------------------------------

    def walk(self, node: Any) -> None:
        for child in node.named_children:
            kind = child.type
            if kind == "declaration":
                self._declaration(child)
            elif kind == "return_statement" and child.named_children and self.returns:
                self.give(level(self.function.returns), child.named_children[0])
            elif kind == "call_expression":
                self._call(child)
            elif kind == "conditional_expression" and self.level(child):
                self.want(child)
            elif kind == "initializer_pair":
                self._pair(child)
            elif kind == "identifier":
                self._is_no_pointer(child)
                self.sheet.rename(child, *self.key, self.sheet.text(child))
            elif kind == "field_expression":
                named, (tag, name) = child.child_by_field_name("field"), self.field(child)
                if not tag and name in self.sheet.holders.names:
                    raise Refused(f"{self.sheet.where(child)}: {name} of a structure that is not known here")
                self.sheet.looked_at.add((self.sheet.path, named.start_byte))
                self.sheet.rename(named, tag, name)
            if self.level(child) and not self._is_part(child):
                self._use(child)
            self.walk(child)

    def _is_part(self, node: Any) -> bool:
        """True for what is part of a longer expression that has a level, or may have."""
        parent = node.parent
        kind = parent.type
        if kind == "parenthesized_expression":
            return self.level(parent) > 0 and parent.parent.type not in CONDITIONS
        if kind in ("subscript_expression", "pointer_expression"):
            inner = parent.child_by_field_name("argument")
            return bool(inner.id == node.id)
        if kind == "conditional_expression":
            return any(one.id == node.id for one in ways(parent))
        if kind == "comma_expression":
            return bool(parent.child_by_field_name("right").id == node.id)
        if kind == "binary_expression":
            return self.level(parent) > 0
        if kind == "argument_list" and parent.parent.type == "call_expression":
            name = self.sheet.text(parent.parent.child_by_field_name("function"))
            return name in ("READ_ONCE", "xchg") and self.level(parent.parent) > 0
        return False

    def _declaration(self, node: Any) -> None:
        declarators = node.children_by_field_name("declarator")
        ours = [self.of_local(self.sheet.declared(one)) > 0 for one in declarators]
        type_ = node.child_by_field_name("type")
        if type_ is None:
            return
        self.sheet.retype(type_, declarators, ours)
        for one, is_ours in zip(declarators, ours, strict=True):
            value = one.child_by_field_name("value") if one.type == "init_declarator" else None
            if is_ours and value is not None:
                self.give(self.of_local(self.sheet.declared(one)), value)

    def _is_no_pointer(self, node: Any) -> None:
        """A function that gets other types must not be handed on as a pointer. Refused."""
        name = self.sheet.text(node)
        if node.parent.type == "call_expression" or name in self.scope.types:
            return
        target = self.sheet.world.function(name, self.sheet.path)
        if target is None or target.macro:
            return
        if self.sheet.changes(target):
            raise Refused(f"{self.sheet.where(node)}: {name}() handles payload through a pointer")

    def _call(self, node: Any) -> None:
        """What is given to parameters that are netmem_refs."""
        name = self.sheet.text(node.child_by_field_name("function"))
        target = self.sheet.world.function(name, self.sheet.path)
        for at, one in enumerate(arguments(node)):
            if target is not None and self.is_param(target, at) and not self.level(one):
                self.give(level(target.params[at][0]) or netmem_level(target.params[at][0]), one)

    def _pair(self, node: Any) -> None:
        """`.page = value` of a structure."""
        tag, named = self._designated(node)
        if named is None:
            return
        self.sheet.looked_at.add((self.sheet.path, named.start_byte))
        if self._pair_cell(node):
            self.sheet.rename(named, tag, self.sheet.text(named))
            self.give(level(self.sheet.world.field_type(tag, self.sheet.text(named))),
                      node.child_by_field_name("value"))  # fmt: skip

    def _pair_cell(self, node: Any) -> bool:
        tag, named = self._designated(node)
        return named is not None and (tag, self.sheet.text(named)) in self.sheet.holders.cells

    def _designated(self, node: Any) -> tuple[str, Any]:
        """(structure, name) of a designator. Refused where which structure it is of is not seen."""
        designators = node.children_by_field_name("designator")
        last = designators[-1] if designators else None
        if last is None or last.type != "field_designator":
            return "", None
        named, holder = last.named_children[0], node.parent
        direct = len(designators) == 1 and holder.parent.type in HOLDERS
        if not direct and self.sheet.text(named) in self.sheet.holders.names:
            raise Refused(f"{self.sheet.where(node)}: payload in an initialiser inside of another")
        return self._initialised(holder), named

    def _initialised(self, list_: Any) -> str:
        """The structure that an initialiser is of, "" for none."""
        holder = list_.parent
        if holder.type not in HOLDERS:
            return ""
        whose = holder.parent if holder.type == "init_declarator" else holder
        type_ = whose.child_by_field_name("type")
        return self.sheet.world.tag(self.sheet.text(type_)) if type_ is not None else ""

    # -- a netmem_ref is wanted ----------------------------------------------------------------------

    def want(self, value: Any) -> None:
        """Something is given to a place that becomes netmem_ref. Refused."""
        kind = value.type
        if kind == "compound_statement":
            raise Refused(f"{self.sheet.where(value)}: payload is what a statement expression gives")
        if kind == "parenthesized_expression" and value.named_child_count == 1:
            return self.want(value.named_children[0])
        if kind == "conditional_expression":
            for one in ways(value):
                self.want(one)
            return None
        if kind == "comma_expression":
            return self.want(value.child_by_field_name("right"))
        if kind == "null" or self.sheet.text(value) in ("NULL", "0"):
            return self.sheet.put(value, "0")
        if self.level(value) or kind == "assignment_expression" or kind == "initializer_list":
            return None
        if kind == "call_expression":
            function, given = value.child_by_field_name("function"), arguments(value)
            name = self.sheet.text(function)
            if name in ("ERR_PTR", "ERR_CAST"):
                raise Refused(f"{self.sheet.where(value)}: {name}() has no place in a netmem_ref")
            if name in self.sheet.twins.gives:
                return self._twin(value, self.sheet.twins.gives[name])
            if name in SAME_VALUE and given:
                return self.want(given[0])
            if name == "netmem_to_page" and len(given) == 1:
                return self._unwrap(value, given[0])
        cast = "(struct page *)" if self._type(value) == "void *" else ""
        return self.sheet.wrap(value, "page_to_netmem", "R3", "a page from elsewhere becomes payload", cast)

    def give(self, levels: int, value: Any) -> None:
        """Something is given to a place of this level. Refused."""
        if levels == 1:
            self.want(value)
        elif value.type == "initializer_list":
            for one in value.named_children:
                if one.type not in ("comment", "initializer_pair"):
                    self.want(one)
        elif not self.level(value) and self._type(value) not in ("", "void *") and value.type != "null":
            raise Refused(f"{self.sheet.where(value)}: other pages are handed on with payload's")

    def _type(self, node: Any) -> str:
        expr = csource.expression(node, self.sheet.source)
        self._kept.append(expr)
        return self.sheet.case.flow.values.types.of(self.scope, expr)

    def _twin(self, call: Any, twin: str) -> None:
        """The netmem call instead, with what it wants beside."""
        function = call.child_by_field_name("function")
        more = self.sheet.twins.more.get(self.sheet.text(function), "")
        self.sheet.put(function, twin)
        if more:
            self.sheet.edit(call.end_byte - 1, call.end_byte - 1, more)

    def _unwrap(self, call: Any, inner: Any) -> None:
        """Only the argument of a call stays."""
        self.sheet.edit(call.start_byte, inner.start_byte, "")
        self.sheet.edit(inner.end_byte, call.end_byte, "")

    # -- a netmem_ref is here ------------------------------------------------------------------------

    def _use(self, node: Any) -> None:
        """One use, by what stands around it. Refused."""
        parent = node.parent
        kind = parent.type
        if kind == "parenthesized_expression":
            return
        if kind == "expression_statement" and is_value(parent):
            raise Refused(f"{self.sheet.where(node)}: payload is what a statement expression gives")
        if kind == "argument_list":
            self._argument(node, parent)
        elif kind == "assignment_expression":
            self._assignment(node, parent)
        elif kind == "init_declarator":
            inner = parent.child_by_field_name("declarator")
            if inner.start_byte <= node.start_byte < inner.end_byte:
                return
            if TYPEOF.search(self.sheet.text(parent.parent.child_by_field_name("type"))):
                raise Refused(
                    f"{self.sheet.where(node)}: payload in a variable whose type is not written out"
                )
            if not self._is_ours(parent):
                self._as_page(node, "R3", "payload is kept as a page here")
        elif kind == "initializer_pair":
            if not self._pair_cell(parent):
                self._as_page(node, "R3", "payload is kept as a page here")
        elif kind == "update_expression":
            if self.level(node) == 1:
                raise Refused(f"{self.sheet.where(node)}: a page of payload is calculated with")
        elif kind == "binary_expression":
            self._compared(node, parent)
        elif kind == "return_statement":
            if not self.returns:
                self._as_page(node, "R3", "payload is returned as a page")
        elif kind == "field_expression":
            self._field_of_page(node, parent)
        elif kind == "cast_expression":
            self._as_page(node, "R3", "payload is cast")
        elif kind == "initializer_list":
            tag = self._initialised(parent)
            if any(tag == owner for owner, _ in self.sheet.holders.cells):
                raise Refused(f"{self.sheet.where(node)}: payload in an initialiser without names")
            if parent.parent.type != "init_declarator" or not self._is_ours(parent.parent):
                self._as_page(node, "R3", "payload is kept as a page here")
        elif kind == "subscript_expression":
            self._as_page(node, "R3", "payload is kept as a page here")
        elif kind == "conditional_expression" or kind in CONDITIONS or kind.endswith("declarator"):
            return  # asked whether there is one, or declared
        elif kind not in ("pointer_expression", "sizeof_expression", "call_expression", "labeled_statement"):
            self._as_page(node, "R3", "payload is used as a page")

    def _is_ours(self, declarator: Any) -> bool:
        """True for the declaration of a local that holds payload."""
        return self.of_local(self.sheet.declared(declarator)) > 0

    def _as_page(self, node: Any, rule: str, reason: str) -> None:
        if self.level(node) > 1:
            raise Refused(f"{self.sheet.where(node)}: pages of payload are handed on whole")
        self.sheet.wrap(node, "netmem_to_page", rule, reason)

    def _assignment(self, node: Any, parent: Any) -> None:
        left, right = parent.child_by_field_name("left"), parent.child_by_field_name("right")
        if left.id == node.id:
            if self.sheet.text(parent.child_by_field_name("operator")) != "=" and self.level(node) == 1:
                raise Refused(f"{self.sheet.where(node)}: a page of payload is calculated with")
            return self.give(self.level(node), right)
        if self.level(left):
            return
        if self.level(node) > 1 and self._type(left) == "void *":
            return
        self._as_page(node, "R3", "payload is kept as a page elsewhere")

    def _compared(self, node: Any, parent: Any) -> None:
        operator = self.sheet.text(parent.child_by_field_name("operator"))
        left, right = parent.child_by_field_name("left"), parent.child_by_field_name("right")
        other = right if left.id == node.id else left
        if operator in ("&&", "||") or self.level(node) > 1:
            return
        if operator in ("==", "!="):
            if self.sheet.text(other) == "NULL":
                return self.sheet.put(other, "0")
            if self.level(other):
                return
        self._as_page(node, "R5", "payload is compared or calculated with as a page")

    def _field_of_page(self, node: Any, parent: Any) -> None:
        name = self.sheet.text(parent.child_by_field_name("field"))
        around = parent.parent
        left = around.child_by_field_name("left") if around.type == "assignment_expression" else None
        written = left is not None and left.id == parent.id
        written |= self.sheet.text(around).startswith("&")
        if self.level(node) == 1 and name == "pp" and not written and POOL_OF in self.sheet.twins.known:
            self.sheet.edit(node.start_byte, node.start_byte, f"{POOL_OF}(")
            self.sheet.edit(node.end_byte, parent.end_byte, ")")
            return
        self._as_page(node, "R5", "a field of struct page is looked at")

    def _argument(self, node: Any, list_: Any) -> None:
        call = list_.parent
        if call.type != "call_expression":
            return self._as_page(node, "R3", "payload is used as a page")
        function = call.child_by_field_name("function")
        name, given = self.sheet.text(function), arguments(call)
        at = next(i for i, one in enumerate(given) if one.id == node.id)
        if name in SAME_VALUE or OF_A_TYPE.match(name):
            return None
        if name == "WRITE_ONCE" and len(given) == 2 and (at == 0 or self.level(given[0])):
            return self.want(given[1]) if at == 0 else None
        if name == "swap" and self.level(node) == 1:
            if not all(map(self.level, given)):
                raise Refused(f"{self.sheet.where(node)}: payload changes places with another page")
            return None
        if self.level(node) > 1:
            target = self.sheet.world.function(name, self.sheet.path)
            if name in WHOLE or self.is_param(target, at):
                return None
            if target is not None and at < len(target.params) and target.params[at][0] == "void *":
                return None
            return self._as_page(node, "R3", "")
        takes = self.sheet.twins.takes.get(name)
        if takes is not None and takes[0] == at:
            self._twin(call, takes[1])
            if name in api.COUNTS or name in api.REFCOUNT or name == "put_page":
                return self.sheet.remains(node, "R7", f"{name}() counts on a page")
            if name in api.CPU_ADDRESS and not self._guarded(call, node):
                self.sheet.remains(node, "R5", f"{takes[1]}() may be NULL: guard what reads through it")
            return None
        if name in ("page_to_netmem", "virt_to_netmem"):
            return self._unwrap(call, node)
        if name in DESCRIPTORS and DESCRIPTORS[name] in self.sheet.twins.known:
            return self.sheet.put(function, DESCRIPTORS[name])
        target = self.sheet.world.function(name, self.sheet.path)
        if self.is_param(target, at):
            return None
        if name in FETCHES and self._guarded(node, node):
            self.sheet.edit(node.start_byte, node.start_byte, "netmem_to_page(")
            return self.sheet.edit(node.end_byte, node.end_byte, ")")
        if name in api.REFCOUNT or name in api.COUNTS:
            return self.sheet.wrap(node, "netmem_to_page", "R7", f"{name}() counts on a page")
        return self.sheet.wrap(node, "netmem_to_page", "R5", f"{name}() takes a page")

    def _guarded(self, node: Any, place: Any) -> bool:
        """Put a guard before a statement that only fetches early what it reads; False for others."""
        list_ = node.parent
        while list_ is not None and list_.type in ("binary_expression", "parenthesized_expression"):
            list_ = list_.parent
        call = list_.parent if list_ is not None and list_.type == "argument_list" else None
        if call is None or call.type != "call_expression":
            return False
        statement = call.parent
        if self.sheet.text(call.child_by_field_name("function")) not in FETCHES:
            return False
        if statement.type != "expression_statement" or statement.parent.type != "compound_statement":
            return False
        said = self.sheet.edits.within(self.sheet.path, self.sheet.source, place, RENAME)
        begins = self.sheet.source.rfind(b"\n", 0, statement.start_byte) + 1
        indent = self.sheet.source[begins : statement.start_byte]
        if indent.strip():
            return False  # something else stands in its line
        if self.sheet.is_first(statement, "guard"):
            text = f"if (!netmem_is_net_iov({said}))\n{indent.decode()}\t"
            self.sheet.edit(statement.start_byte, statement.start_byte, text, GUARD)
        return True
