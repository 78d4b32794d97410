"""Compile every kernel before the first packet needs it, once for each version, on two CPUs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from netmem.base import folders, jit
from netmem.base.errors import NetmemError
from netmem.drivers.igb import kernels as igb
from netmem.drivers.softnic import kernels as softnic
from netmem.hw.process import Watchdog, python_argv
from netmem.hw.softnic import step
from netmem.inet import poll
from netmem.inet.tcp import calls
from netmem.inet.udp import kernels as udp
from netmem.lab.selftest import selftest

HELPER_S = 300.0  # a machine that is busy
# What Python or the poll loop calls by address, and with it all that it is made of.
DEVICES, STACK = (step, softnic, igb, udp), (poll, calls)


def ensure_compiled() -> None:
    """Compile everything before it is needed; says so, because it takes a while the first time.

    One process compiles, others that need the same wait for it.
    """
    if jit.is_warm(thorough=True):
        return
    folder = jit.cache_dir()
    if folder is None:
        _tell(f"compiled kernels cannot be kept ({jit.why_no_cache()}): compiling each time ...")
        _compile_all()
        return
    with folders.locked(folder / "lock", _Progress("another process compiles; waiting").tick):
        if jit.is_warm():
            return
        again = jit.is_partly_warm()
        _tell(
            "some compiled kernels are missing, damaged or of other sources: compiling those ..." if again
            else "compiling (once for each version, about half a minute) ..."
        )  # fmt: skip
        _compile_all()


def _compile_all() -> None:
    """All of it, with another process at the device model's and the drivers' kernels meanwhile."""
    with _helper() as helper:
        jit.compile_ahead(STACK)
        if helper is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                helper.wait(HELPER_S)  # what it did not do is done here
    try:
        selftest()
    except OSError as error:
        raise NetmemError(error.errno or 5, f"self-test failed: {error.strerror}") from None


@contextlib.contextmanager
def _helper() -> Iterator[subprocess.Popen[bytes] | None]:
    """A process that compiles DEVICES, where there is a second CPU, and a cache to find its work in."""
    if jit.cache_dir() is None or len(os.sched_getaffinity(0)) < 2:
        yield None
        return
    with subprocess.Popen(
        python_argv("netmem.lab.compiling"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as helper:  # fmt: skip
        watchdog = Watchdog(helper.pid)
        try:
            yield helper
        finally:
            watchdog.dismiss()
            helper.kill()


def _tell(text: str) -> None:
    print(f"netmem: {text}", file=sys.stderr, flush=True)


class _Progress:
    """Says what is waited for, at first and every ten seconds."""

    def __init__(self, text: str) -> None:
        self._text, self._next = text, 0.0

    def tick(self, waited: float) -> None:
        if waited >= self._next:
            self._next = waited + 10.0
            _tell(f"{self._text} ({waited:.0f} s)")


if __name__ == "__main__":
    jit.compile_ahead(DEVICES)
    jit.compile_ahead(
        STACK, backwards=True
    )  # until it meets the other process: what that did is in the cache
