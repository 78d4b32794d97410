"""Runs checks where a crash cannot take the report with it: in a worker process, with a time limit each."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import inspect
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from netmem.base import cuda
from netmem.base.errors import MissingError, NetmemError
from netmem.contract.conformance import CHECKS, Check
from netmem.contract.interface import lacks
from netmem.contract.report import BLOCKED, CRASH, FAIL, PASS, Result, Violation
from netmem.contract.rig import MADE, MakeDriver, Rig, device_model
from netmem.hw.process import Watchdog, python_argv
from netmem.hw.qemu.find import find_qemu
from netmem.lab.compiling import ensure_compiled
from netmem.memory import sanitizer
from netmem.testing.net import Network

LIMIT_S = 30.0
PATIENCE = 2  # checks that may hang before the others get AFTER_HANGS_S only
AFTER_HANGS_S = 5.0
START_S, READY_S = 120.0, 10.0  # to import the driver; to open a device with it
SOME = 4  # of what is missing is named
UNREADABLE = ("dmabuf", "bar", "cuda")
HUNG = "did not end"
LOOKED = "looked at unreadable payload memory"
CONVERSIONS = ("netmem_is_net_iov", "netmem_to_page", "netmem_to_net_iov", "page_to_netmem")


class CannotRun(Exception):
    """The driver cannot be checked at all: no such class, or no device model for it."""


def load(name: str) -> MakeDriver:
    """The driver class that ``module:Class`` names. CannotRun in one line."""
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise CannotRun(f"{name!r} is not MODULE:CLASS, such as netmem.drivers.softnic:SoftnicDriver")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made: MakeDriver = getattr(importlib.import_module(module), attribute)
        device_model(made)
    except ImportError as error:
        raise CannotRun(f"cannot import {module}: {error}") from None
    except AttributeError:
        raise CannotRun(f"{module} has no {attribute}") from None
    except ValueError as error:
        raise CannotRun(f"{name}: {error}") from None
    except Exception as error:
        raise CannotRun(f"importing {module} raised {type(error).__name__}: {error}") from None
    if missing := lacks(made):
        more = f", and {len(missing) - SOME} more" if len(missing) > SOME else ""
        text = f"{name} is no driver yet; missing, or different: {'; '.join(missing[:SOME])}{more}"
        raise CannotRun(f"{text} (netmem.netdev.driver.Driver has them all)")
    return made


def plan(make_driver: MakeDriver, only: tuple[str, ...] = ()) -> list[tuple[Check, str]]:
    """Every (check, memory) that the driver's device model allows, in order, for ``only`` some or all."""
    memory = {"softnic": ("none", "pages", "dmabuf"), "igb": ("none", "pages", "dmabuf", "bar")}
    have = memory[device_model(make_driver)]
    if device_model(make_driver) == "softnic" and cuda.available():
        have = (*have, "cuda")
    return [
        (check, kind)
        for check in CHECKS
        for kind in check.memory
        if kind in have and (not only or check.requirement in only)
    ]


@contextlib.contextmanager
def _conversions(make_driver: MakeDriver) -> Iterator[list[str]]:
    """Which conversions the driver's module calls meanwhile: allowed, and advised against."""
    module = sys.modules.get(getattr(make_driver, "__module__", ""), None)
    called: list[str] = []
    before = {name: getattr(module, name) for name in CONVERSIONS if hasattr(module, name)}

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if name not in called:
                called.append(name)
            return real(*args)

        return call

    for name, real in before.items():
        setattr(module, name, counting(name, real))
    try:
        yield called
    finally:
        for name, real in before.items():
            setattr(module, name, real)


def _make_room() -> None:
    """Let go of what earlier checks left in circles: their descriptors count against this process's limit."""
    if len(os.listdir("/proc/self/fd")) > resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4:
        gc.collect()


def judge(check: Check, make_driver: MakeDriver, memory: str) -> Result:
    """Run one check here and now, and tell whose failure a failure is."""
    _make_room()
    rigs: list[Rig] = []
    token = MADE.set(rigs)
    start = time.monotonic()
    error: BaseException | None = None
    evidence = trace = ""
    try:
        with sanitizer.collecting() as trapped, _conversions(make_driver) as called:
            evidence = check.run(make_driver, memory)
    except Exception as raised:
        error = raised
        trace = traceback.format_exc()
    finally:
        MADE.reset(token)
    seconds = time.monotonic() - start
    notes = [note for rig in rigs for note in rig.notes]
    if isinstance(error, Violation):
        notes.insert(0, (error.requirement, error.text))
    elif isinstance(error, NetmemError) and "(R3)" in str(error):
        notes.insert(0, ("R3", str(error)))
    elif isinstance(error, NetmemError) and "page_pool_create()" in str(error):
        notes.insert(0, ("R4", str(error)))
    # Checks know better whose fault it is; the sanitiser sees what they do not, and more of what they do.
    traps = [] if notes else [(trap.requirement, str(trap)) for trap in trapped if trap.requirement]
    notes += traps
    trace += "".join(f"{trap}\n" for trap in trapped)
    own = [text for requirement, text in notes if requirement == check.requirement]
    seen = f"; the {trapped[0]}" if trapped and not traps else ""
    if own:
        outcome, by, text = FAIL, "", own[0] + seen
    elif error is None and not traps:  # what others are to be blamed for, they are
        outcome, by, text = PASS, "", evidence
    elif notes:
        outcome, by, text = BLOCKED, notes[0][0], notes[0][1] + seen
    else:
        where = _in_driver(error, make_driver)
        outcome, by, text = CRASH if where else FAIL, "", f"{type(error).__name__}: {error}{where}"
    return Result(
        check.requirement, check.name, memory, outcome, text, seconds, by, bool(own), trace, called, notes
    )


def _near(path: str) -> str:
    """A file, as seen from here where it is below."""
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


def _in_driver(error: BaseException | None, make_driver: MakeDriver) -> str:
    """Where in the driver's own code an exception was raised, or passed: file, line and function."""
    if error is None or isinstance(error, NetmemError):
        return ""
    classes = (
        [one for one in inspect.getmro(make_driver) if one is not object]
        if inspect.isclass(make_driver)
        else []
    )
    files = {inspect.getsourcefile(one) for one in classes}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
    if not frames:
        return ""
    if isinstance(error, AssertionError) and traceback.extract_tb(error.__traceback__)[-1] not in frames:
        return ""  # one of the kit's, or of netdev's accounts
    return f" ({_near(frames[-1].filename)}:{frames[-1].lineno}, in {frames[-1].name})"


def run(
    name: str,
    *,
    only: tuple[str, ...] = (),
    limit: float = LIMIT_S,
    sanitize: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """All checks on the driver that ``name`` (module:Class) stands for. CannotRun, MissingError.

    ``sanitize``: with the sanitiser on; what it traps breaks the requirement that it stands for.
    """
    make_driver = load(name)
    if device_model(make_driver) == "igb":
        find_qemu()
    ensure_compiled()
    todo = plan(make_driver, only)
    results: list[Result] = []
    while len(results) < len(todo):
        hung = sum(result.evidence.startswith(HUNG) for result in results)
        left = min(limit, AFTER_HANGS_S) if hung >= PATIENCE else limit
        results += _worker(name, todo, len(results), left, sanitize, progress)
    return results


def _worker(
    name: str,
    todo: list[tuple[Check, str]],
    done: int,
    limit: float,
    sanitize: bool,
    progress: Callable[[str], None],
) -> Iterator[Result]:
    """One worker process: results until all are there, or until it ends or hangs in a check."""
    steps = ",".join(f"{CHECKS.index(check)}:{memory}" for check, memory in todo[done:])
    with tempfile.TemporaryFile() as errors:
        worker = subprocess.Popen(
            python_argv("netmem.contract.run", name, steps), stdout=subprocess.PIPE, stderr=errors,
            stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, **({"NETMEM_SANITIZE": "1"} if sanitize else {})},
        )  # fmt: skip
        assert worker.stdout is not None
        watchdog = Watchdog(worker.pid)  # a driver that hangs would not notice our end
        lines = _Lines(worker.stdout.fileno())
        try:
            lines.next(START_S)  # it says when it has the driver, and when it was ready once, or ends
            ready = lines.next(READY_S)
            if ready is None:
                where = _where_it_hangs(worker.pid, errors, name)
                for check, memory in todo[done:]:
                    evidence = f"not ready in {READY_S:g} s{where}"
                    yield Result(check.requirement, check.name, memory, CRASH, evidence, trace=_said(errors))
                return
            for check, memory in todo[done:]:
                progress(f"{check.requirement} {check.name} ({memory})")
                start = time.monotonic()
                line = lines.next(limit)
                if line:
                    yield Result(**json.loads(line))
                    continue
                lost = _lost(
                    check, memory, worker, time.monotonic() - start, line is None, errors, limit, name
                )
                if not ready and LOOKED in lost.evidence:  # it did not come so far as to see payload
                    lost.outcome, lost.by, lost.attributed = CRASH, "", False
                    lost.evidence = lost.evidence.replace(LOOKED, "ended its process before it was ready")
                yield lost
                return
        finally:
            watchdog.dismiss()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            worker.stdout.close()


class _Lines:
    """Lines from a worker's standard output."""

    def __init__(self, fd: int) -> None:
        self._fd, self._data = fd, b""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def next(self, limit: float) -> bytes | None:
        """The next line; empty when the worker ended, None when ``limit`` seconds are up."""
        deadline = time.monotonic() + limit
        while b"\n" not in self._data:
            if not self._poll.poll(max(0.0, deadline - time.monotonic()) * 1e3):
                return None
            more = os.read(self._fd, 1 << 16)
            if not more:
                return b""
            self._data += more
        line, _, self._data = self._data.partition(b"\n")
        return line


def _said(errors: Any) -> str:
    """The end of what a worker wrote to its standard error."""
    errors.seek(0)
    return str(errors.read().decode(errors="replace")[-4000:])


def _where_it_hangs(pid: int, errors: Any, name: str) -> str:
    """File, line and function of the driver's at which its process is now, as far as it can say."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR1)  # faulthandler
    end, found = time.monotonic() + 2.0, list[tuple[str, str, str]]()
    while not found and time.monotonic() < end:
        time.sleep(0.05)
        found = re.findall(r'File "([^"]+)", line (\d+) in (\w+)', _said(errors))
    mine = name.partition(":")[0].replace(".", "/") + ".py"
    at = next((one for one in found if one[0].endswith(mine)), found[0] if found else None)
    return f" ({_near(at[0])}:{at[1]}, in {at[2]})" if at else ""


def _lost(
    check: Check, memory: str, worker: subprocess.Popen[bytes], seconds: float, hung: bool, errors: Any,
    limit: float, name: str,
) -> Result:  # fmt: skip
    """What to say of a check whose worker hung, or ended."""
    result = Result(check.requirement, check.name, memory, CRASH, "", seconds)
    if hung:
        result.evidence = f"{HUNG} in {limit:g} s{_where_it_hangs(worker.pid, errors, name)}"
        result.trace = _said(errors)
        return result
    code = worker.wait()
    result.trace = _said(errors)
    if code >= 0:
        result.evidence = f"ended its process with status {code}"
        return result
    signalled = signal.Signals(-code).name
    result.evidence = f"ended its process by {signalled}"
    if -code in (signal.SIGSEGV, signal.SIGBUS) and memory in UNREADABLE:
        result.evidence = f"{LOOKED} ({signalled})"
        result.attributed = check.requirement == "R5"
        result.outcome, result.by = (FAIL, "") if result.attributed else (BLOCKED, "R5")
    return result


def _get_ready(make_driver: MakeDriver) -> None:
    """Open a device with the driver once, and close it: one that never gets ready is found at once."""
    with contextlib.suppress(Exception):  # what it raises, the first check says
        Network(nic=device_model(make_driver), alone=True, driver=make_driver).close()


def main() -> None:
    """The worker: ``python -m netmem.contract.run MODULE:CLASS STEPS``; a result as a JSON line each."""
    faulthandler.register(signal.SIGUSR1)
    make_driver = load(sys.argv[1])
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a driver prints is no result
    print("loaded", file=out, flush=True)
    _get_ready(make_driver)
    print("ready", file=out, flush=True)
    for step in sys.argv[2].split(","):
        at, memory = step.split(":")
        print(json.dumps(asdict(judge(CHECKS[int(at)], make_driver, memory))), file=out, flush=True)


if __name__ == "__main__":
    main()

__all__ = ["CannotRun", "MissingError", "judge", "load", "plan", "run"]
