"""C syntax lowered to small tuples, which rules match on.

Expressions are tuples whose first item is the kind:

    ("id", name, line)                ("num", text)               ("str",)
    ("field", base, name, line)       ("index", base, index)      ("deref", e)      ("addr", e)
    ("call", function, [args], line)  ("assign", op, left, right, line)
    ("un", op, e)   ("bin", op, l, r)   ("cond", c, a, b)   ("init", [(designator, e)])   ("seq", [e])

Statements: ("expr", e), ("decl", type, name, init or None, line), ("if", cond, [then], [else], line),
("loop", cond or None, [body], line), ("switch", e, [(labels or None, [body])], line), ("return", e or None,
line),
("jump", line), ("label",), ("block", [...]).
"""

from __future__ import annotations

import re
from typing import Any

Expr = tuple[Any, ...]
Stmt = tuple[Any, ...]
MAX_DEPTH = 400  # nested deeper than this an expression is not looked at


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
    """Turns syntax into the tuples described above."""

    def __init__(self, source: bytes) -> None:
        self.source = source

    def block(self, node: Any, depth: int = 0) -> list[Stmt]:
        out: list[Stmt] = []
        for child in node.named_children:
            self.stmt(child, out, depth + 1)
        return out

    def body(self, node: Any, depth: int) -> list[Stmt]:
        out: list[Stmt] = []
        if node is not None:
            self.stmt(node, out, depth)
        return out

    def stmt(self, node: Any, out: list[Stmt], depth: int) -> None:
        if depth > MAX_DEPTH:
            return
        kind, line = node.type, node.start_point[0] + 1
        if kind == "expression_statement":
            for child in node.named_children:
                out.append(("expr", self.expr(child, depth)))
        elif kind == "declaration":
            self._decl(node, out, depth)
        elif kind == "compound_statement":
            out.append(("block", self.block(node, depth)))
        elif kind == "if_statement":
            other = node.child_by_field_name("alternative")
            if other is not None and other.type == "else_clause":
                other = other.named_children[0] if other.named_children else None
            cond = self.expr(node.child_by_field_name("condition"), depth)
            then = self.body(node.child_by_field_name("consequence"), depth + 1)
            out.append(("if", cond, then, self.body(other, depth + 1), line))
        elif kind in ("while_statement", "do_statement", "for_statement"):
            self._loop(node, kind, out, depth)
        elif kind == "switch_statement":
            self._switch(node, out, depth)
        elif kind == "return_statement":
            value = node.named_children[0] if node.named_children else None
            out.append(("return", self.expr(value, depth) if value is not None else None, line))
        elif kind in ("goto_statement", "break_statement", "continue_statement"):
            out.append(("jump", kind, line))
        elif kind == "labeled_statement":
            out.append(("label",))
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
        elif kind.endswith("_expression") or kind in ("identifier", "call_expression"):
            out.append(("expr", self.expr(node, depth)))

    def _either(self, node: Any, out: list[Stmt], depth: int) -> None:
        """#if: nobody knows which branch it is."""
        skip = [node.child_by_field_name(name) for name in ("condition", "name", "alternative")]
        starts = {one.start_byte for one in skip if one is not None}
        then: list[Stmt] = []
        for child in node.named_children:
            if child.start_byte not in starts:
                self.stmt(child, then, depth + 1)
        out.append(("if", ("num", "?"), then, self.body(skip[2], depth + 1), node.start_point[0] + 1))

    def _decl(self, node: Any, out: list[Stmt], depth: int) -> None:
        type_ = node.child_by_field_name("type")
        text = spaced(node_text(type_, self.source)) if type_ is not None else ""
        text = text.partition("{")[0].strip()
        for one in node.children_by_field_name("declarator"):
            value = one.child_by_field_name("value") if one.type == "init_declarator" else None
            inner = one.child_by_field_name("declarator") if one.type == "init_declarator" else one
            name, suffix = declared(inner, self.source)
            if name:
                init = self.expr(value, depth) if value is not None else None
                out.append(("decl", text + suffix, name, init, one.start_point[0] + 1))

    def _loop(self, node: Any, kind: str, out: list[Stmt], depth: int) -> None:
        line = node.start_point[0] + 1
        first = node.child_by_field_name("initializer")
        if first is not None:
            self.stmt(first, out, depth) if first.type == "declaration" else out.append(
                ("expr", self.expr(first, depth))
            )
        cond = node.child_by_field_name("condition")
        body = self.body(node.child_by_field_name("body"), depth + 1)
        step = node.child_by_field_name("update")
        if step is not None:
            body.append(("expr", self.expr(step, depth)))
        condition = self.expr(cond, depth) if cond is not None and kind != "do_statement" else None
        out.append(("loop", condition, body, line))

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
        out.append(("switch", cond, cases, node.start_point[0] + 1))

    def expr(self, node: Any, depth: int) -> Expr:
        if node is None or depth > MAX_DEPTH:
            return ("num", "?")
        kind = node.type
        d = depth + 1
        if kind in ("identifier", "field_identifier", "type_identifier"):
            return ("id", node_text(node, self.source), node.start_point[0] + 1)
        if kind in ("number_literal", "char_literal", "true", "false", "null"):
            return ("num", node_text(node, self.source))
        if kind in ("parenthesized_expression", "condition_clause", "else_clause"):
            inner = [c for c in node.named_children if c.type != "comment"]
            if len(inner) == 1:
                if inner[0].type == "compound_statement":  # a statement expression: its last value
                    return ("block", self.block(inner[0], d))
                return self.expr(inner[0], d)
            return ("seq", [self.expr(c, d) for c in inner])
        if kind == "call_expression":
            args = node.child_by_field_name("arguments")
            given = (
                [self.expr(c, d) for c in args.named_children if c.type != "comment"]
                if args is not None
                else []
            )
            return (
                "call",
                self.expr(node.child_by_field_name("function"), d),
                given,
                node.start_point[0] + 1,
            )
        if kind == "initializer_list":
            return ("init", [self._initialiser(c, d) for c in node.named_children if c.type != "comment"])
        if kind in ("string_literal", "concatenated_string", "sizeof_expression"):
            return ("str",)
        if kind == "compound_statement":
            return ("block", self.block(node, d))
        made = self._operation(node, kind, d)
        if made is not None:
            return made
        return ("seq", [self.expr(c, d) for c in node.named_children if c.type != "comment"])

    def _operation(self, node: Any, kind: str, d: int) -> Expr | None:
        """What has operands: fields, elements, pointers, operators; None for anything else."""
        if kind == "field_expression":
            name = node.child_by_field_name("field")
            return (
                "field", self.expr(node.child_by_field_name("argument"), d), node_text(name, self.source),
                node.start_point[0] + 1,
            )  # fmt: skip
        if kind == "subscript_expression":
            return (
                "index", self.expr(node.child_by_field_name("argument"), d),
                self.expr(node.child_by_field_name("index"), d),
            )  # fmt: skip
        if kind == "pointer_expression":
            what = "addr" if _operator(node, self.source) == "&" else "deref"
            return (what, self.expr(node.child_by_field_name("argument"), d))
        if kind == "assignment_expression":
            return (
                "assign", _operator(node, self.source), self.expr(node.child_by_field_name("left"), d),
                self.expr(node.child_by_field_name("right"), d), node.start_point[0] + 1,
            )  # fmt: skip
        if kind == "binary_expression":
            return (
                "bin", _operator(node, self.source), self.expr(node.child_by_field_name("left"), d),
                self.expr(node.child_by_field_name("right"), d),
            )  # fmt: skip
        if kind in ("unary_expression", "update_expression"):
            return ("un", _operator(node, self.source), self.expr(node.child_by_field_name("argument"), d))
        if kind in ("cast_expression", "compound_literal_expression"):
            return self.expr(node.child_by_field_name("value"), d)
        if kind == "conditional_expression":
            first = node.child_by_field_name("condition")
            then = node.child_by_field_name("consequence")
            cond = self.expr(first, d)
            middle = self.expr(then, d) if then is not None else cond
            return ("cond", cond, middle, self.expr(node.child_by_field_name("alternative"), d))
        return None

    def _initialiser(self, node: Any, depth: int) -> tuple[str, Expr]:
        if node.type != "initializer_pair":
            return "", self.expr(node, depth)
        names = [node_text(c, self.source).strip(".[] ") for c in node.children_by_field_name("designator")]
        return ".".join(names), self.expr(node.child_by_field_name("value"), depth)


def _operator(node: Any, source: bytes) -> str:
    operator = node.child_by_field_name("operator")
    return node_text(operator, source) if operator is not None else ""


def callee(e: Expr) -> Expr:
    """What a call calls, without what stands around it."""
    while e[0] in ("deref", "seq") and e[1]:
        e = e[1][-1] if e[0] == "seq" else e[1]
    return e


def types_of(stmts: list[Stmt]) -> dict[str, str]:
    """Types of all locals that statements declare, by name."""
    types: dict[str, str] = {}
    for stmt in stmts:
        if stmt[0] == "decl":
            types[stmt[2]] = stmt[1]
        for part in stmt[1:]:
            for inner in part if isinstance(part, list) else ():
                if isinstance(inner, tuple) and inner and isinstance(inner[0], str):
                    types |= types_of([inner])
                elif isinstance(inner, tuple) and len(inner) == 2 and isinstance(inner[1], list):
                    types |= types_of(inner[1])
    return types
