"""Shapes of C syntax that the converter asks about: nodes of tree-sitter's grammar."""

from __future__ import annotations

import re
from typing import Any

HOLDERS = ("init_declarator", "compound_literal_expression")
CONDITIONS = {
    "if_statement", "while_statement", "do_statement", "for_statement", "unary_expression",
    "expression_statement", "comma_expression", "switch_statement", "case_statement", "compound_statement",
}  # fmt: skip
TYPEOF = re.compile(r"\b(__)?(typeof|auto)")


def is_value(statement: Any) -> bool:
    """True for the last statement of a statement expression."""
    block = statement.parent
    last = block.named_children[-1] if block.named_children else None
    return (
        block.type == "compound_statement" and block.parent.type == "parenthesized_expression"
        and last is not None and last.id == statement.id
    )  # fmt: skip


def ways(node: Any) -> list[Any]:
    """What a conditional expression may be: without a second operand, what it asks."""
    found = [node.child_by_field_name(name) for name in ("consequence", "alternative")]
    return [one if one is not None else node.child_by_field_name("condition") for one in found]


def arguments(call: Any) -> list[Any]:
    """What a call is given."""
    found = call.child_by_field_name("arguments")
    return [one for one in found.named_children if one.type != "comment"] if found is not None else []
