"""A driver as one program: its files and the libraries it calls, names resolved, types of expressions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from netmem.contract.lint.csource import CFile, Function
from netmem.contract.lint.nodes import Expr, Id

_KEEPS = re.compile(r"\b(page_pool|netmem_ref|page|net_iov) ?\*|^netmem_ref\b")
_SHARES = re.compile(
    r"^(const )?(netmem_ref|(struct (page|net_iov|folio|netmem_desc)|void|u8|char) \*|unsigned long|"
    r"uintptr_t)$"
)
_TAG = re.compile(r"\b(?:struct|union)\s+([\w.]+)")


class World:
    """``files``: the driver's own first, then those of libraries, which give meaning but no evidence."""

    def __init__(self, own: Iterable[CFile], libraries: Iterable[CFile] = ()) -> None:
        self.own: list[CFile] = []
        self.files: dict[str, CFile] = {}
        self.own_paths: set[str] = set()
        self.named: dict[str, list[Function]] = defaultdict(list)
        self.structs: dict[str, dict[str, str]] = {}
        self.places: dict[str, int] = {}  # structure -> fields that hold or point to it, if any holds it
        self.shared: dict[tuple[str, str], set[str]] = {}  # a union's field -> the others in its place
        self.macros: dict[str, str] = {}
        self.typedefs: dict[str, str] = {}
        self.globals: dict[str, tuple[str, Expr, str, int]] = {}
        self._types: dict[str, str] = {}
        self._meant: dict[str, str] = {}
        self.add(own, libraries)

    def add(self, own: Iterable[CFile], libraries: Iterable[CFile] = ()) -> None:
        """More files."""
        own = list(own)
        self.own += own
        self.own_paths |= {one.path for one in own}
        for one in (*own, *libraries):
            self.files[one.path] = one
            for function in one.functions:
                self.named[function.name].append(function)
            for tag, fields in one.structs.items():
                self.structs.setdefault(tag, {}).update(fields)
            for tag, groups in one.unions.items():
                for members in groups:
                    group = {name for name in members if _SHARES.match(self.structs[tag].get(name, ""))}
                    for name in group:
                        self.shared[tag, name] = self.shared.get((tag, name), set()) | group - {name}
            self.macros.update(one.macros)
            self.typedefs.update(one.typedefs)
            for type_, name, expr, line in one.globals:
                self.globals[name] = type_, expr, one.path, line
        self._types.clear()
        self._meant.clear()
        places: dict[str, int] = defaultdict(int)
        for one in self.files.values():
            for fields_of in one.embedded.values():
                for _, inner in fields_of:
                    places[inner] += 1
        for fields in self.structs.values():
            for type_ in fields.values():
                if type_.endswith("*") and self.tag(type_) in places:
                    places[self.tag(type_)] += 1
        self.places = places

    def function(self, name: str, path: str) -> Function | None:
        """The function that ``name`` means in file ``path``: the file's own before others'."""
        found = self.named.get(name)
        if not found:
            return None
        for one in found:
            if one.path == path:
                return one
        return next((one for one in found if not one.static or one.path.endswith(".h")), found[0])

    def reached(self, starts: Iterable[Function], depth: int | None = None) -> list[Function]:
        """Functions, and all that they name, through at most ``depth`` of each other."""
        found = {id(one): one for one in starts}
        here = list(found.values())
        while here and depth != 0:
            fresh: dict[int, Function] = {}
            for function in here:
                for word in function.words:
                    target = self.function(word.decode(), function.path)
                    if target is not None and id(target) not in found:
                        fresh[id(target)] = target
            found |= fresh
            here, depth = list(fresh.values()), None if depth is None else depth - 1
        return list(found.values())

    def tag(self, type_: str) -> str:
        """Structure that a type is, points to, or is an array of; "" for others."""
        known = self._types.get(type_)
        if known is None:
            match = _TAG.search(type_)
            known = match[1] if match else ""
            if not known:
                word = type_.replace("const ", "").split(" ")[0].split("[")[0]
                meant = self.typedefs.get(word, "")
                match = _TAG.search(meant)
                known = match[1] if match else ""
            self._types[type_] = known
        return known

    def meant(self, name: str) -> str:
        """What a call's name is when it is another name for a function: a macro, or a constant pointer."""
        known = self._meant.get(name)
        if known is None:
            known = name
            for _ in range(4):
                text = self.macros.get(known, "").strip()
                pointed = self.globals.get(known)
                if text.isidentifier():
                    known = text
                elif pointed is not None and isinstance(pointed[1], Id) and "(" in pointed[0]:
                    known = pointed[1].name
                else:
                    break
            self._meant[name] = known
        return known

    def keeps_memory(self, tag: str) -> bool:
        """True for a structure with a pool or a buffer of a pool's in it."""
        return any(_KEEPS.search(one) for one in self.structs.get(tag, {}).values())

    def field_type(self, tag: str, name: str) -> str:
        """Declared type of a structure's field, "" when unknown."""
        return self.structs.get(tag, {}).get(name, "")
