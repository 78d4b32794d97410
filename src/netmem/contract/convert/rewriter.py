"""Types of what holds payload: declarations of structures, functions and locals, file by file."""

from __future__ import annotations

import os
import re
from typing import Any, NoReturn

from netmem.contract.convert.edits import Refused
from netmem.contract.convert.holders import level
from netmem.contract.convert.sheet import Sheet
from netmem.contract.convert.uses import Uses
from netmem.contract.lint import csource
from netmem.contract.lint.csource import CFile, Function
from netmem.contract.lint.nodes import Declare, walk
from netmem.contract.lint.places import Scope

COMMENTS = re.compile(rb'/\*.*?\*/|//[^\n]*|"(?:[^"\\\n]|\\.)*"', re.DOTALL)
DEFINES = re.compile(rb"^[ \t]*#[ \t]*define[ \t]+(\w+)(\([^)]*\))?((?:[^\n\\]|\\.|\\\n)*)", re.MULTILINE)
WORDS = re.compile(rb"\w+")
HAS_NETMEM = re.compile(rb"#\s*include\s*<net/(?:netmem\.h|page_pool/)")
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
            root = csource.parsed(self.sheet.source).root_node
            self._top(root)
            self._refuse_unseen(root)
            if self.sheet.edits.by_path.get(one.path):
                self._include(one, root)

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

    def _refuse_unseen(self, root: Any) -> None:
        """A field with payload may be named where nobody looked: in macros, and what was not understood."""
        names = b"|".join(sorted(re.escape(name.encode()) for name in self.holders.names))
        if not names:
            return
        text = COMMENTS.sub(lambda m: b" " * len(m[0]), self.sheet.source)
        typed = re.search(rb"\btypeof\w*\s*\([^;)]*(?:->|\.)\s*(?:%s)\b" % names, text)
        if typed is not None:
            self._unseen(typed.start(), "a type is taken from payload by typeof()")
        for match in re.finditer(rb"(?:->|\.)\s*(%s)\b" % names, text):
            if (self.sheet.path, match.start(1)) in self.sheet.looked_at:
                continue
            inside = root.named_descendant_for_byte_range(match.start(1), match.end(1))
            while inside.parent is not None and inside.parent.id != root.id and inside.type != "declaration":
                inside = inside.parent
            type_ = inside.child_by_field_name("type") if inside.type == "declaration" else None
            tag = self.world.tag(self.sheet.text(type_)) if type_ is not None else ""
            if tag and not any(tag == owner for owner, _ in self.holders.cells):
                continue  # a table of something else
            self._unseen(match.start(), f"{match[1].decode()} is named where the converter does not look")

    def _unseen(self, offset: int, why: str) -> NoReturn:
        line = self.sheet.source.count(b"\n", 0, offset) + 1
        raise Refused(f"{os.path.relpath(self.sheet.path, self.sheet.base)}:{line}: {why}")

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
                for one in child.children_by_field_name("declarator"):
                    if one.type == "init_declarator":
                        self._refuse_pointers(one.child_by_field_name("value"))
            elif child.type.startswith("preproc_") or child.type in ("ERROR", "declaration_list"):
                self._top(child)

    def _refuse_pointers(self, value: Any) -> None:
        """A table must not have functions that get other types."""
        todo = [value]
        while todo:
            one = todo.pop()
            todo += one.named_children
            target = (
                self.world.function(self.sheet.text(one), self.sheet.path)
                if one.type == "identifier"
                else None
            )
            if target is not None and not target.macro and self.sheet.changes(target):
                raise Refused(f"{self.sheet.where(one)}: {target.name}() handles payload through a pointer")

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

    def _signature(self, node: Any, declarator: Any, function: Function) -> None:
        """Result and parameters of a definition or prototype."""
        type_ = node.child_by_field_name("type")
        key = function.path, function.name
        stars = 0
        while declarator is not None and declarator.type == "pointer_declarator":
            if (*key, "") in self.holders.locals and self.sheet.is_page(type_) and not stars:
                self.sheet.put(type_, "netmem_ref")
                start, end = declarator.start_byte, declarator.start_byte + 1
                if self.sheet.source[end : end + 1].isspace():  # the name stands apart from its star
                    start = type_.end_byte
                gap = "" if self.sheet.source[type_.end_byte : declarator.start_byte] else " "
                self.sheet.edit(start, end, gap)
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
                    self._signature(node, one, function)

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
        self._refuse_twice_declared(function)
        scope = Scope(function)
        scope.types.update(function.types)
        self._signature(node, node.child_by_field_name("declarator"), function)
        Uses(self.sheet, function, scope).walk(node.child_by_field_name("body"))

    def _refuse_twice_declared(self, function: Function) -> None:
        """One name must not be payload here and something else there, nor be used by a macro. Refused."""
        types: dict[str, set[str]] = {name: {type_} for type_, name in function.params}
        for one in walk(function.body):
            if isinstance(one, Declare):
                types.setdefault(one.name, set()).add(one.type)
        where = f"{os.path.relpath(function.path, self.sheet.base)}:{function.line}"
        macros = [one for one in DEFINES.finditer(self.sheet.source) if one[1] in function.words]
        for path, of, name in self.holders.locals:
            if (path, of) != (function.path, function.name):
                continue
            if len(types.get(name, ())) > 1:
                raise Refused(f"{where}: {name} is payload in one part of {of}(), and not in another")
            for macro in macros:
                own, body = (set(WORDS.findall(macro[n] or b"")) for n in (2, 3))
                if name.encode() in body - own:
                    raise Refused(f"{where}: the macro {macro[1].decode()} names {name}, which holds payload")

    def _include(self, one: CFile, root: Any) -> None:
        """A header that says netmem_ref for the first time needs the kernel's."""
        if HAS_NETMEM.search(one.text) or not one.path.endswith(".h"):
            return
        guarded = [child for child in root.named_children if child.type == "preproc_ifdef"]
        top = guarded[0] if len(guarded) == 1 else root
        found = [
            child for child in (*root.named_children, *top.named_children) if child.type == "preproc_include"
        ]
        if found:
            self.sheet.path, end = one.path, max(child.end_byte for child in found)
            self.sheet.edit(end, end, "#include <net/netmem.h>\n")
