"""What a guest is made of, without starting one: packages, images, streams, selftests' words, options."""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import json
import lzma
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmem.base.errors import MissingError, NetmemError
from netmem.base.kernel_log import COMPLAINT
from netmem.base.tar import tarfile
from netmem.lab.guest import prepare, tests
from netmem.lab.guest.image import Kernel, cpio, own_kernel
from netmem.lab.guest.machine import _Stream
from netmem.lab.guest.out import unpack_out
from netmem.lab.guest.packages import LOCK, Package, Store, VanishedError, lock_text, read_lock, unpack
from netmem.lab.guest.prepare import choose_version, versions
from netmem.lab.guest.scripts import program

NETMEM = [sys.executable, "-m", "netmem.cli.entry", "guest"]


# -- packages ---------------------------------------------------------------------------------


def make_deb(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """A Debian package with these files."""

    def tar(members: dict[str, bytes], targets: dict[str, str]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:xz") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size, info.mode = len(data), 0o755
                archive.addfile(info, io.BytesIO(data))
            for name, target in targets.items():
                info = tarfile.TarInfo(f"./{name}")
                info.type, info.linkname = tarfile.SYMTYPE, target
                archive.addfile(info)
        return out.getvalue()

    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tar({"control": b"Package: x\n"}, {}),
        "data.tar.xz": tar(files, links or {}),
    }
    out = b"!<arch>\n"
    for name, data in parts.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data
        out += b"\n" * (len(data) % 2)
    return out


class Mirror:
    """A package mirror on the loopback."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = mirror.files.get(self.path)
                self.send_response(200 if data is not None else 404)
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *words: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def package(self, name: str, data: bytes) -> Package:
        path = f"pool/{name}_1_amd64.deb"
        self.files[f"/{path}"] = data
        return Package(name, "1", path, hashlib.sha256(data).hexdigest(), len(data))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    made = Mirror()
    monkeypatch.setenv("NETMEM_MIRROR", made.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield made
    made.close()


def test_packages_are_fetched_once_verified_and_unpacked(mirror):
    deb = make_deb({"usr/bin/tool": b"#!x", "etc/x": b"1"}, {"usr/bin/link": "tool"})
    said = []
    store = Store(said.append, {"host": [mirror.package("tool", deb)]})
    store.fetch(["host"])
    mirror.files.clear()  # from here on nothing is asked for
    store.fetch(["host"])
    root = store.root("host")
    assert (root / "usr/bin/tool").read_bytes() == b"#!x"
    assert (root / "bin/link").resolve() == root / "usr/bin/tool"
    assert store.root("host") == root
    assert len(said) == 2


def test_a_file_that_is_not_what_the_lock_says_is_refused(mirror):
    package = mirror.package("tool", make_deb({"a": b"1"}))
    mirror.files[f"/{package.path}"] = make_deb({"a": b"2"})
    store = Store(lambda text: None, {"host": [package]})
    with pytest.raises(NetmemError) as caught:
        store.fetch(["host"])
    assert caught.value.errno == errno.EBADMSG
    assert os.listdir(store.archives) == []


def test_a_connection_that_breaks_off_is_tried_again(mirror):
    """The first answer ends in the middle."""
    package = mirror.package("tool", make_deb({"a": b"1"}))
    whole, count = mirror.files[f"/{package.path}"], [0]

    class Files(dict):
        def get(self, path, default=None):
            count[0] += 1
            return whole[:20] if count[0] == 1 else whole

    mirror.files = Files()
    store = Store(lambda text: None, {"host": [package]})
    store.fetch(["host"])
    assert count[0] == 2
    assert not store.missing(["host"])


@pytest.mark.parametrize("address", ["deb.debian.org/debian", "", "nonsense://x"])
def test_a_mirror_that_is_no_address_is_one_line(mirror, monkeypatch, address):
    package = mirror.package("tool", b"x")
    monkeypatch.setenv("NETMEM_MIRROR", address)
    with pytest.raises(NetmemError):
        Store(lambda text: None, {"host": [package]}).fetch(["host"])


def test_a_lock_of_an_older_version_does_not_come_back(mirror, monkeypatch):
    one = [Package("x", "1", "pool/x", "0" * 64, 1)]
    store = Store(lambda text: None)
    store.add({"guest": one})
    assert Store(lambda text: None).lock["guest"] == one
    os.utime(store.own_lock, (1, 1))  # the package was installed later
    assert Store(lambda text: None).lock["guest"] != one
    store = Store(lambda text: None)
    store.add({"kernel-9.9.9": one})
    again = Store(lambda text: None)
    assert again.lock["kernel-9.9.9"] == one
    assert again.lock["guest"] != one


def test_a_kernel_that_has_vanished_is_the_newest_of_its_series(mirror, monkeypatch):
    gone = [Package("linux", "1", "pool/gone", "0" * 64, 1)]
    here = [mirror.package("linux", make_deb({"a": b"1"}))]

    class FakeApt:
        """The index, which is apt's own matter."""

        def __init__(self, folder, say):
            pass

        def kernels(self, series=""):
            return ["7.3.9"] if series in ("7.3", "") else []

        def kernel(self, version):
            return {f"kernel-{version}": here}

        def with_dependencies(self, wanted):
            return here

    monkeypatch.setattr(prepare, "Apt", FakeApt)
    said = []
    lock = dict.fromkeys(prepare.RUN_SETS, here) | {"kernel-7.3.4": gone}
    store = Store(said.append, lock)
    assert prepare.supply(store, "7.3.4") == "7.3.9"
    assert any("Linux 7.3.9 takes the place of 7.3.4" in text for text in said)
    assert choose_version(store, "") == "7.3.9"


def test_a_file_that_never_ends_is_not_read_to_its_end(mirror):
    package = mirror.package("tool", b"x" * 100)
    mirror.files[f"/{package.path}"] = b"x" * (8 << 20)
    store = Store(lambda text: None, {"host": [package]})
    with pytest.raises(NetmemError):
        store.fetch(["host"])


def test_what_has_vanished_is_said_as_that(mirror):
    package = mirror.package("tool", b"x")
    mirror.files.clear()
    with pytest.raises(VanishedError):
        Store(lambda text: None, {"host": [package]}).fetch(["host"])


def test_a_fetch_that_failed_does_not_end_the_next(mirror):
    """Downloads are told to end when one of them fails; those of the next fetch are not."""
    gone = Package("gone", "1", "pool/gone", "0" * 64, 1)
    store = Store(lambda text: None, {"one": [gone], "two": [mirror.package("tool", make_deb({"a": b"1"}))]})
    with pytest.raises(VanishedError):
        store.fetch(["one"])
    store.fetch(["two"])
    assert not store.missing(["two"])


def test_no_mirror_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("NETMEM_MIRROR", "http://127.0.0.1:1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Store(lambda text: None, {"host": [Package("tool", "1", "x.deb", "0" * 64, 1)]})
    with pytest.raises(NetmemError, match="is there a network") as caught:
        store.fetch(["host"])
    assert caught.value.errno == errno.EHOSTUNREACH
    with pytest.raises(MissingError, match="netmem guest fetch"):
        store.root("host")


def test_bundles_carry_packages_to_machines_without_a_network(mirror, monkeypatch, tmp_path):
    lock = {
        "host": [mirror.package("one", make_deb({"a": b"1"})), mirror.package("two", make_deb({"b": b"2"}))]
    }
    Store(lambda text: None, lock).write_bundle(tmp_path / "bundle", ["host"])
    mirror.files.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    other = Store(lambda text: None, lock)
    assert other.read_bundle(tmp_path / "bundle") == 2
    assert (other.root("host") / "b").read_bytes() == b"2"
    (tmp_path / "none").write_bytes(b"no archive")
    with pytest.raises(NetmemError) as caught:
        other.read_bundle(tmp_path / "none")
    assert caught.value.errno == errno.EINVAL


def test_a_bundle_with_other_contents_is_refused(mirror, tmp_path):
    package = mirror.package("one", make_deb({"a": b"1"}))
    store = Store(lambda text: None, {"host": [package]})
    with tarfile.open(tmp_path / "bundle", "w") as tar:
        for name, size in ((f"{package.sha256}.deb", package.size), ("../../escape", 3)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(b"?" * size))
    with pytest.raises(NetmemError) as caught:
        store.read_bundle(tmp_path / "bundle")
    assert caught.value.errno == errno.EBADMSG
    assert os.listdir(store.archives) == []


def test_a_package_cannot_write_outside_its_folder(tmp_path):
    archive = tmp_path / "x.deb"
    archive.write_bytes(make_deb({"../../escape": b"1"}))
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises((tarfile.TarError, OSError)):
        unpack(archive, target)
    assert not (tmp_path / "escape").exists()


def test_unpacking_that_fails_leaves_nothing(mirror):
    package = mirror.package("tool", b"this is no package")
    store = Store(lambda text: None, {"host": [package]})
    store.fetch(["host"])
    with pytest.raises(Exception, match=r".") as caught:
        store.root("host")
    assert isinstance(caught.value, NetmemError)
    assert os.listdir(store.roots) == []
    assert not list(store.folder.glob("work.*"))


def test_the_lock_is_whole():
    lock = read_lock()
    assert {"host", "guest", "busybox", "build", "liburing"} <= set(lock)
    assert LOCK.read_text() == lock_text(lock)
    for name, packages in lock.items():
        assert packages, name
        for one in packages:
            assert len(one.sha256) == 64
            assert one.path.startswith("pool/")
            assert one.size > 0


def test_kernels_are_chosen_by_series(mirror):
    one = [Package("x", "1", "x", "0" * 64, 1)]
    store = Store(lambda text: None, {"kernel-7.2.12": one, "kernel-7.3.4": one, "kernel-7.2.9": one})
    assert versions(store) == ["7.3.4", "7.2.12", "7.2.9"]
    assert choose_version(store, "") == "7.3.4"
    assert choose_version(store, "7.2") == "7.2.12"
    assert choose_version(store, "7.2.9") == "7.2.9"
    with pytest.raises(NetmemError) as caught:
        choose_version(store, "seven")
    assert caught.value.errno == errno.EINVAL


def test_a_lock_that_is_none_is_one_line(tmp_path):
    place = tmp_path / "lock"
    for text in ("{", "[]", '{"host": [1]}', '{"host": [["a"]]}'):
        place.write_text(text)
        with pytest.raises(NetmemError) as caught:
            read_lock(place)
        assert caught.value.errno == errno.EINVAL


# -- images -----------------------------------------------------------------------------------


def read_cpio(data: bytes) -> dict[str, tuple[int, bytes]]:
    """A newc archive read back, by the format's own description."""
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + length - 1].decode()
        at += -(-(110 + length) // 4) * 4
        if name == "TRAILER!!!":
            assert len(data) % 4 == 0
            return found
        assert name not in found
        found[name] = mode, data[at : at + size]
        at += -(-size // 4) * 4


names = st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5}){0,2}", fullmatch=True)


@given(st.dictionaries(names, st.binary(max_size=30)))
def test_cpio_reads_back(files):
    # A file is not also a folder.
    files = {n: d for n, d in files.items() if not any(other.startswith(n + "/") for other in files)}
    found = read_cpio(cpio(files, executable=tuple(files)[:1]))
    plain = {name: data for name, (mode, data) in found.items() if stat.S_ISREG(mode)}
    assert plain == files
    for name in files:
        for parent in Path(name).parents:
            assert str(parent) == "." or stat.S_ISDIR(found[str(parent)][0])


def test_own_kernels(tmp_path):
    with pytest.raises(NetmemError) as caught:
        own_kernel(tmp_path / "nothing")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(NetmemError) as caught:
        own_kernel(tmp_path)
    assert caught.value.errno == errno.ENOENT
    image = tmp_path / "arch/x86/boot/bzImage"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"no kernel")
    with pytest.raises(NetmemError) as caught:
        own_kernel(tmp_path)
    assert caught.value.errno == errno.EINVAL
    image.write_bytes(b"\0" * 0x202 + b"HdrS" + b"\0" * 100)
    (tmp_path / "drivers").mkdir()
    (tmp_path / "drivers/virtio_blk.ko.xz").write_bytes(lzma.compress(b"module"))
    (tmp_path / "drivers/gve.ko").write_bytes(b"driver")
    kernel = own_kernel(tmp_path)
    assert (kernel.image, kernel.module("gve"), kernel.module("virtio_blk")) == (image, b"driver", b"module")
    assert kernel.module("overlay") is None
    assert Kernel(image, tmp_path, "x").module("virtio_blk") == b"module"


def archive(members: list[tuple[tarfile.TarInfo, bytes]]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    out.seek(0)
    return out


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_what_a_guest_leaves_stays_below_its_folder(tmp_path):
    """Links, ways up, absolute names, and a link that was there before: nothing is written elsewhere."""
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.mkdir()
    (out / "old").symlink_to(victim)
    members = [
        (entry("./good/file"), b"1"), (entry("../up"), b"2"), (entry("/absolute"), b"3"),
        (entry("link", tarfile.SYMTYPE, str(victim)), b""), (entry("link/x"), b"4"), (entry("old/x"), b"5"),
        (entry("hard", tarfile.LNKTYPE, "../victim/x"), b""), (entry("a/../../up2"), b"6"),
        (entry("device", tarfile.CHRTYPE), b""),
    ]  # fmt: skip
    said: list[str] = []
    assert (
        unpack_out(archive(members), out, said.append) == 2
    )  # good/file, and link/x in a folder of that name
    assert (out / "good/file").read_bytes() == b"1"
    assert os.listdir(victim) == []
    assert sorted(os.listdir(tmp_path)) == ["out", "victim"]
    assert len(said) == 7
    with pytest.raises(NetmemError):
        unpack_out(io.BytesIO(b"no archive" * 100), out, said.append)


# -- streams ----------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 7))
def test_a_stream_ends_at_its_mark_however_it_is_cut(parts, step):
    mark, got = b"\0abcabd\n", bytearray()
    stream = _Stream(None)
    stream.begin(mark, got.extend)
    data = b"".join(parts).replace(mark, b"") + mark[:3]
    whole = data + mark + b"what comes after"
    for at in range(0, len(whole), step):
        stream.take(whole[at : at + step])
    assert bytes(got) == whole[: whole.find(mark)]
    assert stream.ended


def test_complaints_are_told_from_chatter():
    for line in (
        "[    5.1] WARNING: CPU: 1 PID: 12 at net/core/page_pool.c:1 x", "BUG: kernel NULL pointer dereference",
        "[   9.0] NETDEV WATCHDOG: CPU: 0: transmit queue 0 timed out", "Kernel panic - not syncing: x",
        "page_pool_release_retry() stalled pool shutdown: id 3, 4 inflight 60 sec".replace("()", ""),
        "DMAR: [DMA Write] Request device [00:10.0] fault addr 0x0",
    ):  # fmt: skip
        assert COMPLAINT.search(line), line
    for line in (
        "gve: loading out-of-tree module taints kernel.", "gve 0000:00:10.0 eth0: Device link is up.",
        "x86/cpu: WARNING-free", "DEBUG: not a BUG",
    ):  # fmt: skip
        assert not COMPLAINT.search(line), line


# -- selftests --------------------------------------------------------------------------------

KTAP = """\
# Interface: eth0, driver: gve
TAP version 13
1..5
ok 1 devmem.check_rx
# Exception| KeyError: 'combined-count'
# Exception|
not ok 2 iou-zcrx.single
ok 3 devmem.large # SKIP no large pages
not ok 4 a.b # XFAIL known
ok 5 - dash.name
# Totals: pass:1 fail:1
"""


def test_ktap_is_read():
    assert list(tests.read_ktap(KTAP)) == [
        ("devmem.check_rx", "pass", ""), ("iou-zcrx.single", "fail", "KeyError: 'combined-count'"),
        ("devmem.large", "skip", "no large pages"), ("a.b", "limit", "known"), ("dash.name", "pass", ""),
    ]  # fmt: skip


@given(st.text(max_size=300))
def test_ktap_of_anything(text):
    for name, outcome, note in tests.read_ktap("ok 1 x\n" + text):
        assert outcome in ("pass", "fail", "skip", "limit")
        assert name.isprintable()
        assert note.isprintable()


def test_words_stand_for_suites():
    assert tests.suites("devmem") == ("ncdevmem", "drivers/net/hw/devmem.py")
    assert tests.suites("devmem.py") == ("drivers/net/hw/devmem.py",)
    assert tests.suites("drivers/net/new.py") == ("drivers/net/new.py",)
    assert set(tests.suites("zcrx")) < set(tests.suites("all"))
    for parts in (one for suite in tests.PROGRAMS.values() for one in suite.values()):
        check = subprocess.run(["bash", "-n"], input=program(*parts), text=True)
        assert check.returncode == 0


RESULTS = [
    tests.Result("s.py", "good", "pass", 1.0), tests.Result("s.py", "bad", "fail", 2.0, "why & <how>"),
    tests.Result("s.py", "known", "limit", 0.1, "reason"), tests.Result("s.py", "warned", "pass", 1, "", ["WARNING"]),
]  # fmt: skip


def test_formats_say_the_same():
    assert [one.failed for one in RESULTS] == [False, True, False, True]
    data = json.loads(tests.as_json(RESULTS, {"kernel": "7.3.4"}))
    assert [one["outcome"] for one in data["results"]] == ["pass", "fail", "limit", "pass"]
    (suite,) = ElementTree.fromstring(tests.as_junit(RESULTS, {"kernel": "7.3.4"}))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "2", "1")
    again = list(tests.read_ktap(tests.as_ktap(RESULTS)))
    assert [outcome for _, outcome, _ in again] == ["pass", "fail", "limit", "fail"]


# -- command line -----------------------------------------------------------------------------


def refused(*words: str, **environment: str) -> str:
    done = subprocess.run(
        [*NETMEM, *words], capture_output=True, text=True, timeout=90, env={**os.environ, **environment}
    )
    assert done.returncode == 2 or done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run",), "COMMAND"),
        (("run", "--fault", "loss=200%", "true"), "no chance"),
        (("run", "--fault", "colour=1", "true"), "no fault"),
        (("run", "--wire", "string", "true"), "pair, user or tap:NAME"),
        (("run", "--forward", "80", "true"), "--wire user"),
        (("run", "--forward", "99999", "--wire", "user", "true"), "PORT"),
        (("run", "--kernel", "./nothing", "true"), "there is nothing"),
        (("run", "--module", "./nothing.ko", "true"), "does not exist"),
        (("run", "--share", "/nothing", "true"), "does not exist"),
        (("run", "--queues", "17", "true"), "17"),
        (("fetch", "--from", "/nothing"), "does not exist"),
        (("build-module", "/"), "no Makefile"),
    ],
)
def test_wrong_words_are_one_line(words, said, tmp_path):
    assert said in refused(*words, XDG_CACHE_HOME=str(tmp_path), NETMEM_MIRROR="http://127.0.0.1:1")


def test_without_a_network_the_first_run_says_so(tmp_path):
    line = refused("run", "true", XDG_CACHE_HOME=str(tmp_path), NETMEM_MIRROR="http://127.0.0.1:1")
    assert "is there a network" in line


def test_a_kernel_that_is_none_is_said_before_anything_is_fetched(tmp_path):
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"no kernel" * 100)
    line = refused(
        "run",
        "--kernel",
        str(image),
        "true",
        XDG_CACHE_HOME=str(tmp_path),
        NETMEM_MIRROR="http://127.0.0.1:1",
    )
    assert "no kernel image" in line


def test_kconfig_is_a_fragment():
    text = subprocess.run([*NETMEM, "kconfig"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(line.startswith("CONFIG_") and line.endswith(("=y", "=m")) for line in lines)
    assert "CONFIG_NET_DEVMEM=y" in lines
