"""Programs and modules built with the kernel's own compiler, in a folder of packages that is their system.

A user namespace makes us root there, so nobody has to be root outside.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from netmem.base import folders
from netmem.base.errors import MissingError, NetmemError
from netmem.lab.guest import scripts
from netmem.lab.guest.packages import Store, digest
from netmem.lab.guest.sources import SELFTESTS, unpacked_source

LIMIT_S = 900.0
OURS = ("rx.c", "rx.py", "bind.py")  # at /usr/src/netmem
# Targets by folder below the selftests: what scripts run that is not a script.
PROGRAMS = {
    "net/lib": ("csum", "gro", "xdp_helper"),
    "drivers/net": ("napi_id_helper",),
    "drivers/net/hw": ("ncdevmem", "iou-zcrx", "toeplitz"),
}


def in_root(root: Path, script: str, binds: Mapping[str, Path], *, limit: float = LIMIT_S) -> str:
    """Run a bash script as root of an unpacked set, with folders at ``binds``; what it said.

    MissingError where user namespaces are not allowed; EIO when the script fails, with its last words.
    """
    tool = shutil.which("unshare")
    if tool is None:
        raise MissingError("unshare is not installed (package util-linux), which compilers are run with")
    for one in ("dev", "proc", *(name.strip("/") for name in binds)):
        (root / one).mkdir(parents=True, exist_ok=True)
    here = shlex.quote(str(root))
    lines = ["set -e", f"mount --rbind /dev {here}/dev", f"mount --rbind /proc {here}/proc"]
    lines += [f"mount --rbind {shlex.quote(str(path))} {here}{name}" for name, path in binds.items()]
    lines.append(f"exec chroot {here} /usr/bin/bash -e -c {shlex.quote(script)}")
    argv = [tool, "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c",
            "\n".join(lines)]  # fmt: skip
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/tmp"}
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
        start_new_session=True, env=environment,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=limit)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise NetmemError(errno.ETIMEDOUT, f"the build did not finish in {limit:g} s") from None
        raise
    if process.returncode:
        if said.startswith("unshare:"):
            raise MissingError(
                f"compilers run in a user namespace, which this machine does not allow ({_telling(said)}): "
                "sysctl kernel.unprivileged_userns_clone=1, or kernel.apparmor_restrict_unprivileged_userns=0"
            )
        raise NetmemError(errno.EIO, f"the build failed: {_telling(said)}")
    return said


def _telling(said: str) -> str:
    """The line of a compiler's output that says most."""
    lines = [line for line in said.strip().splitlines() if line] or ["no reason given"]
    return next((line for line in lines if "error:" in line or "undefined reference" in line), lines[-1])


def _shells(root: Path) -> Path:
    """A root with the names that packages' scripts would have made."""
    for link, target in {"sh": "bash", "awk": "gawk"}.items():
        if not os.path.lexists(root / "usr/bin" / link):
            (root / "usr/bin" / link).symlink_to(target)
    return root


def selftests(store: Store, version: str) -> Path:
    """The selftests' folder of a kernel, its programs built: what is laid over the guest's file system."""
    tree = unpacked_source(store, version)
    texts = "".join((scripts.FOLDER / name).read_text() for name in OURS)
    made_of = tree.name + digest(store.packages("build")) + repr(PROGRAMS) + texts
    mark = hashlib.sha256(made_of.encode()).hexdigest()
    version = version.partition("-")[0]
    place = store.roots / f"selftests-{version}-{mark[:16]}"
    if place.is_dir():
        return place
    root, liburing = _shells(store.root("build")), store.root("liburing")
    store.say(f"building the selftests of Linux {version}")
    with store.making(place) as work:
        inside = work / "usr/src/kernel"
        shutil.copytree(tree, inside, symlinks=True)
        ours = work / "usr/src/netmem"
        ours.mkdir()
        for name in OURS:
            shutil.copy(scripts.FOLDER / name, ours)
        compiler = "gcc -static -L/uring/usr/lib/x86_64-linux-gnu"
        steps = ["export CFLAGS='-O2 -static -I/uring/usr/include' LDLIBS=-luring"]
        for folder, names in PROGRAMS.items():
            at = f"/kernel/{SELFTESTS}/{folder}"
            targets = " ".join(f"{at}/{name}" for name in names)
            steps.append(f"make -s -k -C {at} OUTPUT={at} CC='{compiler}' {targets} || :")
        steps.append(f"{compiler} $CFLAGS -o /ours/rx /ours/rx.c -luring || :")
        binds = {"/kernel": inside, "/uring": liburing, "/ours": ours}
        said = in_root(root, "\n".join(steps), binds)
        theirs = (inside / SELFTESTS / folder / one for folder, names in PROGRAMS.items() for one in names)
        made = [ours / "rx", *theirs]
        missing = [path.name for path in made if not path.exists()]
        if "ncdevmem" in missing:
            raise NetmemError(errno.EIO, f"ncdevmem was not built: {_telling(said)}")
        if missing:
            store.say(f"not built: {', '.join(missing)}: {_telling(said)}")
        for path in inside.rglob("*.[oad]"):
            path.unlink()
        shutil.rmtree(inside / "drivers", ignore_errors=True)
    folders.prune(store.roots, "selftests-*", keep=4)
    return place


def module(store: Store, version: str, folder: Path) -> list[Path]:
    """Build a module from a folder with a Makefile against a kernel's headers; the ``.ko`` files.

    For gve: a copy of drivers/net/ethernet/google/gve.
    """
    root = _shells(store.root(f"headers-{version}"))
    found = sorted((root / "usr/src").glob("linux-headers-*"))
    headers = next((one for one in found if not one.name.endswith("-common")), None)
    if headers is None:
        raise NetmemError(errno.ENOENT, f"the packages of Linux {version} have no headers")
    script = (
        f"make -j2 -s -C /usr/src/{headers.name} M=/module CONFIG_GVE=m modules\n"
        'for one in /module/*.ko; do strip --strip-debug "$one"; done\n'
    )
    in_root(root, script, {"/module": folder.resolve()})
    return sorted(folder.glob("*.ko"))
