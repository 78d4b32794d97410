"""C source as the rules need it: functions, structures, macros, and bodies lowered to nodes.

tree-sitter parses each file by itself: no headers, no kernel configuration. Both branches of #ifdef are
read, `#if 0` and comments are not. ``nodes`` says what bodies are made of.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import Any

import tree_sitter
import tree_sitter_c

from netmem.contract.lint import configs
from netmem.contract.lint.cfg import Graph, graph_of
from netmem.contract.lint.lowering import Lowering, declared, node_text, spaced, types_of
from netmem.contract.lint.nodes import Expr, Stmt

WORD = re.compile(rb"[A-Za-z_]\w*")
FIELD = re.compile(rb"(?:->|\.)\s*([A-Za-z_]\w*)")
CALLED = re.compile(rb"([A-Za-z_]\w*)\s*\(")


@functools.cache
def _parser() -> tree_sitter.Parser:
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_c.language()))


@dataclass(eq=False)
class Function:
    """A function, or a macro with parameters. ``words``: all it names; ``called``: what stands before a
    parenthesis, ``fields``: after a dot or arrow. ``body`` is lowered when first asked for."""

    name: str
    path: str
    line: int
    end: int
    params: list[tuple[str, str]]  # (type, name)
    returns: str
    static: bool
    words: frozenset[bytes]
    called: frozenset[bytes] = frozenset()
    fields: frozenset[bytes] = frozenset()
    node: Any = None
    source: bytes = b""
    macro: bool = False
    _body: list[Stmt] | None = None
    _graph: Graph | None = None
    _types: dict[str, str] | None = None

    @property
    def body(self) -> list[Stmt]:
        if self._body is None:
            self._body = Lowering(self.source).block(self.node) if self.node is not None else []
            self.node = None
        return self._body

    @property
    def graph(self) -> Graph:
        """Its control flow."""
        if self._graph is None:
            self._graph = graph_of(self.body)
        return self._graph

    @property
    def types(self) -> dict[str, str]:
        """Types of its locals, by name."""
        if self._types is None:
            self._types = types_of(self.body)
        return self._types


@dataclass(eq=False)
class CFile:
    """What one file defines. ``structs``: tag -> {field: type}; ``macros``: name -> text without "
    "parameters."""

    path: str
    text: bytes
    functions: list[Function] = field(default_factory=list)
    structs: dict[str, dict[str, str]] = field(default_factory=dict)
    embedded: dict[str, list[tuple[str, str]]] = field(
        default_factory=dict
    )  # struct -> by-value struct fields
    unions: dict[str, list[set[str]]] = field(default_factory=dict)  # struct -> fields that share a place
    macros: dict[str, str] = field(default_factory=dict)
    typedefs: dict[str, str] = field(default_factory=dict)
    globals: list[tuple[str, str, Expr, int]] = field(default_factory=list)  # type, name, initialiser, line
    dead: list[tuple[int, int]] = field(default_factory=list)  # lines of #if 0

    @functools.cached_property
    def lines(self) -> list[str]:
        return self.text.decode("utf-8", "replace").splitlines()


_DEFINE = re.compile(rb"^[ \t]*#[ \t]*define[ \t]+([A-Za-z_]\w*)[ \t]+([^\n\\]+)$", re.MULTILINE)
_IF0 = re.compile(rb"^[ \t]*#[ \t]*(if|ifdef|ifndef|else|elif|endif)\b[ \t]*([^\n]*)", re.MULTILINE)


def _blank_dead(text: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """Blank what stands under `#if 0`, lines kept; and which lines those are."""
    if b"if 0" not in text:
        return text, []
    out, dead, start, depth = bytearray(text), [], -1, 0
    for match in _IF0.finditer(text):
        word, rest = match[1], match[2].split(b"/*")[0].strip()
        if start < 0:
            if word == b"if" and rest in (b"0", b"(0)"):
                start, depth = match.end(), 1
            continue
        if word.startswith(b"if"):
            depth += 1
        elif word == b"endif":
            depth -= 1
        if depth == 0 or (depth == 1 and word in (b"else", b"elif")):
            for i in range(start, match.start()):
                if out[i] not in (10, 13):
                    out[i] = 32
            dead.append((text.count(b"\n", 0, start) + 1, text.count(b"\n", 0, match.start()) + 1))
            start = -1
    return bytes(out), dead


_TAGLESS = re.compile(
    rb"\b(__always_inline|__maybe_unused|__must_check|__cold|__hot|__init|__exit|noinline|__malloc|__used|"
    rb"noinline_for_stack|INDIRECT_CALLABLE_SCOPE|__net_init|__net_exit|__bpf_kfunc|__iomem|__rcu|__percpu|"
    rb"____cacheline_aligned_in_smp|____cacheline_aligned|__packed|__user|__force|__read_mostly|fallthrough|"
    rb"____cacheline_internodealigned_in_smp|__aligned\(\w+\)|__counted_by\(\w+\)|"
    rb"__cacheline_group_(?:begin|end)(?:_aligned)?\(\w+\);?|DECLARE_FLEX_ARRAY\([^;]*\);|"
    rb"\bu64_stats_t\b)"
)


def _plain(text: bytes) -> bytes:
    """Words that only the kernel's compiler knows become spaces: they would confuse the parser."""

    def blank(match: re.Match[bytes]) -> bytes:
        return match[0] if match[0] == b"u64_stats_t" else b" " * len(match[0])

    return _grouped(_TAGLESS.sub(blank, text))


_GROUP = re.compile(rb"\bstruct_group(_tagged|_attr)?\(\s*(\w+)\s*,(?:\s*\w*\s*,)?")


def _grouped(text: bytes) -> bytes:
    """struct_group() and its like become the structures that they stand for, of the same length."""
    if b"struct_group" not in text:
        return text
    out = bytearray(text)
    for match in _GROUP.finditer(text):
        kind, end = match[1], match.end()
        if kind is None and text[match.end(2) : end].strip() != b",":
            end = text.index(b",", match.end(2)) + 1  # a name alone: the next word is a member's type
        depth, at = 1, end
        while at < len(text) and depth:
            depth += (text[at] == 40) - (text[at] == 41)
            at += 1
        if depth:
            continue
        head = b"struct " + (match[2] if kind == b"_tagged" else b"") + b" {"
        for n in range(match.start(), end):
            if out[n] not in (10, 13):
                out[n] = 32
        out[match.start() : match.start() + len(head)] = head
        out[at - 1] = 125
    return bytes(out)


def expression(node: Any, source: bytes) -> Expr:
    """One expression, lowered."""
    return Lowering(source).expr(node, 0)


def parsed(source: bytes) -> Any:
    """The syntax of what ``prepared`` has made."""
    return _parser().parse(source)


def prepared(text: bytes) -> bytes:
    """What is given to the parser: the same length, without dead code and words it does not know."""
    return _plain(_blank_dead(text)[0])


def read(path: str, text: bytes, taken: bool = True) -> CFile:
    """Parse one file. ``taken``: which way of an #if in the middle of an expression is read."""
    live, dead = _blank_dead(configs.chosen(text, taken))
    source = _plain(live)
    made = CFile(path, text, dead=dead)
    tree = _parser().parse(source)
    _Top(made, source).visit(tree.root_node, 0)
    if b"define" in source:
        for name, value in _DEFINE.findall(source):  # inside functions, too
            made.macros.setdefault(name.decode(), value.decode("utf-8", "replace").strip())
    return made


class _Top:
    """Collects what a file defines at its top level."""

    def __init__(self, made: CFile, source: bytes) -> None:
        self.made, self.source = made, source

    def visit(self, node: Any, depth: int) -> None:
        if depth > 60:
            return
        for child in node.named_children:
            kind = child.type
            if kind == "function_definition":
                self._function(child)
            elif kind == "declaration":
                self._declaration(child)
            elif kind in ("struct_specifier", "union_specifier"):
                self._struct(child, "")
            elif kind == "type_definition":
                self._typedef(child)
            elif kind == "enum_specifier":
                self._enum(child)
            elif kind == "preproc_function_def":
                self._macro(child)
            elif kind == "preproc_def":
                value = child.child_by_field_name("value")
                if value is not None:
                    text = node_text(value, self.source).replace("\\\n", " ")
                    self.made.macros[node_text(child.child_by_field_name("name"), self.source)] = text
            elif kind.startswith("preproc_") or kind in (
                "ERROR",
                "linkage_specification",
                "declaration_list",
            ):
                self.visit(child, depth + 1)

    def _function(self, node: Any) -> None:
        declarator = node.child_by_field_name("declarator")
        stars = 0
        while declarator is not None and declarator.type in (
            "pointer_declarator",
            "parenthesized_declarator",
        ):
            stars += declarator.type == "pointer_declarator"
            declarator = declarator.child_by_field_name("declarator")
        body = node.child_by_field_name("body")
        if declarator is None or declarator.type != "function_declarator" or body is None:
            return
        name = declarator.child_by_field_name("declarator")
        if name is None:
            return
        type_ = node.child_by_field_name("type")
        text = self.source[node.start_byte : node.end_byte]
        head = text[: body.start_byte - node.start_byte]
        self.made.functions.append(
            Function(
                node_text(name, self.source), self.made.path, node.start_point[0] + 1, node.end_point[0] + 1,
                self._params(declarator.child_by_field_name("parameters")),
                (spaced(node_text(type_, self.source)) if type_ is not None else "") + " *" * stars,
                b"static" in head, frozenset(WORD.findall(text)),
                frozenset(CALLED.findall(text, body.start_byte - node.start_byte)),
                frozenset(FIELD.findall(text)), body, self.source,
            )
        )  # fmt: skip

    def _params(self, node: Any) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for child in node.named_children if node is not None else ():
            if child.type == "parameter_declaration":
                type_ = child.child_by_field_name("type")
                name, suffix = declared(child.child_by_field_name("declarator"), self.source)
                found.append(
                    (spaced(node_text(type_, self.source)) + suffix if type_ is not None else "", name)
                )
        return found

    def _macro(self, node: Any) -> None:
        """A macro with parameters is read as a function whose body is its text."""
        value, params = node.child_by_field_name("value"), node.child_by_field_name("parameters")
        if value is None:
            return
        name = node_text(node.child_by_field_name("name"), self.source)
        text = node_text(value, self.source).replace("\\\n", " ").strip()
        names = [("", node_text(one, self.source)) for one in params.named_children]
        statement = text.startswith(("do", "{", "if", "for", "while")) or text.endswith(";")
        code = f"void m(void) {{ {text if statement else 'return ' + text} ; }}".encode()
        body = next(
            (c.child_by_field_name("body") for c in _parser().parse(code).root_node.named_children
             if c.type == "function_definition"), None,
        )  # fmt: skip
        line = node.start_point[0] + 1
        if body is not None and name != text.partition("(")[0]:
            words, called, dotted = (frozenset(one.findall(code)) for one in (WORD, CALLED, FIELD))
            self.made.functions.append(
                Function(name, self.made.path, line, line, names, "", True, words, called, dotted, body, code)
            )
            self.made.functions[-1].macro = True

    def _enum(self, node: Any) -> None:
        """Enumerators with a value are names for it, as macros are."""
        body = node.child_by_field_name("body")
        for child in body.named_children if body is not None else ():
            value = child.child_by_field_name("value") if child.type == "enumerator" else None
            if value is not None:
                name = node_text(child.child_by_field_name("name"), self.source)
                self.made.macros[name] = node_text(value, self.source)

    def _typedef(self, node: Any) -> None:
        type_ = node.child_by_field_name("type")
        name, suffix = declared(node.child_by_field_name("declarator"), self.source)
        if type_ is None or not name:
            return
        if type_.type in ("struct_specifier", "union_specifier"):
            self.made.typedefs[name] = self._struct(type_, name) + suffix
        else:
            self.made.typedefs[name] = spaced(node_text(type_, self.source)) + suffix

    def _struct(self, node: Any, fallback: str) -> str:
        """Note a structure's fields; its type, as in a declaration."""
        name, body = node.child_by_field_name("name"), node.child_by_field_name("body")
        tag = node_text(name, self.source) if name is not None else fallback
        if body is not None and tag:
            fields = self.made.structs.setdefault(tag, {})
            self._fields(body, tag, fields)
            if node.type == "union_specifier":
                self.made.unions.setdefault(tag, []).append(set(fields))
        return f"struct {tag}"

    def _fields(self, body: Any, tag: str, fields: dict[str, str]) -> None:
        for child in body.named_children:
            if child.type == "preproc_function_def":
                self._macro(child)
            elif child.type.startswith("preproc_") or child.type == "ERROR":
                self._fields(child, tag, fields)
            if child.type != "field_declaration":
                continue
            type_ = child.child_by_field_name("type")
            if type_ is None:
                continue
            declarators = child.children_by_field_name("declarator")
            if type_.type in ("struct_specifier", "union_specifier"):
                inner = type_.child_by_field_name("body")
                if inner is not None and not declarators:
                    before = set(fields)
                    self._fields(inner, tag, fields)  # anonymous: its fields are ours
                    if type_.type == "union_specifier":
                        self.made.unions.setdefault(tag, []).append(fields.keys() - before)
                    if type_.child_by_field_name("name") is not None:
                        self._struct(type_, "")
                    continue
                name = declared(declarators[0], self.source)[0] if declarators else ""
                text = self._struct(type_, f"{tag}.{name}")
            else:
                text = spaced(node_text(type_, self.source))
            for one in declarators:
                name, suffix = declared(one, self.source)
                if name:
                    fields[name] = text + suffix
                    if text.startswith("struct ") and suffix in ("", "[]"):
                        self.made.embedded.setdefault(tag, []).append((name, text[7:]))

    def _declaration(self, node: Any) -> None:
        type_ = node.child_by_field_name("type")
        if type_ is None:
            return
        if type_.type in ("struct_specifier", "union_specifier"):
            self._struct(type_, "")
        for one in node.children_by_field_name("declarator"):
            if one.type == "init_declarator":
                name, suffix = declared(one.child_by_field_name("declarator"), self.source)
                value = one.child_by_field_name("value")
                if value is not None and name:
                    expr = Lowering(self.source).expr(value, 0)
                    text = spaced(node_text(type_, self.source)) + suffix
                    self.made.globals.append((text, name, expr, one.start_point[0] + 1))
