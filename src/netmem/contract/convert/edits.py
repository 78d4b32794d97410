"""Edits of C sources by step, and the text they make: continuation lines follow what they are aligned to."""

from __future__ import annotations

import bisect
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TAB = 8
WIDTH, WIDEST = 80, 100  # columns: a line gets no longer than the first, or where it was, than the second


class Refused(Exception):
    """Nothing was rewritten, and why."""


@dataclass(frozen=True)
class Edit:
    """Bytes ``start`` to ``end`` become ``text``, from this step of the series on."""

    start: int
    end: int
    text: str
    step: int


@dataclass
class Remaining:
    """One thing to be done by hand: ``rule`` is the requirement that it is about, or ""."""

    file: str
    line: int
    rule: str
    reason: str


class Edits:
    """Of one driver's files, by path."""

    def __init__(self) -> None:
        self.by_path: dict[str, list[Edit]] = defaultdict(list)
        self.remaining: list[tuple[str, int, str, str]] = []  # (path, offset, rule, reason)
        self.through: list[str] = []  # a path for each use that goes through a page

    def add(self, path: str, start: int, end: int, text: str, step: int) -> None:
        one = Edit(start, end, text, step)
        if start == end or one not in self.by_path[path]:
            self.by_path[path].append(one)

    def remains(self, path: str, offset: int, rule: str, reason: str) -> None:
        self.remaining.append((path, offset, rule, reason))

    def upto(self, path: str, step: int) -> list[Edit]:
        """Those of the steps until ``step``, in the order of the source."""
        found = [one for one in self.by_path.get(path, ()) if one.step <= step]
        order = sorted(enumerate(found), key=lambda e: (e[1].start, e[1].end, -e[1].step, e[0]))
        return [one for _, one in order]

    def text(self, path: str, source: bytes, step: int) -> bytes:
        """A file after so many steps."""
        return apply(source, self.upto(path, step))

    def within(self, path: str, source: bytes, node: Any, step: int) -> str:
        """The text of a node after so many steps."""
        start, end = node.start_byte, node.end_byte
        inside = [
            Edit(one.start - start, one.end - start, one.text, 0)
            for one in self.upto(path, step) if start <= one.start and one.end <= end
        ]  # fmt: skip
        return _spliced(source[start:end], inside)[0].decode("utf-8", "replace")

    def line(self, path: str, source: bytes, offset: int, step: int) -> int:
        """The line, after so many steps, of what stood at ``offset``."""
        edits = self.upto(path, step)
        new, moved = _spliced(source, edits)
        return new.count(b"\n", 0, moved(offset)) + 1


def _spliced(source: bytes, edits: list[Edit]) -> tuple[bytes, Any]:
    """The new text, and where an offset of the old one is in it."""
    out, at, marks = bytearray(), 0, [(0, 0)]
    for one in edits:
        out += source[at : one.start]
        marks.append((one.start, len(out)))
        out += one.text.encode()
        at = max(at, one.end)
        marks.append((at, len(out)))
    out += source[at:]

    def moved(offset: int) -> int:
        index = bisect.bisect_right(marks, (offset, 1 << 60)) - 1
        old, new = marks[index]
        limit = marks[index + 1][1] if index + 1 < len(marks) else len(out)
        return min(new + offset - old, limit)

    return bytes(out), moved


_TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|/\*.*?\*/|//[^\n]*|[(),\n]', re.DOTALL)


def _spans(source: bytes) -> Iterator[tuple[int, int]]:
    """(opening parenthesis, start of a line that is aligned with what follows it)."""
    stack: list[int] = []
    for match in _TOKEN.finditer(source):
        one = match[0]
        if one == b"(":
            stack.append(match.start())
        elif one == b")":
            if stack:
                stack.pop()
        elif one == b"\n" and stack:
            line, opened = match.end(), stack[-1]
            start = source.rfind(b"\n", 0, opened) + 1
            if _indent(source, line) == _column(source, start, opened) + 1:
                yield opened, line


def _column(text: bytes, start: int, at: int) -> int:
    """The column of an offset in a line that begins at ``start``."""
    column = 0
    for byte in text[start:at]:
        column = column // TAB * TAB + TAB if byte == 9 else column + 1
    return column


def _indent(text: bytes, line: int) -> int:
    """The column in which a line's text begins; -1 for an empty one."""
    end = line
    while end < len(text) and text[end] in b" \t":
        end += 1
    return -1 if end >= len(text) or text[end] == 10 else _column(text, line, end)


def _white(column: int) -> bytes:
    return b"\t" * (column // TAB) + b" " * (column % TAB)


def apply(source: bytes, edits: list[Edit]) -> bytes:
    """The new text, aligned."""
    if not edits:
        return source
    new, moved = _spliced(source, edits)
    widths: dict[int, int] = {}  # of the new lines that differ
    for one in edits:
        begins, ends = source.rfind(b"\n", 0, one.start) + 1, source.find(b"\n", one.start)
        was = _column(source, begins, len(source) if ends < 0 else ends)
        widths[new.count(b"\n", 0, moved(one.start))] = WIDTH if was <= WIDTH else WIDEST
    shifts: list[tuple[int, int]] = [
        (moved(line), moved(opened)) for opened, line in _spans(source)
    ]  # both in the new text; lines come in order, so those before are right already
    out, grown = bytearray(new), 0
    starts: list[tuple[int, int]] = []  # (offset in ``new``, growth from there on)

    def here(offset: int) -> int:
        index = bisect.bisect_right(starts, (offset, 1 << 60)) - 1
        return offset + (starts[index][1] if index >= 0 else 0)

    for line, opened in shifts:
        at, paren = here(line), here(opened)
        begin = out.rfind(b"\n", 0, paren) + 1
        if at == 0 or out[at - 1] != 10 or paren >= at:
            continue  # the line was taken away
        want = _column(bytes(out[begin : paren + 1]), 0, paren - begin) + 1
        end = at
        while end < len(out) and out[end] in b" \t":
            end += 1
        white = _white(want)
        if out[at:end] != white:
            grown += len(white) - (end - at)
            starts.append((line + (end - at), grown))
            out[at:end] = white
    made = _broken(bytes(out), widths)
    if source.count(b"\r\n") == source.count(b"\n"):
        made = re.sub(rb"(?<!\r)\n", b"\r\n", made)
    return made


def _broken(text: bytes, widths: dict[int, int]) -> bytes:
    """Lines that were changed and are too wide are broken after a comma, aligned with their parenthesis."""
    lines = text.split(b"\n")
    made: list[bytes] = []
    for number in range(len(lines)):
        line, width = lines[number], widths.get(number, WIDEST)
        rest = False
        while b"//" not in line and number in widths and _column(line, 0, len(line)) > width:
            at, column = _where_to_break(line, width)
            if at < 0:
                break
            made.append(line[:at].rstrip())
            line, rest = _white(column) + line[at:].lstrip(), True
        following = lines[number + 1] if number + 1 < len(lines) else b""
        if rest and line.endswith(b",") and b"/*" not in line and _margin(following) == _margin(line):
            lines[number + 1] = line + b" " + following.lstrip()  # room for both
            widths.setdefault(number + 1, width)
        else:
            made.append(line)
    return b"\n".join(made)


def _margin(line: bytes) -> int:
    return _column(line, 0, len(line) - len(line.lstrip()))


def _where_to_break(line: bytes, width: int) -> tuple[int, int]:
    """(offset behind a comma, column of what the rest is aligned with): the outermost that fits; (-1, 0)."""
    stack: list[int] = []
    found: list[tuple[int, int, int]] = []  # (-depth, offset, column)
    margin = len(line) - len(line.lstrip())
    for match in _TOKEN.finditer(line):
        column = _column(line, 0, match.end())
        if match[0] == b"(":
            stack.append(column)
        elif match[0] == b")" and stack:
            stack.pop()
        elif match[0] == b"," and column <= width and line[match.end() :].strip():
            if stack:
                found.append((-len(stack), match.end(), stack[-1]))
            elif line[:margin].endswith(b" "):  # goes on with what a line above has begun
                found.append((0, match.end(), _column(line, 0, margin)))
    return max(found)[1:] if found else (-1, 0)
