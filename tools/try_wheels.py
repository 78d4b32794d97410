"""Build wheel and sdist, install them in fresh environments of each Python, and use them as a newcomer would.

tools/try_wheels.py [PYTHON...]: of 3.11 to 3.13 those on PATH or below ~/.pyenv, unless some are named.
Nothing of this checkout is used but what the packages hold.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERIES = ("3.11", "3.12", "3.13")


def pythons() -> list[str]:
    """One of each series."""
    found = []
    for series in SERIES:
        below = sorted(Path.home().glob(f".pyenv/versions/{series}.*/bin/python"))
        if below:
            found.append(str(below[-1]))
        elif on_path := shutil.which(f"python{series}"):
            found.append(on_path)
        else:
            print(f"try_wheels: no Python {series} here", file=sys.stderr)
    return found


def run(*words: str, cwd: Path, quiet: bool = True) -> str:
    """A command that must succeed; what it printed."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["XDG_CACHE_HOME"] = str(cwd / "cache")
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=environment, timeout=900)
    if done.returncode:
        sys.exit(f"try_wheels: {' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def built(folder: Path) -> tuple[Path, Path]:
    """The wheel and the sdist."""
    run(sys.executable, "-m", "venv", "build", cwd=folder)
    run("build/bin/pip", "install", "-q", "build", cwd=folder)
    run("build/bin/python", "-m", "build", "--outdir", str(folder / "dist"), str(ROOT), cwd=folder)
    return next(folder.glob("dist/*.whl")), next(folder.glob("dist/*.tar.gz"))


def used(folder: Path, python: str, package: Path, *, lab: bool) -> None:
    """Install a package, and use it."""
    run(python, "-m", "venv", "env", cwd=folder)
    run("env/bin/pip", "install", "-q", f"{package}[lab]" if lab else str(package), cwd=folder)
    netmem = str(folder / "env/bin/netmem")
    version = run(netmem, "--version", cwd=folder).strip()
    shutil.copytree(ROOT / "tests" / "lint" / "tiny", folder / "tiny")
    assert "tiny" in run(netmem, "check", "tiny", cwd=folder)
    said = [version]
    if lab:
        said.append(run(netmem, "compile", cwd=folder).partition(",")[0])
        said.append(
            run("env/bin/python", "-m", "netmem.examples.receive_arrays", "2", "2", cwd=folder).strip()
        )
        rows = run(netmem, "demo", "--no-guest", "--size", "4M", cwd=folder).splitlines()
        said.append(f"{sum(row.endswith('ok') for row in map(str.rstrip, rows))} rows of the demo")
    print(f"{package.suffix.lstrip('.')} in {python}: {'; '.join(said)}", flush=True)


def main() -> None:
    """All of it."""
    start = time.monotonic()
    wanted = sys.argv[1:] or pythons()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = built(folder)
        for number, python in enumerate(wanted):
            (folder / str(number)).mkdir()
            used(folder / str(number), python, wheel, lab=True)
        (folder / "sdist").mkdir()
        used(folder / "sdist", wanted[-1], sdist, lab=False)
    print(f"{len(wanted)} Pythons, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
