"""The cache of compiled kernels follows what they depend on; what kernels may look like."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import netmem
from netmem.base.jit import COMPILED

SOURCE = Path(netmem.__file__).parent
KERNEL = {"kernel", "inline_kernel"}

# What a user of three rooms sees: a header pool's counter, GRO's, and a netmem's byte offset.
USE = """
import sys
from netmem.memory import calls
from netmem.memory.page_pool import PagePool
from netmem.memory.params import PagePoolParams
pool = PagePool(PagePoolParams(pages=1 << 20))
refs = pool.alloc_netmems(3)
pool.put_netmem(refs, -1, True)
print(pool.record.stats.alloc_fast, pool.record.stats.recycle_cached, pool.record.alloc.count)
from netmem.netdev.batch import RxBatch
from netmem.netdev.kernels import rx_check
batch = RxBatch(1)
rx_check(batch.at, 0, pool.at)
"""


def folders_of(home):
    return {
        path.name
        for path in (home / "netmem/kernels").iterdir()
        if path.is_dir() and any(path.rglob("*.nbi"))
    }


@pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
def test_the_cache_follows_layouts_and_kernels(tmp_path):
    """A changed layout is not read with old code; a changed kernel recompiles its file and its users only."""
    package = tmp_path / "src" / "netmem"
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__", "*.c"))
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(package.parent)}

    def run():
        done = subprocess.run(
            [sys.executable, "-c", USE],
            capture_output=True,
            text=True,
            timeout=110,
            env=environment,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    first = run()
    before = folders_of(tmp_path)
    assert {name.rpartition("-")[0] for name in before} >= {
        "memory.calls",
        "memory.kernels",
        "netdev.kernels",
    }
    assert run() == first
    assert folders_of(tmp_path) == before  # nothing was compiled again
    # A layout: another field in front moves all that kernels read.
    layout = package / "memory/layout.py"
    text = layout.read_text()
    layout.write_text(text.replace("    alloc_fast: i64\n", "    extra: i64\n    alloc_fast: i64\n", 1))
    assert run() == first
    new = {name.rpartition("-")[0] for name in folders_of(tmp_path) - before}
    assert new >= {"memory.calls", "memory.kernels", "netdev.kernels"}
    # A kernel, which one room below calls as a module's: its file and its users, nobody else.
    before = folders_of(tmp_path)
    shadow = package / "memory/shadow.py"
    shadow.write_text(shadow.read_text() + "\n\nNOTHING = 0\n")
    assert run() == first
    new = {name.rpartition("-")[0] for name in folders_of(tmp_path) - before}
    assert new >= {"memory.calls", "netdev.kernels"}
    assert not new & {"memory.ref", "base.native", "netdev.batch"}


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE), ast.parse(path.read_text())


def kernels():
    """(file, function) of every kernel."""
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(one, ast.Name) and one.id in KERNEL for one in node.decorator_list
            ):
                yield path, node


def test_no_import_of_constants_is_longer_than_a_screen():
    long = {
        f"{path}: {node.module}": len(node.names)
        for path, tree in modules()
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and len(node.names) > 25
    }
    assert not long


def test_kernels_that_python_calls_take_numbers_addresses_and_plain_arrays():
    """A structured array, or a record, as an argument costs microseconds: it is never passed from Python."""
    plain = {"int", "bool", "float", "Words", "Bytes"}
    records = set()
    for path, node in kernels():
        kinds = [ast.unparse(arg.annotation) if arg.annotation else "" for arg in node.args.args]
        assert all(kinds), f"{path}: {node.name} has an argument without a type"
        assert not node.args.defaults + node.args.kwonlyargs, f"{path}: {node.name}"
        assert len(kinds) <= 8, f"{path}: {node.name} has {len(kinds)} arguments"
        if not set(kinds) <= plain:
            for kind in set(kinds) - plain:
                assert re.fullmatch("[A-Z][A-Za-z0-9]*", kind), f"{path}: {node.name} takes a {kind}"
            records.add((str(path), node.name))
    # Whoever calls one of those is a kernel itself.
    inside = {(str(path), node.name) for path, node in kernels()}
    for path, tree in modules():
        known = {}  # what names at the top stand for: (file, name in it), or (file, "")
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("netmem"):
                file = "/".join((node.module or "").split(".")[1:])
                for one in node.names:
                    known[one.asname or one.name] = (f"{file}.py", one.name), f"{file}/{one.name}.py"
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and (str(path), function.name) not in inside:
                for call in ast.walk(function):
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                        called = known.get(call.func.id, (None, ""))[0]
                    elif isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                        owner = getattr(call.func.value, "id", "")
                        called = (known.get(owner, (None, ""))[1], call.func.attr)
                    else:
                        continue
                    assert called not in records, f"{path}: {function.name} calls {called} from Python"


def test_kernel_files_import_at_the_top():
    """The cache sees imports there only."""
    for path in {path for path, _ in kernels()}:
        assert not re.search(r"^[ \t]+(from|import) netmem", (SOURCE / path).read_text(), re.MULTILINE), path
