"""What an attacker would try: hostile trees, caches that others can write, the current folder, privileges."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from conftest import need
from netmem.base import folders
from netmem.base.board import Board, arena_words, boards
from netmem.base.jit import COMPILED
from netmem.cli import show
from netmem.contract.lint import check as lint
from netmem.contract.lint import tree
from test_check import run as check
from test_cli import NETMEM, Receiver
from test_lint import TINY

LIMIT = 170
ROOT = os.geteuid() == 0


def convert(*words, **options):
    return subprocess.run(
        [*NETMEM, "convert", *map(str, words)], capture_output=True, text=True, timeout=LIMIT, **options
    )


@pytest.fixture
def hostile(tmp_path):
    """A tree of its own to be hostile in."""
    tree = tmp_path / "tree"
    shutil.copytree(TINY, tree)
    return tree


# -- convert ----------------------------------------------------------------------------------------

DRIVER = """
#include <linux/netdevice.h>
#include <net/page_pool/helpers.h>
#include "{include}"
struct q {{ struct page_pool *pool; struct net_device *dev; }};
static int fill(struct q *q) {{ q->page = page_pool_dev_alloc_pages(q->pool); return !q->page; }}
static void make(struct q *q) {{
	struct page_pool_params pp = {{ .flags = PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV }};
	q->pool = page_pool_create(&pp);
	register_netdev(q->dev);
}}
"""


def test_convert_writes_below_its_folder_only(tmp_path):
    victim = tmp_path / "victim.h"
    victim.write_text("struct q { struct page_pool *pool; struct page *page; struct net_device *dev; };\n")
    before = victim.read_bytes()
    tree = tmp_path / "a/b/tree"
    tree.mkdir(parents=True)
    (tree / "evil.c").write_text(DRIVER.format(include="../../../victim.h"))
    (tree / "Makefile").write_text("obj-m += evil.o\n")
    out = tmp_path / "out"
    for words in ([tree], [tree, "-o", out]):
        done = convert(*words, cwd=tmp_path / "a")
        assert "Traceback" not in done.stderr
        assert not re.search(r"^(\+\+\+|---|diff) .*(victim|\.\.)", done.stdout, re.M)
    assert victim.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) in (["a", "victim.h"], ["a", "out", "victim.h"])


def test_convert_names_its_files_itself(tmp_path):
    tree = tmp_path / "x" / "; touch pwned"
    shutil.copytree(TINY, tree)
    out = tmp_path / "out"
    done = convert(tree, "-o", out)
    assert "Traceback" not in done.stderr
    for path in out.glob("**/*") if out.exists() else ():
        assert re.fullmatch(r"[\w.-]+", path.name)


# -- check ------------------------------------------------------------------------------------------


def test_what_is_no_regular_file_is_not_read(hostile):
    os.mkfifo(hostile / "fifo.h")
    (hostile / "zero.h").symlink_to("/dev/zero")
    (hostile / "mem.h").symlink_to("/proc/self/environ")
    (hostile / "core.h").symlink_to("/proc/kcore")
    (hostile / "up").symlink_to("/")
    source = next(hostile.glob("*.c"))
    names = ("fifo.h", "zero.h", "mem.h", "core.h", "/etc/passwd")
    source.write_text("".join(f'#include "{name}"\n' for name in names) + source.read_text())
    start = time.monotonic()
    done = check("--no-cache", "--format", "json", hostile)
    assert time.monotonic() - start < 30
    assert "root:" not in done.stdout
    assert json.loads(done.stdout)["drivers"][0]["requirements"]["R1"]["verdict"] == "pass"


def test_deep_makefiles_and_long_lines_take_no_time(hostile):
    deep = "".join(f"d{n}-y := $(d{n + 1}-y)\n" for n in range(20_000))
    (hostile / "Makefile").write_text((hostile / "Makefile").read_text() + "obj-m += d0.o\n" + deep)
    source = next(hostile.glob("*.c"))
    source.write_text(
        source.read_text() + "/* netmem: ignore " + "R1 , " * 200_000 + "/* x\n" + "/*" * 300_000 + "\n"
    )
    start = time.monotonic()
    done = check("--no-cache", hostile)
    assert time.monotonic() - start < 30
    assert "Traceback" not in done.stderr
    assert "R6" in done.stdout


def test_names_are_harmless_in_every_report(tmp_path):
    name = "@DATA@<img src=x onerror=alert(1)>|`x`\x1b[31m\n</script><script>alert(2)</script>"
    folder = tmp_path / "h" / name.replace("/", "\u2215")
    folder.parent.mkdir()
    shutil.copytree(TINY, folder)
    page = check("--no-cache", "--format", "html", folder.parent).stdout
    outside = re.sub(r'<script id="data".*?</script>', "", page, flags=re.S)
    assert "onerror" not in outside.replace("&lt;img src=x onerror", "")
    assert page.count("<script") == 2
    assert "<img" not in page
    markdown = check("--no-cache", "--format", "markdown", folder.parent).stdout
    row = next(line for line in markdown.splitlines() if "onerror" in line)
    assert "<img" not in row
    assert "\\|" in row
    for kind in ("text", "markdown", "html"):
        done = check("--no-cache", "--format", kind, folder.parent)
        assert "\x1b" not in done.stdout + done.stderr
    assert json.loads(check("--no-cache", "--format", "json", folder.parent).stdout)


def test_the_trees_own_git_configuration_runs_nothing(hostile, tmp_path):
    proof = tmp_path / "pwned"
    evil = f"touch {proof}"

    def git(*words):
        subprocess.run(["git", "-C", hostile, *words], check=True, capture_output=True, timeout=60)

    git("init", "-q")
    git("config", "user.email", "a@example.com")
    git("config", "user.name", "a")
    git("add", "-A")
    git("commit", "-qm", "one")
    (hostile / ".gitattributes").write_text("* filter=evil diff=evil export-subst\n*.h ident\n")
    git("add", "-A")
    git("commit", "-qm", "two")
    for key in ("filter.evil.smudge", "filter.evil.clean", "filter.evil.process", "diff.evil.textconv",
                "diff.evil.command", "core.fsmonitor", "core.sshCommand", "core.pager", "tar.tar.command",
                "core.editor", "diff.external", "credential.helper", "alias.ls-tree"):  # fmt: skip
        git("config", key, evil)
    hooks = hostile / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for hook in ("post-checkout", "post-index-change", "reference-transaction"):
        (hooks / hook).write_text(f"#!/bin/sh\n{evil}\n")
        (hooks / hook).chmod(0o755)
    done = check("--diff", "HEAD~1..HEAD", hostile)
    assert done.returncode in (0, 1), done.stderr
    patch = tmp_path / "p.patch"
    patch.write_text("--- a/new.c\n+++ b/new.c\n@@ -0,0 +1 @@\n+int x;\n")
    check("--patch", patch, hostile)
    convert(hostile)
    assert not proof.exists()


def test_a_repository_around_the_temporary_folder_runs_nothing(hostile, tmp_path):
    """Anybody can make one in /tmp."""
    proof, around = tmp_path / "pwned", tmp_path / "tmp"
    around.mkdir()
    subprocess.run(["git", "-C", around, "init", "-q"], check=True, timeout=60)
    (around / ".git/info").mkdir(exist_ok=True)
    (around / ".git/info/attributes").write_text("*.c filter=evil diff=evil\n*.h filter=evil\n")
    for key in ("filter.evil.clean", "filter.evil.process", "diff.evil.textconv", "diff.evil.command"):
        subprocess.run(["git", "-C", around, "config", key, f"touch {proof}; cat"], check=True, timeout=60)
    source = tmp_path / "old"
    source.mkdir()
    (source / "old.c").write_text(
        DRIVER.format(include="x.h").replace("struct q {", "struct q { struct page *page;")
    )
    done = convert(source, env={**os.environ, "TMPDIR": str(around)})
    assert done.returncode == 0, done.stderr
    assert "netmem_ref" in done.stdout
    assert not proof.exists()


def test_tree_objects_and_patches_write_nothing_elsewhere(hostile, tmp_path):
    victim = tmp_path / "victim.c"

    def git(*words, data=None):
        return subprocess.run(
            ["git", "-C", hostile, *words], check=True, capture_output=True, timeout=60, input=data
        ).stdout.strip()

    git("init", "-q")
    git("config", "user.email", "a@example.com")
    git("config", "user.name", "a")
    git("add", "-A")
    git("commit", "-qm", "one")
    blob = git("hash-object", "-w", "--stdin", data=b"int pwned;\n")
    raw = b"100644 " + str(victim).encode() + b"\0" + bytes.fromhex(blob.decode())
    tree = git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", data=raw)
    commit = git("commit-tree", tree.decode(), "-m", "evil", "-p", "HEAD").decode()
    done = check("--diff", f"HEAD..{commit}", hostile)
    assert "Traceback" not in done.stderr
    assert not victim.exists()
    patch = tmp_path / "p.patch"
    outside = tmp_path / "outside"
    outside.mkdir()
    patch.write_text("".join(
        f"diff --git a/{name} b/{name}\nnew file mode 120000\nindex 0000000..1111111\n--- /dev/null\n+++ b/{name}\n"
        f"@@ -0,0 +1 @@\n+{target}\n\\ No newline at end of file\n"
        for name, target in (("Makefile2", outside / "touched"), ("drivers", outside))
    ))  # fmt: skip
    check("--patch", patch, hostile)
    assert list(outside.iterdir()) == []


def test_links_out_of_the_tree_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    source = next(TINY.glob("*.c")).read_text()
    (secret / "secret.c").write_text(source)
    tree = tmp_path / "d"
    tree.mkdir()
    (tree / "x.c").symlink_to(secret / "secret.c")
    (tree / "y.c").write_text("int x;\n")
    done = check("--no-cache", "--format", "json", tree)
    (driver,) = json.loads(done.stdout)["drivers"]
    verdict = driver["requirements"]["R1"]
    assert verdict["why"] == "no page pool is made, directly or through a library"
    assert [Path(one["file"]).name for one in verdict["evidence"]] == ["y.c"]


def test_one_bad_name_takes_nobodys_verdict_away(hostile, tmp_path):
    source = next(hostile.glob("*.c"))
    source.write_text(f'#include "{"a" * 3000}"\n' + source.read_text())
    makefile = hostile / "Makefile"
    makefile.write_text(makefile.read_text() + f"obj-m += {'b' * 300}.o\nobj-m += a\x1b[31mred.o\n")
    done = check("--format", "json", hostile, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert json.loads(done.stdout)["drivers"][0]["requirements"]["R1"]["verdict"] == "pass", done.stderr
    assert "\x1b" not in convert(hostile).stderr


def test_many_targets_with_many_objects_are_bounded(hostile):
    many = "big-y := " + " ".join(f"b{n}.o" for n in range(4000)) + "\n"
    many += "".join(f"obj-m += t{n}.o\nt{n}-y := $(big-y)\n" for n in range(4000))
    (hostile / "Makefile").write_text((hostile / "Makefile").read_text() + many)
    start = time.monotonic()
    assert "R6" in check("--no-cache", hostile).stdout
    assert time.monotonic() - start < 30


BOARDS = r"""
import os, sys
for text in (b"\2" + bytes(7) + b"\xff" * 8, b"\2" + bytes(7) + (2).to_bytes(8, "little") + b"[]",
             b"\2" + bytes(7) + (3).to_bytes(8, "little") + b"{{{"):
    os.write(os.memfd_create("netmem:board:evil"), text)
print("ready", flush=True)
sys.stdin.read()
"""


POOL = ("posted", "outstanding", "alloc_fast", "alloc_slow", "alloc_empty", "recycle_cached", "recycle_ring",
        "recycle_ring_full", "recycle_released_refcnt")  # fmt: skip


def test_a_board_of_somebody_elses_does_not_end_show():
    with subprocess.Popen(
        [sys.executable, "-c", BOARDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as evil:
        assert evil.stdout.readline() == "ready\n"
        done = subprocess.run([*NETMEM, "show", str(evil.pid)], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 1
    assert "has no netmem device" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_board_says_nothing_to_the_terminal(monkeypatch, capsys):
    board = Board("evil")
    name = "eth0\x1b]0;owned\x07\x1b[2J[/x]\r"
    ring = {"rx_pending": name, "rx_buf_len": 1, "tcp_data_split": "on", "hds_thresh": 0}
    pool = {"id": 1, "buffers": 4, "share": 1, "available": 2, **dict.fromkeys(POOL, 0)}
    queue = {"id": 0, "provider": {"memory": name, "size": 1 << 20, "binding": 1}, "pool": pool}
    device = {
        "pid": 1, "name": name, "driver": name, "link": True, "mtu": 1500, "addresses": [name], "mac": name,
        "ring": ring, "queues": [queue], "retired_pools": [], "sockets": [], "counters": {},
    }  # fmt: skip
    board.write(device)
    told = [content for _, content in boards(os.getpid()) if "owned" in content["name"]]
    console = Console(width=200, force_terminal=True)
    for broken in ({}, {"ring": {}}, {"queues": 5}, {"addresses": 3}, {"sockets": [1]}):
        console.print(show._all([{**told[0], **broken}]))
    board.close()
    out = capsys.readouterr().out
    assert "owned" in out
    assert "\x1b]" not in out
    assert "\x1b[2J" not in out
    assert "\r" not in out
    assert out.count("says of itself what cannot be shown") == 4


def test_an_arena_that_is_cut_short_while_it_is_read_is_an_error_and_no_crash():
    """Mapping it would end in SIGBUS."""
    fd = os.memfd_create("netmem:evil")
    over = threading.Event()

    def flip():
        while not over.is_set():
            os.ftruncate(fd, 8 << 20)
            os.ftruncate(fd, 0)

    thread = threading.Thread(target=flip)
    thread.start()
    seen = set()
    try:
        for _ in range(300):
            try:
                seen.add(len(arena_words(os.getpid(), fd)))
            except ValueError:
                seen.add(-1)
    finally:
        over.set()
        thread.join()
        os.ftruncate(fd, 1 << 40)
        with pytest.raises(ValueError, match="bytes"):
            arena_words(os.getpid(), fd)
        os.close(fd)
    assert seen <= {-1, 0, 1 << 20}


def test_the_time_of_a_driver_is_up_also_while_its_files_are_read(monkeypatch, tmp_path):
    path = tmp_path / "x.c"
    path.write_text("int x;")
    tree.forget()
    with monkeypatch.context() as patch, lint._limited(100):
        patch.setattr(os, "fstat", lambda fd: signal.raise_signal(signal.SIGALRM))
        with pytest.raises(lint.TimeIsUp):
            tree.load(str(path))
    assert tree.load(str(path)) == b"int x;"


# -- the current folder and caches ------------------------------------------------------------------


def test_nothing_of_the_current_folder_is_run(tmp_path):
    for name in ("select.py", "socket.py", "numpy.py", "netmem.py", "json.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\nraise SystemExit(3)\n")
    command = [
        str(Path(sys.executable).with_name("netmem")),
        "recv",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--count",
        "1",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    assert line, process.stderr.read()
    with socket.create_connection(("127.0.0.1", json.loads(line)["port"]), timeout=LIMIT) as sock:
        sock.sendall(b"hello")
    assert process.communicate(timeout=LIMIT) is not None
    assert process.returncode == 0
    assert not (tmp_path / "pwned").exists()


def test_a_cache_that_others_could_write_is_not_used(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    path, why = folders.own_folder("netmem/kernels-x")
    assert path == home / "netmem/kernels-x"
    assert why == ""
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    monkeypatch.setattr(folders, "homes", lambda: [home])
    for part, mode in ((home / "netmem", 0o777), (path, 0o770), (home, 0o777)):
        before = part.stat().st_mode
        part.chmod(mode)
        refused, why = folders.own_folder("netmem/kernels-x")
        assert refused is None
        assert "not ours alone" in why
        part.chmod(before)
    assert folders.own_folder("netmem/kernels-x")[0] == path
    before = os.umask(0o002)  # as many systems have it: the parts of the path are ours alone all the same
    try:
        assert folders.own_folder("deep/er/kernels")[0] is not None
    finally:
        os.umask(before)
    if ROOT:  # somebody else's, in the middle of the path
        os.chown(home / "netmem", 12345, 12345)
        assert folders.own_folder("netmem/kernels-x")[0] is None
        os.chown(home / "netmem", 0, 0)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(home / "netmem", elsewhere)
    elsewhere.chmod(0o777)
    (home / "netmem").symlink_to(elsewhere)
    assert folders.own_folder("netmem/kernels-x")[0] is None


def test_one_process_compiles_and_others_wait(tmp_path):
    said = []
    with folders.locked(tmp_path / "lock", said.append) as free:
        assert free
        with folders.locked(tmp_path / "lock", said.append, limit=0.6) as second:
            assert not second
    assert said
    with folders.locked(tmp_path / "lock", said.append) as free:
        assert free


def test_old_caches_are_pruned(tmp_path):
    for n in range(6):
        (tmp_path / f"kernels-{n}").mkdir()
        os.utime(tmp_path / f"kernels-{n}", (n, n))
    (tmp_path / "other").mkdir()
    folders.prune(tmp_path, "kernels-*", keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kernels-4", "kernels-5", "other"]
    (tmp_path / "kernels-6").mkdir()
    folders.prune(tmp_path, "kernels-*", keep=0)  # in use today: stays
    assert (tmp_path / "kernels-6").exists()


COMPILE = """
import sys
from netmem.base import jit
from netmem.memory import calls as k
import numpy as np
if sys.argv[1] == "make":
    k.gather(0, np.zeros((1, 3), np.int64), 0, 0)
    jit.mark_warm()
print(jit.is_warm(thorough=True))
print(k.gather(0, np.zeros((1, 3), np.int64), 0, 0))
print(jit.is_warm(), len(k.gather.signatures) if hasattr(k.gather, "signatures") else 1)
"""


@pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
@pytest.mark.parametrize(
    "damage", ["cut", "empty", "garbage", "one bit", "gone", "folder", "mark", "read-only"]
)
def test_a_damaged_cache_is_found_and_mended(damage, tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}

    def run(what):
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, what],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.split()

    assert run("make") == ["True", "0", "True", "1"]
    folder = tmp_path / "netmem" / "kernels"
    files = sorted(folder.rglob("*.nb[ic]"))
    assert files
    for path in files:
        data = path.read_bytes()
        if damage == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "garbage":
            path.write_bytes(os.urandom(len(data)))
        elif damage == "one bit":
            path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        elif damage == "gone":
            path.unlink()
    if damage == "folder":
        shutil.rmtree(folder)
    elif damage == "mark":
        (mark,) = folder.glob("warm-*")
        mark.write_bytes(b"\xff\x00nonsense")
    elif damage == "read-only":
        for path in (*files, folder):
            path.chmod(0o500)
    whole = damage == "read-only"
    assert run("use")[:2] == [str(whole), "0"]


@pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
def test_it_runs_without_any_place_for_a_cache(tmp_path):
    """Where no folder can be made: one line, and on with it."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    code = COMPILE.replace("from netmem.base import jit\n", "from netmem.base import folders, jit\n"
                           f"folders.homes = lambda: [__import__('pathlib').Path({str(blocked)!r})]\n")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, "make"], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "0"
    assert (
        "Not a directory"
        in subprocess.run(
            [sys.executable, "-c", code + "print(jit.why_no_cache())", "use"],
            capture_output=True,
            text=True,
            timeout=LIMIT,
        ).stdout
    )


# -- privileges -------------------------------------------------------------------------------------


def capabilities(pid):
    """(effective, bounding set, no_new_privs) of a process, or of all its threads."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        text = (task / "status").read_text()
        found.add(
            tuple(
                int(re.search(rf"{name}:\s*(\w+)", text)[1], 16)
                for name in ("CapEff", "CapBnd", "NoNewPrivs")
            )
        )
    return found


def test_nobody_keeps_privileges_that_are_not_needed():
    need(ROOT, "only root has privileges to drop")
    with Receiver() as receiver:
        pid = receiver.process.pid
        (nic,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert capabilities(pid) == {(2, 2, 1)}  # CAP_DAC_OVERRIDE, in every thread
        assert {(effective, no_new) for effective, _, no_new in capabilities(nic)} == {(0, 1)}
        receiver.send(b"hello")
