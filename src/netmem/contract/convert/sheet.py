"""One driver while it is rewritten: the file at hand, what is ours in it, and where edits go."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from netmem.contract.convert.edits import Edits, Refused
from netmem.contract.convert.holders import Holders, level
from netmem.contract.convert.twins import Twins
from netmem.contract.lint.csource import Function
from netmem.contract.lint.lowering import declared
from netmem.contract.lint.model import Case

CONVERT, RENAME, GUARD = 1, 2, 3  # steps of the series
BY_NAME = rb"\b(?:offsetof\w*|sizeof_field|container_of|struct_size|__counted_by)\s*\([^;]{0,200}?\b%s\b"
POINTERS = ("pointer_declarator", "abstract_pointer_declarator")


class Sheet:
    """``path`` and ``source``: the file at hand, set by who walks through it."""

    def __init__(self, case: Case, base: Path, twins: Twins, rename: bool) -> None:
        self.case, self.base, self.twins = case, base, twins
        self.world = case.world
        self.holders = Holders(case)
        self.edits = Edits()
        self.renamed = _renamed(case, self.holders) if rename else {}
        self.path, self.source = "", b""
        self.looked_at: set[tuple[str, int]] = set()  # where fields were named that the walk has seen
        self._done: set[tuple[str, int, int, str]] = set()

    def changes(self, function: Function) -> bool:
        """True for a function whose result or parameters get other types."""
        key = function.path, function.name
        types = [(function.returns, ""), *function.params]
        return any(level(type_) > 0 and (*key, name) in self.holders.locals for type_, name in types)

    def is_page(self, type_: Any) -> bool:
        """True for a type that is written as struct page, however it is spaced."""
        return re.sub(r"/\*.*?\*/|\s+", " ", self.text(type_)).split() == ["struct", "page"]

    def text(self, node: Any) -> str:
        return self.source[node.start_byte : node.end_byte].decode("utf-8", "replace")

    def where(self, node: Any) -> str:
        """File and line, for a refusal."""
        return f"{os.path.relpath(self.path, self.base)}:{node.start_point[0] + 1}"

    def edit(self, start: int, end: int, text: str, step: int = CONVERT) -> None:
        self.edits.add(self.path, start, end, text, step)

    def put(self, node: Any, text: str) -> None:
        """Another text for a node."""
        self.edit(node.start_byte, node.end_byte, text)

    def remains(self, node: Any, rule: str, reason: str) -> None:
        self.edits.remains(self.path, node.start_byte, rule, reason)

    def is_first(self, node: Any, what: str) -> bool:
        """False when this was done to a node already."""
        key = self.path, node.start_byte, node.end_byte, what
        known = key in self._done
        self._done.add(key)
        return not known

    def wrap(self, node: Any, call: str, rule: str, reason: str, cast: str = "") -> None:
        """A call around a node, and why it cannot stay so."""
        if not self.is_first(node, call):
            return
        self.edit(node.start_byte, node.start_byte, f"{call}({cast}")
        self.edit(node.end_byte, node.end_byte, ")")
        self.remains(node, rule, reason)
        if call == "netmem_to_page":
            self.edits.through.append(self.path)

    def retype(self, type_: Any, declarators: list[Any], ours: list[bool]) -> None:
        """`struct page *x` becomes `netmem_ref x`: one star less. Refused."""
        if not any(ours):
            return
        if not self.is_page(type_):
            raise Refused(f"{self.where(type_)}: payload of a type that is not written as struct page")
        if not all(ours):
            raise Refused(
                f"{self.where(type_)}: payload and other pages are declared together: split the line first"
            )
        gap = self.source[type_.end_byte : declarators[0].start_byte]
        self.put(type_, "netmem_ref " if gap.startswith(b"  ") else "netmem_ref")  # names stay in columns
        for one in declarators:
            star = one.child_by_field_name("declarator") if one.type == "init_declarator" else one
            while star is not None and star.type not in POINTERS:
                star = star.child_by_field_name("declarator")
            if star is None:
                raise Refused(f"{self.where(type_)}: a declaration that is not understood")
            at = star.start_byte
            bare = (
                star.type.startswith("abstract") and self.source[at - 1 : at] == b" "
            )  # a type without name
            self.edit(at - bare, at + 1, "")

    def rename(self, node: Any, *key: str) -> None:
        """A name that holds a netmem and is called page, where that is asked for."""
        new = self.renamed.get(key)
        if new is not None and node is not None:
            self.edit(node.start_byte, node.end_byte, new, RENAME)

    def rename_documented(self, node: Any, names: list[tuple[str, str]]) -> None:
        """What the kernel-doc comment before a node calls them."""
        comment = node.prev_named_sibling
        if comment is None or comment.type != "comment" or not self.text(comment).startswith("/**"):
            return
        text = self.source[comment.start_byte : comment.end_byte]
        for old, new in names:
            for match in re.finditer(rb"@%s\b" % old.encode(), text):
                at = comment.start_byte + match.start() + 1
                self.edit(at, at + len(old), new, RENAME)

    def name(self, declarator: Any) -> Any:
        """The identifier in a declarator."""
        while declarator is not None and not declarator.type.endswith("identifier"):
            declarator = declarator.child_by_field_name("declarator") or next(
                (c for c in declarator.named_children if c.type.endswith(("declarator", "identifier"))), None
            )
        return declarator

    def declared(self, declarator: Any) -> str:
        return declared(declarator, self.source)[0]


def netmem_name(name: str) -> str:
    """What a name that speaks of pages is called for netmem."""
    return re.sub(r"(?<![a-z])page(s?)(?![a-z])", r"netmem\1", name)


def _renamed(case: Case, holders: Holders) -> dict[tuple[str, ...], str]:
    """(structure, field) and (file, function, name) -> another name, where that one is free."""
    found: dict[tuple[str, ...], str] = {}
    texts = [one.text for one in case.world.own]
    macros = {
        word for f in (f for fs in case.world.named.values() for f in fs if f.macro) for word in f.words
    }
    for tag, name in holders.cells:
        new = netmem_name(name)
        by_name = re.compile(BY_NAME % name.encode(), re.DOTALL)  # where nobody says of which structure
        if new != name and not case.world.field_type(tag, new) and not any(map(by_name.search, texts)):
            found[tag, name] = new
    for path, function, name in holders.locals:
        target = next((f for f in case.world.named.get(function, ()) if f.path == path), None)
        new = netmem_name(name)
        if target is None or new == name or not name or name.encode() in macros:
            continue
        types = {param: type_ for type_, param in target.params} | target.types
        if level(types.get(name, "")) and new not in types and new.encode() not in target.words:
            found[path, function, name] = new
    return found
