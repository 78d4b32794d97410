"""Which packages a guest is made of, asked of apt: its signed index, a state of its own, no root."""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from netmem.base.errors import MissingError, NetmemError
from netmem.lab.guest.packages import Lock, Package, Say, mirror

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES = ("trixie", "trixie-backports", "forky")
LIMIT_S = 180.0
CLOUD, FULL = "cloud-amd64", "amd64"  # flavours: what a cloud needs, and all drivers
SERIES = 2  # how many the lock holds, the newest of each

# Names, each with its suite. Dependencies come by themselves, except for sets in ALONE.
_BACKPORTS = "trixie-backports"
SETS: dict[str, tuple[tuple[str, str], ...]] = {
    "host": (
        ("qemu-system-x86", _BACKPORTS), ("qemu-system-common", _BACKPORTS),
        ("qemu-system-data", _BACKPORTS), ("seabios", _BACKPORTS), ("e2fsprogs", ""), ("xz-utils", ""),
    ),
    "busybox": (("busybox-static", ""),),
    "guest": tuple(
        (name, "")
        for name in (
            "bash", "dash", "coreutils", "python3", "python3-yaml", "ethtool", "iproute2", "socat", "iperf3",
            "kmod", "iputils-ping", "procps", "util-linux", "mount", "tcpdump", "grep", "sed", "gawk",
            "hostname", "diffutils", "findutils", "less", "tar", "gzip", "python3-numpy",
        )
    ),
    "build": (
        ("gcc", ""), ("make", ""), ("libc6-dev", ""), ("linux-libc-dev", _BACKPORTS), ("bash", ""),
        ("coreutils", ""), ("python3", ""), ("python3-yaml", ""), ("python3-jsonschema", ""), ("grep", ""),
        ("sed", ""), ("gawk", ""),
    ),
}  # fmt: skip
ALONE: dict[str, tuple[tuple[str, str], ...]] = {"liburing": (("liburing-dev", "forky"),)}


class Apt:
    """apt with its index below ``folder``. MissingError without apt or Debian's keys."""

    def __init__(self, folder: Path, say: Say) -> None:
        if not shutil.which("apt-get"):
            raise MissingError(
                "apt-get is not installed, which resolves packages: use the lock file that netmem came with"
            )
        if not KEYS.exists():
            raise MissingError(
                f"{KEYS} is missing, which verifies packages: apt install debian-archive-keyring"
            )
        self._state = folder / "apt"
        for name in ("lists/partial", "cache/archives/partial"):
            (self._state / name).mkdir(parents=True, exist_ok=True)
        (self._state / "status").touch()
        lines = [f"deb [signed-by={KEYS}] {mirror()} {suite} main\n" for suite in SUITES]
        (self._state / "sources.list").write_text("".join(lines))
        say(f"reading the index of {mirror()}")
        self._run("apt-get", "update", "-qq", "-o", "Acquire::Languages=none")

    def _run(self, program: str, *words: str) -> str:
        state = self._state
        settings = {
            "Dir::Etc::sourcelist": state / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null", "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": state, "Dir::State::lists": state / "lists", "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache", "APT::Architecture": "amd64", "APT::Architectures": "amd64",
            "APT::Install-Recommends": "false", "APT::Default-Release": "trixie", "APT::Sandbox::User": "",
        }  # fmt: skip
        argv = [program, *(word for k, v in settings.items() for word in ("-o", f"{k}={v}")), *words]
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            text = f"apt did not finish in {LIMIT_S:g} s: is there a network?"
            raise NetmemError(errno.ETIMEDOUT, text) from None
        if done.returncode or "Failed to fetch" in done.stderr:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise NetmemError(errno.EHOSTUNREACH, f"apt: {last}")
        return done.stdout

    def with_dependencies(self, wanted: Iterable[tuple[str, str]]) -> list[Package]:
        """Packages and all that they depend on."""
        names = [f"{name}/{suite}" if suite else name for name, suite in wanted]
        said = self._run("apt-get", "-s", "install", *names)
        return self._show(re.findall(r"^Inst (\S+) \((\S+) ", said, re.MULTILINE))

    def alone(self, wanted: Iterable[tuple[str, str]]) -> list[Package]:
        """Packages without what they depend on."""
        found = []
        for name, suite in wanted:
            said = self._run("apt-cache", "madison", name)
            rows = [[cell.strip() for cell in line.split("|")] for line in said.splitlines()]
            versions = [row[1] for row in rows if f" {suite}/" in f" {row[2]}" or not suite]
            if not versions:
                raise NetmemError(errno.ENOENT, f"{mirror()} has no {name} in {suite}")
            found.append((name, versions[0]))
        return self._show(found)

    def _show(self, versions: Iterable[tuple[str, str]]) -> list[Package]:
        asked = [f"{name}={version}" for name, version in versions]
        found = []
        for block in self._run("apt-cache", "show", *asked).split("\n\n"):
            fields = dict(re.findall(r"^(\S+): (.*)$", block, re.MULTILINE))
            if fields:
                found.append(
                    Package(fields["Package"], fields["Version"], fields["Filename"], fields["SHA256"],
                            int(fields["Size"]))
                )  # fmt: skip
        return sorted(set(found))

    def kernels(self, series: str = "") -> list[str]:
        """Versions of the kernels that there are ("7.3.4"), of one series or one version, newest first."""
        said = self._run("apt-cache", "search", "--names-only", rf"^linux-binary-[0-9.]+\+deb13-{CLOUD}$")
        found = re.findall(r"^linux-binary-([0-9.]+)\+deb13-", said, re.MULTILINE)
        mine = [one for one in found if not series or one == series or one.startswith(series + ".")]
        return sorted(mine, key=lambda one: [int(part) for part in one.split(".")], reverse=True)

    def kernel(self, version: str) -> Lock:
        """The sets of one kernel: its image and modules, the headers for modules, its source.

        ``version`` is 7.3.4, for clouds, or 7.3.4-amd64, with all drivers, whose source is the same.
        """
        number, _, flavour = version.partition("-")
        full, series = f"{number}+deb13-{flavour or CLOUD}", ".".join(number.split(".")[:2])
        return {
            f"kernel-{version}": self.alone([(f"linux-binary-{full}", ""), (f"linux-modules-{full}", "")]),
            f"headers-{version}": self.with_dependencies(
                [(f"linux-headers-{full}", _BACKPORTS), ("make", ""), ("gawk", ""), ("sed", ""), ("grep", ""),
                 ("bash", ""), ("coreutils", ""), ("findutils", ""), ("diffutils", ""), ("gcc-14", "")]
            ),
            f"source-{number}": self.alone([(f"linux-source-{series}", "")]),
        }  # fmt: skip

    def lock(self) -> Lock:
        """A whole new lock."""
        found = {name: self.with_dependencies(wanted) for name, wanted in SETS.items()}
        found |= {name: self.alone(wanted) for name, wanted in ALONE.items()}
        series: dict[str, str] = {}
        for version in self.kernels():
            series.setdefault(".".join(version.split(".")[:2]), version)
        for version in list(series.values())[:SERIES]:
            found |= self.kernel(version)
        return found
