"""The base install is the checker for C sources; all else says in one line what it needs."""

import importlib.metadata
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "lint" / "tiny"


def packages(name, seen):
    """Folders and modules of a distribution and of those it needs without any extra."""
    if name.lower() in seen:
        return
    seen.add(name.lower())
    found = importlib.metadata.distribution(name)
    for file in found.files or ():
        if len(file.parts) and not file.parts[0].startswith((".", "_")):
            yield Path(str(found.locate_file(file.parts[0])))
    for line in found.requires or ():
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            yield from packages(needed.name, seen)


def install(folder, *distributions):
    """A function that runs Python with what distributions need, and nothing else."""
    for path in {
        *itertools.chain(*(packages(name, set()) for name in distributions)),
        ROOT / "src" / "netmem",
    }:
        link = folder / path.name
        if not link.exists() and path.exists():
            link.symlink_to(path)
    assert not (folder / "numpy").exists()

    def run(*words):
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        return subprocess.run(
            [sys.executable, "-S", *words], capture_output=True, text=True, timeout=100, env=environment
        )

    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return install(tmp_path_factory.mktemp("base"), "pynetmem")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """With the extra "kernel"."""
    return install(tmp_path_factory.mktemp("kernel"), "pynetmem", "pyroute2")


@pytest.mark.parametrize(
    "words", [["check", TINY], ["check", "--format", "json", "--no-cache", TINY], ["--help"]]
)
def test_the_checker_needs_neither_numpy_nor_numba(base, words):
    done = base("-m", "netmem.cli.entry", *map(str, words))
    assert done.returncode == 0, done.stderr


def test_the_converter_needs_neither_numpy_nor_numba(base):
    done = base("-m", "netmem.cli.entry", "convert", str(TINY))
    assert done.returncode in (0, 1)
    assert "pip install" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [["recv"], ["send"], ["leaks"], ["demo"], ["bench"], ["guest", "run"],
     ["check", "netmem.drivers.softnic:SoftnicDriver"]],
)  # fmt: skip
def test_what_needs_more_says_so_in_one_line(base, words):
    done = base("-m", "netmem.cli.entry", *words)
    assert done.returncode == 1
    assert done.stderr.startswith("netmem: ")
    assert "numpy" in done.stderr
    assert done.stderr.endswith("pip install 'pynetmem[lab]'\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["Device", "TcpSocket", "PagePool", "NetDevice", "DmabufProvider"])
def test_names_that_need_more_say_so(base, name):
    done = base(
        "-c", f"import netmem\ntry:\n    netmem.{name}\nexcept ImportError as error:\n    print(error)"
    )
    assert done.stdout.endswith("pip install 'pynetmem[lab]'\n"), done.stderr
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("words", [["explain", "lo"], ["show", "--kernel"]])
def test_what_asks_the_kernel_needs_pyroute2_and_no_more(base, kernel, words):
    done = base("-m", "netmem.cli.entry", *words)
    assert done.returncode == 1
    assert done.stderr.endswith("pip install 'pynetmem[kernel]'\n")
    done = kernel("-m", "netmem.cli.entry", *words)
    assert "lo: loopback" in done.stdout, done.stderr
    assert done.stderr == ""
    done = kernel("-m", "netmem.cli.entry", "show")
    assert done.stderr.endswith("pip install 'pynetmem[lab]'\n")
