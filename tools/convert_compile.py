"""Converts every driver of a Linux tree that holds payload in pages, and builds each patch's objects.

    python tools/convert_compile.py TREE [NAME ...]

Asked for: each patch of each series compiles with W=1 and brings no warning that was not there before,
checkpatch.pl finds no error in it, and no verdict gets better than the code deserves: what is listed as going
through a page, a count or a raw sync keeps its requirement from passing. Prints a line a driver.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from netmem.contract.convert import Conversion, Refused, convert
from netmem.contract.lint import tree
from netmem.contract.lint.model import PASS, RANK

CONFIG = (
    "-d", "DEBUG_INFO_BTF", "-d", "GCC_PLUGINS", "-d", "KASAN", "-d", "WERROR", "-d", "MODVERSIONS",
    "-d", "RUST", "-e", "DEBUG_INFO_NONE", "-d", "UBSAN", "-d", "KCOV", "-d", "GCOV_KERNEL", "-d", "KCSAN",
)  # fmt: skip
IMPROVES = {"R3", "R6"}  # what the converter works on; guards may improve R5 where nothing is left of it


def prepare(top: Path) -> None:
    """A configuration with every module, and what a module's objects need."""
    needed = [name for name in ("gcc", "flex", "bison", "bc", "perl") if shutil.which(name) is None]
    if not Path("/usr/include/libelf.h").exists():
        needed += ["libelf-dev", "libssl-dev"]
    if needed:
        print(f"convert-compile: installing {' '.join(needed)}", flush=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *needed], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
    if not (top / ".config").exists() or not (top / "scripts/mod/modpost").exists():
        make = ["make", "-s", f"-j{os.cpu_count()}"]
        for words in ([*make, "allmodconfig"], ["scripts/config", *CONFIG], [*make, "olddefconfig"],
                      [*make, "modules_prepare"]):  # fmt: skip
            subprocess.run(words, cwd=top, check=True, stdout=subprocess.DEVNULL)


def affected(driver: tree.Driver, changed: set[str], top: Path) -> list[str]:
    """The driver's objects that a series has built anew: all of them when a header changes."""
    headers = any(name.endswith(".h") for name in changed)
    names = [os.path.relpath(source, top) for source in driver.sources]
    return [f"{name.removesuffix('.c')}.o" for name in names if headers or name in changed]


class Built:
    """One run of make: ``ok``, and warnings without their line numbers."""

    def __init__(self, top: Path, objects: list[str]) -> None:
        words = ["make", "-s", "-k", "W=1", f"-j{os.cpu_count()}", *objects]
        done = subprocess.run(words, cwd=top, capture_output=True, text=True, timeout=1800)
        said = (done.stdout + done.stderr).splitlines()
        self.ok = done.returncode == 0
        self.errors = [line for line in said if "error:" in line or "***" in line]
        self.warnings = {re.sub(r":\d+(:\d+)?:", ":", line) for line in said if "arning:" in line}


def is_deserved(made: Conversion) -> list[str]:
    """Verdicts that are better than what is left allows."""
    left = {one.rule for one in made.remaining}
    found = []
    for one in made.moved:
        if RANK[one.after] > RANK[one.before] and one.requirement not in IMPROVES and one.requirement != "R5":
            found.append(f"{one.requirement} {one.before} -> {one.after}")
        if one.after == PASS and one.requirement in left and one.requirement != "R3":
            found.append(f"{one.requirement} passes, and something is left of it")
    return found


def try_one(driver: tree.Driver, top: Path) -> tuple[bool, str]:
    """Convert, build step by step, take everything back."""
    try:
        made = convert(Path(driver.name), rename=True)
    except Refused as why:
        return True, f"refused: {why}"
    if not made.series:
        return True, "netmem already"
    moved = (
        ", ".join(f"{one.requirement} {one.before} -> {one.after}" for one in made.moved)
        or "no verdict moved"
    )
    said = f"{len(made.series)} patches, {len(made.remaining)} things remain, {moved}"
    bad = is_deserved(made)
    changed = {name for patch in made.series for name in re.findall(r"^\+\+\+ b/(\S+)", patch.text, re.M)}
    objects = affected(driver, changed, top)
    before = Built(top, objects)
    texts = {name: (top / name).read_bytes() for name in changed}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for patch in made.series:
                file = Path(folder, patch.name)
                file.write_text(patch.text, errors="surrogateescape")
                bad += checked(top, file)
                done = subprocess.run(["git", "apply", str(file)], cwd=top, capture_output=True, text=True)
                if done.returncode:
                    return False, f"{said}; {patch.name} does not apply: {done.stderr.strip()}"
                if before.ok:
                    after = Built(top, objects)
                    bad += [f"{patch.name}: {line}" for line in after.errors[:4]]
                    bad += [f"{patch.name}: {line}" for line in sorted(after.warnings - before.warnings)[:4]]
    finally:
        for name, text in texts.items():
            (top / name).write_bytes(text)
    built = f"{len(objects)} objects built" if before.ok else "not built by this configuration"
    return not bad, f"{said}; {built}" + "".join(f"\n    {line}" for line in bad)


def checked(top: Path, patch: Path) -> list[str]:
    """What checkpatch.pl calls an error, and did not in the files before."""

    def errors(*words: str) -> Counter[str]:
        command = ["perl", "scripts/checkpatch.pl", "--no-signoff", "--terse", "--no-summary", *words]
        done = subprocess.run(command, cwd=top, capture_output=True, text=True, timeout=300)
        return Counter(line.partition("ERROR: ")[2] for line in done.stdout.splitlines() if "ERROR:" in line)

    found = errors(str(patch))
    if found:
        files = re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(errors="replace"), re.M)
        found -= errors("-f", *files)  # lines that were so, and were touched
    return [f"{patch.name}: {one}" for one in found]


def main() -> int:
    top = Path(sys.argv[1]).resolve()
    wanted = sys.argv[2:]
    prepare(top)
    if not (top / ".git").exists():
        subprocess.run(["git", "init", "-q"], cwd=top, check=True)  # git apply wants one above
    failed = 0
    for driver in tree.find(top / "drivers/net", []):
        if not tree.makes_pool(driver) or (wanted and Path(driver.name).name not in wanted):
            continue
        ok, said = try_one(driver, top)
        failed += not ok
        print(
            f"{'ok' if ok else 'FAILED'} {os.path.relpath(driver.name, top / 'drivers/net')}: {said}",
            flush=True,
        )
    print(f"{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
