"""`netmem compile`: all kernels at once, for an image of a container, or before an audience."""

from __future__ import annotations

import errno
import time

import click

from netmem.base import jit
from netmem.base.errors import NetmemError
from netmem.lab.compiling import ensure_compiled


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def command() -> None:
    """Compile everything now, so that no first run has to: in an image, or before an audience.

    \b
    RUN pip install 'pynetmem[lab]' && netmem compile      # in a Dockerfile, as the user that will run it

    Kernels are kept in ~/.cache/netmem (below $XDG_CACHE_HOME, if that is set), for this user, this version
    and this CPU. For an image that runs on other CPUs set NUMBA_CPU_NAME=generic and NUMBA_CPU_FEATURES=
    there and here. Exit status 1 when they cannot be kept.
    """
    if not jit.COMPILED:
        print("nothing to compile: the compiler is off (NUMBA_DISABLE_JIT)")
        return
    folder = jit.cache_dir()
    if folder is None:
        raise NetmemError(errno.EPERM, f"compiled kernels cannot be kept: {jit.why_no_cache()}")
    if jit.is_warm(thorough=True):
        print(f"all kernels are compiled already, in {folder}")
        return
    start = time.monotonic()
    ensure_compiled()
    print(f"compiled all kernels in {time.monotonic() - start:.0f} s, into {folder}")
