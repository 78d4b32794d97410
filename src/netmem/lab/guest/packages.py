"""Debian packages by exact version and checksum: lock file, download, the folders they are unpacked to.

``packages.lock`` beside this module names every file that a guest is made of. What has left the mirror since
is resolved anew by apt, from its signed index.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import http.client
import json
import lzma
import os
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from debian.arfile import ArError, ArFile

from netmem.base import folders
from netmem.base.errors import MissingError, NetmemError
from netmem.base.tar import tarfile

MIRROR = "http://deb.debian.org/debian"
LOCK = Path(__file__).with_name("packages.lock")
DOWNLOADS, TIMEOUT_S, TRIES = 6, 30.0, 3
CHUNK = 1 << 20
GONE = (403, 404, 410)
MERGED = ("bin", "sbin", "lib", "lib64")  # links into usr, which no package brings

Say = Callable[[str], None]


class Package(NamedTuple):
    """One file of the archive: ``path`` below the mirror, ``size`` in bytes."""

    name: str
    version: str
    path: str
    sha256: str
    size: int


Lock = dict[str, list[Package]]
"""Packages by set: ``host``, ``guest``, ``build``, ``kernel-7.3.4``, ``source-7.3`` and the like."""


def read_lock(path: Path = LOCK) -> Lock:
    """The lock file. ENOENT; EINVAL when it is none."""
    try:
        data = json.loads(path.read_text())
        return {name: [Package(*one) for one in packages] for name, packages in data.items()}
    except FileNotFoundError:
        raise NetmemError(errno.ENOENT, f"{path}: no such lock file") from None
    except (ValueError, TypeError, AttributeError):
        raise NetmemError(
            errno.EINVAL, f"{path} is no lock file: `netmem guest fetch --update` makes one"
        ) from None


def lock_text(lock: Lock) -> str:
    """A lock file's text, a package a line."""
    sets = []
    for name in sorted(lock):
        lines = ",\n".join("  " + json.dumps(list(one)) for one in lock[name])
        sets.append(f" {json.dumps(name)}: [\n{lines}\n ]")
    return "{\n" + ",\n".join(sets) + "\n}\n"


def digest(packages: Iterable[Package]) -> str:
    """A name for what packages unpack to."""
    return hashlib.sha256("".join(one.sha256 for one in packages).encode()).hexdigest()[:16]


def mirror() -> str:
    """Where packages come from: $NETMEM_MIRROR, or Debian's own."""
    return os.environ.get("NETMEM_MIRROR", MIRROR).rstrip("/")


class VanishedError(NetmemError):
    """ENOENT: the mirror has this version no more."""


class Store:
    """Packages in the user's cache: ``archives`` as they came, ``roots`` unpacked.

    EACCES when there is no folder that is ours alone.
    """

    def __init__(self, say: Say, lock: Lock | None = None) -> None:
        folder, why = folders.own_folder("netmem/guest")
        if folder is None:
            raise NetmemError(
                errno.EACCES, f"there is no folder for a guest's files: {why}; set XDG_CACHE_HOME"
            )
        self.folder, self.say = folder, say
        self._stop = threading.Event()  # set when the fetch that is at work is to end
        self.own_lock = folder / "packages.lock"
        self.lock = lock or read_lock()
        if lock is None and self._own_is_newer():
            self.lock |= read_lock(self.own_lock)
        self.archives, self.roots = folder / "archives", folder / "roots"
        for one in (self.archives, self.roots):
            one.mkdir(mode=0o700, exist_ok=True)
        # Of processes that were killed.
        for pattern in ("work.*", "images/share.*", "images/*.img.*", "archives/*.part"):
            folders.prune(folder, pattern, keep=0)

    def _own_is_newer(self) -> bool:
        """True when a lock was made here since this package was installed."""
        return self.own_lock.exists() and self.own_lock.stat().st_mtime > LOCK.stat().st_mtime

    def add(self, sets: Lock) -> None:
        """Remember newly resolved sets, here and for the next time."""
        self.lock |= sets
        mine = read_lock(self.own_lock) if self._own_is_newer() else {}
        part = self.own_lock.with_suffix(f".{os.getpid()}")
        part.write_text(lock_text(mine | sets))
        os.replace(part, self.own_lock)

    def packages(self, name: str) -> list[Package]:
        """A set of the lock. ENOENT for one that is not in it."""
        if name not in self.lock:
            text = f"the lock file has no {name}: `netmem guest fetch --update` looks for it"
            raise NetmemError(errno.ENOENT, text)
        return self.lock[name]

    def archive(self, package: Package) -> Path:
        """Where a package's file is, once it was fetched."""
        return self.archives / f"{package.sha256}.deb"

    def missing(self, names: Iterable[str]) -> list[Package]:
        """Packages of these sets that were not fetched yet."""
        return [one for one in self._all(names) if not self.archive(one).exists()]

    def _all(self, names: Iterable[str]) -> list[Package]:
        return list(dict.fromkeys(one for name in names for one in self.packages(name)))

    # -- download -----------------------------------------------------------------------------

    def fetch(self, names: Iterable[str]) -> None:
        """Download what is missing of these sets, verified by their checksums.

        EHOSTUNREACH without a mirror; ENOSPC; EBADMSG for a file that is not what the lock says;
        VanishedError when the mirror has a version no more.
        """
        missing = self.missing(names)
        if not missing:
            return
        total = sum(one.size for one in missing)
        free = shutil.disk_usage(self.folder).free
        if free < 4 * total:
            text = f"{self.folder} has {free >> 20} MiB free, and {4 * total >> 20} MiB are needed"
            raise NetmemError(errno.ENOSPC, text)
        self.say(f"fetching {len(missing)} packages, {total / 1e6:.0f} MB, from {mirror()}")
        self._stop.clear()
        with concurrent.futures.ThreadPoolExecutor(DOWNLOADS) as pool:
            running = [pool.submit(self._download, one) for one in missing]
            try:
                for one in concurrent.futures.as_completed(running):
                    one.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _download(self, package: Package) -> None:
        url = f"{mirror()}/{package.path}"
        for attempt in range(TRIES):
            try:
                self._attempt(url, package)
            except urllib.error.HTTPError as error:
                if error.code in GONE:
                    text = f"{mirror()} has no {package.name} {package.version} any more"
                    raise VanishedError(errno.ENOENT, text) from None
                why = f"{error.code} {error.reason}"
            except urllib.error.URLError as error:
                why = str(error.reason)
            except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
                why = str(error)
            except ValueError:
                text = f"NETMEM_MIRROR={mirror()} is no address such as {MIRROR}"
                raise NetmemError(errno.EINVAL, text) from None
            else:
                return
            if attempt == TRIES - 1:
                text = (
                    f"{package.name} cannot be fetched from {mirror()}: {why}; is there a network? "
                    "NETMEM_MIRROR names another mirror"
                )
                raise NetmemError(errno.EHOSTUNREACH, text)

    def _attempt(self, url: str, package: Package) -> None:
        with contextlib.ExitStack() as undo:
            fd, name = tempfile.mkstemp(dir=self.archives, suffix=".part")
            undo.callback(_unlink, name)
            seen, size = hashlib.sha256(), 0
            with os.fdopen(fd, "wb") as out, urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                while data := answer.read1(CHUNK):
                    if self._stop.is_set():
                        raise NetmemError(errno.EINTR, "the download was broken off")
                    size += len(data)
                    if size > package.size:
                        break
                    seen.update(data)
                    out.write(data)
            if size < package.size:
                raise http.client.IncompleteRead(b"", package.size - size)
            if seen.hexdigest() != package.sha256:
                text = f"{url} is not what the lock file says (SHA-256 {seen.hexdigest()[:16]}...)"
                raise NetmemError(errno.EBADMSG, text)
            os.replace(name, self.archive(package))
            undo.pop_all()

    # -- unpacked -----------------------------------------------------------------------------

    def root(self, name: str) -> Path:
        """The folder that a set is unpacked in, made if need be. ENOENT when it was not fetched."""
        packages = self.packages(name)
        place = self.roots / f"{name}-{digest(packages)}"
        if place.is_dir():
            os.utime(place)
            return place
        for package in packages:
            if not self.archive(package).exists():
                raise MissingError(
                    f"{package.name} is not here: `netmem guest fetch` fetches what a guest needs"
                )
        self.say(f"unpacking {name}: {len(packages)} packages")
        with self.making(place) as work:
            for link in MERGED:
                (work / "usr" / link).mkdir(parents=True)
                (work / link).symlink_to(f"usr/{link}")
            for package in packages:
                unpack(self.archive(package), work)
        folders.prune(self.roots, f"{name.split('-')[0]}-*", keep=6)
        return place

    @contextlib.contextmanager
    def making(self, place: Path) -> Iterator[Path]:
        """A folder to work in, which becomes ``place`` when all went well, and is gone otherwise."""
        work = Path(tempfile.mkdtemp(dir=self.folder, prefix="work."))
        try:
            yield work
            os.chmod(work, 0o755)
            try:
                os.rename(work, place)
            except OSError:
                if not place.is_dir():  # another process was faster
                    raise
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise NetmemError(errno.ENOSPC, f"{self.folder}: no space is left") from None
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)

    # -- bundles ------------------------------------------------------------------------------

    def write_bundle(self, path: Path, names: Iterable[str]) -> None:
        """Everything that these sets need as one file, for a machine without a network."""
        self.fetch(names)
        with tarfile.open(path, "w") as tar:
            for package in self._all(names):
                tar.add(self.archive(package), arcname=f"{package.sha256}.deb")

    def read_bundle(self, path: Path) -> int:
        """Take the packages of a bundle that the lock names; how many. EINVAL for what is none."""
        known = {f"{one.sha256}.deb": one for packages in self.lock.values() for one in packages}
        count = 0
        try:
            with tarfile.open(path, "r|") as tar:
                for member in tar:
                    package = known.get(member.name)
                    source = tar.extractfile(member) if package and member.isfile() else None
                    if package is None or source is None or member.size != package.size:
                        continue
                    data = source.read()
                    if hashlib.sha256(data).hexdigest() != package.sha256:
                        text = f"{path}: {package.name} is not what the lock file says"
                        raise NetmemError(errno.EBADMSG, text)
                    part = self.archives / f"{package.sha256}.part"
                    part.write_bytes(data)
                    os.replace(part, self.archive(package))
                    count += 1
        except tarfile.TarError:
            raise NetmemError(
                errno.EINVAL, f"{path} is no bundle: `netmem guest fetch --to` makes one"
            ) from None
        if not count:
            text = f"{path} holds nothing that this lock file names: make it with the same version of netmem"
            raise NetmemError(errno.EINVAL, text)
        return count


@contextlib.contextmanager
def contents(archive: Path) -> Iterator[tarfile.TarFile]:
    """What a package brings, as a tar archive that is read from its start. ArError, TarError."""
    ar = ArFile(str(archive))
    name = next((one for one in ar.getnames() if one.startswith("data.tar")), None)
    if name is None:
        raise ArError("it has no data")
    data: Any = ar.getmember(name)  # it reads like a file
    with tarfile.open(fileobj=data, mode="r|*") as tar:
        yield tar


def unpack(archive: Path, target: Path) -> None:
    """Unpack a package below a folder. EBADMSG for what is none, or reaches out of the folder."""
    try:
        with contents(archive) as tar:
            for member in tar:
                if not member.isdev():
                    tar.extract(member, target, filter="tar")
    except (ArError, tarfile.TarError, EOFError, lzma.LZMAError) as error:
        raise NetmemError(errno.EBADMSG, f"{archive} is no package: {error}") from None


def _unlink(name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name)
