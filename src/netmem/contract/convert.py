"""The mechanical part of a conversion to netmem: types of what holds payload, and calls with a netmem twin.

Pages of header pools stay pages. A use of payload that has no twin gets netmem_to_page() around it, which
is right as long as the pool's memory is pages, and goes on the list of what remains by hand. Where a rewrite
cannot be shown to be safe nothing is rewritten (``Refused``).
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tree_sitter
import tree_sitter_c

from netmem.contract.lint import api, csource, tree
from netmem.contract.lint.check import understand
from netmem.contract.lint.lowering import declared
from netmem.contract.lint.model import Case
from netmem.contract.lint.nodes import Expr, Field
from netmem.contract.lint.places import Scope
from netmem.contract.pages import PAGE, PAGE_AT, SAME_ARGUMENTS, WITH_GFP, Holders
from netmem.contract.patch import Refused, patch_of

TRANSPARENT = {"likely", "unlikely", "READ_ONCE", "WARN_ON", "WARN_ON_ONCE"}


# Position of the page in the page calls that have a twin.
@dataclass
class Remaining:
    """One thing to be done by hand."""

    file: str
    line: int
    reason: str


@dataclass
class Conversion:
    """A patch (empty when there is nothing to do), and what it leaves."""

    driver: str
    patch: str
    remaining: list[Remaining] = field(default_factory=list)


def convert(path: Path) -> Conversion:
    """Convert the one driver at ``path``. Refused."""
    problems: list[str] = []
    found = list(tree.find(path.absolute(), problems))
    if len(found) != 1:
        names = ", ".join(Path(d.name).name for d in found[:8])
        raise Refused(
            f"{path} holds {len(found)} drivers ({names}): name one" if found else f"{path}: no C files"
        )
    root = tree.root_of(path.absolute())
    case = understand(found[0], root, tree.exports(root, path.absolute()))
    top = tree.top_of(found[0], root)
    base = top if root is not None or not tree.is_inside(top, Path.cwd()) else Path.cwd()
    payload = [e for e in case.of("alloc") if not e.xdp and case.mine(e)]
    if not payload:
        raise Refused("no payload is allocated from a page pool: there is nothing to convert yet (R1)")
    if case.api == "netmem":
        return Conversion(os.path.relpath(found[0].name, base), "")
    rewriter = _Rewriter(case, base)
    rewriter.run()
    return Conversion(
        os.path.relpath(found[0].name, base),
        patch_of(rewriter.world.own, rewriter.edits, base),
        rewriter.remaining,
    )


class _Rewriter:
    """Edits of one driver, as (start, end, text) in bytes for each file."""

    def __init__(self, case: Case, base: Path) -> None:
        self.case, self.base = case, base
        self.world, self.flow = case.world, case.flow
        self.edits: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        self.remaining: list[Remaining] = []
        self._kept: list[Expr] = []
        holders = Holders(case)
        self.cells, self.locals, self._names_cell = holders.cells, holders.locals, holders.names_cell

    # -- walking ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Every file of the driver; then the headers that got a new type."""
        parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_c.language()))
        for one in self.world.own:
            for function in one.functions:
                if function.macro and any(
                    (one.path, function.name, name) in self.locals for _, name in function.params
                ):
                    raise Refused(f"the macro {function.name} handles payload: make it a function first")
                if function.macro and self._names_cell(function.body):
                    raise Refused(
                        f"the macro {function.name} names a field that holds payload: expand it first"
                    )
            self.path, self.source = one.path, csource.prepared(one.text)
            root = parser.parse(self.source).root_node
            self._top(root)
            if self.edits.get(one.path):
                self._include(one)

    def _top(self, node: Any) -> None:
        for child in node.named_children:
            if child.type == "function_definition":
                self._function(child)
            elif child.type in ("struct_specifier", "union_specifier"):
                self._struct(child, "")
            elif child.type == "declaration":
                self._prototype(child)
                type_ = child.child_by_field_name("type")
                if type_ is not None and type_.type.endswith("specifier"):
                    self._struct(type_, "")
            elif child.type == "type_definition":
                type_ = child.child_by_field_name("type")
                if type_ is not None and type_.type.endswith("specifier"):
                    self._struct(type_, "")
            elif child.type.startswith("preproc_") or child.type in ("ERROR", "declaration_list"):
                self._top(child)

    def _text(self, node: Any) -> str:
        return self.source[node.start_byte : node.end_byte].decode("utf-8", "replace")

    def _edit(self, start: int, end: int, text: str) -> None:
        edit = (start, end, text)
        if edit not in self.edits[self.path]:
            self.edits[self.path].append(edit)

    def _struct(self, node: Any, prefix: str) -> None:
        name, body = node.child_by_field_name("name"), node.child_by_field_name("body")
        if body is None:
            return
        self._fields(body, self._text(name) if name is not None else prefix)

    def _fields(self, body: Any, tag: str) -> None:
        for child in body.named_children:
            if child.type != "field_declaration":
                if child.type.startswith("preproc_"):
                    self._fields(child, tag)
                continue
            type_ = child.child_by_field_name("type")
            declarators = child.children_by_field_name("declarator")
            if type_ is not None and type_.type in ("struct_specifier", "union_specifier"):
                inner = type_.child_by_field_name("body")
                if inner is not None:
                    name = declared(declarators[0], self.source)[0] if declarators else ""
                    known = type_.child_by_field_name("name")
                    self._fields(
                        inner, self._text(known) if known is not None else f"{tag}.{name}" if name else tag
                    )
                    continue
            names = [declared(one, self.source)[0] for one in declarators]
            self._retype(type_, declarators, [(tag, name) in self.cells for name in names])

    def _retype(self, type_: Any, declarators: list[Any], ours: list[bool]) -> None:
        """struct page *x becomes netmem_ref x."""
        if not any(ours):
            return
        line = type_.start_point[0] + 1
        if not all(ours):
            raise Refused(
                f"{self._where(line)}: payload and other pages are declared together: split the line first"
            )
        self._edit(type_.start_byte, type_.end_byte, "netmem_ref")
        for one in declarators:
            pointer = one.child_by_field_name("declarator") if one.type == "init_declarator" else one
            stars = 0
            while pointer is not None and pointer.type in ("pointer_declarator", "array_declarator"):
                if pointer.type == "pointer_declarator":
                    stars += 1
                    self._edit(pointer.start_byte, pointer.start_byte + 1, "")
                pointer = pointer.child_by_field_name("declarator")
            if stars != 1:
                raise Refused(
                    f"{self._where(line)}: payload behind {stars} pointers: no plain page to replace"
                )

    def _where(self, line: int) -> str:
        return f"{os.path.relpath(self.path, self.base)}:{line}"

    def _signature(self, node: Any, name: str, path: str) -> None:
        """Result and parameters of a definition or prototype."""
        declarator = node.child_by_field_name("declarator")
        if (path, name, "") in self.locals:
            type_ = node.child_by_field_name("type")
            if (
                declarator is None
                or declarator.type != "pointer_declarator"
                or self._text(type_) != "struct page"
            ):
                return
            self._edit(type_.start_byte, type_.end_byte, "netmem_ref")
            self._edit(declarator.start_byte, declarator.start_byte + 1, "")
        while declarator is not None and declarator.type == "pointer_declarator":
            declarator = declarator.child_by_field_name("declarator")
        if declarator is None or declarator.type != "function_declarator":
            return
        function = self.world.function(name, path)
        params = declarator.child_by_field_name("parameters")
        for at, one in enumerate(params.named_children if params is not None else ()):
            if one.type != "parameter_declaration" or function is None or at >= len(function.params):
                continue
            inner, type_ = one.child_by_field_name("declarator"), one.child_by_field_name("type")
            if (path, name, function.params[at][1]) in self.locals and inner is not None:
                if self._text(type_) == "struct page":
                    self._retype(type_, [inner], [True])

    def _prototype(self, node: Any) -> None:
        for one in node.children_by_field_name("declarator"):
            inner = one
            while inner is not None and inner.type == "pointer_declarator":
                inner = inner.child_by_field_name("declarator")
            if inner is not None and inner.type == "function_declarator":
                name = self._text(inner.child_by_field_name("declarator"))
                function = self.world.function(name, self.path)
                if function is not None:
                    self._signature(node, name, function.path)

    # -- functions ---------------------------------------------------------------------------------

    def _function(self, node: Any) -> None:
        declarator = node.child_by_field_name("declarator")
        while declarator is not None and declarator.type == "pointer_declarator":
            declarator = declarator.child_by_field_name("declarator")
        if declarator is None or declarator.type != "function_declarator":
            return
        name = self._text(declarator.child_by_field_name("declarator"))
        function = next(
            (
                f
                for f in self.world.named.get(name, ())
                if f.path == self.path and f.line == node.start_point[0] + 1
            ),
            None,
        )
        if function is None:
            return
        self.function = function
        self.scope = Scope(function)
        self.scope.types.update(function.types)
        self._signature(node, name, self.path)
        self._walk(node.child_by_field_name("body"))

    def _local(self, name: str) -> bool:
        return (
            (self.path, self.function.name, name) in self.locals
            and self.scope.types.get(name, "").replace(" ", "").rstrip("[]") == "structpage*"
        )  # fmt: skip

    def _is_place(self, node: Any) -> bool:
        """True for an expression that is a page of payload, and becomes a netmem_ref."""
        if node.type == "parenthesized_expression" and node.named_child_count == 1:
            return self._is_place(node.named_children[0])
        if node.type == "subscript_expression":
            inner = node.child_by_field_name("argument")
            return (
                inner is not None
                and inner.type in ("identifier", "field_expression", "subscript_expression")
                and self._is_place(inner)
            )
        if node.type == "identifier":
            return self._local(self._text(node))
        if node.type == "field_expression":
            expr = csource.expression(node, self.source)
            self._kept.append(expr)  # types are remembered by identity
            return isinstance(expr, Field) and (self._tag(expr), expr.name) in self.cells
        return False

    def _tag(self, expr: Field) -> str:
        """The structure that a field belongs to."""
        return self.flow.values.types.tag(self.scope, expr.base)

    def _walk(self, node: Any) -> None:
        for child in node.named_children:
            if child.type == "declaration":
                self._declaration(child)
            elif child.type == "return_statement" and child.named_children:
                if (self.path, self.function.name, "") in self.locals:
                    self._assigned(child.named_children[0])
            elif child.type == "call_expression":
                self._arguments(child)
            if child.type == "identifier":
                self._pointer(child)
            if child.type in ("identifier", "field_expression", "subscript_expression") and self._is_place(
                child
            ):
                self._use(child)
                if child.type == "identifier":
                    continue
                self._walk_inner(child)
                continue
            self._walk(child)

    def _walk_inner(self, node: Any) -> None:
        """Below a place: its index, and what leads to it."""
        for child in node.named_children:
            if child.type in ("identifier", "field_identifier"):
                continue
            if child.type in ("field_expression", "subscript_expression") and self._is_place(child):
                self._walk_inner(child)  # an array of places: the element was dealt with
            else:
                self._walk(child) if child.named_child_count else None

    def _declaration(self, node: Any) -> None:
        declarators = node.children_by_field_name("declarator")
        names = []
        for one in declarators:
            inner = one.child_by_field_name("declarator") if one.type == "init_declarator" else one
            names.append(declared(inner, self.source)[0])
        ours = [self._local(name) for name in names]
        type_ = node.child_by_field_name("type")
        if type_ is not None and self._text(type_) == "struct page":
            self._retype(type_, declarators, ours)
        for one, is_ours in zip(declarators, ours, strict=True):
            value = one.child_by_field_name("value") if one.type == "init_declarator" else None
            if is_ours and value is not None:
                self._assigned(value)

    def _pointer(self, node: Any) -> None:
        """A function that gets other types must not be handed on as a pointer."""
        name = self._text(node)
        if node.parent.type == "call_expression" or name not in self.world.named or name in self.scope.types:
            return
        target = self.world.function(name, self.path)
        if target is not None and any(
            key[:2] == (target.path, name) for key in self.locals if self._typed(key)
        ):
            raise Refused(
                f"{self._where(node.start_point[0] + 1)}: {name}() handles payload through a pointer"
            )

    def _typed(self, key: tuple[str, str, str]) -> bool:
        """True for a parameter or result, which other functions see."""
        target = self.world.function(key[1], key[0])
        return target is not None and (not key[2] or any(name == key[2] for _, name in target.params))

    def _arguments(self, call: Any) -> None:
        """What is given to parameters that become netmem_refs."""
        function, arguments = call.child_by_field_name("function"), call.child_by_field_name("arguments")
        name = self._text(function)
        target = self.world.function(name, self.path) if function.type == "identifier" else None
        given = [c for c in arguments.named_children if c.type != "comment"] if arguments is not None else []
        for at, one in enumerate(given):
            if target is not None and at < len(target.params) and not self._is_place(one):
                type_, param = target.params[at]
                if type_ == PAGE and (target.path, name, param) in self.locals:
                    self._assigned(one)

    def _assigned(self, value: Any) -> None:
        """Something is assigned to a place."""
        if value.type == "parenthesized_expression" and value.named_child_count == 1:
            return self._assigned(value.named_children[0])
        if value.type in ("null",) or self._text(value) == "NULL":
            return self._edit(value.start_byte, value.end_byte, "0")
        if self._is_place(value):
            return None
        if value.type == "assignment_expression":
            return None  # its own left side is a place, or it gets what it needs there
        if value.type == "conditional_expression":
            self._assigned(value.child_by_field_name("consequence"))
            return self._assigned(value.child_by_field_name("alternative"))
        if value.type == "call_expression":
            name = self._text(value.child_by_field_name("function"))
            if name in ("ERR_PTR", "ERR_CAST"):
                raise Refused(
                    f"{self._where(value.start_point[0] + 1)}: {name}() has no place in a netmem_ref"
                )
            if name in SAME_ARGUMENTS:
                at = value.child_by_field_name("function")
                return self._edit(at.start_byte, at.end_byte, api.TWINS[name])
            if name in WITH_GFP:  # its twin wants the allocation flags that it implies
                at, close = value.child_by_field_name("function"), value.end_byte - 1
                self._edit(at.start_byte, at.end_byte, WITH_GFP[name])
                return self._edit(close, close, ", GFP_ATOMIC | __GFP_NOWARN")
            function = self.world.function(name, self.path)
            if function is not None and (function.path, name, "") in self.locals:
                return None
            if name in TRANSPARENT or name == "page_to_netmem":
                return None
        return self._wrap(value, "page_to_netmem", "a page from elsewhere becomes payload")

    def _wrap(self, node: Any, call: str, reason: str) -> None:
        self._edit(node.start_byte, node.start_byte, f"{call}(")
        self._edit(node.end_byte, node.end_byte, ")")
        self.remaining.append(
            Remaining(os.path.relpath(self.path, self.base), node.start_point[0] + 1, reason)
        )

    def _use(self, node: Any) -> None:
        """One use of a place: by what stands around it."""
        parent, line = node.parent, node.start_point[0] + 1
        while parent is not None and parent.type == "parenthesized_expression":
            node, parent = parent, parent.parent
        kind = parent.type if parent is not None else ""
        if kind == "argument_list":
            self._argument(node, parent)
        elif kind == "assignment_expression":
            left, right = parent.child_by_field_name("left"), parent.child_by_field_name("right")
            if left.start_byte == node.start_byte and left.end_byte == node.end_byte:
                if self._text(parent.child_by_field_name("operator")) != "=":
                    raise Refused(f"{self._where(line)}: a page of payload is calculated with")
                self._assigned(right)
            elif not self._is_place(left):
                self._wrap(node, "netmem_to_page", "payload is kept as a page elsewhere (R3)")
        elif kind == "init_declarator":
            inner = parent.child_by_field_name("declarator")
            if inner is not None and inner.start_byte <= node.start_byte < inner.end_byte:
                return
            if not self._local(declared(inner, self.source)[0]):
                self._wrap(node, "netmem_to_page", "payload is kept as a page here (R3)")
        elif kind == "update_expression" or (
            kind == "assignment_expression" and self._text(parent)[0] == "*"
        ):
            raise Refused(f"{self._where(line)}: a page of payload is calculated with")
        elif kind == "binary_expression":
            self._compared(node, parent)
        elif kind == "pointer_expression" and self._text(parent).startswith("&"):
            raise Refused(f"{self._where(line)}: the address of a page of payload is taken")
        elif kind == "return_statement":
            if (self.path, self.function.name, "") not in self.locals:
                self._wrap(node, "netmem_to_page", "payload is returned as a page (R3)")
        elif kind == "field_expression":
            self._wrap(node, "netmem_to_page", "a field of struct page is looked at (R5)")
        elif kind == "cast_expression":
            self._wrap(node, "netmem_to_page", "payload is cast (R3)")
        elif kind == "conditional_expression":
            if parent.child_by_field_name("condition").start_byte != node.start_byte:
                self._wrap(node, "netmem_to_page", "payload is one of two pages (R3)")

    def _compared(self, node: Any, parent: Any) -> None:
        operator = self._text(parent.child_by_field_name("operator"))
        left, right = parent.child_by_field_name("left"), parent.child_by_field_name("right")
        other = right if left.start_byte == node.start_byte else left
        if operator in ("&&", "||"):
            return
        if operator in ("==", "!="):
            if self._text(other) == "NULL":
                self._edit(other.start_byte, other.end_byte, "0")
                return
            if self._is_place(other):
                return
        self._wrap(node, "netmem_to_page", "payload is compared or calculated with as a page (R5)")

    def _argument(self, node: Any, arguments: Any) -> None:
        call = arguments.parent
        function = call.child_by_field_name("function")
        name = self._text(function)
        given = [c for c in arguments.named_children if c.type != "comment"]
        at = next(i for i, c in enumerate(given) if c.start_byte == node.start_byte)
        if name in TRANSPARENT or name == "sizeof":
            return
        if PAGE_AT.get(name) == at:
            self._edit(function.start_byte, function.end_byte, api.TWINS[name])
            if name == "page_address":
                self.remaining.append(
                    Remaining(os.path.relpath(self.path, self.base), node.start_point[0] + 1,
                              "netmem_address() may be NULL: guard what reads through it (R5)")
                )  # fmt: skip
            return
        target = self.world.function(name, self.path)
        if target is not None and at < len(target.params):
            if (target.path, name, target.params[at][1]) in self.locals and target.params[at][0] == PAGE:
                return
        reason = (
            f"{name}() takes a page (R5)" if name not in api.REFCOUNT else f"{name}() counts on a page (R7)"
        )
        self._wrap(node, "netmem_to_page", reason)

    # -- the patch -----------------------------------------------------------------------------------

    def _include(self, one: Any) -> None:
        """A file that says netmem_ref for the first time needs its header."""
        if b"netmem.h" in one.text or b"page_pool/" in one.text or not one.path.endswith(".h"):
            return
        at = one.text.rfind(b"#include")
        if at >= 0:
            end = one.text.find(b"\n", at) + 1
            self.path = one.path
            self._edit(end, end, "#include <net/netmem.h>\n")


__all__ = ["Conversion", "Refused", "Remaining", "convert"]
