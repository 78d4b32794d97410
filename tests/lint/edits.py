"""Edits of real drivers: described by what they do in which function, so that no line of the kernel is kept here.

An edit is a dictionary: ``id``, ``driver`` (folder or file below drivers/net), ``breaks`` (a requirement, or None),
``hard`` (easy, medium, hard), ``what`` (in words), and ``ops``, done one after the other:

    {"op": "replace_call", "file", "function", "call", "nth": 0, "with": "code; $0, $1, ... are the arguments"}
    {"op": "delete", "file", "function", "mentions", "nth": 0}              the whole statement
    {"op": "insert", "file", "function", "where": "before" or "after", "mentions", "nth": 0, "code"}
    {"op": "statement", "file", "function", "mentions", "nth": 0, "with": "code; $s is the statement"}
    {"op": "condition", "file", "function", "mentions", "nth": 0, "with": "code; $c is the condition"}   of an if
    {"op": "start", "file", "function", "code"}                             after the function's opening brace
    {"op": "add", "file", "before": "function", "code"}                     at the top level, before a function
    {"op": "field", "file", "struct", "code"}                               at the end of a structure
    {"op": "initialiser", "file", "variable", "field", "with": "value, or empty: without it"}
    {"op": "word", "file" (or all), "old", "new"}                           a whole word, everywhere but in strings
    {"op": "move", "file", "function", "before": "function"}                functions in another order

``nth`` counts from 0; the smallest statement that mentions the word (as a whole word) is meant.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tree_sitter
import tree_sitter_c

from netmem.contract.lint import csource

PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_c.language()))
STATEMENTS = (
    "expression_statement", "declaration", "return_statement", "if_statement", "while_statement", "for_statement",
    "switch_statement", "goto_statement", "do_statement", "break_statement", "continue_statement",
)  # fmt: skip


class CannotEdit(Exception):
    """The tree has no such place."""


def apply(edit: dict[str, Any], folder: Path) -> None:
    """Do an edit to a copy of a driver's folder."""
    for op in edit["ops"]:
        files = [folder / op["file"]] if op.get("file") else sorted(folder.rglob("*.[ch]"))
        done = False
        for path in files:
            if not path.is_file():
                raise CannotEdit(f"no file {path.name}")
            text = path.read_bytes()
            new = _OPS[op["op"]](op, text)
            done |= new != text
            path.write_bytes(new)
        if not done:
            raise CannotEdit(f"nothing to do for {op}")


def _tree(text: bytes) -> Any:
    return PARSER.parse(csource.prepared(text)).root_node


def _walk(node: Any) -> Any:
    todo = [node]
    while todo:
        one = todo.pop()
        yield one
        todo += reversed(one.children)


def _function(text: bytes, name: str) -> Any:
    for node in _walk(_tree(text)):
        if node.type == "function_definition":
            head = text[node.start_byte : node.child_by_field_name("body").start_byte]
            if re.search(rb"\b%s\s*\(" % name.encode(), head):
                return node
    raise CannotEdit(f"no function {name}")


def _mentions(node: Any, text: bytes, word: str) -> bool:
    return bool(
        re.search(rb"(?<!\w)%s(?!\w)" % re.escape(word.encode()), text[node.start_byte : node.end_byte])
    )


def _statement(op: dict[str, Any], text: bytes) -> Any:
    """The smallest statement that mentions a word; of an if, only when its condition does."""
    found = []
    for node in _walk(_function(text, op["function"]).child_by_field_name("body")):
        if node.type not in STATEMENTS or not _mentions(node, text, op["mentions"]):
            continue
        if not any(
            c.type in STATEMENTS and _mentions(c, text, op["mentions"]) for c in _walk(node) if c != node
        ):
            found.append(node)
    return _nth(found, op, text)


def _nth(found: list[Any], op: dict[str, Any], text: bytes) -> Any:
    at = op.get("nth", 0)
    if at >= len(found):
        raise CannotEdit(f"{len(found)} places for {op}")
    return found[at]


def _put(text: bytes, node: Any, new: str) -> bytes:
    return text[: node.start_byte] + new.encode() + text[node.end_byte :]


def _said(text: bytes, node: Any) -> str:
    return text[node.start_byte : node.end_byte].decode()


def _replace_call(op: dict[str, Any], text: bytes) -> bytes:
    found = [
        n for n in _walk(_function(text, op["function"])) if n.type == "call_expression"
        and _said(text, n.child_by_field_name("function")) == op["call"]
    ]  # fmt: skip
    node = _nth(found, op, text)
    args = [
        _said(text, c) for c in node.child_by_field_name("arguments").named_children if c.type != "comment"
    ]
    return _put(text, node, re.sub(r"\$(\d)", lambda m: args[int(m[1])], op["with"]))


def _delete(op: dict[str, Any], text: bytes) -> bytes:
    return _put(text, _statement(op, text), ";")


def _insert(op: dict[str, Any], text: bytes) -> bytes:
    node = _statement(op, text)
    said = _said(text, node)
    parent = node.parent.type
    both = f"{op['code']}\n\t{said}" if op["where"] == "before" else f"{said}\n\t{op['code']}"
    return _put(text, node, both if parent == "compound_statement" else "{ " + both + " }")


def _replace_statement(op: dict[str, Any], text: bytes) -> bytes:
    node = _statement(op, text)
    return _put(text, node, op["with"].replace("$s", _said(text, node)))


def _condition(op: dict[str, Any], text: bytes) -> bytes:
    found = [
        n for n in _walk(_function(text, op["function"])) if n.type == "if_statement"
        and _mentions(n.child_by_field_name("condition"), text, op["mentions"])
    ]  # fmt: skip
    node = _nth(found, op, text).child_by_field_name("condition")
    return _put(text, node, f"({op['with'].replace('$c', _said(text, node))})")


def _start(op: dict[str, Any], text: bytes) -> bytes:
    body = _function(text, op["function"]).child_by_field_name("body")
    at = body.start_byte + 1
    return text[:at] + b"\n\t" + op["code"].encode() + text[at:]


def _add(op: dict[str, Any], text: bytes) -> bytes:
    at = _function(text, op["before"]).start_byte
    return text[:at] + op["code"].encode() + b"\n\n" + text[at:]


def _field(op: dict[str, Any], text: bytes) -> bytes:
    for node in _walk(_tree(text)):
        name = node.child_by_field_name("name") if node.type == "struct_specifier" else None
        body = node.child_by_field_name("body") if name is not None else None
        if body is not None and _said(text, name) == op["struct"]:
            at = body.end_byte - 1
            return text[:at] + b"\t" + op["code"].encode() + b"\n" + text[at:]
    raise CannotEdit(f"no struct {op['struct']}")


def _initialiser(op: dict[str, Any], text: bytes) -> bytes:
    for node in _walk(_tree(text)):
        if node.type != "init_declarator" or not _said(text, node).startswith(op["variable"]):
            continue
        for one in _walk(node):
            if (
                one.type == "initializer_pair"
                and _said(text, one.named_children[0]).lstrip(".") == op["field"]
            ):
                if op["with"]:
                    return _put(text, one, f".{op['field']} = {op['with']}")
                end = one.end_byte + (text[one.end_byte : one.end_byte + 1] == b",")
                return text[: one.start_byte] + text[end:]
    raise CannotEdit(f"no initialiser for {op}")


def _word(op: dict[str, Any], text: bytes) -> bytes:
    pattern = rb'"(?:\\.|[^"\\\n])*"|(?<!\w)%s(?!\w)' % re.escape(op["old"].encode())
    return re.sub(pattern, lambda m: m[0] if m[0].startswith(b'"') else op["new"].encode(), text)


def _move(op: dict[str, Any], text: bytes) -> bytes:
    node = _function(text, op["function"])
    body = text[node.start_byte : node.end_byte]
    left = text[: node.start_byte] + text[node.end_byte :]
    at = _function(left, op["before"]).start_byte
    return left[:at] + body + b"\n\n" + left[at:]


_OPS = {
    "replace_call": _replace_call, "delete": _delete, "insert": _insert, "statement": _replace_statement,
    "condition": _condition, "start": _start, "add": _add, "field": _field, "initialiser": _initialiser,
    "word": _word, "move": _move,
}  # fmt: skip
