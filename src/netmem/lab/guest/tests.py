"""The kernel's own selftests in a guest: what is run, how its words are read, and which limits are known.

Scripts are run as they are. What a script cannot do on this NIC, here or on hardware, is in ``LIMITS`` with
the reason, and stays in the table.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from xml.etree import ElementTree

from netmem.base.schema import document
from netmem.base.text import printable
from netmem.lab.guest import faults
from netmem.lab.guest.config import GuestError
from netmem.lab.guest.machine import Guest
from netmem.lab.guest.scripts import program
from netmem.lab.guest.sources import FOLDER, POOLS

SCRIPT_S = 300.0
LONGEST = 1000
PASS, FAIL, SKIP, LIMIT = "pass", "fail", "skip", "limit"

# Shell programs, for what the kernel has no script that takes this NIC: files of folder ``programs``, one
# behind the other. Each ends with status 0 or fails.
PROGRAMS: dict[str, dict[str, tuple[str, ...]]] = {
    "ncdevmem": {
        "bind": ("ncdevmem-bind",),
        "receive 64 MiB, every byte validated": ("ncdevmem-receive",),
        "send from a udmabuf": ("ncdevmem-send",),
    },
    "iou-zcrx": {
        "multishot": ("iou-zcrx-multishot", "iou-zcrx"),
        "oneshot": ("iou-zcrx-oneshot", "iou-zcrx"),
    },
}

GROUPS: dict[str, tuple[str, ...]] = {
    "devmem": ("ncdevmem", "drivers/net/hw/devmem.py"),
    "zcrx": ("iou-zcrx", "drivers/net/hw/iou-zcrx.py"),
    "more": (
        "drivers/net/hds.py", "drivers/net/queues.py", "drivers/net/stats.py", "drivers/net/napi_id.py",
        "drivers/net/ping.py", "drivers/net/hw/csum.py", "drivers/net/hw/irq.py", "drivers/net/hw/ntuple.py",
        "drivers/net/hw/rss_ctx.py", "drivers/net/hw/rss_api.py", "drivers/net/hw/tso.py",
        "drivers/net/hw/userns_devmem.py",
    ),
}  # fmt: skip
FAULTS = "faults"
GROUPS["all"] = GROUPS["devmem"] + GROUPS["zcrx"] + GROUPS["more"]

SEPARATE = "gve counts its channels apart (rx, tx); the script asks for combined ones"
BPF = "needs a BPF program, which is not built here"
# (script, test, reason): patterns; the first that matches counts.
LIMITS: tuple[tuple[str, str, str], ...] = (
    (r"iou-zcrx\.py", r".*", SEPARATE),
    (r"ntuple\.py|rss_drv\.py|irq\.py", r".*", SEPARATE),
    (r"hds\.py", r".*xdp.*", BPF),
    (r"ping\.py", r".*xdp.*", BPF),
    (r"queues\.py", r".*xdp.*|.*xsk.*", BPF),
    (r"rss_ctx\.py|rss_api\.py", r".*", "gve has no additional RSS contexts and no flow-hash fields"),
    (r"tso\.py", r".*", "gve has no LSO statistics by queue"),
)
SKIPPED = {  # never run: what they do to this kernel is known
    "drivers/net/stats.py": "the qstats of a gve that is down crash Linux 7.3.4: a NULL dereference",
}


@dataclass
class Result:
    """What one test came to. ``complaints``: the kernel's, while it ran."""

    suite: str
    test: str
    outcome: str
    seconds: float
    note: str = ""
    complaints: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.outcome == FAIL or bool(self.complaints)


def suites(wanted: str) -> tuple[str, ...]:
    """What a word on the command line stands for: a group, or scripts by path or name."""
    if wanted in GROUPS:
        return GROUPS[wanted]
    if wanted in PROGRAMS or wanted == FAULTS:
        return (wanted,)
    known = [one for one in GROUPS["all"] if one == wanted or one.endswith(f"/{wanted}")]
    return tuple(known) or (wanted,)


def read_ktap(text: str) -> Iterator[tuple[str, str, str]]:
    """(test, outcome, note) of every result line; the note of a failure is what was said before it."""
    said: list[str] = []
    for raw in text.splitlines():
        line = printable(raw[:LONGEST].strip())
        match = re.match(r"(not )?ok \d+ (?:- )?([^#]+?)\s*(?:# (\w+) ?(.*))?$", line)
        if not match:
            if line.startswith("#"):
                said.append(line.lstrip("# "))
            continue
        bad, name, word, reason = match.groups()
        if (word or "").upper() == "SKIP":
            yield name, SKIP, reason
        elif (word or "").upper() == "XFAIL":
            yield name, LIMIT, reason
        else:
            telling = next((one for one in reversed(said) if not re.match(r"Exception\|\s*$", one)), "")
            yield name, FAIL if bad else PASS, re.sub(r"^(Exception|Check)\|\s*", "", telling) if bad else ""
        said.clear()


def limit_of(suite: str, test: str) -> str:
    """Why a test cannot pass on this NIC, empty when it should."""
    script = suite.rpartition("/")[2]
    for scripts, tests, why in LIMITS:
        if re.fullmatch(scripts, script) and re.fullmatch(tests, test):
            return why
    return ""


class Runner:
    """Runs suites in guests that ``start`` makes; ``done`` is told every result as it comes."""

    def __init__(
        self, start: Callable[[], Guest], done: Callable[[Result], None], limit: float = SCRIPT_S
    ) -> None:
        self._start, self._done, self._limit = start, done, limit  # of a script, in seconds
        self._guest: Guest | None = None
        self.results: list[Result] = []
        self.release = self.driver = ""

    def run(self, names: tuple[str, ...]) -> None:
        """Run suites one after the other; a guest that dies is a failure, and the next gets another."""
        try:
            for name in names:
                if name in SKIPPED:
                    self._note(Result(name, "", LIMIT, 0.0, SKIPPED[name]))
                    continue
                try:
                    self._suite(name)
                except OSError as error:  # the guest, its models' process, or QEMU
                    console = error.console[-3:] if isinstance(error, GuestError) else []
                    self._note(Result(name, "", FAIL, 0.0, str(error), console))
                    self._drop()
            self._drain()
        finally:
            self._drop()

    def _note(self, result: Result) -> None:
        self.results.append(result)
        self._done(result)

    def _drop(self) -> None:
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    def _ready(self) -> Guest:
        if self._guest is None:
            self._guest = self._start()
            self._guest.wait_ready()
            self.release = self._guest.release
        return self._guest

    def _suite(self, name: str) -> None:
        if name == FAULTS:
            self._faults()
            return
        guest = self._ready()
        if name in PROGRAMS:
            for test, parts in PROGRAMS[name].items():
                before, begin = len(guest.complaints), time.monotonic()
                did = guest.run(program(*parts), self._limit)
                note = "" if did.status == 0 else did.last_words()
                outcome = PASS if did.status == 0 else FAIL
                self._note(
                    Result(name, test, outcome, time.monotonic() - begin, note, guest.complaints[before:])
                )
            return
        folder, _, script = name.rpartition("/")
        before, begin = len(guest.complaints), time.monotonic()
        did = guest.run(f"cd {FOLDER}/{folder} && exec ./{script}", self._limit)
        seconds = time.monotonic() - begin
        found = list(read_ktap(did.text))
        if not found:
            why = limit_of(name, "")
            note = why or did.last_words()
            skipped = re.match(r"[\w.]*KsftSkipEx: (.*)", note)
            found = [("", SKIP, skipped[1])] if skipped else [("", LIMIT if why else FAIL, note)]
        complaints = guest.complaints[before:]
        for test, outcome, note in found:
            why = limit_of(name, test.rpartition(".")[2]) if outcome == FAIL else ""
            short = test.removeprefix(script.removesuffix(".py") + ".")
            self._note(
                Result(name, short, LIMIT if why else outcome, seconds / len(found), why or note, complaints)
            )
            complaints = []

    def _faults(self) -> None:
        for test, scenario in faults.SCENARIOS.items():
            words, known = faults.FINDINGS.get(test, ("$^", ""))
            if known:
                self._drain()  # what there is to be seen is seen before
            guest = self._ready()
            before, begin, died = len(guest.complaints), time.monotonic(), False
            try:
                outcome, note = PASS, scenario(faults.Steps(guest))
            except faults.Unexpected as error:
                outcome, note = FAIL, str(error)
            except OSError as error:
                outcome, note, died = FAIL, str(error), True
                complaints = error.console[-3:] if isinstance(error, GuestError) else []
            if not died:
                expected = faults.EXPECTED.get(test, "$^")
                complaints = [one for one in guest.complaints[before:] if not re.search(expected, one)]
            if known and outcome == FAIL and re.search(words, note):
                outcome, note, complaints = LIMIT, known, []
            self._note(Result(FAULTS, test, outcome, time.monotonic() - begin, note, complaints))
            if died or known:
                self._drop()

    def _drain(self) -> None:
        """After everything: the NIC goes down, and no page pool may stay; no DMA may have been stopped."""
        if self._guest is None:
            return
        guest, begin = self._guest, time.monotonic()
        try:
            left = guest.run(POOLS, 60.0)
            self._note(Result("after all", "page pools drain", PASS if left.status == 0 else FAIL,
                              time.monotonic() - begin, printable(left.text.strip())))  # fmt: skip
            faults = guest.dma_faults()
            self._note(
                Result("after all", "no stopped DMA", FAIL if faults else PASS, 0.0, "; ".join(faults[:3]))
            )
        except OSError as error:
            self._note(Result("after all", "", FAIL, 0.0, str(error)))


# -- formats ----------------------------------------------------------------------------------


def as_json(results: list[Result], about: dict[str, str]) -> str:
    """Everything, for programs."""
    made = {**about, "results": [vars(one) for one in results]}
    return json.dumps(document("guest-test", made), indent=1)


def as_ktap(results: list[Result]) -> str:
    """KTAP (kernel: Documentation/dev-tools/ktap.rst), one line a test."""
    lines = ["KTAP version 1", f"1..{len(results)}"]
    for number, one in enumerate(results, 1):
        name = f"{one.suite}.{one.test}".replace("#", " ").strip(".")
        mark = {SKIP: f" # SKIP {one.note}", LIMIT: f" # XFAIL {one.note}"}.get(one.outcome, "")
        lines += [f"# {text}" for text in ([one.note] if one.failed and one.note else []) + one.complaints]
        lines.append(f"{'not ' if one.failed else ''}ok {number} {name}{mark}")
    return "\n".join(lines)


def as_markdown(results: list[Result], about: dict[str, str]) -> str:
    """A table for documents."""
    lines = ["| selftest | test | result | seconds | note |", "| --- | --- | --- | ---: | --- |"]
    for one in results:
        cells = (one.suite.rpartition("/")[2], one.test, "FAIL" if one.failed else one.outcome,
                 f"{one.seconds:.1f}", one.note)  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join([*lines, "", summary(results, about)])


def summary(results: list[Result], about: dict[str, str]) -> str:
    """One line: what ran, and how much of it came to what."""
    count = {word: sum(one.outcome == word for one in results) for word in (PASS, FAIL, SKIP, LIMIT)}
    complaints = sum(len(one.complaints) for one in results)
    words = ", ".join(f"{number} {word}" for word, number in count.items())
    head = f"Linux {about['kernel']}, gve on QEMU {about['qemu']} ({about['accel']})"
    return f"{head}: {words}, {complaints} complaints of the kernel"


def as_junit(results: list[Result], about: dict[str, str]) -> str:
    """JUnit's XML, a test case a test."""
    bad = sum(one.failed for one in results)
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(root, "testsuite", {
        "name": f"netmem guest test {about.get('kernel', '')}", "tests": str(len(results)),
        "failures": str(bad), "skipped": str(sum(one.outcome in (SKIP, LIMIT) for one in results)),
    })  # fmt: skip
    for one in results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {"classname": one.suite, "name": one.test or one.suite, "time": f"{one.seconds:.2f}"},
        )
        if one.failed:
            ElementTree.SubElement(case, "failure", {"message": one.note}).text = "\n".join(one.complaints)
        elif one.outcome in (SKIP, LIMIT):
            ElementTree.SubElement(case, "skipped", {"message": one.note})
    return ElementTree.tostring(root, encoding="unicode")
