"""Types of what holds payload: declarations of structures, functions and locals, file by file."""

from __future__ import annotations

import os
from typing import Any

from netmem.contract.convert.edits import Refused
from netmem.contract.convert.holders import level
from netmem.contract.convert.sheet import Sheet
from netmem.contract.convert.uses import Uses
from netmem.contract.lint import csource
from netmem.contract.lint.csource import CFile, Function
from netmem.contract.lint.places import Scope

SPECIFIERS = ("struct_specifier", "union_specifier")


class Rewriter:
    """Of one driver: ``run`` fills the sheet's edits."""

    def __init__(self, sheet: Sheet) -> None:
        self.sheet, self.world, self.holders = sheet, sheet.world, sheet.holders

    def run(self) -> None:
        """Every file of the driver. Refused."""
        self._refuse_macros()
        self._refuse_foreign()
        for one in self.world.own:
            self.sheet.path, self.sheet.source = one.path, csource.prepared(one.text)
            self._top(csource.parsed(self.sheet.source).root_node)
            if self.sheet.edits.by_path.get(one.path):
                self._include(one)

    def _refuse_macros(self) -> None:
        for one in self.world.own:
            for function in (f for f in one.functions if f.macro):
                if any((one.path, function.name, name) in self.holders.locals for _, name in function.params):
                    raise Refused(f"the macro {function.name} handles payload: make it a function first")
                if self.holders.names_cell(function.body):
                    raise Refused(
                        f"the macro {function.name} names a field that holds payload: expand it first"
                    )

    def _refuse_foreign(self) -> None:
        """A structure of another folder is not ours to change."""
        ours = {tag for one in self.world.own for tag in one.structs}
        for tag, name in sorted(self.holders.cells):
            if tag not in ours:
                where = next((path for path, one in self.world.files.items() if tag in one.structs), "")
                raise Refused(
                    f"struct {tag}, whose field {name} holds payload, is declared in "
                    f"{os.path.relpath(where, self.sheet.base)}: convert it there first"
                )

    # -- outside of functions ----------------------------------------------------------------------

    def _top(self, node: Any) -> None:
        for child in node.named_children:
            type_ = child.child_by_field_name("type")
            if child.type == "function_definition":
                self._function(child)
            elif child.type in SPECIFIERS:
                self._struct(child, "")
            elif child.type in ("declaration", "type_definition"):
                if child.type == "declaration":
                    self._prototype(child)
                if type_ is not None and type_.type in SPECIFIERS:
                    self._struct(type_, "")
            elif child.type.startswith("preproc_") or child.type in ("ERROR", "declaration_list"):
                self._top(child)

    def _struct(self, node: Any, prefix: str) -> None:
        name, body = node.child_by_field_name("name"), node.child_by_field_name("body")
        if body is not None:
            tag = self.sheet.text(name) if name is not None else prefix
            self._fields(body, tag)
            pairs = [(key[1], new) for key, new in self.sheet.renamed.items() if key[0] == tag]
            self.sheet.rename_documented(node, pairs)

    def _fields(self, body: Any, tag: str) -> None:
        for child in body.named_children:
            if child.type != "field_declaration":
                if child.type.startswith("preproc_"):
                    self._fields(child, tag)
                continue
            type_ = child.child_by_field_name("type")
            declarators = child.children_by_field_name("declarator")
            if type_ is not None and type_.type in SPECIFIERS:
                inner = type_.child_by_field_name("body")
                if inner is not None:
                    name = self.sheet.declared(declarators[0]) if declarators else ""
                    known = type_.child_by_field_name("name")
                    own = self.sheet.text(known) if known is not None else f"{tag}.{name}" if name else tag
                    self._fields(inner, own)
                    continue
            names = [self.sheet.declared(one) for one in declarators]
            self.sheet.retype(type_, declarators, [(tag, name) in self.holders.cells for name in names])
            for one, name in zip(declarators, names, strict=True):
                self.sheet.rename(self.sheet.name(one), tag, name)

    def _signature(self, node: Any, function: Function) -> None:
        """Result and parameters of a definition or prototype."""
        declarator, type_ = node.child_by_field_name("declarator"), node.child_by_field_name("type")
        key = function.path, function.name
        stars = 0
        while declarator is not None and declarator.type == "pointer_declarator":
            if (*key, "") in self.holders.locals and self.sheet.text(type_) == "struct page" and not stars:
                self.sheet.edit(type_.start_byte, type_.end_byte, "netmem_ref")
                end = declarator.start_byte + 1
                gap = b"" if self.sheet.source[type_.end_byte : declarator.start_byte] else b" "
                self.sheet.edit(declarator.start_byte, end, gap.decode())
            stars += 1
            declarator = declarator.child_by_field_name("declarator")
        if declarator is None or declarator.type != "function_declarator":
            return
        params = declarator.child_by_field_name("parameters")
        given = [
            one for one in (params.named_children if params is not None else ())
            if one.type == "parameter_declaration"
        ]  # fmt: skip
        for one, (said, name) in zip(given, function.params, strict=False):
            inner = one.child_by_field_name("declarator")
            if (*key, name) in self.holders.locals and level(said) and inner is not None:
                self.sheet.retype(one.child_by_field_name("type"), [inner], [True])
                self.sheet.rename(self.sheet.name(inner), *key, name)
        names = [(name, self.sheet.renamed[*key, name]) for _, name in function.params
                 if (*key, name) in self.sheet.renamed]  # fmt: skip
        self.sheet.rename_documented(node, names)

    def _prototype(self, node: Any) -> None:
        for one in node.children_by_field_name("declarator"):
            inner = one
            while inner is not None and inner.type == "pointer_declarator":
                inner = inner.child_by_field_name("declarator")
            if inner is not None and inner.type == "function_declarator":
                function = self.world.function(
                    self.sheet.text(inner.child_by_field_name("declarator")), self.sheet.path
                )
                if function is not None and not function.macro:
                    self._signature(node, function)

    def _function(self, node: Any) -> None:
        declarator = node.child_by_field_name("declarator")
        while declarator is not None and declarator.type == "pointer_declarator":
            declarator = declarator.child_by_field_name("declarator")
        if declarator is None or declarator.type != "function_declarator":
            return
        name, line = self.sheet.text(declarator.child_by_field_name("declarator")), node.start_point[0] + 1
        found = self.world.named.get(name, ())
        function = next((f for f in found if f.path == self.sheet.path and f.line == line), None)
        if function is None:
            return
        scope = Scope(function)
        scope.types.update(function.types)
        self._signature(node, function)
        Uses(self.sheet, function, scope).walk(node.child_by_field_name("body"))

    def _include(self, one: CFile) -> None:
        """A header that says netmem_ref for the first time needs the kernel's."""
        if b"netmem.h" in one.text or b"page_pool/" in one.text or not one.path.endswith(".h"):
            return
        at = one.text.rfind(b"#include")
        if at >= 0:
            end = one.text.find(b"\n", at) + 1
            self.sheet.path = one.path
            self.sheet.edit(end, end, "#include <net/netmem.h>\n")
