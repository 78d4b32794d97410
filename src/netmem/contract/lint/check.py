"""Verdicts on C drivers: find, parse, follow, judge; on all CPUs, with a cache keyed by content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from netmem.base import folders
from netmem.base.text import printable
from netmem.contract.lint import api, configs, csource, tree
from netmem.contract.lint.flow import Flow
from netmem.contract.lint.model import FAIL, NA, PARTIAL, PASS, RANK, Case, Evidence, Verdict
from netmem.contract.lint.rules import RULES, r1, r2
from netmem.contract.lint.rules.advice import ADVICE
from netmem.contract.lint.world import World

SUPPRESS = re.compile(r"(?:/\*|//|^\s*\*).*?netmem:\s*ignore\s+((?:R[1-7][,\s]*)+)(.*?)(?:\*/|$)")
MAX_LINE = 500  # a longer line suppresses nothing
KEPT_REPORTS = 5000
DRIVER_S = 180  # seconds for one driver: the largest of Linux takes ten
EXTRA_FILES = 12  # files beyond the text filter that a driver may pull in because payload is passed to them


@dataclass
class Report:
    """What was found out about one driver. ``problems``: files that could not be looked at, and why."""

    driver: str
    path: str
    requirements: dict[str, Verdict]
    facts: dict[str, Any] = field(default_factory=dict)
    unused_suppressions: list[Evidence] = field(default_factory=list)
    suppressed: list[Evidence] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    looked_at: list[Evidence] = field(default_factory=list)
    advice: dict[str, list[Evidence]] = field(default_factory=dict)  # of rules A1 and on: it decides nothing

    @property
    def passes(self) -> bool:
        """True when nothing that was asked for fails or is partial, and something was judged."""
        found = [v.verdict for v in self.requirements.values()]
        return all(one in (PASS, NA) for one in found) and (PASS in found or not found)


def judge(
    driver: tree.Driver, root: Path | None, exports: dict[str, str], everything: bool = False
) -> Report:
    """Parse a driver, follow its payload, and apply every rule."""
    problems = list(driver.problems)
    base = root or Path.cwd()
    selection = tree.select(driver, root, exports, everything)
    for source in driver.sources:
        if tree.load(str(source)) is None:
            problems.append(
                f"{_short(str(source), base)}: cannot be read, or larger than {tree.MAX_FILE >> 20} MiB"
            )
    groups = [one for path in selection.own for one in configs.groups(tree.load(path) or b"")]
    asked = [one.asked for one in groups if one.matters]
    case, own = _understood(driver, selection, everything, True)
    report = Report(_short(driver.name, base), _short(str(driver.folder), base), {}, problems=problems)
    report.requirements = _verdicts(case)
    if asked:  # both ways of an #if are judged, and the worse one is told
        other = _verdicts(_understood(driver, selection, everything, False)[0])
        for id_, verdict in other.items():
            if RANK[verdict.verdict] < RANK[report.requirements[id_].verdict]:
                verdict.why += f" (without {', '.join(dict.fromkeys(asked))})"
                report.requirements[id_] = verdict
    for id_, verdict in report.requirements.items():
        _place(driver, id_, verdict)
        if root is None and id_ != "R2" and verdict.confidence == "high" and _uses_libraries(driver):
            verdict.confidence = "low"
            verdict.needs = "the kernel tree: libraries that handle its buffers were not seen"
    _suppress(report, own)
    if report.requirements["R1"].verdict != FAIL:
        found = {one.id: list(one.find(case)) for one in ADVICE}
        report.advice = {id_: places for id_, places in found.items() if places}
    report.facts = _facts(case)
    report.looked_at = [
        Evidence(e.path, e.line, f"{e.what}: {e.call} in {e.function}()" + (" (XDP or test)" if e.xdp else
        ""))
        for e in case.events if e.what not in ("kept", "passed", "write")
    ]  # fmt: skip
    for verdict in report.requirements.values():
        verdict.why = printable(verdict.why)
    places = [one for verdict in report.requirements.values() for one in verdict.evidence]
    places += [one for found in report.advice.values() for one in found]
    for one in (*places, *report.unused_suppressions, *report.suppressed, *report.looked_at):
        one.file, one.message = _short(one.file, base), printable(one.message)
    report.problems = [printable(one) for one in report.problems]
    return report


def _understood(
    driver: tree.Driver, selection: tree.Selection, everything: bool, taken: bool
) -> tuple[Case, list[csource.CFile]]:
    own = [csource.read(path, tree.load(path) or b"", taken) for path in selection.own]
    libraries = [csource.read(path, tree.load(path) or b"") for path in selection.libraries]
    return _follow(driver, own, libraries, everything), own


def _verdicts(case: Case) -> dict[str, Verdict]:
    made = {rule.id: rule.judge(case) for rule in RULES}
    if made["R1"].verdict == FAIL:
        made |= {rule.id: Verdict(NA, "no page pool: nothing to judge yet") for rule in RULES[2:]}
    return made


# Where to look when a verdict has no place of its own: what it is about, or where the driver begins.
_OPERATIONS = rb"\bstruct\s+net_device_ops\s+\w+\s*=|^\w[\w \t*]*\("
_ABOUT = {
    "R1": re.compile(
        rb"(?:netdev_alloc_skb\w*|napi_alloc_skb|dev_alloc_skb|build_skb|napi_alloc_frag\w*|alloc_pages?)\s*\("
    ),
    "R2": re.compile(rb"\bstruct\s+ethtool_ops\s+\w+\s*=", re.M),
}
_BEGINS = re.compile(_OPERATIONS, re.M)
_CURES = {"R1": r1.CURE, "R2": r2.CURE}


def _place(driver: tree.Driver, id_: str, verdict: Verdict) -> None:
    """Every bad verdict names a line of a file, once."""
    if verdict.verdict not in (FAIL, PARTIAL):
        return
    found: dict[tuple[str, int], Evidence] = {}
    for one in verdict.evidence:
        first = found.setdefault((one.file, one.line), one)
        if first is not one and one.message not in first.message:
            first.message += f"; {one.message}"
    verdict.evidence = list(found.values())
    if verdict.evidence or not driver.sources:
        return
    for pattern in filter(None, (_ABOUT.get(id_), _BEGINS)):
        for source in driver.sources:
            text = tree.load(str(source)) or b""
            match = pattern.search(text)
            if match is not None:
                line = text.count(b"\n", 0, match.start()) + 1
                verdict.evidence = [Evidence(str(source), line, verdict.why, _CURES.get(id_, ""))]
                return
    verdict.evidence = [Evidence(str(driver.sources[0]), 1, verdict.why, _CURES.get(id_, ""))]


_LIBRARIES = re.compile(rb"#[ \t]*include[ \t]*<(?:net/libeth|linux/net/intel|linux/bnxt|linux/mlx)")


def _uses_libraries(driver: tree.Driver) -> bool:
    """True for a driver whose buffers may be handled by code that lies elsewhere in a kernel tree."""
    return any(_LIBRARIES.search(tree.load(str(one)) or b"") for one in driver.sources)


def understand(driver: tree.Driver, root: Path | None, exports: dict[str, str]) -> Case:
    """A driver with all its files, and what XDP keeps, understood; nothing is judged yet."""
    selection = tree.select(driver, root, exports, True)
    own = [csource.read(path, tree.load(path) or b"") for path in selection.own]
    libraries = [csource.read(path, tree.load(path) or b"") for path in selection.libraries]
    return _follow(driver, own, libraries, True, keeps_aside=True)


def _follow(
    driver: tree.Driver, own: list[csource.CFile], libraries: list[csource.CFile], everything: bool,
    keeps_aside: bool = False,
) -> Case:  # fmt: skip
    """Follow payload; ``own`` grows by files that it turns out to go to."""
    world = World(own, libraries)
    flow = Flow(world, keeps_aside)

    def more(names: set[str]) -> list[csource.CFile]:
        known = {one.path for one in own}
        fresh = [
            csource.read(path, tree.load(path) or b"")
            for path in _defining(driver, names, known)[:EXTRA_FILES]
        ]
        own.extend(fresh)
        return fresh

    if everything or any(api.MAKES.search(one.text) or api.SPLITS.search(one.text) for one in own):
        flow.run(more)
    return Case(world, flow)


def _defining(driver: tree.Driver, names: set[str], known: set[str]) -> list[str]:
    """The driver's files that define these functions and nobody has read yet."""
    pattern = re.compile(
        rb"^[\w \t*]*\b(" + b"|".join(sorted(re.escape(n.encode()) for n in names)) + rb")\([^;]*?\)\s*\{",
        re.M,
    )
    return [
        str(p) for p in driver.sources
        if str(p) not in known and (text := tree.load(str(p))) is not None and pattern.search(text)
    ]  # fmt: skip


def _short(path: str, base: Path) -> str:
    try:
        short = os.path.relpath(path, base)
        return printable(path if short.startswith("..") else short)
    except ValueError:
        return printable(path)


def _suppress(report: Report, files: Iterable[csource.CFile]) -> None:
    """Take out what comments excuse; note excuses that excuse nothing."""
    marks: dict[tuple[str, int, str], str] = {}
    covers: dict[
        tuple[str, int, str], tuple[str, int, str]
    ] = {}  # a line of code -> the mark that excuses it
    for one in files:
        if b"netmem:" not in one.text:
            continue
        for number, line in enumerate(one.lines, 1):
            match = SUPPRESS.search(line) if len(line) <= MAX_LINE else None
            for id_ in re.findall(r"R[1-7]", match[1]) if match else ():
                mark = one.path, number, id_
                marks[mark] = match[2].strip() if match else ""
                covers[one.path, _covered(one.lines, number), id_] = mark
    used = set()
    for id_, verdict in report.requirements.items():
        if verdict.verdict not in (FAIL, PARTIAL):
            continue
        left = []
        for evidence in verdict.evidence:
            excuse = covers.get((evidence.file, evidence.line, id_))
            if excuse is None:
                left.append(evidence)
            else:
                used.add(excuse)
                evidence.message += f" (ignored: {marks[excuse] or 'no reason given'})"
                report.suppressed.append(evidence)
        if verdict.evidence and not left:
            report.requirements[id_] = Verdict(PASS, f"{verdict.why}: ignored by comment")
        else:
            verdict.evidence = left
    report.unused_suppressions = [
        Evidence(path, line, f"netmem: ignore {id_} excuses nothing here")
        for path, line, id_ in marks if (path, line, id_) not in used
    ]  # fmt: skip


def _covered(lines: list[str], number: int) -> int:
    """The line that a comment on line ``number`` is about: its own, or the next with code."""
    if not lines[number - 1].lstrip().startswith(("/*", "*", "//")):
        return number
    inside = "*/" not in lines[number - 1] and not lines[number - 1].lstrip().startswith("//")
    for at in range(number + 1, len(lines) + 1):
        text = lines[at - 1].strip()
        if not inside and text and not text.startswith(("/*", "//")):
            return at
        inside = (inside or text.startswith("/*")) and "*/" not in text
    return number


def _facts(case: Case) -> dict[str, Any]:
    """What is of interest beside the verdicts."""
    world = case.world
    words = {w for one in world.own for f in one.functions for w in f.words}
    params = sorted(
        {
            w
            for one in world.own
            for w in set(re.findall(r"ETHTOOL_RING_USE_(\w+)", one.text.decode("utf-8", "replace")))
        }
    )
    tx = sorted(
        {
            w
            for one in world.own
            for w in re.findall(r"netmem_tx\s*=\s*(\w+)", one.text.decode("utf-8", "replace"))
        }
    )
    allocated = {label.of for e in case.of("alloc") for label in e.labels}
    return {
        "pools": len(case.creates),
        "separate_header_pool": bool(allocated - case.payload),
        "payload_api": case.api if case.of("alloc") else None,
        "queue_mgmt_ops": b"queue_mgmt_ops" in words,
        "netmem_tx": tx[0] if tx else None,
        "ring_params": params,
        "xdp": b"ndo_bpf" in words
        or b"bpf_prog_run_xdp" in words
        or any(b"ndo_bpf" in o.text for o in world.own),
        "modes": sorted({label.api for e in case.of("alloc") for label in e.labels}),
    }


# -- whole trees --------------------------------------------------------------------------------------


def _version() -> bytes:
    """A hash of this package: verdicts of another version are not its own."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


def cache_folder() -> Path | None:
    """Where verdicts are kept; None without a folder that is ours alone."""
    return folders.own_folder("netmem/lint")[0]


def _key(
    driver: tree.Driver, root: Path | None, exports: dict[str, str], everything: bool, version: bytes
) -> str:
    digest = hashlib.blake2b(version, digest_size=20)
    digest.update(os.fsencode(f"{driver.name} {everything} {root or Path.cwd()}"))
    selection = tree.select(driver, root, exports, everything)
    for path in (*selection.own, *selection.libraries, *map(str, driver.sources)):
        digest.update(os.fsencode(path) + b"\0" + hashlib.blake2b(tree.load(path) or b"").digest())
    return digest.hexdigest()


def to_json(report: Report) -> dict[str, Any]:
    """The documented form."""
    return asdict(report)


def from_json(body: dict[str, Any]) -> Report:
    """The same back."""

    def places(found: list[dict[str, Any]]) -> list[Evidence]:
        return [Evidence(**one) for one in found]

    verdicts = {
        id_: Verdict(v["verdict"], v["why"], places(v["evidence"]), v["confidence"], v["needs"])
        for id_, v in body["requirements"].items()
    }
    return Report(
        body["driver"], body["path"], verdicts, body["facts"], places(body["unused_suppressions"]),
        places(body["suppressed"]), body["problems"], places(body["looked_at"]),
        {id_: places(found) for id_, found in body.get("advice", {}).items()},
    )  # fmt: skip


_shared: dict[str, Any] = {}


class TimeIsUp(Exception):
    """A driver took too long. No OSError: reading a file must not swallow it."""


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """TimeIsUp after so many seconds, where a signal can be had."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again: should somebody have caught the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _one(number: int) -> dict[str, Any]:
    driver = _shared["drivers"][number]
    folder: Path | None = _shared["cache"]
    place = None
    if folder is not None:
        try:
            with _limited(DRIVER_S):
                key = _key(
                    driver, _shared["root"], _shared["exports"], _shared["everything"], _shared["version"]
                )
            place = folder / f"{key}.json"
            body: dict[str, Any] = json.loads(place.read_bytes())
            return body
        except (OSError, ValueError, TimeIsUp):
            pass
    try:
        with _limited(DRIVER_S):
            body = to_json(judge(driver, _shared["root"], _shared["exports"], _shared["everything"]))
    except (Exception, RecursionError) as error:  # one driver must not take the others' verdicts with it
        where = traceback.extract_tb(error.__traceback__)[-1]
        why = f"could not be judged: {type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
        if isinstance(error, TimeIsUp):
            why = f"could not be judged in {DRIVER_S} s"
        base = _shared["root"] or Path.cwd()
        verdicts = {r.id: Verdict(NA, why, confidence="low", needs="a bug report") for r in RULES}
        return to_json(
            Report(_short(driver.name, base), _short(str(driver.folder), base), verdicts, problems=[why])
        )
    if place is not None:
        _save(place, body)
    return body


def _save(place: Path, body: dict[str, Any]) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as file:
            json.dump(body, file)
        os.replace(file.name, place)
    except OSError:
        return  # no cache, then


def find_drivers(paths: Iterable[Path], problems: list[str], all_modules: bool = False) -> list[tree.Driver]:
    """Drivers at these paths: of several modules at one path those of network devices, or all."""
    drivers: list[tree.Driver] = []
    for path in paths:
        found = list(tree.find(path.absolute(), problems))
        if not found:
            problems.append(f"{path.absolute()}: no C files")
        several = len(found) > 1 and not all_modules
        drivers += [d for d in found if tree.is_network_driver(d)] if several else found
    return drivers


def check(
    paths: Iterable[Path],
    problems: list[str],
    *,
    cache: Path | None = None,
    everything: bool = False,
    all_modules: bool = False,
    jobs: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Report]:
    """Reports on every driver at these paths, in the order of their names."""
    paths = [path.absolute() for path in paths]
    drivers = find_drivers(paths, problems, all_modules)
    if not drivers:
        return []
    root = tree.root_of(paths[0])
    _shared.update(
        drivers=drivers, root=root, exports=tree.exports(root, paths[0]), everything=everything, cache=cache,
        version=_version(),
    )  # fmt: skip
    order = sorted(range(len(drivers)), key=lambda n: -sum(_weight(p) for p in drivers[n].sources))
    jobs = min(jobs or os.cpu_count() or 1, len(drivers))
    bodies: list[dict[str, Any]] = []
    if jobs <= 1:
        for number in order:
            bodies.append(_one(number))
            progress(len(bodies), len(order))
    else:
        fork = multiprocessing.get_context("fork")
        try:
            with ProcessPoolExecutor(jobs, mp_context=fork) as pool:
                for done in as_completed([pool.submit(_one, number) for number in order]):
                    bodies.append(done.result())
                    progress(len(bodies), len(order))
        except BrokenProcessPool:
            problems.append("a process that judged drivers was ended (out of memory?): some are missing")
    if cache is not None:
        folders.prune(cache, "*.json", keep=KEPT_REPORTS, age=0)
    return sorted((from_json(body) for body in bodies), key=lambda r: r.driver)


def _weight(path: Path) -> int:
    text = tree.load(str(path))
    return len(text) if text and api.POOLS.search(text) else 0
