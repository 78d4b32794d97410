"""#if in the middle of an expression or an initialiser: each way is a text of its own."""

from __future__ import annotations

import re
from typing import NamedTuple

_DIRECTIVE = re.compile(rb"^[ \t]*#[ \t]*(if|ifdef|ifndef|elif|else|endif)\b([^\n]*)$", re.MULTILINE)
# What verdicts can depend on.
_MATTERS = re.compile(rb"\bPP_FLAG_|ETHTOOL_RING_USE_|\bpage_pool|\bnetmem|\bset_ringparam\b|\bdma_sync_")
_INSIDE = b",|&(=+?"  # what stands before an #if that is no statement's


class Group(NamedTuple):
    """One #if to #endif: ``marks``: (start, end) of its directives; ``asked``: by the first; ``matters``:
    for a verdict."""

    marks: tuple[tuple[int, int], ...]
    asked: str
    matters: bool


def groups(text: bytes) -> list[Group]:
    """Those inside expressions; none that holds another."""
    if b"#" not in text:
        return []
    found: list[Group] = []
    open_: list[list[re.Match[bytes]]] = []
    for match in _DIRECTIVE.finditer(text):
        if match[1].startswith(b"if"):
            open_.append([match])
        elif open_:
            open_[-1].append(match)
            if match[1] == b"endif":
                marks = open_.pop()
                first, last = marks[0], marks[-1]
                inside = text[first.end() : last.start()]
                if len(marks) == len(_DIRECTIVE.findall(inside)) + 2:
                    if _is_inside(text, first.start(), last.end()):
                        asked = first[2].split(b"/*")[0].strip().decode("utf-8", "replace")
                        said = f"!{asked}" if first[1] == b"ifndef" else asked
                        places = tuple((m.start(), m.end()) for m in marks)
                        found.append(Group(places, said, bool(_MATTERS.search(inside))))
    return found


def _is_inside(text: bytes, start: int, end: int) -> bool:
    before = re.sub(rb"/\*.*?\*/", b"", text[max(0, start - 400) : start], flags=re.S).rstrip()
    after = text[end : end + 80].lstrip()
    return before[-1:] in list(map(bytes, zip(_INSIDE))) or after[:1] in (b"|", b"&", b",", b")")


def chosen(text: bytes, taken: bool) -> bytes:
    """The text with the first way of each such group, or without it; lines stay where they are."""
    made = bytearray(text)
    for group in groups(text):
        marks = group.marks
        kept = 0 if taken else 1
        for at, (start, end) in enumerate(marks):
            until = marks[at + 1][0] if at + 1 < len(marks) and at != kept else end
            for n in range(start, until):
                if made[n] not in (10, 13):
                    made[n] = 32
    return bytes(made)
