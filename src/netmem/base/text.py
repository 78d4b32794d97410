"""Text of others, made harmless: names and messages of trees, boards and guests."""

from __future__ import annotations

from typing import Any

LONGEST = 500


def printable(text: str) -> str:
    """One harmless line: control characters and the like as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def harmless(content: Any) -> Any:
    """The same content, of JSON, with every text printable and not longer than anybody reads."""
    if isinstance(content, str):
        return printable(content[:LONGEST])
    if isinstance(content, list):
        return [harmless(one) for one in content]
    if isinstance(content, dict):
        return {harmless(name): harmless(one) for name, one in content.items()}
    return content
