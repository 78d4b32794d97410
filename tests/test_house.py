"""The house rules: rooms look down only, importing costs nothing, kernels agree uncompiled, names resolve."""

from __future__ import annotations

import ast
import ctypes
import gc
import graphlib
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import netmem
from conftest import make_provider
from netmem.base import schema
from netmem.base.arena import Arena
from netmem.base.clock import ManualClock
from netmem.base.commit import WRITTEN, commit_at_hand
from netmem.base.native import publish_word, read_word
from netmem.base.record import Record
from netmem.hw.process import Child, python_argv
from netmem.memory.layout import PoolStats
from netmem.testing.net import Network

ROOT = Path(__file__).parent.parent


def test_rooms_look_down_only():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_no_import_goes_in_a_circle():
    """Not even one for types only."""
    graph = grimp.build_graph("netmem", cache_dir=None)
    order = graphlib.TopologicalSorter({m: graph.find_modules_directly_imported_by(m) for m in graph.modules})
    order.prepare()  # CycleError names the circle


def test_every_file_can_be_read_whole():
    files = (ROOT / "src/netmem").rglob("*.py")
    assert not [path for path in files if len(path.read_text().splitlines()) > 500]


KEYWORDS = {  # each argument a keyword: a header's field, or what a network does to frames
    ("frames.py", "ipv4"), ("frames.py", "tcp_segment"), ("net.py", "__init__"), ("wire.py", "__init__"),
}  # fmt: skip


def test_functions_can_be_read_whole_and_called():
    bad = []
    for path in (ROOT / "src" / "netmem").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            names = names[1:] if names[:1] in (["self"], ["cls"]) else names
            said = "Longer than a screen: " in (ast.get_docstring(node) or "")
            if node.end_lineno - node.lineno >= 60 and not said:
                bad.append(f"{path}: {node.name} is too long")
            if len(names) > 8 and (path.name, node.name) not in KEYWORDS:
                bad.append(f"{path}: {node.name} has {len(names)} arguments")
    assert not bad


def test_importing_the_package_loads_neither_numba_nor_numpy():
    code = "import sys, netmem; sys.exit(bool({'numba', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_resolves_and_is_listed():
    page = (ROOT / "docs/api.md").read_text()
    listed = {
        module: re.findall(r"`(\w+)`", names)
        for module, names in re.findall(r"^\| `(netmem[\w.]*)` \| (.*) \|$", page, re.MULTILINE)
    }
    assert len(listed) > 10
    for module, names in listed.items():
        for name in names:
            assert getattr(importlib.import_module(module), name) is not None
    assert sorted(netmem.__all__) == sorted(listed["netmem"])
    assert set(re.findall(r"^\| `netmem .*?` \| `([\w-]+)` \|", page, re.MULTILINE)) == set(schema.VERSIONS)
    with pytest.raises(AttributeError):
        netmem.nonsense  # noqa: B018


def layouts(kind=Record):
    """Every layout of the package."""
    for _, name, _ in pkgutil.walk_packages(netmem.__path__, "netmem."):
        if not name.startswith(
            ("netmem.cli", "netmem.bench", "netmem.lab.guest.programs")
        ) and not name.endswith("__main__"):
            importlib.import_module(name)
    todo = kind.__subclasses__()
    while todo:
        layout = todo.pop()
        todo += layout.__subclasses__()
        yield layout


def test_every_step_of_the_payloads_way_is_in_the_file_that_the_page_names():
    page = (ROOT / "docs/architecture.md").read_text()
    steps = re.findall(r"^\| \d+ \| `([\w/]+\.py)` \| (.*) \|$", page, re.MULTILINE)
    assert 0 < len(steps) <= 12
    for path, text in steps:
        source = (ROOT / "src/netmem" / path).read_text()
        assert len(source.splitlines()) <= 500
        for name in re.findall(r"`(\w+)`", text):
            assert re.search(rf"\b{name}\b", source), f"{path} has no {name}"
    for path in re.findall(r"`([\w]+/[\w/]+\.py)`", page):
        assert (ROOT / "src/netmem" / path).exists(), path


def test_the_page_of_layouts_is_what_the_classes_say():
    done = subprocess.run([sys.executable, "tools/layouts.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == (ROOT / "docs/layouts.md").read_text(), "make layouts writes it anew"


def test_layouts_do_not_overlap():
    found = list(layouts())
    assert len(found) > 20
    for layout in found:
        end = 0
        for name, *_ in layout._fields_:
            field = getattr(layout, name)
            assert field.offset >= end, f"{layout.__name__}.{name}"
            end = field.offset + field.size
        assert end <= ctypes.sizeof(layout)
        assert not ctypes.sizeof(layout) % 8, f"{layout.__name__}: the next of a table would not be aligned"
    assert len(PoolStats._fields_) == 11


def test_arenas_show_their_names():
    arena = Arena("pool:test", 10)
    assert "netmem:pool:test" in (Path("/proc/self/fd") / str(arena.fd)).readlink().name
    publish_word(arena.address, -7)
    assert read_word(arena.address) == arena.words()[0] == -7
    arena.close()
    arena.close()


def descriptors() -> int:
    """Open file descriptors of this process."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_is_left_open():
    before = descriptors()
    for memory in ("dmabuf", "pages", "none"):
        with Network() as net:
            net.bind(make_provider(memory))
            ours, theirs, listener = net.connect()
            theirs.send(b"x")
            net.run(5)
    del net, ours, theirs, listener
    assert descriptors() == before
    for _ in range(2):
        netmem.open_device().close()
    assert descriptors() == before


def test_time_does_not_go_back():
    clock = ManualClock()
    assert clock.advance(5) == clock.now()
    with pytest.raises(ValueError):
        clock.advance(-1)


def test_a_child_that_does_not_start_says_why():
    child = Child(python_argv("netmem.no_such_module"))
    with pytest.raises(OSError, match="no_such_module"):
        child.wait_ready()
    child.close()
    with pytest.raises(OSError):
        Child(["/no/such/program"])


def test_a_measurement_is_not_dirty_for_the_pages_that_measurements_write(tmp_path):
    def git(*words):
        who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    assert commit_at_hand(tmp_path) == "unknown"
    git("init", "-q")
    assert commit_at_hand(tmp_path) == "unknown"  # nothing is committed
    (tmp_path / "docs").mkdir()
    for name in (*WRITTEN, "code.py"):
        assert (ROOT / name).exists() or name == "code.py"
        (tmp_path / name).write_text("before")
    git("add", ".")
    git("commit", "-qm", "one")
    commit = commit_at_hand(tmp_path)
    assert re.fullmatch("[0-9a-f]{7,}", commit)
    for name in WRITTEN:
        (tmp_path / name).write_text("after")
    assert commit_at_hand(tmp_path / "docs") == commit
    (tmp_path / "new.py").write_text("new")
    assert commit_at_hand(tmp_path) == commit + "-dirty"
    (tmp_path / "new.py").unlink()
    (tmp_path / "code.py").write_text("after")
    assert commit_at_hand(tmp_path / "docs") == commit + "-dirty"
