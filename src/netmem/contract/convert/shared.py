"""What other modules see of a driver: it must not change under them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from netmem.contract.convert.edits import Refused
from netmem.contract.convert.sheet import Sheet
from netmem.contract.lint import csource, tree
from netmem.contract.lint.nodes import Field, walk
from netmem.contract.lint.places import Scope, Types
from netmem.contract.lint.world import World


def refuse_shared(sheet: Sheet, changed: set[str]) -> None:
    """Refused where a file of another module names a field or calls a function that gets another type."""
    headers = [Path(path) for path in changed if path.endswith(".h")]
    if not headers:
        return
    own = (f for one in sheet.world.own for f in one.functions)
    functions = {f.name for f in own if not f.static and sheet.changes(f)}
    names = "|".join(sorted(map(re.escape, sheet.holders.names | functions)))
    pattern = re.compile(rf"(?:(?:->|\.)\s*|\b)(?:{names})\b".encode())
    included = re.compile(b"|".join(rb'#\s*include\s+["<][^">\n]*\b%s[">]' % re.escape(os.fsencode(one.name))
                                    for one in headers))  # fmt: skip
    for folder in {one.parent for one in headers}:
        for path in tree.files(folder, []):
            text = b"" if str(path) in sheet.world.files else tree.load(str(path)) or b""
            if included.search(text) and pattern.search(text):
                named = _named(sheet, str(path), text, functions)
                if named:
                    raise Refused(
                        f"{os.path.relpath(path, sheet.base)} is of another module and uses {named}, "
                        "whose type would change: convert them together by hand"
                    )


def _named(sheet: Sheet, path: str, text: bytes, functions: set[str]) -> str:
    """What a file of another module uses of ours; "" for nothing."""
    one = csource.read(path, text)
    world = World([*sheet.world.own, one])
    types = Types(world)
    for function in one.functions:
        scope = Scope(function)
        scope.types.update(function.types)
        for node in walk(function.body):
            if isinstance(node, Field) and (types.tag(scope, node.base), node.name) in sheet.holders.cells:
                return f"struct {types.tag(scope, node.base)}.{node.name}"
        called = {word.decode() for word in function.called} & functions
        if called:
            return f"{min(called)}()"
    return ""
