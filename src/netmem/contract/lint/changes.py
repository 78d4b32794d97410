"""What a change made better or worse: two trees judged, or one against a report of before."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netmem.base.text import printable
from netmem.contract.lint import tree
from netmem.contract.lint.check import Report, check, find_drivers, from_json
from netmem.contract.lint.model import FAIL, NA, PARTIAL, RANK, Evidence

TIMEOUT_S = 300


class CannotCompare(Exception):
    """No such revision, a patch that does not apply, a file that is no report: in one line."""


@dataclass
class Change:
    """One requirement of one driver, before and after."""

    driver: str
    requirement: str
    before: str
    after: str
    why: str
    evidence: list[Evidence] = field(default_factory=list)

    @property
    def worse(self) -> bool:
        """True when the verdict fell, or a place was added to one that was failing already."""
        return RANK[self.after] < RANK[self.before] or (
            self.after == self.before and self.after in (FAIL, PARTIAL)
        )


def against(before: list[Report], after: list[Report]) -> list[Change]:
    """What differs, by driver and requirement; new places of a failing one count as worse."""
    old = {report.driver: report for report in before}
    found = []
    for report in after:
        was = old.get(report.driver)
        for id_, verdict in report.requirements.items():
            former = was.requirements.get(id_) if was is not None else None
            if former is None:
                if verdict.verdict in (FAIL, PARTIAL):
                    found.append(
                        Change(report.driver, id_, NA, verdict.verdict, verdict.why, verdict.evidence)
                    )
                continue
            if former.verdict != verdict.verdict:
                found.append(
                    Change(report.driver, id_, former.verdict, verdict.verdict, verdict.why, verdict.evidence)
                )
            elif verdict.verdict in (FAIL, PARTIAL):
                known = _counted(former.evidence)
                added = []
                for place in verdict.evidence:
                    key = (place.file, place.message)
                    if known.get(key, 0) > 0:
                        known[key] -= 1
                    else:
                        added.append(place)
                if added and len(verdict.evidence) > len(former.evidence):
                    found.append(
                        Change(
                            report.driver,
                            id_,
                            verdict.verdict,
                            verdict.verdict,
                            "more places than before",
                            added,
                        )
                    )
    return found


def _counted(places: list[Evidence]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for place in places:
        counts[place.file, place.message] = counts.get((place.file, place.message), 0) + 1
    return counts


def read_baseline(path: str) -> list[Report]:
    """The reports in a file that `--format json` wrote."""
    try:
        body: dict[str, Any] = json.loads(Path(path).read_text())
        return [from_json({**one, "looked_at": []}) for one in body["drivers"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CannotCompare(
            f"{path} is no report of netmem check --format json ({type(error).__name__})"
        ) from None


def tree_of(path: str) -> str:
    """Which tree a report is of, in its own words."""
    return str(json.loads(Path(path).read_text()).get("tree", path))


def git_environment(**more: str) -> dict[str, str]:
    """For git on a tree that may be hostile: no configuration but the repository's own, nothing fetched."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {
        **kept, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C",
        "GIT_ALLOW_PROTOCOL": "none", **more,
    }  # fmt: skip


# What a repository's own configuration could have git run. Filters it cannot: only raw objects are read.
GIT = (
    "git", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", "-c", "protocol.allow=never",
    "-c", f"core.attributesFile={os.devnull}", "-c", "core.pager=cat", "-c", "diff.external=",
)  # fmt: skip


def _git(folder: Path, *words: str, data: bytes | None = None) -> bytes:
    try:
        done = subprocess.run(
            [*GIT, "-c", f"safe.directory={folder}", "-C", str(folder), *words],
            capture_output=True, input=data, timeout=TIMEOUT_S, env=git_environment(),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompare(f"git {words[0]}: {error}") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["failed"]
        raise CannotCompare(f"git {words[0]}: {printable(lines[-1])}")
    return done.stdout


@dataclass
class Comparison:
    """Two states of a tree: ``old`` and ``new`` make a folder with each, for the paths given."""

    root: Path
    paths: list[Path]
    old: str
    new: str
    patch: bytes | None = None
    unjudged: list[str] = field(default_factory=list)  # changed C files that belong to no driver judged

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        self.paths = [path.resolve() for path in self.paths]
        for path in self.paths:
            if not path.is_relative_to(self.root):
                raise CannotCompare(printable(f"{path} is not in {self.root}"))

    def compare(self, problems: list[str]) -> list[Change]:
        """Judge both; what differs."""
        with tempfile.TemporaryDirectory(prefix="netmem-check-") as folder:
            before, after = Path(folder, "old"), Path(folder, "new")
            names = self._names()
            _unpack(self.root, self.old, names, before)
            if self.patch is None:
                _unpack(self.root, self.new, names, after)
            else:
                _unpack(self.root, self.old, names, after)
                _git(after, "init", "-q", "--template=")
                _git(after, "apply", "--whitespace=nowarn", "-", data=self.patch)
                for place, dirs, files in os.walk(after):
                    for name in (*dirs, *files):  # a patch can make links, and they can lead anywhere
                        if os.path.islink(one := os.path.join(place, name)):
                            os.unlink(one)
            found = against(self._judge(before, problems), self._judge(after, problems))
            self._name_unjudged(before, after, problems)
            return found

    def _name_unjudged(self, before: Path, after: Path, problems: list[str]) -> None:
        """Nobody must read "0 worse" of a file that nobody looked at."""
        judged: set[str] = set()
        for path in self.paths:
            top = after / path.relative_to(self.root)
            for driver in find_drivers([top], []) if top.exists() else ():
                judged |= {str(one.relative_to(after)) for one in driver.sources}
        folders = {os.path.dirname(one) for one in judged}
        changed = {name for name in _differing(before, after) if name.endswith(WANTED[:2])}
        if self.patch is not None:
            changed |= {
                os.fsdecode(name) for name in _PATCHED.findall(self.patch)
                if name.endswith((b".c", b".h")) and b"drivers/net/" in name
            }  # fmt: skip
        for name in sorted(changed):
            header = name.endswith(".h") and any(_is_below(name, folder) for folder in folders)
            if name not in judged and not header:
                self.unjudged.append(name)
                problems.append(f"{printable(name)}: changed, and in no driver that was judged")

    def _names(self) -> list[str]:
        """What must be there: the paths, and the headers and libraries that drivers use."""
        names = [str(path.relative_to(self.root)) for path in self.paths]
        return sorted({*names, "include/net/libeth", "drivers/net/ethernet/intel/libeth", "Makefile"})

    def _judge(self, folder: Path, problems: list[str]) -> list[Report]:
        (folder / "drivers/net").mkdir(parents=True, exist_ok=True)
        (folder / "Makefile").touch()
        tree.forget()
        paths = [p for path in self.paths if (p := folder / path.relative_to(self.root)).exists()]
        found: list[str] = []
        reports = check(paths, found) if paths else []  # folders of their own: not to be kept
        problems += [text for text in found if text not in problems]
        return reports


_PATCHED = re.compile(rb"^\+\+\+ b/(\S+)", re.M)


def _is_below(name: str, folder: str) -> bool:
    return not folder or name.startswith(folder + "/")


def _differing(before: Path, after: Path) -> set[str]:
    """Files that are not the same in two folders."""
    texts: list[dict[str, bytes]] = []
    for top in (before, after):
        files = [Path(place, name) for place, _, names in os.walk(top) for name in names]
        texts.append(
            {str(one.relative_to(top)): one.read_bytes() for one in files if ".git/" not in str(one)}
        )
    old, new = texts
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


WANTED = (".c", ".h", "Makefile", "Kbuild")
MAX_FILES = 100_000


def _unpack(root: Path, revision: str, names: list[str], to: Path) -> None:
    """C files and Makefiles below ``names``, of a revision or as they lie in the tree (""), to ``to``."""
    to.mkdir(parents=True)
    files = _of_revision(root, revision, names) if revision else _of_tree(root, names)
    for name, text in files:
        target = to / name
        if not tree.is_inside(target.parent, to):
            raise CannotCompare(f"{printable(name)} is not below the tree")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)
        except OSError as error:
            raise CannotCompare(f"{printable(name)}: {error.strerror}") from None


def _of_tree(root: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        top = root / name
        if not tree.is_inside(top, root):
            continue
        found = [top] if top.is_file() else [f / n for f, ns in tree.folders(top, []) for n in ns]
        for path in found:
            if path.name.endswith(WANTED) and tree.is_inside(path, root):
                text = tree.load(str(path))
                if text is not None:
                    yield str(path.relative_to(root)), text


def _of_revision(root: Path, revision: str, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Raw objects: no filter of the tree's configuration runs, no link is made."""
    listed = _git(root, "ls-tree", "-r", "-z", "-l", "--full-tree", revision, "--", *names).split(b"\0")
    wanted: list[tuple[str, str]] = []
    for line in listed:
        about, _, name = line.partition(b"\t")
        words = about.split()
        plain = len(words) == 4 and words[0] in (b"100644", b"100755") and words[3].isdigit()
        if plain and int(words[3]) <= tree.MAX_FILE:
            path = os.fsdecode(name)
            parts = path.split("/")  # a tree object can name anything
            if path.endswith(WANTED) and not {"", ".", "..", ".git"} & set(parts):
                wanted.append((path, words[2].decode()))
        if len(wanted) > MAX_FILES:
            raise CannotCompare(f"more than {MAX_FILES} C files in {revision}")
    data = _git(root, "cat-file", "--batch", data="".join(f"{id_}\n" for _, id_ in wanted).encode())
    at = 0
    for path, _ in wanted:
        end = data.find(b"\n", at)
        found = data[at:end].split()
        if end < 0 or len(found) != 3 or not found[2].isdigit():
            raise CannotCompare(f"an object of {revision} is missing: is the repository whole?")
        size = int(found[2])
        yield path, data[end + 1 : end + 1 + size]
        at = end + size + 2


def _top(paths: list[Path]) -> Path:
    """The repository that a path is in, found by its .git: its configuration may say anything."""
    folder = paths[0].absolute()
    for one in (folder, *folder.parents):
        if (one / ".git").exists():
            return one
    raise CannotCompare(f"{printable(str(folder))} is in no git repository")


def of_git(paths: list[Path], revisions: str) -> Comparison:
    """OLD..NEW of the git tree that the paths are in; OLD alone: against the files as they lie there."""
    match = re.fullmatch(r"([^.\s-]\S*?)(?:\.\.([^.\s]\S*))?", revisions)
    if not match:
        raise CannotCompare(f"{revisions!r} is neither OLD..NEW nor one revision")
    root = _top(paths)
    paths = list(dict.fromkeys(map(_module_of, paths)))
    for one in filter(None, match.groups()):
        _git(root, "rev-parse", "--verify", "--quiet", f"{one}^{{commit}}")
    return Comparison(root, paths, match[1], match[2] or "")


def _module_of(path: Path) -> Path:
    """The folder of the driver that a file belongs to: the nearest with a Makefile; a folder is its own."""
    if not path.is_file():
        return path
    parents = path.absolute().parents
    return next(
        (one for one in parents if (one / "Makefile").exists() or (one / "Kbuild").exists()), path.parent
    )


def of_patch(paths: list[Path], patch: str) -> Comparison:
    """A patch to the tree as it lies there."""
    root = tree.root_of(paths[0].absolute())
    if root is None:
        with contextlib.suppress(CannotCompare):
            root = _top(paths)
    if root is None:
        folder = paths[0].absolute()
        root = folder if folder.is_dir() else folder.parent
    return Comparison(root, paths, "", "", Path(patch).read_bytes())
