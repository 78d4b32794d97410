"""Runs live checks on a device of this kernel, and tells what becomes of each.

``python -m netmem.contract.live.run DEVICE PEER [R1,R2]`` tells it as JSON lines as it goes, for who looks on
from outside of a machine that may not survive: ``{"begin": name}``, then the Result's fields.
"""

from __future__ import annotations

import errno
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict

from netmem.base.errors import NetmemError, errno_name
from netmem.base.kernel_log import KernelLog
from netmem.contract.live.checks import CHECKS, Check
from netmem.contract.live.peer import Peer
from netmem.contract.live.rig import Rig
from netmem.contract.report import BLOCKED, ELSEWHERE, FAIL, PASS, UNKNOWN, Result, Unseen, Violation
from netmem.contract.requirements import BY_ID
from netmem.kernel.device import KernelDevice

# Whose fault it is what a kernel complains of, by its words.
BLAME = (
    (re.compile(r"gave up with errno"), "R4"),
    (re.compile(r"Bad page|page_pool leak"), "R7"),
    (re.compile(r"netmem\.h|NULL pointer dereference|page fault|general protection|Oops"), "R5"),
    (re.compile(r"DMA-API.*sync"), "R6"),
    (re.compile(r"DMAR:.*fault|DMA-API"), "R4"),
    (re.compile(r"may be unhealthy|netdev_rx_queue"), "R1"),
    (re.compile(r"page_pool|devmem|refcount|inflight"), "R7"),
)


def blame(complaint: str) -> str:
    """The requirement that a complaint of the kernel's is about; "" for one that tells of none."""
    return next((requirement for words, requirement in BLAME if words.search(complaint)), "")


def judge(check: Check, rig: Rig) -> tuple[Result, list[str]]:
    """Run one check; whose failure a failure is, and what the kernel complained of meanwhile."""
    start = time.monotonic()
    outcome, by, trace = PASS, "", ""
    try:
        evidence = check.run(rig)
    except Unseen as unseen:
        outcome, evidence = UNKNOWN, str(unseen)
    except Violation as violation:
        evidence = violation.text
        if violation.requirement == check.requirement:
            outcome = FAIL
        else:
            outcome, by = BLOCKED, violation.requirement
    except NetmemError as error:
        if error.errno == errno.ENOTCONN:
            raise  # nobody is at the other end any more
        outcome, evidence = FAIL, f"{errno_name(error.errno or 0)}: {error.strerror}"
        trace = traceback.format_exc()
    except Exception as error:
        outcome, evidence, trace = FAIL, f"{type(error).__name__}: {error}", traceback.format_exc()
    complaints, rig.complaints = rig.complaints + rig.log.complaints(), []
    # What names neither a part of netmem nor the device is somebody else's.
    complaints = [text for text in complaints if blame(text) or rig.device.name in text]
    if complaints and outcome in (PASS, UNKNOWN):
        guilty = blame(complaints[0]) or check.requirement
        outcome, by = (FAIL, "") if guilty == check.requirement else (BLOCKED, guilty)
        evidence = f"the kernel complains: {complaints[0]}"
    seconds = time.monotonic() - start
    own = outcome == FAIL
    return Result(
        check.requirement, check.name, check.memory, outcome, evidence, seconds, by, own, trace
    ), complaints


def run(
    name: str,
    peer: str,
    only: tuple[str, ...] = (),
    begin: Callable[[Check], None] = lambda check: None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Result]:
    """Each check's result, as it comes. What is set is undone at the end.

    Errors: those of ``Rig``, ``Peer`` and ``KernelDevice``; EPERM without CAP_NET_ADMIN.
    """
    log = KernelLog()
    readable = log.readable
    blamed: dict[str, str] = {}
    failed: set[str] = set()
    try:
        with Peer(peer) as other, KernelDevice(name) as device:
            if device.undone:
                say(f"{name}: undone what was left behind: {', '.join(device.undone)}")
            rig = Rig(device, other, log)
            try:
                for check in wanted(only):
                    begin(check)
                    needs = [need for need in BY_ID[check.requirement].needs if need in failed]
                    if needs:
                        text = f"{needs[0]} is not kept"
                        yield Result(check.requirement, check.name, check.memory, BLOCKED, text, by=needs[0])
                        continue
                    result, complaints = judge(check, rig)
                    for text in complaints:
                        if guilty := blame(text):
                            blamed.setdefault(guilty, text)
                    if result.outcome == FAIL:
                        failed.add(result.requirement)
                    elif result.outcome == BLOCKED and result.by:
                        blamed.setdefault(result.by, result.evidence)
                    yield result
            finally:
                rig.close()
    finally:
        log.close()
    if not readable:
        text = "what the kernel complains of cannot be read (/dev/kmsg)"
        yield Result("R5", ELSEWHERE, "any", UNKNOWN, text)
    # A complaint comes once, with whichever check was first to provoke it.
    for requirement in sorted(set(blamed) - failed):
        yield Result(requirement, ELSEWHERE, "any", FAIL, blamed[requirement], attributed=True)


def wanted(only: Iterable[str] = ()) -> list[Check]:
    """The checks of some requirements, or all."""
    chosen = set(only)
    return [check for check in CHECKS if not chosen or check.requirement in chosen]


def main() -> None:
    """As the module says; exit status 2 with a line on standard error when nothing could be checked."""
    name, peer, *rest = sys.argv[1:]
    only = tuple(rest[0].split(",")) if rest else ()

    def say(**words: object) -> None:
        print(json.dumps(words), flush=True)

    try:
        for result in run(name, peer, only, lambda check: say(begin=check.name)):
            say(**asdict(result))
    except NetmemError as error:
        print(error.strerror, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
