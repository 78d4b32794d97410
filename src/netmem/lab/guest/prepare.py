"""From what the user asked for to a guest that can be started: packages, kernel, QEMU, images."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from netmem.base.errors import NetmemError
from netmem.lab.guest.apt import ALONE, FULL, SETS, Apt
from netmem.lab.guest.build import module, selftests
from netmem.lab.guest.config import GuestConfig
from netmem.lab.guest.image import Images, Kernel, debian_kernel, own_kernel
from netmem.lab.guest.machine import Guest
from netmem.lab.guest.packages import Say, Store, VanishedError
from netmem.lab.guest.qemu import GuestQemu, find_guest_qemu, kvm_works
from netmem.lab.guest.sources import SELFTESTS, unpacked_source

RUN_SETS = ("host", "busybox", "guest")
TEST_SETS = ("build", "liburing")
GVE = "drivers/net/ethernet/google/gve"


def versions(store: Store) -> list[str]:
    """The kernels that the lock has, newest first."""
    found = [name.removeprefix("kernel-") for name in store.lock if name.startswith("kernel-")]
    return sorted(found, key=lambda one: [int(part) for part in number_of(one).split(".")], reverse=True)


def number_of(version: str) -> str:
    """A version without its flavour."""
    return version.partition("-")[0]


def choose_version(store: Store, asked: str) -> str:
    """The newest kernel of a series or version, asked of the index when the lock has none. ENOENT, EINVAL."""
    if asked and not re.fullmatch(rf"\d+\.\d+(\.\d+)?(-{FULL})?", asked):
        raise NetmemError(
            errno.EINVAL,
            f"kernel {asked}: neither a file, a folder nor a version such as 7.3 or 7.3-{FULL}",
        )
    series, dash, flavour = asked.partition("-")
    known = [
        one
        for one in versions(store)
        if one.partition("-")[2] == flavour and (f"{number_of(one)}.".startswith(f"{series}.") or not series)
    ]
    if known:
        return known[0]
    apt = Apt(store.folder, store.say)
    found = [f"{one}{dash}{flavour}" for one in apt.kernels(series)]
    if not found:
        have = ", ".join(versions(store))
        raise NetmemError(errno.ENOENT, f"kernel {asked}: the mirror has no such kernel; at hand are {have}")
    store.add(apt.kernel(found[0]))
    return found[0]


def supply(
    store: Store, version: str, *, kernel: bool = True, tests: bool = False, headers: bool = False,
    source: bool = False,
) -> str:  # fmt: skip
    """Fetch what a guest needs. What has left the mirror is resolved anew; the version that it is then."""

    def names() -> list[str]:
        found = all_sets(version, tests=tests, headers=headers, source=source)
        return [name for name in found if kernel or not name.startswith("kernel-")]

    try:
        store.fetch(names())
        return version
    except VanishedError as gone:
        store.say(f"{gone.strerror}: taking the newest of its series")
    apt = Apt(store.folder, store.say)
    number, dash, flavour = version.partition("-")
    series = ".".join(number.split(".")[:2])
    newest = [f"{one}{dash}{flavour}" for one in (apt.kernels(series) or apt.kernels())[:1]]
    if not newest:
        raise NetmemError(errno.ENOENT, "the mirror has no kernel of this kind at all")
    if newest[0] != version:
        store.say(f"Linux {newest[0]} takes the place of {version}")
    version = newest[0]
    store.add(apt.kernel(version))
    for name in names():
        if name in SETS:
            store.add({name: apt.with_dependencies(SETS[name])})
        elif name in ALONE:
            store.add({name: apt.alone(ALONE[name])})
    store.fetch(names())
    return version


def all_sets(version: str, *, tests: bool = False, headers: bool = False, source: bool = False) -> list[str]:
    """The sets that a guest with this kernel needs."""
    sets = [*RUN_SETS, f"kernel-{version}"]
    sets += TEST_SETS if tests else ()
    sets += [f"source-{number_of(version)}"] if tests or source else []
    sets += [f"headers-{version}"] if headers else []
    return sets


def renew(store: Store) -> None:
    """Resolve every set anew, from the archive's signed index."""
    store.add(Apt(store.folder, store.say).lock())


def driver_source(say: Say, kernel: str, folder: Path) -> None:
    """Copy gve's source to a new folder. EEXIST when there is something."""
    if folder.exists() and any(folder.iterdir()):
        raise NetmemError(errno.EEXIST, f"{folder} is not empty")
    store = Store(say)
    version = supply(store, choose_version(store, kernel), source=True)
    shutil.copytree(unpacked_source(store, version) / GVE, folder, dirs_exist_ok=True)


def build_module(say: Say, kernel: str, folder: Path) -> list[Path]:
    """Build the module in a folder for a kernel of Debian's; the files. EINVAL without a Makefile."""
    if not any((folder / name).exists() for name in ("Makefile", "Kbuild")):
        text = f"{folder} has no Makefile: `netmem guest source gve FOLDER` makes a copy"
        raise NetmemError(errno.EINVAL, text)
    store = Store(say)
    version = supply(store, choose_version(store, kernel), headers=True)
    return module(store, version, folder)


@dataclass
class Prepared:
    """All that a guest is started from. ``version``: the kernel of Debian's, or whose source goes with it."""

    store: Store
    images: Images
    kernel: Kernel
    version: str
    qemu: GuestQemu
    kvm: bool
    root: Path

    def has_selftest(self, path: str) -> bool:
        """True for a script that this kernel's source has, by its path below the selftests."""
        return (unpacked_source(self.store, self.version) / SELFTESTS / path).is_file()

    def start(self, config: GuestConfig, modules: Sequence[Path] = ()) -> Guest:
        """Start a guest; ``wait_ready`` comes next."""
        return Guest(
            self.qemu, self.kernel, self.images, config, self.store.say, root=self.root, modules=modules,
            kvm=self.kvm,
        )  # fmt: skip


def prepare(
    say: Say, *, kernel: str = "", qemu: str | None = None, tests: bool = False, accel: str = "auto"
) -> Prepared:
    """Fetch and make what is missing. ``accel``: auto, tcg or kvm (EOPNOTSUPP where it does not work)."""
    store = Store(say)
    path = Path(kernel)
    own = bool(kernel) and ("/" in kernel or path.exists())
    version = choose_version(store, "" if own else kernel)
    chosen = own_kernel(path) if own else None  # what is wrong with it is said before anything is fetched
    version = supply(store, version, kernel=not own, tests=tests)
    images = Images(store, say)
    chosen = chosen or debian_kernel(store, version)
    found = find_guest_qemu(store, qemu)
    kvm = accel != "tcg" and kvm_works(found, chosen.image, store.folder, say, again=accel == "kvm")
    if accel == "kvm" and not kvm:
        raise NetmemError(errno.EOPNOTSUPP, "no guest starts under KVM here: accel tcg emulates it")
    root = images.root(selftests(store, version), "selftests") if tests else images.root()
    return Prepared(store, images, chosen, version, found, kvm, root)
