"""C syntax lowered to the typed nodes of ``nodes``."""

from __future__ import annotations

import re
from typing import Any

from netmem.contract.lint import nodes
from netmem.contract.lint.nodes import Expr, Stmt

MAX_DEPTH = 400  # nested deeper than this an expression is not looked at
_LITERALS = ("number_literal", "char_literal", "true", "false", "null")
_NAMES = ("identifier", "field_identifier", "type_identifier")


def node_text(node: Any, source: bytes) -> str:
    return source[node.start_byte : node.end_byte].decode("utf-8", "replace")


def spaced(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def declared(node: Any, source: bytes) -> tuple[str, str]:
    """(name, suffix) of a declarator: suffix is `` *`` for each pointer and ``[]`` for each array."""
    suffix = ""
    for _ in range(20):
        if node is None:
            return "", suffix
        kind = node.type
        if kind in ("identifier", "field_identifier", "type_identifier"):
            return node_text(node, source), suffix
        if kind in ("pointer_declarator", "abstract_pointer_declarator"):
            suffix += " *"
        elif kind in ("array_declarator", "abstract_array_declarator"):
            suffix += "[]"
        elif kind in ("function_declarator", "abstract_function_declarator"):
            suffix += "()"
        following = node.child_by_field_name("declarator")
        if following is None:
            following = next(
                (c for c in node.named_children if c.type.endswith(("declarator", "identifier"))), None
            )
        node = following
    return "", suffix


class Lowering:
    """Turns syntax into nodes."""

    def __init__(self, source: bytes) -> None:
        self.source = source

    # -- statements ----------------------------------------------------------------------------

    def block(self, node: Any, depth: int = 0) -> list[Stmt]:
        """The statements in braces."""
        out: list[Stmt] = []
        for child in node.named_children:
            self.stmt(child, out, depth + 1)
        return out

    def body(self, node: Any, depth: int) -> list[Stmt]:
        """A statement that stands alone, or in braces, or is missing."""
        out: list[Stmt] = []
        if node is not None:
            self.stmt(node, out, depth)
        return out

    def stmt(self, node: Any, out: list[Stmt], depth: int) -> None:
        """Add a statement to ``out``; some syntax is several."""
        if depth > MAX_DEPTH:
            return
        kind, line = node.type, node.start_point[0] + 1
        if kind == "expression_statement":
            for child in node.named_children:
                out.append(nodes.Do(line, self.expr(child, depth)))
        elif kind == "declaration":
            self._declaration(node, out, depth)
        elif kind == "compound_statement":
            out.append(nodes.Compound(line, self.block(node, depth)))
        elif kind == "if_statement":
            other = node.child_by_field_name("alternative")
            if other is not None and other.type == "else_clause":
                other = next((c for c in other.named_children if c.type != "comment"), None)
            cond = self.expr(node.child_by_field_name("condition"), depth)
            then = self.body(node.child_by_field_name("consequence"), depth + 1)
            out.append(nodes.If(line, cond, then, self.body(other, depth + 1)))
        elif kind in ("while_statement", "do_statement", "for_statement"):
            self._loop(node, kind, out, depth)
        elif kind == "switch_statement":
            self._switch(node, out, depth)
        elif kind == "return_statement":
            value = next((c for c in node.named_children if c.type != "comment"), None)
            out.append(nodes.Return(line, self.expr(value, depth) if value is not None else None))
        elif kind in ("break_statement", "continue_statement"):
            out.append(nodes.Leave(line, kind[:-10]))
        elif kind == "goto_statement":
            label = node.child_by_field_name("label")
            out.append(nodes.Goto(line, node_text(label, self.source) if label is not None else ""))
        elif kind == "labeled_statement":
            label = node.child_by_field_name("label")
            out.append(nodes.Label(line, node_text(label, self.source) if label is not None else ""))
            for child in node.named_children[1:]:
                self.stmt(child, out, depth + 1)
        elif kind == "comment" or kind.startswith("preproc_def"):
            return
        elif kind in ("preproc_if", "preproc_ifdef", "preproc_elif"):
            self._either(node, out, depth)
        elif kind.startswith("preproc_") or kind in ("ERROR", "case_statement"):
            for child in node.named_children:
                if kind.startswith("preproc_") and child.type in (
                    "identifier",
                    "preproc_defined",
                    "number_literal",
                ):
                    continue
                self.stmt(child, out, depth + 1)
        elif kind.endswith("_expression") or kind == "identifier":
            out.append(nodes.Do(line, self.expr(node, depth)))

    def _either(self, node: Any, out: list[Stmt], depth: int) -> None:
        """#if: nobody knows which branch it is."""
        skip = [node.child_by_field_name(name) for name in ("condition", "name", "alternative")]
        starts = {one.start_byte for one in skip if one is not None}
        then: list[Stmt] = []
        for child in node.named_children:
            if child.start_byte not in starts:
                self.stmt(child, then, depth + 1)
        line = node.start_point[0] + 1
        cond = nodes.Config(line, configuration(node, self.source))
        out.append(nodes.If(line, cond, then, self.body(skip[2], depth + 1)))

    def _declaration(self, node: Any, out: list[Stmt], depth: int) -> None:
        type_ = node.child_by_field_name("type")
        text = spaced(node_text(type_, self.source)) if type_ is not None else ""
        text = text.partition("{")[0].strip()
        for one in node.children_by_field_name("declarator"):
            value = one.child_by_field_name("value") if one.type == "init_declarator" else None
            inner = one.child_by_field_name("declarator") if one.type == "init_declarator" else one
            name, suffix = declared(inner, self.source)
            if name:
                init = self.expr(value, depth) if value is not None else None
                out.append(nodes.Declare(one.start_point[0] + 1, text + suffix, name, init))

    def _loop(self, node: Any, kind: str, out: list[Stmt], depth: int) -> None:
        line = node.start_point[0] + 1
        first = node.child_by_field_name("initializer")
        if first is not None and first.type == "declaration":
            self.stmt(first, out, depth)
        elif first is not None:
            out.append(nodes.Do(line, self.expr(first, depth)))
        cond = node.child_by_field_name("condition")
        step = node.child_by_field_name("update")
        out.append(
            nodes.Loop(
                line, self.expr(cond, depth) if cond is not None else None,
                self.body(node.child_by_field_name("body"), depth + 1),
                self.expr(step, depth) if step is not None else None, kind == "do_statement",
            )
        )  # fmt: skip

    def _switch(self, node: Any, out: list[Stmt], depth: int) -> None:
        cases: list[tuple[list[Expr] | None, list[Stmt]]] = []
        body = node.child_by_field_name("body")
        for child in body.named_children if body is not None else ():
            if child.type != "case_statement":
                continue
            value = child.child_by_field_name("value")
            stmts: list[Stmt] = []
            for one in child.named_children:
                if value is None or one.start_byte != value.start_byte:
                    self.stmt(one, stmts, depth + 1)
            label = [self.expr(value, depth)] if value is not None else None
            if cases and not cases[-1][1]:  # case A: case B: share a body
                before = cases.pop()[0]
                label = None if label is None or before is None else before + label
            cases.append((label, stmts))
        cond = self.expr(node.child_by_field_name("condition"), depth)
        out.append(nodes.Switch(node.start_point[0] + 1, cond, cases))

    # -- expressions -----------------------------------------------------------------------------

    def expr(self, node: Any, depth: int) -> Expr:
        """An expression; the number "?" for what is missing or too deep."""
        if node is None or depth > MAX_DEPTH:
            return nodes.Num(0, "?")
        kind, line = node.type, node.start_point[0] + 1
        d = depth + 1
        if kind in _NAMES:
            return nodes.Id(line, node_text(node, self.source))
        if kind in _LITERALS:
            return nodes.Num(line, node_text(node, self.source))
        if kind in ("parenthesized_expression", "condition_clause", "else_clause"):
            inner = [c for c in node.named_children if c.type != "comment"]
            if len(inner) == 1:
                if inner[0].type == "compound_statement":
                    return nodes.Inner(line, self.block(inner[0], d))
                return self.expr(inner[0], d)
            return nodes.Other(line, [self.expr(c, d) for c in inner])
        if kind == "call_expression":
            args = node.child_by_field_name("arguments")
            given = (
                [self.expr(c, d) for c in args.named_children if c.type != "comment"]
                if args is not None
                else []
            )
            return nodes.Call(line, self.expr(node.child_by_field_name("function"), d), given)
        if kind == "initializer_list":
            return self._initialiser(node, d)
        if kind in ("string_literal", "concatenated_string", "sizeof_expression"):
            return nodes.Text(line)
        if kind == "compound_statement":
            return nodes.Inner(line, self.block(node, d))
        return self._operation(node, kind, line, d) or nodes.Other(
            line, [self.expr(c, d) for c in node.named_children if c.type != "comment"]
        )

    def _operation(self, node: Any, kind: str, line: int, d: int) -> Expr | None:
        """What has operands: fields, elements, pointers, operators; None for anything else."""

        def part(name: str) -> Expr:
            return self.expr(node.child_by_field_name(name), d)

        if kind == "field_expression":
            name = node_text(node.child_by_field_name("field"), self.source)
            return nodes.Field(line, part("argument"), name)
        if kind == "subscript_expression":
            return nodes.Index(line, part("argument"), part("index"))
        if kind == "pointer_expression":
            of = part("argument")
            return nodes.Addr(line, of) if _operator(node, self.source) == "&" else nodes.Deref(line, of)
        if kind == "assignment_expression":
            return nodes.Assign(line, _operator(node, self.source), part("left"), part("right"))
        if kind == "binary_expression":
            return nodes.Binary(line, _operator(node, self.source), part("left"), part("right"))
        if kind in ("unary_expression", "update_expression"):
            return nodes.Unary(line, _operator(node, self.source), part("argument"))
        if kind in ("cast_expression", "compound_literal_expression"):
            return part("value")
        if kind == "conditional_expression":
            cond = part("condition")
            then = part("consequence") if node.child_by_field_name("consequence") is not None else cond
            return nodes.Ternary(line, cond, then, part("alternative"))
        return None

    def _initialiser(self, node: Any, depth: int) -> nodes.Init:
        made = nodes.Init(node.start_point[0] + 1, [], [])
        for child in node.named_children:
            if child.type == "comment":
                continue
            name, value = "", child
            if child.type == "initializer_pair":
                said = [
                    node_text(c, self.source).strip(".[] ")
                    for c in child.children_by_field_name("designator")
                ]
                name, value = ".".join(said), child.child_by_field_name("value")
            made.names.append(name)
            made.values.append(self.expr(value, depth))
        return made


def configuration(node: Any, source: bytes) -> str:
    """What an #if, #ifdef or #elif asks for."""
    said = node.child_by_field_name("condition") or node.child_by_field_name("name")
    asked = spaced(node_text(said, source)) if said is not None else "?"
    return f"!{asked}" if node.type == "preproc_ifdef" and node.children[0].type == "#ifndef" else asked


def _operator(node: Any, source: bytes) -> str:
    operator = node.child_by_field_name("operator")
    return node_text(operator, source) if operator is not None else ""


def types_of(stmts: list[Stmt]) -> dict[str, str]:
    """Types of all locals that statements declare, by name."""
    return {one.name: one.type for one in nodes.walk(stmts) if isinstance(one, nodes.Declare)}
