"""What a guest boots from: an initramfs (newc cpio), and file systems that mke2fs makes of folders."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from netmem.base import folders
from netmem.base.errors import NetmemError
from netmem.base.text import printable
from netmem.lab.guest import python
from netmem.lab.guest.packages import Say, Store, digest

GUEST_FILES = Path(__file__).with_name("files")
BOOT_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "ext4", "overlay")
NIC_MODULE = "gve"
DOCS = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian")
MODULES = "usr/lib/modules"
LIMIT_S = 300.0


# -- cpio -------------------------------------------------------------------------------------


def cpio(files: Mapping[str, bytes | str], *, executable: tuple[str, ...] = ()) -> bytes:
    """A newc archive (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).

    ``files``: contents by path, a text for a symbolic link's target; folders come by themselves.
    """
    entries: dict[str, tuple[int, bytes]] = {}
    for path, content in files.items():
        for parent in reversed(Path(path).parents):
            if str(parent) != ".":
                entries.setdefault(str(parent), (stat.S_IFDIR | 0o755, b""))
        if isinstance(content, str):
            entries[path] = (stat.S_IFLNK | 0o777, content.encode())
        else:
            entries[path] = (stat.S_IFREG | (0o755 if path in executable else 0o644), content)
    out = bytearray()
    for number, (path, (mode, content)) in enumerate([*entries.items(), ("TRAILER!!!", (0, b""))], 1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


# -- programs of the host set -----------------------------------------------------------------


def private(root: Path, program: str) -> list[str]:
    """The arguments that run a program of an unpacked set with its own libraries, on whatever system."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    loader = root / "usr/lib64/ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", str(libraries), str(root / program)]


def file_system(host: Path, folder: Path, image: Path, *, spare: int = 16 << 20) -> None:
    """Make ``image`` an ext4 file system with what is in ``folder``, owned by root. ENOSPC and the like."""
    size = sum(-(-about // 4096) * 4096 + 512 for about in _sizes(folder))
    size = -(-(size * 11 // 10 + spare) // (1 << 20)) << 20
    with open(image, "wb") as file:
        os.truncate(file.fileno(), size)
    argv = [
        *private(host, "usr/sbin/mke2fs"), "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-m", "0",
        "-E", "root_owner=0:0,lazy_itable_init=1,nodiscard", "-N", str(sum(1 for _ in _sizes(folder)) + 64),
        "-d", str(folder), str(image),
    ]  # fmt: skip
    conf = host / "etc/mke2fs.conf"
    done: subprocess.CompletedProcess[str] | None = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL,
            env={**os.environ, "MKE2FS_CONFIG": str(conf)},
        )  # fmt: skip
    if done is None or done.returncode:
        image.unlink(missing_ok=True)
        said = done.stderr.strip().splitlines() if done else [f"it took more than {LIMIT_S:g} s"]
        last = printable((said or ["no reason given"])[-1])
        raise NetmemError(errno.EIO, f"no file system can be made of {folder}: {last}")


def _sizes(folder: Path) -> Iterator[int]:
    for place, names, files in os.walk(folder):
        yield from (4096 for _ in names)
        for name in files:
            about = os.lstat(os.path.join(place, name))
            yield about.st_size if stat.S_ISREG(about.st_mode) else 0


# -- kernels ----------------------------------------------------------------------------------


class Kernel:
    """A kernel to boot: image, folder of modules, name, and whether it is the user's own."""

    def __init__(self, image: Path, modules: Path, name: str, *, own: bool = False) -> None:
        self.image, self.modules, self.name, self.own = image, modules, name, own

    def module(self, name: str) -> bytes | None:
        """A module's contents, None when the kernel has none of that name (it may be built in)."""
        pattern = re.compile(re.escape(name).replace("_", "[-_]") + r"\.ko(\.xz|\.gz|\.zst)?$")
        for place, _, files in os.walk(self.modules):
            for file in files:
                if pattern.match(file):
                    return _plain(Path(place) / file)
        return None

    def with_dependencies(self, *names: str) -> dict[str, bytes]:
        """Modules and all that they need, what is needed first; none of what is built in."""
        found: dict[str, bytes] = {}
        for name in names:
            name = name.replace("-", "_")
            content = self.module(name) if name not in found else None
            if content is None:
                continue
            needs = re.search(rb"\0depends=([^\0]*)\0", content)
            found |= self.with_dependencies(*(needs[1].decode().split(",") if needs else ()))
            found[name] = content
        return found


def _plain(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        try:
            return lzma.decompress(data)
        except lzma.LZMAError as error:
            raise NetmemError(errno.EINVAL, f"{path} is damaged: {error}") from None
    if path.suffix == ".ko":
        return data
    raise NetmemError(errno.EOPNOTSUPP, f"{path}: modules are taken plain or compressed by xz")


def debian_kernel(store: Store, version: str) -> Kernel:
    """A kernel of Debian's, unpacked."""
    root = store.root(f"kernel-{version}")
    (modules,) = [one for one in (root / MODULES).iterdir() if one.is_dir()]
    image = next(
        (one for one in (modules / "vmlinuz", *root.glob("boot/vmlinuz-*")) if one.exists()),
        modules / "vmlinuz",
    )
    return Kernel(image, modules, modules.name)


def own_kernel(path: Path) -> Kernel:
    """A kernel of the user's: a build tree, a folder with image and modules, or an image beside them.

    ENOENT where there is none; EINVAL for an image that is no kernel of x86.
    """
    if not path.exists():
        raise NetmemError(errno.ENOENT, f"kernel {path}: there is nothing")
    if path.is_dir():
        names = ("arch/x86/boot/bzImage", "vmlinuz", "bzImage", "boot/vmlinuz")
        image = next((path / name for name in names if (path / name).exists()), None)
        image = image or next(iter(sorted(path.glob("**/vmlinuz*"))), None)
        if image is None:
            raise NetmemError(errno.ENOENT, f"kernel {path}: no bzImage or vmlinuz is in it: was it built?")
        modules = path
    else:
        image, modules = path, path.parent
    if not image.is_file():
        raise NetmemError(errno.EINVAL, f"kernel {image}: this is no file")
    with open(image, "rb") as file:
        head = file.read(0x210)
    if head[0x202:0x206] != b"HdrS" and head[:4] != b"\x7fELF":
        raise NetmemError(errno.EINVAL, f"kernel {image}: this is no kernel image of x86")
    release = path / "include/config/kernel.release"
    name = release.read_text().strip() if release.exists() else image.name
    return Kernel(image, modules, name, own=True)


# -- what is made once and kept ---------------------------------------------------------------


class Images:
    """The images that a guest needs, kept in the store's folder."""

    def __init__(self, store: Store, say: Say) -> None:
        self._store, self._say = store, say
        self.folder = store.folder / "images"
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def root(self, extra: Path | None = None, name: str = "root") -> Path:
        """The guest's file system; with ``extra`` a folder's contents laid over it."""
        store = self._store
        script = b"".join(one.read_bytes() for one in sorted(GUEST_FILES.iterdir()) if one.is_file())
        mark = hashlib.sha256(script + digest(store.packages("guest")).encode())
        if extra is not None:
            mark.update(str(extra).encode())  # made once, by a name that says what it is made of
        image = self.folder / f"{name}-{mark.hexdigest()[:16]}.img"
        if image.exists():
            os.utime(image)
            return image
        self._say("making the guest's file system")
        tree = store.root("guest")
        with store.making(self.folder / f"{image.name}.d") as work:
            shutil.copytree(tree, work, symlinks=True, dirs_exist_ok=True, copy_function=_link)
            for one in DOCS:
                shutil.rmtree(work / one, ignore_errors=True)
            _finish(work)
            if extra is not None:
                shutil.copytree(extra, work, symlinks=True, dirs_exist_ok=True)
            part = self.folder / f"{image.name}.{os.getpid()}"
            file_system(store.root("host"), work, part)
            os.replace(part, image)
        shutil.rmtree(self.folder / f"{image.name}.d", ignore_errors=True)
        folders.prune(self.folder, f"{name}-*.img", keep=3)
        return image

    def python(self) -> Path:
        """A file system with netmem itself, as far as it works without NumPy and Numba."""
        paths = python.sources()
        image = self.folder / f"python-{python.fingerprint(paths)}.img"
        if image.exists():
            os.utime(image)
            return image
        store = self._store
        with store.making(self.folder / f"{image.name}.d") as work:
            python.lay_out(paths, work)
            part = self.folder / f"{image.name}.{os.getpid()}"
            file_system(store.root("host"), work, part, spare=4 << 20)
            os.replace(part, image)
        shutil.rmtree(self.folder / f"{image.name}.d", ignore_errors=True)
        folders.prune(self.folder, "python-*.img", keep=3)
        return image

    def share(self, folder: Path, ends: contextlib.ExitStack) -> Path:
        """A file system with a copy of the user's folder; it goes when ``ends`` does."""
        fd, name = tempfile.mkstemp(dir=self.folder, prefix="share.")
        os.close(fd)
        image = Path(name)
        ends.callback(image.unlink, missing_ok=True)
        file_system(self._store.root("host"), folder, image, spare=4 << 20)
        return image

    def initramfs(self, kernel: Kernel, modules: list[Path]) -> bytes:
        """What the kernel starts from. EINVAL for a module that is not plain."""
        store = self._store
        busybox = store.root("busybox") / "usr/bin/busybox"
        files: dict[str, bytes | str] = {
            "bin/busybox": busybox.read_bytes(), "bin/sh": "busybox",
            "init": (GUEST_FILES / "init").read_bytes(),
            "dev/.keep": b"", "proc/.keep": b"", "sys/.keep": b"",
        }  # fmt: skip
        boot = kernel.with_dependencies(*BOOT_MODULES)
        files |= {f"modules/{name}.ko": content for name, content in boot.items()}
        order = [f"{name}.ko" for name in boot]
        for path in modules:
            if path.suffix != ".ko":
                raise NetmemError(errno.EINVAL, f"module {path}: a module is a .ko; decompress it first")
        given = {path.name for path in modules}
        for path in modules:
            files[f"netmem/modules/{path.name}"] = path.read_bytes()
        nic = {f"{name}.ko": content for name, content in kernel.with_dependencies(NIC_MODULE).items()}
        mine = [name for name in nic if name not in given]
        files |= {f"netmem/modules/{name}": nic[name] for name in mine}
        later = [*(name for name in mine if name != f"{NIC_MODULE}.ko"), *(path.name for path in modules)]
        later += [f"{NIC_MODULE}.ko"] if f"{NIC_MODULE}.ko" in mine else []
        files["modules/order"] = "".join(f"{name}\n" for name in order).encode()
        files["netmem/modules/order"] = "".join(f"{name}\n" for name in later).encode()
        return cpio(files, executable=("bin/busybox", "init"))


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
    return target


def _finish(tree: Path) -> None:
    """What packages' scripts would have done."""
    usr = tree / "usr/bin"
    for link, target in {"sh": "dash", "awk": "gawk", "python": "python3", "editor": "less"}.items():
        if not os.path.lexists(usr / link):
            (usr / link).symlink_to(target)
    for one in (
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "mnt",
        "root",
        "out",
        "share",
        "var/tmp",
        "netmem",
        "netmem/python",
        "etc",
    ):
        (tree / one).mkdir(parents=True, exist_ok=True)
    for name, text in {
        "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/usr/sbin/nologin\n",
        "etc/group": "root:x:0:\nnogroup:x:65534:\n", "etc/hostname": "netmem\n",
        "etc/hosts": "127.0.0.1 localhost netmem\n::1 localhost\n", "etc/resolv.conf": "",
        "etc/nsswitch.conf": "hosts: files\npasswd: files\ngroup: files\n",
    }.items():  # fmt: skip
        path = tree / name
        path.unlink(missing_ok=True)
        path.write_text(text)
    libraries = tree / "usr/lib/x86_64-linux-gnu"
    for name in ("blas", "lapack"):  # update-alternatives would do it
        place = libraries / f"lib{name}.so.3"
        if (libraries / name).is_dir() and not os.path.lexists(place):
            place.symlink_to(f"{name}/lib{name}.so.3")
    shutil.copyfile(GUEST_FILES / "netmem", usr / "netmem")
    (usr / "netmem").chmod(0o755)
    for script in ("setup", "nics", "agent", "pools"):
        place = tree / "netmem" / script
        shutil.copyfile(GUEST_FILES / script, place)
        place.chmod(0o755)
    loader = tree / "etc/ld.so.conf"
    loader.unlink(missing_ok=True)
    loader.write_text("/usr/lib/x86_64-linux-gnu\n")
