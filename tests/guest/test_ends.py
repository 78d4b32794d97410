"""How a guest ends: commands' statuses, time, panics, killed processes, signals; and that nothing is left."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)
NETMEM = [sys.executable, "-m", "netmem.cli.entry", "guest"]
LIMIT = 120


def processes() -> set[str]:
    """What runs of a guest: QEMU and models, by command line."""
    found = set()
    for one in Path("/proc").glob("[0-9]*"):
        try:
            words = (one / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "netmem.lab.guest" in words or "vfio-user-pci" in words:
            found.add(one.name)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(prepared):
    """Processes, socket folders and half-made images of a test are gone after it."""

    def left() -> set[str]:
        folder = prepared.store.folder
        return {
            *processes(), *(one for one in os.listdir("/tmp") if one.startswith("netmem-guest-")),
            *(str(one) for one in [*folder.glob("work.*"), *folder.glob("images/share.*")]),
        }  # fmt: skip

    before = left()
    yield
    end = time.monotonic() + 20
    while left() - before and time.monotonic() < end:
        select.select([], [], [], 0.1)
    assert not left() - before


def run(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NETMEM, "run", *words],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        **more,  # type: ignore[call-overload]
    )


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*NETMEM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_status_and_streams_come_through(tmp_path):
    share, out = tmp_path / "share", tmp_path / "out"
    share.mkdir()
    (share / "a file").write_bytes(bytes(range(256)) * 1000)
    done = run(
        "--share", str(share), "--out", str(out), "--",
        "cat '/share/a file' > /out/copy; touch /share/x; echo to stdout; echo to stderr >&2; ln -s /etc/passwd /out/l; exit 7",
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert done.stdout == "to stdout\n"
    assert "to stderr" in done.stderr
    assert "Read-only file system" in done.stderr
    assert "left in the guest: ./l: no file of this folder" in done.stderr
    assert not (out / "l").exists()
    assert (out / "copy").read_bytes() == (share / "a file").read_bytes()


def test_words_stay_words():
    done = run("--", "printf", "<%s>", "a b", "$HOME", "'", "-x")
    assert done.stdout == "<a b><$HOME><'><-x>"


def test_large_output_is_whole():
    done = run("seq 2000000")
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 2_000_001))


def test_a_command_that_does_not_end_is_ended():
    done = run("--timeout", "15", "sleep 1000")
    assert done.returncode == 124
    assert "did not come to an end in time" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_panic_is_told_with_the_console_s_last_lines():
    done = run("echo c > /proc/sysrq-trigger")
    assert done.returncode == 125
    assert "the guest's kernel died" in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) > 4


def test_a_guest_that_switches_itself_off_is_told():
    done = run("echo o > /proc/sysrq-trigger; sleep 100")
    assert done.returncode == 125
    assert "the guest ended by itself" in done.stderr


def test_a_warning_of_the_kernel_is_shown():
    """A module that is loaded taints; what is no complaint is not shown."""
    done = run("echo hello > /dev/kmsg; echo '<4>WARNING: made up' > /dev/kmsg; sleep 0.5")
    assert done.returncode == 0
    assert "WARNING: made up" in done.stderr
    assert "hello" not in done.stderr


def test_a_kernel_without_the_drivers_is_told(tmp_path, prepared):
    image = tmp_path / "vmlinuz"
    image.write_bytes(prepared.kernel.image.read_bytes())  # and no modules beside it
    done = run("--kernel", str(image), "true")
    assert done.returncode == 125
    assert "has the kernel ext4 and virtio_blk" in done.stderr.splitlines()[-1]


def test_a_module_for_another_kernel_is_told(tmp_path):
    wrong = tmp_path / "gve.ko"
    wrong.write_bytes(b"\x7fELF no module")
    done = run("--module", str(wrong), "true")
    assert done.returncode == 125
    assert "module gve.ko cannot be loaded" in done.stderr.splitlines()[-1]


def test_too_little_memory_is_told():
    done = run("--memory", "256M", "true")
    assert done.returncode in (0, 125), done.stderr
    assert run("--memory", "64M", "true").returncode == 2


def test_a_port_that_is_busy_is_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = run("--wire", "user", "--forward", f"{port}:80", "true")
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [0.3, 1.0, 2.5, 6.0, 12.0])
def test_a_signal_at_any_moment_is_one_line(number, after):
    process = start("run", "sleep 1000")
    select.select([], [], [], after)
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"netmem: interrupted by {number.name}"


@pytest.mark.parametrize("which", ["netmem.lab.guest.model_main", "vfio-user-pci"])
def test_a_killed_process_is_told(which):
    before = processes()
    process = start("run", "echo up; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    for pid in processes() - before:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        if which in words:
            os.kill(int(pid), signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 125, err
    assert re.search(r"SIGKILL", err.splitlines()[-1]), err
    assert "Traceback" not in err


def test_netmem_killed_leaves_nothing():
    process = start("run", "echo up; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.communicate()


def test_the_shell_is_interactive():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*NETMEM, "shell"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    said = b""

    def until(text: bytes) -> None:
        nonlocal said
        end = time.monotonic() + LIMIT
        while text not in said:
            assert select.select([ours], [], [], max(0.0, end - time.monotonic()))[0], said
            said += os.read(ours, 65536)

    until(b"exit` ends it")
    until(b"#")
    os.write(ours, b"ethtool -i eth0 | head -n 1; python3 -c 'print(6 * 7)'; tty\n")
    until(b"driver: gve")
    until(b"42")
    os.write(ours, b"exit 5\n")
    try:
        while os.read(ours, 65536):
            pass
    except OSError:
        pass  # the terminal's end
    assert process.wait(LIMIT) == 5
    os.close(ours)


def test_a_kernel_of_one_s_own_and_gdb(prepared):
    """A folder with image and modules, as a build leaves them; gdb's protocol answers at the port."""
    folder = prepared.store.root(f"kernel-{prepared.version}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start("run", "--kernel", str(folder), "--gdb", str(port), "uname -r; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline().strip() == prepared.kernel.name
    with socket.create_connection(("127.0.0.1", port), timeout=10) as gdb:
        gdb.sendall(b"$qSupported#37")
        said = b""
        while b"PacketSize" not in said:
            data = gdb.recv(1000)
            assert data, said
            said += data
        gdb.sendall(b"$D#44")  # detach: the guest goes on
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 143
