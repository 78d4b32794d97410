"""Writes docs/layouts.md from the classes: every record, its fields, where they lie and what they are.

python tools/layouts.py > docs/layouts.md
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import inspect
import io
import pkgutil
import re
import sys
import tokenize

import netmem
from netmem.base.record import Record

HEAD = """# Layouts

Every record that kernels and Python share, in the order of the rooms. `make layouts` writes this page from
the classes (`tools/layouts.py`), and a test compares. Offsets and sizes are bytes; a record in another is
told by its name. A field without a comment is what its name says.
"""


def layouts() -> list[type[Record]]:
    """Every layout of the package, by room and place in its file."""
    for _, name, _ in pkgutil.walk_packages(netmem.__path__, "netmem."):
        aside = name.startswith(("netmem.cli", "netmem.bench", "netmem.lab.guest.programs"))
        if not aside and not name.endswith("__main__"):
            importlib.import_module(name)
    todo, found = list(Record.__subclasses__()), list[type[Record]]()
    while todo:
        layout = todo.pop()
        todo += layout.__subclasses__()
        found.append(layout)
    rooms = ("base", "memory", "hw", "netdev", "drivers", "inet", "testing", "lab", "contract")
    packaged = [one for one in found if one.__module__.startswith("netmem.")]
    line = {one: inspect.getsourcelines(one)[1] for one in packaged}
    return sorted(packaged, key=lambda o: (rooms.index(o.__module__.split(".")[1]), o.__module__, line[o]))


def comments(layout: type[Record]) -> dict[str, str]:
    """What stands behind each field, by its name."""
    source = inspect.getsource(layout)
    said = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            said[token.start[0]] = token.string.lstrip("# ")
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        node.target.id: said.get(node.end_lineno or 0, "")
        for node in body.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def kind(type_: type) -> str:
    """A field's type as the classes write it."""
    if issubclass(type_, ctypes.Array):
        return f"{type_._length_} of {kind(type_._type_)}"
    if issubclass(type_, ctypes.Structure):
        return type_.__name__
    size = ctypes.sizeof(type_) * 8
    return f"{'i' if type_(-1).value < 0 else 'u'}{size}"


def main() -> None:
    print(HEAD)
    module = ""
    for layout in layouts():
        if layout.__module__ != module:
            module = layout.__module__
            path = module.removeprefix("netmem.").replace(".", "/")
            print(f"## {path}.py\n")
        words = re.sub(r"\s+", " ", (layout.__doc__ or "").strip())
        print(f"### {layout.__name__}, {ctypes.sizeof(layout)} bytes\n\n{words}\n")
        print("| offset | field | type | |\n| ---: | --- | --- | --- |")
        said = comments(layout)
        for name, type_ in layout._fields_:
            print(f"| {getattr(layout, name).offset} | `{name}` | {kind(type_)} | {said.get(name, '')} |")
        print()


if __name__ == "__main__":
    sys.exit(main())
